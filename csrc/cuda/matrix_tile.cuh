// Tiles on the matrix unit, for bfloat16 and float16.
//
// A tile is 16 pixels of a phase, `kTileH` x `kTileW`. Its neighbourhood, which is the tile and its
// halo, has `kRows` rows of up to 8 columns. So 16 x 8 products of m16n8k16 give the scores of the
// tile with one row of the neighbourhood, and the window picks the useful ones: for 3 x 3 that is 9
// of 48 products, and still a small part of what the unit can do in the time the bytes take.
//
// The neighbourhood is staged in shared memory, the tile's own rows come straight from global
// memory, both by 16 bytes: the order of the summed index of a product is free as long as both
// factors agree, so each lane takes 8 neighbouring features where the layout in the manual has
// pairs. With g = lane / 4 and j = lane % 4:
//   rows   lane holds features 8j .. 8j+7 of each 32 of pixel g (a factor summed over features)
//   pairs  lane holds features g n .. g n + n-1 of each 8n of columns 2j and 2j + 1 of the
//          neighbourhood (a factor summed over pixels)
// and a 16 x 8 result holds pixels g and g + 8 of the tile at columns 2j and 2j + 1.
#pragma once

#include <numeric>
#include <type_traits>

#include "cuda/staging.cuh"

namespace sdwa::cuda {

constexpr int kTilePixels = 16;  // rows of the product that one instruction computes

template <int kKernel>
struct Neighbourhood {
  static_assert(kKernel == 3 || kKernel == 5 || kKernel == 7);
  static constexpr int kTileW = kKernel == 7 ? 2 : 4;
  static constexpr int kTileH = kTilePixels / kTileW;
  static constexpr int kRows = kTileH + kKernel - 1;
  static constexpr int kColumns = kTileW + kKernel - 1;
  // Columns of the instruction's product, and rows that it sums over two at a time.
  static_assert(kColumns <= 8 && kRows % 2 == 0);

  // Whether any pixel of the upper (0) or lower (1) half of the tile reaches a row of the
  // neighbourhood.
  SDWA_HD static constexpr bool reaches(int half, int row) {
    return half == 0 ? row < kTileH / 2 + kKernel - 1 : row >= kTileH / 2;
  }
  // Whether all of them do.
  SDWA_HD static constexpr bool always_reaches(int half, int row) {
    const int first = half * kTileH / 2, last = first + kTileH / 2 - 1;
    return row >= last && row < first + kKernel;
  }
};

// What the calling lane holds of the tile and of its neighbourhood. Places are steps of the
// dilation from the first pixel of the tile.
template <int kKernel>
struct LanePlace {
  using N = Neighbourhood<kKernel>;
  static constexpr WindowAxis kSteps{kKernel, 1};

  Tile tile;
  int32_t height, width;
  int g, j;
  int tile_dx;                           // of pixels g and g + 8 of the tile
  uint32_t rows_on_map, columns_on_map;  // of the neighbourhood, one bit each
  bool tile_ok[2];                       // pixels g and g + 8 of the tile are on the map
  int64_t token;                         // of the first pixel of the tile (see token_index)
  int32_t token_step_h, token_step_w;

  __device__ __forceinline__ LanePlace(const Work& work, const Tile& tile)
      : tile(tile), height(work.height), width(work.width) {
    const int lane = threadIdx.x % kWarpLanes;
    g = lane / 4;
    j = lane % 4;
    tile_dx = g % N::kTileW;
    const bool column_ok = tile.x + tile_dx * tile.dilation_w < width;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      tile_ok[half] = column_ok && tile.y + tile_dy(half) * tile.dilation_h < height;
    }
    // Each lane looks at one row and one column.
    const WindowAxis window_h{kKernel, tile.dilation_h}, window_w{kKernel, tile.dilation_w};
    const int32_t y = window_h.source(tile.y, lane), x = window_w.source(tile.x, lane);
    rows_on_map = __ballot_sync(kFullWarp, lane < N::kRows && on_axis(y, height));
    columns_on_map = __ballot_sync(kFullWarp, lane < N::kColumns && on_axis(x, width));
    token = first_token(work, tile);
    token_step_h = tile.dilation_h * work.width * work.heads;
    token_step_w = tile.dilation_w * work.heads;
  }

  __device__ __forceinline__ int tile_dy(int half) const {
    return g / N::kTileW + half * N::kTileH / 2;
  }
  // Tokens from the first pixel of the tile to pixel g + 8 half.
  __device__ __forceinline__ int32_t tile_step(int half) const {
    return tile_dy(half) * token_step_h + tile_dx * token_step_w;
  }
  __device__ __forceinline__ int64_t tile_token(int half) const { return token + tile_step(half); }
  __device__ __forceinline__ bool row_on_map(int t) const { return rows_on_map >> t & 1; }
  __device__ __forceinline__ bool column_on_map(int column) const {
    return columns_on_map >> column & 1;
  }

  // Tap by which pixel g + 8 half of the tile sees the neighbourhood pixel (row t, column 2j + e).
  // Outside of 0 .. kKernel - 1 that pixel is not in its window.
  __device__ __forceinline__ int tap_y(int half, int t) const { return t - tile_dy(half); }
  __device__ __forceinline__ int tap_x(int e) const { return 2 * j + e - tile_dx; }
  __device__ __forceinline__ int tap(int half, int t, int e) const {
    return tap_index({kKernel, 1}, tap_y(half, t), tap_x(e));
  }
  __device__ __forceinline__ bool in_window(int half, int t, int e) const {
    return (N::always_reaches(half, t) || static_cast<unsigned>(tap_y(half, t)) < kKernel) &&
           static_cast<unsigned>(tap_x(e)) < kKernel;
  }
};

// What of the neighbourhood counts for pixels g and g + 8 of the tile. Rows: those of the window,
// where a tap off the map does not count those on the map; a range in either case.
template <int kKernel>
struct Counting {
  using N = Neighbourhood<kKernel>;
  int32_t first[2];  // row that counts
  uint32_t rows[2];  // that count from there on
  bool column[2];    // 2j and 2j + 1

  __device__ __forceinline__ Counting(const Work& work, const LanePlace<kKernel>& place) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      column[e] = static_cast<uint32_t>(place.tap_x(e)) < kKernel &&
                  tap_counts(place.column_on_map(2 * place.j + e), work.masked);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) first[half] = place.tile_dy(half), rows[half] = kKernel;
    if (work.masked) leave_out_rows(place);
  }
  __device__ __forceinline__ bool at(int half, int t, int e) const {
    return N::reaches(half, t) && column[e] && static_cast<uint32_t>(t - first[half]) < rows[half];
  }

 private:
  __device__ __forceinline__ void leave_out_rows(const LanePlace<kKernel>& place) {
    const int above = __ffs(place.rows_on_map) - 1, on_map = __popc(place.rows_on_map);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int begin = max(first[half], above), end = min(first[half] + kKernel, above + on_map);
      first[half] = begin;
      rows[half] = max(0, end - begin);
    }
  }
};

// Which keys of the neighbourhood the mask leaves out, as the calling lane sees them.
template <int kKernel>
struct LeftOut {
  using N = Neighbourhood<kKernel>;
  // Row t, column 2j + e: bit 8 (t % 4) + e of word t / 4.
  uint32_t word[(N::kRows + 3) / 4];

  // Each lane looks at one pixel of each four rows of the neighbourhood.
  __device__ __forceinline__ LeftOut(const Work& work, const Tile& tile,
                                     const LanePlace<kKernel>& place) {
    const int row = threadIdx.x % kWarpLanes / 8, column = threadIdx.x % 8;
    const int32_t x = WindowAxis{kKernel, tile.dilation_w}.source(tile.x, column);
#pragma unroll
    for (int first = 0; first < N::kRows; first += 4) {
      const int32_t y = WindowAxis{kKernel, tile.dilation_h}.source(tile.y, first + row);
      const bool on_map = place.row_on_map(first + row) && place.column_on_map(column);
      const bool left_out = on_map && !keeps_key(work, tile, y, x);
      word[first / 4] = __ballot_sync(kFullWarp, left_out) >> (2 * place.j);
    }
  }
  __device__ __forceinline__ bool at(int t, int e) const {
    return word[t / 4] >> (8 * (t % 4) + e) & 1;
  }
};

// A tensor seen from the first pixel of the tile: 64 bits up to there, 32 within the tile.
template <typename T>
struct Anchor {
  const T* origin;
  int32_t step_h, step_w;

  __device__ __forceinline__ Anchor(const View<T>& view, const Tile& tile, const LaunchPart& work)
      : origin(rooted(view.data + view.origin(tile), work.zero)),
        step_h(static_cast<int32_t>(view.height_stride) * tile.dilation_h),
        step_w(static_cast<int32_t>(view.width_stride) * tile.dilation_w) {}

  __device__ __forceinline__ int32_t offset(int dy, int dx) const {
    return dy * step_h + dx * step_w;
  }
};

// Features are worked on kChunk (32 or 64) at a time; kSingle: one chunk holds them all. kAccess:
// bytes that a lane reads at a time.
template <int kChunk_, bool kSingle_, int kAccess_>
struct Features {
  static constexpr int kChunk = kChunk_, kAccess = kAccess_;
  static constexpr bool kSingle = kSingle_;

  static __device__ __forceinline__ int chunks(int head_dim) {
    return kSingle ? 1 : (head_dim + kChunk - 1) / kChunk;
  }
};

// Calls run(Features) with those that suit. kChunk: features at a time where there are more
// than 64. Windows of 3 have one more, for rows aligned to 8 bytes.
template <int kKernel, int kChunk, typename Run>
void with_features(int64_t head_dim, int access, Run&& run) {
  if constexpr (kKernel == 3) {
    if (access == 8) return run(Features<kChunk, false, 8>{});
  }
  if (head_dim <= 32) {
    run(Features<32, true, 16>{});
  } else if (head_dim <= 64) {
    run(Features<64, true, 16>{});
  } else {
    run(Features<kChunk, false, 16>{});
  }
}

// Calls run(true_type) where a kernel without a bias and a key mask is to run: windows of 3 have
// such ones, which need fewer registers.
template <int kKernel, typename Features, typename Args, typename Run>
void with_plain(const Args& args, Run&& run) {
  if constexpr (kKernel == 3 && Features::kSingle) {
    if (args.bias == nullptr && args.key_mask == nullptr) return run(std::true_type{});
  }
  run(std::false_type{});
}

// n / kDivisor for n up to 127.
template <int kDivisor>
SDWA_HD constexpr int small_quotient(int n) {
  static_assert(kDivisor == 6 || kDivisor == 8);
  return kDivisor == 8 ? n >> 3 : n * 171 >> 10;
}

// Of permute_bytes: a word of the lower, or upper, 16 bits of two.
constexpr uint32_t kLowerHalves = 0x5410, kUpperHalves = 0x7632;

template <typename T, int kKernel, typename Features, typename N_ = Neighbourhood<kKernel>,
          typename Place_ = LanePlace<kKernel>>
struct Fragments {
  using N = N_;
  using Place = Place_;
  static constexpr int kChunk = Features::kChunk, kAccess = Features::kAccess;
  using Stage = Staged<N::kRows, N::kColumns, kChunk * sizeof(T)>;
  static constexpr int kBlocks = kChunk / 32;  // 16-byte loads of a row
  static constexpr int kSlices = kChunk / 8;  // results of 8 features; also features of a pair load

  struct Rows {  // 8 pixels, as second factor
    uint32_t block[kBlocks][4];
  };
  struct TileRows {  // 16 pixels, as first factor
    uint32_t step[2 * kBlocks][4];
  };
  struct Weights {  // 16 pixels of the tile by two rows of the neighbourhood, as first factor
    uint32_t pair[4];
  };

  // Pixels g + 8 half of the tile. What is off the map is another pixel of the tile: its products
  // go nowhere.
  static __device__ __forceinline__ Rows half_tile(const Anchor<T>& tensor, const Place& place,
                                                   int half, int chunk, int head_dim) {
    const int32_t offset = tensor.offset(place.tile_dy(half), place.tile_dx);
    return load_row(tensor.origin, place.tile_ok[half] ? offset : 0, place.j, chunk, head_dim);
  }
  // The instruction takes its first factor from four neighbouring registers, which mix two pixels.
  // XOR with a zero that the compiler does not know makes copies that stay there; plain copies the
  // compiler would make again for each product.
  static __device__ __forceinline__ TileRows join(const Rows& upper, const Rows& lower,
                                                  uint32_t zero) {
    TileRows rows;
#pragma unroll
    for (int s = 0; s < 2 * kBlocks; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        rows.step[s][2 * i] = upper.block[s / 2][2 * (s % 2) + i] ^ zero;
        rows.step[s][2 * i + 1] = lower.block[s / 2][2 * (s % 2) + i] ^ zero;
      }
    }
    return rows;
  }
  static __device__ __forceinline__ TileRows tile_rows(const Anchor<T>& tensor, const Place& place,
                                                       int chunk, const Work& work) {
    return join(half_tile(tensor, place, 0, chunk, work.head_dim),
                half_tile(tensor, place, 1, chunk, work.head_dim), work.zero);
  }
  // The same rows of a tensor whose whole neighbourhood is staged; zeros off the map.
  static __device__ __forceinline__ TileRows staged_tile(const unsigned char* slot,
                                                         const Place& place, uint32_t zero) {
    const int column = place.tile_dx + kKernel / 2;
    Rows half[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const unsigned char* const row = slot + Stage::row_offset(place.tile_dy(h) + kKernel / 2);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const uint4 v = read_shared(
            reinterpret_cast<const uint4*>(row + Stage::unit_offset(column, 4 * b + place.j)));
        half[h].block[b][0] = v.x, half[h].block[b][1] = v.y;
        half[h].block[b][2] = v.z, half[h].block[b][3] = v.w;
      }
    }
    return join(half[0], half[1], zero);
  }

  // Column g of row t of the neighbourhood; what is off the map is a pixel of the tile.
  static __device__ __forceinline__ Rows neighbour_row(const Anchor<T>& tensor, const Place& place,
                                                       int t, int chunk, int head_dim) {
    const WindowAxis steps = Place::kSteps;
    const int32_t offset = tensor.offset(steps.offset(t), steps.offset(place.g));
    return load_row(tensor.origin, place.row_on_map(t) && place.column_on_map(place.g) ? offset : 0,
                    place.j, chunk, head_dim);
  }

  // Past head_dim other features are read: they meet zeros of the staged factor.
  static __device__ __forceinline__ Rows load_row(const T* origin, int32_t offset, int j, int chunk,
                                                  int head_dim) {
    Rows rows;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int i = 0; i < 8; i += kAccess / sizeof(T)) {
        const int feature = chunk + 32 * b + 8 * j + i;
        const T* const at = origin + (offset + (feature < head_dim ? feature : 0));
        if constexpr (kAccess == 16) {
          const uint4 v = load16(at);
          rows.block[b][0] = v.x, rows.block[b][1] = v.y;
          rows.block[b][2] = v.z, rows.block[b][3] = v.w;
        } else {
          const uint2 v = load8(at);
          rows.block[b][i / 2] = v.x, rows.block[b][i / 2 + 1] = v.y;
        }
      }
    }
    return rows;
  }

  // c += products of 16 pixels with 8 others
  static __device__ __forceinline__ void multiply(float (&c)[4], const TileRows& rows,
                                                  const Rows& other) {
#pragma unroll
    for (int s = 0; s < 2 * kBlocks; ++s) {
      multiply_accumulate<T>(c, rows.step[s], other.block[s / 2][2 * (s % 2)],
                             other.block[s / 2][2 * (s % 2) + 1]);
    }
  }

  // What the calling lane copies of a neighbourhood. The lanes of a warp copy a few pixels at a
  // time, which come to the start of a row again every kPeriod rows.
  struct Copies {
    static constexpr int kLanes = Stage::kRowBytes / kAccess;  // that copy one pixel together
    static constexpr int kPixels = kWarpLanes / kLanes;        // at a time
    static constexpr int kPeriod = std::lcm(kPixels, N::kColumns) / N::kColumns;
    static constexpr int kSteps = kPeriod * N::kColumns / kPixels;

    int feature;
    // In each step of the first period.
    int row[kSteps], column[kSteps], target[kSteps];
    uint32_t on_map[kSteps];  // bit t: the pixel that lies t rows further

    __device__ __forceinline__ explicit Copies(const Place& place) {
      const int lane = threadIdx.x % kWarpLanes;
      const int byte = lane % kLanes * kAccess;
      feature = byte / static_cast<int>(sizeof(T));
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int pixel = i * kPixels + lane / kLanes;
        row[i] = small_quotient<N::kColumns>(pixel);
        column[i] = pixel - row[i] * N::kColumns;
        target[i] = Stage::row_offset(row[i]) +
                    Stage::unit_offset(column[i], byte / Stage::kUnitBytes) +
                    byte % Stage::kUnitBytes;
        on_map[i] = place.column_on_map(column[i]) ? place.rows_on_map >> row[i] : 0;
      }
    }
    // Starts to copy kChunk features.
    __device__ __forceinline__ void start(unsigned char* slot, const Anchor<T>& tensor, int chunk,
                                          int head_dim) const {
      const WindowAxis steps = Place::kSteps;
      const uint32_t feature_mask = chunk + feature < head_dim ? ~0u : 0;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int32_t offset =
            tensor.offset(steps.offset(row[i]), steps.offset(column[i])) + chunk + feature;
#pragma unroll
        for (int t = 0; t < N::kRows; t += kPeriod) {
          if (t + kPeriod > N::kRows && t + row[i] >= N::kRows) continue;
          copy_async<kAccess>(slot + Stage::row_offset(t) + target[i],
                              tensor.origin + (offset + t * tensor.step_h),
                              on_map[i] & feature_mask & 1u << t);
        }
      }
    }
  };

  // Where the calling lane reads in a slot. Lanes of the columns that the neighbourhood does not
  // have read its last ones: their products go nowhere.
  struct Lane {
    int row[kBlocks], pair[2];

    __device__ __forceinline__ explicit Lane(const Place& place) {
      const int column = place.g < N::kColumns ? place.g : N::kColumns - 1;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) row[b] = Stage::unit_offset(column, 4 * b + place.j);
      const int first = 2 * place.j < N::kColumns ? 2 * place.j : N::kColumns - 2;
      const int byte = place.g * kSlices * static_cast<int>(sizeof(T));
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        pair[e] =
            Stage::unit_offset(first + e, byte / Stage::kUnitBytes) + byte % Stage::kUnitBytes;
      }
    }
  };

  // Column g of row t of the neighbourhood.
  static __device__ __forceinline__ Rows staged_row(const unsigned char* slot, const Lane& lane,
                                                    int t) {
    Rows rows;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint4 v =
          read_shared(reinterpret_cast<const uint4*>(slot + Stage::row_offset(t) + lane.row[b]));
      rows.block[b][0] = v.x, rows.block[b][1] = v.y;
      rows.block[b][2] = v.z, rows.block[b][3] = v.w;
    }
    return rows;
  }

  // result (16 pixels, kChunk features) += sum over the neighbourhood of weights times its pixels.
  // row_offset(t): bytes from the slot to row t.
  static __device__ __forceinline__ void gather(float (&result)[kSlices][4],
                                                const Weights (&weights)[N::kRows / 2],
                                                const unsigned char* slot, const Lane& lane) {
    gather(result, weights, slot, lane, [](int t) { return Stage::row_offset(t); });
  }
  template <typename RowOffset>
  static __device__ __forceinline__ void gather(float (&result)[kSlices][4],
                                                const Weights (&weights)[N::kRows / 2],
                                                const unsigned char* slot, const Lane& lane,
                                                RowOffset&& row_offset) {
#pragma unroll
    for (int u = 0; u < N::kRows / 2; ++u) {
      uint32_t pixel[2][2][kSlices / 2];
#pragma unroll
      for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const unsigned char* const at = slot + row_offset(2 * u + row) + lane.pair[e];
          if constexpr (kSlices == 8) {
            const uint4 v = read_shared(reinterpret_cast<const uint4*>(at));
            pixel[row][e][0] = v.x, pixel[row][e][1] = v.y;
            pixel[row][e][2] = v.z, pixel[row][e][3] = v.w;
          } else {
            const uint2 v = read_shared(reinterpret_cast<const uint2*>(at));
            pixel[row][e][0] = v.x, pixel[row][e][1] = v.y;
          }
        }
      }
      multiply_pairs(result, weights[u], pixel);
    }
  }
  // The same for two rows of the neighbourhood, pixel[row][column 2j + e].
  static __device__ __forceinline__ void multiply_pairs(
      float (&result)[kSlices][4], const Weights& weights,
      const uint32_t (&pixel)[2][2][kSlices / 2]) {
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const uint32_t selector = i % 2 ? kUpperHalves : kLowerHalves;
      multiply_accumulate<T>(result[i], weights.pair,
                             permute_bytes(pixel[0][0][i / 2], pixel[0][1][i / 2], selector),
                             permute_bytes(pixel[1][0][i / 2], pixel[1][1][i / 2], selector));
    }
  }

  // Writes a result of `gather` times a factor. A lane's slices lie side by side.
  static __device__ __forceinline__ void store(T* target, const float (&result)[kSlices][4],
                                               float factor, const LaunchPart& work,
                                               const Place& place, int chunk) {
    T* const origin = target + place.token * static_cast<uint32_t>(work.head_dim);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = place.tile_step(half) * work.head_dim;
      uint32_t packed[kSlices];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int i = 0; i < kSlices; i += 2) {
          packed[(e * kSlices + i) / 2] =
              pack<T>(result[i][2 * half + e] * factor, result[i + 1][2 * half + e] * factor);
        }
      }
      const auto store_at = [&](int i, auto&& store, auto&& words) {
        const int feature = chunk + 2 * (place.j * kSlices + i);
        store(origin + (row + feature), words, place.tile_ok[half] && feature < work.head_dim);
      };
#pragma unroll
      for (int i = 0; i < kSlices; i += kAccess / 4) {
        if constexpr (kAccess == 16) {
          store_at(i, store16, make_uint4(packed[i], packed[i + 1], packed[i + 2], packed[i + 3]));
        } else {
          store_at(i, store8, make_uint2(packed[i], packed[i + 1]));
        }
      }
    }
  }
};

// Over the four lanes that share a pixel of the tile.
__device__ __forceinline__ float sum_over_columns(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}
__device__ __forceinline__ float max_over_columns(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

}  // namespace sdwa::cuda
