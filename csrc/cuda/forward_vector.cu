// Forward on groups of lanes: float32 always, other types where the matrix unit does not fit.
#include "cuda/forward_staged.cuh"
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
  const auto place = GroupPlace::of(p.groups, tile);
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
      const A tap_bias = bias == nullptr ? 0 : bias[tap_h * p.work.kernel_w + tap_w];
      const A s = score_of(product, p.scale, tap_bias);
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
void launch_any(const ForwardArgs& args, Stream stream) {
  using A = Accumulation<T>;
  const GroupShape shape = group_shape(args.problem.head_dim);
  ForwardParams<T> params{{},
                          shape.groups,
                          View<T>::of(args.query),
                          View<T>::of(args.key),
                          View<T>::of(args.value),
                          static_cast<const A*>(args.bias),
                          static_cast<T*>(args.out),
                          static_cast<A*>(args.lse),
                          static_cast<A>(args.problem.scale)};
  const bool wide = row_alignment(args) == kWideAccess;
  const auto kernel = wide ? forward_any<T, true> : forward_any<T, false>;
  for_each_launch(args, shape.tile_h, shape.tile_w, kWarps, [&](const Work& work, int64_t blocks) {
    params.work = work;
    launch("forward_any", kernel, blocks, kThreads, 0, stream, params);
  });
}

void launch_float(const ForwardArgs& args, Stream stream) {
  const bool launched = with_staged_tile<48>(
      args, [&](auto tile) { return launch_staged<decltype(tile)>(args, stream); });
  if (!launched) launch_any<float>(args, stream);
}

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
