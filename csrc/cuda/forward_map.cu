// Forward on maps of at most 8 x 8 pixels: bfloat16 and float16, square windows of 3, 5 and 7.
#include "cuda/kernels.h"
#include "cuda/map_tile.cuh"

namespace sdwa::cuda {
namespace {

template <typename T>
struct ForwardMapParams {
  MapWork work;
  View<T> query, key, value;
  const float* bias;
  T* out;
  float* lse;
  float scale_log2;  // scale * log2(e)
};

// Blocks that a multiprocessor holds at once.
template <int kKernel>
constexpr int kResidentMaps = kKernel == 3 ? 5 : 4;

template <typename T, int kKernel, typename Features>
__global__ void __launch_bounds__(kMapWarps* kWarpLanes, kResidentMaps<kKernel>)
    forward_map(const __grid_constant__ ForwardMapParams<T> p) {
  using N = MapNeighbourhood<kKernel>;
  using F = MapFragments<T, kKernel, Features>;
  const auto place = find_map<kKernel>(p.work);
  // Before the copies: loads behind them may come behind the wait, too.
  const Anchor<T> query_at(p.query, place.map, p.work);
  typename F::Rows rows[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t offset = query_at.offset(place.row(half), place.g);
    rows[half] =
        F::load_row(query_at.origin, place.tile_ok[half] ? offset : 0, place.j, 0, p.work.head_dim);
  }

  unsigned char* const keys = dynamic_shared<unsigned char>();
  unsigned char* const values = keys + F::map_bytes(p.work.height);
  const typename F::Copies copies(place);
  copies.start(keys, Anchor<T>(p.key, place.map, p.work));
  copies.start(values, Anchor<T>(p.value, place.map, p.work));
  commit_copies();
  const typename F::Lane lane(place);
  const uint32_t kept = place.kept();
  wait_copies<0>();
  __syncthreads();

  float score[N::kRows][4] = {};
  {
    const typename F::TileRows query = F::join(rows[0], rows[1], p.work.zero);
#pragma unroll
    for (int s = 0; s < N::kRows; ++s) {
      F::multiply(score[s], query, F::slot_pixels(keys, lane, place, s));
    }
  }

  const float* const bias =
      p.bias == nullptr ? nullptr : p.bias + place.map.head * (kKernel * kKernel);
  typename F::Weights probability[N::kRows / 2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float log2_p[N::kRows][2];
#pragma unroll
    for (int s = 0; s < N::kRows; ++s) {
#pragma unroll
      for (int e = 0; e < 2; ++e) log2_p[s][e] = score[s][2 * half + e] * p.scale_log2;
    }
    if (bias != nullptr) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float* const column = bias + place.tap_x(e);
#pragma unroll
        for (int s = 0; s < N::kRows; ++s) {
          if (place.at(place.window, half, s, e)) {
            log2_p[s][e] += log2e_v<float> * column[place.tap_y(half, s) * kKernel];
          }
        }
      }
    }
    float most = kLowestScore<float>;
#pragma unroll
    for (int s = 0; s < N::kRows; ++s) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        log2_p[s][e] = place.at(kept, half, s, e) ? log2_p[s][e] : -INFINITY;
        most = fmaxf(most, log2_p[s][e]);
      }
    }
    // Without a bias all taps off the map have a score of 0.
    const int off_map = p.work.masked ? 0 : place.taps_off_map(half);
    if (off_map > 0 && bias == nullptr) most = fmaxf(most, 0.f);
    if (bias != nullptr && !p.work.masked) {
      place.for_each_tap_off_map(half,
                                 [&](int tap) { most = fmaxf(most, log2e_v<float> * bias[tap]); });
    }
    most = max_over_columns(most);
    float sum = 0;
#pragma unroll
    for (int s = 0; s < N::kRows; ++s) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        log2_p[s][e] = power2(log2_p[s][e] - most);
        sum += log2_p[s][e];
      }
    }
    if (bias != nullptr && !p.work.masked) {
      place.for_each_tap_off_map(
          half, [&](int tap) { sum += power2(log2e_v<float> * bias[tap] - most); });
    }
    sum = sum_over_columns(sum);
    if (off_map > 0 && bias == nullptr) sum += static_cast<float>(off_map) * power2(-most);
    const float to_probability = inverse_sum(sum);
#pragma unroll
    for (int s = 0; s < N::kRows; ++s) {
      probability[s / 2].pair[2 * (s % 2) + half] =
          pack<T>(log2_p[s][0] * to_probability, log2_p[s][1] * to_probability);
    }
    if (place.j == 0 && place.tile_ok[half]) {
      p.lse[place.tile_token(half)] = (most + log2f(sum)) * ln2_v<float>;
    }
  }

  float out[F::kSlices][4] = {};
  F::gather(out, probability, values, lane, place);
  F::store(p.out, out, 1.f, p.work, place, 0);
}

template <typename T, int kKernel>
void launch_kernel(const ForwardArgs& args, Stream stream) {
  ForwardMapParams<T> params{{},
                             View<T>::of(args.query),
                             View<T>::of(args.key),
                             View<T>::of(args.value),
                             static_cast<const float*>(args.bias),
                             static_cast<T*>(args.out),
                             static_cast<float*>(args.lse),
                             static_cast<float>(args.problem.scale) * log2e_v<float>};
  with_map_features(args.problem.head_dim, [&](auto features) {
    using Features = decltype(features);
    using F = MapFragments<T, kKernel, Features>;
    const size_t bytes = 2 * F::map_bytes(args.problem.height);
    for_each_map_launch(args, [&](const MapWork& work, int64_t blocks) {
      params.work = work;
      launch("forward_map", forward_map<T, kKernel, Features>, blocks,
             map_warps(args.problem) * kWarpLanes, bytes, stream, params);
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

void launch_forward_map(const ForwardArgs& args, Stream stream) {
  if (args.problem.dtype == Dtype::kBFloat16) {
    launch_type<BFloat16>(args, stream);
  } else {
    launch_type<Float16>(args, stream);
  }
}

}  // namespace sdwa::cuda
