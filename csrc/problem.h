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
  int64_t kernel_h;         // odd
  int64_t kernel_w;         // odd
  const int64_t* dilation;  // (heads, 2) on the host: dilation_h, dilation_w of each head, >= 1
  double scale;
  bool masked;  // a tap off the map is left out, instead of counting as a zero key and value
  Dtype dtype;
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
  const void* bias;      // (heads, kernel_h, kernel_w), or null
  const bool* key_mask;  // (batch, height, width), contiguous, or null; false: the key is left out
  void* out;             // (batch, height, width, heads, head_dim)
  void* lse;             // (batch, height, width, heads)
};

struct BackwardArgs {
  Problem problem;
  InputView query, key, value, grad_out;
  const void* bias;      // (heads, kernel_h, kernel_w), or null
  const bool* key_mask;  // (batch, height, width), contiguous, or null; false: the key is left out
  const void* out;       // (batch, height, width, heads, head_dim), contiguous
  const void* lse;       // (batch, height, width, heads), contiguous
  const void* grad_lse;  // (batch, height, width, heads), contiguous, or null
  void* grad_query;      // (batch, height, width, heads, head_dim)
  void* grad_key;
  void* grad_value;
  void* grad_bias;  // (heads, kernel_h, kernel_w), or null where bias is
};

}  // namespace sdwa
