// Map arithmetic: which pixels an item, a phase, a strip and a window have, and in which order the
// pixels of a row lie in scratch.
//
// For dilation r a map falls into phases: pixels of equal coordinates modulo r, on which the window
// is dense. csrc/README.md has a picture.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/namespaces.h"
#include "cpu/pieces.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "problem.h"
#include "window_geometry.h"

namespace sdwa::cpu::SDWA_VECTORS {

// Batch entry, head, rows, and piece of its rows of an item.
struct ItemBounds {
  int64_t batch, head, piece, row_begin, row_end;

  ItemBounds(const Problem& problem, const Plan& plan, int64_t item) : head(item % problem.heads) {
    item /= problem.heads;
    row_begin = item % plan.bands * plan.band_rows;
    batch = item / plan.bands;
    piece = 0;
    if (plan.pieces > 1) {
      piece = batch % plan.pieces;
      batch /= plan.pieces;
    }
    row_end = row_begin + plan.band_rows;
    if (row_end > problem.height) row_end = problem.height;
  }

  bool empty(const Problem& problem, const Plan& plan) const {
    if (plan.pieces == 1) return false;
    const Pieces pieces(problem, plan, head);
    return pieces.empty(pieces[piece]);
  }
};

// One head's window on the map.
struct HeadWindow {
  WindowAxis rows, columns;
  int32_t height, width;
  bool masked;

  HeadWindow(const Problem& problem, int64_t head)
      : rows{static_cast<int32_t>(problem.kernel_h),
             smaller(problem.dilation[2 * head], problem.height),
             static_cast<int32_t>(problem.before_h), problem.shifted_h},
        columns{static_cast<int32_t>(problem.kernel_w),
                smaller(problem.dilation[2 * head + 1], problem.width),
                static_cast<int32_t>(problem.before_w), problem.shifted_w},
        height(static_cast<int32_t>(problem.height)),
        width(static_cast<int32_t>(problem.width)),
        masked(problem.masked) {}

  int32_t taps() const { return rows.size * columns.size; }

  // Whether taps off the map are left out, and there can be any.
  bool leaves_out() const {
    return masked && (leaves_axis(rows, height) || leaves_axis(columns, width));
  }
  static bool leaves_axis(const WindowAxis& axis, int32_t length) {
    return !axis.shifted || axis.phase_length(length, axis.phases(length) - 1) < axis.size;
  }

  // Rows of a phase that are needed at a time while `step` rows of queries are worked on: those of
  // their windows, and those of queries that hold one key.
  int32_t key_rows(int32_t step) const { return on_phase(rows.size - 1 + step); }
  int32_t query_rows(int32_t step) const { return on_phase(rows.most_queries() - 1 + step); }

  int32_t on_phase(int32_t needed) const {
    const int32_t on_map = rows.phase_length(height, 0);
    return needed < on_map ? needed : on_map;
  }

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

// What is known of the tokens around a strip's queries, and how their windows lie there.
enum class Around {
  kAnything,
  kMargins,  // it is all of its phase's row: margins on both sides
  kSplit,    // it is the rows of two phases, the first of kStripSize / 2 queries: margins there
             // and in between
  kShared,   // all have the same columns of taps: shifted windows at an end of the row
};

// kStripSize queries next to each other in a phase's row; the last `kStripSize - count` of them
// are not there.
struct Strip {
  int32_t slot;
  int32_t x;
  int32_t count;
  Around around;
  bool own;        // queries are the item's; else they only read its keys
  int32_t before;  // taps of the first query's window that lie before it
  int32_t end;     // kShared: among the queries at ends, the first one's number
  int32_t phase;   // of those of the layout

  // Slot of the first query's first tap.
  SDWA_INLINE int32_t window() const { return slot - before; }

  // Pixels that query i is from query 0.
  SDWA_INLINE int32_t pixels(int32_t i, int32_t dilation) const {
    return i * dilation + (i >= kStripSize / 2 ? jump(dilation) : 0);
  }
  // Pixels that the queries from kStripSize / 2 on are further than their number says.
  SDWA_INLINE int32_t jump(int32_t dilation) const {
    return around == Around::kSplit ? 1 - kStripSize / 2 * dilation : 0;
  }
};

// Queries at an end of a phase's row whose windows have shifted, and so are one: neighbours.
struct RowEnd {
  int32_t slot, count;  // of the queries in this row in scratch
  int32_t number;       // of the first, among the queries at ends of all phases in the layout
  int32_t window;       // slot of the first tap
};

// The slots of a row in scratch. It holds its phases' rows one after the other, with a margin of
// zero tokens between them, so that a tap off the map reads zeros without a test, and a strip of
// neighbouring queries reads neighbouring tokens:
//
//   slot:  margin | x = 0, r, 2r, ... | margin | x = 1, r + 1, ... | margin | ... | margin | spare
//
// Of a long row it is the pixels of one piece and its halo. Rows of tokens overlap, so that more of
// them fit into the first cache: the last margin of one is the first of the next, and what a
// strip's absent queries read there does not matter.
struct RowLayout {
  WindowAxis axis;
  int32_t width;
  int32_t phase_begin, phase_end;
  int32_t read_begin;      // of the pixels of a phase, the first that is read
  int32_t x_begin, x_end;  // from the first pixel of a phase to it, and to the end of what is read
  int32_t slots;
  int32_t margin;
  int32_t pitch;  // slots from one row of tokens to the next
  int32_t strip_count;
  const Strip* strips;
  int32_t end_queries;  // queries at ends
  RowEnd* ends;         // two for each phase

  // Queries of the piece, and of `query_halo` pixels of a phase on either side, get strips; the
  // latter of their own. With `split`, short rows of neighbouring phases share strips.
  RowLayout(WindowAxis window, int32_t map_width, const Piece& piece, int32_t query_halo,
            bool split, Scratch& scratch)
      : axis(window),
        width(map_width),
        phase_begin(static_cast<int32_t>(piece.phase_begin)),
        phase_end(static_cast<int32_t>(piece.phase_end)) {
    const int32_t shortest = axis.phase_length(width, axis.phases(width) - 1);
    margin = axis.before > axis.after() ? axis.before : axis.after();
    if (axis.shifted && axis.size - shortest > margin) margin = axis.size - shortest;
    const int32_t halo = query_halo + axis.farthest();
    const auto begin = static_cast<int32_t>(piece.begin);
    const auto end = static_cast<int32_t>(piece.end);
    read_begin = begin > halo ? begin - halo : 0;
    const int32_t read_end = end + halo;
    const int64_t behind = int64_t(read_end) * axis.dilation;
    x_begin = read_begin * axis.dilation;
    x_end = behind < width ? static_cast<int32_t>(behind) : width;
    ends = scratch.take<RowEnd>(axis.shifted ? 2 * (phase_end - phase_begin) : 0);
    end_queries = 0;
    // Taken once it is known how many there are.
    Strip* const strip = scratch.take<Strip>(0);
    strips = strip;
    strip_count = 0;
    int32_t slot = margin;  // of the pixel read first
    const auto add = [&](Strip next) {
      if (strip != nullptr) strip[strip_count] = next;
      ++strip_count;
    };
    for (int32_t phase = phase_begin; phase < phase_end; ++phase) {
      const int32_t length = axis.phase_length(width, phase);
      const bool whole = begin == 0 && end >= length;
      if (split && whole && length == kStripSize / 2 && phase + 1 < phase_end) {
        // The next one is no longer.
        const int32_t next = axis.phase_length(width, phase + 1);
        add({slot, phase, length + next, Around::kSplit, true, axis.before, 0, 0});
        slot += length + margin + next + margin;
        ++phase;
        continue;
      }
      // Windows shift inwards for the pixels before `left` and from `right` on.
      const bool moves = axis.shifted;
      const int32_t left = !moves ? 0 : length > axis.size ? axis.before + 1 : length;
      const int32_t right = moves && length > axis.size ? length - 1 - axis.after() : length;
      const int32_t queries_begin = begin > query_halo ? begin - query_halo : 0;
      const int32_t queries_end = end + query_halo < length ? end + query_halo : length;
      const auto add_end = [&](int32_t which, int32_t from, int32_t to) {
        from = from > queries_begin ? from : queries_begin;
        to = to < queries_end ? to : queries_end;
        const int32_t count = from < to ? to - from : 0;
        if (strip != nullptr) {
          ends[2 * (phase - phase_begin) + which] = {slot + from - read_begin, count, end_queries,
                                                     slot + axis.start(from, length) - read_begin};
        }
        end_queries += count;
        return end_queries - count - from;
      };
      // Numbers of the queries at ends are their places and these.
      const int32_t left_number = moves ? add_end(0, 0, left) : 0;
      const int32_t right_number = moves ? add_end(1, right, length) : 0;
      // Adds strips of the pixels [from, to) of the phase.
      const auto add_some = [&](int32_t from, int32_t to, Around around, bool own, int32_t number) {
        for (int32_t i = from; i < to; i += kStripSize) {
          add({slot + i - read_begin, phase + i * axis.dilation,
               to - i < kStripSize ? to - i : kStripSize, around, own, i - axis.start(i, length),
               i + number, phase - phase_begin});
        }
      };
      const auto add_strips = [&](int32_t from, int32_t to, Around around, bool own) {
        add_some(from, to < left ? to : left, Around::kShared, own, left_number);
        add_some(from > left ? from : left, to < right ? to : right, around, own, 0);
        add_some(from > right ? from : right, to, Around::kShared, own, right_number);
      };
      const bool margins = axis.plain() && whole && length <= kStripSize;
      add_strips(queries_begin, begin < length ? begin : length, Around::kAnything, false);
      add_strips(begin, end < length ? end : length, margins ? Around::kMargins : Around::kAnything,
                 true);
      add_strips(end, queries_end, Around::kAnything, false);
      slot += (read_end < length ? read_end : length) - read_begin + margin;
    }
    pitch = slot - margin;
    slots = slot + kStripSize;
    scratch.take<Strip>(strip_count);
  }

  // Whether queries in the slots [from, to) around a strip are not at an end of their row.
  SDWA_INLINE bool any_between_ends(const Strip& strip, int32_t from, int32_t to) const {
    if (!axis.shifted) return true;
    const RowEnd& left = ends[2 * strip.phase];
    const RowEnd& right = ends[2 * strip.phase + 1];
    const int32_t first = left.slot + left.count;
    return (from > first ? from : first) < (to < right.slot ? to : right.slot);
  }

  // The pixel after those of a phase that are read.
  SDWA_INLINE int32_t end_of(int32_t phase) const {
    return phase + x_end < width ? phase + x_end : width;
  }
};

// Calls token(slot, x) for each slot of a pixel.
template <typename Token>
SDWA_INLINE void for_each_slot(const RowLayout& layout, Token&& token) {
  const WindowAxis axis = layout.axis;
  int32_t slot = layout.margin;
  for (int32_t phase = layout.phase_begin; phase < layout.phase_end;
       ++phase, slot += layout.margin) {
    const int32_t end = layout.end_of(phase);
    for (int32_t x = phase + layout.x_begin; x < end; x += axis.dilation) {
      token(slot++, x);
    }
  }
}

}  // namespace sdwa::cpu::SDWA_VECTORS
