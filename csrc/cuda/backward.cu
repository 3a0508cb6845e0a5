// Backward: which kernels take a call, their workspace, and the sum of the bias's gradient.
#include "bias_parts.cuh"
#include "launch.h"
#include "matrix_tile.cuh"
#include "vector_group.cuh"

namespace sdwa::cuda {
namespace {

constexpr int kThreads = 128;

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
  shared[threadIdx.x] = sum;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < static_cast<unsigned>(step)) {
      shared[threadIdx.x] += shared[threadIdx.x + step];
    }
  }
  if (threadIdx.x == 0) p.grad_bias[head * p.taps + tap] = shared[0];
}

template <typename A>
void launch_sum(const BackwardArgs& args, const void* parts, int tile_h, int tile_w,
                Stream stream) {
  const Problem& problem = args.problem;
  SumParams<A> params{static_cast<const A*>(parts),
                      static_cast<A*>(args.grad_bias),
                      bias_part_rows(problem, tile_h, tile_w),
                      static_cast<int32_t>(problem.kernel_h * problem.kernel_w),
                      0,
                      {}};
  for (int64_t first = 0; first < problem.heads; first += kHeadsPerLaunch) {
    const int64_t heads = std::min<int64_t>(kHeadsPerLaunch, problem.heads - first);
    params.first_head = static_cast<int32_t>(first);
    for (int64_t h = 0; h < heads; ++h) {
      params.used_rows[h] =
          problem.batch * head_tiles(problem, first + h, tile_h, tile_w).tiles.divisor;
    }
    launch("sum_bias_parts", sum_bias_parts<A>, heads * params.taps, kThreads, kThreads * sizeof(A),
           stream, params);
  }
}

struct Workspace {
  size_t delta, bias_parts;  // bytes
};

Workspace workspace_of(const BackwardArgs& args) {
  const Problem& problem = args.problem;
  const size_t sum_size = problem.dtype == Dtype::kFloat64 ? 8 : 4;
  Workspace bytes{};
  int tile_h = Band<3>::kTileH, tile_w = Band<3>::kTileW;
  if (takes_matrix_path(args)) {
    if (problem.kernel_h == 7) tile_h = Band<7>::kTileH, tile_w = Band<7>::kTileW;
  } else {
    const GroupShape shape = group_shape(problem.head_dim, 1);
    tile_h = shape.tile_h, tile_w = shape.tile_w;
    bytes.delta = problem.batch * problem.height * problem.width * problem.heads * sum_size;
    bytes.delta = (bytes.delta + 15) / 16 * 16;
  }
  if (args.grad_bias != nullptr) {
    bytes.bias_parts = bias_part_rows(problem, tile_h, tile_w) * problem.heads * problem.kernel_h *
                       problem.kernel_w * sum_size;
  }
  return bytes;
}

bool is_empty(const Problem& problem) {
  return problem.batch * problem.height * problem.width * problem.heads == 0;
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

size_t backward_workspace_bytes(const BackwardArgs& args) {
  if (is_empty(args.problem)) return 0;
  const Workspace bytes = workspace_of(args);
  return bytes.delta + bytes.bias_parts;
}

void launch_backward(const BackwardArgs& args, void* workspace, Stream stream) {
  if (is_empty(args.problem)) {
    // The sum of no rows.
    if (args.grad_bias != nullptr && args.problem.heads > 0 && args.problem.height > 0 &&
        args.problem.width > 0) {
      launch_sum_bias_parts(args, nullptr, 1, 1, stream);
    }
    return;
  }
  auto* const bytes = static_cast<unsigned char*>(workspace);
  void* const bias_parts = args.grad_bias == nullptr ? nullptr : bytes + workspace_of(args).delta;
  if (!takes_matrix_path(args)) {
    launch_backward_vector(args, bytes, bias_parts, stream);
  } else if (args.problem.dtype == Dtype::kBFloat16) {
    launch_backward_matrix_bfloat16(args, static_cast<float*>(bias_parts), stream);
  } else {
    launch_backward_matrix_float16(args, static_cast<float*>(bias_parts), stream);
  }
}

}  // namespace sdwa::cuda
