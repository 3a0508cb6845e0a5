// Window arithmetic: which pixel a tap reads, which query reads a pixel, what counts off the map.
//
// Plain C++, for the CPU kernels and for device code.
#pragma once

#include <cstdint>

#include "inline.h"

namespace sdwa {

// The window of one head along one axis: `size` taps, `dilation` pixels apart, `before` of them
// before the query. A shifted one moves inwards where it would leave the map.
struct WindowAxis {
  int32_t size;
  int32_t dilation;
  int32_t before;
  bool shifted;

  SDWA_HD constexpr WindowAxis(int32_t size, int32_t dilation, int32_t before, bool shifted)
      : size(size), dilation(dilation), before(before), shifted(shifted) {}
  // A centred one, of odd size.
  SDWA_HD constexpr WindowAxis(int32_t size, int32_t dilation)
      : WindowAxis(size, dilation, size / 2, false) {}

  // Centred, at the border as well. The functions below that speak of coordinates are for windows
  // that do not shift, `mirrored` is for plain ones.
  SDWA_HD constexpr bool plain() const { return !shifted && size == 2 * before + 1; }
  // Taps on either side of a plain window's centre.
  SDWA_HD constexpr int32_t reach() const { return size / 2; }
  // Taps after the query.
  SDWA_HD constexpr int32_t after() const { return size - 1 - before; }
  // Taps that a window goes away from its query at most.
  SDWA_HD constexpr int32_t farthest() const {
    return shifted ? size - 1 : before > after() ? before : after();
  }
  // Pixels from the query to what tap `tap` of [0, size) reads.
  SDWA_HD constexpr int32_t offset(int32_t tap) const { return (tap - before) * dilation; }
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

  // On a phase of `length` pixels, numbered from 0: what the first tap of the query at `query`
  // reads; it may lie off the phase, as may the last tap where the phase is shorter than the
  // window.
  SDWA_HD constexpr int32_t start(int32_t query, int32_t length) const {
    const int32_t first = query - before;
    if (!shifted) return first;
    const int32_t last = length - size;
    const int32_t start = first < last ? first : last;
    return start > 0 ? start : 0;
  }
  // The inverse: the first and the last query whose windows hold `key`; they may lie off the phase
  // where windows do not shift.
  SDWA_HD constexpr int32_t first_query(int32_t key) const {
    return shifted && key < size ? 0 : key - after();
  }
  SDWA_HD constexpr int32_t last_query(int32_t key, int32_t length) const {
    return shifted && key >= length - size ? length - 1 : key + before;
  }
  // Queries whose windows hold one key, at most.
  SDWA_HD constexpr int32_t most_queries() const { return shifted ? size + farthest() : size; }
};

SDWA_HD constexpr bool on_axis(int32_t coordinate, int32_t length) {
  return static_cast<uint32_t>(coordinate) < static_cast<uint32_t>(length);
}

// Padding rule. A tap on the map always counts; off the map it counts, as a zero key and a zero
// value, unless the problem is masked.
SDWA_HD constexpr bool tap_counts(bool on_map, bool masked) { return on_map || !masked; }

// Distances that a query can have to keys of windows of `size` taps, and the place among them of
// one of `taps` taps from query to key: a bias by distance is ordered so.
SDWA_HD constexpr int32_t distances(int32_t size) { return 2 * size - 1; }
SDWA_HD constexpr int32_t distance_index(int32_t size, int32_t taps) { return taps + size - 1; }

// Index of tap (tap_h, tap_w) in bias, (kernel_h, kernel_w) flattened.
SDWA_HD constexpr int32_t tap_index(const WindowAxis& w, int32_t tap_h, int32_t tap_w) {
  return tap_h * w.size + tap_w;
}

}  // namespace sdwa
