// What attention.cpp asks of the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace sdwa::cpu {

// How a call is cut into items that run in any order on any thread. It depends on the problem
// alone, so results do not depend on the number of threads.
struct Plan {
  int64_t bands;      // of a map's rows
  int64_t band_rows;  // pixels
  int64_t items;      // batch * bands * heads; the head is innermost
  bool streaming;     // results are too large for the caches
};

#define SDWA_DECLARE_KERNELS(isa)                                                       \
  namespace isa {                                                                       \
  /* Bytes of scratch that a thread needs. */                                           \
  int64_t forward_scratch(const Problem& problem);                                      \
  int64_t backward_scratch(const Problem& problem);                                     \
  void forward(const ForwardArgs& args, const Plan& plan, int64_t begin, int64_t end,   \
               char* scratch);                                                          \
  /* grad_bias: (items, kernel_h, kernel_w) sums of the items, or null. */              \
  void backward(const BackwardArgs& args, const Plan& plan, int64_t begin, int64_t end, \
                void* grad_bias, char* scratch);                                        \
  }

SDWA_DECLARE_KERNELS(baseline)
SDWA_DECLARE_KERNELS(avx2)
SDWA_DECLARE_KERNELS(avx512)
SDWA_DECLARE_KERNELS(avx512bf16)

#undef SDWA_DECLARE_KERNELS

}  // namespace sdwa::cpu
