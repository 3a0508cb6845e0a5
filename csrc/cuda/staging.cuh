// A tile's neighbourhood in shared memory.
//
// Each warp copies the rows of its own neighbourhood, so that no warp waits for another. Copies run
// beside the work: the first product needs one wait, however many rows there are.
#pragma once

#include <algorithm>
#include <array>

#include "cuda/work.cuh"

namespace sdwa::cuda {

// kRows x kColumns pixels of kRowBytes (64 or 128) each, in units of 16 bytes. Units of
// neighbouring pixels are interchanged within lines of 128 bytes, so that lanes that read at the
// same time meet different banks: 8 lanes read 4 units of each of two neighbouring columns, or 2
// units of each of every second column.
template <int kRows_, int kColumns_, int kRowBytes_>
struct Staged {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kRowBytes = kRowBytes_;
  static constexpr int kUnitBytes = 16, kUnits = kRowBytes / kUnitBytes;
  static constexpr int kBytes = kRows * kColumns * kRowBytes;
  static constexpr int kLine = 128, kPixelsOfLine = kLine / kRowBytes;
  static_assert(kRowBytes == 64 || kRowBytes == 128);
  static_assert(kColumns % 2 == 0);  // so that rows begin with a line

  // Bytes from the first pixel of a row to a unit of one of its pixels.
  SDWA_HD static constexpr int unit_offset(int column, int unit) {
    const int place = ((column & 1) * 4) ^ unit ^ (column >> 1 & 3) * 2;
    return column / kPixelsOfLine * kLine + place * kUnitBytes;
  }
  // From the first row.
  SDWA_HD static constexpr int row_offset(int row) { return row * kColumns * kRowBytes; }
};

// The order in which pieces come to shared memory. As many as there are slots are on their way at
// once; piece i lies in slot i % slots.
template <typename Start>
class Pipeline {
 public:
  // start(piece, slot) starts the copies of a piece.
  __device__ __forceinline__ Pipeline(int pieces, int slots, Start start)
      : pieces_(pieces), slots_(slots), start_(start) {
    start_next();
    if (slots_ > 1) start_next();
  }
  // After this the piece, the next in order, may be read.
  __device__ __forceinline__ void wait(int piece) const {
    if (started_ > piece + 1) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncwarp();
  }
  // After this the piece must not be read any more.
  __device__ __forceinline__ void release() {
    __syncwarp();
    start_next();
  }
  __device__ __forceinline__ int slot(int piece) const { return slots_ > 1 ? piece % 2 : 0; }

 private:
  __device__ __forceinline__ void start_next() {
    if (started_ >= pieces_) return;
    start_(started_, slot(started_));
    commit_copies();
    ++started_;
  }

  int pieces_, slots_, started_ = 0;
  Start start_;
};

// How a kernel divides shared memory.
struct Stages {
  int slots;  // pieces that a warp holds at once: 1 or 2
  int warps;  // of a block
  int warp_bytes;
};

constexpr int kMostWarps = 4;  // of a block

// So many slots and warps that most warps are on a multiprocessor at once, of those which the
// registers allow with 1 and with 2 slots. Of equals the one with more slots, then with more warps
// of a block.
inline Stages choose_stages(int slot_bytes, int other_bytes, std::array<int, 2> resident_warps) {
  const SharedMemory memory = shared_memory();
  Stages best{};
  int most = 0;
  for (int slots = 2; slots >= 1; --slots) {
    const int warp_bytes = slots * slot_bytes + other_bytes;
    for (int warps = kMostWarps; warps >= 1; warps /= 2) {
      const int bytes = warps * warp_bytes;
      if (bytes > memory.block) continue;
      const int blocks = memory.multiprocessor / (bytes + memory.reserved);
      const int resident = std::min(blocks * warps, resident_warps[slots - 1]);
      if (resident > most) most = resident, best = {slots, warps, warp_bytes};
    }
  }
  return best;
}

}  // namespace sdwa::cuda
