// Runs the kernels on the cases of a file:
//   emulate CASES RESULTS SCHEDULE BLOCK_SHARED MULTIPROCESSOR_SHARED RESERVED_SHARED
//
// A case is 64-bit integers (see `Header`), the scale, the dilations, then its arrays, each as it
// lies in memory. Every array gets an allocation of its own and of its exact size, so that the
// address sanitizer sees a read outside; outputs are filled with NaN first.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace {

using namespace sdwa;

struct Header {
  int64_t dtype, batch, height, width, heads, head_dim, kernel_h, kernel_w, masked, shifted,
      causal_h, causal_w, has_bias, has_grad_lse, has_key_mask, out_shift;
};

struct Files {
  std::FILE* cases;
  std::FILE* results;

  void read(void* to, size_t bytes) {
    if (bytes > 0 && std::fread(to, 1, bytes, cases) != bytes) {
      std::fprintf(stderr, "the file of cases ends early\n");
      std::exit(2);
    }
  }
  void write(const std::vector<unsigned char>& bytes) {
    if (bytes.empty()) return;
    if (std::fwrite(bytes.data(), 1, bytes.size(), results) != bytes.size()) std::exit(2);
  }
};

struct Array {
  std::vector<unsigned char> bytes;  // its capacity is its size: nothing is ever appended
  explicit Array(size_t size) : bytes(size, 0xff) {}
};

struct Strided {
  Array storage;
  InputView view;

  static Strided read(Files& files, int element_size) {
    int64_t facts[6];  // elements of the storage, offset, four strides
    files.read(facts, sizeof(facts));
    Strided result{Array(facts[0] * element_size), {}};
    files.read(result.storage.bytes.data(), result.storage.bytes.size());
    result.view = {result.storage.bytes.data() + facts[1] * element_size, facts[2], facts[3],
                   facts[4], facts[5]};
    return result;
  }
};

bool run_case(Files& files) {
  Header header;
  if (std::fread(&header, sizeof(header), 1, files.cases) != 1) return false;
  double scale;
  files.read(&scale, sizeof(scale));
  std::vector<int64_t> dilation(2 * header.heads);
  files.read(dilation.data(), dilation.size() * sizeof(int64_t));
  Problem problem{};
  problem.batch = header.batch;
  problem.height = header.height;
  problem.width = header.width;
  problem.heads = header.heads;
  problem.head_dim = header.head_dim;
  problem.dilation = dilation.data();
  problem.scale = scale;
  problem.masked = header.masked != 0;
  problem.dtype = static_cast<Dtype>(header.dtype);
  problem.set_windows(header.kernel_h, header.kernel_w, header.shifted != 0, header.causal_h != 0,
                      header.causal_w != 0);
  const int size = element_size(problem.dtype), sum_size = size == 8 ? 8 : 4;
  const int64_t tokens = header.batch * header.height * header.width * header.heads;

  const Strided query = Strided::read(files, size), key = Strided::read(files, size),
                value = Strided::read(files, size), grad_out = Strided::read(files, size);
  const size_t bias_bytes = header.has_bias ? header.heads * problem.bias_size() * sum_size : 0;
  const int64_t pixels = header.batch * header.height * header.width;
  Array bias(bias_bytes), grad_lse(header.has_grad_lse ? tokens * sum_size : 0),
      key_mask(header.has_key_mask ? pixels : 0);
  for (Array* array : {&bias, &grad_lse, &key_mask}) {
    files.read(array->bytes.data(), array->bytes.size());
  }
  const bool* const key_mask_data =
      header.has_key_mask ? reinterpret_cast<const bool*>(key_mask.bytes.data()) : nullptr;

  const size_t map_bytes = tokens * header.head_dim * size;
  Array out(map_bytes), lse(tokens * sum_size);
  cuda::launch_forward(
      {problem, query.view, key.view, value.view, header.has_bias ? bias.bytes.data() : nullptr,
       key_mask_data, out.bytes.data(), lse.bytes.data()},
      nullptr);

  // The caller of the backward operator may bring an `out` that starts anywhere in its storage.
  Array moved_out(map_bytes + header.out_shift * size);
  std::copy(out.bytes.begin(), out.bytes.end(), moved_out.bytes.end() - map_bytes);

  Array grad_query(map_bytes), grad_key(map_bytes), grad_value(map_bytes), grad_bias(bias_bytes);
  const BackwardArgs backward{problem,
                              query.view,
                              key.view,
                              value.view,
                              grad_out.view,
                              header.has_bias ? bias.bytes.data() : nullptr,
                              key_mask_data,
                              moved_out.bytes.data() + header.out_shift * size,
                              lse.bytes.data(),
                              header.has_grad_lse ? grad_lse.bytes.data() : nullptr,
                              grad_query.bytes.data(),
                              grad_key.bytes.data(),
                              grad_value.bytes.data(),
                              header.has_bias ? grad_bias.bytes.data() : nullptr};
  Array workspace(cuda::backward_workspace_bytes(backward));
  cuda::launch_backward(backward, workspace.bytes.data(), nullptr);

  for (const Array* array : {&out, &lse, &grad_query, &grad_key, &grad_value, &grad_bias}) {
    files.write(array->bytes);
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 7) {
    std::fprintf(stderr,
                 "usage: emulate CASES RESULTS SCHEDULE BLOCK_SHARED MULTIPROCESSOR_SHARED "
                 "RESERVED_SHARED\n");
    return 2;
  }
  Files files{std::fopen(arguments[1], "rb"), std::fopen(arguments[2], "wb")};
  if (files.cases == nullptr || files.results == nullptr) {
    std::fprintf(stderr, "cannot open %s or %s\n", arguments[1], arguments[2]);
    return 2;
  }
  cuda::emulation::schedule() = std::atoi(arguments[3]);
  cuda::emulation::shared_limits() = {std::atoi(arguments[4]), std::atoi(arguments[5]),
                                      std::atoi(arguments[6])};
  while (run_case(files)) {
  }
  return std::fclose(files.cases) + std::fclose(files.results);
}
