// Backward with the neighbourhood in shared memory (see staged_tile.cuh), in one pass.
//
// A warp gathers all three gradients of its tile. The neighbourhood is used twice: as the queries
// that read the tile, for the gradients of key and value, and as the keys that the tile reads, for
// that of query. Two tensors of it are in shared memory at a time: out and grad_out, which make
// delta, then query and grad_out, then key and value. Part of backward_vector.cu.
#pragma once

#include "cuda/bias_parts.cuh"
#include "cuda/staged_tile.cuh"

namespace sdwa::cuda {
namespace {

// Warps on a multiprocessor: as many as registers allow without spills, and fewer than which are
// slower than the kernels without staging.
template <typename S>
constexpr int kMostBackward = S::kKernel == 3 && S::kLanes == 2 ? 12 : 8;
constexpr int kFewestBackward = 3;

struct StagedBackwardParams {
  Work work;
  View<float> out, grad_out, query, key, value;
  const float* bias;
  const float* lse;
  const float* grad_lse;
  float* grad_query;
  float* grad_key;
  float* grad_value;
  BiasParts<float> bias_parts;
  float scale;
  int32_t warp_bytes;  // of shared memory
};

struct alignas(8) LseDelta {
  float lse, delta;
};

template <typename S>
struct BackwardShared : StagedScores<S> {
  alignas(kWideAccess) float tensor[2][S::kTensorFloats];
  LseDelta lse_delta[S::kPixels];  // of the neighbourhood
};

template <typename S>
struct StagedGradients {
  const StagedBackwardParams& p;
  const StagedPlace<S>& place;
  BackwardShared<S>& shared;

  // (tile pixels, taps), behind the rest; only where the bias has a gradient.
  __device__ __forceinline__ float* grad_score() const {
    return reinterpret_cast<float*>(&shared + 1);
  }
  __device__ __forceinline__ StagedColumns<S> near(int row, int column) const {
    return {shared.tensor[0], row, column, place.lane};
  }

  // lse and, less what note_deltas adds, delta.
  __device__ __forceinline__ void note_lses() const {
#pragma unroll
    for (int first = 0; first < S::kPixels; first += kWarpLanes) {
      const int pixel = first + place.warp_lane;
      const int row = pixel / S::kColumns, column = pixel % S::kColumns;
      const bool ok = pixel < S::kPixels && place.on_map(row, column);
      const int64_t token = place.token(p.work, row, column);
      const float lse = lse_or_infinity(p.lse, token, ok);
      const float grad_lse = ok && p.grad_lse != nullptr ? p.grad_lse[token] : 0.f;
      // The gradient of an lse of -inf may be anything.
      const float delta = lse == INFINITY ? 0.f : -grad_lse;
      if (pixel < S::kPixels) write_shared(shared.lse_delta + pixel, LseDelta{lse, delta});
    }
  }
  // Once outs and grad_outs are staged: a group works on one pixel after the other.
  __device__ __forceinline__ void note_deltas() const {
#pragma unroll 1
    for (int first = 0; first < S::kPixels; first += S::kGroups) {
      const int pixel = first + place.warp_lane / S::kLanes;
      const bool inside = pixel < S::kPixels;
      const StagedColumns<S> columns = near(inside ? pixel / S::kColumns : 0, pixel % S::kColumns);
      const float sum = sum_over_lanes<S::kLanes>(columns.read(0, 0).dot(columns.read(0, 1)));
      if (inside && place.lane == 0) {
        auto [lse, delta] = read_shared(shared.lse_delta + pixel);
        write_shared(shared.lse_delta + pixel, LseDelta{lse, delta + sum});
      }
    }
  }

  // Once queries and grad_outs are staged.
  __device__ __forceinline__ void key_and_value(const StagedPixel<S>& pixel, const StagedRow& key,
                                                const StagedRow& value) const {
    StagedRow grad_key = {}, grad_value = {};
#pragma unroll 1
    for (int tap_h = 0; tap_h < S::kKernel; ++tap_h) {
      const int row = pixel.row + tap_h;
      const StagedColumns<S> columns = near(row, pixel.column);
#pragma unroll
      for (int tap_w = 0; tap_w < S::kKernel; ++tap_w) {
        const int back = S::kTaps - 1 - (tap_h * S::kKernel + tap_w);
        const auto [lse, delta] =
            read_shared(shared.lse_delta + row * S::kColumns + pixel.column + tap_w);
        const StagedRow query = columns.read(tap_w, 0), grad_out = columns.read(tap_w, 1);
        const float product = sum_over_lanes<S::kLanes>(query.dot(key));
        const float grad_probability = sum_over_lanes<S::kLanes>(grad_out.dot(value));
        const float score = score_of(product, p.scale, read_shared(shared.bias + back));
        const float probability = power2((score - lse) * log2e_v<float>);
        grad_value.add(probability, grad_out);
        grad_key.add(probability * (grad_probability - delta), query);
      }
    }
    if (!pixel.ok(place)) return;
    if (p.work.key_mask != nullptr) {
      const int row = pixel.row + S::kReach, column = pixel.column + S::kReach;
      if (read_shared(shared.exclusion + row * S::kColumns + column) != 0) {
        grad_key = {}, grad_value = {};
      }
    }
    store(p.grad_key, grad_key, p.scale, pixel);
    store(p.grad_value, grad_value, 1.f, pixel);
  }

  // Once keys and values are staged.
  __device__ __forceinline__ void query(const StagedPixel<S>& pixel, const StagedRow& query,
                                        const StagedRow& grad_out) const {
    const auto [lse, delta] = read_shared(shared.lse_delta + (pixel.row + S::kReach) * S::kColumns +
                                          pixel.column + S::kReach);
    StagedRow grad_query = {};
#pragma unroll 1
    for (int tap_h = 0; tap_h < S::kKernel; ++tap_h) {
      const int row = pixel.row + tap_h;
      const StagedColumns<S> columns = near(row, pixel.column);
      float bias[S::kKernel];
#pragma unroll
      for (int tap_w = 0; tap_w < S::kKernel; ++tap_w) {
        bias[tap_w] = read_shared(shared.bias + tap_h * S::kKernel + tap_w);
      }
      if (leaves_out(p.work)) exclude<S>(bias, shared, row, pixel.column);
#pragma unroll
      for (int tap_w = 0; tap_w < S::kKernel; ++tap_w) {
        const StagedRow key = columns.read(tap_w, 0), value = columns.read(tap_w, 1);
        const float product = sum_over_lanes<S::kLanes>(query.dot(key));
        const float grad_probability = sum_over_lanes<S::kLanes>(grad_out.dot(value));
        const float score = score_of(product, p.scale, bias[tap_w]);
        const float probability = power2((score - lse) * log2e_v<float>);
        const float grad = probability * (grad_probability - delta);
        grad_query.add(grad, key);
        if (p.bias_parts.data != nullptr && place.lane == 0) {
          const int tap = tap_h * S::kKernel + tap_w;
          write_shared(grad_score() + pixel.in_tile() * S::kTaps + tap, grad);
        }
      }
    }
    if (pixel.ok(place)) store(p.grad_query, grad_query, p.scale, pixel);
  }

  // Calls copy(), which starts copies, waits for them, and calls work(pixel, rows of two tensors
  // there) for each pass. The first rows are under way before the copies, where the compiler leaves
  // them, the next ones when a pass ends: registers hold no more.
  template <typename Copy, typename Work>
  __device__ __forceinline__ void for_each_pass(const View<float>& first, const View<float>& second,
                                                Copy&& copy, Work&& work) const {
    StagedPixel<S> pixel(place);
    StagedRow a = pixel.load(first, place, p.work.zero), b = pixel.load(second, place, p.work.zero);
    copy();
    commit_copies();
    wait_copies<0>();
    __syncwarp();
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
      work(pixel, a, b);
      if (pass + 1 == S::kPasses) break;
      pixel.next();
      a = pixel.load(first, place, p.work.zero), b = pixel.load(second, place, p.work.zero);
    }
  }

  // Once all lanes have written theirs.
  __device__ __forceinline__ void sum_bias() const {
    // The tile is found anew: to keep all of it takes registers.
    float* const sums = p.bias_parts.row(p.work, find_tile(p.work));
    for_each_of_warp<S::kTaps>([&](int tap) {
      float sum = 0;
      for (int pixel = 0; pixel < S::kTilePixels; ++pixel) {
        sum += read_shared(grad_score() + pixel * S::kTaps + tap);
      }
      sums[tap] = sum;
    });
  }

 private:
  __device__ __forceinline__ void store(float* target, const StagedRow& row, float factor,
                                        const StagedPixel<S>& pixel) const {
    row.store(target + pixel.token(p.work, place) * place.head_dim, factor, place.lane, S::kLanes,
              place.head_dim);
  }
};

template <typename S>
__global__ void __launch_bounds__(kStagedWarps* kWarpLanes, kMostBackward<S> / kStagedWarps)
    backward_staged(const __grid_constant__ StagedBackwardParams p) {
  const Tile tile = find_tile(p.work);
  // A tile off the map has sums of its bias to write, which come out as zeros.
  if (!tile.inside && !(tile.numbered && p.bias_parts.data != nullptr)) return;
  const StagedPlace<S> place(p.work, tile);
  auto& shared = *reinterpret_cast<BackwardShared<S>*>(dynamic_shared<unsigned char>() +
                                                       threadIdx.x / kWarpLanes * p.warp_bytes);
  const StagedGradients<S> gradients{p, place, shared};

  if (leaves_out(p.work)) note_exclusions<S>(shared, p.work, place);
  copy_bias<S>(shared, p.bias, place);
  copy_neighbourhood<S>(shared.tensor[0], p.out, place);
  copy_neighbourhood<S>(shared.tensor[1], p.grad_out, place);
  commit_copies();
  gradients.note_lses();
  wait_copies<0>();
  __syncwarp();
  gradients.note_deltas();
  __syncwarp();

  gradients.for_each_pass(
      p.key, p.value, [&] { copy_neighbourhood<S>(shared.tensor[0], p.query, place); },
      [&](const auto&... own) { gradients.key_and_value(own...); });
  __syncwarp();  // all lanes have read queries and grad_outs
  gradients.for_each_pass(
      p.query, p.grad_out,
      [&] {
        copy_neighbourhood<S>(shared.tensor[0], p.key, place);
        copy_neighbourhood<S>(shared.tensor[1], p.value, place);
      },
      [&](const auto&... own) { gradients.query(own...); });
  __syncwarp();
  if (p.bias_parts.data != nullptr) gradients.sum_bias();
}

template <typename S>
size_t staged_bytes(const BackwardArgs& args) {
  const size_t grad_score = S::kTilePixels * S::kTaps * sizeof(float);
  return sizeof(BackwardShared<S>) + (args.grad_bias == nullptr ? 0 : grad_score);
}

// Calls f with the StagedTile that takes a call and the warps of a block; returns whether there is
// one.
template <typename F>
bool with_backward_tile(const BackwardArgs& args, F&& f) {
  return with_staged_tile<24>(args, [&](auto tile) {
    using S = decltype(tile);
    const auto warps = StagedWarps::of(staged_bytes<S>(args), kMostBackward<S>);
    if (warps.resident < kFewestBackward) return false;
    f(tile, warps.of_block);
    return true;
  });
}

// Returns whether the device has room for the neighbourhood.
bool launch_staged(const BackwardArgs& args, float* bias_parts, Stream stream) {
  return with_backward_tile(args, [&](auto tile, int warps) {
    using S = decltype(tile);
    const auto warp_bytes = staged_bytes<S>(args);
    StagedBackwardParams params{
        {},
        View<float>::of(contiguous_view(args.problem, args.out)),
        View<float>::of(args.grad_out),
        View<float>::of(args.query),
        View<float>::of(args.key),
        View<float>::of(args.value),
        static_cast<const float*>(args.bias),
        static_cast<const float*>(args.lse),
        static_cast<const float*>(args.grad_lse),
        static_cast<float*>(args.grad_query),
        static_cast<float*>(args.grad_key),
        static_cast<float*>(args.grad_value),
        {bias_parts, bias_part_rows(args.problem, S::kTileH, S::kTileW), S::kTaps},
        static_cast<float>(args.problem.scale),
        static_cast<int32_t>(warp_bytes)};
    for_each_launch(args, S::kTileH, S::kTileW, warps, [&](const Work& work, int64_t blocks) {
      params.work = work;
      launch("backward_staged", backward_staged<S>, blocks, warps * kWarpLanes, warps * warp_bytes,
             stream, params);
    });
    if (bias_parts != nullptr) {
      launch_sum_bias_parts(args, bias_parts, S::kTileH, S::kTileW, stream);
    }
  });
}

}  // namespace
}  // namespace sdwa::cuda
