// Loops of independent multiply-adds: the rate that bounds the arithmetic of a kernel. For
// benchmarks/floor.py, which compiles this file where it is run.
//
// Each function does `rounds` times KEPT multiply-adds of whole vectors and returns their sum.

// Enough to hide the latency of an instruction that is started twice in a cycle, few enough for 16
// registers.
#define KEPT 12

#define EACH(i) _Pragma("GCC unroll 12") for (int i = 0; i < KEPT; ++i)

// The compiler must not know the numbers, nor leave any of the sums out.
#if defined(__x86_64__)
#define HIDE(v) __asm__ volatile("" : "+v"(v))
#else
#define HIDE(v) __asm__ volatile("" : "+w"(v))
#endif

#define LOOP(name, features, type, bytes)                            \
  features double name(long rounds) {                                \
    typedef type vector __attribute__((vector_size(bytes)));         \
    vector sum[KEPT] = {}, factor = (vector){} + (type)0.5, term = factor; \
    HIDE(factor);                                                    \
    HIDE(term);                                                      \
    EACH(i) { HIDE(sum[i]); }                                        \
    for (long round = 0; round < rounds; ++round) {                  \
      EACH(i) { sum[i] = sum[i] * factor + term; }                   \
    }                                                                \
    EACH(i) { HIDE(sum[i]); }                                        \
    EACH(i) { term += sum[i]; }                                      \
    return term[0];                                                  \
  }

LOOP(baseline_float32, , float, 16)
LOOP(baseline_float64, , double, 16)

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET(features) __attribute__((target(features)))

LOOP(avx2_float32, TARGET("avx2,fma"), float, 32)
LOOP(avx2_float64, TARGET("avx2,fma"), double, 32)
LOOP(avx512_float32, TARGET("avx512f"), float, 64)
LOOP(avx512_float64, TARGET("avx512f"), double, 64)

TARGET("avx512f,avx512bf16") double avx512bf16_bfloat16(long rounds) {
  __m512 sum[KEPT] = {}, total = _mm512_setzero_ps();
  __m512 pairs = _mm512_set1_ps(1);  // any numbers that are no NaN
  HIDE(pairs);
  EACH(i) { HIDE(sum[i]); }
  for (long round = 0; round < rounds; ++round) {
    EACH(i) { sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)pairs, (__m512bh)pairs); }
  }
  EACH(i) { HIDE(sum[i]); }
  EACH(i) { total = _mm512_add_ps(total, sum[i]); }
  return total[0];
}
#endif
