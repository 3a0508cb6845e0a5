// How a problem is cut into tiles, one per warp.
//
// For a head with dilation r the map falls into r x r phases that share no key, and on each of them
// the window is an ordinary dense one. A tile lies in one phase. The tiles of a launch are numbered
// so that warps near in number work on the same part of an image, all heads and phases of it: what
// they share is then read from memory once.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/device.cuh"
#include "problem.h"
#include "window_geometry.h"

namespace sdwa::cuda {

// n / divisor for 0 <= n < 2^31 by one multiplication: a division takes a warp many instructions.
struct Divisor {
  uint32_t divisor, multiplier, shift;

  static Divisor of(int64_t divisor) {
    uint32_t bits = 0;
    while ((int64_t{1} << bits) < divisor) ++bits;
    const uint64_t power = uint64_t{1} << (31 + bits);
    const uint64_t multiplier = (power + divisor - 1) / divisor;
    return {static_cast<uint32_t>(divisor), static_cast<uint32_t>(multiplier), 31 + bits};
  }
  __device__ __forceinline__ uint32_t divide(uint32_t n) const {
    return static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> shift);
  }
  // n / divisor, leaving n % divisor in n
  __device__ __forceinline__ uint32_t split(uint32_t& n) const {
    const uint32_t quotient = divide(n);
    n -= quotient * divisor;
    return quotient;
  }
};

struct HeadTiles {
  int32_t dilation_h, dilation_w;
  int32_t tiles;      // of one image
  int32_t per_chunk;  // tiles of a chunk
  int32_t first;      // number of the first among all heads' tiles of a chunk
  Divisor tiles_w;    // in a row of tiles of one phase
  Divisor phases;     // of the map
  Divisor phases_w;   // in one row of phases
};

// Of one image and head: all heads of a launch then make fewer than 2^31 tiles.
constexpr int64_t kMostTiles = 1 << 27;
// Rows or columns of the largest tile of any kernel.
constexpr int64_t kMostTileSide = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether coordinates along an axis stay within 32 bits. A tile begins within one dilation of the
// map's end; from there it and its windows reach on.
inline bool has_short_coordinates(int64_t length, int64_t kernel, int64_t dilation) {
  constexpr int64_t kMost = INT32_MAX;
  const int64_t reach = kernel + kMostTileSide;
  return length <= kMost && reach <= kMost && length + reach * std::min(dilation, length) <= kMost;
}

// Tiles of one image of a head. They are numbered by rows of tiles: in one row phase by phase, so
// that all phases of a part of the map are near in number.
inline HeadTiles head_tiles(const Problem& problem, int64_t head, int tile_h, int tile_w) {
  // Beyond the map every dilation reaches only the centre tap.
  const int64_t dilation_h = std::min(problem.dilation[2 * head], problem.height);
  const int64_t dilation_w = std::min(problem.dilation[2 * head + 1], problem.width);
  const int64_t tiles_h = ceil_div(ceil_div(problem.height, dilation_h), tile_h);
  const int64_t tiles_w = ceil_div(ceil_div(problem.width, dilation_w), tile_w);
  const int64_t phases = dilation_h * dilation_w;
  const int64_t tiles = tiles_h * tiles_w * phases;
  if (tiles > kMostTiles) {
    throw std::runtime_error("sdwa: query has a map of " + std::to_string(problem.height) + " x " +
                             std::to_string(problem.width) + ", which is " + std::to_string(tiles) +
                             " tiles at the dilation of head " + std::to_string(head) +
                             "; the CUDA kernels take at most " + std::to_string(kMostTiles));
  }
  HeadTiles result{};
  result.dilation_h = static_cast<int32_t>(dilation_h);
  result.dilation_w = static_cast<int32_t>(dilation_w);
  result.tiles = static_cast<int32_t>(tiles);
  result.tiles_w = Divisor::of(tiles_w);
  result.phases = Divisor::of(phases);
  result.phases_w = Divisor::of(dilation_w);
  return result;
}

// So many that the parameters of every kernel stay within the 4 KiB that all toolkits allow.
constexpr int kHeadsPerLaunch = 32;
// Heads that find_tile looks through at once.
constexpr int kHeadsAtOnce = 8;
// Tiles in one launch: half of what a Divisor takes, which leaves room to round up.
constexpr int64_t kMostPerLaunch = INT32_MAX / 2;
// The fewest tiles of a head in a chunk: those that a chunk has and the head has not cost at most
// one in as many.
constexpr int64_t kChunkTiles = 32;

// What of a call one launch works on, however it is cut.
struct LaunchPart {
  int64_t first_image;
  int32_t images;  // of this launch
  int32_t height, width, heads, head_dim, kernel_h, kernel_w;
  int32_t first_head, launch_heads;  // of this launch
  int32_t masked;
  const bool* key_mask;  // (batch, height, width), or null
  uint32_t zero;         // 0, unknown to the compiler (see matrix_tile.cuh)

  template <typename Args>
  void take_call(const Args& args) {
    const Problem& problem = args.problem;
    height = static_cast<int32_t>(problem.height);
    width = static_cast<int32_t>(problem.width);
    heads = static_cast<int32_t>(problem.heads);
    head_dim = static_cast<int32_t>(problem.head_dim);
    kernel_h = static_cast<int32_t>(problem.kernel_h);
    kernel_w = static_cast<int32_t>(problem.kernel_w);
    masked = problem.masked;
    key_mask = args.key_mask;
  }
};

struct Work : LaunchPart {
  Divisor image_tiles;     // numbers that an image takes, all heads together
  Divisor chunk_tiles;     // and a chunk
  int32_t tile_h, tile_w;  // pixels of a tile
  HeadTiles head[kHeadsPerLaunch];

  // Numbers the tiles of the launch's heads: the images one after the other, each in chunks which
  // hold the same part of every head's tiles.
  void number_tiles() {
    int64_t fewest = kMostTiles;
    for (int h = 0; h < launch_heads; ++h) fewest = std::min<int64_t>(fewest, head[h].tiles);
    const int64_t chunks = std::max<int64_t>(1, fewest / kChunkTiles);
    int64_t first = 0;
    for (int h = 0; h < kHeadsPerLaunch; ++h) {
      head[h].per_chunk =
          h < launch_heads ? static_cast<int32_t>(ceil_div(head[h].tiles, chunks)) : 0;
      head[h].first = static_cast<int32_t>(h < launch_heads ? first : INT32_MAX);
      first += head[h].per_chunk;
    }
    chunk_tiles = Divisor::of(first);
    image_tiles = Divisor::of(first * chunks);
  }
};

// Calls run(work, blocks) for each launch that the call needs: one, unless it has more heads than
// the parameters hold or more tiles than a launch.
template <typename Args, typename Run>
void for_each_launch(const Args& args, int tile_h, int tile_w, int warps, Run&& run) {
  const Problem& problem = args.problem;
  Work work{};
  work.take_call(args);
  work.tile_h = tile_h;
  work.tile_w = tile_w;
  // What is refused is so before the first launch.
  for (int64_t h = kHeadsPerLaunch; h < problem.heads; ++h) head_tiles(problem, h, tile_h, tile_w);
  for (int64_t head = 0; head < problem.heads; head += work.launch_heads) {
    work.first_head = static_cast<int32_t>(head);
    work.launch_heads = 0;
    for (int64_t tiles = 0; work.launch_heads < kHeadsPerLaunch; ++work.launch_heads) {
      if (head + work.launch_heads == problem.heads) break;
      const HeadTiles next = head_tiles(problem, head + work.launch_heads, tile_h, tile_w);
      tiles += next.tiles;
      if (work.launch_heads > 0 && tiles > kMostPerLaunch / 2) break;
      work.head[work.launch_heads] = next;
    }
    work.number_tiles();
    const int64_t image_tiles = work.image_tiles.divisor;
    const int64_t images_at_once = std::max<int64_t>(1, kMostPerLaunch / image_tiles);
    for (int64_t image = 0; image < problem.batch; image += images_at_once) {
      const int64_t images = std::min(images_at_once, problem.batch - image);
      work.first_image = image;
      work.images = static_cast<int32_t>(images);
      run(work, ceil_div(images * image_tiles, warps));
    }
  }
}

// The tile that one warp works on.
struct Tile {
  bool numbered;  // the warp has a tile
  bool inside;    // the first pixel of the tile is on the map
  int32_t index;  // among those of its head in this launch
  int64_t image;
  int32_t head;
  int32_t y, x;  // first pixel; the others follow in steps of the dilation
  int32_t dilation_h, dilation_w;
};

// The tile of the calling warp.
__device__ __forceinline__ Tile find_tile(const Work& work) {
  uint32_t rest = blockIdx.x * (blockDim.x / kWarpLanes) + threadIdx.x / kWarpLanes;
  const uint32_t image = work.image_tiles.split(rest);
  const uint32_t chunk = work.chunk_tiles.split(rest);
  uint32_t slot = 0;
#pragma unroll
  for (int h = 1; h < kHeadsAtOnce; ++h) slot += rest >= static_cast<uint32_t>(work.head[h].first);
  for (int h = kHeadsAtOnce; h < work.launch_heads; ++h) {
    slot += rest >= static_cast<uint32_t>(work.head[h].first);
  }
  const HeadTiles& tiles = work.head[slot];
  rest += chunk * tiles.per_chunk - tiles.first;

  Tile tile;
  tile.numbered =
      image < static_cast<uint32_t>(work.images) && rest < static_cast<uint32_t>(tiles.tiles);
  tile.index = static_cast<int32_t>(image * tiles.tiles + rest);
  tile.image = work.first_image + image;
  tile.head = work.first_head + static_cast<int32_t>(slot);
  tile.dilation_h = tiles.dilation_h;
  tile.dilation_w = tiles.dilation_w;
  uint32_t phase = tiles.tiles_w.divide(rest);
  const uint32_t column = rest - phase * tiles.tiles_w.divisor;
  const uint32_t row = tiles.phases.split(phase);
  const uint32_t phase_y = tiles.phases_w.split(phase);
  tile.y = static_cast<int32_t>(phase_y + row * work.tile_h * tiles.dilation_h);
  tile.x = static_cast<int32_t>(phase + column * work.tile_w * tiles.dilation_w);
  tile.inside = tile.numbered && tile.y < work.height && tile.x < work.width;
  return tile;
}

// Whether the key mask, which there must be, keeps the key at a pixel of the map.
__device__ __forceinline__ bool keeps_key(const LaunchPart& work, const Tile& tile, int32_t y,
                                          int32_t x) {
  return work.key_mask[(tile.image * work.height + y) * work.width + x];
}

// A (batch, height, width, heads, head_dim) tensor that is only read.
template <typename T>
struct View {
  const T* data;
  int64_t batch_stride, height_stride, width_stride, head_stride;

  static View of(const InputView& view) {
    return {static_cast<const T*>(view.data), view.batch_stride, view.height_stride,
            view.width_stride, view.head_stride};
  }
  __device__ __forceinline__ int64_t offset(const Tile& tile, int32_t y, int32_t x) const {
    return tile.image * batch_stride + y * height_stride + x * width_stride +
           tile.head * head_stride;
  }
  // Of the tile's first pixel: numbers that are not negative multiply in fewer instructions.
  __device__ __forceinline__ int64_t origin(const Tile& tile) const {
    return tile.image * batch_stride + static_cast<uint32_t>(tile.y) * height_stride +
           static_cast<uint32_t>(tile.x) * width_stride +
           static_cast<uint32_t>(tile.head) * head_stride;
  }
};

// Index of an element of (batch, height, width, heads), such as lse, and of a row of out.
__device__ __forceinline__ int64_t token_index(const Work& work, const Tile& tile, int32_t y,
                                               int32_t x) {
  return ((tile.image * work.height + y) * work.width + x) * work.heads + tile.head;
}
// Of the tile's first pixel.
__device__ __forceinline__ int64_t first_token(const LaunchPart& work, const Tile& tile) {
  const auto size = [](int32_t n) { return static_cast<uint32_t>(n); };
  const int64_t row = tile.image * size(work.height) + size(tile.y);
  return (row * size(work.width) + size(tile.x)) * size(work.heads) + size(tile.head);
}

// The score of an inner product; bias is 0 where there is none. It is rounded here, once: a mere
// product may be contracted with what is subtracted from it, but lse is of rounded scores.
template <typename A>
__device__ __forceinline__ A score_of(A product, A scale, A bias) {
  return std::fma(product, scale, bias);
}

// A window may have nothing left: every score is -inf. Its out is 0, its lse -inf, and nothing goes
// back through it. The functions below see to that.

// Where the maximum of scores starts: finite, so that the difference from it is a number.
template <typename A>
constexpr A kLowestScore = std::numeric_limits<A>::lowest();

// The factor that makes probabilities of weights.
template <typename A>
__device__ __forceinline__ A inverse_sum(A sum) {
  return sum == 0 ? A(0) : A(1) / sum;
}

// lse for the backward pass: infinite, so that every probability is 0, where the pixel is off the
// map (not ok), or its window has nothing left.
template <typename A>
__device__ __forceinline__ A lse_or_infinity(const A* lse, int64_t token, bool ok) {
  if (!ok) return A(INFINITY);
  const A x = lse[token];
  return x < kLowestScore<A> ? A(INFINITY) : x;
}
// The same in powers of two.
template <typename A>
__device__ __forceinline__ A lse_log2(const A* lse, int64_t token, bool ok) {
  return lse_or_infinity(lse, token, ok) * log2e_v<A>;
}

// delta of sum(grad_out * out) and of what the functions above gave. The gradient of an lse of -inf
// may be anything, and is not read. lse tells of `ok` too, but the compiler then spills (sm_120).
template <typename A>
__device__ __forceinline__ A delta_of(A sum, A lse, const A* grad_lse, int64_t token, bool ok) {
  return ok && grad_lse != nullptr && lse != A(INFINITY) ? sum - grad_lse[token] : sum;
}

}  // namespace sdwa::cuda
