// Window arithmetic: which pixel a tap reads, which query reads a pixel, what counts off the map.
//
// Plain C++, for the CPU kernels and for device code.
#pragma once

#include <cstdint>

#include "inline.h"

namespace sdwa {

// The window of one head along one axis: `size` taps (odd), `dilation` pixels apart, centred.
struct WindowAxis {
  int32_t size;
  int32_t dilation;

  // Taps on either side of the centre.
  SDWA_HD constexpr int32_t reach() const { return size / 2; }
  // Pixels from the query to what tap `tap` of [0, size) reads.
  SDWA_HD constexpr int32_t offset(int32_t tap) const { return (tap - reach()) * dilation; }
  // The coordinate that `tap` of the query at `query` reads; it may lie off the map.
  SDWA_HD constexpr int32_t source(int32_t query, int32_t tap) const { return query + offset(tap); }
  // The inverse: the query whose tap `tap` reads `source`; it may lie off the map.
  SDWA_HD constexpr int32_t query(int32_t source, int32_t tap) const {
    return source - offset(tap);
  }
  // The tap that looks back: source(query(p, t), t) == p, and query(p, t) == source(p,
  // mirrored(t)).
  SDWA_HD constexpr int32_t mirrored(int32_t tap) const { return size - 1 - tap; }

  // Pixels of equal coordinate modulo the dilation form a phase, on which the window is dense.
  SDWA_HD constexpr int32_t phases(int32_t length) const {
    return dilation < length ? dilation : length;
  }
  // Pixels of phase `phase` of [0, phases(length)) on an axis of `length` pixels.
  SDWA_HD constexpr int32_t phase_length(int32_t length, int32_t phase) const {
    return (length - phase + dilation - 1) / dilation;
  }
};

SDWA_HD constexpr bool on_axis(int32_t coordinate, int32_t length) {
  return static_cast<uint32_t>(coordinate) < static_cast<uint32_t>(length);
}

// Padding rule. A tap on the map always counts; off the map it counts, as a zero key and a zero
// value, unless the problem is masked.
SDWA_HD constexpr bool tap_counts(bool on_map, bool masked) { return on_map || !masked; }

// Index of tap (tap_h, tap_w) in bias, (kernel_h, kernel_w) flattened.
SDWA_HD constexpr int32_t tap_index(const WindowAxis& w, int32_t tap_h, int32_t tap_w) {
  return tap_h * w.size + tap_w;
}

}  // namespace sdwa
