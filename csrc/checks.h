// From tensors to a plain `Problem`, through PyTorch's stable ABI.
//
// `sdwa.arguments` has validated what the user passed; the checks here keep a direct call of an
// operator from reading outside its tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace sdwa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, "sdwa: query must be float32, float64, bfloat16 or float16");
  }
}

// The type of lse, bias and everything summed: float64 for float64, else float32.
inline ScalarType accumulation_type(const Tensor& query) {
  return query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What went wrong in PyTorch's last function. Those of the stable ABI return a code alone; PyTorch
// before 2.13 has no function that gives the words, or gives none, and prints them.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

inline void check_allocated(AOTITorchError code) {
  if (code == AOTI_TORCH_SUCCESS) return;
  const auto said = torch_exception_get_what_without_backtrace;
  const char* const what = said == nullptr ? nullptr : said();
  STD_TORCH_CHECK(false, "sdwa: a result cannot be allocated: ",
                  what == nullptr || what[0] == '\0' ? "see stderr for the reason" : what);
}

// An uninitialised contiguous tensor like query, or of the accumulation type. It does what
// `torch::stable::new_empty` does, which looks its operator up by name at each call and so takes as
// long as a small kernel.
inline Tensor allocate(const Tensor& query, const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size() - 1; d > 0; --d) {
    strides[d - 1] = strides[d] * (shape[d] > 1 ? shape[d] : 1);
  }
  int32_t dtype = aoti_torch_dtype_float32();
  if (type == query.scalar_type()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(query.get(), &dtype));
  }
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(query.get(), &device_type));
  AtenTensorHandle tensor;
  check_allocated(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                           strides.data(), dtype, device_type,
                                           query.get_device_index(), &tensor));
  return Tensor(tensor);
}

// The kernels count taps, pixels and their sums in 32 bits.
inline constexpr int64_t kMaxKernelSize = 255;
inline constexpr int64_t kMaxExtent = int64_t(1) << 30;

// The arguments of the operators after the tensors.
struct WindowArguments {
  const std::vector<int64_t>& kernel_size;
  const std::vector<int64_t>& dilation;
  double scale;
  bool masked, shifted, causal_h, causal_w;
};

inline Problem make_problem(const Tensor& query, const WindowArguments& window) {
  const auto& [kernel_size, dilation, scale, masked, shifted, causal_h, causal_w] = window;
  STD_TORCH_CHECK(query.dim() == 5,
                  "sdwa: query must be (batch, height, width, heads, head_dim), got ", query.dim(),
                  " dimensions");
  STD_TORCH_CHECK(kernel_size.size() == 2 && kernel_size[0] > 0 && kernel_size[1] > 0 &&
                      kernel_size[0] <= kMaxKernelSize && kernel_size[1] <= kMaxKernelSize &&
                      (shifted || (kernel_size[0] % 2 == 1 && kernel_size[1] % 2 == 1)),
                  "sdwa: kernel_size must hold two numbers up to ", kMaxKernelSize,
                  ", odd ones unless windows are shifted");
  STD_TORCH_CHECK(masked || !shifted, "sdwa: shifted windows must be masked");
  STD_TORCH_CHECK(query.size(1) >= 1 && query.size(2) >= 1 && query.size(1) <= kMaxExtent &&
                      query.size(2) <= kMaxExtent,
                  "sdwa: query must have height and width from 1 to ", kMaxExtent, ", got ",
                  query.size(1), " and ", query.size(2));
  STD_TORCH_CHECK(query.size(3) >= 1 && query.size(4) >= 1,
                  "sdwa: query must have heads and head_dim of at least 1, got ", query.size(3),
                  " and ", query.size(4));
  STD_TORCH_CHECK(dilation.size() == static_cast<size_t>(2 * query.size(3)),
                  "sdwa: dilation must hold two numbers per head");
  for (int64_t d : dilation) STD_TORCH_CHECK(d >= 1, "sdwa: dilation must be at least 1, got ", d);
  Problem problem{};
  problem.batch = query.size(0);
  problem.height = query.size(1);
  problem.width = query.size(2);
  problem.heads = query.size(3);
  problem.head_dim = query.size(4);
  problem.dilation = dilation.data();
  problem.scale = scale;
  problem.masked = masked;
  problem.dtype = dtype_of(query);
  problem.set_windows(kernel_size[0], kernel_size[1], shifted, causal_h, causal_w);
  return problem;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

inline InputView input_view(const Tensor& tensor, const Tensor& query, const char* name) {
  STD_TORCH_CHECK(same_shape(tensor, query) && tensor.scalar_type() == query.scalar_type() &&
                      tensor.is_cuda() == query.is_cuda() &&
                      tensor.get_device_index() == query.get_device_index(),
                  "sdwa: ", name, " must have the shape, dtype and device of query");
  // Nothing makes an empty tensor contiguous, and nothing of it is read.
  STD_TORCH_CHECK(tensor.stride(4) == 1 || tensor.size(4) <= 1 || tensor.numel() == 0,
                  "sdwa: ", name, " must have stride 1 in head_dim, got ", tensor.stride(4));
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

// Data of an optional contiguous tensor of that type, or null.
inline const void* optional_data(const std::optional<Tensor>& tensor, const Tensor& query,
                                 ScalarType type, std::vector<int64_t> shape, const char* name) {
  if (!tensor) return nullptr;
  bool fits = tensor->scalar_type() == type && tensor->is_contiguous() &&
              tensor->is_cuda() == query.is_cuda() &&
              tensor->get_device_index() == query.get_device_index() &&
              tensor->dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; fits && d < tensor->dim(); ++d) fits = tensor->size(d) == shape[d];
  STD_TORCH_CHECK(fits, "sdwa: ", name,
                  " must be contiguous, of its type and shape, and on the device of query");
  return tensor->const_data_ptr();
}

inline const bool* key_mask_data(const std::optional<Tensor>& key_mask, const Tensor& query) {
  return static_cast<const bool*>(optional_data(key_mask, query, ScalarType::Bool,
                                                {query.size(0), query.size(1), query.size(2)},
                                                "key_mask"));
}

struct ForwardCall {
  ForwardArgs args;
  Tensor out, lse;
};

// Checks the inputs, allocates the outputs, and describes the call.
inline ForwardCall prepare_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const std::optional<Tensor>& bias,
                                   const std::optional<Tensor>& key_mask,
                                   const WindowArguments& window) {
  Problem problem = make_problem(query, window);
  Tensor out = allocate(
      query, {problem.batch, problem.height, problem.width, problem.heads, problem.head_dim},
      query.scalar_type());
  Tensor lse = allocate(query, {problem.batch, problem.height, problem.width, problem.heads},
                        accumulation_type(query));
  ForwardArgs args{problem,
                   input_view(query, query, "query"),
                   input_view(key, query, "key"),
                   input_view(value, query, "value"),
                   optional_data(bias, query, accumulation_type(query),
                                 {problem.heads, problem.bias_h(), problem.bias_w()}, "bias"),
                   key_mask_data(key_mask, query),
                   out.mutable_data_ptr(),
                   lse.mutable_data_ptr()};
  return {args, out, lse};
}

struct BackwardCall {
  BackwardArgs args;
  Tensor grad_query, grad_key, grad_value, grad_bias;
};

inline BackwardCall prepare_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse,
                                     const Tensor& query, const Tensor& key, const Tensor& value,
                                     const std::optional<Tensor>& bias,
                                     const std::optional<Tensor>& key_mask, const Tensor& out,
                                     const Tensor& lse, const WindowArguments& window) {
  Problem problem = make_problem(query, window);
  STD_TORCH_CHECK(out.is_contiguous(), "sdwa: out must be contiguous");
  std::vector<int64_t> shape{problem.batch, problem.height, problem.width, problem.heads,
                             problem.head_dim};
  std::vector<int64_t> lse_shape{problem.batch, problem.height, problem.width, problem.heads};
  Tensor grad_query = allocate(query, shape, query.scalar_type());
  Tensor grad_key = allocate(query, shape, query.scalar_type());
  Tensor grad_value = allocate(query, shape, query.scalar_type());
  std::vector<int64_t> bias_shape{problem.heads, problem.bias_h(), problem.bias_w()};
  const ScalarType accumulation = accumulation_type(query);
  Tensor grad_bias = allocate(query, bias ? bias_shape : std::vector<int64_t>{0}, accumulation);
  BackwardArgs args{problem,
                    input_view(query, query, "query"),
                    input_view(key, query, "key"),
                    input_view(value, query, "value"),
                    input_view(grad_out, query, "grad_out"),
                    optional_data(bias, query, accumulation, bias_shape, "bias"),
                    key_mask_data(key_mask, query),
                    input_view(out, query, "out").data,
                    optional_data(lse, query, accumulation, lse_shape, "lse"),
                    optional_data(grad_lse, query, accumulation, lse_shape, "grad_lse"),
                    grad_query.mutable_data_ptr(),
                    grad_key.mutable_data_ptr(),
                    grad_value.mutable_data_ptr(),
                    bias ? grad_bias.mutable_data_ptr() : nullptr};
  return {args, grad_query, grad_key, grad_value, grad_bias};
}

}  // namespace sdwa
