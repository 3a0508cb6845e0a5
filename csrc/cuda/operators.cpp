// The operators on CUDA tensors: from tensors to a launch on the current stream.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "checks.h"
#include "cuda/launch.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                             void** ret_stream);

#if __has_include("build_facts.h")  // setup.py writes it, Hugging Face's kernel-builder does not
#include "build_facts.h"
#else
#define SDWA_CUDA_ARCHITECTURES ""
#endif

namespace sdwa::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Integers = std::vector<int64_t>;

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

std::tuple<Tensor, Tensor> attention_forward(Tensor query, Tensor key, Tensor value,
                                             OptionalTensor bias, OptionalTensor key_mask,
                                             Integers kernel_size, Integers dilation, double scale,
                                             bool masked, bool shifted, bool causal_h,
                                             bool causal_w) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  ForwardCall call =
      prepare_forward(query, key, value, bias, key_mask,
                      {kernel_size, dilation, scale, masked, shifted, causal_h, causal_w});
  launch_forward(call.args, current_stream(query));
  return {call.out, call.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value,
    OptionalTensor bias, OptionalTensor key_mask, Tensor out, Tensor lse, Integers kernel_size,
    Integers dilation, double scale, bool masked, bool shifted, bool causal_h, bool causal_w) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  BackwardCall call =
      prepare_backward(grad_out, grad_lse, query, key, value, bias, key_mask, out, lse,
                       {kernel_size, dilation, scale, masked, shifted, causal_h, causal_w});
  const auto bytes = static_cast<int64_t>(backward_workspace_bytes(call.args));
  // From PyTorch's allocator, so that graph capture and streams are its concern.
  const Tensor workspace = torch::stable::new_empty(query, {bytes}, ScalarType::Byte);
  launch_backward(call.args, workspace.mutable_data_ptr(), current_stream(query));
  return {call.grad_query, call.grad_key, call.grad_value, call.grad_bias};
}

// As TORCH_CUDA_ARCH_LIST has them.
std::string cuda_architectures() { return SDWA_CUDA_ARCHITECTURES; }

// Of the CUDA runtime within this library, and of the newest CUDA that the driver knows: 12080 is
// 12.8. 0 where there is no driver.
std::tuple<int64_t, int64_t> cuda_versions() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  return {CUDART_VERSION, driver};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sdwa, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("attention_forward_kernel", TORCH_BOX(&attention_forward));
  m.impl("attention_backward_kernel", TORCH_BOX(&attention_backward));
}

STABLE_TORCH_LIBRARY_FRAGMENT(sdwa, m) {
  m.def("cuda_architectures() -> str");
  m.def("cuda_versions() -> (int, int)");
}

STABLE_TORCH_LIBRARY_IMPL(sdwa, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&cuda_architectures));
  m.impl("cuda_versions", TORCH_BOX(&cuda_versions));
}

}  // namespace sdwa::cuda
