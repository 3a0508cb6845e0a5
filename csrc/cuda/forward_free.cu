// Forward of shifted and causal windows, on groups of lanes: any element type.
#include "cuda/free_window.cuh"
#include "cuda/kernels.h"

namespace sdwa::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr int kThreads = kWarps * kWarpLanes;

template <typename T>
struct ForwardParams {
  Work work;
  Groups groups;
  FreeWindows windows;
  View<T> query, key, value;
  const Accumulation<T>* bias;
  T* out;
  Accumulation<T>* lse;
  Accumulation<T> scale;
};

// One tap after the other with a running maximum.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    forward_free(const __grid_constant__ ForwardParams<T> p) {
  using A = Accumulation<T>;
  using Row = LaneRow<T, kWide>;
  const Tile tile = find_tile(p.work);
  if (!tile.inside) return;
  const auto place = GroupPlace::of(p.groups, tile);
  const int lanes = p.groups.lanes, head_dim = p.work.head_dim;
  const Places at = Places::of(p.work, p.windows, tile, place);
  const int32_t start_h = at.h.start(), start_w = at.w.start();
  const bool pixel_ok = place.y < p.work.height && place.x < p.work.width;
  const auto load = [&](const View<T>& view, int32_t y, int32_t x, bool ok) {
    return Row::load(view.data + view.offset(tile, y, x), ok, place.lane, lanes, head_dim);
  };
  const Row query = load(p.query, place.y, place.x, pixel_ok);
  const int64_t bias_size = int64_t{p.windows.bias_h} * p.windows.bias_w;
  const A* const bias = p.bias == nullptr ? nullptr : p.bias + tile.head * bias_size;
  const bool has_key_mask = p.work.key_mask != nullptr;

  Row out = {};
  A most = kLowestScore<A>, sum = 0;
  for (int tap_h = 0; tap_h < p.work.kernel_h; ++tap_h) {
    const int32_t row = start_h + tap_h, y = at.h.coordinate(row);
    for (int tap_w = 0; tap_w < p.work.kernel_w; ++tap_w) {
      const int32_t column = start_w + tap_w, x = at.w.coordinate(column);
      const bool on_map = pixel_ok && at.h.on_map(row) && at.w.on_map(column);
      const Row key = load(p.key, y, x, on_map), value = load(p.value, y, x, on_map);
      A product = query.dot(key);
      sum_over_group(lanes, product);
      if (!pixel_ok || !tap_counts(on_map, p.work.masked)) continue;
      if (has_key_mask && on_map && !keeps_key(p.work, tile, y, x)) continue;
      A tap_bias = 0;
      if (bias != nullptr) {
        tap_bias =
            bias[bias_index(p.windows, at, tap_h, tap_w, row - at.h.index, column - at.w.index)];
      }
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
  }
  if (!pixel_ok) return;
  const int64_t token = token_index(p.work, tile, place.y, place.x);
  out.store(p.out + token * head_dim, inverse_sum(sum), place.lane, lanes, head_dim);
  if (place.lane == 0) p.lse[token] = most + log2(sum) * ln2_v<A>;
}

template <typename T>
void launch_one(const ForwardArgs& args, Stream stream) {
  using A = Accumulation<T>;
  const GroupShape shape = group_shape(args.problem.head_dim);
  ForwardParams<T> params{{},
                          shape.groups,
                          FreeWindows::of(args.problem),
                          View<T>::of(args.query),
                          View<T>::of(args.key),
                          View<T>::of(args.value),
                          static_cast<const A*>(args.bias),
                          static_cast<T*>(args.out),
                          static_cast<A*>(args.lse),
                          static_cast<A>(args.problem.scale)};
  const bool wide = row_alignment(args) == kWideAccess;
  const auto kernel = wide ? forward_free<T, true> : forward_free<T, false>;
  for_each_launch(args, shape.tile_h, shape.tile_w, kWarps, [&](const Work& work, int64_t blocks) {
    params.work = work;
    launch("forward_free", kernel, blocks, kThreads, 0, stream, params);
  });
}

}  // namespace

void launch_forward_free(const ForwardArgs& args, Stream stream) {
  with_type(args.problem.dtype,
            [&](auto type) { launch_one<typename decltype(type)::type>(args, stream); });
}

}  // namespace sdwa::cuda
