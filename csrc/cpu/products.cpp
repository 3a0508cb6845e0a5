// The inner loops. Compiled once for each instruction set.
//
// Along a row, the kRun windows of KW taps of a run share kRun + KW - 1 tokens: each token is
// loaded once and used by every window it is in. KW and the vectors of a token are known at compile
// time for common problems, and 0 stands for a number known at run time.
#include "products.h"

#include "../specialize.h"

namespace sdwa::cpu::SDWA_ISA {
namespace {

// Tokens from the first one in a row of a run's windows to tap 0 of query i.
template <Around kAround>
constexpr int first_token(int i) {
  return kAround == Around::kSplit && i >= kRun / 2 ? i + 1 : i;
}

// Whether token c, of those in a row of the windows of kCount queries, is a zero of a margin.
template <int kCount, int KW, Around kAround>
constexpr bool in_margin(int c) {
  constexpr int kReach = KW / 2;
  if (kAround == Around::kAnything) return false;
  if (kAround == Around::kSplit && c == kRun / 2 + kReach) return true;
  return c < kReach || c > first_token<kAround>(kCount - 1) + kReach;
}

// Scores of kTaps neighbouring taps of a run's first kCount queries. But for kAnything, the taps
// are a whole row's.
template <int kCount, Around kAround, int kTaps, int kVectors, typename A>
SDWA_INLINE void score_taps(const A* const (&queries)[kRun], const A* tokens, int runtime_stride,
                            Vec<A>* partial) {
  const int stride = kVectors > 0 ? kVectors * kLanes<A> : runtime_stride;
  Vec<A> sum[kTaps][kRun] = {};
  for (int d = 0; d < stride; d += kLanes<A>) {
    Vec<A> q[kCount];
    unroll<kCount>([&](auto i) __attribute__((always_inline)) {
      q[i] = in_register<A>(load(queries[i] + d));
    });
    unroll<first_token<kAround>(kCount - 1) + kTaps>([&](auto c) __attribute__((always_inline)) {
      if constexpr (in_margin<kCount, kTaps, kAround>(c)) return;
      const Vec<A> token = in_register<A>(load(tokens + c * stride + d));
      unroll<kCount>([&](auto i) __attribute__((always_inline)) {
        constexpr int kTap = c - first_token<kAround>(i);
        if constexpr (kTap >= 0 && kTap < kTaps) sum[kTap][i] += q[i] * token;
      });
    });
  }
  unroll<kTaps>([&](auto t) __attribute__((always_inline)) {
    partial[t * kRunsPerBlock<A>] = fold_all<A, kLanes<A>, kRun>(sum[t]);
  });
}

// As many taps at a time as there are registers for.
template <int kCount, Around kAround, int KW, int kVectors, typename A>
SDWA_INLINE void score_run(const RunTokens<const A>& run, const RunWindow<A>& window,
                           Vec<A>* partial) {
  constexpr int kRuns = kRunsPerBlock<A>;
  const A* queries[kRun];
  // Whatever stands in for a query that is not there: nobody uses its scores.
  unroll<kRun>([&](auto i) __attribute__((always_inline)) {
    const int64_t jump = kAround == Around::kSplit && i >= kRun / 2 ? run.jump : 0;
    queries[i] = run.first + (i < run.run.count ? i * run.step + jump : 0);
  });
  const int stride = window.stride;
  for (int h = 0; h < window.kernel_h; ++h, partial += window.kernel_w * kRuns) {
    if (window.rows[h] == nullptr) {
      for (int t = 0; t < window.kernel_w; ++t) partial[t * kRuns] = Vec<A>{};
      continue;
    }
    const A* const row = window.rows[h] + window.shift;
    if constexpr (KW == 3 || KW == 5) {
      score_taps<kCount, kAround, KW, kVectors>(queries, row, stride, partial);
    } else if constexpr (KW == 7) {
      score_taps<kCount, Around::kAnything, 4, kVectors>(queries, row, stride, partial);
      score_taps<kCount, Around::kAnything, 3, kVectors>(queries, row + 4 * stride, stride,
                                                         partial + 4 * kRuns);
    } else {
      int t = 0;
      for (; t + 4 <= window.kernel_w; t += 4) {
        score_taps<kCount, Around::kAnything, 4, kVectors>(queries, row + t * stride, stride,
                                                           partial + t * kRuns);
      }
      for (; t < window.kernel_w; ++t) {
        score_taps<kCount, Around::kAnything, 1, kVectors>(queries, row + t * stride, stride,
                                                           partial + t * kRuns);
      }
    }
  }
}

// Calls f(n, around), integral constants, n queries being enough for the run. Narrow maps and wide
// dilations have many runs that are not full, or between margins. Code for three queries and for
// margins is made for the common window only.
template <int KW, typename F>
SDWA_INLINE void with_kind(const Run& run, F&& f) {
  const auto with_count = [&](auto around) __attribute__((always_inline)) {
    if constexpr (kRun == 4 && KW == 3) {
      if (run.count == 3) return f(std::integral_constant<int, 3>{}, around);
    }
    if (run.count > kRun / 2) return f(std::integral_constant<int, kRun>{}, around);
    return f(std::integral_constant<int, kRun / 2>{}, around);
  };
  if constexpr (KW == 3) {
    if (run.around == Around::kMargins) {
      return with_count(std::integral_constant<Around, Around::kMargins>{});
    }
    if (run.around == Around::kSplit) {
      return f(std::integral_constant<int, kRun>{},
               std::integral_constant<Around, Around::kSplit>{});
    }
  }
  with_count(std::integral_constant<Around, Around::kAnything>{});
}

template <int KW, int kVectors, typename A>
void score(const RunTokens<const A>& run, const RunWindow<A>& window, Vec<A>* partial) {
  with_kind<KW>(run.run, [&](auto n, auto around) __attribute__((always_inline)) {
    score_run<decltype(n)::value, decltype(around)::value, KW, kVectors>(run, window, partial);
  });
}

// kChunk vectors of the results, from vector `first` on.
template <int kCount, Around kAround, int KW, int kVectors, int kChunk, typename A>
SDWA_INLINE void sum_chunk(const RunWindow<A>& window, const RunWeights<A>& weights, int first,
                           const RunTokens<A>& results) {
  constexpr int kWidth = kLanes<A>;
  const int stride = kVectors > 0 ? kVectors * kWidth : window.stride;
  Vec<A> sum[kCount][kChunk] = {};
  for (int h = 0; h < window.kernel_h; ++h) {
    if (window.rows[h] == nullptr) continue;
    const A* const row = window.rows[h] + window.shift + first * kWidth;
    const A* const weight = weights.rows[h] + weights.first;
    if constexpr (KW > 0) {
      unroll<first_token<kAround>(kCount - 1) + KW>([&](auto c) __attribute__((always_inline)) {
        if constexpr (in_margin<kCount, KW, kAround>(c)) return;
        Vec<A> token[kChunk];
        unroll<kChunk>([&](auto n) __attribute__((always_inline)) {
          token[n] = in_register<A>(load(row + c * stride + n * kWidth));
        });
        unroll<kCount>([&](auto i) __attribute__((always_inline)) {
          constexpr int kTap = c - first_token<kAround>(i);
          if constexpr (kTap >= 0 && kTap < KW) {
            const Vec<A> w = broadcast(weight[kTap * weights.step + i]);
            unroll<kChunk>([&](auto n)
                               __attribute__((always_inline)) { sum[i][n] += w * token[n]; });
          }
        });
      });
    } else {
      for (int t = 0; t < window.kernel_w; ++t) {
        unroll<kCount>([&](auto i) __attribute__((always_inline)) {
          const Vec<A> w = broadcast(weight[t * weights.step + i]);
          unroll<kChunk>([&](auto n) __attribute__((always_inline)) {
            sum[i][n] += w * load(row + (t + i) * stride + n * kWidth);
          });
        });
      }
    }
  }
  unroll<kCount>([&](auto i) __attribute__((always_inline)) {
    if (i >= results.run.count) return;
    const int64_t jump = kAround == Around::kSplit && i >= kRun / 2 ? results.jump : 0;
    A* const result = results.first + i * results.step + jump + first * kWidth;
    unroll<kChunk>(
        [&](auto n) __attribute__((always_inline)) { store<A>(result + n * kWidth, sum[i][n]); });
  });
}

template <int kCount, Around kAround, int KW, int kVectors, typename A>
SDWA_INLINE void sum_run(const RunWindow<A>& window, const RunWeights<A>& weights,
                         const RunTokens<A>& results) {
  const int vectors = kVectors > 0 ? kVectors : window.stride / kLanes<A>;
  int n = 0;
  for (; vectors - n >= 4 && vectors - n != 5; n += 4) {
    sum_chunk<kCount, kAround, KW, kVectors, 4>(window, weights, n, results);
  }
  if constexpr (kVectors == 0 || kVectors == 3) {
    if (vectors - n == 5 || vectors - n == 3) {
      sum_chunk<kCount, kAround, KW, kVectors, 3>(window, weights, n, results);
      n += 3;
    }
  }
  if constexpr (kVectors == 0 || kVectors == 2) {
    if (vectors - n == 2) sum_chunk<kCount, kAround, KW, kVectors, 2>(window, weights, n, results);
  }
  if constexpr (kVectors == 0 || kVectors == 1) {
    if (vectors - n == 1) sum_chunk<kCount, kAround, KW, kVectors, 1>(window, weights, n, results);
  }
}

template <int KW, int kVectors, typename A>
void sum(const RunWindow<A>& window, const RunWeights<A>& weights, const RunTokens<A>& results) {
  with_kind<KW>(results.run, [&](auto n, auto around) __attribute__((always_inline)) {
    sum_run<decltype(n)::value, decltype(around)::value, KW, kVectors>(window, weights, results);
  });
}

}  // namespace

template <typename A>
Products<A> choose_products(int kernel_w, int vectors) {
  const auto choose = [](auto kw, auto nv) {
    return Products<A>{score<decltype(kw)::value, decltype(nv)::value, A>,
                       sum<decltype(kw)::value, decltype(nv)::value, A>};
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

}  // namespace sdwa::cpu::SDWA_ISA
