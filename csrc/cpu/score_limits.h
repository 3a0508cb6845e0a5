// Which keys are left out: those of the key mask and, where the problem is masked, taps off the
// map.
#pragma once

#include "cpu/block.h"
#include "cpu/map.h"
#include "cpu/scratch.h"

namespace sdwa::cpu::SDWA_ISA {

// The last rows of the key mask as largest scores that a key may have, infinity, or minus infinity
// where it is left out, in slots as the keys are. Margins hold what the padding rule says.
template <typename A>
class ScoreLimits {
 public:
  // For a ring of that many rows of keys. Without a key mask all rows are the same, and one is
  // kept.
  ScoreLimits(const bool* key_mask, const HeadWindow& window, const RowLayout& layout, int32_t rows,
              Scratch& scratch)
      : key_mask_(key_mask),
        needed_(key_mask != nullptr || window.leaves_out()),
        window_(window),
        layout_(layout),
        rows_(key_mask ? rows : 1, needed_ ? layout.slots : 0, scratch),
        off_map_(scratch.take<A>(needed_ ? window.columns.size + kStripSize : 0)) {
    if (off_map_ == nullptr || !needed_) return;
    const A off = tap_counts(false, window.masked) ? kInfinity<A> : -kInfinity<A>;
    for (int64_t i = 0; i < rows_.size(); ++i) rows_.data()[i] = off;
    for (int32_t i = 0; i < window.columns.size + kStripSize; ++i) off_map_[i] = off;
    if (key_mask) return;
    for_each_slot(layout, [&](int32_t slot, int32_t) __attribute__((always_inline)) {
      rows_.data()[slot] = kInfinity<A>;
    });
  }

  // Whether anything can be left out.
  bool needed() const { return needed_; }

  // Reads the key mask of row `row` of a phase, which is row y of the map.
  void read_row(int64_t batch, int64_t y, int32_t row) {
    if (key_mask_ == nullptr) return;
    const bool* const kept = key_mask_ + (batch * window_.height + y) * window_.width;
    A* const limits = rows_.row(row);
    for_each_slot(layout_, [&](int32_t slot, int32_t x) __attribute__((always_inline)) {
      limits[slot] = kept[x] ? kInfinity<A> : -kInfinity<A>;
    });
  }

  // Lowers a block's scores to their limits.
  SDWA_INLINE void apply(const Block& block, int32_t rows_on_map, Vec<A>* scores) const {
    for (int32_t u = 0; u < block.count; ++u) {
      const PlacedStrip& at = block.strips[u];
      const int32_t first = at.strip.window();
      const int32_t start = window_.rows.start(at.row, rows_on_map);
      // From limit to limit for the queries, and in the middle of a split strip.
      const int32_t step = at.strip.around == Around::kShared ? 0 : 1;
      const int32_t split = at.strip.around == Around::kSplit ? 1 : 0;
      A* score = reinterpret_cast<A*>(scores) + u * kStripSize;
      for (int32_t h = 0; h < window_.rows.size; ++h) {
        const int32_t row = start + h;
        const A* limit = on_axis(row, rows_on_map) ? rows_.row(row) + first : off_map_;
        for (int32_t w = 0; w < window_.columns.size; ++w, score += kLanes<A>, ++limit) {
          A lowered[kStripSize];
          unroll<kStripSize>([&](int i) __attribute__((always_inline)) {
            const A largest = limit[i < kStripSize / 2 ? i * step : i * step + split];
            lowered[i] = score[i] < largest ? score[i] : largest;
          });
          std::memcpy(score, lowered, sizeof lowered);
        }
      }
    }
  }

 private:
  const bool* const key_mask_;
  const bool needed_;
  const HeadWindow& window_;
  const RowLayout& layout_;
  const RowRing<A> rows_;
  A* const off_map_;  // of a row that is off the map
};

// Where the bias by distance of a strip's taps begins: that of tap (0, 0) of query 0 is element
// `first`. Taps follow each other in rows of distances(columns.size); the queries of a shared strip
// lie one element before each other.
struct DistanceBias {
  int32_t first, row, step;

  SDWA_INLINE DistanceBias(const HeadWindow& window, const PlacedStrip& at, int32_t rows_on_map)
      : row(distances(window.columns.size)), step(at.strip.around == Around::kShared ? 1 : 0) {
    const int32_t above = at.row - window.rows.start(at.row, rows_on_map);
    first = distance_index(window.rows.size, -above) * row +
            distance_index(window.columns.size, -at.strip.before);
  }
};

// Turns a block's products of query and key into scores: times scale, plus bias, and minus
// infinity where a tap is left out. The kernel's pointer comes by reference, so that it is read
// where it is needed: registers are short here.
template <typename A, typename Args>
SDWA_INLINE void finish_scores(const Args& args, int64_t head, const HeadWindow& window,
                               const ScoreLimits<A>& limits, const Block& block,
                               int32_t rows_on_map, Vec<A>* const& scores) {
  const int32_t taps = window.taps();
  const A scale = static_cast<A>(args.problem.scale);
  const A* bias =
      args.bias ? static_cast<const A*>(args.bias) + head * args.problem.bias_size() : nullptr;
  if (bias && args.problem.by_distance) {
    for (int32_t t = 0; t < taps; ++t) scores[t] *= scale;
    for (int32_t u = 0; u < block.count; ++u) {
      const DistanceBias of(window, block.strips[u], rows_on_map);
      const int32_t count = block.strips[u].strip.count;  // others have no bias to read
      A* score = reinterpret_cast<A*>(scores) + u * kStripSize;
      for (int32_t h = 0; h < window.rows.size; ++h) {
        const A* const row = bias + of.first + h * of.row;
        for (int32_t w = 0; w < window.columns.size; ++w, score += kLanes<A>) {
          unroll<kStripSize>([&](int i) __attribute__((always_inline)) {
            score[i] += row[w - (i < count ? i : 0) * of.step];
          });
        }
      }
    }
  } else {
    for (int32_t t = 0; t < taps; ++t) {
      scores[t] = bias ? scores[t] * scale + bias[t] : scores[t] * scale;
    }
  }
  if (limits.needed()) limits.apply(block, rows_on_map, scores);
}

}  // namespace sdwa::cpu::SDWA_ISA
