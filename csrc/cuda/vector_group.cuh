// Pixels on groups of lanes: any element type, window and head dimension.
//
// A group of `lanes` lanes (a power of two) holds the row of one pixel, kLaneFeatures per lane.
// Wide rows are read kWideAccess bytes at a time, those that are not so aligned element by element.
#pragma once

#include "cuda/work.cuh"

namespace sdwa::cuda {

constexpr int kLaneFeatures = 8;  // as many as kWideAccess bytes hold in half precision

template <typename T, bool kWide, int kFeatures = kLaneFeatures>
struct LaneRow {
  using A = Accumulation<T>;
  static constexpr int kPiece = kWide ? kWideAccess / sizeof(T) : 1;  // neighbouring features
  static constexpr int kPieces = kFeatures / kPiece;

  A feature[kFeatures];

  static __device__ __forceinline__ int first(int piece, int lane, int lanes) {
    return (piece * lanes + lane) * kPiece;
  }

  // Zeros where not ok and past head_dim.
  static __device__ __forceinline__ LaneRow load(const T* row, bool ok, int lane, int lanes,
                                                 int head_dim) {
    LaneRow result;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int f = first(piece, lane, lanes);
      const bool inside = ok && f < head_dim;
      A* const to = result.feature + piece * kPiece;
      if constexpr (!kWide) {
        to[0] = 0;
        if (inside) to[0] = widen(row[f]);
      } else {
        load_piece(row + f, inside, to);
      }
    }
    return result;
  }

  __device__ __forceinline__ void store(T* row, A factor, int lane, int lanes, int head_dim) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int f = first(piece, lane, lanes);
      const A* const from = feature + piece * kPiece;
      if constexpr (kWide && sizeof(T) == 4) {
        store_floats(row + f, from[0] * factor, from[1] * factor, from[2] * factor,
                     from[3] * factor, f < head_dim);
        continue;
      }
      if (f >= head_dim) continue;
      if constexpr (!kWide) {
        row[f] = narrow(from[0] * factor);
      } else if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint4*>(row + f) =
            make_uint4(pack<T>(from[0] * factor, from[1] * factor),
                       pack<T>(from[2] * factor, from[3] * factor),
                       pack<T>(from[4] * factor, from[5] * factor),
                       pack<T>(from[6] * factor, from[7] * factor));
      } else if constexpr (sizeof(T) == 8) {
        *reinterpret_cast<double2*>(row + f) = make_double2(from[0] * factor, from[1] * factor);
      }
    }
  }

  // This lane's part of <this, other>. A lane with twice kLaneFeatures adds up what two lanes
  // have, and in their order: scores are then the same bit for bit in all kernels that read wide
  // rows, as those that lse is of must be.
  __device__ __forceinline__ A dot(const LaneRow& other) const {
    constexpr int kLanesWorth = kFeatures / kLaneFeatures;
    static_assert(kLanesWorth == 1 || kLanesWorth == 2);
    A sum[kLanesWorth] = {};
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) {
      sum[i / kPiece % kLanesWorth] += feature[i] * other.feature[i];
    }
    return kLanesWorth == 1 ? sum[0] : sum[0] + sum[kLanesWorth - 1];
  }
  __device__ __forceinline__ void add(A weight, const LaneRow& other) {
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) feature[i] += weight * other.feature[i];
  }

 private:
  static __device__ __forceinline__ A widen(T x) {
    if constexpr (sizeof(T) == 8) {
      return x;
    } else {
      return to_float(x);
    }
  }
  static __device__ __forceinline__ T narrow(A x) {
    if constexpr (sizeof(T) == 2) {
      return T{static_cast<uint16_t>(pack<T>(x, 0.f))};
    } else {
      return x;
    }
  }
  static __device__ __forceinline__ void load_piece(const T* source, bool ok, A* to) {
    if constexpr (sizeof(T) == 2) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (ok) v = *reinterpret_cast<const uint4*>(source);
      const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[2 * i] = to_float(T{static_cast<uint16_t>(pairs[i])});
        to[2 * i + 1] = to_float(T{static_cast<uint16_t>(pairs[i] >> 16)});
      }
    } else if constexpr (sizeof(T) == 4) {
      float4 v = make_float4(0, 0, 0, 0);
      if (ok) v = *reinterpret_cast<const float4*>(source);
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
      double2 v = make_double2(0, 0);
      if (ok) v = *reinterpret_cast<const double2*>(source);
      to[0] = v.x, to[1] = v.y;
    }
  }
};

// How the groups of a warp cover its tile, each of them one pixel.
struct Groups {
  int32_t lanes;        // of a group
  int32_t tile_w_log2;  // pixels in a row of the tile, a power of two
};

struct GroupShape {
  Groups groups;
  int tile_h, tile_w;
};

inline GroupShape group_shape(int64_t head_dim) {
  if (head_dim > kWarpLanes * kLaneFeatures) {
    throw std::runtime_error("sdwa: head_dim must be at most " +
                             std::to_string(kWarpLanes * kLaneFeatures) +
                             " for the CUDA kernels, got " + std::to_string(head_dim));
  }
  int lanes = 1;
  while (lanes * kLaneFeatures < head_dim) lanes *= 2;
  // As square a tile as the groups of a warp make.
  const int groups = kWarpLanes / lanes;
  int tile_w = 1, tile_w_log2 = 0;
  while (tile_w * tile_w <= groups && 2 * tile_w <= groups) {
    tile_w *= 2;
    ++tile_w_log2;
  }
  return {{lanes, tile_w_log2}, groups / tile_w, tile_w};
}

struct GroupPlace {
  int lane;      // within the group
  int32_t y, x;  // the pixel

  static __device__ __forceinline__ GroupPlace of(const Groups& groups, const Tile& tile) {
    const int warp_lane = threadIdx.x % kWarpLanes;
    const int group = warp_lane / groups.lanes;
    const int row = group >> groups.tile_w_log2;
    const int column = group - (row << groups.tile_w_log2);
    return {warp_lane % groups.lanes, tile.y + row * tile.dilation_h,
            tile.x + column * tile.dilation_w};
  }
};

// A tensor's rows at the taps of a pixel, one after the other.
template <typename T>
struct Walk {
  const T* at;             // the first tap; it may lie off the map
  int64_t step_w, step_h;  // to the next tap, and from the last of a row of taps to the next row

  __device__ __forceinline__ Walk(const View<T>& view, const Tile& tile, const GroupPlace& place,
                                  const WindowAxis& window_h, const WindowAxis& window_w)
      : at(view.data + view.offset(tile, window_h.source(place.y, 0), window_w.source(place.x, 0))),
        step_w(view.width_stride * tile.dilation_w),
        step_h(view.height_stride * tile.dilation_h - window_w.size * step_w) {}
};

// Sums each over its group.
template <typename... A>
__device__ __forceinline__ void sum_over_group(int lanes, A&... x) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    ((x += __shfl_xor_sync(kFullWarp, x, step)), ...);
  }
}

}  // namespace sdwa::cuda
