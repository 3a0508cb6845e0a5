// Reading and writing elements and tokens of any dtype as vectors of the accumulation type.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "dtypes.h"

namespace sdwa::cpu::SDWA_ISA {

using Vecf = Vec<float>;
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Shorts __attribute__((vector_size(kVectorBytes / 2)));

// kLanes elements from p.
SDWA_INLINE Vec<float> load_as(const float* p) { return load<float>(p); }
SDWA_INLINE Vec<double> load_as(const double* p) { return load<double>(p); }

SDWA_INLINE Vecf load_as(const BFloat16* p) {
#if defined(__aarch64__)
  // What GCC 12 makes of the conversion below goes through the general registers, one by one.
  const Words wide = (Words)vmovl_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)));
#else
  Shorts bits;
  std::memcpy(&bits, p, sizeof bits);
  const Words wide = __builtin_convertvector(bits, Words);
#endif
  return (Vecf)(wide << 16);
}

SDWA_INLINE Vecf load_as(const Float16* p) {
#if defined(__AVX512F__)
  // The unmasked intrinsics draw a false warning from GCC 12; these are the same instructions.
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vecf)_mm512_maskz_cvtph_ps(0xffff, bits);
#elif defined(__F16C__)
  return (Vecf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return (Vecf)vcvt_f32_f16(vld1_f16(reinterpret_cast<const float16_t*>(p)));
#else
  Shorts bits;
  std::memcpy(&bits, p, sizeof bits);
  const Words wide = __builtin_convertvector(bits, Words);
  const Words magnitude = wide & 0x7fffu;
  // Shifted into place the exponent is too small by 112; the product restores it, subnormals
  // included.
  const Vecf scaled = (Vecf)(magnitude << 13) * 0x1p112f;
  const Words special = (magnitude << 13) | 0x7f800000u;  // infinity and NaN
  const Words finite = (Words)(magnitude < 0x7c00u);
  const Words value = ((Words)scaled & finite) | (special & ~finite);
  return (Vecf)(value | ((wide & 0x8000u) << 16));
#endif
}

// kLanes elements of the dtype of the first argument, which only names it.
SDWA_INLINE Vecf narrow(const float*, Vecf v) { return v; }
SDWA_INLINE Vec<double> narrow(const double*, Vec<double> v) { return v; }

SDWA_INLINE auto narrow(const BFloat16*, Vecf v) {
#if defined(__AVX512BF16__)
  // Subnormal numbers become 0, whatever the rounding mode says.
  return (__m256i)_mm512_cvtneps_pbh((__m512)v);
#else
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const Words number = (Words)(v == v);
  return __builtin_convertvector((rounded & number) | (0x7fc0u & ~number), Shorts);
#endif
}

SDWA_INLINE auto narrow(const Float16*, Vecf v) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  return vcvt_f16_f32((float32x4_t)v);
#else
  const Words bits = (Words)v;
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & 0x7fffffffu;
  // Normal results: rebias the exponent by -112 and round the mantissa to nearest, ties to even.
  const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 leaves the rounded half-precision bits at the bottom.
  const Words subnormal = (Words)((Vecf)magnitude + 0.5f) - 0x3f000000u;
  const Words is_subnormal = (Words)(magnitude < 0x38800000u);
  const Words overflows = (Words)(magnitude >= 0x477ff000u);
  const Words is_nan = (Words)(magnitude > 0x7f800000u);
  Words half = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  half = (half & ~overflows) | (0x7c00u & overflows);
  half = (half & ~is_nan) | (0x7e00u & is_nan);
  return __builtin_convertvector(half | sign, Shorts);
#endif
}

template <typename T>
SDWA_INLINE void store_as(T* p, Vec<Accumulation<T>> v) {
  const auto bits = narrow(p, v);
  std::memcpy(p, &bits, sizeof bits);
}

// What is left of a token from element d on, fewer than kLanes elements, and zeros. No byte outside
// the token is touched; where it is long enough, the vector at its end is read, and moved.
template <typename T>
SDWA_INLINE Vec<Accumulation<T>> load_rest(const T* token, int head_dim, int d) {
  constexpr int kWidth = kLanes<Accumulation<T>>;
  if (head_dim >= kWidth) return last_lanes(load_as(token + head_dim - kWidth), head_dim - d);
  T padded[kWidth] = {};
  std::memcpy(padded, token + d, sizeof(T) * (head_dim - d));
  return load_as(padded);
}

// Stores the first `count` lanes, from registers: what several stores have just left in memory is
// slow to load as one vector.
template <typename T>
SDWA_INLINE void store_first(T* p, Vec<Accumulation<T>> v, int count) {
  constexpr int kWidth = kLanes<Accumulation<T>>;
  T elements[kWidth];
  store_as(elements, v);
  const T* from = elements;
  unroll<4>([&](auto i) __attribute__((always_inline)) {
    constexpr int kStep = 8 >> decltype(i)::value;
    if (kStep >= kWidth || (count & kStep) == 0) return;
    std::memcpy(p, from, sizeof(T) * kStep);
    p += kStep;
    from += kStep;
  });
}

// A token is one head of one pixel: head_dim elements in memory, and in scratch the same number
// rounded up to whole vectors, zeros at the end.
template <typename T>
SDWA_INLINE void read_token(const T* source, int head_dim, Accumulation<T>* token) {
  using A = Accumulation<T>;
  constexpr int kWidth = kLanes<A>;
  int d = 0;
  for (; d + kWidth <= head_dim; d += kWidth) store<A>(token + d, load_as(source + d));
  if (d < head_dim) store<A>(token + d, load_rest(source, head_dim, d));
}

// Whether a token in memory is its scratch form.
template <typename T>
constexpr bool has_scratch_form(int64_t head_dim) {
  return std::is_same_v<T, Accumulation<T>> && head_dim % kLanes<Accumulation<T>> == 0;
}

// Inner product of two tokens in memory.
template <typename T>
SDWA_INLINE Accumulation<T> dot_tokens(const T* a, const T* b, int head_dim) {
  using A = Accumulation<T>;
  constexpr int kWidth = kLanes<A>;
  Vec<A> sum = {};
  int d = 0;
  for (; d + kWidth <= head_dim; d += kWidth) sum += load_as(a + d) * load_as(b + d);
  if (d < head_dim) sum += load_rest(a, head_dim, d) * load_rest(b, head_dim, d);
  return sum_lanes<A>(sum);
}

// Whether tokens can be streamed: they and their vectors start at aligned addresses.
template <typename T>
SDWA_INLINE bool can_stream(const void* tensor, int64_t head_dim) {
  constexpr int kBytes = kLanes<Accumulation<T>> * static_cast<int>(sizeof(T));
  return reinterpret_cast<uintptr_t>(tensor) % kCacheLine == 0 &&
         head_dim * sizeof(T) % kCacheLine == 0 && kCacheLine % kBytes == 0;
}

// With `streaming`, past the caches; see can_stream.
template <typename T>
SDWA_INLINE void write_token(const Accumulation<T>* token, int head_dim, bool streaming,
                             T* target) {
  using A = Accumulation<T>;
  constexpr int kWidth = kLanes<A>;
  int d = 0;
  if (streaming) {
    for (; d < head_dim; d += kWidth) stream(target + d, narrow(target, load<A>(token + d)));
    return;
  }
  for (; d + kWidth <= head_dim; d += kWidth) store_as(target + d, load<A>(token + d));
  if (d < head_dim) store_first(target + d, load<A>(token + d), head_dim - d);
}

}  // namespace sdwa::cpu::SDWA_ISA
