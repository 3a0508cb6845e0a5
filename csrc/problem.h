// One call of the operator, as plain data.
//
// No PyTorch type appears here, so that the CPU kernels, the CUDA kernels and their emulation on
// the host all take the same description. `checks.h` builds it from tensors.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "inline.h"

namespace sdwa {

struct Problem {
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t heads;
  int64_t head_dim;
  int64_t kernel_h;  // taps
  int64_t kernel_w;
  const int64_t* dilation;  // (heads, 2) on the host: dilation_h, dilation_w of each head, >= 1
  double scale;
  bool masked;  // a tap off the map is left out, instead of counting as a zero key and value
  Dtype dtype;
  // See WindowAxis; odd kernel_h and kernel_w with half of the taps before the query, and no shift,
  // are plain windows.
  int64_t before_h, before_w;
  bool shifted_h, shifted_w;
  bool by_distance;  // bias is by the distance from query to key, in taps, and not by tap

  // A causal window is the first half of a centred one; of shifted windows it has as many taps as
  // ever, the last of them at the query, and does not shift.
  SDWA_INLINE void set_windows(int64_t size_h, int64_t size_w, bool shifted, bool causal_h,
                               bool causal_w) {
    by_distance = shifted;
    kernel_h = causal_h && !shifted ? size_h / 2 + 1 : size_h;
    kernel_w = causal_w && !shifted ? size_w / 2 + 1 : size_w;
    before_h = causal_h && shifted ? size_h - 1 : size_h / 2;
    before_w = causal_w && shifted ? size_w - 1 : size_w / 2;
    shifted_h = shifted && !causal_h && size_h > 1;
    shifted_w = shifted && !causal_w && size_w > 1;
  }
  SDWA_INLINE bool plain() const {
    return !shifted_h && !shifted_w && !by_distance && kernel_h == 2 * before_h + 1 &&
           kernel_w == 2 * before_w + 1;
  }
  // Extents of a head's bias.
  SDWA_INLINE int64_t bias_h() const { return by_distance ? 2 * kernel_h - 1 : kernel_h; }
  SDWA_INLINE int64_t bias_w() const { return by_distance ? 2 * kernel_w - 1 : kernel_w; }
  SDWA_INLINE int64_t bias_size() const { return bias_h() * bias_w(); }
  // Taps that a window goes away from its query along a row, at most.
  SDWA_INLINE int64_t farthest_w() const {
    const int64_t after = kernel_w - 1 - before_w;
    return shifted_w ? kernel_w - 1 : before_w > after ? before_w : after;
  }
};

// A (batch, height, width, heads, head_dim) tensor that is only read. The stride of head_dim is 1,
// the others are in elements and free (packed projections, expanded dimensions).
struct InputView {
  const void* data;
  int64_t batch_stride;
  int64_t height_stride;
  int64_t width_stride;
  int64_t head_stride;
};

// The view of a contiguous tensor, such as every output.
SDWA_INLINE InputView contiguous_view(const Problem& problem, const void* data) {
  const int64_t width_stride = problem.heads * problem.head_dim;
  const int64_t height_stride = problem.width * width_stride;
  return {data, problem.height * height_stride, height_stride, width_stride, problem.head_dim};
}

// Outputs are contiguous. `bias`, `lse` and their gradients are float32, or float64 where dtype is.
struct ForwardArgs {
  Problem problem;
  InputView query, key, value;
  const void* bias;      // (heads, bias_h, bias_w), or null
  const bool* key_mask;  // (batch, height, width), contiguous, or null; false: the key is left out
  void* out;             // (batch, height, width, heads, head_dim)
  void* lse;             // (batch, height, width, heads)
};

struct BackwardArgs {
  Problem problem;
  InputView query, key, value, grad_out;
  const void* bias;      // (heads, bias_h, bias_w), or null
  const bool* key_mask;  // (batch, height, width), contiguous, or null; false: the key is left out
  const void* out;       // (batch, height, width, heads, head_dim), contiguous
  const void* lse;       // (batch, height, width, heads), contiguous
  const void* grad_lse;  // (batch, height, width, heads), contiguous, or null
  void* grad_query;      // (batch, height, width, heads, head_dim)
  void* grad_key;
  void* grad_value;
  void* grad_bias;  // (heads, bias_h, bias_w), or null where bias is
};

}  // namespace sdwa
