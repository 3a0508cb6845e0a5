// How rows of a map lie in scratch.
//
// For dilation r the map falls into sub-maps of pixels r apart, on which the window is dense. A row
// in scratch holds its sub-map rows one after the other, with zero tokens between them, so that a
// tap off the map reads zeros without a test, and a run of neighbouring queries reads neighbouring
// tokens:
//
//   slot:  margin | x = 0, r, 2r, ... | margin | x = 1, r + 1, ... | margin | ... | margin | spare
#pragma once

#include <cstddef>

#include "../problem.h"
#include "../window_geometry.h"
#include "convert.h"

namespace sdwa::cpu::SDWA_ISA {

// Hands out pieces of one buffer, or, without a buffer, only adds up their sizes.
class Scratch {
 public:
  explicit Scratch(char* buffer) : buffer_(buffer) {}

  template <typename E>
  E* take(int64_t count) {
    char* piece = buffer_ == nullptr ? nullptr : buffer_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(E)) + 63) / 64 * 64;
    return reinterpret_cast<E*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* buffer_;
  int64_t used_ = 0;
};

// kRun queries next to each other in a sub-map row; the last `kRun - count` of them are not there.
struct Run {
  int32_t slot;
  int32_t x;
  int32_t count;
};

struct RowLayout {
  WindowAxis axis;
  int32_t width;
  int32_t slots;
  int32_t run_count;
  const Run* runs;

  RowLayout(WindowAxis window, int32_t map_width, Scratch& scratch)
      : axis(window), width(map_width) {
    const int32_t margin = axis.reach();
    const int32_t phases = axis.phases(width);
    slots = (phases + 1) * margin + width + kRun;
    Run* run = scratch.take<Run>(width / kRun + phases);
    runs = run;
    run_count = 0;
    int32_t slot = margin;
    for (int32_t phase = 0; phase < phases; ++phase) {
      const int32_t length = axis.phase_length(width, phase);
      for (int32_t i = 0; i < length; i += kRun, ++run_count) {
        if (run == nullptr) continue;
        const int32_t left = length - i;
        run[run_count] = {slot + i, phase + i * axis.dilation, left < kRun ? left : kRun};
      }
      slot += length + margin;
    }
  }
};

// Calls token(slot, x) for each slot of a pixel and margin(slot, count) for each stretch of zeros.
template <typename Token, typename Margin>
SDWA_INLINE void for_each_slot(const RowLayout& layout, Token&& token, Margin&& margin) {
  const WindowAxis axis = layout.axis;
  const int32_t reach = axis.reach();
  const int32_t phases = axis.phases(layout.width);
  margin(0, reach);
  int32_t slot = reach;
  for (int32_t phase = 0; phase < phases; ++phase) {
    for (int32_t x = phase; x < layout.width; x += axis.dilation) token(slot++, x);
    margin(slot, reach);
    slot += reach;
  }
}

// The tensor of one dtype behind a view, at one batch entry and head.
template <typename T>
struct Plane {
  const T* data;
  int64_t height_stride;
  int64_t width_stride;

  Plane(const InputView& view, int64_t batch, int64_t head)
      : data(static_cast<const T*>(view.data) + batch * view.batch_stride +
             head * view.head_stride),
        height_stride(view.height_stride),
        width_stride(view.width_stride) {}

  const T* row(int64_t y) const { return data + y * height_stride; }
};

// The last few rows of a sub-map, as tokens of the accumulation type.
template <typename A>
class RowRing {
 public:
  RowRing(int32_t rows, int64_t row_size, Scratch& scratch)
      : rows_(rows), row_size_(row_size), data_(scratch.take<A>(rows * row_size)) {}

  A* row(int32_t index) const { return data_ + (index % rows_) * row_size_; }
  A* data() const { return data_; }
  int64_t size() const { return rows_ * row_size_; }

 private:
  int32_t rows_;
  int64_t row_size_;
  A* data_;
};

template <typename T>
void read_row(const T* source, int64_t width_stride, const RowLayout& layout, int head_dim,
              int stride, Acc<T>* row) {
  using A = Acc<T>;
  for_each_slot(
      layout,
      [&](int32_t slot, int32_t x) __attribute__((always_inline)) {
        read_token(source + x * width_stride, head_dim, row + int64_t(slot) * stride);
      },
      [&](int32_t slot, int32_t count) __attribute__((always_inline)) {
        A* const zeros = row + int64_t(slot) * stride;
        for (int32_t d = 0; d < count * stride; d += kLanes<A>) store<A>(zeros + d, Vec<A>{});
      });
}

// head_dim rounded up to whole vectors.
template <typename A>
constexpr int token_stride(int64_t head_dim) {
  return static_cast<int>((head_dim + kLanes<A> - 1) / kLanes<A> * kLanes<A>);
}

}  // namespace sdwa::cpu::SDWA_ISA
