// The gradient of the bias, without atomics: every warp writes the sums of its tile, and another
// kernel adds them up in a fixed order.
#pragma once

#include "cuda/work.cuh"

namespace sdwa::cuda {

// (heads, rows, taps): a row for each tile of each image.
template <typename A>
struct BiasParts {
  A* data;  // null where there is no bias
  int64_t rows;
  int32_t taps;

  __device__ __forceinline__ A* row(const Work& work, const Tile& tile) const {
    const int64_t slot = tile.head - work.first_head;
    const int64_t index = work.first_image * work.head[slot].tiles + tile.index;
    return data + (tile.head * rows + index) * taps;
  }
};

// Rows that the head with the most tiles needs.
inline int64_t bias_part_rows(const Problem& problem, int tile_h, int tile_w) {
  int64_t most = 0;
  for (int64_t h = 0; h < problem.heads; ++h) {
    most = std::max<int64_t>(most, head_tiles(problem, h, tile_h, tile_w).tiles);
  }
  return problem.batch * most;
}

// grad_bias = the sums of `parts`, cut for tiles of tile_h x tile_w; 0 where parts is null.
void launch_sum_bias_parts(const BackwardArgs& args, const void* parts, int tile_h, int tile_w,
                           Stream stream);

}  // namespace sdwa::cuda
