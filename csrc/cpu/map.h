// Map arithmetic: which pixels an item, a phase, a strip and a window have, and in which order the
// pixels of a row lie in scratch.
//
// For dilation r a map falls into phases: pixels of equal coordinates modulo r, on which the window
// is dense. csrc/README.md has a picture.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "problem.h"
#include "window_geometry.h"

namespace sdwa::cpu::SDWA_ISA {

// Batch entry, head and rows of an item.
struct ItemBounds {
  int64_t batch, head, row_begin, row_end;

  ItemBounds(const Problem& problem, const Plan& plan, int64_t item)
      : batch(item / problem.heads / plan.bands), head(item % problem.heads) {
    row_begin = item / problem.heads % plan.bands * plan.band_rows;
    row_end = row_begin + plan.band_rows;
    if (row_end > problem.height) row_end = problem.height;
  }
};

// One head's window on the map.
struct HeadWindow {
  WindowAxis rows, columns;
  int32_t height, width;
  bool masked;

  HeadWindow(const Problem& problem, int64_t head)
      : rows{static_cast<int32_t>(problem.kernel_h),
             smaller(problem.dilation[2 * head], problem.height)},
        columns{static_cast<int32_t>(problem.kernel_w),
                smaller(problem.dilation[2 * head + 1], problem.width)},
        height(static_cast<int32_t>(problem.height)),
        width(static_cast<int32_t>(problem.width)),
        masked(problem.masked) {}

  int32_t taps() const { return rows.size * columns.size; }

  bool same_dilation(const Problem& problem, int64_t head) const {
    return rows.dilation == smaller(problem.dilation[2 * head], problem.height) &&
           columns.dilation == smaller(problem.dilation[2 * head + 1], problem.width);
  }

  // A dilation of the map's size reaches nothing but the centre, and so does any larger one.
  static int32_t smaller(int64_t dilation, int64_t length) {
    return static_cast<int32_t>(dilation < length ? dilation : length);
  }
};

// The rows of a phase that lie in the pixel rows [begin, end): rows [first, last) of `on_map`.
struct PhaseRows {
  int32_t first, last, on_map;

  PhaseRows(const WindowAxis& axis, int32_t height, int32_t phase, int64_t begin, int64_t end)
      : first(index(axis, phase, begin)),
        last(index(axis, phase, end)),
        on_map(axis.phase_length(height, phase)) {}

  static int32_t index(const WindowAxis& axis, int32_t phase, int64_t y) {
    return y <= phase ? 0 : static_cast<int32_t>((y - phase + axis.dilation - 1) / axis.dilation);
  }
};

// Queries of a strip. One pass over a row's keys serves them all, so there are as many as the
// registers hold accumulators for: AVX-512 has 32 registers, the other sets of x86-64 have 16.
inline constexpr int kStripSize = kVectorBytes == 64 ? 4 : 2;

// What is known of the tokens around a strip's queries.
enum class Around {
  kAnything,
  kMargins,  // it is all of its phase's row: margins on both sides
  kSplit,    // it is the rows of two phases, the first of kStripSize / 2 queries: margins there
             // and in between
};

// kStripSize queries next to each other in a phase's row; the last `kStripSize - count` of them
// are not there.
struct Strip {
  int32_t slot;
  int32_t x;
  int32_t count;
  Around around;

  // Pixels that query i is from query 0.
  SDWA_INLINE int32_t pixels(int32_t i, int32_t dilation) const {
    return i * dilation + (i >= kStripSize / 2 ? jump(dilation) : 0);
  }
  // Pixels that the queries from kStripSize / 2 on are further than their number says.
  SDWA_INLINE int32_t jump(int32_t dilation) const {
    return around == Around::kSplit ? 1 - kStripSize / 2 * dilation : 0;
  }
};

// The slots of a row in scratch. It holds its phases' rows one after the other, with a margin of
// zero tokens between them, so that a tap off the map reads zeros without a test, and a strip of
// neighbouring queries reads neighbouring tokens:
//
//   slot:  margin | x = 0, r, 2r, ... | margin | x = 1, r + 1, ... | margin | ... | margin | spare
//
// Rows of tokens overlap, so that more of them fit into the first cache: the last margin of one is
// the first of the next, and what a strip's absent queries read there does not matter.
struct RowLayout {
  WindowAxis axis;
  int32_t width;
  int32_t slots;
  int32_t pitch;  // slots from one row of tokens to the next
  int32_t strip_count;
  const Strip* strips;

  // With `split`, short rows of neighbouring phases share strips.
  RowLayout(WindowAxis window, int32_t map_width, bool split, Scratch& scratch)
      : axis(window), width(map_width) {
    const int32_t margin = axis.reach();
    const int32_t phases = axis.phases(width);
    pitch = phases * margin + width;
    slots = pitch + margin + kStripSize;
    Strip* strip = scratch.take<Strip>(width / kStripSize + phases);
    strips = strip;
    strip_count = 0;
    int32_t slot = margin;
    const auto add = [&](Strip next) {
      if (strip != nullptr) strip[strip_count] = next;
      ++strip_count;
    };
    for (int32_t phase = 0; phase < phases; ++phase) {
      const int32_t length = axis.phase_length(width, phase);
      if (split && length == kStripSize / 2 && phase + 1 < phases) {
        // The next one is no longer.
        const int32_t next = axis.phase_length(width, phase + 1);
        add({slot, phase, length + next, Around::kSplit});
        slot += length + margin + next + margin;
        ++phase;
        continue;
      }
      for (int32_t i = 0; i < length; i += kStripSize) {
        const int32_t left = length - i;
        add({slot + i, phase + i * axis.dilation, left < kStripSize ? left : kStripSize,
             left == length && left <= kStripSize ? Around::kMargins : Around::kAnything});
      }
      slot += length + margin;
    }
  }
};

// Calls token(slot, x) for each slot of a pixel.
template <typename Token>
SDWA_INLINE void for_each_slot(const RowLayout& layout, Token&& token) {
  const WindowAxis axis = layout.axis;
  int32_t slot = axis.reach();
  for (int32_t phase = 0; phase < axis.phases(layout.width); ++phase, slot += axis.reach()) {
    for (int32_t x = phase; x < layout.width; x += axis.dilation) token(slot++, x);
  }
}

}  // namespace sdwa::cpu::SDWA_ISA
