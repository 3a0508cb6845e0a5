// Backward of shifted and causal windows, on groups of lanes: any element type.
//
// A group gathers all three gradients of its pixel: as a query in a walk over the window, as a key
// in one over the queries whose windows hold it.
#include "cuda/bias_parts.cuh"
#include "cuda/free_window.cuh"
#include "cuda/kernels.h"
#include "cuda/row_delta.cuh"

namespace sdwa::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr int kThreads = kWarps * kWarpLanes;

template <typename T>
struct BackwardParams {
  using A = Accumulation<T>;
  Work work;
  Groups groups;
  FreeWindows windows;
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
__global__ void __launch_bounds__(kThreads)
    free_row_delta(const __grid_constant__ BackwardParams<T> p) {
  write_row_delta<T, kWide>(p);
}

template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    backward_free(const __grid_constant__ BackwardParams<T> p) {
  using A = Accumulation<T>;
  using Row = LaneRow<T, kWide>;
  const int kernel_h = p.work.kernel_h, kernel_w = p.work.kernel_w;
  const bool has_key_mask = p.work.key_mask != nullptr;
  const int warp_lane = threadIdx.x % kWarpLanes;
  const Tile tile = find_tile(p.work);
  A* const sums =
      p.bias_parts.data == nullptr || !tile.numbered ? nullptr : p.bias_parts.row(p.work, tile);
  if (!tile.inside) {
    if (sums == nullptr) return;
    for (int t = warp_lane; t < p.bias_parts.taps; t += kWarpLanes) sums[t] = 0;
    return;
  }
  const auto place = GroupPlace::of(p.groups, tile);
  const int lanes = p.groups.lanes, head_dim = p.work.head_dim;
  const Places at = Places::of(p.work, p.windows, tile, place);
  const bool pixel_ok = place.y < p.work.height && place.x < p.work.width;
  const int64_t bias_size = int64_t{p.windows.bias_h} * p.windows.bias_w;
  const A* const bias = p.bias == nullptr ? nullptr : p.bias + tile.head * bias_size;
  const auto load = [&](const View<T>& view, int32_t y, int32_t x, bool ok) {
    return Row::load(view.data + view.offset(tile, y, x), ok, place.lane, lanes, head_dim);
  };
  const int64_t token = token_index(p.work, tile, place.y, place.x);

  {  // as a query
    const Row query = load(p.query, place.y, place.x, pixel_ok);
    const Row grad_out = load(p.grad_out, place.y, place.x, pixel_ok);
    const A lse = lse_or_infinity(p.lse, token, pixel_ok);
    const A delta = pixel_ok ? p.delta[token] : A(0);
    const int32_t start_h = at.h.start(), start_w = at.w.start();
    // With the gradient of a bias by distance, one distance after the other for all pixels of the
    // warp, whichever tap has it; else one tap after the other.
    const bool by_distance = p.windows.by_distance && sums != nullptr;
    const int32_t steps_h = by_distance ? p.windows.bias_h : kernel_h;
    const int32_t steps_w = by_distance ? p.windows.bias_w : kernel_w;
    const int32_t first_h = by_distance ? at.h.index - (kernel_h - 1) - start_h : 0;
    const int32_t first_w = by_distance ? at.w.index - (kernel_w - 1) - start_w : 0;
    Row grad_query = {};
#pragma unroll 1
    for (int step_h = 0; step_h < steps_h; ++step_h) {
      const int32_t tap_h = first_h + step_h, row = start_h + tap_h, y = at.h.coordinate(row);
#pragma unroll 1
      for (int step_w = 0; step_w < steps_w; ++step_w) {
        const int32_t tap_w = first_w + step_w, column = start_w + tap_w;
        const int32_t x = at.w.coordinate(column);
        const bool is_tap = pixel_ok && at.h.is_tap(tap_h) && at.w.is_tap(tap_w);
        const bool on_map = is_tap && at.h.on_map(row) && at.w.on_map(column);
        const Row near_key = load(p.key, y, x, on_map), near_value = load(p.value, y, x, on_map);
        A score = query.dot(near_key), grad_probability = grad_out.dot(near_value);
        sum_over_group(lanes, score, grad_probability);
        A tap_bias = 0;
        if (bias != nullptr && is_tap) {
          tap_bias =
              bias[bias_index(p.windows, at, tap_h, tap_w, row - at.h.index, column - at.w.index)];
        }
        score = score_of(score, p.scale, tap_bias);
        A probability = power2((score - lse) * log2e_v<A>);
        if (!is_tap || !tap_counts(on_map, p.work.masked)) probability = 0;
        if (has_key_mask && on_map && !keeps_key(p.work, tile, y, x)) probability = 0;
        const A grad_score = probability * (grad_probability - delta);
        grad_query.add(grad_score, near_key);
        if (sums != nullptr) {
          A sum = grad_score;
          for (int step = lanes; step < kWarpLanes; step *= 2) {
            sum += __shfl_xor_sync(kFullWarp, sum, step);
          }
          if (warp_lane == 0) sums[step_h * steps_w + step_w] = sum;
        }
      }
    }
    if (pixel_ok) {
      grad_query.store(p.grad_query + token * head_dim, p.scale, place.lane, lanes, head_dim);
    }
  }

  // as a key
  const Row key = load(p.key, place.y, place.x, pixel_ok);
  const Row value = load(p.value, place.y, place.x, pixel_ok);
  const int32_t first_h = at.h.axis.first_query(at.h.index);
  const int32_t first_w = at.w.axis.first_query(at.w.index);
  Row grad_key = {}, grad_value = {};
#pragma unroll 1
  for (int n_h = 0; n_h < at.h.axis.most_queries(); ++n_h) {
    const int32_t row = first_h + n_h, y = at.h.coordinate(row), tap_h = at.h.tap_of(row);
#pragma unroll 1
    for (int n_w = 0; n_w < at.w.axis.most_queries(); ++n_w) {
      const int32_t column = first_w + n_w, x = at.w.coordinate(column);
      const int32_t tap_w = at.w.tap_of(column);
      const bool reads = pixel_ok && at.h.on_map(row) && at.w.on_map(column) &&
                         at.h.is_tap(tap_h) && at.w.is_tap(tap_w);
      const Row near_query = load(p.query, y, x, reads);
      const Row near_grad_out = load(p.grad_out, y, x, reads);
      A score = near_query.dot(key), grad_probability = near_grad_out.dot(value);
      sum_over_group(lanes, score, grad_probability);
      if (!reads) continue;
      A tap_bias = 0;
      if (bias != nullptr) {
        tap_bias =
            bias[bias_index(p.windows, at, tap_h, tap_w, at.h.index - row, at.w.index - column)];
      }
      score = score_of(score, p.scale, tap_bias);
      const int64_t near_token = token_index(p.work, tile, y, x);
      const A near_lse = lse_or_infinity(p.lse, near_token, true);
      const A probability = power2((score - near_lse) * log2e_v<A>);
      grad_key.add(probability * (grad_probability - p.delta[near_token]), near_query);
      grad_value.add(probability, near_grad_out);
    }
  }
  if (!pixel_ok) return;
  if (has_key_mask && !keeps_key(p.work, tile, place.y, place.x)) grad_key = {}, grad_value = {};
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
      FreeWindows::of(problem),
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
       static_cast<int32_t>(problem.bias_size())},
      static_cast<A>(problem.scale)};
  const auto launch_all = [&](const char* name, auto kernel) {
    for_each_launch(args, shape.tile_h, shape.tile_w, kWarps,
                    [&](const Work& work, int64_t blocks) {
                      params.work = work;
                      launch(name, kernel, blocks, kThreads, 0, stream, params);
                    });
  };
  launch_all("free_row_delta", free_row_delta<T, kWide>);
  launch_all("backward_free", backward_free<T, kWide>);
  if (bias_parts != nullptr) {
    launch_sum_bias_parts(args, bias_parts, shape.tile_h, shape.tile_w, stream);
  }
}

}  // namespace

VectorTile backward_free_tile(const BackwardArgs& args) {
  const GroupShape shape = group_shape(args.problem.head_dim);
  return {shape.tile_h, shape.tile_w, true};
}

void launch_backward_free(const BackwardArgs& args, void* delta, void* bias_parts, Stream stream) {
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
