// The inner loops. Compiled once for each instruction set.
//
// Along a row, the kRun windows of KW taps of a run share kRun + KW - 1 tokens: each token is
// loaded once and used by every window it is in. KW and the vectors of a token are known at compile
// time for common problems, and 0 stands for a number known at run time.
#include "products.h"

#include "../specialize.h"

namespace sdwa::cpu::SDWA_ISA {
namespace {

// Scores of kTaps neighbouring taps of a run.
template <int kTaps, int kVectors, typename A>
SDWA_INLINE void score_taps(const A* query, const A* tokens, int runtime_stride, Vec<A>* partial) {
  const int stride = kVectors > 0 ? kVectors * kLanes<A> : runtime_stride;
  Vec<A> sum[kTaps][kRun] = {};
  for (int d = 0; d < stride; d += kLanes<A>) {
    Vec<A> q[kRun];
    unroll<kRun>([&](auto i) __attribute__((always_inline)) {
      q[i] = in_register<A>(load(query + i * stride + d));
    });
    unroll<kRun + kTaps - 1>([&](auto c) __attribute__((always_inline)) {
      const Vec<A> token = in_register<A>(load(tokens + c * stride + d));
      unroll<kRun>([&](auto i) __attribute__((always_inline)) {
        constexpr int kTap = c - i;
        if constexpr (kTap >= 0 && kTap < kTaps) sum[kTap][i] += q[i] * token;
      });
    });
  }
  unroll<kTaps>([&](auto t) __attribute__((always_inline)) {
    partial[t * kRunsPerBlock<A>] = fold_all<A, kLanes<A>, kRun>(sum[t]);
  });
}

// As many taps at a time as there are registers for.
template <int KW, int kVectors, typename A>
void score(const A* query, const RunWindow<A>& window, Vec<A>* partial) {
  constexpr int kRuns = kRunsPerBlock<A>;
  const int stride = window.stride;
  for (int h = 0; h < window.kernel_h; ++h, partial += window.kernel_w * kRuns) {
    const A* const row = window.rows[h];
    if (row == nullptr) {
      for (int t = 0; t < window.kernel_w; ++t) partial[t * kRuns] = Vec<A>{};
    } else if constexpr (KW == 3 || KW == 5) {
      score_taps<KW, kVectors>(query, row, stride, partial);
    } else if constexpr (KW == 7) {
      score_taps<4, kVectors>(query, row, stride, partial);
      score_taps<3, kVectors>(query, row + 4 * stride, stride, partial + 4 * kRuns);
    } else {
      int t = 0;
      for (; t + 4 <= window.kernel_w; t += 4) {
        score_taps<4, kVectors>(query, row + t * stride, stride, partial + t * kRuns);
      }
      for (; t < window.kernel_w; ++t) {
        score_taps<1, kVectors>(query, row + t * stride, stride, partial + t * kRuns);
      }
    }
  }
}

// kChunk vectors of the results, from vector `first` on.
template <int KW, int kVectors, int kChunk, typename A>
SDWA_INLINE void sum_chunk(const RunWindow<A>& window, const RunWeights<A>& weights, int first,
                           A* result) {
  constexpr int kWidth = kLanes<A>;
  const int stride = kVectors > 0 ? kVectors * kWidth : window.stride;
  Vec<A> sum[kRun][kChunk] = {};
  for (int h = 0; h < window.kernel_h; ++h) {
    if (window.rows[h] == nullptr) continue;
    const A* const row = window.rows[h] + first * kWidth;
    const A* const weight = weights.rows[h];
    if constexpr (KW > 0) {
      unroll<kRun + KW - 1>([&](auto c) __attribute__((always_inline)) {
        Vec<A> token[kChunk];
        unroll<kChunk>([&](auto n) __attribute__((always_inline)) {
          token[n] = in_register<A>(load(row + c * stride + n * kWidth));
        });
        unroll<kRun>([&](auto i) __attribute__((always_inline)) {
          constexpr int kTap = c - i;
          if constexpr (kTap >= 0 && kTap < KW) {
            const Vec<A> w = broadcast(weight[kTap * weights.step + i]);
            unroll<kChunk>([&](auto n)
                               __attribute__((always_inline)) { sum[i][n] += w * token[n]; });
          }
        });
      });
    } else {
      for (int t = 0; t < window.kernel_w; ++t) {
        unroll<kRun>([&](auto i) __attribute__((always_inline)) {
          const Vec<A> w = broadcast(weight[t * weights.step + i]);
          unroll<kChunk>([&](auto n) __attribute__((always_inline)) {
            sum[i][n] += w * load(row + (t + i) * stride + n * kWidth);
          });
        });
      }
    }
  }
  unroll<kRun>([&](auto i) __attribute__((always_inline)) {
    unroll<kChunk>([&](auto n) __attribute__((always_inline)) {
      store<A>(result + i * stride + (first + n) * kWidth, sum[i][n]);
    });
  });
}

template <int KW, int kVectors, typename A>
void sum(const RunWindow<A>& window, const RunWeights<A>& weights, A* result) {
  const int vectors = kVectors > 0 ? kVectors : window.stride / kLanes<A>;
  int n = 0;
  for (; vectors - n >= 4 && vectors - n != 5; n += 4) {
    sum_chunk<KW, kVectors, 4>(window, weights, n, result);
  }
  if constexpr (kVectors == 0 || kVectors == 3) {
    if (vectors - n == 5 || vectors - n == 3) {
      sum_chunk<KW, kVectors, 3>(window, weights, n, result);
      n += 3;
    }
  }
  if constexpr (kVectors == 0 || kVectors == 2) {
    if (vectors - n == 2) sum_chunk<KW, kVectors, 2>(window, weights, n, result);
  }
  if constexpr (kVectors == 0 || kVectors == 1) {
    if (vectors - n == 1) sum_chunk<KW, kVectors, 1>(window, weights, n, result);
  }
}

}  // namespace

template <typename A>
Products<A> choose_products(int kernel_w, int vectors) {
  return specialize<3, 5, 7>(kernel_w, [&](auto kw) {
    return specialize<1, 2, 3, 4, 8>(vectors, [&](auto nv) {
      return Products<A>{score<decltype(kw)::value, decltype(nv)::value, A>,
                         sum<decltype(kw)::value, decltype(nv)::value, A>};
    });
  });
}

template Products<float> choose_products<float>(int, int);
template Products<double> choose_products<double>(int, int);

}  // namespace sdwa::cpu::SDWA_ISA
