// The gradient of the bias, without atomics: every warp writes the sums of its tile, and another
// kernel adds them up in a fixed order.
#pragma once

#include "cuda/work.cuh"

namespace sdwa::cuda {

// (heads, rows, taps), where taps are all elements of a head's bias: a row for each tile of each
// image, and then those of BiasRows.
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

// As the tile's height and width: the map is one tile, whatever the dilation.
constexpr int kWholeMap = 0;

// Rows that one image of a head has.
inline int64_t image_rows(const Problem& problem, int64_t head, int tile_h, int tile_w) {
  return tile_h == kWholeMap ? 1 : head_tiles(problem, head, tile_h, tile_w).tiles;
}

// Threads of a block that adds up, and values that each loads at once.
constexpr int kSumThreads = 256, kSumLoads = 8;
// Blocks that occupy every multiprocessor of the largest GPU.
constexpr int64_t kSumBlocks = 512;

// Rows of each head: those of the tiles, as many as the head with the most tiles needs, and behind
// them a sum for each of the parts that blocks share them in, unless there is one.
struct BiasRows {
  int64_t tiles, splits;

  static BiasRows of(const Problem& problem, int tile_h, int tile_w) {
    int64_t tiles = 0;
    for (int64_t h = 0; h < problem.heads; ++h) {
      tiles = std::max(tiles, image_rows(problem, h, tile_h, tile_w));
    }
    tiles *= problem.batch;
    const int64_t taps = problem.bias_size();
    const int64_t rows_at_once = std::max<int64_t>(1, kSumThreads / taps) * kSumLoads;
    const int64_t most = std::max<int64_t>(1, kSumBlocks / problem.heads);
    return {tiles, std::min(most, ceil_div(tiles, rows_at_once))};
  }
  int64_t all() const { return splits == 1 ? tiles : tiles + splits; }
};

// Rows of BiasParts.
inline int64_t bias_part_rows(const Problem& problem, int tile_h, int tile_w) {
  return BiasRows::of(problem, tile_h, tile_w).all();
}

// grad_bias = the sums of `parts`, cut for tiles of tile_h x tile_w; 0 where parts is null.
void launch_sum_bias_parts(const BackwardArgs& args, void* parts, int tile_h, int tile_w,
                           Stream stream);

}  // namespace sdwa::cuda
