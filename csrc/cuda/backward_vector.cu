// Backward on groups of lanes: float32 always, other types where the matrix unit does not fit.
//
// A group gathers all three gradients of its pixel in one walk over the window: the neighbour at
// tap t is the key that the pixel reads by t, and the query that reads the pixel by t mirrored.
#include "cuda/backward_staged.cuh"
#include "cuda/bias_parts.cuh"
#include "cuda/kernels.h"
#include "cuda/row_delta.cuh"
#include "cuda/vector_group.cuh"

namespace sdwa::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kResidentBlocks = 2;  // that the compiler leaves registers for, without spills

template <typename T>
struct BackwardParams {
  using A = Accumulation<T>;
  Work work;
  Groups groups;
  View<T> query, key, value, grad_out;
  const A* bias;
  const T* out;
  const A* lse;
  const A* grad_lse;
  A* delta;  // (batch, height, width, heads): sum(grad_out * out) - grad_lse
  T* grad_query;
  T* grad_key;
  T* grad_value;
  BiasParts<A> bias_parts;
  A scale;
};

template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads) row_delta(const __grid_constant__ BackwardParams<T> p) {
  write_row_delta<T, kWide>(p);
}

// Whether registers hold two rows of a neighbour at a time instead of four, and no walks.
template <typename T>
constexpr bool kInTurn = sizeof(T) == 8;

template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    backward_vector(const __grid_constant__ BackwardParams<T> p) {
  using A = Accumulation<T>;
  using Row = LaneRow<T, kWide>;
  const int kernel_h = p.work.kernel_h;
  const int kernel_w = p.work.kernel_w;
  const bool has_key_mask = p.work.key_mask != nullptr;
  const int warp_lane = threadIdx.x % kWarpLanes;
  const Tile tile = find_tile(p.work);
  if (!tile.inside) {
    if (p.bias_parts.data != nullptr && tile.numbered) {
      A* const sums = p.bias_parts.row(p.work, tile);
      for (int t = warp_lane; t < p.bias_parts.taps; t += kWarpLanes) sums[t] = 0;
    }
    return;
  }
  const auto place = GroupPlace::of(p.groups, tile);
  const int lanes = p.groups.lanes, head_dim = p.work.head_dim;
  const WindowAxis window_h{kernel_h, tile.dilation_h}, window_w{kernel_w, tile.dilation_w};
  const bool pixel_ok = place.y < p.work.height && place.x < p.work.width;
  const int64_t taps = kernel_h * kernel_w;
  const A* const bias = p.bias == nullptr ? nullptr : p.bias + tile.head * taps;

  const auto load = [&](const View<T>& view, int32_t y, int32_t x, bool ok) {
    return Row::load(view.data + view.offset(tile, y, x), ok, place.lane, lanes, head_dim);
  };
  const Row query = load(p.query, place.y, place.x, pixel_ok);
  const Row key = load(p.key, place.y, place.x, pixel_ok);
  const Row value = load(p.value, place.y, place.x, pixel_ok);
  const Row grad_out = load(p.grad_out, place.y, place.x, pixel_ok);
  const int64_t token = token_index(p.work, tile, place.y, place.x);
  const A lse = lse_or_infinity(p.lse, token, pixel_ok);
  const A delta = pixel_ok ? p.delta[token] : A(0);

  // Walk the window by adding steps: an address from scratch for each tap costs more than its
  // products.
  Walk<T> near[4] = {{p.query, tile, place, window_h, window_w},
                     {p.key, tile, place, window_h, window_w},
                     {p.value, tile, place, window_h, window_w},
                     {p.grad_out, tile, place, window_h, window_w}};
  int64_t near_token =
      token_index(p.work, tile, window_h.source(place.y, 0), window_w.source(place.x, 0));
  const int64_t token_step_w = int64_t{tile.dilation_w} * p.work.heads;
  const int64_t token_step_h =
      int64_t{tile.dilation_h} * p.work.width * p.work.heads - kernel_w * token_step_w;

  Row grad_query = {}, grad_key = {}, grad_value = {};
#pragma unroll 1
  for (int tap_h = 0; tap_h < kernel_h; ++tap_h) {
    const int32_t y = window_h.source(place.y, tap_h);
#pragma unroll 1
    for (int tap_w = 0; tap_w < kernel_w; ++tap_w) {
      const int32_t x = window_w.source(place.x, tap_w);
      const bool on_map = on_axis(y, p.work.height) && on_axis(x, p.work.width);
      const int tap = tap_h * kernel_w + tap_w;
      const int back = window_h.mirrored(tap_h) * kernel_w + window_w.mirrored(tap_w);

      const auto load_near = [&](const View<T>& view, Walk<T>& walk) {
        if constexpr (kInTurn<T>) return load(view, y, x, on_map);
        const Row row = Row::load(walk.at, on_map, place.lane, lanes, head_dim);
        walk.at += walk.step_w;
        return row;
      };
      const Row near_key = load_near(p.key, near[1]), near_value = load_near(p.value, near[2]);
      A score = query.dot(near_key), grad_probability = grad_out.dot(near_value);
      Row near_query, near_grad_out;
      A near_score, near_grad_probability;
      const auto load_near_query = [&] {
        near_query = load_near(p.query, near[0]);
        near_grad_out = load_near(p.grad_out, near[3]);
        near_score = near_query.dot(key), near_grad_probability = near_grad_out.dot(value);
      };
      if constexpr (kInTurn<T>) {
        sum_over_group(lanes, score, grad_probability);
      } else {
        load_near_query();
        sum_over_group(lanes, score, grad_probability, near_score, near_grad_probability);
      }
      score = score_of(score, p.scale, bias == nullptr ? A(0) : bias[tap]);
      A probability = power2((score - lse) * log2e_v<A>);
      if (!tap_counts(on_map, p.work.masked)) probability = 0;
      if (has_key_mask && on_map && !keeps_key(p.work, tile, y, x)) probability = 0;
      const A grad_score = probability * (grad_probability - delta);
      grad_query.add(grad_score, near_key);

      if constexpr (kInTurn<T>) {
        __syncwarp();  // the compiler would load them above
        load_near_query();
        sum_over_group(lanes, near_score, near_grad_probability);
      }
      if (kInTurn<T>) near_token = token_index(p.work, tile, y, x);
      near_score = score_of(near_score, p.scale, bias == nullptr ? A(0) : bias[back]);
      const A near_lse = lse_or_infinity(p.lse, near_token, on_map);
      const A near_delta = on_map ? p.delta[near_token] : A(0);
      const A near_probability = power2((near_score - near_lse) * log2e_v<A>);
      grad_key.add(near_probability * (near_grad_probability - near_delta), near_query);
      grad_value.add(near_probability, near_grad_out);

      if (p.bias_parts.data != nullptr) {
        A sum = grad_score;
        for (int step = lanes; step < kWarpLanes; step *= 2)
          sum += __shfl_xor_sync(kFullWarp, sum, step);
        if (warp_lane == 0) p.bias_parts.row(p.work, tile)[tap] = sum;
      }
      if (!kInTurn<T>) near_token += token_step_w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) near[i].at += near[i].step_h;
    near_token += token_step_h;
  }
  if (!pixel_ok) return;
  if (has_key_mask && !keeps_key(p.work, tile, place.y, place.x)) grad_key = {}, grad_value = {};
  grad_query.store(p.grad_query + token * head_dim, p.scale, place.lane, lanes, head_dim);
  grad_key.store(p.grad_key + token * head_dim, p.scale, place.lane, lanes, head_dim);
  grad_value.store(p.grad_value + token * head_dim, A(1), place.lane, lanes, head_dim);
}

template <typename T, bool kWide>
void launch_one(const BackwardArgs& args, void* delta, void* bias_parts, Stream stream) {
  using A = Accumulation<T>;
  const Problem& problem = args.problem;
  const GroupShape shape = group_shape(problem.head_dim);
  BackwardParams<T> params{
      {},
      shape.groups,
      View<T>::of(args.query),
      View<T>::of(args.key),
      View<T>::of(args.value),
      View<T>::of(args.grad_out),
      static_cast<const A*>(args.bias),
      static_cast<const T*>(args.out),
      static_cast<const A*>(args.lse),
      static_cast<const A*>(args.grad_lse),
      static_cast<A*>(delta),
      static_cast<T*>(args.grad_query),
      static_cast<T*>(args.grad_key),
      static_cast<T*>(args.grad_value),
      {static_cast<A*>(bias_parts), bias_part_rows(problem, shape.tile_h, shape.tile_w),
       static_cast<int32_t>(problem.kernel_h * problem.kernel_w)},
      static_cast<A>(problem.scale)};
  const auto launch_all = [&](const char* name, auto kernel) {
    for_each_launch(args, shape.tile_h, shape.tile_w, kWarps,
                    [&](const Work& work, int64_t blocks) {
                      params.work = work;
                      launch(name, kernel, blocks, kThreads, 0, stream, params);
                    });
  };
  launch_all("row_delta", row_delta<T, kWide>);
  launch_all("backward_vector", backward_vector<T, kWide>);
  if (bias_parts != nullptr) {
    launch_sum_bias_parts(args, bias_parts, shape.tile_h, shape.tile_w, stream);
  }
}

}  // namespace

VectorTile backward_vector_tile(const BackwardArgs& args) {
  const GroupShape shape = group_shape(args.problem.head_dim);
  VectorTile result{shape.tile_h, shape.tile_w, true};
  with_backward_tile(args, [&](auto tile, int) { result = {tile.kTileH, tile.kTileW, false}; });
  return result;
}

void launch_backward_vector(const BackwardArgs& args, void* delta, void* bias_parts,
                            Stream stream) {
  if (launch_staged(args, static_cast<float*>(bias_parts), stream)) return;
  with_type(args.problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (row_alignment(args) == kWideAccess) {
      launch_one<T, true>(args, delta, bias_parts, stream);
    } else {
      launch_one<T, false>(args, delta, bias_parts, stream);
    }
  });
}

}  // namespace sdwa::cuda
