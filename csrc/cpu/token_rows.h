// Rows of tokens: read from a tensor, and kept in scratch as vectors of the accumulation type.
#pragma once

#include "cpu/convert.h"
#include "cpu/map.h"
#include "cpu/scratch.h"
#include "problem.h"

namespace sdwa::cpu::SDWA_ISA {

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

// Elements from token to token in scratch: head_dim rounded up to whole vectors.
template <typename A>
constexpr int token_stride(int64_t head_dim) {
  return static_cast<int>((head_dim + kLanes<A> - 1) / kLanes<A> * kLanes<A>);
}

// A ring of rows of tokens, with zeros on all margins. They stay: only pixels are read into a row.
template <typename A>
RowRing<A> token_ring(int32_t rows, const RowLayout& layout, int stride, Scratch& scratch) {
  const WindowAxis axis = layout.axis;
  const int64_t margin = int64_t(layout.margin) * stride;
  const int64_t row_size = int64_t(layout.pitch) * stride;
  const RowRing<A> ring(rows, row_size, scratch, margin + int64_t(kStripSize) * stride);
  if (ring.data() == nullptr) return ring;
  for (int32_t r = 0; r < rows; ++r) {
    A* at = ring.data() + r * row_size;
    std::memset(at, 0, sizeof(A) * margin);
    for (int32_t phase = layout.phase_begin; phase < layout.phase_end; ++phase) {
      const int32_t pixels = axis.phase_length(layout.end_of(phase), phase) - layout.read_begin;
      at += margin + int64_t(pixels) * stride;
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

}  // namespace sdwa::cpu::SDWA_ISA
