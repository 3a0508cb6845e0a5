// A block: the runs whose queries fill the lanes of one vector, so that softmax needs no shuffles.
#pragma once

#include "layout.h"
#include "products.h"

namespace sdwa::cpu::SDWA_ISA {

// One head's window, and where its taps fall.
struct HeadWindow {
  WindowAxis rows, columns;
  int32_t height, width;
  bool masked;

  HeadWindow(const Problem& p, int64_t head)
      : rows{static_cast<int32_t>(p.kernel_h), smaller(p.dilation[2 * head], p.height)},
        columns{static_cast<int32_t>(p.kernel_w), smaller(p.dilation[2 * head + 1], p.width)},
        height(static_cast<int32_t>(p.height)),
        width(static_cast<int32_t>(p.width)),
        masked(p.masked) {}

  int32_t taps() const { return rows.size * columns.size; }

  bool same_dilation(const Problem& p, int64_t head) const {
    return rows.dilation == smaller(p.dilation[2 * head], p.height) &&
           columns.dilation == smaller(p.dilation[2 * head + 1], p.width);
  }

  // A dilation of the map's size reaches nothing but the centre, and so does any larger one.
  static int32_t smaller(int64_t dilation, int64_t length) {
    return static_cast<int32_t>(dilation < length ? dilation : length);
  }
};

struct BlockRun {
  int32_t row;  // of the sub-map
  int32_t y;
  Run run;
};

struct Block {
  BlockRun runs[kLanes<float> / kRun];
  int32_t count = 0;
};

// Where the windows of a block's runs are in a ring of rows of tokens. They are found once for all
// rings of one size.
template <typename A>
class BlockWindows {
 public:
  BlockWindows(const HeadWindow& window, int stride, Scratch& scratch)
      : window_(window),
        stride_(stride),
        rows_(scratch.take<const A*>(kRunsPerBlock<A> * window.rows.size)) {}

  // Finds the window of the block's run u. The rows [rows_begin, rows_end) are in the ring.
  SDWA_INLINE void find(int32_t u, const BlockRun& at, const RowRing<A>& ring, int32_t rows_begin,
                        int32_t rows_end) {
    const A** const rows = rows_ + u * window_.rows.size;
    const int64_t first = int64_t(at.run.slot - window_.columns.reach()) * stride_;
    const int32_t above = at.row - window_.rows.reach();
    const A* data = ring.row(above < rows_begin ? rows_begin : above);
    for (int32_t h = 0; h < window_.rows.size; ++h) {
      const int32_t row = above + h;
      const bool there = row >= rows_begin && row < rows_end;
      rows[h] = there ? data + first : nullptr;
      if (there) data = ring.next(data);
    }
  }

  // The window of run u, in the ring that lies `shift` elements after the one it was found in.
  SDWA_INLINE RunWindow<A> of(int32_t u, int64_t shift = 0) const {
    return {rows_ + u * window_.rows.size, shift, window_.rows.size, window_.columns.size, stride_};
  }

 private:
  const HeadWindow& window_;
  const int stride_;
  const A** const rows_;
};

// Tokens of a run in scratch. Split runs have one slot in their middle.
template <typename A>
SDWA_INLINE RunTokens<const A> run_tokens(const BlockRun& at, const RowRing<A>& ring, int stride) {
  return {at.run, ring.row(at.row) + int64_t(at.run.slot) * stride, stride, stride};
}

// Scores of a block's queries with the tokens of a ring, one vector a tap, one lane a query.
// queries(run) tells where the queries' tokens are.
template <typename A, typename Queries>
SDWA_INLINE void score_block(const Block& block, Queries&& queries, const BlockWindows<A>& windows,
                             int64_t shift, const HeadWindow& window, const Products<A>& products,
                             Vec<A>* partial, Vec<A>* scores) {
  constexpr int kRuns = kRunsPerBlock<A>;
  for (int32_t u = 0; u < block.count; ++u) {
    const BlockRun& at = block.runs[u];
    products.score(queries(at), windows.of(u, shift), partial + u);
  }
  for (int32_t t = 0; t < window.taps(); ++t) {
    scores[t] = transposed<A, kRun>(fold_all<A, kRuns, kRuns>(partial + t * kRuns));
  }
}

// Calls off(tap, lane) for every tap that does not count, of every query of the block.
template <typename A, typename Off>
void for_each_uncounted(const Block& block, const HeadWindow& window, Off&& off) {
  for (int32_t u = 0; u < block.count; ++u) {
    const BlockRun& at = block.runs[u];
    for (int32_t h = 0; h < window.rows.size; ++h) {
      const bool row_on_map = on_axis(window.rows.source(at.y, h), window.height);
      for (int32_t w = 0; w < window.columns.size; ++w) {
        for (int32_t i = 0; i < at.run.count; ++i) {
          const int32_t query = at.run.x + at.run.pixels(i, window.columns.dilation);
          const int32_t x = window.columns.source(query, w);
          const bool on_map = row_on_map && on_axis(x, window.width);
          if (!tap_counts(on_map, window.masked)) {
            off(tap_index(window.columns, h, w), u * kRun + i);
          }
        }
      }
    }
  }
}

// The rows of a sub-map that lie in [begin, end) pixels: sub-map rows [first, last).
struct SubMapRows {
  int32_t first, last, on_map;

  SubMapRows(const WindowAxis& axis, int32_t height, int32_t phase, int64_t begin, int64_t end)
      : first(index(axis, phase, begin)),
        last(index(axis, phase, end)),
        on_map(axis.phase_length(height, phase)) {}

  static int32_t index(const WindowAxis& axis, int32_t phase, int64_t y) {
    return y <= phase ? 0 : static_cast<int32_t>((y - phase + axis.dilation - 1) / axis.dilation);
  }
};

}  // namespace sdwa::cpu::SDWA_ISA
