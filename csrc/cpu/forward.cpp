// Forward kernel. Compiled once for each instruction set.
//
// An item is one head of one band of one image, or a piece of it. Its rows are walked phase by
// phase; the last kernel_h rows of key and value stay in scratch, converted to the accumulation
// type, so each of their bytes is read from the tensors once (but for the item's halo).
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/block.h"
#include "cpu/items.h"
#include "cpu/kernels.h"
#include "cpu/prefetch.h"
#include "cpu/products.h"
#include "cpu/score_limits.h"
#include "cpu/token_rows.h"

namespace sdwa::cpu::SDWA_ISA {
namespace {

// Runs items of heads of one dilation, in scratch that is laid out for it.
template <typename T>
class ForwardKernel {
  using A = Accumulation<T>;
  static constexpr int kWidth = kLanes<A>;
  static constexpr int kStrips = kStripsPerBlock<A>;

 public:
  ForwardKernel(const ForwardArgs& args, const Plan& plan, int64_t head, int64_t piece,
                Scratch& scratch)
      : args_(args),
        problem_(args.problem),
        streaming_(streaming(args, plan)),
        in_place_(has_scratch_form<T>(problem_.head_dim)),
        stride_(token_stride<A>(problem_.head_dim)),
        window_(problem_, head),
        products_(choose_products<A>(window_.columns.size, stride_ / kLanes<A>)),
        piece_(piece),
        layout_(window_.columns, window_.width, Pieces(problem_, plan, head)[piece], 0,
                window_.columns.size == 3 && window_.columns.plain(), scratch),
        step_(rows_per_block<A>(layout_)),
        query_(token_ring<A>(step_, layout_, stride_, scratch)),
        key_(token_ring<A>(ring_rows(), layout_, stride_, scratch)),
        value_(token_ring<A>(ring_rows(), layout_, stride_, scratch)),
        limits_(args.key_mask, window_, layout_, ring_rows(), scratch),
        partial_(scratch.take<Vec<A>>(window_.taps() * kStrips)),
        scores_(scratch.take<Vec<A>>(window_.taps())),
        result_(scratch.take<A>(int64_t(kStripSize) * stride_)),
        windows_(window_, stride_, scratch),
        weight_rows_(scratch.take<const A*>(window_.rows.size)) {
    if (scores_ == nullptr) return;
    for (int32_t h = 0; h < window_.rows.size; ++h) {
      weight_rows_[h] = reinterpret_cast<const A*>(scores_ + h * window_.columns.size);
    }
  }

  // Whether results go past the caches.
  static bool streaming(const ForwardArgs& args, const Plan& plan) {
    return plan.streaming && can_stream<T>(args.out, args.problem.head_dim);
  }

  bool serves(int64_t head, int64_t piece) const {
    return piece == piece_ && window_.same_dilation(problem_, head);
  }

  template <typename Prefetch>
  void run(const ItemBounds& item, Prefetch& prefetch) {
    batch_ = item.batch;
    head_ = item.head;
    queries_ = Plane<T>(args_.query, batch_, head_);
    const Plane<T> key(args_.key, batch_, head_);
    const Plane<T> value(args_.value, batch_, head_);
    for (int32_t phase = 0; phase < window_.rows.phases(window_.height); ++phase) {
      const PhaseRows rows(window_.rows, window_.height, phase, item.row_begin, item.row_end);
      const auto first_key = [&](int32_t row) { return window_.rows.start(row, rows.on_map); };
      int32_t read = first_key(rows.first) > 0 ? first_key(rows.first) : 0;
      for (int32_t row = rows.first; row < rows.last; row += step_) {
        const int32_t end = row + step_ < rows.last ? row + step_ : rows.last;
        const int32_t keys_end = first_key(end - 1) + window_.rows.size;
        for (; read < keys_end && read < rows.on_map; ++read) {
          const int64_t y = phase + int64_t(read) * window_.rows.dilation;
          read_row(key.row(y), key.width_stride, layout_, problem_.head_dim, stride_,
                   key_.row(read));
          read_row(value.row(y), value.width_stride, layout_, problem_.head_dim, stride_,
                   value_.row(read));
          limits_.read_row(batch_, y, read);
        }
        Block block;
        for (int32_t r = row; r < end; ++r) {
          const int32_t y = phase + r * window_.rows.dilation;
          if (!in_place_) {
            read_row(queries_.row(y), queries_.width_stride, layout_, problem_.head_dim, stride_,
                     query_.row(r));
          }
          for (int32_t i = 0; i < layout_.strip_count; ++i) {
            block.strips[block.count++] = {r, y, layout_.strips[i]};
            if (block.count == kStrips) finish(block, rows.on_map, prefetch);
          }
        }
        if (block.count > 0) finish(block, rows.on_map, prefetch);
      }
    }
  }

 private:
  int32_t ring_rows() const { return window_.key_rows(step_); }

  template <typename Prefetch>
  void finish(Block& block, int32_t rows_on_map, Prefetch& prefetch) {
    for (int32_t u = 0; u < block.count; ++u) {
      windows_.find(u, block.strips[u], key_, rows_on_map);
    }
    dot_block(
        block, [&](const PlacedStrip& at) { return queries(at); }, windows_, 0, window_, products_,
        partial_, scores_);
    const Vec<A> lse = softmax(block, rows_on_map);
    for (int32_t u = 0; u < block.count; ++u) {
      prefetch.advance(block.strips[u].strip.count);
      write(block.strips[u], u, lse);
    }
    block.count = 0;
  }

  StripTokens<const A> queries(const PlacedStrip& at) const {
    if constexpr (std::is_same_v<T, A>) {
      if (in_place_) {
        const int32_t dilation = window_.columns.dilation;
        return {at.strip.around, at.strip.count,
                queries_.row(at.y) + at.strip.x * queries_.width_stride,
                dilation * queries_.width_stride, at.strip.jump(dilation) * queries_.width_stride};
      }
    }
    return strip_tokens(at, query_, stride_);
  }

  // Turns scores into probabilities, and returns lse. Where nothing is left of a window, every
  // score being minus infinity, these are 0 and minus infinity.
  Vec<A> softmax(const Block& block, int32_t rows_on_map) {
    finish_scores<A>(args_, head_, window_, limits_, block, rows_on_map, scores_);
    const int32_t taps = window_.taps();
    // Finite, for the difference to a score of minus infinity.
    Vec<A> largest = broadcast(std::numeric_limits<A>::lowest());
    for (int32_t t = 0; t < taps; ++t) largest = maximum<A>(scores_[t], largest);
    Vec<A> sum = {};
    for (int32_t t = 0; t < taps; ++t) sum += scores_[t] = exp<A>(scores_[t] - largest);
    const auto nothing = sum == Vec<A>{};
    const Vec<A> inverse = nothing ? Vec<A>{} : A(1) / sum;
    for (int32_t t = 0; t < taps; ++t) scores_[t] *= inverse;
    return nothing ? broadcast(-kInfinity<A>) : largest + log<A>(sum);
  }

  void write(const PlacedStrip& at, int32_t u, Vec<A> lse) {
    const int64_t token =
        ((batch_ * problem_.height + at.y) * problem_.width + at.strip.x) * problem_.heads + head_;
    const int32_t dilation = window_.columns.dilation;
    const int64_t pixel_size = problem_.heads * problem_.head_dim;
    T* const out = static_cast<T*>(args_.out) + token * problem_.head_dim;
    StripTokens<A> results{at.strip.around, at.strip.count, result_, stride_};
    const StripWindow<A> values = windows_.of(u, key_.shift_to(value_));
    const StripWeights<A> weights{weight_rows_, u * kStripSize, kWidth};
    if (at.strip.around == Around::kShared) {
      std::memset(result_, 0, sizeof(A) * kStripSize * stride_);
      products_.add_shared(values, weights, results);
    } else {
      if constexpr (std::is_same_v<T, A>) {
        if (in_place_) {
          results.first = out;
          results.step = dilation * pixel_size;
          results.jump = at.strip.jump(dilation) * pixel_size;
          results.streaming = streaming_;
        }
      }
      products_.sum(values, weights, results);
    }
    for (int32_t i = 0; i < at.strip.count; ++i) {
      const int32_t pixels = at.strip.pixels(i, dilation);
      if (results.first == result_) {
        write_token(result_ + i * stride_, problem_.head_dim, streaming_,
                    out + pixels * pixel_size);
      }
      static_cast<A*>(args_.lse)[token + pixels * problem_.heads] = lse[u * kStripSize + i];
    }
  }

  const ForwardArgs& args_;
  const Problem& problem_;
  int64_t batch_, head_;  // of the item
  Plane<T> queries_;
  const bool streaming_;
  const bool in_place_;
  const int stride_;
  const HeadWindow window_;
  const Products<A> products_;
  const int64_t piece_;
  const RowLayout layout_;
  const int32_t step_;  // rows walked at a time
  const RowRing<A> query_, key_, value_;
  ScoreLimits<A> limits_;
  Vec<A>* const partial_;
  Vec<A>* const scores_;
  A* const result_;
  BlockWindows<A> windows_;
  const A** const weight_rows_;
};

template <typename T>
void run_items(const ForwardArgs& args, const Plan& plan, int64_t begin, int64_t end,
               char* buffer) {
  const Problem& problem = args.problem;
  const InputView keys[] = {args.key, args.value};
  const InputView queries[] = {args.query, contiguous_view(problem, args.out)};
  // A row of keys is read at once, and so is one of queries that is copied.
  const int64_t query_rows = has_scratch_form<T>(problem.head_dim) ? 0 : 1;
  Prefetchers<Prefetcher<2, 2>, Prefetcher<1, 2>> prefetch{
      {problem, plan, keys, begin, end, problem.kernel_h / 2 + 1},
      {problem, plan, queries, begin, end, query_rows, ForwardKernel<T>::streaming(args, plan)}};
  for_each_item<ForwardKernel<T>>(args, plan, begin, end, buffer,
                                  [&](ForwardKernel<T>& kernel, const ItemBounds& bounds, int64_t) {
                                    kernel.run(bounds, prefetch);
                                  });
}

}  // namespace

int64_t forward_scratch(const ForwardArgs& args, const Plan& plan) {
  return with_type(args.problem.dtype, [&](auto type) {
    using A = Accumulation<typename decltype(type)::type>;
    return largest_scratch<ForwardKernel<A>>(args, plan);
  });
}

void forward(const ForwardArgs& args, const Plan& plan, int64_t begin, int64_t end, char* scratch) {
  with_type(args.problem.dtype, [&](auto type) {
    run_items<typename decltype(type)::type>(args, plan, begin, end, scratch);
  });
}

}  // namespace sdwa::cpu::SDWA_ISA
