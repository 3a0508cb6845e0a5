// A block: the strips whose queries fill the lanes of one vector, so that softmax needs no
// shuffles.
#pragma once

#include "cpu/map.h"
#include "cpu/products.h"
#include "cpu/scratch.h"

namespace sdwa::cpu::SDWA_ISA {

// A strip and the row that it is on.
struct PlacedStrip {
  int32_t row;  // of the phase
  int32_t y;
  Strip strip;
};

struct Block {
  PlacedStrip strips[kStripsPerBlock<float>];
  int32_t count = 0;
};

// Rows of a phase that fill a block, or one that fills several.
template <typename A>
SDWA_INLINE int32_t rows_per_block(const RowLayout& layout) {
  constexpr int kStrips = kStripsPerBlock<A>;
  return layout.strip_count >= kStrips ? 1 : kStrips / layout.strip_count;
}

// Where element `first` of each of `count` rows from `row` on is in a ring that holds the rows
// [begin, end); null for others.
template <typename A>
SDWA_INLINE void find_rows(const RowRing<A>& ring, int32_t row, int32_t count, int32_t begin,
                           int32_t end, int64_t first, const A** rows) {
  const A* data = ring.row(row < begin ? begin : row);
  for (int32_t h = 0; h < count; ++h, ++row) {
    const bool there = row >= begin && row < end;
    rows[h] = there ? data + first : nullptr;
    if (there) data = ring.next(data);
  }
}

// Where the windows of a block's strips are in a ring of rows of tokens. They are found once for
// all rings of one size.
template <typename A>
class BlockWindows {
 public:
  BlockWindows(const HeadWindow& window, int stride, Scratch& scratch)
      : window_(window),
        stride_(stride),
        rows_(scratch.take<const A*>(kStripsPerBlock<A> * window.rows.size)) {}

  // Finds the window of the block's strip u, on a phase of that many rows.
  SDWA_INLINE void find(int32_t u, const PlacedStrip& at, const RowRing<A>& ring, int32_t on_map) {
    find_rows(ring, window_.rows.start(at.row, on_map), window_.rows.size, 0, on_map,
              int64_t(at.strip.window()) * stride_, rows_ + u * window_.rows.size);
  }

  // The window of strip u, in the ring that lies `shift` elements after the one it was found in.
  SDWA_INLINE StripWindow<A> of(int32_t u, int64_t shift = 0) const {
    return {rows_ + u * window_.rows.size, shift, window_.rows.size, window_.columns.size, stride_};
  }

 private:
  const HeadWindow& window_;
  const int stride_;
  const A** const rows_;
};

// Tokens of a strip in scratch. Split strips have one slot in their middle.
template <typename A>
SDWA_INLINE StripTokens<const A> strip_tokens(const PlacedStrip& at, const RowRing<A>& ring,
                                              int stride) {
  return {at.strip.around, at.strip.count, ring.row(at.row) + int64_t(at.strip.slot) * stride,
          stride, stride};
}

// Products of a block's queries with the tokens of a ring, one vector per tap, one lane per query.
// queries(strip) tells where the queries' tokens are.
template <typename A, typename Queries>
SDWA_INLINE void dot_block(const Block& block, Queries&& queries, const BlockWindows<A>& windows,
                           int64_t shift, const HeadWindow& window, const Products<A>& products,
                           Vec<A>* partial, Vec<A>* result) {
  constexpr int kStrips = kStripsPerBlock<A>;
  for (int32_t u = 0; u < block.count; ++u) {
    const PlacedStrip& at = block.strips[u];
    const auto dot = at.strip.around == Around::kShared ? products.dot_shared : products.dot;
    dot(queries(at), windows.of(u, shift), partial + u);
  }
  for (int32_t t = 0; t < window.taps(); ++t) {
    result[t] = transposed<A, kStripSize>(fold_all<A, kStrips, kStrips>(partial + t * kStrips));
  }
}

}  // namespace sdwa::cpu::SDWA_ISA
