// CUDA as the kernels of csrc/cuda see it, on the host: blocks of fibers, one per thread.
//
// Lanes meet at every warp collective (shuffle, ballot, matrix product, __syncwarp) and threads at
// every __syncthreads. What a device leaves undefined is an error here: lanes of one warp that meet
// different collectives, threads that end while others wait for them, races in shared memory. The
// order in which threads run between two meetings is chosen by `schedule()`, so a race in global
// memory shows as a difference between two orders.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

namespace sdwa::cuda {

using Stream = void*;

namespace emulation {

enum class Meeting { kShuffle, kBallot, kMatrix, kLoadMatrix, kWarp, kBlock };

// What each lane brought to the collective that its warp has just met at.
struct Offer {
  alignas(16) unsigned char bytes[48];
};

// Hands `offer` in, waits for the other lanes, and returns what all 32 brought.
const Offer* meet(Meeting meeting, unsigned mask, const void* offer, size_t bytes);
void meet_block();

// c += this lane's part of the product of what the lanes brought: four words of the first factor
// and two of the second, each as two floats.
void matrix_product(float (&c)[4], const Offer* lanes, int lane);

// Order in which threads run between meetings: 0 ascending, 1 descending.
int& schedule();

void run_grid(const char* name, int64_t blocks, int threads, size_t shared_bytes,
              const std::function<void()>& thread);
unsigned char* shared_memory();

// These end the run where another lane may read or write the same at the same time: where no
// barrier lies between (__syncwarp for the same warp, else __syncthreads; other collectives order
// nothing). So do reads of what the block has not written.
void read_shared(void* to, const void* source, size_t bytes);
void write_shared(void* target, const void* from, size_t bytes);

// Copies are made when they are waited for, as late as a device may; zeros where not
// ok, and the source must be aligned all the same.
// Until then not even the thread itself may touch their targets.
void start_copy(void* target, const void* source, bool ok, size_t bytes);
void commit_copies();
void wait_copies(int pending);

// Bytes: that a block may have, that the blocks of a multiprocessor share, and that the system
// takes for each block.
struct SharedMemory {
  int block, multiprocessor, reserved;
};
SharedMemory& shared_limits();

template <typename T>
T offered(const Offer& offer) {
  T value;
  std::memcpy(&value, offer.bytes, sizeof(T));
  return value;
}

}  // namespace emulation

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Float16 x) {
  _Float16 value;
  std::memcpy(&value, &x.bits, 2);
  return static_cast<float>(value);
}

// Round to nearest, ties to even.
template <typename T>
uint16_t narrow_bits(float value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (std::isnan(value)) return 0x7fff;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  } else {
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
}

template <typename T>
uint32_t pack(float low, float high) {
  return narrow_bits<T>(low) | static_cast<uint32_t>(narrow_bits<T>(high)) << 16;
}

inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t from = (selector >> (4 * i)) & 7;
    result |= static_cast<uint32_t>((bytes >> (8 * from)) & 0xff) << (8 * i);
  }
  return result;
}

template <typename T>
const T* rooted(const T* address, uint32_t) {
  return address;
}
inline uint4 load16(const void* address) { return *static_cast<const uint4*>(address); }
inline uint2 load8(const void* address) { return *static_cast<const uint2*>(address); }
inline void store16(void* address, uint4 value, bool ok) {
  if (ok) *static_cast<uint4*>(address) = value;
}
inline void store8(void* address, uint2 value, bool ok) {
  if (ok) *static_cast<uint2*>(address) = value;
}
inline void store_floats(float* address, float a, float b, float c, float d, bool ok) {
  if (ok) *reinterpret_cast<float4*>(address) = {a, b, c, d};
}

inline float power2(float x) { return std::exp2(x); }
inline double power2(double x) { return std::exp2(x); }

template <typename T>
void multiply_accumulate(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  float mine[12];
  for (int i = 0; i < 12; ++i) {
    mine[i] = to_float(T{static_cast<uint16_t>(i % 2 ? words[i / 2] >> 16 : words[i / 2])});
  }
  emulation::matrix_product(
      c, emulation::meet(emulation::Meeting::kMatrix, kFullWarp, mine, sizeof(mine)),
      threadIdx.x % 32);
}

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulation::shared_memory());
}

template <typename V>
V read_shared(const V* source) {
  V value;
  emulation::read_shared(&value, source, sizeof(V));
  return value;
}
template <typename V>
void write_shared(V* target, V value) {
  emulation::write_shared(target, &value, sizeof(V));
}
inline void load_transposed(uint32_t (&matrix)[4], const void* row) {
  const emulation::Offer* const rows =
      emulation::meet(emulation::Meeting::kLoadMatrix, kFullWarp, &row, sizeof(row));
  const int g = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
  for (int m = 0; m < 4; ++m) {
    matrix[m] = 0;
    for (int e = 0; e < 2; ++e) {
      const auto* const at = emulation::offered<const uint16_t*>(rows[8 * m + 2 * j + e]) + g;
      matrix[m] |= static_cast<uint32_t>(read_shared(at)) << (16 * e);
    }
  }
}
template <int kBytes>
void copy_async(void* target, const void* source, bool ok) {
  emulation::start_copy(target, source, ok, kBytes);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int kPending>
void wait_copies() {
  emulation::wait_copies(kPending);
}

using SharedMemory = emulation::SharedMemory;
inline SharedMemory shared_memory() { return emulation::shared_limits(); }

template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads,
            size_t shared_bytes, Stream, const Params& params) {
  static_assert(sizeof(Params) <= 4096, "kernel parameters must stay within 4 KiB");
  emulation::run_grid(name, blocks, threads, shared_bytes, [&] { kernel(params); });
}

}  // namespace sdwa::cuda

template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  using namespace sdwa::cuda::emulation;
  return offered<T>(meet(Meeting::kShuffle, mask, &value, sizeof(T))[from & 31]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ with);
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  using namespace sdwa::cuda::emulation;
  const Offer* const lanes = meet(Meeting::kBallot, mask, &value, sizeof(value));
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= unsigned{offered<bool>(lanes[lane])} << lane;
  return bits;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  sdwa::cuda::emulation::meet(sdwa::cuda::emulation::Meeting::kWarp, mask, nullptr, 0);
}
inline void __syncthreads() { sdwa::cuda::emulation::meet_block(); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(unsigned bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }
using std::max;
using std::min;
