// What operators.cpp asks of the kernels of each instruction set, and what both agree on.
#pragma once

#include <cstdint>

#include "instruction_sets.h"
#include "problem.h"

namespace sdwa::cpu {

// Bytes that move between caches and memory at once. Scratch begins at such a boundary, so that no
// vector straddles one.
inline constexpr int kCacheLine = 64;

// How a call is cut into items that run in any order on any thread. What an item computes does not
// depend on how the call was cut, so results do not depend on the number of threads.
struct Plan {
  int64_t bands;      // per map
  int64_t band_rows;  // pixels
  int64_t pieces;     // that the rows of a map are cut into, for the head with the most
  int64_t slots;      // of scratch that a piece of a row should take
  int64_t halo;       // pixels of a phase that a piece reads on either side
  int64_t items;      // batch * pieces * bands * heads; the head is innermost
  bool streaming;     // results are too large for the caches
};

#define SDWA_DECLARE_KERNELS(isa, supported)                                            \
  namespace isa {                                                                       \
  /* Bytes of scratch that a thread needs. */                                           \
  int64_t forward_scratch(const ForwardArgs& args, const Plan& plan);                   \
  int64_t backward_scratch(const BackwardArgs& args, const Plan& plan);                 \
  void forward(const ForwardArgs& args, const Plan& plan, int64_t begin, int64_t end,   \
               char* scratch);                                                          \
  /* grad_bias: (items, bias_h, bias_w) sums of the items, or null. */                  \
  void backward(const BackwardArgs& args, const Plan& plan, int64_t begin, int64_t end, \
                void* grad_bias, char* scratch);                                        \
  }

SDWA_FOR_EACH_INSTRUCTION_SET(SDWA_DECLARE_KERNELS)

#undef SDWA_DECLARE_KERNELS

}  // namespace sdwa::cpu
