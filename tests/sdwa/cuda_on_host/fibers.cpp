// The threads of a block as fibers, run one at a time from meeting to meeting.
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda/device.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SWITCH_TO(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SWITCHED(saved) __sanitizer_finish_switch_fiber(saved, nullptr, nullptr)
#else
#define SWITCH_TO(save, bottom, size)
#define SWITCHED(saved)
#endif

namespace sdwa::cuda::emulation {
namespace {

#if defined(__x86_64__)
// swapcontext without its two system calls: saves what a call must keep, and changes the stack.
struct Context {
  void* stack = nullptr;
};
extern "C" void sdwa_switch_stack(void** save, void* to);
asm(R"(
.text
sdwa_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
void switch_context(Context& from, Context& to) { sdwa_switch_stack(&from.stack, to.stack); }
void prepare_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  // Six registers, the address to return to, and the alignment that a function finds on entry.
  void** top = reinterpret_cast<void**>(stack + bytes / 16 * 16) - 2;
  *top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack = top;
}
#else
using Context = ucontext_t;
void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

constexpr size_t kStackBytes = 256 * 1024;

struct Copy {
  void* target;
  const void* source;
  size_t bytes;
};

struct Fiber {
  std::vector<std::vector<Copy>> copies{1};  // by group, the last one open
  Context context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  bool done = true;
  const uint64_t* waits_for = nullptr;  // a generation that must pass `seen`
  uint64_t seen = 0;
};

struct Warp {
  Meeting meeting;
  int arrived = 0;
  uint64_t generation = 0;
  Offer offers[2][32];  // a lane may be one meeting ahead of those that still read
};

struct Block {
  const char* name;
  int threads = 0;
  const std::function<void()>* thread;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int block_arrived = 0;
  uint64_t block_generation = 0;
  Context scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  unsigned char* shared = nullptr;
};

Block block;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s: block %u, thread %u: %s\n", block.name, blockIdx.x, threadIdx.x, what);
  std::abort();
}

void leave(Fiber& fiber, bool for_good) {
  void* saved = nullptr;
  (void)saved;
  SWITCH_TO(for_good ? nullptr : &saved, block.scheduler_stack, block.scheduler_stack_bytes);
  switch_context(fiber.context, block.scheduler);
  SWITCHED(saved);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  Fiber& fiber = block.fibers[threadIdx.x];
  (*block.thread)();
  fiber.done = true;
  leave(fiber, true);
}

void wait(const uint64_t& generation) {
  Fiber& fiber = block.fibers[threadIdx.x];
  fiber.waits_for = &generation;
  fiber.seen = generation;
  leave(fiber, false);
}

void resume(unsigned thread) {
  Fiber& fiber = block.fibers[thread];
  fiber.waits_for = nullptr;
  threadIdx.x = thread;
  void* saved = nullptr;
  (void)saved;
  SWITCH_TO(&saved, fiber.stack.get(), kStackBytes);
  switch_context(block.scheduler, fiber.context);
  SWITCHED(saved);
}

void run_block() {
  for (int t = 0; t < block.threads; ++t) {
    Fiber& fiber = block.fibers[t];
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.copies.assign(1, {});
    prepare_context(fiber.context, fiber.stack.get(), kStackBytes, fiber_main);
  }
  int running = block.threads;
  while (running > 0) {
    bool progress = false;
    for (int warp = 0; warp < block.threads / 32; ++warp) {
      // One warp runs until all its lanes wait for the block or have ended.
      for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < 32; ++i) {
          const int t = 32 * warp + (schedule() == 0 ? i : 31 - i);
          Fiber& fiber = block.fibers[t];
          if (fiber.done || (fiber.waits_for != nullptr && *fiber.waits_for == fiber.seen))
            continue;
          resume(t);
          moved = progress = true;
          running -= fiber.done;
        }
      }
    }
    if (running > 0 && !progress)
      fail("some threads wait for others that have ended or wait elsewhere");
  }
}

}  // namespace

const Offer* meet(Meeting meeting, unsigned mask, const void* offer, size_t bytes) {
  if (mask != kFullWarp) fail("a collective of part of a warp");
  Warp& warp = block.warps[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32;
  if (warp.arrived == 0) warp.meeting = meeting;
  if (warp.meeting != meeting) fail("lanes of one warp meet different collectives");
  Offer* const offers = warp.offers[warp.generation % 2];
  if (bytes > sizeof(Offer)) fail("an offer too large for the emulation");
  if (bytes > 0) std::memcpy(offers[lane].bytes, offer, bytes);
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.generation;
  } else {
    wait(warp.generation);
  }
  return offers;
}

void meet_block() {
  if (++block.block_arrived == block.threads) {
    block.block_arrived = 0;
    ++block.block_generation;
  } else {
    wait(block.block_generation);
  }
}

void matrix_product(float (&c)[4], const Offer* lanes, int lane) {
  const auto floats = [lanes](int from) {
    return reinterpret_cast<const float*>(lanes[from].bytes);
  };
  const int g = lane / 4, j = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * j + i % 2;
    float sum = 0;
    for (int quad = 0; quad < 4; ++quad) {
      const float* const a = floats(4 * g + quad) + 2 * lower;
      const float* const b = floats(4 * column + quad) + 8;
      sum += a[0] * b[0] + a[1] * b[1] + a[4] * b[2] + a[5] * b[3];
    }
    c[i] += sum;
  }
}

int& schedule() {
  static int order = 0;
  return order;
}

unsigned char* shared_memory() { return block.shared; }

void read_shared(const void*, size_t) {}
void write_shared(const void*, size_t) {}

void start_copy(void* target, const void* source, size_t bytes) {
  const auto aligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  if (!aligned(target) || !aligned(source)) fail("a copy that is not aligned");
  block.fibers[threadIdx.x].copies.back().push_back({target, source, bytes});
}

void commit_copies() { block.fibers[threadIdx.x].copies.emplace_back(); }

void wait_copies(int pending) {
  auto& groups = block.fibers[threadIdx.x].copies;
  const size_t open_and_pending = static_cast<size_t>(pending) + 1;
  while (groups.size() > open_and_pending) {
    for (const Copy& copy : groups.front()) {
      if (copy.source != nullptr) {
        std::memcpy(copy.target, copy.source, copy.bytes);
      } else {
        std::memset(copy.target, 0, copy.bytes);
      }
    }
    groups.erase(groups.begin());
  }
}

SharedMemory& shared_limits() {
  static SharedMemory limits{99 * 1024, 100 * 1024, 1024};  // as on an RTX 3090
  return limits;
}

void run_grid(const char* name, int64_t blocks, int threads, size_t shared_bytes,
              const std::function<void()>& thread) {
  if (threads % 32 != 0 || threads < 32 || threads > 1024) {
    std::fprintf(stderr, "%s: %d threads are no whole warps, or too many\n", name, threads);
    std::abort();
  }
  if (blocks < 1 || blocks > INT32_MAX ||
      shared_bytes > static_cast<size_t>(shared_limits().block)) {
    std::fprintf(stderr, "%s: a launch that a device would refuse\n", name);
    std::abort();
  }
  block.name = name;
  block.threads = threads;
  block.thread = &thread;
  if (block.fibers.size() < static_cast<size_t>(threads))
    block.fibers = std::vector<Fiber>(threads);
  block.warps.assign(threads / 32, Warp{});
  blockDim.x = static_cast<unsigned>(threads);
  gridDim.x = static_cast<unsigned>(blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t at = schedule() == 0 ? b : blocks - 1 - b;
    blockIdx.x = static_cast<unsigned>(at);
    // Fresh for each block, of exactly the size asked for, and not zero.
    std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes]);
    std::memset(shared.get(), 0xff, shared_bytes);
    block.shared = shared.get();
    run_block();
  }
}

}  // namespace sdwa::cuda::emulation
