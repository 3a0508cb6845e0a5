// The operators on a GPU: one call as plain data, launched on a stream.
//
// No CUDA type appears here, so that operators.cpp is plain C++: `stream` is a cudaStream_t.
#pragma once

#include <cstddef>

#include "problem.h"

namespace sdwa::cuda {

void launch_forward(const ForwardArgs& args, void* stream);

// Bytes that `launch_backward` needs beside the outputs.
size_t backward_workspace_bytes(const BackwardArgs& args);

void launch_backward(const BackwardArgs& args, void* workspace, void* stream);

}  // namespace sdwa::cuda
