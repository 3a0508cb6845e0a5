// Maps of at most 8 x 8 pixels on the matrix unit, for bfloat16 and float16.
//
// A block works on one map: it copies all of it to shared memory, once, and its warps share the
// rows. A warp's tile is two rows of the map, chosen so that their windows reach few others: two
// that are one dilation apart, which see kKernel + 1 rows between them, or the last rows of two
// phases, which see nothing below themselves. Its neighbourhood has a slot for each of the rows
// that they see, and the 8 columns of the map. With dilation 3 and a window of 3 on 7 rows:
//
//   warp   rows   slots     (rows of the map; -: none)
//   0      0, 3   - 0 3 6
//   1      1, 4   - 1 4 -
//   2      2, 5   - 2 5 -
//   3      6      3 6 - -
//
// All phases of a row lie side by side in a product, and the window picks those that count. Taps
// off the map have no product: what they add to the softmax is known without one.
//
// Why not larger maps: at 14 x 14 a row takes two products of 8 columns, so a warp with one row has
// as much to do as one with a tile of 4 x 4, and of 14 such warps and 16 tiles (dilations 1 and 2)
// the warps save an eighth. With 64 features a map takes 28 KB: the four of the backward pass do
// not fit an RTX 3090, and the two of the forward pass let it hold one block, which nothing works
// beside while it waits for them.
#pragma once

#include "cuda/matrix_tile.cuh"

namespace sdwa::cuda {

constexpr int kMapSide = 8, kMapWarps = kMapSide / 2;
constexpr int kMapFeatures = 64;  // of a token, at most

template <int kKernel>
struct MapNeighbourhood {
  static constexpr int kTileH = 2, kTileW = kMapSide;
  static constexpr int kRows = kKernel + 1, kColumns = kMapSide;
  static_assert(kRows % 2 == 0 && kRows <= kMapSide);
};

// The tile of one warp.
struct MapRows {
  uint32_t slots;   // four bits for each: its row of the map, any row where it has none
  uint32_t window;  // bits 2s and 2s + 1, for the second row 16 further on: slot s is in its window
  int32_t shift;    // from taps of the second row to slots; for the first one they are the same

  void take(const WindowAxis& window_h, int32_t height, const int32_t (&y)[2],
            int32_t first_shift) {
    shift = first_shift;
    for (int s = 0; s <= window_h.size; ++s) slots |= static_cast<uint32_t>(y[0]) << (4 * s);
    for (int half = 0; half < 2; ++half) {
      if (!on_axis(y[half], height)) continue;
      for (int32_t tap = 0; tap < window_h.size; ++tap) {
        const int32_t source = window_h.source(y[half], tap);
        if (!on_axis(source, height)) continue;
        const int s = half == 0 ? tap : tap + shift;
        slots = (slots & ~(15u << (4 * s))) | static_cast<uint32_t>(source) << (4 * s);
        window |= 3u << (16 * half + 2 * s);
      }
    }
  }
};

struct MapHead {
  int32_t dilation_h, dilation_w;
  int32_t inverse_w;    // n * inverse_w >> 8 is n / dilation_w for columns that are n apart
  uint32_t columns[2];  // bit 8x + c: column c is in the window of column x, and both on the map
  MapRows warp[kMapWarps];

  static MapHead of(const Problem& problem, int64_t head) {
    MapHead result{};
    const auto height = static_cast<int32_t>(problem.height);
    const auto width = static_cast<int32_t>(problem.width);
    const auto kernel = static_cast<int32_t>(problem.kernel_h);
    const auto dilation = [&](int axis, int32_t length) {
      return static_cast<int32_t>(std::min<int64_t>(problem.dilation[2 * head + axis], length));
    };
    const WindowAxis window_h{kernel, dilation(0, height)}, window_w{kernel, dilation(1, width)};
    result.dilation_h = window_h.dilation, result.dilation_w = window_w.dilation;
    result.inverse_w = 256 / window_w.dilation + 1;
    for (int32_t x = 0; x < width; ++x) {
      for (int32_t tap = 0; tap < kernel; ++tap) {
        const int32_t column = window_w.source(x, tap);
        if (on_axis(column, width)) result.columns[x / 4] |= 1u << (8 * (x % 4) + column);
      }
    }

    MapRows* next = result.warp;
    int singles = 0;
    int32_t single[kMapSide + 1];  // the last rows of phases with an odd number of them
    for (int32_t phase = 0; phase < window_h.dilation; ++phase) {
      for (int32_t y = phase; y < height; y += 2 * window_h.dilation) {
        if (y + window_h.dilation < height) {
          next++->take(window_h, height, {y, y + window_h.dilation}, 1);
        } else {
          single[singles++] = y;
        }
      }
    }
    single[singles] = height;
    for (int i = 0; i < singles; i += 2) {
      next++->take(window_h, height, {single[i], single[i + 1]}, window_h.reach() + 1);
    }
    return result;
  }
};

struct MapWork : LaunchPart {
  Divisor head_number;  // heads of this launch
  MapHead head[kHeadsPerLaunch];
};

// Warps of a block: two rows for each.
inline int map_warps(const Problem& problem) {
  return static_cast<int>(ceil_div(problem.height, 2));
}

// Calls run(work, blocks) for each launch that the call needs. Blocks are numbered image by image,
// heads side by side.
template <typename Args, typename Run>
void for_each_map_launch(const Args& args, Run&& run) {
  const Problem& problem = args.problem;
  MapWork work{};
  work.take_call(args);
  for (int64_t head = 0; head < problem.heads; head += kHeadsPerLaunch) {
    const int64_t heads = std::min<int64_t>(kHeadsPerLaunch, problem.heads - head);
    work.first_head = static_cast<int32_t>(head);
    work.launch_heads = static_cast<int32_t>(heads);
    work.head_number = Divisor::of(heads);
    for (int h = 0; h < heads; ++h) work.head[h] = MapHead::of(problem, head + h);
    const int64_t images_at_once = kMostPerLaunch / heads;
    for (int64_t image = 0; image < problem.batch; image += images_at_once) {
      const int64_t images = std::min(images_at_once, problem.batch - image);
      work.first_image = image;
      work.images = static_cast<int32_t>(images);
      run(work, images * heads);
    }
  }
}

// What the calling lane holds of its warp's tile: pixel g of either row, and columns 2j and 2j + 1
// of each slot. A half of the tile is a row here.
template <int kKernel>
struct MapPlace {
  using N = MapNeighbourhood<kKernel>;
  static constexpr int kReach = kKernel / 2;

  const LaunchPart& work;
  const MapHead& head;
  Tile map;  // its first pixel, in steps of one
  int warp, g, j;
  uint32_t slots;
  int32_t shift;
  uint32_t row_columns;  // bit c: column c is in the window of column g
  uint32_t window;       // bit 16 half + 2s + e: (slot s, column 2j + e) is
  bool tile_ok[2];       // the pixels are on the map
  int64_t token;         // of the first pixel of the map (see token_index)

  __device__ __forceinline__ MapPlace(const MapWork& work, uint32_t slot, uint32_t image)
      : work(work), head(work.head[slot]) {
    const int lane = threadIdx.x % kWarpLanes;
    warp = threadIdx.x / kWarpLanes;
    g = lane / 4;
    j = lane % 4;
    map = {};
    map.image = work.first_image + image;
    map.head = work.first_head + static_cast<int32_t>(slot);
    map.dilation_h = map.dilation_w = 1;
    token = first_token(work, map);

    const MapRows& rows = head.warp[warp];
    slots = rows.slots;
    shift = rows.shift;
    row_columns = head.columns[g / 4] >> (8 * (g % 4)) & 0xff;
    window = rows.window & (row_columns >> (2 * j) & 3) * 0x55555555u;
    tile_ok[0] = row_columns != 0;
    tile_ok[1] = row_columns != 0 && rows.window >> (16 + 2 * (shift + kReach)) & 1;
  }

  __device__ __forceinline__ int32_t slot_row(int s) const { return slots >> (4 * s) & 7; }
  // Row of the map; that of half 1 is any where it is off the map.
  __device__ __forceinline__ int32_t row(int half) const {
    return half == 0 ? slot_row(kReach) : slot_row(shift + kReach);
  }
  // Tokens from the first pixel of the map to pixel g of the row.
  __device__ __forceinline__ int32_t tile_step(int half) const {
    return (row(half) * work.width + g) * work.heads;
  }
  __device__ __forceinline__ int64_t tile_token(int half) const { return token + tile_step(half); }

  static __device__ __forceinline__ bool at(uint32_t bits, int half, int s, int e) {
    return bits >> (16 * half + 2 * s + e) & 1;
  }
  // The taps by which pixel g of the row sees slot s and column 2j + e, if they are in its window.
  __device__ __forceinline__ int32_t tap_y(int half, int s) const {
    return half == 0 ? s : s - shift;
  }
  __device__ __forceinline__ int32_t tap_x(int e) const {
    const int32_t dx = 2 * j + e - g, steps = abs(dx) * head.inverse_w >> 8;
    return kReach + (dx < 0 ? -steps : steps);
  }

  // Taps of a pixel that lie off the map.
  __device__ __forceinline__ int taps_off_map(int half) const {
    const uint32_t rows = head.warp[warp].window >> (16 * half) & 0xffff;
    return kKernel * kKernel - __popc(rows) / 2 * __popc(row_columns);
  }
  // Calls work(tap) for the calling lane's share of them.
  template <typename Run>
  __device__ __forceinline__ void for_each_tap_off_map(int half, Run&& run) const {
    const WindowAxis window_h{kKernel, head.dilation_h}, window_w{kKernel, head.dilation_w};
    for (int tap = j; tap < kKernel * kKernel; tap += 4) {
      const int ty = tap / kKernel, tx = tap - ty * kKernel;
      if (!on_axis(window_h.source(row(half), ty), work.height) ||
          !on_axis(window_w.source(g, tx), work.width)) {
        run(tap);
      }
    }
  }

  // `window` without the keys that the mask leaves out.
  __device__ __forceinline__ uint32_t kept() const {
    if (work.key_mask == nullptr) return window;
    const int lane = threadIdx.x % kWarpLanes;
    uint32_t pixels[2];  // bit 8 (y % 4) + x of word y / 4
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int y = 4 * i + lane / 8, x = lane % 8;
      const bool on_map = y < work.height && x < work.width;
      pixels[i] = __ballot_sync(kFullWarp, on_map && keeps_key(work, map, y, x));
    }
    uint32_t of_slots = 0;
#pragma unroll
    for (int s = 0; s < N::kRows; ++s) {
      const int y = slot_row(s);
      of_slots |= ((y < 4 ? pixels[0] : pixels[1]) >> (8 * (y % 4) + 2 * j) & 3) << (2 * s);
    }
    return window & of_slots * 0x10001u;
  }
};

// A map in shared memory.
template <typename T, int kKernel, typename Features>
struct MapFragments
    : Fragments<T, kKernel, Features, MapNeighbourhood<kKernel>, MapPlace<kKernel>> {
  using Base = Fragments<T, kKernel, Features, MapNeighbourhood<kKernel>, MapPlace<kKernel>>;
  using Place = MapPlace<kKernel>;
  using typename Base::Lane;
  using typename Base::Rows;
  using typename Base::Stage;
  using typename Base::TileRows;
  using typename Base::Weights;
  static_assert(Features::kSingle && Features::kAccess == kWideAccess);

  // Rows of a pair that has no second one are there too.
  SDWA_HD static constexpr int map_bytes(int height) {
    return Stage::row_offset((height + 1) / 2 * 2);
  }

  // What the calling lane copies of each map: its share of two neighbouring rows.
  struct Copies {
    static constexpr int kLanes = Stage::kUnits;         // that copy one pixel together
    static constexpr int kPixels = kWarpLanes / kLanes;  // at a time
    static constexpr int kSteps = kMapSide / kPixels;    // in a row

    int y, feature;
    int x[kSteps], target[kSteps];
    bool ok[2][kSteps];

    __device__ __forceinline__ explicit Copies(const Place& place) {
      const int lane = threadIdx.x % kWarpLanes, unit = lane % kLanes;
      y = 2 * place.warp;
      feature = unit * (Stage::kUnitBytes / static_cast<int>(sizeof(T)));
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        x[i] = i * kPixels + lane / kLanes;
        target[i] = Stage::row_offset(y) + Stage::unit_offset(x[i], unit);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          ok[row][i] = y + row < place.work.height && x[i] < place.work.width &&
                       feature < place.work.head_dim;
        }
      }
    }
    __device__ __forceinline__ void start(unsigned char* map, const Anchor<T>& tensor) const {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int32_t offset = tensor.offset(y, x[i]) + feature;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          copy_async<kWideAccess>(map + Stage::row_offset(row) + target[i],
                                  tensor.origin + (offset + row * tensor.step_h), ok[row][i]);
        }
      }
    }
  };

  // Pixels of slot s, as second factor.
  static __device__ __forceinline__ Rows slot_pixels(const unsigned char* map, const Lane& lane,
                                                     const Place& place, int s) {
    return Base::staged_row(map + Stage::row_offset(place.slot_row(s)), lane, 0);
  }
  // Pixels of the tile, as first factor.
  static __device__ __forceinline__ TileRows tile_pixels(const unsigned char* map, const Lane& lane,
                                                         const Place& place) {
    return Base::join(Base::staged_row(map + Stage::row_offset(place.row(0)), lane, 0),
                      Base::staged_row(map + Stage::row_offset(place.row(1)), lane, 0),
                      place.work.zero);
  }
  static __device__ __forceinline__ void gather(float (&result)[Base::kSlices][4],
                                                const Weights (&weights)[Base::N::kRows / 2],
                                                const unsigned char* map, const Lane& lane,
                                                const Place& place) {
    Base::gather(result, weights, map, lane,
                 [&](int s) { return Stage::row_offset(place.slot_row(s)); });
  }
};

// The block's map.
template <int kKernel>
__device__ __forceinline__ MapPlace<kKernel> find_map(const MapWork& work) {
  uint32_t slot = blockIdx.x;
  const uint32_t image = work.head_number.split(slot);
  return MapPlace<kKernel>(work, slot, image);
}

// Calls run(Features) with those that suit.
template <typename Run>
void with_map_features(int64_t head_dim, Run&& run) {
  if (head_dim <= 32) {
    run(Features<32, true, kWideAccess>{});
  } else {
    run(Features<64, true, kWideAccess>{});
  }
}

}  // namespace sdwa::cuda
