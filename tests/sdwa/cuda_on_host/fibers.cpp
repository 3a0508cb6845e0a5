// The threads of a block as fibers, run one at a time from meeting to meeting, and the order of
// what they do with shared memory.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SWITCH_TO(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SWITCHED(saved) __sanitizer_finish_switch_fiber(saved, nullptr, nullptr)
#define ACCESSIBLE(start, bytes) __asan_unpoison_memory_region(start, bytes)
#else
#define SWITCH_TO(save, bottom, size)
#define SWITCHED(saved)
#define ACCESSIBLE(start, bytes)
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

// When a thread touched shared memory. Epochs count the barriers that the thread had passed, those
// of a block on from block to block: what an earlier block wrote is known by its number.
struct Access {
  static constexpr uint16_t kSeveral = UINT16_MAX;
  uint32_t block_epoch = 0;  // by __syncthreads
  uint32_t warp_epoch = 0;   // by __syncwarp or __syncthreads
  uint16_t warp = 0, lane = 0;

  // Whether another lane may act at the same time: no barrier lies between.
  bool races(const Access& now) const {
    return block_epoch == now.block_epoch &&
           (warp != now.warp || (warp_epoch == now.warp_epoch && lane != now.lane));
  }
};

// What is known of a word of shared memory, or of a byte of it where accesses to it are narrower.
struct Cell {
  Access written, read;  // read: by the lanes that no barrier separates from the last
  bool copying = false;  // between start and wait
  bool split = false;    // in the first byte of a word: the bytes have cells of their own
};

struct Copy {
  size_t target;  // an offset into shared memory
  const void* source;
  size_t bytes;
  int group;
};

struct Fiber {
  Access now;
  std::vector<Copy> copies;  // still to be made, the oldest first
  int open_group = 0;
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
  uint32_t first_epoch = 0, last_epoch = 0;
  size_t shared_bytes = 0;
};

Block block;

// Shared memory has an address, at which nothing can be read or written, and its content elsewhere.
// So an access that passes by read_shared and write_shared ends the run.
constexpr size_t kMostShared = 256 * 1024;
std::vector<unsigned char> shared_content(kMostShared);
std::vector<Cell> shared_cells(kMostShared);

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s: block %u, thread %u: %s\n", block.name, blockIdx.x, threadIdx.x, what);
  std::abort();
}

// Of `bytes` of shared memory from `offset` on: what the calling thread does, and why it must not.
[[noreturn]] void fail_at(size_t offset, size_t bytes, const char* does, const std::string& why) {
  std::fprintf(stderr,
               "%s: block %u: lane %u of warp %u %s bytes %zu to %zu of shared memory, %s\n",
               block.name, blockIdx.x, threadIdx.x % 32, threadIdx.x / 32, does, offset,
               offset + bytes - 1, why.c_str());
  std::abort();
}

std::string which(const Access& access, const char* did) {
  const auto name = [](const char* one, const char* several, uint16_t index) {
    return index == Access::kSeveral ? std::string(several) : one + std::to_string(index);
  };
  return "which " + name("lane ", "several lanes", access.lane) + " of " +
         name("warp ", "several warps", access.warp) + " " + did;
}

void check_not_copying(const Cell& cell, size_t offset, size_t bytes, const char* does) {
  if (cell.copying) fail_at(offset, bytes, does, which(cell.written, "may still be copying to"));
}

void check_no_race(const Access& before, const char* did, size_t offset, size_t bytes,
                   const char* does) {
  if (!before.races(block.fibers[threadIdx.x].now)) return;
  fail_at(offset, bytes, does, which(before, did) + " with no barrier between");
}

// Calls visit(cell) for each cell of a range of shared memory.
template <typename Visit>
void for_each_cell(size_t offset, size_t bytes, Visit&& visit) {
  for (size_t at = offset; at < offset + bytes;) {
    Cell* const word = &shared_cells[at / 4 * 4];
    const bool whole = at % 4 == 0 && offset + bytes - at >= 4;
    if (whole && !word->split) {
      visit(*word);
      at += 4;
      continue;
    }
    if (!word->split) {
      word->split = true;
      std::fill(word + 1, word + 4, *word);
    }
    visit(shared_cells[at++]);
  }
}

// Where an access lies in shared memory; refuses what a device does.
size_t shared_offset(const void* address, size_t bytes, const char* does) {
  const size_t offset = static_cast<const unsigned char*>(address) - shared_memory();
  if (offset >= block.shared_bytes || bytes > block.shared_bytes - offset) {
    fail_at(offset, bytes, does, "of which there are " + std::to_string(block.shared_bytes));
  }
  if (offset % std::min<size_t>(16, bytes & (~bytes + 1)) != 0) {
    fail_at(offset, bytes, does, "which are not aligned");
  }
  return offset;
}

// Starts a copy, or writes at once.
size_t check_write(const void* target, size_t bytes, bool starts_copy) {
  const char* const does = starts_copy ? "copies to" : "writes";
  const size_t offset = shared_offset(target, bytes, does);
  for_each_cell(offset, bytes, [&](Cell& cell) {
    check_not_copying(cell, offset, bytes, does);
    check_no_race(cell.written, "wrote", offset, bytes, does);
    check_no_race(cell.read, "read", offset, bytes, does);
    cell.written = block.fibers[threadIdx.x].now;
    cell.copying = starts_copy;
  });
  return offset;
}

size_t check_read(const void* source, size_t bytes) {
  constexpr const char* kDoes = "reads";
  const size_t offset = shared_offset(source, bytes, kDoes);
  const Access& now = block.fibers[threadIdx.x].now;
  for_each_cell(offset, bytes, [&](Cell& cell) {
    if (cell.written.block_epoch < block.first_epoch) {
      fail_at(offset, bytes, kDoes, "which the block has not written");
    }
    check_not_copying(cell, offset, bytes, kDoes);
    check_no_race(cell.written, "wrote", offset, bytes, kDoes);
    Access& read = cell.read;
    if (!read.races(now)) {
      read = now;
    } else if (read.warp != now.warp) {
      read.warp = read.lane = Access::kSeveral;
    } else {
      read.lane = Access::kSeveral;
    }
  });
  return offset;
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
  if (!fiber.copies.empty()) fail("the thread ends without having waited for its copies");
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
  block.first_epoch = ++block.last_epoch;
  for (int t = 0; t < block.threads; ++t) {
    Fiber& fiber = block.fibers[t];
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.open_group = 0;
    fiber.now = {block.first_epoch, 0, static_cast<uint16_t>(t / 32),
                 static_cast<uint16_t>(t % 32)};
    // The functions that the last thread of this fiber ended in never returned.
    constexpr size_t kTheirs = 4096;
    ACCESSIBLE(fiber.stack.get() + kStackBytes - kTheirs, kTheirs);
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
  if (meeting == Meeting::kWarp) ++block.fibers[threadIdx.x].now.warp_epoch;
  return offers;
}

void meet_block() {
  if (++block.block_arrived == block.threads) {
    block.block_arrived = 0;
    ++block.block_generation;
    ++block.last_epoch;
  } else {
    wait(block.block_generation);
  }
  Access& now = block.fibers[threadIdx.x].now;
  ++now.block_epoch;
  ++now.warp_epoch;
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

unsigned char* shared_memory() {
  static void* const address =
      mmap(nullptr, kMostShared, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return static_cast<unsigned char*>(address);
}

void read_shared(void* to, const void* source, size_t bytes) {
  std::memcpy(to, &shared_content[check_read(source, bytes)], bytes);
}

void write_shared(void* target, const void* from, size_t bytes) {
  std::memcpy(&shared_content[check_write(target, bytes, false)], from, bytes);
}

void start_copy(void* target, const void* source, bool ok, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(source) % bytes != 0) fail("a copy that is not aligned");
  const size_t offset = check_write(target, bytes, true);
  Fiber& fiber = block.fibers[threadIdx.x];
  fiber.copies.push_back({offset, ok ? source : nullptr, bytes, fiber.open_group});
}

void commit_copies() { ++block.fibers[threadIdx.x].open_group; }

void wait_copies(int pending) {
  Fiber& fiber = block.fibers[threadIdx.x];
  auto copy = fiber.copies.begin();
  for (; copy != fiber.copies.end() && copy->group < fiber.open_group - pending; ++copy) {
    unsigned char* const target = &shared_content[copy->target];
    if (copy->source != nullptr) {
      std::memcpy(target, copy->source, copy->bytes);
    } else {
      std::memset(target, 0, copy->bytes);
    }
    for_each_cell(copy->target, copy->bytes, [&](Cell& cell) {
      cell.written = fiber.now;
      cell.copying = false;
    });
  }
  fiber.copies.erase(fiber.copies.begin(), copy);
}

SharedMemory& shared_limits() {
  static SharedMemory limits{48 * 1024, 64 * 1024, 0};  // less than any supported GPU has
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
  block.shared_bytes = shared_bytes;
  if (block.fibers.size() < static_cast<size_t>(threads))
    block.fibers = std::vector<Fiber>(threads);
  block.warps.assign(threads / 32, Warp{});
  blockDim.x = static_cast<unsigned>(threads);
  gridDim.x = static_cast<unsigned>(blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t at = schedule() == 0 ? b : blocks - 1 - b;
    blockIdx.x = static_cast<unsigned>(at);
    run_block();
  }
}

}  // namespace sdwa::cuda::emulation
