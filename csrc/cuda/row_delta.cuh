// What the gradients of a query's scores have in common, for the kernels on groups of lanes.
#pragma once

#include "cuda/vector_group.cuh"

namespace sdwa::cuda {

// Writes delta, the sum of grad_out * out less grad_lse, of the calling group's pixel.
template <typename T, bool kWide, typename Params>
__device__ __forceinline__ void write_row_delta(const Params& p) {
  using Row = LaneRow<T, kWide>;
  const Tile tile = find_tile(p.work);
  if (!tile.inside) return;
  const auto place = GroupPlace::of(p.groups, tile);
  const int lanes = p.groups.lanes, head_dim = p.work.head_dim;
  const bool ok = place.y < p.work.height && place.x < p.work.width;
  const int64_t token = token_index(p.work, tile, place.y, place.x);
  const Row out = Row::load(p.out + token * head_dim, ok, place.lane, lanes, head_dim);
  const Row grad_out = Row::load(p.grad_out.data + p.grad_out.offset(tile, place.y, place.x), ok,
                                 place.lane, lanes, head_dim);
  auto sum = out.dot(grad_out);
  sum_over_group(lanes, sum);
  if (!ok || place.lane != 0) return;
  p.delta[token] = delta_of(sum, lse_or_infinity(p.lse, token, ok), p.grad_lse, token, ok);
}

}  // namespace sdwa::cuda
