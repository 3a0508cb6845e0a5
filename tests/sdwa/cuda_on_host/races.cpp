// Runs one small kernel that uses shared memory rightly or wrongly: races NAME SCHEDULE
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "cuda/device.cuh"

namespace sdwa::cuda {
namespace {

struct Params {
  const uint4* source;
};

int lane() { return static_cast<int>(threadIdx.x % kWarpLanes); }
int warp() { return static_cast<int>(threadIdx.x / kWarpLanes); }
int next_lane() { return warp() * kWarpLanes + (lane() + 1) % kWarpLanes; }
int next_warp() { return static_cast<int>((threadIdx.x + kWarpLanes) % blockDim.x); }

template <typename T>
void write(int index) {
  write_shared(dynamic_shared<T>() + index, T{});
}
template <typename T>
T read(int index) {
  return read_shared(dynamic_shared<T>() + index);
}
void write_own() { write<int>(threadIdx.x); }
// Writes everything, so that what follows reads nothing unwritten. Warp 1 goes on first.
void fill() {
  write<uint4>(threadIdx.x);
  __syncthreads();
}
void copy_own(const Params& p, bool ok = true) {
  copy_async<16>(dynamic_shared<uint4>() + threadIdx.x, p.source + threadIdx.x, ok);
}
// Makes all lanes of a warp come here before one goes on, and orders nothing on a device.
void shuffle() { __shfl_sync(kFullWarp, 0, 0); }

using Kernel = void (*)(Params);
const std::map<std::string, Kernel> kernels = {
    // What is right.
    {"own_word",
     [](Params) {
       write_own();
       read<int>(threadIdx.x);
       write_own();
     }},
    {"warp_barrier",
     [](Params) {
       for (int i = 0; i < 3; ++i) {
         write_own();
         __syncwarp();
         read<int>(next_lane());
         read<int>(warp() * kWarpLanes);
         __syncwarp();
       }
     }},
    {"block_barrier",
     [](Params) {
       for (int i = 0; i < 3; ++i) {
         write_own();
         __syncthreads();
         read<int>(next_warp());
         read<int>(next_lane());
         __syncthreads();
       }
     }},
    {"halves_of_a_word",
     [](Params) {
       write<uint16_t>(threadIdx.x);
       __syncwarp();
       read<uint32_t>(threadIdx.x / 2);
     }},
    {"copies",
     [](Params p) {
       for (int i = 0; i < 2; ++i) {
         copy_own(p, i == 0);
         commit_copies();
         wait_copies<0>();
         if (read<uint4>(threadIdx.x).x != (i == 0 ? threadIdx.x : 0)) std::abort();
         __syncwarp();
         read<uint4>(next_lane());
         __syncthreads();
         read<uint4>(next_warp());
         __syncthreads();
       }
     }},
    {"older_group",
     [](Params p) {
       copy_own(p);
       commit_copies();
       copy_async<4>(dynamic_shared<int>() + 4 * blockDim.x + threadIdx.x, p.source, true);
       commit_copies();
       wait_copies<1>();
       read<uint4>(threadIdx.x);
       wait_copies<0>();
     }},
    // Reads of what another lane wrote.
    {"read_of_another_lane",
     [](Params) {
       fill();
       write_own();
       shuffle();
       read<int>(next_lane());
     }},
    {"read_of_another_warp",
     [](Params) {
       fill();
       if (warp() == 1) write<int>(lane());
       __syncwarp();
       if (warp() == 0) read<int>(lane());
     }},
    {"read_of_a_word_half_of_another_lane",
     [](Params) {
       fill();
       write<uint16_t>(threadIdx.x);
       shuffle();
       read<uint32_t>(threadIdx.x / 2);
     }},
    // Writes of what another lane read.
    {"write_of_what_another_lane_read",
     [](Params) {
       fill();
       read<int>(next_lane());
       shuffle();
       write_own();
     }},
    {"write_of_what_a_warp_read",
     [](Params) {
       fill();
       read<int>(warp());
       shuffle();
       if (lane() == 5) write<int>(warp());
     }},
    {"write_of_what_another_warp_read",
     [](Params) {
       fill();
       if (warp() == 1) read<int>(lane());
       __syncwarp();
       if (warp() == 0) write<int>(lane());
     }},
    {"write_of_what_both_warps_read",
     [](Params) {
       fill();
       read<int>(0);
       __syncwarp();
       if (warp() == 0 && lane() == 5) write<int>(0);
     }},
    // Two writes.
    {"writes_of_a_warp", [](Params) { write<int>(warp()); }},
    {"writes_of_two_warps", [](Params) { write<int>(lane()); }},
    {"writes_of_a_half", [](Params) { write<uint16_t>(lane() / 2); }},
    // Copies.
    {"read_before_the_wait",
     [](Params p) {
       copy_own(p);
       commit_copies();
       read<uint4>(threadIdx.x);
     }},
    {"read_without_a_commit",
     [](Params p) {
       copy_own(p);
       wait_copies<0>();
       read<uint4>(threadIdx.x);
     }},
    {"read_of_a_pending_group",
     [](Params p) {
       copy_own(p);
       commit_copies();
       wait_copies<1>();
       read<uint4>(threadIdx.x);
     }},
    {"barrier_without_a_wait",
     [](Params p) {
       copy_own(p);
       commit_copies();
       __syncwarp();
       read<uint4>(next_lane());
     }},
    {"barrier_before_the_wait",
     [](Params p) {
       copy_own(p);
       commit_copies();
       __syncwarp();
       wait_copies<0>();
       shuffle();
       read<uint4>(next_lane());
     }},
    {"write_before_the_wait",
     [](Params p) {
       copy_own(p);
       write<int>(4 * threadIdx.x + 3);
     }},
    {"copy_before_the_wait",
     [](Params p) {
       copy_own(p);
       copy_own(p);
     }},
    {"copy_to_what_another_lane_read",
     [](Params p) {
       fill();
       read<uint4>(next_lane());
       shuffle();
       copy_own(p);
     }},
    {"copy_at_the_end",
     [](Params p) {
       copy_own(p);
       commit_copies();
     }},
    // Wrong without another lane.
    {"never_written", [](Params) { read<int>(threadIdx.x); }},
    {"written_by_an_earlier_block",
     [](Params) {
       const bool first = static_cast<int>(blockIdx.x) == emulation::schedule();
       if (first) write_own();
       read<int>(threadIdx.x);
     }},
    {"outside", [](Params) { write<int>(5 * blockDim.x); }},
    {"not_aligned",
     [](Params) { write_shared(reinterpret_cast<uint2*>(dynamic_shared<int>() + 1), uint2{}); }},
    {"without_the_functions", [](Params) { dynamic_shared<volatile int>()[threadIdx.x] = 1; }},
};

}  // namespace
}  // namespace sdwa::cuda

int main(int count, char** arguments) {
  using namespace sdwa::cuda;
  const auto found = count == 3 ? kernels.find(arguments[1]) : kernels.end();
  if (found == kernels.end()) {
    std::fprintf(stderr, "usage: races NAME SCHEDULE\n");
    return 2;
  }
  emulation::schedule() = std::atoi(arguments[2]);
  constexpr int kThreads = 2 * kWarpLanes;
  uint4 source[kThreads];
  for (uint32_t t = 0; t < kThreads; ++t) source[t] = {t, t, t, t};
  launch(found->first.c_str(), found->second, 2, kThreads, 5 * kThreads * sizeof(int), nullptr,
         Params{source});
  return 0;
}
