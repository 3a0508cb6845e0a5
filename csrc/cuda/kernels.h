// The families of kernels: what launches each, and what of a call decides which kernel that is.
//
// launch.cu chooses the family: the matrix unit where it fits, else groups of lanes ("vector"), and
// for windows that are not plain these ("free").
#pragma once

#include <algorithm>
#include <array>

#include "cuda/device.cuh"
#include "problem.h"
#include "specialize.h"

namespace sdwa::cuda {

void launch_forward_map(const ForwardArgs& args, Stream stream);
void launch_forward_matrix(const ForwardArgs& args, Stream stream);
void launch_forward_vector(const ForwardArgs& args, Stream stream);

// bias_parts: for the sums of the tiles (see bias_parts.cuh), null where grad_bias is.
void launch_backward_map(const BackwardArgs& args, float* bias_parts, Stream stream);
void launch_backward_matrix_bfloat16(const BackwardArgs& args, float* bias_parts, Stream stream);
void launch_backward_matrix_float16(const BackwardArgs& args, float* bias_parts, Stream stream);
// How the kernels on groups of lanes cut a backward call.
struct VectorTile {
  int tile_h, tile_w;
  bool needs_delta;
};
VectorTile backward_vector_tile(const BackwardArgs& args);
// delta: for (batch, height, width, heads) elements of the accumulation type, where it is needed.
void launch_backward_vector(const BackwardArgs& args, void* delta, void* bias_parts, Stream stream);

// Shifted and causal windows, of any element type.
void launch_forward_free(const ForwardArgs& args, Stream stream);
VectorTile backward_free_tile(const BackwardArgs& args);
void launch_backward_free(const BackwardArgs& args, void* delta, void* bias_parts, Stream stream);

// Calls f with the integral_constant of the window's side where windows of that size have kernels
// of their own, else with that of 0.
template <typename F>
auto with_window(const Problem& problem, F&& f) {
  const bool square = problem.kernel_h == problem.kernel_w;
  return specialize<3, 5, 7>(square ? static_cast<int>(problem.kernel_h) : 0, f);
}

// The tensors that a pass reads or writes by rows. The gradients are left out: they lie like `out`,
// in storage that PyTorch has aligned.
inline std::array<InputView, 4> row_views(const ForwardArgs& args) {
  return {args.query, args.key, args.value, contiguous_view(args.problem, args.out)};
}
inline std::array<InputView, 5> row_views(const BackwardArgs& args) {
  return {args.query, args.key, args.value, args.grad_out, contiguous_view(args.problem, args.out)};
}

// Widest access in bytes, up to kWideAccess, to which every row of the tensor is aligned.
inline int row_alignment(const Problem& problem, const InputView& view) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(view.data) | kWideAccess;
  const auto add = [&](int64_t size, int64_t stride) {
    if (size > 1) bits |= static_cast<uintptr_t>(stride) * element_size(problem.dtype);
  };
  add(problem.batch, view.batch_stride);
  add(problem.height, view.height_stride);
  add(problem.width, view.width_stride);
  add(problem.heads, view.head_stride);
  bits |= static_cast<uintptr_t>(problem.head_dim) * element_size(problem.dtype);
  return static_cast<int>(bits & (~bits + 1));
}

// The same for all rows of a call.
template <typename Args>
int row_alignment(const Args& args) {
  int access = kWideAccess;
  for (const InputView& view : row_views(args)) {
    access = std::min(access, row_alignment(args.problem, view));
  }
  return access;
}

}  // namespace sdwa::cuda
