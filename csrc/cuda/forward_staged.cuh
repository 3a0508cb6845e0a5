// Forward with the neighbourhood's keys and values in shared memory (see staged_tile.cuh). Part of
// forward_vector.cu.
#pragma once

#include "cuda/staged_tile.cuh"

namespace sdwa::cuda {
namespace {

// Warps on a multiprocessor: as many as registers allow, enough for keys and values to be staged at
// once, and fewer than which are slower than the kernels without staging.
template <typename S>
constexpr int kMostForward = S::kKernel == 3 ? 16 : 12;
constexpr int kEnoughForward = 8, kFewestForward = 3;

struct StagedForwardParams {
  Work work;
  View<float> query, key, value;
  const float* bias;
  float* out;
  float* lse;
  float scale;
  int32_t warp_bytes;    // of shared memory
  int32_t value_floats;  // from the keys to the values: 0 where they take the place of the keys
};

template <typename S>
struct ForwardShared : StagedScores<S> {
  float most[S::kTilePixels];  // the largest of the scores
  float score[S::kTilePixels][S::kTaps];
  alignas(kWideAccess) float tensor[S::kTensorFloats];  // the keys; another may follow
};

template <typename S>
__global__ void __launch_bounds__(kStagedWarps* kWarpLanes, kMostForward<S> / kStagedWarps)
    forward_staged(const __grid_constant__ StagedForwardParams p) {
  const Tile tile = find_tile(p.work);
  if (!tile.inside) return;
  const StagedPlace<S> place(p.work, tile);
  auto& shared = *reinterpret_cast<ForwardShared<S>*>(dynamic_shared<unsigned char>() +
                                                      threadIdx.x / kWarpLanes * p.warp_bytes);
  float* const values = shared.tensor + p.value_floats;

  // Before the copies: the compiler may move loads behind them past the wait.
  static_assert(S::kPasses <= 2);
  StagedPixel<S> pixel(place), next = pixel;
  next.next();
  StagedRow query = pixel.load(p.query, place, p.work.zero);
  const StagedRow next_query = next.load(p.query, place, p.work.zero);
  if (leaves_out(p.work)) note_exclusions<S>(shared, p.work, place);
  copy_bias<S>(shared, p.bias, place);
  copy_neighbourhood<S>(shared.tensor, p.key, place);
  commit_copies();
  if (p.value_floats > 0) copy_neighbourhood<S>(values, p.value, place);
  commit_copies();
  wait_copies<1>();
  __syncwarp();

#pragma unroll 1
  for (int pass = 0; pass < S::kPasses; ++pass) {
    float* const scores = shared.score[pixel.in_tile()];
    float most = kLowestScore<float>;
#pragma unroll 1
    for (int tap_h = 0; tap_h < S::kKernel; ++tap_h) {
      const int row = pixel.row + tap_h;
      const StagedColumns<S> columns(shared.tensor, row, pixel.column, place.lane);
      float score[S::kKernel];
#pragma unroll
      for (int tap_w = 0; tap_w < S::kKernel; ++tap_w) {
        score[tap_w] = score_of(sum_over_lanes<S::kLanes>(query.dot(columns.read(tap_w, 0))),
                                p.scale, read_shared(shared.bias + tap_h * S::kKernel + tap_w));
      }
      if (leaves_out(p.work)) exclude<S>(score, shared, row, pixel.column);
#pragma unroll
      for (int tap_w = 0; tap_w < S::kKernel; ++tap_w) {
        most = score[tap_w] > most ? score[tap_w] : most;
        if (place.lane == 0) write_shared(scores + tap_h * S::kKernel + tap_w, score[tap_w]);
      }
    }
    if (place.lane == 0) write_shared(shared.most + pixel.in_tile(), most);
    pixel = next, query = next_query;
  }

  if (p.value_floats == 0) {
    __syncwarp();  // all lanes have read the keys
    copy_neighbourhood<S>(values, p.value, place);
  }
  commit_copies();
  wait_copies<0>();
  __syncwarp();

  pixel = StagedPixel<S>(place);
#pragma unroll 1
  for (int pass = 0; pass < S::kPasses; ++pass, pixel.next()) {
    const float* const scores = shared.score[pixel.in_tile()];
    const float most = read_shared(shared.most + pixel.in_tile());
    StagedRow out = {};
    float sum = 0;
#pragma unroll 1
    for (int tap_h = 0; tap_h < S::kKernel; ++tap_h) {
      const StagedColumns<S> columns(values, pixel.row + tap_h, pixel.column, place.lane);
#pragma unroll
      for (int tap_w = 0; tap_w < S::kKernel; ++tap_w) {
        const float score = read_shared(scores + tap_h * S::kKernel + tap_w);
        const float weight = power2((score - most) * log2e_v<float>);
        sum += weight;
        out.add(weight, columns.read(tap_w, 0));
      }
    }
    if (!pixel.ok(place)) continue;
    const int64_t token = pixel.token(p.work, place);
    out.store(p.out + token * place.head_dim, inverse_sum(sum), place.lane, S::kLanes,
              place.head_dim);
    if (place.lane == 0) p.lse[token] = most + log2(sum) * ln2_v<float>;
  }
}

// Returns whether the device has room for the neighbourhood.
template <typename S>
bool launch_staged(const ForwardArgs& args, Stream stream) {
  StagedForwardParams params{{},
                             View<float>::of(args.query),
                             View<float>::of(args.key),
                             View<float>::of(args.value),
                             static_cast<const float*>(args.bias),
                             static_cast<float*>(args.out),
                             static_cast<float*>(args.lse),
                             static_cast<float>(args.problem.scale),
                             static_cast<int32_t>(sizeof(ForwardShared<S>)),
                             0};
  StagedWarps warps =
      StagedWarps::of(params.warp_bytes + S::kTensorFloats * sizeof(float), kMostForward<S>);
  if (warps.resident >= kEnoughForward) {
    params.value_floats = S::kTensorFloats;
    params.warp_bytes += S::kTensorFloats * sizeof(float);
  } else {
    warps = StagedWarps::of(params.warp_bytes, kMostForward<S>);
  }
  if (warps.resident < kFewestForward) return false;
  for_each_launch(args, S::kTileH, S::kTileW, warps.of_block,
                  [&](const Work& work, int64_t blocks) {
                    params.work = work;
                    launch("forward_staged", forward_staged<S>, blocks, warps.of_block * kWarpLanes,
                           warps.of_block * params.warp_bytes, stream, params);
                  });
  return true;
}

}  // namespace
}  // namespace sdwa::cuda
