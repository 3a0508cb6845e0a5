// The namespaces of what is compiled once for each instruction set. setup.py says which set it is
// (SDWA_ISA), and whose vectors and products it has (SDWA_VECTORS) where they are another's: of
// avx512bf16 only the conversions are its own.
#pragma once

#if !defined(SDWA_VECTORS)
#define SDWA_VECTORS SDWA_ISA
#endif

namespace sdwa::cpu {
namespace SDWA_VECTORS {}
namespace SDWA_ISA {
using namespace SDWA_VECTORS;
}
}  // namespace sdwa::cpu
