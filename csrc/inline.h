// How functions of the headers are inlined.
#pragma once

// Always: the CPU kernels include the headers once for each instruction set, and a shared
// out-of-line copy would run instructions that the processor may lack.
#define SDWA_INLINE inline __attribute__((always_inline))

// The same for what device code calls too.
#if defined(__CUDACC__)
#define SDWA_HD __host__ __device__ __forceinline__
#else
#define SDWA_HD SDWA_INLINE
#endif

// Never: a function of many nested inline ones is compiled once for each level that it is inlined
// into as well.
#define SDWA_OUT_OF_LINE __attribute__((noinline))
