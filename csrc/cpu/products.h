// The two products of attention over a run of queries: queries with keys, and weights with values.
//
// A run is kRun neighbouring pixels of one sub-map row (see layout.h).
#pragma once

#include "simd.h"

namespace sdwa::cpu::SDWA_ISA {

// What is known of the tokens around a run's queries.
enum class Around {
  kAnything,
  kMargins,  // it is all of its sub-map row: margins on both sides
  kSplit,    // it is two sub-map rows, the first of kRun / 2 queries: margins there and in between
};

// kRun queries next to each other in a sub-map row; the last `kRun - count` of them are not there.
struct Run {
  int32_t slot;
  int32_t x;
  int32_t count;
  Around around;

  // Pixels that query i is from query 0.
  SDWA_INLINE int32_t pixels(int32_t i, int32_t dilation) const {
    return i * dilation + (i >= kRun / 2 ? jump(dilation) : 0);
  }
  // Pixels that the queries from kRun / 2 on are further than their number says.
  SDWA_INLINE int32_t jump(int32_t dilation) const {
    return around == Around::kSplit ? 1 - kRun / 2 * dilation : 0;
  }
};

// Runs whose folded scores fill one vector, one lane a query.
template <typename A>
inline constexpr int kRunsPerBlock = kLanes<A> / kRun;

// The window of a run: for each of its rows where the token of the first query's first tap is, but
// for `shift` elements, or null where the row is off the map. Tap t of query i in a row is i + t
// tokens further, behind the margin in the middle of a split run one more.
template <typename A>
struct RunWindow {
  const A* const* rows;
  int64_t shift;
  int kernel_h;
  int kernel_w;
  int stride;  // elements from token to token, whole vectors
};

// Weights of a run's taps: row h, tap t, query i has weight rows[h][first + t * step + i]. Where
// the weights belong to the tokens instead of the queries, `step` counts the one token that a tap
// moves as well.
template <typename A>
struct RunWeights {
  const A* const* rows;
  int64_t first;
  int64_t step;
};

// Tokens of a run's queries, `step` elements apart, those of a split run's second row `jump` more.
template <typename A>
struct RunTokens {
  Run run;
  A* first;
  int64_t step;
  int64_t jump = 0;
};

template <typename A>
struct Products {
  // partial[tap * kRunsPerBlock] = <query, token>, still spread over kRunsPerBlock neighbouring
  // lanes for each of the kRun queries.
  void (*score)(const RunTokens<const A>& queries, const RunWindow<A>& window, Vec<A>* partial);
  // results[i] = sum over taps of weight * token.
  void (*sum)(const RunWindow<A>& window, const RunWeights<A>& weights,
              const RunTokens<A>& results);
};

// The products specialised for a window's width and the vectors of a token.
template <typename A>
Products<A> choose_products(int kernel_w, int vectors);

}  // namespace sdwa::cpu::SDWA_ISA
