// Tiles whose neighbourhood is staged in shared memory: float32, square windows of 3, 5 and 7, rows
// aligned to 16 bytes.
//
// A warp copies the neighbourhood of its tile, two tensors of it, into memory of its own and waits
// once; each pixel is then read there by every window that holds it. No warp waits for another.
//
// A group of kLanes lanes holds the row of one pixel, kStagedFeatures per lane: fewer lanes than
// with kLaneFeatures, so that fewer do the same softmax. The groups of a warp cover part of the
// tile at a time, in kPasses passes.
#pragma once

#include "cuda/kernels.h"
#include "cuda/vector_group.cuh"

namespace sdwa::cuda {

constexpr int kStagedFeatures = 16;  // on a lane
constexpr int kStagedWarps = 5;      // of a block at most

using StagedRow = LaneRow<float, true, kStagedFeatures>;

template <int kKernel_, int kLanes_>
struct StagedTile {
  static constexpr int kKernel = kKernel_, kLanes = kLanes_;
  static constexpr int kTaps = kKernel * kKernel, kReach = kKernel / 2;
  static constexpr int kGroups = kWarpLanes / kLanes;
  // Pixels of a pass. Groups are numbered by the bits of column and row in turn, so that four
  // neighbouring groups are a square.
  static constexpr int kPassW = kGroups >= 8 ? 4 : 2, kPassH = kGroups / kPassW;
  static constexpr int kPasses = kGroups == 16 ? 1 : 2;
  static constexpr int kTileH = kPasses * kPassH, kTileW = kPassW;
  static constexpr int kTilePixels = kTileH * kTileW;
  static constexpr int kRows = kTileH + kKernel - 1, kColumns = kTileW + kKernel - 1;
  static constexpr int kPixels = kRows * kColumns;  // of the neighbourhood
  static constexpr int kRowFloats = kLanes * kStagedFeatures;
  static constexpr int kTensorFloats = kPixels * kRowFloats;

  static_assert(kTileH <= kMostTileSide && kTileW <= kMostTileSide);

  // Eight lanes that read side by side are one group or more. Groups of fewer lanes read other
  // pixels' same features, which lie in the same banks; so each pixel's pieces are stored in an
  // order of its own, by XOR with this.
  static constexpr int kMostSwizzle = kLanes == 2 ? 3 : kLanes == 4 ? 1 : 0;
  SDWA_HD static constexpr int swizzle(int row, int column) {
    return (column % 2 + 2 * (row % 2)) & kMostSwizzle;
  }
};

// Where the calling lane works. Rows and columns are those of the neighbourhood, steps of the
// dilation from the first pixel of its halo.
template <typename S>
struct StagedPlace {
  Tile tile;
  int32_t height, width, head_dim;
  int warp_lane;
  int lane;         // within the group
  int row, column;  // of the first tap of the group's pixel in the first pass

  __device__ __forceinline__ StagedPlace(const Work& work, const Tile& tile)
      : tile(tile), height(work.height), width(work.width), head_dim(work.head_dim) {
    warp_lane = threadIdx.x % kWarpLanes;
    lane = warp_lane % S::kLanes;
    const int group = warp_lane / S::kLanes;
    column = (group & 1) | (group >> 1 & 2);
    row = (group >> 1 & 1) | (group >> 2 & 2);
  }

  // Coordinates on the map.
  __device__ __forceinline__ int32_t y(int row) const {
    return WindowAxis{S::kKernel, tile.dilation_h}.source(tile.y, row);
  }
  __device__ __forceinline__ int32_t x(int column) const {
    return WindowAxis{S::kKernel, tile.dilation_w}.source(tile.x, column);
  }
  __device__ __forceinline__ bool on_map(int row, int column) const {
    return on_axis(y(row), height) && on_axis(x(column), width);
  }
  __device__ __forceinline__ int64_t token(const Work& work, int row, int column) const {
    return token_index(work, tile, y(row), x(column));
  }
};

// The group's pixel of a pass, as it goes from pass to pass.
template <typename S>
struct StagedPixel {
  int row, column;  // of its first tap; its own are `kReach` further

  __device__ __forceinline__ explicit StagedPixel(const StagedPlace<S>& place)
      : row(place.row), column(place.column) {}
  __device__ __forceinline__ void next() { row += S::kPassH; }
  // Whether it is on the map, and in the tile.
  __device__ __forceinline__ bool ok(const StagedPlace<S>& place) const {
    return row < S::kTileH && place.on_map(row + S::kReach, column + S::kReach);
  }
  // Its number in the tile.
  __device__ __forceinline__ int in_tile() const { return row * S::kTileW + column; }
  __device__ __forceinline__ int64_t token(const Work& work, const StagedPlace<S>& place) const {
    return place.token(work, row + S::kReach, column + S::kReach);
  }
  // The row of a tensor there. XOR with a zero that the compiler does not know keeps it from
  // computing the offset anew for each piece.
  __device__ __forceinline__ StagedRow load(const View<float>& view, const StagedPlace<S>& place,
                                            uint32_t zero) const {
    const int64_t offset =
        view.offset(place.tile, place.y(row + S::kReach), place.x(column + S::kReach)) ^ zero;
    return StagedRow::load(view.data + offset, ok(place), place.lane, S::kLanes, place.head_dim);
  }
};

// A row of the staged neighbourhood from the column of the calling group on.
template <typename S>
struct StagedColumns {
  const float* piece[StagedRow::kPieces];

  __device__ __forceinline__ StagedColumns(const float* tensor, int row, int column, int lane) {
    const float* const pixel = tensor + (row * S::kColumns + column) * S::kRowFloats;
    const int swizzle = S::swizzle(row, column);
#pragma unroll
    for (int i = 0; i < StagedRow::kPieces; ++i) {
      const int fixed = i & ~S::kMostSwizzle, varied = (i & S::kMostSwizzle) ^ swizzle;
      piece[i] = pixel + (varied * S::kLanes + lane) * StagedRow::kPiece +
                 fixed * S::kLanes * StagedRow::kPiece;
    }
  }

  // The pixel `dx` columns further, of the tensor `skipped` tensors further.
  __device__ __forceinline__ StagedRow read(int dx, int skipped) const {
    StagedRow result;
#pragma unroll
    for (int i = 0; i < StagedRow::kPieces; ++i) {
      const float4 v = read_shared(reinterpret_cast<const float4*>(
          piece[i ^ (dx % 2 & S::kMostSwizzle)] + dx * S::kRowFloats + skipped * S::kTensorFloats));
      float* const to = result.feature + i * StagedRow::kPiece;
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
    return result;
  }
};

template <int kLanes>
__device__ __forceinline__ float sum_over_lanes(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

// What a warp keeps in shared memory beside its tensors.
template <typename S>
struct StagedScores {
  float bias[S::kTaps];         // zeros where there is none
  float exclusion[S::kPixels];  // see note_exclusions
};

// Calls work(i) for 0 <= i < kCount, each on one lane. All lanes go through the same rounds, so
// that the compiler knows the warp to be together behind them.
template <int kCount, typename Work>
__device__ __forceinline__ void for_each_of_warp(Work&& work) {
#pragma unroll 1
  for (int first = 0; first < kCount; first += kWarpLanes) {
    const int i = first + static_cast<int>(threadIdx.x % kWarpLanes);
    if (i < kCount) work(i);
  }
}

// Starts to copy the bias of a head.
template <typename S>
__device__ __forceinline__ void copy_bias(StagedScores<S>& shared, const float* bias,
                                          const StagedPlace<S>& place) {
  const float* const source = bias + place.tile.head * S::kTaps;
  for_each_of_warp<S::kTaps>(
      [&](int tap) { copy_async<4>(shared.bias + tap, source + tap, bias != nullptr); });
}

// Whether a call has keys that are left out of windows (other than by their bias).
__device__ __forceinline__ bool leaves_out(const Work& work) {
  return work.masked || work.key_mask != nullptr;
}

// What is added to the scores of each pixel of the neighbourhood: 0, or -inf where its key is left
// out. Only calls that leave keys out read it.
template <typename S>
__device__ __forceinline__ void note_exclusions(StagedScores<S>& shared, const Work& work,
                                                const StagedPlace<S>& place) {
  for_each_of_warp<S::kPixels>([&](int pixel) {
    const int row = pixel / S::kColumns, column = pixel % S::kColumns;
    const bool on_map = place.on_map(row, column);
    bool counts = tap_counts(on_map, work.masked);
    if (on_map && work.key_mask != nullptr) {
      counts = keeps_key(work, place.tile, place.y(row), place.x(column));
    }
    write_shared(shared.exclusion + pixel, counts ? 0.f : -INFINITY);
  });
  __syncwarp();
}

// Applies them to the scores of a row of taps, which begin at a pixel.
template <typename S>
__device__ __forceinline__ void exclude(float (&score)[S::kKernel], const StagedScores<S>& shared,
                                        int row, int column) {
  const float* const exclusion = shared.exclusion + row * S::kColumns + column;
#pragma unroll
  for (int tap_w = 0; tap_w < S::kKernel; ++tap_w) score[tap_w] += read_shared(exclusion + tap_w);
}

// Starts to copy the neighbourhood of a tensor to `target`: zeros off the map and past head_dim.
template <typename S>
__device__ __forceinline__ void copy_neighbourhood(float* target, const View<float>& view,
                                                   const StagedPlace<S>& place) {
  // Lanes beside each other copy the pieces of one row; the rest of the warp is spread over rows
  // and columns.
  constexpr int kRowPieces = S::kRowFloats / 4;
  constexpr int kLanesAlong = kRowPieces < kWarpLanes ? kRowPieces : kWarpLanes;
  constexpr int kAtOnce = kWarpLanes / kLanesAlong;
  constexpr int kStepW = kAtOnce > 1 ? 2 : 1, kStepH = kAtOnce / kStepW;
  static_assert(S::kRows % kStepH == 0 && S::kColumns % kStepW == 0);
  const int first_piece = place.warp_lane % kLanesAlong, pixel = place.warp_lane / kLanesAlong;
  const int first_column = pixel % kStepW, first_row = pixel / kStepW;

  const int64_t step_h = view.height_stride * (place.tile.dilation_h * kStepH);
  const int64_t step_w = view.width_stride * (place.tile.dilation_w * kStepW);
  const float* source = view.data +
                        view.offset(place.tile, place.y(first_row), place.x(first_column)) +
                        4 * first_piece;
#pragma unroll 1
  for (int row = first_row; row < S::kRows; row += kStepH) {
    const bool row_ok = on_axis(place.y(row), place.height);
    const float* at = source;
#pragma unroll
    for (int column = 0; column < S::kColumns; column += kStepW) {
      const int here = column + first_column;
      const int swizzle = S::swizzle(row, here) * S::kLanes;
      const bool ok = row_ok && on_axis(place.x(here), place.width);
#pragma unroll
      for (int first = 0; first < kRowPieces; first += kLanesAlong) {
        const int piece = first + first_piece;
        copy_async<16>(target + (row * S::kColumns + here) * S::kRowFloats + 4 * (piece ^ swizzle),
                       at + 4 * first, ok && 4 * piece < place.head_dim);
      }
      at += step_w;
    }
    source += step_h;
  }
}

// Warps of a block, so that a multiprocessor holds as many as its shared memory allows, and how
// many those are.
struct StagedWarps {
  int of_block, resident;

  static StagedWarps of(size_t warp_bytes, int most_resident) {
    const SharedMemory memory = shared_memory();
    StagedWarps best{};
    for (int warps = kStagedWarps; warps > 0; --warps) {
      const size_t bytes = warps * warp_bytes;
      if (bytes > static_cast<size_t>(memory.block)) continue;
      const int blocks = static_cast<int>(memory.multiprocessor / (bytes + memory.reserved));
      const int resident = std::min(blocks * warps, most_resident / warps * warps);
      if (resident > best.resident) best = {warps, resident};
    }
    return best;
  }
};

// Calls f with the StagedTile that suits a call, and returns what it returns, or false where there
// is none. The wider the rows, the less room there is for wide windows: kMost bounds the window's
// side times the lanes of a group.
template <int kMost, typename Args, typename F>
bool with_staged_tile(const Args& args, F&& f) {
  if (args.problem.dtype != Dtype::kFloat32 || row_alignment(args) < kWideAccess) return false;
  int lanes = 2;
  while (lanes * kStagedFeatures < args.problem.head_dim) lanes *= 2;
  return with_window(args.problem, [&](auto kernel) {
    return specialize<2, 4, 8, 16>(lanes, [&](auto lanes) {
      if constexpr (kernel > 0 && lanes > 0 && kernel * lanes <= kMost) {
        return f(StagedTile<kernel, lanes>{});
      } else {
        return false;
      }
    });
  });
}

}  // namespace sdwa::cuda
