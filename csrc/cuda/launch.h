// The launchers of the CUDA kernels, and which of them takes a call.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "device.cuh"
#include "problem.h"

namespace sdwa::cuda {

// Bytes that `launch_backward` needs beside the outputs.
size_t backward_workspace_bytes(const BackwardArgs& args);

void launch_forward(const ForwardArgs& args, Stream stream);
void launch_backward(const BackwardArgs& args, void* workspace, Stream stream);

// ---- inside

// Widest access in bytes, up to 16, to which every row of the tensor is aligned.
inline int row_alignment(const Problem& problem, const InputView& view) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(view.data) | 16;
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

// The tensors that a pass reads or writes by rows. The gradients are left out: they lie like `out`,
// in storage that PyTorch has aligned.
inline std::array<InputView, 4> row_views(const ForwardArgs& args) {
  return {args.query, args.key, args.value, contiguous_view(args.problem, args.out)};
}
inline std::array<InputView, 5> row_views(const BackwardArgs& args) {
  return {args.query, args.key, args.value, args.grad_out, contiguous_view(args.problem, args.out)};
}

template <typename Args>
int row_alignment(const Args& args) {
  int access = 16;
  for (const InputView& view : row_views(args)) {
    access = std::min(access, row_alignment(args.problem, view));
  }
  return access;
}

// Square windows of 3, 5 and 7 have kernels of their own.
inline bool has_special_window(const Problem& problem) {
  const int64_t k = problem.kernel_h;
  return problem.kernel_w == k && (k == 3 || k == 5 || k == 7);
}

// Whether places within a tile and its band differ by less than 2^31 elements.
inline bool has_short_steps(const Problem& problem, const InputView& view) {
  constexpr double kMostSteps = 16;
  double most = 0;
  for (int64_t h = 0; h < problem.heads; ++h) {
    const int64_t dilation_h = std::min(problem.dilation[2 * h], problem.height);
    const int64_t dilation_w = std::min(problem.dilation[2 * h + 1], problem.width);
    most = std::max(most, std::abs(static_cast<double>(dilation_h) * view.height_stride) +
                              std::abs(static_cast<double>(dilation_w) * view.width_stride));
  }
  return kMostSteps * most < INT32_MAX;
}

template <typename Args>
bool has_short_steps(const Args& args) {
  for (const InputView& view : row_views(args)) {
    if (!has_short_steps(args.problem, view)) return false;
  }
  return true;
}

template <typename Args>
bool takes_matrix_path(const Args& args) {
  const int access = args.problem.kernel_h == 3 ? 8 : 16;  // bytes
  return element_size(args.problem.dtype) == 2 && has_special_window(args.problem) &&
         row_alignment(args) >= access && has_short_steps(args);
}

void launch_forward_matrix(const ForwardArgs& args, Stream stream);
void launch_forward_vector(const ForwardArgs& args, Stream stream);
void launch_backward_matrix_bfloat16(const BackwardArgs& args, float* bias_parts, Stream stream);
void launch_backward_matrix_float16(const BackwardArgs& args, float* bias_parts, Stream stream);
void launch_backward_vector(const BackwardArgs& args, void* delta, void* bias_parts, Stream stream);

}  // namespace sdwa::cuda
