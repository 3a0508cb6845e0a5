// Backward on maps of at most 8 x 8 pixels: bfloat16 and float16, square windows of 3, 5 and 7.
//
// A warp takes its tile's pixels first as queries, then as keys. What keys need of queries, their
// probabilities and the gradients of their scores, warps exchange by shared memory. delta is summed
// from the same products, so `out` is not read: nothing is rounded on the way to it.
#include "cuda/bias_parts.cuh"
#include "cuda/kernels.h"
#include "cuda/map_tile.cuh"

namespace sdwa::cuda {
namespace {

template <typename T>
struct BackwardMapParams {
  MapWork work;
  View<T> query, key, value, grad_out;
  const float* bias;
  const float* lse;
  const float* grad_lse;
  T* grad_query;
  T* grad_key;
  T* grad_value;
  BiasParts<float> bias_parts;
  float scale, scale_log2;
  int32_t bias_offset;  // in shared memory
};

// Shared memory of a block: the maps of query, grad_out, key and value; then the gradients of
// scores by tap and pixel, for that of the bias. Blocks of 8 x 8 weights take the place of key and
// value: for each row of the map and each row of its windows that of probabilities and that of
// grad_scores, of 8 queries by 8 keys; and one of zeros.
template <int kKernel>
struct ExchangeLayout {
  static constexpr int kBlockBytes = kMapSide * kMapSide * 2;
  static constexpr int kPairBytes = 2 * kBlockBytes;
  static constexpr int kPixels = kMapSide * kMapSide;
  static constexpr int kBiasBytes = kKernel * kKernel * kPixels * sizeof(float);

  // Of the pair of blocks of a row and a tap, from the start.
  SDWA_HD static constexpr int pair(int row, int tap) { return (row * kKernel + tap) * kPairBytes; }
  SDWA_HD static constexpr int zeros(int height) { return pair(height, 0); }
  SDWA_HD static constexpr int bytes(int height) { return zeros(height) + kBlockBytes; }
};

template <typename T, int kKernel, typename Features>
struct MapGradients {
  using N = MapNeighbourhood<kKernel>;
  using F = MapFragments<T, kKernel, Features>;
  using Weights = typename F::Weights;
  using Exchange = ExchangeLayout<kKernel>;
  using Place = MapPlace<kKernel>;
  static constexpr int kTaps = kKernel * kKernel;

  const BackwardMapParams<T>& p;
  const Place& place;
  const int map_bytes = F::map_bytes(p.work.height);
  unsigned char* const queries = dynamic_shared<unsigned char>();
  unsigned char* const grad_outs = queries + map_bytes;
  unsigned char* const keys = grad_outs + map_bytes;
  unsigned char* const values = keys + map_bytes;
  const typename F::Lane lane{place};

  __device__ __forceinline__ void compute() const {
    // Before the copies: loads behind them may come behind the wait, too.
    float lse_log2[2], grad_lse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = place.tile_token(half);
      lse_log2[half] = place.tile_ok[half] ? p.lse[token] * log2e_v<float> : -INFINITY;
      grad_lse[half] = place.tile_ok[half] && p.grad_lse != nullptr ? p.grad_lse[token] : 0.f;
    }
    const typename F::Copies copies(place);
    copies.start(keys, Anchor<T>(p.key, place.map, p.work));
    copies.start(values, Anchor<T>(p.value, place.map, p.work));
    copies.start(queries, Anchor<T>(p.query, place.map, p.work));
    copies.start(grad_outs, Anchor<T>(p.grad_out, place.map, p.work));
    commit_copies();
    Weights probabilities[N::kRows / 2], grad_scores[N::kRows / 2];
    query(lse_log2, grad_lse, probabilities, grad_scores);
    __syncthreads();  // keys and values are not read any more
    give(probabilities, grad_scores);
    __syncthreads();
    key_and_value();
    if (p.bias_parts.data != nullptr) sum_bias();
  }

 private:
  __device__ __forceinline__ void query(float (&lse_log2)[2], float (&grad_lse)[2],
                                        Weights (&probabilities)[N::kRows / 2],
                                        Weights (&grad_scores)[N::kRows / 2]) const {
    const uint32_t kept = place.kept();
    wait_copies<0>();
    __syncthreads();

    float score[N::kRows][4] = {}, grad_probability[N::kRows][4] = {};
    {
      const typename F::TileRows query = F::tile_pixels(queries, lane, place);
#pragma unroll
      for (int s = 0; s < N::kRows; ++s) {
        F::multiply(score[s], query, F::slot_pixels(keys, lane, place, s));
      }
    }
    {
      const typename F::TileRows grad_out = F::tile_pixels(grad_outs, lane, place);
#pragma unroll
      for (int s = 0; s < N::kRows; ++s) {
        F::multiply(grad_probability[s], grad_out, F::slot_pixels(values, lane, place, s));
      }
    }

    const float* const bias = p.bias == nullptr ? nullptr : p.bias + place.map.head * kTaps;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Nothing goes back through a window with nothing left, nor off the map.
      if (lse_log2[half] < kLowestScore<float>) lse_log2[half] = INFINITY, grad_lse[half] = 0;
      float probability[N::kRows][2];
#pragma unroll
      for (int s = 0; s < N::kRows; ++s) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          probability[s][e] = score[s][2 * half + e] * p.scale_log2 - lse_log2[half];
        }
      }
      if (bias != nullptr) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float* const column = bias + place.tap_x(e);
#pragma unroll
          for (int s = 0; s < N::kRows; ++s) {
            if (place.at(place.window, half, s, e)) {
              probability[s][e] += log2e_v<float> * column[place.tap_y(half, s) * kKernel];
            }
          }
        }
      }
      float sum = 0;  // taps off the map add nothing: their values are 0
#pragma unroll
      for (int s = 0; s < N::kRows; ++s) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool ok = place.at(kept, half, s, e);
          probability[s][e] = ok ? power2(probability[s][e]) : 0.f;
          sum += ok ? probability[s][e] * grad_probability[s][2 * half + e] : 0.f;
        }
      }
      const float delta = sum_over_columns(sum) - grad_lse[half];
#pragma unroll
      for (int s = 0; s < N::kRows; ++s) {
        float grad_score[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          grad_score[e] = place.at(kept, half, s, e)
                              ? probability[s][e] * (grad_probability[s][2 * half + e] - delta)
                              : 0.f;
          if (p.bias_parts.data != nullptr && place.at(place.window, half, s, e)) {
            const int tap = place.tap_y(half, s) * kKernel + place.tap_x(e);
            write_shared(bias_part(tap, half), grad_score[e]);
          }
        }
        probabilities[s / 2].pair[2 * (s % 2) + half] =
            pack<T>(probability[s][0], probability[s][1]);
        grad_scores[s / 2].pair[2 * (s % 2) + half] = pack<T>(grad_score[0], grad_score[1]);
      }
      if (p.bias_parts.data != nullptr && place.tile_ok[half]) {
        place.for_each_tap_off_map(half, [&](int tap) {
          const float log2_p = log2e_v<float> * bias[tap] - lse_log2[half];
          write_shared(bias_part(tap, half), p.work.masked ? 0.f : power2(log2_p) * -delta);
        });
      }
    }

    float grad_query[F::kSlices][4] = {};
    F::gather(grad_query, grad_scores, keys, lane, place);
    F::store(p.grad_query, grad_query, p.scale, p.work, place, 0);
  }

  // Writes the weights of the tile's queries for the warps that have their keys.
  __device__ __forceinline__ void give(const Weights (&probabilities)[N::kRows / 2],
                                       const Weights (&grad_scores)[N::kRows / 2]) const {
    const int word = threadIdx.x % kWarpLanes * static_cast<int>(sizeof(uint32_t));
    const uint32_t rows = place.head.warp[place.warp].window;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int s = 0; s < N::kRows; ++s) {
        if (!place.at(rows, half, s, 0)) continue;
        unsigned char* const block =
            exchange() + Exchange::pair(place.row(half), place.tap_y(half, s)) + word;
        const int i = 2 * (s % 2) + half;
        write_shared(reinterpret_cast<uint32_t*>(block), probabilities[s / 2].pair[i]);
        write_shared(reinterpret_cast<uint32_t*>(block + Exchange::kBlockBytes),
                     grad_scores[s / 2].pair[i]);
      }
    }
    if (place.warp == 0) {
      write_shared(reinterpret_cast<uint32_t*>(exchange() + Exchange::zeros(p.work.height) + word),
                   0u);
    }
  }

  // Pixels of the tile are keys here. A query sees a key by the tap that mirrors the one by which
  // the key would see the query, so the slots hold the rows of queries now.
  __device__ __forceinline__ void key_and_value() const {
    const int warp_lane = threadIdx.x % kWarpLanes;
    const uint32_t rows = place.head.warp[place.warp].window;
    const int half = warp_lane / 8 % 2, line = warp_lane % 8 * (kMapSide * 2);
    Weights probabilities[N::kRows / 2], grad_scores[N::kRows / 2];
#pragma unroll
    for (int u = 0; u < N::kRows / 2; ++u) {
      const int s = 2 * u + warp_lane / 16;
      const bool ok = rows >> (16 * half + 2 * s) & 1;
      const int tap = kKernel - 1 - (half == 0 ? s : s - place.shift);
      const int pair = ok ? Exchange::pair(place.slot_row(s), tap) : 0;
      const int zeros = Exchange::zeros(p.work.height);
      load_transposed(probabilities[u].pair, exchange() + (ok ? pair : zeros) + line);
      load_transposed(grad_scores[u].pair,
                      exchange() + (ok ? pair + Exchange::kBlockBytes : zeros) + line);
    }
    float grad_value[F::kSlices][4] = {};
    F::gather(grad_value, probabilities, grad_outs, lane, place);
    F::store(p.grad_value, grad_value, 1.f, p.work, place, 0);
    float grad_key[F::kSlices][4] = {};
    F::gather(grad_key, grad_scores, queries, lane, place);
    F::store(p.grad_key, grad_key, p.scale, p.work, place, 0);
  }

  __device__ __forceinline__ unsigned char* exchange() const { return keys; }
  __device__ __forceinline__ float* bias_parts() const {
    return reinterpret_cast<float*>(queries + p.bias_offset);
  }
  // Of a tap of pixel g.
  __device__ __forceinline__ float* bias_part(int tap, int half) const {
    return bias_parts() + tap * Exchange::kPixels + place.row(half) * kMapSide + place.g;
  }

  // Adds up each tap over the map.
  __device__ __forceinline__ void sum_bias() const {
    const int warp_lane = threadIdx.x % kWarpLanes;
    const int64_t row = place.map.head * p.bias_parts.rows + place.map.image;
    for (int tap = place.warp; tap < kTaps; tap += blockDim.x / kWarpLanes) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < Exchange::kPixels; i += kWarpLanes) {
        const int pixel = i + warp_lane;
        if (pixel / kMapSide < p.work.height && pixel % kMapSide < p.work.width) {
          sum += read_shared(bias_parts() + tap * Exchange::kPixels + pixel);
        }
      }
#pragma unroll
      for (int with = kWarpLanes / 2; with > 0; with /= 2) {
        sum += __shfl_xor_sync(kFullWarp, sum, with);
      }
      if (warp_lane == 0) p.bias_parts.data[row * kTaps + tap] = sum;
    }
  }
};

// Blocks that a multiprocessor holds at once.
template <int kKernel>
constexpr int kResidentMaps = kKernel == 3 ? 4 : 3;

template <typename T, int kKernel, typename Features>
__global__ void __launch_bounds__(kMapWarps* kWarpLanes, kResidentMaps<kKernel>)
    backward_map(const __grid_constant__ BackwardMapParams<T> p) {
  const auto place = find_map<kKernel>(p.work);
  const MapGradients<T, kKernel, Features> gradients{p, place};
  gradients.compute();
}

template <typename T, int kKernel>
void launch_kernel(const BackwardArgs& args, float* bias_parts, Stream stream) {
  const Problem& problem = args.problem;
  BackwardMapParams<T> params{
      {},
      View<T>::of(args.query),
      View<T>::of(args.key),
      View<T>::of(args.value),
      View<T>::of(args.grad_out),
      static_cast<const float*>(args.bias),
      static_cast<const float*>(args.lse),
      static_cast<const float*>(args.grad_lse),
      static_cast<T*>(args.grad_query),
      static_cast<T*>(args.grad_key),
      static_cast<T*>(args.grad_value),
      {bias_parts, bias_part_rows(problem, kWholeMap, kWholeMap), kKernel * kKernel},
      static_cast<float>(problem.scale),
      static_cast<float>(problem.scale) * log2e_v<float>,
      0};
  with_map_features(problem.head_dim, [&](auto features) {
    using Features = decltype(features);
    using F = MapFragments<T, kKernel, Features>;
    using Exchange = ExchangeLayout<kKernel>;
    const auto height = static_cast<int>(problem.height);
    const int map_bytes = F::map_bytes(height);
    params.bias_offset = 2 * map_bytes + std::max(2 * map_bytes, Exchange::bytes(height));
    const size_t bytes = params.bias_offset + (bias_parts == nullptr ? 0 : Exchange::kBiasBytes);
    for_each_map_launch(args, [&](const MapWork& work, int64_t blocks) {
      params.work = work;
      launch("backward_map", backward_map<T, kKernel, Features>, blocks,
             map_warps(problem) * kWarpLanes, bytes, stream, params);
    });
  });
  if (bias_parts != nullptr) {
    launch_sum_bias_parts(args, bias_parts, kWholeMap, kWholeMap, stream);
  }
}

template <typename T>
void launch_type(const BackwardArgs& args, float* bias_parts, Stream stream) {
  with_window(args.problem, [&](auto kernel) {
    if constexpr (kernel > 0) launch_kernel<T, kernel>(args, bias_parts, stream);
  });
}

}  // namespace

void launch_backward_map(const BackwardArgs& args, float* bias_parts, Stream stream) {
  if (args.problem.dtype == Dtype::kBFloat16) {
    launch_type<BFloat16>(args, bias_parts, stream);
  } else {
    launch_type<Float16>(args, bias_parts, stream);
  }
}

}  // namespace sdwa::cuda
