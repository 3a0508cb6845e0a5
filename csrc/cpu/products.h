// The two products of attention over a run of queries: queries with keys, and weights with values.
//
// A run is kRun neighbouring pixels of one sub-map row (see layout.h).
#pragma once

#include "simd.h"

namespace sdwa::cpu::SDWA_ISA {

// Runs whose folded scores fill one vector, one lane a query.
template <typename A>
inline constexpr int kRunsPerBlock = kLanes<A> / kRun;

// The window of a run: for each of its rows where the token of the first query's first tap is, but
// for `shift` elements, or null where the row is off the map. Tap t of query i in a row is i + t
// tokens further.
template <typename A>
struct RunWindow {
  const A* const* rows;
  int64_t shift;
  int kernel_h;
  int kernel_w;
  int stride;  // elements from token to token, whole vectors
  bool alone;  // there are margins, zeros, on both sides of the run's queries
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

// Tokens of a run's queries, `step` elements apart: the first `count` of them are there.
template <typename A>
struct RunTokens {
  A* first;
  int64_t step;
  int count;
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
