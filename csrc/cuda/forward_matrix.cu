// Forward on the matrix unit: bfloat16 and float16, square windows of 3, 5 and 7.
#include "cuda/kernels.h"
#include "cuda/matrix_tile.cuh"

namespace sdwa::cuda {
namespace {

template <typename T>
struct ForwardParams {
  Work work;
  View<T> query, key, value;
  const float* bias;
  T* out;
  float* lse;
  float scale_log2;       // scale * log2(e)
  int slots, warp_bytes;  // see Stages
};

// Blocks that a multiprocessor holds at once: as many as registers allow without spills.
template <int kKernel, typename Features, bool kPlain>
constexpr int kResidentBlocks = !Features::kSingle ? (kKernel == 7 ? 2 : 3)
                                                   : (kKernel == 7   ? 2
                                                      : kKernel == 5 ? 3
                                                                     : 4) +
                                                         (Features::kChunk == 32 ? 1 : 0);

// kPlain: there is neither a bias nor a key mask.
template <typename T, int kKernel, typename Features, bool kPlain>
__global__ void __launch_bounds__(kMostWarps* kWarpLanes,
                                  kResidentBlocks<kKernel, Features, kPlain>)
    forward_matrix(const __grid_constant__ ForwardParams<T> p) {
  using N = Neighbourhood<kKernel>;
  using F = Fragments<T, kKernel, Features>;
  using Stage = typename F::Stage;
  const Tile tile = find_tile(p.work);
  if (!tile.inside) return;
  const LanePlace<kKernel> place(p.work, tile);
  const int head_dim = p.work.head_dim;
  unsigned char* const staged =
      dynamic_shared<unsigned char>() + threadIdx.x / kWarpLanes * p.warp_bytes;
  const typename F::Copies copies(place);
  const typename F::Lane lane(place);

  // The chunks of keys, then those of values.
  const Anchor<T> key_at(p.key, tile, p.work), value_at(p.value, tile, p.work);
  const int chunks = Features::chunks(head_dim);
  Pipeline pipeline(2 * chunks, p.slots, [&](int piece, int slot) {
    const bool is_key = piece < chunks;
    const Anchor<T> tensor = is_key ? key_at : value_at;
    copies.start(staged + slot * Stage::kBytes, tensor,
                 (is_key ? piece : piece - chunks) * Features::kChunk, head_dim);
  });

  float score[N::kRows][4] = {};
  const Anchor<T> query_at(p.query, tile, p.work);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const auto query = F::tile_rows(query_at, place, chunk * Features::kChunk, p.work);
    pipeline.wait(chunk);
    const unsigned char* const keys = staged + pipeline.slot(chunk) * Stage::kBytes;
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
      F::multiply(score[t], query, F::staged_row(keys, lane, t));
    }
    pipeline.release();
  }

  const Counting<kKernel> counting(p.work, place);
  typename F::Weights probability[N::kRows / 2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float log2_p[N::kRows][2];
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) log2_p[t][e] = score[t][2 * half + e] * p.scale_log2;
    }
    if (!kPlain && p.work.key_mask != nullptr) {
      const LeftOut<kKernel> left_out(p.work, tile, place);
#pragma unroll
      for (int t = 0; t < N::kRows; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (left_out.at(t, e)) log2_p[t][e] = -INFINITY;
        }
      }
    }
    if (!kPlain && p.bias != nullptr) {
      const float* const bias = p.bias + tile.head * (kKernel * kKernel);
#pragma unroll
      for (int t = 0; t < N::kRows; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (N::reaches(half, t) && place.in_window(half, t, e)) {
            log2_p[t][e] += log2e_v<float> * bias[place.tap(half, t, e)];
          }
        }
      }
    }
    float most = kLowestScore<float>;
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        log2_p[t][e] = counting.at(half, t, e) ? log2_p[t][e] : -INFINITY;
        most = fmaxf(most, log2_p[t][e]);
      }
    }
    most = max_over_columns(most);
    float sum = 0;
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        log2_p[t][e] = N::reaches(half, t) ? power2(log2_p[t][e] - most) : 0.f;
        sum += log2_p[t][e];
      }
    }
    sum = sum_over_columns(sum);
    const float to_probability = inverse_sum(sum);
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
      probability[t / 2].pair[2 * (t % 2) + half] =
          pack<T>(log2_p[t][0] * to_probability, log2_p[t][1] * to_probability);
    }
    if (place.j == 0 && place.tile_ok[half]) {
      p.lse[place.tile_token(half)] = (most + log2f(sum)) * ln2_v<float>;
    }
  }

  for (int chunk = 0; chunk < chunks; ++chunk) {
    pipeline.wait(chunks + chunk);
    float out[F::kSlices][4] = {};
    F::gather(out, probability, staged + pipeline.slot(chunks + chunk) * Stage::kBytes, lane);
    pipeline.release();
    F::store(p.out, out, 1.f, p.work, place, chunk * Features::kChunk);
  }
}

template <typename T, int kKernel>
void launch_kernel(const ForwardArgs& args, Stream stream) {
  using N = Neighbourhood<kKernel>;
  ForwardParams<T> params{{},
                          View<T>::of(args.query),
                          View<T>::of(args.key),
                          View<T>::of(args.value),
                          static_cast<const float*>(args.bias),
                          static_cast<T*>(args.out),
                          static_cast<float*>(args.lse),
                          static_cast<float>(args.problem.scale) * log2e_v<float>,
                          0,
                          0};
  with_features<kKernel, 64>(args.problem.head_dim, row_alignment(args), [&](auto features) {
    using Features = decltype(features);
    with_plain<kKernel, Features>(args, [&](auto plain) {
      constexpr int kWarps = kMostWarps * kResidentBlocks<kKernel, Features, plain>;
      const Stages stages =
          choose_stages(Fragments<T, kKernel, Features>::Stage::kBytes, 0, {kWarps, kWarps});
      params.slots = stages.slots, params.warp_bytes = stages.warp_bytes;
      for_each_launch(
          args, N::kTileH, N::kTileW, stages.warps, [&](const Work& work, int64_t blocks) {
            params.work = work;
            launch("forward_matrix", forward_matrix<T, kKernel, Features, plain>, blocks,
                   stages.warps * kWarpLanes, stages.warps * stages.warp_bytes, stream, params);
          });
    });
  });
}

template <typename T>
void launch_type(const ForwardArgs& args, Stream stream) {
  with_window(args.problem, [&](auto kernel) {
    if constexpr (kernel > 0) launch_kernel<T, kernel>(args, stream);
  });
}

}  // namespace

void launch_forward_matrix(const ForwardArgs& args, Stream stream) {
  if (args.problem.dtype == Dtype::kBFloat16) {
    launch_type<BFloat16>(args, stream);
  } else {
    launch_type<Float16>(args, stream);
  }
}

}  // namespace sdwa::cuda
