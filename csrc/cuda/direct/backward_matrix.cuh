// Backward on the matrix unit: bfloat16 and float16, square windows of 3, 5 and 7, in one pass.
// Each type has a file of its own, so that both compile at the same time.
//
// A warp gathers all three gradients of its tile. The neighbourhood is used twice: as the keys that
// the tile reads, for the gradient of query, and as the queries that read the tile, for those of
// key and value. Scores are computed for each of the two, which is cheaper than to exchange them.
#pragma once

#include "cuda/bias_parts.cuh"
#include "cuda/kernels.h"
#include "cuda/matrix_tile.cuh"

namespace sdwa::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr int kThreads = kWarps * kWarpLanes;

template <typename T>
struct BackwardParams {
  Work work;
  View<T> query, key, value, grad_out, out;
  const float* bias;
  const float* lse;
  const float* grad_lse;
  T* grad_query;
  T* grad_key;
  T* grad_value;
  BiasParts<float> bias_parts;
  float scale, scale_log2;
};

template <typename T, int kKernel, typename Features>
struct Gradients {
  using N = Neighbourhood<kKernel>;
  using F = Fragments<T, kKernel, Features>;
  using Rows = typename F::Rows;
  using TileRows = typename F::TileRows;
  using Weights = typename F::Weights;
  using Place = LanePlace<kKernel>;
  static constexpr int kTaps = kKernel * kKernel;

  const BackwardParams<T>& p;
  const Place& place;
  const int head_dim = p.work.head_dim;
  const Anchor<T> query_at{p.query, place.tile, p.work}, key_at{p.key, place.tile, p.work};
  const Anchor<T> value_at{p.value, place.tile, p.work},
      grad_out_at{p.grad_out, place.tile, p.work};
  const Anchor<T> out_at{p.out, place.tile, p.work};

  // Adds <out, grad_out> of two times 8 pixels: the diagonals of their products. `both` joins the
  // out of the first 8 (upper rows) and of the second 8 (lower rows).
  struct Diagonals {
    float product[2][4] = {};

    __device__ __forceinline__ void add(const TileRows& both, const Rows& first,
                                        const Rows& second) {
      F::multiply(product[0], both, first);
      F::multiply(product[1], both, second);
    }
    // Of pixel g of `half`, on all four of its lanes.
    __device__ __forceinline__ float of_row(const Place& place, int half) const {
      const float mine = place.g % 2 ? product[half][2 * half + 1] : product[half][2 * half];
      return __shfl_sync(kFullWarp, mine, 4 * place.g + place.g / 2);
    }
    // Of pixel 2j + e of `half`, on all lanes with that j.
    __device__ __forceinline__ float of_column(const Place& place, int half, int e) const {
      return __shfl_sync(kFullWarp, product[half][2 * half + e], 9 * place.j + 4 * e);
    }
  };

  __device__ __forceinline__ void query() const {
    float lse[2], delta[2];
    {
      Diagonals dots;
      Features::for_each_chunk(head_dim, [&](int chunk) {
        dots.add(F::tile_rows(out_at, place, chunk, p.work),
                 F::half_tile(grad_out_at, place, 0, chunk, head_dim),
                 F::half_tile(grad_out_at, place, 1, chunk, head_dim));
      });
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool ok = place.tile_ok[half];
        const int64_t token = place.tile_token(half);
        lse[half] = lse_log2(p.lse, token, ok);
        delta[half] = delta_of(dots.of_row(place, half), lse[half], p.grad_lse, token, ok);
      }
    }

    Weights grad_scores[N::kRows / 2];
    products(
        query_at, grad_out_at,
        [&](int t, int chunk, Rows& key, Rows& value) {
          key = F::neighbour_row(key_at, place, t, chunk, head_dim);
          value = F::neighbour_row(value_at, place, t, chunk, head_dim);
        },
        [&](int t, const float (&score)[4], const float (&grad_probability)[4]) {
          float bias_log2[2][2] = {};
          if (p.bias != nullptr) load_bias(bias_log2, t, false);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float grad_score[2] = {};
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              if (!N::reaches(half, t)) continue;
              const bool in_window = place.in_window(half, t, e);
              const float s = score[2 * half + e] * p.scale_log2 + bias_log2[half][e];
              const bool counts =
                  in_window && tap_counts(place.row_on_map(t) && place.pair_ok[e], p.work.masked);
              grad_score[e] =
                  counts ? power2(s - lse[half]) * (grad_probability[2 * half + e] - delta[half])
                         : 0.f;
              if (p.bias_parts.data != nullptr && in_window) {
                const int tap = place.tap(half, t, e);
                shared_grad_score()[(place.g + 8 * half) * kTaps + tap] = grad_score[e];
              }
            }
            grad_scores[t / 2].pair[2 * (t % 2) + half] = pack<T>(grad_score[0], grad_score[1]);
          }
        });
    if (p.work.key_mask != nullptr) clear_left_out_neighbours(grad_scores);
    if (p.bias_parts.data != nullptr) sum_bias();

    Features::for_each_chunk(head_dim, [&](int chunk) {
      float grad_query[F::kSlices][4] = {};
      F::gather(grad_query, grad_scores, key_at, place, chunk, head_dim);
      F::store(p.grad_query, grad_query, p.scale, p.work, place, chunk);
    });
  }

  __device__ __forceinline__ void key_and_value() const {
    // Pixels of the tile are keys here, in the rows of the products; the neighbourhood's are
    // queries.
    Weights probabilities[N::kRows / 2], grad_scores[N::kRows / 2];
    const WindowAxis steps = Place::kSteps;
    Diagonals dots;
    Rows first_grad, first_out;
    products(
        key_at, value_at,
        [&](int t, int chunk, Rows& query, Rows& grad_out) {
          query = F::neighbour_row(query_at, place, t, chunk, head_dim);
          grad_out = F::neighbour_row(grad_out_at, place, t, chunk, head_dim);
          const Rows out = F::neighbour_row(out_at, place, t, chunk, head_dim);
          if (t % 2 == 0) {
            if (chunk == 0) dots = {};
            first_grad = grad_out, first_out = out;
          } else {
            dots.add(F::join(first_out, out, p.work.zero), first_grad, grad_out);
          }
        },
        [&](int t, const float (&score)[4], const float (&grad_probability)[4]) {
          float probability[2][2] = {}, grad_score[2][2] = {};  // [half][e]
          float bias_log2[2][2] = {};
          if (p.bias != nullptr) load_bias(bias_log2, t, true);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool ok = place.pair_ok[e] && place.row_on_map(t);
            const int64_t token =
                place.token + (steps.offset(t) * place.token_step_h +
                               steps.offset(2 * place.j + e) * place.token_step_w);
            const float lse = lse_log2(p.lse, token, ok);
            const float delta =
                delta_of(dots.of_column(place, t % 2, e), lse, p.grad_lse, token, ok);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              if (!N::reaches(half, t)) continue;
              const bool in_window = place.in_window(half, t, e);
              const float s = score[2 * half + e] * p.scale_log2 + bias_log2[half][e];
              probability[half][e] = in_window ? power2(s - lse) : 0.f;
              grad_score[half][e] = probability[half][e] * (grad_probability[2 * half + e] - delta);
            }
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            probabilities[t / 2].pair[2 * (t % 2) + half] =
                pack<T>(probability[half][0], probability[half][1]);
            grad_scores[t / 2].pair[2 * (t % 2) + half] =
                pack<T>(grad_score[half][0], grad_score[half][1]);
          }
        });

    if (p.work.key_mask != nullptr) {
      clear_left_out_tile(probabilities);
      clear_left_out_tile(grad_scores);
    }
    Features::for_each_chunk(head_dim, [&](int chunk) {
      float grad_value[F::kSlices][4] = {};
      F::gather(grad_value, probabilities, grad_out_at, place, chunk, head_dim);
      F::store(p.grad_value, grad_value, 1.f, p.work, place, chunk);
      float grad_key[F::kSlices][4] = {};
      F::gather(grad_key, grad_scores, query_at, place, chunk, head_dim);
      F::store(p.grad_key, grad_key, p.scale, p.work, place, chunk);
    });
  }

 private:
  // Products of the tile of two tensors with the neighbourhood of two others, two rows at a time so
  // that few are in registers: load(t, chunk, near_a, near_b), then use(t, tile_a near_a,
  // tile_b near_b).
  template <typename Load, typename Use>
  __device__ __forceinline__ void products(const Anchor<T>& a, const Anchor<T>& b, Load&& load,
                                           Use&& use) const {
    TileRows tile_a, tile_b;
    const auto load_tile = [&](int chunk) {
      tile_a = F::tile_rows(a, place, chunk, p.work);
      tile_b = F::tile_rows(b, place, chunk, p.work);
    };
    if (Features::kSingle) load_tile(0);
#pragma unroll
    for (int u = 0; u < N::kRows / 2; ++u) {
      // Keeps the compiler from starting the loads of all rows at once, which takes more registers
      // than there are.
      __syncwarp();
      float product_a[2][4] = {}, product_b[2][4] = {};
      Features::for_each_chunk(head_dim, [&](int chunk) {
        if (!Features::kSingle) load_tile(chunk);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          Rows near_a, near_b;
          load(2 * u + row, chunk, near_a, near_b);
          F::multiply(product_a[row], tile_a, near_a);
          F::multiply(product_b[row], tile_b, near_b);
        }
      });
#pragma unroll
      for (int row = 0; row < 2; ++row) use(2 * u + row, product_a[row], product_b[row]);
    }
  }

  // Bias of the taps by which the tile sees row t of the neighbourhood, or, mirrored, the row sees
  // the tile.
  __device__ __forceinline__ void load_bias(float (&to)[2][2], int t, bool mirrored) const {
    const float* const bias = p.bias + place.tile.head * kTaps;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (!N::reaches(half, t) || !place.in_window(half, t, e)) continue;
        const int tap = place.tap(half, t, e);
        to[half][e] = log2e_v<float> * bias[mirrored ? kTaps - 1 - tap : tap];
      }
    }
  }

  // The next two find the tile anew: to keep all of it takes registers from calls without a mask.
  //
  // What the tile takes from keys that the mask leaves out.
  __device__ __forceinline__ void clear_left_out_neighbours(
      Weights (&grad_scores)[N::kRows / 2]) const {
    const LeftOut<kKernel> left_out(p.work, find_tile(p.work), place);
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (!left_out.at(t, e)) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          grad_scores[t / 2].pair[2 * (t % 2) + half] &= e == 0 ? 0xffff0000u : 0x0000ffffu;
          if (p.bias_parts.data != nullptr && N::reaches(half, t) && place.in_window(half, t, e)) {
            shared_grad_score()[(place.g + 8 * half) * kTaps + place.tap(half, t, e)] = 0;
          }
        }
      }
    }
  }
  // What the neighbourhood takes from keys of the tile that the mask leaves out.
  __device__ __forceinline__ void clear_left_out_tile(Weights (&weights)[N::kRows / 2]) const {
    const Tile tile = find_tile(p.work);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t y = tile.y + place.tile_dy(half) * tile.dilation_h;
      const int32_t x = tile.x + place.tile_dx * tile.dilation_w;
      if (!place.tile_ok[half] || keeps_key(p.work, tile, y, x)) continue;
#pragma unroll
      for (int t = 0; t < N::kRows; ++t) weights[t / 2].pair[2 * (t % 2) + half] = 0;
    }
  }

  // (kTilePixels, kTaps) of this warp.
  __device__ __forceinline__ float* shared_grad_score() const {
    return dynamic_shared<float>() + threadIdx.x / kWarpLanes * (kTilePixels * kTaps);
  }

  __device__ __forceinline__ void sum_bias() const {
    __syncwarp();
    float* const sums = p.bias_parts.row(p.work, place.tile);
    for (int tap = threadIdx.x % kWarpLanes; tap < kTaps; tap += kWarpLanes) {
      float sum = 0;
      for (int pixel = 0; pixel < kTilePixels; ++pixel) {
        sum += shared_grad_score()[pixel * kTaps + tap];
      }
      sums[tap] = sum;
    }
  }
};

// Blocks that a multiprocessor holds at once: as many as registers allow without spills.
template <int kKernel, typename Features>
constexpr int kResidentBlocks = kKernel == 3 && Features::kChunk == 32 ? 3 : 2;

template <typename T, int kKernel, typename Features>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<kKernel, Features>)
    backward_matrix(const __grid_constant__ BackwardParams<T> p) {
  const Tile tile = find_tile(p.work);
  if (!tile.inside) {
    if (p.bias_parts.data != nullptr && tile.numbered) {
      float* const sums = p.bias_parts.row(p.work, tile);
      for (int t = threadIdx.x % kWarpLanes; t < kKernel * kKernel; t += kWarpLanes) sums[t] = 0;
    }
    return;
  }
  const LanePlace<kKernel> place(p.work, tile);
  const Gradients<T, kKernel, Features> gradients{p, place};
  gradients.query();
  gradients.key_and_value();
}

template <typename T, int kKernel>
void launch_kernel(const BackwardArgs& args, float* bias_parts, Stream stream) {
  using N = Neighbourhood<kKernel>;
  const Problem& problem = args.problem;
  BackwardParams<T> params{
      {},
      View<T>::of(args.query),
      View<T>::of(args.key),
      View<T>::of(args.value),
      View<T>::of(args.grad_out),
      View<T>::of(contiguous_view(problem, args.out)),
      static_cast<const float*>(args.bias),
      static_cast<const float*>(args.lse),
      static_cast<const float*>(args.grad_lse),
      static_cast<T*>(args.grad_query),
      static_cast<T*>(args.grad_key),
      static_cast<T*>(args.grad_value),
      {bias_parts, bias_part_rows(problem, N::kTileH, N::kTileW), kKernel * kKernel},
      static_cast<float>(problem.scale),
      static_cast<float>(problem.scale) * log2e_v<float>};
  const size_t shared =
      bias_parts == nullptr ? 0 : kWarps * kTilePixels * kKernel * kKernel * sizeof(float);
  with_features<kKernel, kKernel == 3>(problem.head_dim, row_alignment(args), [&](auto features) {
    for_each_launch(args, N::kTileH, N::kTileW, kWarps, [&](const Work& work, int64_t blocks) {
      params.work = work;
      launch("backward_matrix", backward_matrix<T, kKernel, decltype(features)>, blocks, kThreads,
             shared, stream, params);
    });
  });
  if (bias_parts != nullptr) {
    launch_sum_bias_parts(args, bias_parts, N::kTileH, N::kTileW, stream);
  }
}

template <typename T>
void launch_type(const BackwardArgs& args, float* bias_parts, Stream stream) {
  with_window(args.problem, [&](auto kernel) {
    if constexpr (kernel > 0) launch_kernel<T, kernel>(args, bias_parts, stream);
  });
}

}  // namespace
}  // namespace sdwa::cuda
