// The operators on the CPU: picks the instruction set, cuts the work into items and runs them on
// PyTorch's thread pool.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "../checks.h"
#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sdwa::cpu {
namespace {

struct Kernels {
  const char* name;
  decltype(&baseline::forward_scratch) forward_scratch;
  decltype(&baseline::backward_scratch) backward_scratch;
  decltype(&baseline::forward) forward;
  decltype(&baseline::backward) backward;
  bool supported;
};

#define SDWA_KERNELS(isa, supported)                                                          \
  Kernels {                                                                                   \
    #isa, isa::forward_scratch, isa::backward_scratch, isa::forward, isa::backward, supported \
  }

// Best first.
const Kernels kKernels[] = {
#if defined(SDWA_HAS_AVX512BF16)
    SDWA_KERNELS(avx512bf16,
                 __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")),
#endif
#if defined(SDWA_HAS_AVX512)
    SDWA_KERNELS(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("avx512dq")),
#endif
#if defined(SDWA_HAS_AVX2)
    SDWA_KERNELS(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c")),
#endif
    SDWA_KERNELS(baseline, true),
};

const Kernels& choose_kernels() {
  const char* asked = std::getenv("SDWA_CPU_CAPABILITY");
  std::string usable;
  for (const Kernels& kernels : kKernels) {
    if (!kernels.supported) continue;
    if (asked == nullptr || asked[0] == '\0' || std::string(asked) == kernels.name) return kernels;
    usable += usable.empty() ? kernels.name : std::string(", ") + kernels.name;
  }
  STD_TORCH_CHECK(false, "sdwa: SDWA_CPU_CAPABILITY is '", asked,
                  "', which this build or processor does not have; usable here: ", usable);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

std::string cpu_capability() { return kernels().name; }

// Scratch of this thread, kept from call to call.
char* thread_scratch(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local int64_t size = 0;
  if (bytes > size) {
    buffer.reset();
    size = 0;
    buffer.reset(::operator new(bytes, std::align_val_t(64)));
    size = bytes;
  }
  return static_cast<char*>(buffer.get());
}

// Asks for huge pages behind a large new output: most of the time that writing it takes would go
// into touching its small pages for the first time. From this size on, glibc gives a block a
// mapping of its own, so no other allocation is concerned.
void advise_huge_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t bytes = tensor.numel() * element_size(dtype_of(tensor));
  if (bytes < uintptr_t(32) << 20) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage;
  const uintptr_t end = (data + bytes) / kPage * kPage;
  // A refusal only costs time.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Items enough for many cores, however few images and heads there are, of bands that the caches
// hold until all heads have been there. Depends on the shape alone.
Plan make_plan(const Problem& p, int64_t smallest_band) {
  constexpr int64_t kItems = 64;
  constexpr int64_t kBandBytes = int64_t(8) << 20;  // of one tensor
  const int64_t maps = p.batch * p.heads;
  const int64_t row_bytes = p.width * p.heads * p.head_dim * element_size(p.dtype);
  const int64_t for_items = maps > 0 ? (kItems + maps - 1) / maps : 1;
  const int64_t for_caches = p.height * row_bytes / kBandBytes + 1;
  const int64_t wanted = for_items > for_caches ? for_items : for_caches;
  int64_t rows = (p.height + wanted - 1) / wanted;
  rows = rows < smallest_band ? smallest_band : rows;
  const int64_t bands = p.height > 0 ? (p.height + rows - 1) / rows : 0;
  constexpr int64_t kCaches = int64_t(16) << 20;
  const int64_t bytes = p.batch * p.height * row_bytes;
  return {bands, rows, maps * bands, bytes > kCaches};
}

// Items a thread should take at least, so that waking it pays.
int64_t grain(const Problem& p, const Plan& plan) {
  constexpr int64_t kProducts = 1 << 19;
  const int64_t products = plan.band_rows * p.width * p.head_dim * (p.kernel_h * p.kernel_w + 8);
  return kProducts / (products + 1) + 1;
}

int64_t largest_dilation_h(const Problem& p) {
  int64_t largest = 1;
  for (int64_t head = 0; head < p.heads; ++head) {
    largest = p.dilation[2 * head] > largest ? p.dilation[2 * head] : largest;
  }
  return largest < p.height ? largest : p.height;
}

std::tuple<Tensor, Tensor> attention_forward(Tensor query, Tensor key, Tensor value,
                                             std::optional<Tensor> bias,
                                             std::vector<int64_t> kernel_size,
                                             std::vector<int64_t> dilation, double scale,
                                             bool masked) {
  const ForwardCall call =
      prepare_forward(query, key, value, bias, kernel_size, dilation, scale, masked);
  const Problem& p = call.args.problem;
  if (p.head_dim > 0) {
    // A band reads the rows of its halo again.
    const Plan plan = make_plan(p, 2 * (p.kernel_h - 1) * largest_dilation_h(p));
    advise_huge_pages(call.out);
    const int64_t bytes = kernels().forward_scratch(p);
    torch::stable::parallel_for(0, plan.items, grain(p, plan), [&](int64_t begin, int64_t end) {
      kernels().forward(call.args, plan, begin, end, thread_scratch(bytes));
    });
  }
  return {call.out, call.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor grad_out, std::optional<Tensor> grad_lse, Tensor query, Tensor key, Tensor value,
    std::optional<Tensor> bias, Tensor out, Tensor lse, std::vector<int64_t> kernel_size,
    std::vector<int64_t> dilation, double scale, bool masked) {
  const BackwardCall call = prepare_backward(grad_out, grad_lse, query, key, value, bias, out, lse,
                                             kernel_size, dilation, scale, masked);
  const Problem& p = call.args.problem;
  // A band computes the probabilities of its halo again, so it should be much larger than that.
  const Plan plan = make_plan(p, 4 * (p.kernel_h - 1) * largest_dilation_h(p));
  const int64_t taps = p.kernel_h * p.kernel_w;
  const bool wide = p.dtype == Dtype::kFloat64;
  // Sums of each item; added in their order below, whichever thread made them.
  std::unique_ptr<double[]> sums;
  if (call.args.grad_bias) sums.reset(new double[plan.items * taps]);
  if (p.head_dim > 0) {
    for (const Tensor& grad : {call.grad_query, call.grad_key, call.grad_value}) {
      advise_huge_pages(grad);
    }
    const int64_t bytes = kernels().backward_scratch(p);
    torch::stable::parallel_for(0, plan.items, grain(p, plan), [&](int64_t begin, int64_t end) {
      kernels().backward(call.args, plan, begin, end, sums.get(), thread_scratch(bytes));
    });
  }
  if (call.args.grad_bias) {
    for (int64_t i = 0; i < p.heads * taps; ++i) {
      double total = 0;
      for (int64_t item = i / taps; item < plan.items; item += p.heads) {
        const int64_t at = item * taps + i % taps;
        total += wide ? sums[at] : reinterpret_cast<const float*>(sums.get())[at];
      }
      if (wide) {
        static_cast<double*>(call.args.grad_bias)[i] = total;
      } else {
        static_cast<float*>(call.args.grad_bias)[i] = static_cast<float>(total);
      }
    }
  }
  return {call.grad_query, call.grad_key, call.grad_value, call.grad_bias};
}

}  // namespace
}  // namespace sdwa::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(sdwa, m) { m.def("cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(sdwa, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&sdwa::cpu::cpu_capability));
}

STABLE_TORCH_LIBRARY_IMPL(sdwa, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&sdwa::cpu::attention_forward));
  m.impl("attention_backward", TORCH_BOX(&sdwa::cpu::attention_backward));
}
