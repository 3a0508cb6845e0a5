// What forward and backward share around their kernels: the loop over items, and the scratch.
#pragma once

#include <optional>

#include "cpu/map.h"
#include "cpu/scratch.h"

namespace sdwa::cpu::SDWA_ISA {

// Calls f(kernel, bounds, item) for each item that has pixels. A kernel is laid out for one
// dilation and one piece of the rows, so a new one is made in `buffer` where an item has others.
template <typename Kernel, typename Args, typename F>
SDWA_INLINE void for_each_item(const Args& args, const Plan& plan, int64_t begin, int64_t end,
                               char* buffer, F&& f) {
  std::optional<Kernel> kernel;
  for (int64_t item = begin; item < end; ++item) {
    const ItemBounds bounds(args.problem, plan, item);
    if (bounds.empty(args.problem, plan)) continue;
    if (!kernel || !kernel->serves(bounds.head, bounds.piece)) {
      Scratch scratch(buffer);
      kernel.emplace(args, plan, bounds.head, bounds.piece, scratch);
    }
    f(*kernel, bounds, item);
  }
  finish_streaming();
}

// Bytes of scratch that are enough for the kernel of any item.
template <typename Kernel, typename Args>
int64_t largest_scratch(const Args& args, const Plan& plan) {
  int64_t largest = 0;
  for (int64_t head = 0; head < args.problem.heads; ++head) {
    if (repeats_dilation(args.problem, head)) continue;
    const Pieces pieces(args.problem, plan, head);
    for (int64_t piece = 0; piece < pieces.count(); ++piece) {
      if (pieces.empty(pieces[piece])) continue;
      Scratch scratch(nullptr);
      Kernel(args, plan, head, piece, scratch);
      largest = scratch.used() > largest ? scratch.used() : largest;
    }
  }
  return largest;
}

}  // namespace sdwa::cpu::SDWA_ISA
