// Everything the kernels take from the machine: warps, conversions, the matrix instruction, and the
// launch. Under test the same kernels are compiled for the host, and these few functions come from
// the emulation instead.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include "dtypes.h"

namespace sdwa::cuda {

constexpr int kWarpLanes = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWideAccess = 16;  // bytes that a lane moves at most by one instruction

// Probabilities are computed as powers of two, which the machine has an instruction for. On the
// matrix unit scores are multiplied by log2(e), and lse by ln 2; on groups of lanes the difference
// of a score and lse is, which loses less.
using std::numbers::ln2_v;
using std::numbers::log2e_v;

}  // namespace sdwa::cuda

#ifdef SDWA_CUDA_ON_HOST
#include "cuda_on_host.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sdwa::cuda {

using Stream = cudaStream_t;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(Float16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

// Two values rounded to T, `low` in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<BFloat16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
template <>
__device__ __forceinline__ uint32_t pack<Float16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// Bytes of `low` (0-3) and `high` (4-7) chosen by the nibbles of `selector`.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

// The same address (zero is 0), which the compiler cannot take apart again: what is added to it
// costs one instruction, instead of starting anew from the tensor's first element.
template <typename T>
__device__ __forceinline__ const T* rooted(const T* address, uint32_t zero) {
  return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(address) ^ zero);
}

// What lies at an address in global memory that the kernel does not write. The load stays where it
// is written, before or behind a wait.
__device__ __forceinline__ uint4 load16(const void* address) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(address)));
  return v;
}
__device__ __forceinline__ uint2 load8(const void* address) {
  uint2 v;
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(__cvta_generic_to_global(address)));
  return v;
}

// Writes to an aligned address in global memory if ok, by one store: the compiler may take a plain
// one apart.
__device__ __forceinline__ void store16(void* address, uint4 v, bool ok) {
  asm volatile(
      "{\n.reg .pred ok;\nsetp.ne.u32 ok, %5, 0;\n@ok st.global.v4.u32 [%0], {%1, %2, %3, "
      "%4};\n}" ::"l"(__cvta_generic_to_global(address)),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(static_cast<uint32_t>(ok))
      : "memory");
}
__device__ __forceinline__ void store8(void* address, uint2 v, bool ok) {
  asm volatile(
      "{\n.reg .pred ok;\nsetp.ne.u32 ok, %3, 0;\n@ok st.global.v2.u32 [%0], {%1, %2};\n}" ::"l"(
          __cvta_generic_to_global(address)),
      "r"(v.x), "r"(v.y), "r"(static_cast<uint32_t>(ok))
      : "memory");
}

// Writes four floats to an aligned address in global memory, if ok: by one instruction, which the
// compiler may take apart otherwise.
__device__ __forceinline__ void store_floats(float* address, float a, float b, float c, float d,
                                             bool ok) {
  asm volatile(
      "{\n.reg .pred ok;\nsetp.ne.u32 ok, %5, 0;\n@ok st.global.v4.f32 [%0], {%1, %2, %3, "
      "%4};\n}" ::"l"(__cvta_generic_to_global(address)),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(static_cast<uint32_t>(ok))
      : "memory");
}

// 2^x. The instruction is within 2 units in the last place, like exp2f; the results that it flushes
// to zero are below any probability that matters.
__device__ __forceinline__ float power2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ double power2(double x) { return exp2(x); }

// c (16, 8) += a (16, 16) b (16, 8), spread over the 32 lanes as the PTX manual lays m16n8k16 out:
// with g = lane / 4 and j = lane % 4, c holds rows g and g + 8 at columns 2j and 2j + 1.
template <typename T>
__device__ __forceinline__ void multiply_accumulate(float (&c)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_accumulate<BFloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                              uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_accumulate<Float16>(float (&c)[4], const uint32_t (&a)[4],
                                                             uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// Shared memory is read and written through the functions below alone, so that the emulation can
// tell what another thread wrote since the last barrier.
template <typename V>
__device__ __forceinline__ V read_shared(const V* source) {
  return *source;
}
template <typename V>
__device__ __forceinline__ void write_shared(V* target, V value) {
  *target = value;
}

// Starts to copy kBytes (4, 8 or 16, to which both addresses are aligned) from global to shared
// memory, or zeros if not ok; `source` is then not read. They are there for this thread after
// wait_copies, and for others after a barrier behind it.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* target, const void* source, bool ok) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(target));
  const size_t from = __cvta_generic_to_global(source);
  const int bytes = ok ? kBytes : 0;
  if constexpr (kBytes == 16) {
    // Past L1, of which staged tiles leave little: what they displace there is worth more.
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
}
// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits for all groups of this thread but the last kPending.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 2-byte elements from shared memory, transposed. Lane 8m + r names row r of
// matrix m, 16 bytes. With g = lane / 4 and j = lane % 4, each lane gets of every matrix the
// elements of rows 2j and 2j + 1 in column g: transposed, row g at columns 2j and 2j + 1.
__device__ __forceinline__ void load_transposed(uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Bytes of shared memory of the current device.
struct SharedMemory {
  int block;           // that a block may have
  int multiprocessor;  // that the blocks on a multiprocessor share
  int reserved;        // that the system takes for each block
};
inline SharedMemory shared_memory() {
  thread_local int asked = -1;  // the device that `bytes` belongs to
  thread_local SharedMemory bytes{};
  const auto check = [](cudaError_t error) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // reported here, so not again by the next caller
    throw std::runtime_error(std::string("sdwa: the GPU does not answer: ") +
                             cudaGetErrorString(error));
  };
  int device = 0;
  check(cudaGetDevice(&device));
  if (device != asked) {
    const auto ask = [&](int& number, cudaDeviceAttr attribute) {
      check(cudaDeviceGetAttribute(&number, attribute, device));
    };
    ask(bytes.block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask(bytes.multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask(bytes.reserved, cudaDevAttrReservedSharedMemoryPerBlock);
    asked = device;
  }
  return bytes;
}

// Starts `kernel`; a refused launch is an exception that names it. Nothing waits.
//
// A kernel has to ask for more shared memory than every device gives. It asks for all that there
// is: the answer holds for all its launches, of which other threads may start larger ones.
template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads,
            size_t shared_bytes, Stream stream, const Params& params) {
  constexpr size_t kEveryDevice = 48 * 1024;
  const void* const function = reinterpret_cast<const void*>(kernel);
  void* arguments[] = {const_cast<Params*>(&params)};
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kEveryDevice) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shared_memory().block);
  }
  if (error == cudaSuccess) {
    error = cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)),
                             dim3(static_cast<unsigned>(threads)), arguments, shared_bytes, stream);
  }
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here, so not again by the next caller
  throw std::runtime_error(std::string("sdwa: kernel ") + name + " (" + std::to_string(blocks) +
                           " blocks of " + std::to_string(threads) +
                           " threads) failed to launch: " + cudaGetErrorString(error));
}

}  // namespace sdwa::cuda

#endif
