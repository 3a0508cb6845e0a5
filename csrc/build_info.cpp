// What was built, for `python -m sdwa.info`. setup.py writes every fact into build_facts.h; the
// names are those of BuildInfo in sdwa/extension.py.
#include <pybind11/pybind11.h>

#include "build_facts.h"

PYBIND11_MODULE(_build, m) {
  m.doc() = "Facts of the build of sdwa's compiled libraries.";
  m.attr("torch_version") = SDWA_TORCH_VERSION;
  m.attr("compiler") = SDWA_COMPILER;
  m.attr("instruction_sets") = SDWA_INSTRUCTION_SETS;
  m.attr("cuda") = SDWA_CUDA;  // version of the toolkit, or why there are no CUDA kernels
  m.attr("cuda_architectures") = SDWA_CUDA_ARCHITECTURES;
  m.attr("source_digest") = SDWA_SOURCE_DIGEST;
}
