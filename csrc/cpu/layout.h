// How rows of a map lie in scratch.
//
// For dilation r the map falls into sub-maps of pixels r apart, on which the window is dense. A row
// in scratch holds its sub-map rows one after the other, with zero tokens between them, so that a
// tap off the map reads zeros without a test, and a run of neighbouring queries reads neighbouring
// tokens:
//
//   slot:  margin | x = 0, r, 2r, ... | margin | x = 1, r + 1, ... | margin | ... | margin | spare
//
// Rows of tokens overlap, so that more of them fit into the first cache: the last margin of one is
// the first of the next, and what a run's absent queries read there does not matter.
#pragma once

#include <cstddef>

#include "../problem.h"
#include "../window_geometry.h"
#include "convert.h"
#include "products.h"

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

struct RowLayout {
  WindowAxis axis;
  int32_t width;
  int32_t slots;
  int32_t pitch;  // slots from one row of tokens to the next
  int32_t run_count;
  const Run* runs;

  // With `split`, short sub-map rows share runs.
  RowLayout(WindowAxis window, int32_t map_width, bool split, Scratch& scratch)
      : axis(window), width(map_width) {
    const int32_t margin = axis.reach();
    const int32_t phases = axis.phases(width);
    pitch = phases * margin + width;
    slots = pitch + margin + kRun;
    Run* run = scratch.take<Run>(width / kRun + phases);
    runs = run;
    run_count = 0;
    int32_t slot = margin;
    const auto add = [&](Run next) {
      if (run != nullptr) run[run_count] = next;
      ++run_count;
    };
    for (int32_t phase = 0; phase < phases; ++phase) {
      const int32_t length = axis.phase_length(width, phase);
      if (split && length == kRun / 2 && phase + 1 < phases) {
        // The next one is no longer.
        const int32_t next = axis.phase_length(width, phase + 1);
        add({slot, phase, length + next, Around::kSplit});
        slot += length + margin + next + margin;
        ++phase;
        continue;
      }
      for (int32_t i = 0; i < length; i += kRun) {
        const int32_t left = length - i;
        add({slot + i, phase + i * axis.dilation, left < kRun ? left : kRun,
             left == length && left <= kRun ? Around::kMargins : Around::kAnything});
      }
      slot += length + margin;
    }
  }
};

// Calls token(slot, x) for each slot of a pixel.
template <typename Token>
SDWA_INLINE void for_each_slot(const RowLayout& layout, Token&& token) {
  const WindowAxis axis = layout.axis;
  int32_t slot = axis.reach();
  for (int32_t phase = 0; phase < axis.phases(layout.width); ++phase, slot += axis.reach()) {
    for (int32_t x = phase; x < layout.width; x += axis.dilation) token(slot++, x);
  }
}

// The tensor of one dtype behind a view, at one batch entry and head.
template <typename T>
struct Plane {
  const T* data;
  int64_t height_stride;
  int64_t width_stride;

  Plane() = default;
  Plane(const InputView& view, int64_t batch, int64_t head)
      : data(static_cast<const T*>(view.data) + batch * view.batch_stride +
             head * view.head_stride),
        height_stride(view.height_stride),
        width_stride(view.width_stride) {}

  const T* row(int64_t y) const { return data + y * height_stride; }
};

// The last few rows of a sub-map; `spare` numbers follow the last of them.
template <typename A>
class RowRing {
 public:
  RowRing(int32_t rows, int64_t row_size, Scratch& scratch, int64_t spare = 0)
      : rows_(rows),
        inverse_((uint64_t(1) << 32) / rows + 1),
        row_size_(row_size),
        data_(scratch.take<A>(rows * row_size + spare)) {}

  // index % rows, without a division: exact as long as index * rows is below 2^32.
  A* row(int32_t index) const {
    const auto turns = static_cast<int32_t>((uint64_t(index) * inverse_) >> 32);
    return data_ + (index - turns * rows_) * row_size_;
  }
  // The row after the one that `row` returned.
  const A* next(const A* row) const {
    const A* const after = row + row_size_;
    return after == data_ + rows_ * row_size_ ? data_ : after;
  }
  A* data() const { return data_; }
  // Elements from here to the same place of another ring.
  int64_t shift_to(const RowRing& other) const { return other.data_ - data_; }
  int64_t size() const { return rows_ * row_size_; }

 private:
  int32_t rows_;
  uint64_t inverse_;
  int64_t row_size_;
  A* data_;
};

// A ring of rows of tokens, with zeros on all margins. They stay: only pixels are read into a row.
template <typename A>
RowRing<A> token_ring(int32_t rows, const RowLayout& layout, int stride, Scratch& scratch) {
  const WindowAxis axis = layout.axis;
  const int64_t margin = int64_t(axis.reach()) * stride;
  const int64_t row_size = int64_t(layout.pitch) * stride;
  const RowRing<A> ring(rows, row_size, scratch, margin + int64_t(kRun) * stride);
  if (ring.data() == nullptr) return ring;
  for (int32_t r = 0; r < rows; ++r) {
    A* at = ring.data() + r * row_size;
    std::memset(at, 0, sizeof(A) * margin);
    for (int32_t phase = 0; phase < axis.phases(layout.width); ++phase) {
      at += margin + int64_t(axis.phase_length(layout.width, phase)) * stride;
      std::memset(at, 0, sizeof(A) * margin);
    }
  }
  return ring;
}

template <typename T>
void read_row(const T* source, int64_t width_stride, const RowLayout& layout, int head_dim,
              int stride, Accumulation<T>* row) {
  for_each_slot(layout, [&](int32_t slot, int32_t x) __attribute__((always_inline)) {
    read_token(source + x * width_stride, head_dim, row + int64_t(slot) * stride);
  });
}

// head_dim rounded up to whole vectors.
template <typename A>
constexpr int token_stride(int64_t head_dim) {
  return static_cast<int>((head_dim + kLanes<A> - 1) / kLanes<A> * kLanes<A>);
}

}  // namespace sdwa::cpu::SDWA_ISA
