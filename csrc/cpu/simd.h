// Vectors of the instruction set being compiled for.
//
// Everything the kernels need beyond the compilers' own vector types: loads, a broadcast, the
// shuffle-and-add tree of the dot products, exp and log. The width follows the flags of the build.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <numbers>
#include <utility>

#include "cpu/namespaces.h"
#include "inline.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sdwa::cpu::SDWA_VECTORS {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <typename A>
struct Types;
template <>
struct Types<float> {
  using Int = int32_t;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t IntVector __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Types<double> {
  using Int = int64_t;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t IntVector __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vec = typename Types<A>::Vector;
template <typename A>
using IntVec = typename Types<A>::IntVector;

template <typename A>
inline constexpr A kInfinity = std::numeric_limits<A>::infinity();

template <typename A>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <typename A>
SDWA_INLINE Vec<A> load(const A* p) {
  Vec<A> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename A>
SDWA_INLINE void store(A* p, Vec<A> v) {
  std::memcpy(p, &v, sizeof v);
}

// Past the caches, to an address aligned like E, for results that nobody reads soon. The thread
// must call finish_streaming before others may read.
template <typename E>
SDWA_INLINE void stream(void* p, E v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) {
    return _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32) {
    return _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof v == 16) return _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#endif
  std::memcpy(p, &v, sizeof v);
}

SDWA_INLINE void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <typename A>
SDWA_INLINE Vec<A> broadcast(A x) {
  return x - Vec<A>{};  // not 0 + x, which loses the sign of -0
}

// v, in a register: GCC would load a vector again for each of its uses, and loads are what limits
// the products. On arm64 only loads read memory, and the statement would cost copies.
template <typename A>
SDWA_INLINE Vec<A> in_register(Vec<A> v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

template <typename A>
SDWA_INLINE Vec<A> maximum(Vec<A> a, Vec<A> b) {
  return a > b ? a : b;
}

// f(integral_constant 0), ..., f(integral_constant N - 1), unrolled at compile time, so that arrays
// indexed by the constant live in registers. An f that takes an int is compiled once and not N
// times.
template <int N, typename F>
SDWA_INLINE void unroll(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// One level of the transpose-and-add tree. a and b hold groups of kGroup lanes whose sums are
// wanted; the result holds a group of a, one of b, and so on in turns, each folded to kGroup / 2
// lanes. The pairing within a group does not depend on the group's place, so neither does the
// rounding.
template <typename A, int kGroup>
SDWA_INLINE Vec<A> fold(Vec<A> a, Vec<A> b) {
  constexpr int kHalf = kGroup / 2;
  constexpr int kAll = kLanes<A>;
  // Lanes that b is moved by in the first addend. Without a move that is a blend instead of a
  // shuffle, but arm64 has no blends.
#if defined(__aarch64__)
  constexpr int kMove = kHalf;
#else
  constexpr int kMove = 0;
#endif
  return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, (i / kHalf % 2 == 0 ? i : kAll + i - kMove)...) +
           __builtin_shufflevector(a, b,
                                   (i / kHalf % 2 == 0 ? i + kHalf : kAll + i - kHalf + kMove)...);
  }(std::make_integer_sequence<int, kAll>{});
}

// Folds v[0..kCount), a power of two, into one vector: every kGroup lanes of it hold, for each v[i]
// in its order, kGroup / kCount partial sums of those lanes.
template <typename A, int kGroup, int kCount>
SDWA_INLINE Vec<A> fold_all(const Vec<A>* v) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    Vec<A> half[kCount / 2];
    unroll<kCount / 2>([&](int i) __attribute__((always_inline)) {
      half[i] = fold<A, kGroup>(v[i], v[i + kCount / 2]);
    });
    return fold_all<A, kGroup / 2, kCount / 2>(half);
  }
}

// A matrix of kRows rows, row by row, column by column.
template <typename A, int kRows>
SDWA_INLINE Vec<A> transposed(Vec<A> v) {
  constexpr int kColumns = kLanes<A> / kRows;
  return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(v, v, (i % kRows * kColumns + i / kRows)...);
  }(std::make_integer_sequence<int, kLanes<A>>{});
}

// 0, 1, 2, ...
template <typename A>
SDWA_INLINE IntVec<A> lane_numbers() {
  return []<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return IntVec<A>{i...};
  }(std::make_integer_sequence<int, kLanes<A>>{});
}

// The last `count` lanes in front, zeros behind them. 0 < count < kLanes.
#if defined(__AVX512F__)
SDWA_INLINE Vec<float> last_lanes(Vec<float> v, int count) {
  return _mm512_maskz_compress_ps(static_cast<__mmask16>(0xffff << (16 - count)), v);
}
SDWA_INLINE Vec<double> last_lanes(Vec<double> v, int count) {
  return _mm512_maskz_compress_pd(static_cast<__mmask8>(0xff << (8 - count)), v);
}
#else
template <typename V>
SDWA_INLINE V last_lanes(V v, int count) {
  constexpr int kAll = sizeof v / sizeof v[0];
  V moved = {};
  unroll<kAll>([&](auto n) __attribute__((always_inline)) {
    if (n != count) return;
    moved = [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      return __builtin_shufflevector(v, V{}, (i < n ? kAll - n + i : kAll)...);
    }(std::make_integer_sequence<int, kAll>{});
  });
  return moved;
}
#endif

// Adds what lies kHalf lanes apart, then half as far, and so on.
template <typename A, int kHalf = kLanes<A> / 2>
SDWA_INLINE A sum_lanes(Vec<A> v) {
  if constexpr (kHalf == 0) {
    return v[0];
  } else {
    v += [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      return __builtin_shufflevector(v, v, (i ^ kHalf)...);
    }(std::make_integer_sequence<int, kLanes<A>>{});
    return sum_lanes<A, kHalf / 2>(v);
  }
}

template <typename A>
struct ExpLog;
template <>
struct ExpLog<float> {
  static constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kSmallest = -87.3f;
  static constexpr int kMantissaBits = 23, kBias = 127;
  static constexpr int kExpTerms = 7, kLogTerms = 5;
};
template <>
struct ExpLog<double> {
  static constexpr double kRoundMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kSmallest = -708.3;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr int kExpTerms = 13, kLogTerms = 11;
};

// While compiling: Clang would call a constexpr one at run time.
consteval double factorial(int n) { return n < 2 ? 1.0 : n * factorial(n - 1); }

// exp(x) for x up to -kSmallest. Exactly 0 below the normal numbers (so for minus infinity), NaN
// for NaN; the relative error is about one unit in the last place.
template <typename A>
SDWA_INLINE Vec<A> exp(Vec<A> x) {
  using C = ExpLog<A>;
  const Vec<A> shifted = x * std::numbers::log2e_v<A> + C::kRoundMagic;
  const Vec<A> n = shifted - C::kRoundMagic;
  const Vec<A> r = (x - n * C::kLn2High) - n * C::kLn2Low;
  // The Taylor series; |r| <= log(2) / 2.
  Vec<A> sum = broadcast<A>(A(1 / factorial(C::kExpTerms)));
  unroll<C::kExpTerms>([&](auto i) __attribute__((always_inline)) {
    sum = sum * r + A(1 / factorial(C::kExpTerms - 1 - i));
  });
  // The magic number's low bits hold n.
  const IntVec<A> exponent = ((IntVec<A>)shifted + C::kBias) << C::kMantissaBits;
  const Vec<A> power = sum * (Vec<A>)exponent;
  // On arm64, GCC 12 makes eight instructions of the same with ?:, and two of this.
  return (Vec<A>)((IntVec<A>)power & ~(IntVec<A>)(x < C::kSmallest));
}

// log(x) for normal positive x, NaN for NaN; the absolute error is below the spacing of numbers
// near 1.
template <typename A>
SDWA_INLINE Vec<A> log(Vec<A> x) {
  using C = ExpLog<A>;
  using Int = typename Types<A>::Int;
  constexpr Int kOne = Int(C::kBias) << C::kMantissaBits;
  constexpr Int kMantissa = (Int(1) << C::kMantissaBits) - 1;
  const IntVec<A> bits = (IntVec<A>)x;
  Vec<A> m = (Vec<A>)((bits & kMantissa) | kOne);
  Vec<A> e = __builtin_convertvector((bits >> C::kMantissaBits) - C::kBias, Vec<A>);
  const auto high = m > std::numbers::sqrt2_v<A>;
  m = high ? m * A(0.5) : m;
  e = high ? e + A(1) : e;
  // log(m) = 2 artanh(s), |s| <= 0.172
  const Vec<A> s = (m - A(1)) / (m + A(1));
  const Vec<A> s2 = s * s;
  Vec<A> sum = Vec<A>{};
  unroll<C::kLogTerms>([&](auto i) __attribute__((always_inline)) {
    sum = sum * s2 + A(2.0 / (2 * (C::kLogTerms - i) - 1));
  });
  const Vec<A> result = e * C::kLn2High + (e * C::kLn2Low + s * sum);
  return x == x ? result : x;
}

}  // namespace sdwa::cpu::SDWA_VECTORS
