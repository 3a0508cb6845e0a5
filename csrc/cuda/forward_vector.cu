// Forward on groups of lanes: float32 always, other types where the matrix unit does not fit.
//
// SDWA_CUDA_FORMER_FLOAT: with the float32 kernels from before forward_staged.cuh, until both have
// been timed.
#ifndef SDWA_CUDA_FORMER_FLOAT
#include "cuda/forward_staged.cuh"
#endif
#include "cuda/kernels.h"
#include "cuda/vector_group.cuh"

namespace sdwa::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr int kThreads = kWarps * kWarpLanes;

template <typename T>
struct ForwardParams {
  Work work;
  Groups groups;
  View<T> query, key, value;
  const Accumulation<T>* bias;
  T* out;
  Accumulation<T>* lse;
  Accumulation<T> scale;
};

#ifdef SDWA_CUDA_FORMER_FLOAT
// Pixels of a strip: two that share keys and values, where registers hold the scores of both.
SDWA_HD constexpr int strip_of(int kernel) { return kernel == 3 || kernel == 5 ? 2 : 1; }

// Square windows of kKernel, all scores at once in registers. Without a key mask: to read it takes
// registers from the calls that have none.
template <typename T, int kKernel>
__global__ void __launch_bounds__(kThreads)
    forward_strip(const __grid_constant__ ForwardParams<T> p) {
  using A = Accumulation<T>;
  using Row = LaneRow<T, true>;
  constexpr int kStrip = strip_of(kKernel);
  constexpr int kColumns = kStrip + kKernel - 1;
  const Tile tile = find_tile(p.work);
  if (!tile.inside) return;
  const auto place = GroupPlace::of<kStrip>(p.groups, tile);
  const int lanes = p.groups.lanes, head_dim = p.work.head_dim;
  const WindowAxis window_h{kKernel, tile.dilation_h}, window_w{kKernel, tile.dilation_w};
  const bool row_ok = place.y < p.work.height;

  Row query[kStrip];
  bool pixel_ok[kStrip];
#pragma unroll
  for (int i = 0; i < kStrip; ++i) {
    const int32_t x = place.x + i * tile.dilation_w;
    pixel_ok[i] = row_ok && x < p.work.width;
    query[i] = Row::load(p.query.data + p.query.offset(tile, place.y, x), pixel_ok[i], place.lane,
                         lanes, head_dim);
  }
  bool column_ok[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    column_ok[c] = on_axis(window_w.source(place.x, c), p.work.width);

  // Calls use(tap_h, column, row of `view` there) for all pixels that the strip's windows reach,
  // with zeros off the map.
  const auto walk_neighbourhood = [&](const View<T>& view, auto&& use) {
    const T* row =
        view.data + view.offset(tile, window_h.source(place.y, 0), window_w.source(place.x, 0));
    const int64_t step_h = view.height_stride * tile.dilation_h;
    const int64_t step_w = view.width_stride * tile.dilation_w;
#pragma unroll
    for (int tap_h = 0; tap_h < kKernel; ++tap_h) {
      const bool ok = on_axis(window_h.source(place.y, tap_h), p.work.height);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        use(tap_h, c,
            Row::load(row + tap_h * step_h + c * step_w, ok && column_ok[c], place.lane, lanes,
                      head_dim));
      }
    }
  };

  A score[kStrip][kKernel * kKernel];
  walk_neighbourhood(p.key, [&](int tap_h, int c, const Row& key) {
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
      const int tap_w = c - i;
      if (tap_w >= 0 && tap_w < kKernel) score[i][tap_h * kKernel + tap_w] = query[i].dot(key);
    }
  });
  for (int step = lanes / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
#pragma unroll
      for (int t = 0; t < kKernel * kKernel; ++t) {
        score[i][t] += __shfl_xor_sync(kFullWarp, score[i][t], step);
      }
    }
  }

  A sum[kStrip];
#pragma unroll
  for (int i = 0; i < kStrip; ++i) {
    A most = kLowestScore<A>;
#pragma unroll
    for (int t = 0; t < kKernel * kKernel; ++t) {
      A& s = score[i][t];
      s = s * p.scale + (p.bias == nullptr ? 0 : p.bias[tile.head * (kKernel * kKernel) + t]);
      const bool on_map = column_ok[t % kKernel + i] &&
                          on_axis(window_h.source(place.y, t / kKernel), p.work.height);
      s = tap_counts(on_map, p.work.masked) ? s : A(-INFINITY);
      most = s > most ? s : most;
    }
    sum[i] = 0;
#pragma unroll
    for (int t = 0; t < kKernel * kKernel; ++t) {
      score[i][t] = power2((score[i][t] - most) * log2e_v<A>);
      sum[i] += score[i][t];
    }
    if (place.lane == 0 && pixel_ok[i]) {
      p.lse[token_index(p.work, tile, place.y, place.x + i * tile.dilation_w)] =
          most + log2(sum[i]) * ln2_v<A>;
    }
  }

  Row out[kStrip] = {};
  walk_neighbourhood(p.value, [&](int tap_h, int c, const Row& value) {
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
      const int tap_w = c - i;
      if (tap_w >= 0 && tap_w < kKernel) out[i].add(score[i][tap_h * kKernel + tap_w], value);
    }
  });
#pragma unroll
  for (int i = 0; i < kStrip; ++i) {
    if (!pixel_ok[i]) continue;
    const int64_t token = token_index(p.work, tile, place.y, place.x + i * tile.dilation_w);
    out[i].store(p.out + token * head_dim, inverse_sum(sum[i]), place.lane, lanes, head_dim);
  }
}
#endif

// Blocks that the compiler leaves registers for: left to itself it spills for the sake of more.
template <typename T>
constexpr int kResidentBlocks = sizeof(T) == 8 ? 3 : 4;

// Any window, one tap after the other with a running maximum.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<T>)
    forward_any(const __grid_constant__ ForwardParams<T> p) {
  using A = Accumulation<T>;
  using Row = LaneRow<T, kWide>;
  const Tile tile = find_tile(p.work);
  if (!tile.inside) return;
  const auto place = GroupPlace::of<1>(p.groups, tile);
  const int lanes = p.groups.lanes, head_dim = p.work.head_dim;
  const WindowAxis window_h{p.work.kernel_h, tile.dilation_h};
  const WindowAxis window_w{p.work.kernel_w, tile.dilation_w};
  const bool pixel_ok = place.y < p.work.height && place.x < p.work.width;
  const Row query = Row::load(p.query.data + p.query.offset(tile, place.y, place.x), pixel_ok,
                              place.lane, lanes, head_dim);
  const int64_t taps = p.work.kernel_h * p.work.kernel_w;
  const A* bias = p.bias == nullptr ? nullptr : p.bias + tile.head * taps;
  const bool has_key_mask = p.work.key_mask != nullptr;

  Walk<T> keys(p.key, tile, place, window_h, window_w);
  Walk<T> values(p.value, tile, place, window_h, window_w);
  Row out = {};
  A most = kLowestScore<A>, sum = 0;
  for (int tap_h = 0; tap_h < p.work.kernel_h; ++tap_h) {
    const int32_t y = window_h.source(place.y, tap_h);
    for (int tap_w = 0; tap_w < p.work.kernel_w; ++tap_w) {
      const int32_t x = window_w.source(place.x, tap_w);
      const bool on_map = on_axis(y, p.work.height) && on_axis(x, p.work.width);
      const Row key = Row::load(keys.at, on_map, place.lane, lanes, head_dim);
      const Row value = Row::load(values.at, on_map, place.lane, lanes, head_dim);
      keys.at += keys.step_w;
      values.at += values.step_w;
      A product = query.dot(key);
      sum_over_group(lanes, product);
      if (!tap_counts(on_map, p.work.masked)) continue;
      if (has_key_mask && on_map && !keeps_key(p.work, tile, y, x)) continue;
      const A s = product * p.scale + (bias == nullptr ? 0 : bias[tap_h * p.work.kernel_w + tap_w]);
      const A now_most = s > most ? s : most;
      const A keep = power2((most - now_most) * log2e_v<A>);
      const A weight = power2((s - now_most) * log2e_v<A>);
      most = now_most;
      sum = sum * keep + weight;
#pragma unroll
      for (int i = 0; i < kLaneFeatures; ++i) {
        out.feature[i] = out.feature[i] * keep + weight * value.feature[i];
      }
    }
    keys.at += keys.step_h;
    values.at += values.step_h;
  }
  if (!pixel_ok) return;
  const int64_t token = token_index(p.work, tile, place.y, place.x);
  out.store(p.out + token * head_dim, inverse_sum(sum), place.lane, lanes, head_dim);
  if (place.lane == 0) p.lse[token] = most + log2(sum) * ln2_v<A>;
}

template <typename T>
void launch_one(const char* name, void (*kernel)(ForwardParams<T>), int strip,
                const ForwardArgs& args, Stream stream) {
  using A = Accumulation<T>;
  const GroupShape shape = group_shape(args.problem.head_dim, strip);
  for_each_launch(args, shape.tile_h, shape.tile_w, kWarps, [&](const Work& work, int64_t blocks) {
    const ForwardParams<T> params{work,
                                  shape.groups,
                                  View<T>::of(args.query),
                                  View<T>::of(args.key),
                                  View<T>::of(args.value),
                                  static_cast<const A*>(args.bias),
                                  static_cast<T*>(args.out),
                                  static_cast<A*>(args.lse),
                                  static_cast<A>(args.problem.scale)};
    launch(name, kernel, blocks, kThreads, 0, stream, params);
  });
}

template <typename T>
void launch_any(const ForwardArgs& args, Stream stream) {
  const bool wide = row_alignment(args) == kWideAccess;
  const auto kernel = wide ? forward_any<T, true> : forward_any<T, false>;
  launch_one<T>("forward_any", kernel, 1, args, stream);
}

#ifdef SDWA_CUDA_FORMER_FLOAT
void launch_float(const ForwardArgs& args, Stream stream) {
  if (row_alignment(args) < kWideAccess || args.key_mask != nullptr) {
    return launch_any<float>(args, stream);
  }
  with_window(args.problem, [&](auto kernel) {
    if constexpr (kernel > 0) {
      constexpr int kStrip = strip_of(kernel);
      launch_one<float>("forward_strip", forward_strip<float, kernel>, kStrip, args, stream);
    } else {
      launch_any<float>(args, stream);
    }
  });
}
#else
void launch_float(const ForwardArgs& args, Stream stream) {
  const bool launched = with_staged_tile<48>(
      args, [&](auto tile) { return launch_staged<decltype(tile)>(args, stream); });
  if (!launched) launch_any<float>(args, stream);
}
#endif

}  // namespace

void launch_forward_vector(const ForwardArgs& args, Stream stream) {
  with_type(args.problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (std::is_same_v<T, float>) {
      launch_float(args, stream);
    } else {
      launch_any<T>(args, stream);
    }
  });
}

}  // namespace sdwa::cuda
