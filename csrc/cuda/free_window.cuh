// Windows that are not centred on their queries, or not at the border: shifted and causal ones.
#pragma once

#include "cuda/vector_group.cuh"

namespace sdwa::cuda {

// The windows of a call, for both axes.
struct FreeWindows {
  int32_t before_h, before_w;
  bool shifted_h, shifted_w;
  bool by_distance;        // the bias
  int32_t bias_h, bias_w;  // extents of a head's bias

  static FreeWindows of(const Problem& problem) {
    return {static_cast<int32_t>(problem.before_h),
            static_cast<int32_t>(problem.before_w),
            problem.shifted_h,
            problem.shifted_w,
            problem.by_distance,
            static_cast<int32_t>(problem.bias_h()),
            static_cast<int32_t>(problem.bias_w())};
  }
};

// One coordinate of a pixel within its phase.
struct Place {
  WindowAxis axis;
  int32_t phase, index, length;  // of the phase: its number, the pixel's place, its pixels

  static __device__ __forceinline__ Place of(const WindowAxis& axis, int32_t pixel,
                                             int32_t extent) {
    const int32_t index = pixel / axis.dilation, phase = pixel - index * axis.dilation;
    return {axis, phase, index, axis.phase_length(extent, phase)};
  }
  // The map's coordinate of another place of the phase; it may lie off the map.
  __device__ __forceinline__ int32_t coordinate(int32_t other) const {
    return phase + other * axis.dilation;
  }
  __device__ __forceinline__ bool on_map(int32_t other) const { return on_axis(other, length); }

  // As a query: where its window starts.
  __device__ __forceinline__ int32_t start() const { return axis.start(index, length); }
  // As a key: the tap by which the query there reads it, which is one of the window's or not.
  __device__ __forceinline__ int32_t tap_of(int32_t query) const {
    return index - axis.start(query, length);
  }
  __device__ __forceinline__ bool is_tap(int32_t tap) const { return on_axis(tap, axis.size); }
};

struct Places {
  Place h, w;

  static __device__ __forceinline__ Places of(const Work& work, const FreeWindows& windows,
                                              const Tile& tile, const GroupPlace& place) {
    const WindowAxis axis_h{work.kernel_h, tile.dilation_h, windows.before_h, windows.shifted_h};
    const WindowAxis axis_w{work.kernel_w, tile.dilation_w, windows.before_w, windows.shifted_w};
    return {Place::of(axis_h, place.y, work.height), Place::of(axis_w, place.x, work.width)};
  }
};

// Place of a bias in those of a head: by tap, or by the distance from query to key.
__device__ __forceinline__ int32_t bias_index(const FreeWindows& windows, const Places& at,
                                              int32_t tap_h, int32_t tap_w, int32_t distance_h,
                                              int32_t distance_w) {
  if (!windows.by_distance) return tap_index(at.w.axis, tap_h, tap_w);
  return distance_index(at.h.axis.size, distance_h) * windows.bias_w +
         distance_index(at.w.axis.size, distance_w);
}

}  // namespace sdwa::cuda
