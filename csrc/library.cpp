// The operators' schemas. The operators' file of each device registers its implementation.
//
// Everything goes through PyTorch's stable ABI, so one build runs on every later PyTorch.
#include <torch/csrc/stable/library.h>

#define SDWA_FORWARD_INPUTS                                                                     \
  "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? key_mask, int[] kernel_size, " \
  "int[] dilation, float scale, bool masked, "
#define SDWA_FORWARD_OUTPUTS "(Tensor out, Tensor lse)"
#define SDWA_BACKWARD_INPUTS                                                                   \
  "Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor? bias, "  \
  "Tensor? key_mask, Tensor out, Tensor lse, int[] kernel_size, int[] dilation, float scale, " \
  "bool masked, "
#define SDWA_BACKWARD_OUTPUTS \
  "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)"

STABLE_TORCH_LIBRARY(sdwa, m) {
  // query, key, value: (batch, height, width, heads, head_dim), last stride 1
  // bias: (heads, kernel_h, kernel_w) in the accumulation type, of a causal axis the taps up to the
  // query; with shifted windows (heads, 2 kernel_h - 1, 2 kernel_w - 1), by distance
  // key_mask: (batch, height, width) bool; a key where it is false is left out of every softmax
  // kernel_size: [kernel_h, kernel_w]; dilation: [dilation_h, dilation_w] of each head, flattened
  // masked: taps off the map are left out; shifted, which must be masked too: windows move inwards
  // out: like query, contiguous; lse: (batch, height, width, heads) in the accumulation type
  m.def("attention_forward(" SDWA_FORWARD_INPUTS
        "bool shifted=False, bool causal_h=False, bool causal_w=False) -> " SDWA_FORWARD_OUTPUTS);
  // grad_bias is empty, of shape (0,), where bias is None
  m.def("attention_backward(" SDWA_BACKWARD_INPUTS
        "bool shifted=False, bool causal_h=False, bool causal_w=False) -> " SDWA_BACKWARD_OUTPUTS);
  // The same for compiled graphs, which are differentiated already: Python registers nothing that a
  // call of these would go through. No defaults, so that no argument is passed by its name.
  m.def("attention_forward_kernel(" SDWA_FORWARD_INPUTS
        "bool shifted, bool causal_h, bool causal_w) -> " SDWA_FORWARD_OUTPUTS);
  m.def("attention_backward_kernel(" SDWA_BACKWARD_INPUTS
        "bool shifted, bool causal_h, bool causal_w) -> " SDWA_BACKWARD_OUTPUTS);
}
