// grad_bias, as the sum of what every tile has written.
#include "cuda/bias_parts.cuh"

namespace sdwa::cuda {
namespace {

constexpr int kThreads = 128;  // a power of two

template <typename A>
struct SumParams {
  const A* parts;  // (heads, rows, taps)
  A* grad_bias;    // (heads, taps)
  int64_t rows;
  int32_t taps, first_head;
  int64_t used_rows[kHeadsPerLaunch];
};

// A block adds up one tap of one head.
template <typename A>
__global__ void __launch_bounds__(kThreads) sum_bias_parts(const __grid_constant__ SumParams<A> p) {
  const int slot = blockIdx.x / p.taps, tap = blockIdx.x % p.taps;
  const int64_t head = p.first_head + slot;
  const A* const column = p.parts + head * p.rows * p.taps + tap;
  A sum = 0;
  for (int64_t row = threadIdx.x; row < p.used_rows[slot]; row += kThreads) {
    sum += column[row * p.taps];
  }
  A* const shared = dynamic_shared<A>();
  write_shared(&shared[threadIdx.x], sum);
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < static_cast<unsigned>(step)) {
      sum += read_shared(&shared[threadIdx.x + step]);
      write_shared(&shared[threadIdx.x], sum);
    }
  }
  if (threadIdx.x == 0) p.grad_bias[head * p.taps + tap] = sum;
}

template <typename A>
void launch_sum(const BackwardArgs& args, const void* parts, int tile_h, int tile_w,
                Stream stream) {
  const Problem& problem = args.problem;
  SumParams<A> params{static_cast<const A*>(parts),
                      static_cast<A*>(args.grad_bias),
                      parts == nullptr ? 0 : bias_part_rows(problem, tile_h, tile_w),
                      static_cast<int32_t>(problem.kernel_h * problem.kernel_w),
                      0,
                      {}};
  for (int64_t first = 0; first < problem.heads; first += kHeadsPerLaunch) {
    const int64_t heads = std::min<int64_t>(kHeadsPerLaunch, problem.heads - first);
    params.first_head = static_cast<int32_t>(first);
    for (int64_t h = 0; h < heads && parts != nullptr; ++h) {
      params.used_rows[h] = problem.batch * head_tiles(problem, first + h, tile_h, tile_w).tiles;
    }
    launch("sum_bias_parts", sum_bias_parts<A>, heads * params.taps, kThreads, kThreads * sizeof(A),
           stream, params);
  }
}

}  // namespace

void launch_sum_bias_parts(const BackwardArgs& args, const void* parts, int tile_h, int tile_w,
                           Stream stream) {
  if (args.problem.dtype == Dtype::kFloat64) {
    launch_sum<double>(args, parts, tile_h, tile_w, stream);
  } else {
    launch_sum<float>(args, parts, tile_h, tile_w, stream);
  }
}

}  // namespace sdwa::cuda
