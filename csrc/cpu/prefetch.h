// Asks for tensors' bytes shortly before they are needed.
//
// A token is a short stretch of memory, and the next one of the same head lies a whole pixel
// further, on another page where pixels or dilations are large: processors' own prefetchers do not
// follow.
#pragma once

#include "cpu/kernels.h"
#include "cpu/map.h"
#include "cpu/simd.h"
#include "problem.h"

namespace sdwa::cpu::SDWA_ISA {

// Walks over the tokens of items in the order in which the kernels need them, some way ahead of
// what is being computed. The first kRead views are read, the others written.
//
// The way is as short as can be: where the heads of a pixel lie next to each other, the tokens of
// one head fall into few sets of a cache, and drive each other out if they come early.
template <int kRead, int kViews>
class Prefetcher {
 public:
  // `rows` and some tokens ahead. With `streaming`, what is written goes past the caches.
  Prefetcher(const Problem& problem, const Plan& plan, const InputView (&views)[kViews],
             int64_t begin, int64_t end, int64_t rows, bool streaming = false)
      : problem_(problem),
        plan_(plan),
        streaming_(streaming),
        element_(element_size(problem.dtype)),
        token_bytes_(static_cast<int>(problem.head_dim) * element_),
        last_bytes_((token_bytes_ + kCacheLine - 1) % kCacheLine),
        item_(begin),
        end_(end),
        bounds_(problem, plan, begin) {
    for (int v = 0; v < kViews; ++v) {
      views_[v] = views[v];
      token_steps_[v] = views[v].width_stride * element_;
      row_steps_[v] = views[v].height_stride * element_;
    }
    enter_item();
    for (int64_t i = 0; i < rows && item_ < end_; ++i) next_row();
    advance(kTokensAhead);
  }

  SDWA_INLINE void advance(int tokens) {
    // Tokens of whole lines begin with one; the common number of them without an inner loop.
    constexpr int kCommonBytes = 64 * sizeof(float);
    if (token_bytes_ == kCommonBytes) {
      constexpr int kLines = kCommonBytes / kCacheLine;
      advance_lines<kLines, true>(tokens, kLines);
    } else if (token_bytes_ % kCacheLine == 0) {
      advance_lines<0, true>(tokens, token_bytes_ / kCacheLine);
    } else {
      advance_lines<0, false>(tokens, token_bytes_ / kCacheLine + 1);
    }
  }

 private:
  static constexpr int kTokensAhead = 24;

  template <int kLines, bool kWhole>
  SDWA_INLINE void advance_lines(int tokens, int runtime_lines) {
    const int lines = kLines > 0 ? kLines : runtime_lines;
    for (int i = 0; i < tokens && item_ < end_; ++i) {
      unroll<kViews>([&](auto v) __attribute__((always_inline)) {
        if (v >= kRead && streaming_) return;
        const char* token = rows_[v];
        rows_[v] += token_steps_[v];
        for (int line = 0; line < lines; ++line) {
          __builtin_prefetch(token + kCacheLine * line, v < kRead ? 0 : 1, 2);
        }
        if (!kWhole) {  // One that begins within a line can end in one more.
          const char* const last = token + token_bytes_ - 1;
          const auto in_line = reinterpret_cast<uintptr_t>(last) % kCacheLine;
          if (in_line < last_bytes_) __builtin_prefetch(last, v < kRead ? 0 : 1, 2);
        }
      });
      if (++x_ == stretch_end_) next_stretch();
    }
  }

  void enter_item() {
    while (item_ < end_ && (bounds_ = ItemBounds(problem_, plan_, item_)).empty(problem_, plan_)) {
      ++item_;
    }
    if (item_ >= end_) return;
    const int64_t dilation_h = problem_.dilation[2 * bounds_.head];
    row_step_ = dilation_h < problem_.height ? dilation_h : problem_.height;
    const Pieces pieces(problem_, plan_, bounds_.head);
    const Piece piece = pieces[bounds_.piece];
    // Pixels of all phases lie next to each other; those of some phases in a stretch per dilation.
    x_begin_ = piece.phase_begin + piece.begin * pieces.dilation;
    x_end_ =
        piece.end * pieces.dilation < problem_.width ? piece.end * pieces.dilation : problem_.width;
    stretch_step_ = pieces.groups == 1 ? problem_.width : pieces.dilation;
    stretch_ = pieces.groups == 1 ? problem_.width : piece.phase_end - piece.phase_begin;
    for (int v = 0; v < kViews; ++v) {
      const InputView& view = views_[v];
      firsts_[v] =
          static_cast<const char*>(view.data) +
          (bounds_.batch * view.batch_stride + bounds_.head * view.head_stride) * element_ +
          x_begin_ * token_steps_[v];
    }
    y_ = bounds_.row_begin;
    phase_ = 0;
    enter_row();
  }

  void next_row() {
    y_ += row_step_;
    if (y_ >= bounds_.row_end) {
      ++phase_;
      y_ = bounds_.row_begin + phase_;
      if (y_ >= bounds_.row_end || phase_ >= row_step_) {
        ++item_;
        return enter_item();
      }
    }
    enter_row();
  }

  void enter_row() {
    for (int v = 0; v < kViews; ++v) rows_[v] = firsts_[v] + y_ * row_steps_[v];
    enter_stretch(x_begin_);
  }

  void next_stretch() {
    const int64_t next = stretch_begin_ + stretch_step_;
    if (next >= x_end_) return next_row();
    for (int v = 0; v < kViews; ++v) rows_[v] += (next - x_) * token_steps_[v];
    enter_stretch(next);
  }

  void enter_stretch(int64_t x) {
    x_ = stretch_begin_ = x;
    stretch_end_ = x + stretch_ < x_end_ ? x + stretch_ : x_end_;
  }

  const Problem& problem_;
  const Plan& plan_;
  const bool streaming_;
  InputView views_[kViews];
  const int element_;
  const int token_bytes_;
  const uintptr_t last_bytes_;  // of a token's last line, were it to begin with one; less 1
  int64_t item_, end_;
  ItemBounds bounds_;
  int64_t phase_, y_, row_step_;
  // The pixel reached, the stretch of neighbouring pixels that it is in, and those of a row.
  int64_t x_, stretch_begin_, stretch_end_;
  int64_t x_begin_, x_end_, stretch_, stretch_step_;
  int64_t token_steps_[kViews], row_steps_[kViews];  // bytes
  const char* firsts_[kViews];                       // of the item, were it on row 0
  const char* rows_[kViews] = {};
};

// Keys are needed some rows before the queries whose windows hold them.
template <typename Keys, typename Queries>
struct Prefetchers {
  Keys keys;
  Queries queries;

  SDWA_INLINE void advance(int tokens) {
    keys.advance(tokens);
    queries.advance(tokens);
  }
};

}  // namespace sdwa::cpu::SDWA_ISA
