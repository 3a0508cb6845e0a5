// The inner loops. Compiled once for each instruction set.
//
// Along a row, the kStripSize windows of kKernelW taps of a strip share kStripSize + kKernelW - 1
// tokens: each token is loaded once and used by every window it is in. kKernelW and the vectors of
// a token are known at compile time for common problems, and 0 stands for a number known at run
// time.
#include "cpu/products.h"

#include "specialize.h"

namespace sdwa::cpu::SDWA_VECTORS {
namespace {

// Tokens from the first one in a row of a strip's windows to tap 0 of query i.
template <Around kAround>
constexpr int first_token(int i) {
  if (kAround == Around::kShared) return 0;
  return kAround == Around::kSplit && i >= kStripSize / 2 ? i + 1 : i;
}

// Whether token c, of those in a row of the windows of kCount queries, is a zero of a margin.
template <int kCount, int kKernelW, Around kAround>
constexpr bool in_margin(int c) {
  constexpr int kReach = kKernelW / 2;
  if (kAround == Around::kAnything || kAround == Around::kShared) return false;
  if (kAround == Around::kSplit && c == kStripSize / 2 + kReach) return true;
  return c < kReach || c > first_token<kAround>(kCount - 1) + kReach;
}

// Inner products of kTaps neighbouring taps of a strip's first kCount queries. With kMargins and
// kSplit, the taps are a whole row's.
template <int kCount, Around kAround, int kTaps, int kVectors, typename A>
SDWA_INLINE void dot_taps(const A* const (&queries)[kStripSize], const A* tokens,
                          int runtime_stride, Vec<A>* partial) {
  const int stride = kVectors > 0 ? kVectors * kLanes<A> : runtime_stride;
  Vec<A> sum[kTaps][kStripSize] = {};
  for (int d = 0; d < stride; d += kLanes<A>) {
    Vec<A> q[kCount];
    unroll<kCount>(
        [&](int i) __attribute__((always_inline)) { q[i] = in_register<A>(load(queries[i] + d)); });
    unroll<first_token<kAround>(kCount - 1) + kTaps>([&](int c) __attribute__((always_inline)) {
      if (in_margin<kCount, kTaps, kAround>(c)) return;
      const Vec<A> token = in_register<A>(load(tokens + c * stride + d));
      unroll<kCount>([&](int i) __attribute__((always_inline)) {
        const int tap = c - first_token<kAround>(i);
        if (tap >= 0 && tap < kTaps) sum[tap][i] += q[i] * token;
      });
    });
  }
  unroll<kTaps>([&](int t) __attribute__((always_inline)) {
    partial[t * kStripsPerBlock<A>] = fold_all<A, kLanes<A>, kStripSize>(sum[t]);
  });
}

// As many taps at a time as there are registers for.
template <int kCount, Around kAround, int kKernelW, int kVectors, typename A>
SDWA_OUT_OF_LINE void dot_strip(const StripTokens<const A>& queries, const StripWindow<A>& window,
                                Vec<A>* partial) {
  constexpr int kStrips = kStripsPerBlock<A>;
  const A* query[kStripSize];
  // The first query stands in for those that are not there: nobody uses their products.
  unroll<kStripSize>([&](int i) __attribute__((always_inline)) {
    const int64_t jump = kAround == Around::kSplit && i >= kStripSize / 2 ? queries.jump : 0;
    query[i] = queries.first + (i < queries.count ? i * queries.step + jump : 0);
  });
  const int stride = window.stride;
  for (int h = 0; h < window.kernel_h; ++h, partial += window.kernel_w * kStrips) {
    if (window.rows[h] == nullptr) {
      for (int t = 0; t < window.kernel_w; ++t) partial[t * kStrips] = Vec<A>{};
      continue;
    }
    const A* const row = window.rows[h] + window.shift;
    if constexpr (kKernelW == 3 || kKernelW == 5) {
      dot_taps<kCount, kAround, kKernelW, kVectors>(query, row, stride, partial);
    } else if constexpr (kKernelW == 7) {
      dot_taps<kCount, kAround, 4, kVectors>(query, row, stride, partial);
      dot_taps<kCount, kAround, 3, kVectors>(query, row + 4 * stride, stride,
                                             partial + 4 * kStrips);
    } else {
      int t = 0;
      const auto some = [&](auto n) __attribute__((always_inline)) {
        dot_taps<kCount, kAround, decltype(n)::value, kVectors>(query, row + t * stride, stride,
                                                                partial + t * kStrips);
        t += n;
      };
      while (window.kernel_w - t >= 4 && window.kernel_w - t != 5) {
        some(std::integral_constant<int, 4>{});
      }
      if (window.kernel_w - t == 5) some(std::integral_constant<int, 5>{});
      if (window.kernel_w - t == 3) some(std::integral_constant<int, 3>{});
      if (window.kernel_w - t == 2) some(std::integral_constant<int, 2>{});
      if (window.kernel_w - t == 1) some(std::integral_constant<int, 1>{});
    }
  }
}

// Calls f(n, around), integral constants, n queries being enough for the strip. Narrow maps and
// wide dilations have many strips that are not full or that lie between margins. Code for three
// queries and for margins is made for the common window only.
template <int kKernelW, typename Tokens, typename F>
SDWA_INLINE void specialize_strip(const Tokens& strip, F&& f) {
  const auto with_count = [&](auto around) __attribute__((always_inline)) {
    if constexpr (kStripSize == 4 && kKernelW == 3) {
      if (strip.count == 3) return f(std::integral_constant<int, 3>{}, around);
    }
    if (strip.count > kStripSize / 2) return f(std::integral_constant<int, kStripSize>{}, around);
    return f(std::integral_constant<int, kStripSize / 2>{}, around);
  };
  if constexpr (kKernelW == 3) {
    if (strip.around == Around::kMargins) {
      return with_count(std::integral_constant<Around, Around::kMargins>{});
    }
    if (strip.around == Around::kSplit) {
      return f(std::integral_constant<int, kStripSize>{},
               std::integral_constant<Around, Around::kSplit>{});
    }
  }
  with_count(std::integral_constant<Around, Around::kAnything>{});
}

template <int kKernelW, int kVectors, typename A>
void dot(const StripTokens<const A>& queries, const StripWindow<A>& window, Vec<A>* partial) {
  specialize_strip<kKernelW>(queries, [&](auto n, auto around) __attribute__((always_inline)) {
    dot_strip<decltype(n)::value, decltype(around)::value, kKernelW, kVectors>(queries, window,
                                                                               partial);
  });
}

// kChunk vectors of the results, from vector `first` on.
template <int kCount, Around kAround, int kKernelW, int kVectors, int kChunk, typename A>
SDWA_INLINE void sum_chunk(const StripWindow<A>& window, const StripWeights<A>& weights, int first,
                           const StripTokens<A>& results) {
  constexpr int kWidth = kLanes<A>;
  const int stride = kVectors > 0 ? kVectors * kWidth : window.stride;
  Vec<A> sum[kCount][kChunk] = {};
  for (int h = 0; h < window.kernel_h; ++h) {
    if (window.rows[h] == nullptr) continue;
    const A* const row = window.rows[h] + window.shift + first * kWidth;
    const A* const weight = weights.rows[h] + weights.first;
    if constexpr (kKernelW > 0) {
      unroll<first_token<kAround>(kCount - 1) + kKernelW>(
          [&](int c) __attribute__((always_inline)) {
            if (in_margin<kCount, kKernelW, kAround>(c)) return;
            Vec<A> token[kChunk];
            unroll<kChunk>([&](int n) __attribute__((always_inline)) {
              token[n] = in_register<A>(load(row + c * stride + n * kWidth));
            });
            unroll<kCount>([&](int i) __attribute__((always_inline)) {
              const int tap = c - first_token<kAround>(i);
              if (tap >= 0 && tap < kKernelW) {
                const Vec<A> w = broadcast(weight[tap * weights.step + i]);
                unroll<kChunk>([&](int n)
                                   __attribute__((always_inline)) { sum[i][n] += w * token[n]; });
              }
            });
          });
    } else if (kAround != Around::kShared && window.kernel_w >= kCount) {
      // Each token once; the first and the last few are not in all windows.
      const auto add = [&](int c, auto is_in) __attribute__((always_inline)) {
        Vec<A> token[kChunk];
        unroll<kChunk>([&](int n) __attribute__((always_inline)) {
          token[n] = in_register<A>(load(row + c * stride + n * kWidth));
        });
        unroll<kCount>([&](int i) __attribute__((always_inline)) {
          if (!is_in(i)) return;
          const Vec<A> w = broadcast(weight[(c - i) * weights.step + i]);
          unroll<kChunk>([&](int n) __attribute__((always_inline)) { sum[i][n] += w * token[n]; });
        });
      };
      unroll<kCount - 1>(
          [&](int c) __attribute__((always_inline)) { add(c, [&](int i) { return i <= c; }); });
      for (int c = kCount - 1; c < window.kernel_w; ++c) {
        add(c, [](int) { return true; });
      }
      unroll<kCount - 1>([&](int c) __attribute__((always_inline)) {
        add(window.kernel_w + c, [&](int i) { return i > c; });
      });
    } else {
      const int64_t lane = kAround == Around::kShared ? weights.lane : 1;
      for (int t = 0; t < window.kernel_w; ++t) {
        Vec<A> token[kChunk];
        unroll<kCount>([&](int i) __attribute__((always_inline)) {
          const Vec<A> w = broadcast(weight[t * weights.step + i * lane]);
          unroll<kChunk>([&](int n) __attribute__((always_inline)) {
            if (i == 0 || kAround != Around::kShared) {
              token[n] =
                  in_register<A>(load(row + (t + first_token<kAround>(i)) * stride + n * kWidth));
            }
            sum[i][n] += w * token[n];
          });
        });
      }
    }
  }
  unroll<kCount>([&](int i) __attribute__((always_inline)) {
    if (i >= results.count) return;
    const int64_t jump = kAround == Around::kSplit && i >= kStripSize / 2 ? results.jump : 0;
    A* const result = results.first + i * results.step + jump + first * kWidth;
    if (kAround == Around::kShared) {
      unroll<kChunk>([&](int n) __attribute__((always_inline)) {
        store<A>(result + n * kWidth, load(result + n * kWidth) + sum[i][n]);
      });
    } else if (results.streaming) {
      unroll<kChunk>(
          [&](int n) __attribute__((always_inline)) { stream(result + n * kWidth, sum[i][n]); });
    } else {
      unroll<kChunk>(
          [&](int n) __attribute__((always_inline)) { store<A>(result + n * kWidth, sum[i][n]); });
    }
  });
}

template <int kCount, Around kAround, int kKernelW, int kVectors, typename A>
SDWA_OUT_OF_LINE void sum_strip(const StripWindow<A>& window, const StripWeights<A>& weights,
                                const StripTokens<A>& results) {
  const int vectors = kVectors > 0 ? kVectors : window.stride / kLanes<A>;
  int n = 0;
  for (; vectors - n >= 4 && vectors - n != 5; n += 4) {
    sum_chunk<kCount, kAround, kKernelW, kVectors, 4>(window, weights, n, results);
  }
  if constexpr (kVectors == 0 || kVectors == 3) {
    if (vectors - n == 5 || vectors - n == 3) {
      sum_chunk<kCount, kAround, kKernelW, kVectors, 3>(window, weights, n, results);
      n += 3;
    }
  }
  if constexpr (kVectors == 0 || kVectors == 2) {
    if (vectors - n == 2)
      sum_chunk<kCount, kAround, kKernelW, kVectors, 2>(window, weights, n, results);
  }
  if constexpr (kVectors == 0 || kVectors == 1) {
    if (vectors - n == 1)
      sum_chunk<kCount, kAround, kKernelW, kVectors, 1>(window, weights, n, results);
  }
}

template <int kKernelW, int kVectors, typename A>
void sum(const StripWindow<A>& window, const StripWeights<A>& weights,
         const StripTokens<A>& results) {
  specialize_strip<kKernelW>(results, [&](auto n, auto around) __attribute__((always_inline)) {
    sum_strip<decltype(n)::value, decltype(around)::value, kKernelW, kVectors>(window, weights,
                                                                               results);
  });
}

// Shared strips are few. One function serves tokens of any size.
template <int kKernelW, typename A>
void dot_shared(const StripTokens<const A>& queries, const StripWindow<A>& window,
                Vec<A>* partial) {
  if (queries.count <= kStripSize / 2) {
    dot_strip<kStripSize / 2, Around::kShared, kKernelW, 0>(queries, window, partial);
  } else {
    dot_strip<kStripSize, Around::kShared, kKernelW, 0>(queries, window, partial);
  }
}

template <typename A>
void add_shared(const StripWindow<A>& window, const StripWeights<A>& weights,
                const StripTokens<A>& results) {
  sum_strip<kStripSize, Around::kShared, 0, 0>(window, weights, results);
}

}  // namespace

template <typename A>
Products<A> choose_products(int kernel_w, int vectors) {
  const auto choose = [](auto kw, auto nv) {
    return Products<A>{dot<decltype(kw)::value, decltype(nv)::value, A>,
                       sum<decltype(kw)::value, decltype(nv)::value, A>,
                       dot_shared<decltype(kw)::value, A>, add_shared<A>};
  };
  return specialize<3, 5, 7>(kernel_w, [&](auto kw) {
#if defined(SDWA_FEW_PRODUCTS)  // a sanitizer takes very long to compile them
    return specialize<4>(vectors, [&](auto nv) { return choose(kw, nv); });
#else
    return specialize<1, 2, 3, 4, 8>(vectors, [&](auto nv) { return choose(kw, nv); });
#endif
  });
}

template Products<float> choose_products<float>(int, int);
template Products<double> choose_products<double>(int, int);

}  // namespace sdwa::cpu::SDWA_VECTORS
