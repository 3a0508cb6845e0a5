// The two products of attention over a strip of queries: their inner products with keys, and sums
// of values by weight.
#pragma once

#include "cpu/map.h"
#include "cpu/simd.h"

namespace sdwa::cpu::SDWA_VECTORS {

// Strips whose folded inner products fill one vector, one lane per query.
template <typename A>
inline constexpr int kStripsPerBlock = kLanes<A> / kStripSize;

// The window of a strip: for each of its rows where the token of the first query's first tap is,
// but for `shift` elements, or null where the row is off the map. Tap t of query i in a row is
// i + t tokens further, behind the margin in the middle of a split strip one more; of a shared
// strip it is t tokens further.
template <typename A>
struct StripWindow {
  const A* const* rows;
  int64_t shift;
  int kernel_h;
  int kernel_w;
  int stride;  // elements from token to token, whole vectors
};

// Weights of a strip's taps: row h, tap t, query i has weight rows[h][first + t * step + i], of a
// shared strip rows[h][first + t * step + i * lane]. Where the weights belong to the tokens instead
// of the queries, `step` counts the one token that a tap moves as well.
template <typename A>
struct StripWeights {
  const A* const* rows;
  int64_t first;
  int64_t step;
  int64_t lane = 1;
};

// Tokens of the `count` queries of a strip, `step` elements apart, those of a split strip's second
// row `jump` more. With `streaming`, they are written past the caches.
template <typename A>
struct StripTokens {
  Around around;
  int32_t count;
  A* first;
  int64_t step;
  int64_t jump = 0;
  bool streaming = false;
};

template <typename A>
struct Products {
  // partial[tap * kStripsPerBlock] = <query, token>, still spread over kStripsPerBlock neighbouring
  // lanes for each of the kStripSize queries.
  void (*dot)(const StripTokens<const A>& queries, const StripWindow<A>& window, Vec<A>* partial);
  // results[i] = sum over taps of weight * token.
  void (*sum)(const StripWindow<A>& window, const StripWeights<A>& weights,
              const StripTokens<A>& results);
  // The same for shared strips. The sum is added to the results.
  void (*dot_shared)(const StripTokens<const A>& queries, const StripWindow<A>& window,
                     Vec<A>* partial);
  void (*add_shared)(const StripWindow<A>& window, const StripWeights<A>& weights,
                     const StripTokens<A>& results);
};

// The products specialised for a window's width and the vectors of a token.
template <typename A>
Products<A> choose_products(int kernel_w, int vectors);

}  // namespace sdwa::cpu::SDWA_VECTORS
