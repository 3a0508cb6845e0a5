// grad_bias, as the sum of what every tile has written.
//
// A head's rows lie side by side, and so a block reads them: neighbouring threads take the taps of
// a row, and then those of the next. Blocks share a head's rows; where they do, a second launch
// adds up their sums.
#include "cuda/bias_parts.cuh"

namespace sdwa::cuda {
namespace {

template <typename A>
struct SumParams {
  BiasParts<A> parts, sums;
  int32_t splits;  // of a head's rows: rows of sums
  int32_t chunks;  // of the taps, kSumThreads each
  int32_t first_head;
  int64_t rows[kHeadsPerLaunch];  // of parts that a head has
  int64_t rows_of_split[kHeadsPerLaunch];
};

// A block adds up one chunk of taps in one split of a head's rows.
template <typename A>
__global__ void __launch_bounds__(kSumThreads)
    sum_bias_parts(const __grid_constant__ SumParams<A> p) {
  const int taps = p.parts.taps;
  const int columns = p.chunks == 1 ? taps : kSumThreads, rows = kSumThreads / columns;
  const int thread_row = threadIdx.x / columns;
  const int split = blockIdx.x % p.splits;
  const int chunk = blockIdx.x / p.splits % p.chunks;
  const int slot = blockIdx.x / p.splits / p.chunks;
  const int tap = chunk * columns + threadIdx.x % columns;
  const int64_t head = p.first_head + slot;

  const int64_t first = split * p.rows_of_split[slot], rest = p.rows[slot] - first;
  const int64_t end = rest < p.rows_of_split[slot] ? rest : p.rows_of_split[slot];
  const A* const column = p.parts.data + (head * p.parts.rows + first) * taps + tap;
  const bool works = thread_row < rows && tap < taps;
  A sum = 0;
  for (int64_t row = thread_row; works && row < end; row += kSumLoads * rows) {
    A part[kSumLoads];
#pragma unroll
    for (int i = 0; i < kSumLoads; ++i) {
      part[i] = 0;
      if (row + i * rows < end) part[i] = column[(row + i * rows) * taps];
    }
#pragma unroll
    for (int i = 0; i < kSumLoads; ++i) sum += part[i];
  }

  A* const shared = dynamic_shared<A>();
  write_shared(&shared[threadIdx.x], sum);
  __syncthreads();
  if (thread_row > 0 || !works) return;
  for (int row = 1; row < rows; ++row) sum += read_shared(&shared[row * columns + threadIdx.x]);
  p.sums.data[(head * p.sums.rows + split) * taps + tap] = sum;
}

// rows(head): those of parts that the head has.
template <typename A, typename Rows>
void sum_rows(int64_t all_heads, const BiasParts<A>& parts, const BiasParts<A>& sums,
              int64_t splits, Rows&& rows, Stream stream) {
  const int64_t chunks = ceil_div(parts.taps, kSumThreads);
  SumParams<A> params{parts, sums, static_cast<int32_t>(splits), static_cast<int32_t>(chunks), 0,
                      {},    {}};
  for (int64_t first = 0; first < all_heads; first += kHeadsPerLaunch) {
    const int64_t heads = std::min<int64_t>(kHeadsPerLaunch, all_heads - first);
    params.first_head = static_cast<int32_t>(first);
    for (int64_t h = 0; h < heads; ++h) {
      params.rows[h] = rows(first + h);
      params.rows_of_split[h] = ceil_div(params.rows[h], splits);
    }
    launch("sum_bias_parts", sum_bias_parts<A>, heads * splits * chunks, kSumThreads,
           kSumThreads * sizeof(A), stream, params);
  }
}

template <typename A>
void launch_sum(const BackwardArgs& args, void* data, int tile_h, int tile_w, Stream stream) {
  const Problem& problem = args.problem;
  const auto taps = static_cast<int32_t>(problem.bias_size());
  const BiasParts<A> grad_bias{static_cast<A*>(args.grad_bias), 1, taps};
  if (data == nullptr) {
    sum_rows(problem.heads, grad_bias, grad_bias, 1, [](int64_t) { return 0; }, stream);
    return;
  }
  const BiasRows rows = BiasRows::of(problem, tile_h, tile_w);
  const BiasParts<A> parts{static_cast<A*>(data), rows.all(), taps};
  const BiasParts<A> sums{parts.data + rows.tiles * taps, rows.all(), taps};
  const auto tiles = [&](int64_t head) {
    return problem.batch * image_rows(problem, head, tile_h, tile_w);
  };
  if (rows.splits == 1) {
    sum_rows(problem.heads, parts, grad_bias, 1, tiles, stream);
  } else {
    sum_rows(problem.heads, parts, sums, rows.splits, tiles, stream);
    sum_rows(problem.heads, sums, grad_bias, 1, [&](int64_t) { return rows.splits; }, stream);
  }
}

}  // namespace

void launch_sum_bias_parts(const BackwardArgs& args, void* parts, int tile_h, int tile_w,
                           Stream stream) {
  if (args.problem.dtype == Dtype::kFloat64) {
    launch_sum<double>(args, parts, tile_h, tile_w, stream);
  } else {
    launch_sum<float>(args, parts, tile_h, tile_w, stream);
  }
}

}  // namespace sdwa::cuda
