// Asks for tensors' bytes shortly before they are needed.
//
// A head of a token is a short stretch of memory and the next one lies a whole token further, on
// another page for wide tokens or dilations, which processors' own prefetchers do not follow.
#pragma once

#include "../problem.h"
#include "../window_geometry.h"
#include "kernels.h"
#include "simd.h"

namespace sdwa::cpu::SDWA_ISA {

// Batch entry, head and rows of an item.
struct ItemBounds {
  int64_t batch, head, row_begin, row_end;

  ItemBounds(const Problem& p, const Plan& plan, int64_t item)
      : batch(item / p.heads / plan.bands), head(item % p.heads) {
    row_begin = item / p.heads % plan.bands * plan.band_rows;
    row_end = row_begin + plan.band_rows;
    if (row_end > p.height) row_end = p.height;
  }
};

// Walks over the tokens of items in the order in which the kernels read them. The first kRead views
// are read, the others written.
template <int kRead, int kViews>
class Prefetcher {
 public:
  Prefetcher(const Problem& p, const Plan& plan, const InputView (&views)[kViews], int64_t begin,
             int64_t end)
      : p_(p),
        plan_(plan),
        views_(views),
        element_(element_size(p.dtype)),
        token_bytes_(static_cast<int>(p.head_dim) * element_),
        item_(begin),
        end_(end),
        bounds_(p, plan, begin) {
    for (int v = 0; v < kViews; ++v) token_steps_[v] = views[v].width_stride * element_;
    enter_item();
    // Ahead of what is being computed by the window's reach and the rows that kTokens are on: early
    // enough for narrow maps, and not too much at a time for the second cache on wide ones.
    constexpr int64_t kTokens = 24;
    const int64_t rows = p.kernel_h / 2 + kTokens / (p.width + 1) + 1;
    for (int64_t i = 0; i < rows && item_ < end_; ++i) next_row();
  }

  SDWA_INLINE void advance(int tokens) {
    // The common case, 64 numbers of 4 bytes, without an inner loop.
    if (token_bytes_ == 256) {
      advance_lines<4>(tokens, 4);
    } else {
      advance_lines<0>(tokens, (token_bytes_ + 63) / 64);
    }
  }

 private:
  template <int kLines>
  SDWA_INLINE void advance_lines(int tokens, int runtime_lines) {
    const int lines = kLines > 0 ? kLines : runtime_lines;
    for (int i = 0; i < tokens && item_ < end_; ++i) {
      unroll<kViews>([&](auto v) __attribute__((always_inline)) {
        if (v >= kRead && plan_.streaming) return;
        const char* token = rows_[v];
        rows_[v] += token_steps_[v];
        for (int line = 0; line < lines; ++line) {
          __builtin_prefetch(token + 64 * line, v < kRead ? 0 : 1, 2);
        }
      });
      if (++x_ == p_.width) next_row();
    }
  }

  void enter_item() {
    if (item_ >= end_) return;
    bounds_ = ItemBounds(p_, plan_, item_);
    y_ = bounds_.row_begin;
    phase_ = 0;
    enter_row();
  }

  void next_row() {
    y_ += p_.dilation[2 * bounds_.head];
    if (y_ >= bounds_.row_end) {
      ++phase_;
      y_ = bounds_.row_begin + phase_;
      if (y_ >= bounds_.row_end || phase_ >= p_.dilation[2 * bounds_.head]) {
        ++item_;
        return enter_item();
      }
    }
    enter_row();
  }

  void enter_row() {
    x_ = 0;
    for (int v = 0; v < kViews; ++v) {
      const InputView& view = views_[v];
      rows_[v] = static_cast<const char*>(view.data) +
                 (bounds_.batch * view.batch_stride + y_ * view.height_stride +
                  bounds_.head * view.head_stride) *
                     element_;
    }
  }

  const Problem& p_;
  const Plan& plan_;
  const InputView (&views_)[kViews];
  const int element_;
  const int token_bytes_;
  int64_t item_, end_;
  ItemBounds bounds_;
  int64_t phase_ = 0, y_ = 0, x_ = 0;
  int64_t token_steps_[kViews];  // bytes
  const char* rows_[kViews] = {};
};

}  // namespace sdwa::cpu::SDWA_ISA
