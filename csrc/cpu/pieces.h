// How long rows are cut into pieces, so that a thread's scratch stays small.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "inline.h"
#include "problem.h"

namespace sdwa::cpu {

// Whether a head has the dilation of the one before it, and so its pieces and its scratch.
SDWA_INLINE bool repeats_dilation(const Problem& problem, int64_t head) {
  const int64_t* const dilation = problem.dilation + 2 * head;
  return head > 0 && dilation[0] == dilation[-2] && dilation[1] == dilation[-1];
}

// The part of a row that an item has: of the phases [phase_begin, phase_end) the pixels [begin,
// end), or as many of them as a phase has.
struct Piece {
  int64_t phase_begin, phase_end;
  int64_t begin, end;
};

// The pieces of one head's rows: `run` neighbouring pixels of each of `group` neighbouring phases.
// Phases know nothing of each other; runs of one phase read each other's pixels as halo.
struct Pieces {
  int64_t width, dilation;  // of a map's row; the dilation is at most the width
  int64_t group, groups;
  int64_t run, runs;

  SDWA_INLINE Pieces(const Problem& problem, const Plan& plan, int64_t head)
      : width(problem.width), dilation(problem.dilation[2 * head + 1]) {
    // A run is at least this many times as long as its halo, which is worked on again.
    constexpr int64_t kRunPerHalo = 2;
    if (dilation > width) dilation = width;
    const int64_t margin = problem.farthest_w();
    group = dilation;
    groups = runs = 1;
    run = width;
    if (width + group * margin <= plan.slots) return;
    // Pixels of the phase with the most.
    const int64_t whole = (width + dilation - 1) / dilation;
    run = plan.slots / group - 2 * plan.halo - margin;
    const int64_t shortest = kRunPerHalo * 2 * plan.halo + 1;
    run = run < shortest ? shortest : run;
    runs = run < whole ? whole / run : 1;
    run = (whole + runs - 1) / runs;
    group = plan.slots / (margin + run + (runs > 1 ? 2 * plan.halo : 0));
    groups = group < 1 ? dilation : group < dilation ? dilation / group : 1;
    group = (dilation + groups - 1) / groups;
  }

  SDWA_INLINE int64_t count() const { return groups * runs; }

  SDWA_INLINE Piece operator[](int64_t index) const {
    const int64_t phase = index % groups * group, pixel = index / groups * run;
    return {phase, phase + group < dilation ? phase + group : dilation, pixel, pixel + run};
  }

  // Whether the piece has no pixels: heads with fewer than the most have such ones.
  SDWA_INLINE bool empty(const Piece& piece) const {
    return piece.phase_begin >= dilation || piece.phase_begin + piece.begin * dilation >= width;
  }
};

}  // namespace sdwa::cpu
