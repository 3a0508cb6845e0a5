// The operators on the CPU: picks the instruction set, cuts the work into items and runs them on
// PyTorch's thread pool.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "cpu/pieces.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sdwa::cpu {
namespace {

constexpr int64_t kMiB = int64_t(1) << 20;
// Items that a call is cut into at least, so that all threads have as much work.
constexpr int64_t kItemsPerThread = 16;
// The same where sums over items' results make one: it must not depend on the number of threads.
constexpr int64_t kItemsToAdd = 64;
// Bytes of a band in one tensor, all heads: the caches hold them until the last head has been
// there.
constexpr int64_t kBandBytes = 8 * kMiB;
// A band has at least this many times the rows of its halo, which are worked on again.
constexpr int64_t kBandPerHalo = 2;
// An output above this size is not in the caches any more when it is read.
constexpr int64_t kCachedBytes = 16 * kMiB;
// Products of two numbers that a thread should get at least, so that waking it pays.
constexpr int64_t kProductsPerThread = 1 << 19;
// Scratch of a piece of a row; of long rows, up to twice as much. The second cache of most
// processors holds it.
constexpr int64_t kScratchBytes = kMiB;
// Scratch that a thread keeps for its next call at most.
constexpr int64_t kKeptBytes = 16 * kMiB;
// What a query costs beside its taps (reading, softmax, writing), in taps.
constexpr int64_t kTapsPerQuery = 8;
// From this size on, glibc gives a block of memory a mapping of its own, by default.
[[maybe_unused]] constexpr int64_t kMappingBytes = 32 * kMiB;
[[maybe_unused]] constexpr int64_t kHugePage = 2 * kMiB;

struct Kernels {
  const char* name;
  decltype(&baseline::forward_scratch) forward_scratch;
  decltype(&baseline::backward_scratch) backward_scratch;
  decltype(&baseline::forward) forward;
  decltype(&baseline::backward) backward;
  bool supported;
};

#define SDWA_KERNELS(isa, supported) \
  {#isa, isa::forward_scratch, isa::backward_scratch, isa::forward, isa::backward, supported},

const Kernels& choose_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();  // not every compiler's run-time has done so by now
#endif
  static const Kernels best_first[] = {SDWA_FOR_EACH_INSTRUCTION_SET(SDWA_KERNELS)};
  const char* asked = std::getenv("SDWA_CPU_CAPABILITY");
  std::string usable;
  for (const Kernels& kernels : best_first) {
    if (!kernels.supported) continue;
    if (asked == nullptr || asked[0] == '\0' || std::string(asked) == kernels.name) return kernels;
    usable += usable.empty() ? kernels.name : std::string(", ") + kernels.name;
  }
  STD_TORCH_CHECK(false, "sdwa: SDWA_CPU_CAPABILITY is '", asked,
                  "', which this build or processor does not have; usable here: ", usable);
  __builtin_unreachable();  // not every level of optimisation sees that the check throws
}

#undef SDWA_KERNELS

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

std::string cpu_capability() { return kernels().name; }

// The scratch of a thread for one call. It is kept for the next one, unless it is very large.
class ThreadScratch {
 public:
  explicit ThreadScratch(int64_t bytes) {
    thread_local Buffer kept;
    thread_local int64_t size = 0;
    if (bytes > kKeptBytes) {
      own_ = allocate(bytes);
      data_ = static_cast<char*>(own_.get());
      return;
    }
    if (bytes > size) {
      size = 0;
      kept.reset();
      kept = allocate(bytes);
      size = bytes;
    }
    data_ = static_cast<char*>(kept.get());
  }
  char* data() const { return data_; }

 private:
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(kCacheLine)); }
  };
  using Buffer = std::unique_ptr<void, Free>;
  static Buffer allocate(int64_t bytes) {
    return Buffer(::operator new(bytes, std::align_val_t(kCacheLine)));
  }

  Buffer own_;
  char* data_;
};

// Asks for huge pages behind a large new output: most of the time that writing it takes would go
// into touching its small pages for the first time. By default its mapping is its own, so no other
// allocation is concerned; where glibc keeps freed memory, later ones may lie on its huge pages.
void advise_huge_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const int64_t bytes = tensor.numel() * element_size(dtype_of(tensor));
  if (bytes < kMappingBytes) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t begin = (data + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (data + bytes) / kHugePage * kHugePage;
  // A refusal only costs time.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Rows above and below a band that its queries' windows reach, for the head with the most.
int64_t rows_around_band(const Problem& problem) {
  int64_t dilation = 1;
  for (int64_t head = 0; head < problem.heads; ++head) {
    dilation = problem.dilation[2 * head] > dilation ? problem.dilation[2 * head] : dilation;
  }
  dilation = dilation < problem.height ? dilation : problem.height;
  return (problem.kernel_h - 1) * dilation;
}

// At least so many items, however few images and heads there are, of bands that the caches hold
// until all heads have been there, and of rows that a thread's scratch has room for. What lies
// around an item is read as far as `halos` windows reach, in scratch of `slot_bytes` for each slot.
Plan make_plan(const Problem& problem, int64_t items, int64_t halos, int64_t slot_bytes) {
  Plan plan{};
  plan.halo = halos * problem.farthest_w();
  plan.slots = kScratchBytes / slot_bytes;
  plan.pieces = 1;
  for (int64_t head = 0; head < problem.heads; ++head) {
    if (repeats_dilation(problem, head)) continue;
    const int64_t pieces = Pieces(problem, plan, head).count();
    plan.pieces = pieces > plan.pieces ? pieces : plan.pieces;
  }
  const int64_t smallest_band = kBandPerHalo * halos * rows_around_band(problem);
  const int64_t maps = problem.batch * problem.heads * plan.pieces;
  const int64_t row_bytes =
      problem.width * problem.heads * problem.head_dim * element_size(problem.dtype);
  const int64_t for_items = maps > 0 ? (items + maps - 1) / maps : 1;
  const int64_t for_caches = problem.height * row_bytes / plan.pieces / kBandBytes + 1;
  const int64_t wanted = for_items > for_caches ? for_items : for_caches;
  const int64_t rows = (problem.height + wanted - 1) / wanted;
  plan.band_rows = rows < smallest_band ? smallest_band : rows;
  plan.bands = (problem.height + plan.band_rows - 1) / plan.band_rows;
  plan.items = maps * plan.bands;
  plan.streaming = problem.batch * problem.height * row_bytes > kCachedBytes;
  return plan;
}

// Bytes of a token in scratch.
int64_t token_bytes(const Problem& problem) {
  const int64_t bytes = problem.head_dim * (problem.dtype == Dtype::kFloat64 ? 8 : 4);
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

int64_t items_for_threads() { return kItemsPerThread * torch::stable::get_num_threads(); }

Plan forward_plan(const Problem& problem) {
  // A row of queries, and rows of keys and values.
  const int64_t slot_bytes = (1 + 2 * problem.kernel_h) * token_bytes(problem);
  return make_plan(problem, items_for_threads(), 1, slot_bytes);
}

Plan backward_plan(const Problem& problem, bool grad_bias) {
  // Rows of queries, keys, values and gradients, and of two weights per tap. The queries around an
  // item read its keys: their probabilities are computed again, from keys that lie as far away
  // again.
  const int64_t weights = 2 * problem.kernel_h * problem.kernel_w * int64_t(sizeof(float));
  const int64_t items = grad_bias ? kItemsToAdd : items_for_threads();
  return make_plan(problem, items, 2, problem.kernel_h * (4 * token_bytes(problem) + weights));
}

// Items that a thread takes at least.
int64_t grain(const Problem& problem, const Plan& plan) {
  const int64_t products = plan.band_rows * (problem.width / plan.pieces) * problem.head_dim *
                           (problem.kernel_h * problem.kernel_w + kTapsPerQuery);
  return kProductsPerThread / (products + 1) + 1;
}

// The sums of each item, added in the items' order whichever thread made them.
template <typename A>
void add_up_grad_bias(const Problem& problem, const Plan& plan, const A* sums, A* grad_bias) {
  const int64_t size = problem.bias_size();
  for (int64_t i = 0; i < problem.heads * size; ++i) {
    double total = 0;
    for (int64_t item = i / size; item < plan.items; item += problem.heads) {
      total += sums[item * size + i % size];
    }
    grad_bias[i] = static_cast<A>(total);
  }
}

std::tuple<Tensor, Tensor> attention_forward(
    Tensor query, Tensor key, Tensor value, std::optional<Tensor> bias,
    std::optional<Tensor> key_mask, std::vector<int64_t> kernel_size, std::vector<int64_t> dilation,
    double scale, bool masked, bool shifted, bool causal_h, bool causal_w) {
  const ForwardCall call =
      prepare_forward(query, key, value, bias, key_mask,
                      {kernel_size, dilation, scale, masked, shifted, causal_h, causal_w});
  const Problem& problem = call.args.problem;
  const Plan plan = forward_plan(problem);
  advise_huge_pages(call.out);
  const int64_t bytes = kernels().forward_scratch(call.args, plan);
  torch::stable::parallel_for(0, plan.items, grain(problem, plan), [&](int64_t begin, int64_t end) {
    kernels().forward(call.args, plan, begin, end, ThreadScratch(bytes).data());
  });
  return {call.out, call.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor grad_out, std::optional<Tensor> grad_lse, Tensor query, Tensor key, Tensor value,
    std::optional<Tensor> bias, std::optional<Tensor> key_mask, Tensor out, Tensor lse,
    std::vector<int64_t> kernel_size, std::vector<int64_t> dilation, double scale, bool masked,
    bool shifted, bool causal_h, bool causal_w) {
  const BackwardCall call =
      prepare_backward(grad_out, grad_lse, query, key, value, bias, key_mask, out, lse,
                       {kernel_size, dilation, scale, masked, shifted, causal_h, causal_w});
  const Problem& problem = call.args.problem;
  const Plan plan = backward_plan(problem, call.args.grad_bias != nullptr);
  for (const Tensor& grad : {call.grad_query, call.grad_key, call.grad_value}) {
    advise_huge_pages(grad);
  }
  const int64_t bytes = kernels().backward_scratch(call.args, plan);
  const auto run = [&](void* sums) {
    torch::stable::parallel_for(
        0, plan.items, grain(problem, plan), [&](int64_t begin, int64_t end) {
          kernels().backward(call.args, plan, begin, end, sums, ThreadScratch(bytes).data());
        });
  };
  if (call.args.grad_bias == nullptr) {
    run(nullptr);
  } else {
    with_type(problem.dtype, [&](auto type) {
      using A = Accumulation<typename decltype(type)::type>;
      // (items, bias_h, bias_w). Zeros: items without pixels make none.
      std::vector<A> sums(plan.items * problem.bias_size());
      run(sums.data());
      add_up_grad_bias(problem, plan, sums.data(), static_cast<A*>(call.args.grad_bias));
    });
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
  m.impl("attention_forward_kernel", TORCH_BOX(&sdwa::cpu::attention_forward));
  m.impl("attention_backward_kernel", TORCH_BOX(&sdwa::cpu::attention_backward));
}
