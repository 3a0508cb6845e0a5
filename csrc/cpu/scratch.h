// The memory that a thread's kernel works in.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/namespaces.h"

namespace sdwa::cpu::SDWA_VECTORS {

// Hands out pieces of one buffer, or, without a buffer, only adds up their sizes.
class Scratch {
 public:
  explicit Scratch(char* buffer) : buffer_(buffer) {}

  template <typename E>
  E* take(int64_t count) {
    char* piece = buffer_ == nullptr ? nullptr : buffer_ + used_;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(E));
    used_ += (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    return reinterpret_cast<E*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* buffer_;
  int64_t used_ = 0;
};

// The last few rows of a phase; `spare` numbers follow the last of them.
template <typename A>
class RowRing {
 public:
  RowRing(int32_t rows, int64_t row_size, Scratch& scratch, int64_t spare = 0)
      : rows_(rows),
        inverse_(~uint64_t(0) / rows + 1),
        row_size_(row_size),
        data_(scratch.take<A>(rows * row_size + spare)) {}

  A* row(int32_t index) const {
    // index % rows, without a division: exact for all 32-bit numbers (Lemire, Kaser, Kurz: "Faster
    // remainder by direct computation", 2019).
    __extension__ using Wide = unsigned __int128;
    const uint64_t fraction = inverse_ * static_cast<uint32_t>(index);
    return data_ + static_cast<int64_t>((Wide(fraction) * rows_) >> 64) * row_size_;
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

}  // namespace sdwa::cpu::SDWA_VECTORS
