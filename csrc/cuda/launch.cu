// Which family of kernels takes a call, and the workspace of the backward pass.
#include <cmath>
#include <string>
#include <type_traits>

#include "cuda/bias_parts.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/map_tile.cuh"
#include "cuda/matrix_tile.cuh"

namespace sdwa::cuda {
namespace {

// All other sizes are at least 1, see checks.h.
bool is_empty(const Problem& problem) { return problem.batch == 0; }

// The stride of a dimension of one says nothing, and may be anything: zeros let every row be
// aligned as the others are, also those that would lie off the map.
InputView with_used_strides(const Problem& problem, InputView view) {
  if (problem.batch == 1) view.batch_stride = 0;
  if (problem.height == 1) view.height_stride = 0;
  if (problem.width == 1) view.width_stride = 0;
  if (problem.heads == 1) view.head_stride = 0;
  return view;
}
template <typename Args>
Args with_used_strides(Args args) {
  const auto replace = [&](auto&... views) {
    ((views = with_used_strides(args.problem, views)), ...);
  };
  replace(args.query, args.key, args.value);
  if constexpr (std::is_same_v<Args, BackwardArgs>) replace(args.grad_out);
  return args;
}

// Refuses what the 32-bit numbers of the kernels do not hold; head_tiles does so with the tiles.
void check_extents(const Problem& problem) {
  const auto refuse = [](const std::string& what) {
    throw std::runtime_error("sdwa: the CUDA kernels do not take " + what);
  };
  const auto number = [](int64_t value) { return std::to_string(value); };
  constexpr int64_t kMostHeads = 1 << 25, kMostTaps = 1 << 26;
  if (problem.heads > kMostHeads) {
    refuse("a query of " + number(problem.heads) + " heads: at most " + number(kMostHeads));
  }
  if (problem.kernel_h > kMostTaps / problem.kernel_w) {
    refuse("a kernel_size of " + number(problem.kernel_h) + " x " + number(problem.kernel_w) +
           ": at most " + number(kMostTaps) + " taps");
  }
  const auto check_axis = [&](const char* name, int64_t length, int64_t kernel, int64_t dilation) {
    if (has_short_coordinates(length, kernel, dilation)) return;
    const std::string axis = name;
    refuse("a query of " + axis + " " + number(length) + " with kernel_size " + number(kernel) +
           " and dilation " + number(dilation) + " along it: " + axis + " + (kernel_size + " +
           number(kMostTileSide) + ") * min(dilation, " + axis + ") must be less than 2^31");
  };
  // The queries around a key lie up to two windows away from it where windows shift.
  const int64_t windows = problem.plain() ? 1 : 2;
  for (int64_t h = 0; h < problem.heads; ++h) {
    check_axis("height", problem.height, windows * problem.kernel_h, problem.dilation[2 * h]);
    check_axis("width", problem.width, windows * problem.kernel_w, problem.dilation[2 * h + 1]);
  }
}

// Whether places within a tile's neighbourhood differ by less than 2^31 elements.
template <typename Args>
bool has_short_steps(const Args& args) {
  // More than any neighbourhood has rows or columns.
  constexpr double kMostSteps = 16;
  static_assert(Neighbourhood<7>::kRows < kMostSteps && Neighbourhood<7>::kColumns < kMostSteps);
  const Problem& problem = args.problem;
  for (const InputView& view : row_views(args)) {
    for (int64_t h = 0; h < problem.heads; ++h) {
      const int64_t dilation_h = std::min(problem.dilation[2 * h], problem.height);
      const int64_t dilation_w = std::min(problem.dilation[2 * h + 1], problem.width);
      const double step = std::abs(static_cast<double>(dilation_h) * view.height_stride) +
                          std::abs(static_cast<double>(dilation_w) * view.width_stride);
      if (!(kMostSteps * step < INT32_MAX)) return false;
    }
  }
  return true;
}

template <typename Args>
bool takes_matrix_path(const Args& args) {
  if (!args.problem.plain()) return false;
  const int side = with_window(args.problem, [](auto kernel) { return kernel.value; });
  const int access = side == 3 ? 8 : kWideAccess;  // bytes, as `with_features` has kernels for
  return element_size(args.problem.dtype) == 2 && side > 0 && row_alignment(args) >= access &&
         has_short_steps(args);
}

// Whether a call that takes the matrix path takes the kernels on whole maps. On maps of these
// shapes they start no more warps than there would be tiles of 4 x 4 pixels, at any dilation, and
// each warp has less to do: three quarters of the instructions forward, six tenths backward. (Tiles
// for windows of 7 are 8 x 2 pixels: up to a third fewer, but with twice as much to do.)
template <typename Args>
bool takes_map_path(const Args& args) {
  const Problem& problem = args.problem;
  return problem.height <= kMapSide && problem.width <= kMapSide &&
         (problem.width > 4 || problem.height <= 2) && problem.head_dim <= kMapFeatures &&
         row_alignment(args) == kWideAccess;
}

// Bytes of the parts of the workspace, which lie one after the other.
struct Workspace {
  size_t delta, bias_parts;
};

Workspace workspace_of(const BackwardArgs& args) {
  const Problem& problem = args.problem;
  const size_t sum_size = problem.dtype == Dtype::kFloat64 ? 8 : 4;
  Workspace bytes{};
  int tile_h = 0, tile_w = 0;
  if (takes_matrix_path(args)) {
    with_window(problem, [&](auto kernel) {
      if (takes_map_path(args)) {
        tile_h = tile_w = kWholeMap;
        return;
      }
      if constexpr (kernel > 0) {
        tile_h = Neighbourhood<kernel>::kTileH, tile_w = Neighbourhood<kernel>::kTileW;
      }
    });
  } else {
    const VectorTile tile = problem.plain() ? backward_vector_tile(args) : backward_free_tile(args);
    tile_h = tile.tile_h, tile_w = tile.tile_w;
    if (tile.needs_delta) {
      bytes.delta = problem.batch * problem.height * problem.width * problem.heads * sum_size;
      bytes.delta = ceil_div(bytes.delta, kWideAccess) * kWideAccess;  // bias_parts start aligned
    }
  }
  if (args.grad_bias != nullptr) {
    bytes.bias_parts =
        bias_part_rows(problem, tile_h, tile_w) * problem.heads * problem.bias_size() * sum_size;
  }
  return bytes;
}

}  // namespace

void launch_forward(const ForwardArgs& given, void* stream_pointer) {
  if (is_empty(given.problem)) return;
  const ForwardArgs args = with_used_strides(given);
  check_extents(args.problem);
  const Stream stream = static_cast<Stream>(stream_pointer);
  if (!args.problem.plain()) {
    launch_forward_free(args, stream);
  } else if (takes_matrix_path(args) && takes_map_path(args)) {
    launch_forward_map(args, stream);
  } else if (takes_matrix_path(args)) {
    launch_forward_matrix(args, stream);
  } else {
    launch_forward_vector(args, stream);
  }
}

size_t backward_workspace_bytes(const BackwardArgs& given) {
  if (is_empty(given.problem)) return 0;
  const BackwardArgs args = with_used_strides(given);
  check_extents(args.problem);
  const Workspace bytes = workspace_of(args);
  return bytes.delta + bytes.bias_parts;
}

void launch_backward(const BackwardArgs& given, void* workspace, void* stream_pointer) {
  const BackwardArgs args = with_used_strides(given);
  const Stream stream = static_cast<Stream>(stream_pointer);
  if (is_empty(args.problem)) {
    if (args.grad_bias != nullptr) launch_sum_bias_parts(args, nullptr, 1, 1, stream);
    return;
  }
  check_extents(args.problem);
  auto* const bytes = static_cast<unsigned char*>(workspace);
  void* const bias_parts = args.grad_bias == nullptr ? nullptr : bytes + workspace_of(args).delta;
  if (!args.problem.plain()) {
    launch_backward_free(args, bytes, bias_parts, stream);
  } else if (!takes_matrix_path(args)) {
    launch_backward_vector(args, bytes, bias_parts, stream);
  } else if (takes_map_path(args)) {
    launch_backward_map(args, static_cast<float*>(bias_parts), stream);
  } else if (args.problem.dtype == Dtype::kBFloat16) {
    launch_backward_matrix_bfloat16(args, static_cast<float*>(bias_parts), stream);
  } else {
    launch_backward_matrix_float16(args, static_cast<float*>(bias_parts), stream);
  }
}

}  // namespace sdwa::cuda
