#include "cuda/backward_matrix.cuh"

namespace sdwa::cuda {

void launch_backward_matrix_bfloat16(const BackwardArgs& args, float* bias_parts, Stream stream) {
  launch_type<BFloat16>(args, bias_parts, stream);
}

}  // namespace sdwa::cuda
