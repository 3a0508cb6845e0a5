// Backward kernel. Compiled once for each instruction set.
//
// The rows of a phase are walked once. Each step has two stages:
// - queries: the probabilities of a row's queries are computed again from lse, with
//   grad_score = probability * (<grad_out, value> - delta), delta = <grad_out, out> - grad_lse;
//   grad_query is summed from grad_score and the keys around; probability and grad_score stay in
//   scratch;
// - keys: for the row whose queries are now all there, grad_key is summed from grad_score and the
//   queries around, grad_value from probability and grad_out around. Each sum gathers its terms, so
//   nothing is atomic.
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
class BackwardKernel {
  using A = Accumulation<T>;
  static constexpr int kWidth = kLanes<A>;
  static constexpr int kStrips = kStripsPerBlock<A>;

 public:
  BackwardKernel(const BackwardArgs& args, const Plan& plan, int64_t head, int64_t piece,
                 Scratch& scratch)
      : args_(args),
        problem_(args.problem),
        streaming_(plan.streaming && can_stream<T>(args.grad_query, problem_.head_dim) &&
                   can_stream<T>(args.grad_key, problem_.head_dim) &&
                   can_stream<T>(args.grad_value, problem_.head_dim)),
        stride_(token_stride<A>(problem_.head_dim)),
        window_(problem_, head),
        products_(choose_products<A>(window_.columns.size, stride_ / kLanes<A>)),
        piece_(piece),
        layout_(window_.columns, window_.width, Pieces(problem_, plan, head)[piece],
                window_.columns.reach(), false, scratch),
        step_(rows_per_block<A>(layout_)),
        query_(token_ring<A>(ring_rows(), layout_, stride_, scratch)),
        key_(token_ring<A>(ring_rows(), layout_, stride_, scratch)),
        value_(token_ring<A>(ring_rows(), layout_, stride_, scratch)),
        grad_out_(token_ring<A>(ring_rows(), layout_, stride_, scratch)),
        limits_(args.key_mask, window_, layout_, ring_rows(), scratch),
        delta_(step_, layout_.slots, scratch),
        lse_(step_, layout_.slots, scratch),
        probability_(ring_rows(), int64_t(window_.taps()) * layout_.slots, scratch),
        grad_score_(ring_rows(), int64_t(window_.taps()) * layout_.slots, scratch),
        partial_(scratch.take<Vec<A>>(window_.taps() * kStrips)),
        scores_(scratch.take<Vec<A>>(window_.taps())),
        grad_probability_(scratch.take<Vec<A>>(window_.taps())),
        grad_bias_(scratch.take<Vec<A>>(window_.taps())),
        result_(scratch.take<A>(int64_t(kStripSize) * stride_)),
        windows_(window_, stride_, scratch),
        weight_rows_(scratch.take<const A*>(window_.rows.size)) {}

  bool serves(int64_t head, int64_t piece) const {
    return piece == piece_ && window_.same_dilation(problem_, head);
  }

  // grad_bias: (kernel_h, kernel_w) sums over the item's queries, or null.
  template <typename Prefetch>
  void run(const ItemBounds& item, A* grad_bias, Prefetch& prefetch) {
    batch_ = item.batch;
    head_ = item.head;
    const int32_t taps = window_.taps();
    // Margins and rows of weights are read before they are written: as zeros.
    std::memset(probability_.data(), 0, sizeof(A) * probability_.size());
    std::memset(grad_score_.data(), 0, sizeof(A) * grad_score_.size());
    for (int32_t t = 0; t < taps; ++t) grad_bias_[t] = Vec<A>{};
    for (int32_t phase = 0; phase < window_.rows.phases(window_.height); ++phase) {
      run_phase(phase, PhaseRows(window_.rows, window_.height, phase, item.row_begin, item.row_end),
                prefetch);
    }
    if (grad_bias == nullptr) return;
    for (int32_t t = 0; t < taps; ++t) grad_bias[t] = sum_lanes<A>(grad_bias_[t]);
  }

 private:
  int32_t ring_rows() const { return window_.ring_rows(step_); }

  template <typename Prefetch>
  void run_phase(int32_t phase, const PhaseRows& rows, Prefetch& prefetch) {
    if (rows.first >= rows.last) return;
    const int32_t reach = window_.rows.reach();
    // Keys of the band are read by queries up to `reach` rows outside it.
    const int32_t begin = rows.first > reach ? rows.first - reach : 0;
    const int32_t end = rows.last + reach < rows.on_map ? rows.last + reach : rows.on_map;
    int32_t read = begin > reach ? begin - reach : 0;
    int32_t key_row = rows.first;
    for (int32_t row = begin; row < end; row += step_) {
      const int32_t row_end = row + step_ < end ? row + step_ : end;
      for (; read < row_end + reach && read < rows.on_map; ++read) read_keys(phase, read);
      Block block;
      for (int32_t r = row; r < row_end; ++r) {
        read_queries(phase, r);
        const int32_t y = phase + r * window_.rows.dilation;
        for (int32_t i = 0; i < layout_.strip_count; ++i) {
          block.strips[block.count++] = {r, y, layout_.strips[i]};
          if (block.count == kStrips) finish_queries(block, rows, prefetch);
        }
      }
      if (block.count > 0) finish_queries(block, rows, prefetch);
      // Rows whose queries are all there.
      const int32_t ready = row_end == end ? rows.last : row_end - reach;
      for (; key_row < ready; ++key_row) finish_keys(phase, key_row, rows, row_end);
    }
  }

  void read_keys(int32_t phase, int32_t row) {
    const Plane<T> key(args_.key, batch_, head_);
    const Plane<T> value(args_.value, batch_, head_);
    const int64_t y = phase + int64_t(row) * window_.rows.dilation;
    read_row(key.row(y), key.width_stride, layout_, problem_.head_dim, stride_, key_.row(row));
    read_row(value.row(y), value.width_stride, layout_, problem_.head_dim, stride_,
             value_.row(row));
    limits_.read_row(batch_, y, row);
  }

  void read_queries(int32_t phase, int32_t row) {
    const Plane<T> query(args_.query, batch_, head_);
    const Plane<T> grad_out(args_.grad_out, batch_, head_);
    const int64_t y = phase + int64_t(row) * window_.rows.dilation;
    read_row(query.row(y), query.width_stride, layout_, problem_.head_dim, stride_,
             query_.row(row));
    A* const grads = grad_out_.row(row);
    read_row(grad_out.row(y), grad_out.width_stride, layout_, problem_.head_dim, stride_, grads);
    A* const delta = delta_.row(row);
    A* const lse = lse_.row(row);
    const int64_t first =
        ((batch_ * problem_.height + y) * problem_.width) * problem_.heads + head_;
    const T* const out = static_cast<const T*>(args_.out);
    for_each_slot(layout_, [&](int32_t slot, int32_t x) __attribute__((always_inline)) {
      const int64_t token = first + x * problem_.heads;
      read_token(out + token * problem_.head_dim, problem_.head_dim, result_);
      Vec<A> sum = {};
      for (int d = 0; d < stride_; d += kWidth) {
        sum += load(grads + int64_t(slot) * stride_ + d) * load(result_ + d);
      }
      delta[slot] = sum_lanes<A>(sum);
      if (args_.grad_lse) delta[slot] -= static_cast<const A*>(args_.grad_lse)[token];
      lse[slot] = static_cast<const A*>(args_.lse)[token];
    });
  }

  template <typename Prefetch>
  void finish_queries(Block& block, const PhaseRows& rows, Prefetch& prefetch) {
    A delta[kWidth] = {};
    A lse[kWidth] = {};
    for (int32_t u = 0; u < block.count; ++u) {
      const PlacedStrip& at = block.strips[u];
      for (int32_t i = 0; i < at.strip.count; ++i) {
        delta[u * kStripSize + i] = delta_.row(at.row)[at.strip.slot + i];
        lse[u * kStripSize + i] = lse_.row(at.row)[at.strip.slot + i];
      }
    }
    const auto of = [&](const RowRing<A>& ring) {
      return [&](const PlacedStrip& at) { return strip_tokens(at, ring, stride_); };
    };
    for (int32_t u = 0; u < block.count; ++u) {
      windows_.find(u, block.strips[u], key_, 0, rows.on_map);
    }
    dot_block(block, of(query_), windows_, 0, window_, products_, partial_, scores_);
    dot_block(block, of(grad_out_), windows_, key_.shift_to(value_), window_, products_, partial_,
              grad_probability_);
    differentiate(block, load(delta), load(lse), rows);
    for (int32_t u = 0; u < block.count; ++u) {
      const PlacedStrip& at = block.strips[u];
      if (!is_own(at, rows)) continue;
      prefetch.advance(at.strip.count);
      write_grad_query(at, u);
    }
    block.count = 0;
  }

  // Whether the queries are the item's, and not worked on for the keys of others only.
  static bool is_own(const PlacedStrip& at, const PhaseRows& rows) {
    return at.strip.around != Around::kHalo && at.row >= rows.first && at.row < rows.last;
  }

  // From <query, key> and <grad_out, value> to probability, grad_score and grad_bias.
  void differentiate(const Block& block, Vec<A> delta, Vec<A> lse, const PhaseRows& rows) {
    const int32_t taps = window_.taps();
    const A scale = static_cast<A>(problem_.scale);
    finish_scores<A>(args_, head_, window_, limits_, block, rows.on_map, scores_);
    // Nothing was left of such a window: probabilities of 0, whatever its gradients are.
    const auto nothing = lse == -kInfinity<A>;
    lse = nothing ? broadcast(kInfinity<A>) : lse;
    delta = nothing ? Vec<A>{} : delta;
    IntVec<A> present = {};  // lanes with a query
    IntVec<A> own = {};      // and those with a query of the item
    for (int32_t u = 0; u < block.count; ++u) {
      const PlacedStrip& at = block.strips[u];
      const int32_t of_item = is_own(at, rows) ? -1 : 0;
      for (int32_t i = 0; i < at.strip.count; ++i) {
        present[u * kStripSize + i] = -1;
        own[u * kStripSize + i] = of_item;
      }
    }
    // Where the strips' probabilities go; grad_score lies as far behind as its ring does.
    A* weights[kStrips] = {};
    for (int32_t u = 0; u < block.count; ++u) {
      weights[u] = probability_.row(block.strips[u].row) + block.strips[u].strip.slot;
    }
    for (int32_t t = 0; t < taps; ++t) {
      const Vec<A> probability = present ? exp<A>(scores_[t] - lse) : Vec<A>{};
      const Vec<A> grad_score = present ? probability * (grad_probability_[t] - delta) : Vec<A>{};
      grad_bias_[t] += own ? grad_score : Vec<A>{};
      const int64_t tap = int64_t(t) * layout_.slots;
      save(block.count, weights, tap, probability);
      save(block.count, weights, tap + probability_.shift_to(grad_score_), grad_score * scale);
    }
  }

  // Lanes without a query are zero: they fall on margins, or on slots that a later strip fills.
  static void save(int32_t strips, A* const (&weights)[kStrips], int64_t shift, Vec<A> values) {
    A lanes[kWidth];
    store(lanes, values);
    for (int32_t u = 0; u < strips; ++u) {
      std::memcpy(weights[u] + shift, lanes + u * kStripSize, sizeof(A) * kStripSize);
    }
  }

  void write_grad_query(const PlacedStrip& at, int32_t u) {
    for (int32_t h = 0; h < window_.rows.size; ++h) {
      weight_rows_[h] = grad_score_.row(at.row) +
                        int64_t(h) * window_.columns.size * layout_.slots + at.strip.slot;
    }
    products_.sum(windows_.of(u), StripWeights<A>{weight_rows_, 0, layout_.slots},
                  StripTokens<A>{at.strip, result_, stride_});
    write_result(at, args_.grad_query);
  }

  void finish_keys(int32_t phase, int32_t row, const PhaseRows& rows, int32_t rows_ready) {
    const int32_t y = phase + row * window_.rows.dilation;
    const int32_t begin = rows.first > window_.rows.reach() ? rows.first - window_.rows.reach() : 0;
    for (int32_t i = 0; i < layout_.strip_count; ++i) {
      const PlacedStrip at{row, y, layout_.strips[i]};
      if (at.strip.around == Around::kHalo) continue;
      windows_.find(0, at, query_, begin, rows_ready);
      find_weights(at, begin, rows_ready);
      write_gathered(at, 0, 0, args_.grad_key);
      write_gathered(at, query_.shift_to(grad_out_), grad_score_.shift_to(probability_),
                     args_.grad_value);
    }
  }

  // The query h, w taps away from a key reads it through the mirrored tap.
  void find_weights(const PlacedStrip& at, int32_t rows_begin, int32_t rows_end) {
    const WindowAxis& columns = window_.columns;
    for (int32_t h = 0; h < window_.rows.size; ++h) {
      const int32_t row = at.row + h - window_.rows.reach();
      if (row < rows_begin || row >= rows_end) continue;
      const int32_t tap = tap_index(columns, window_.rows.mirrored(h), columns.mirrored(0));
      weight_rows_[h] =
          grad_score_.row(row) + int64_t(tap) * layout_.slots + at.strip.slot - columns.reach();
    }
  }

  // Sums the queries around keys, or what lies that far from them, with their weights.
  void write_gathered(const PlacedStrip& at, int64_t token_shift, int64_t weight_shift,
                      void* target) {
    products_.sum(windows_.of(0, token_shift),
                  StripWeights<A>{weight_rows_, weight_shift, 1 - layout_.slots},
                  StripTokens<A>{at.strip, result_, stride_});
    write_result(at, target);
  }

  void write_result(const PlacedStrip& at, void* target) {
    int64_t pixel = (batch_ * problem_.height + at.y) * problem_.width + at.strip.x;
    for (int32_t i = 0; i < at.strip.count; ++i, pixel += window_.columns.dilation) {
      write_token(result_ + i * stride_, problem_.head_dim, streaming_,
                  static_cast<T*>(target) + (pixel * problem_.heads + head_) * problem_.head_dim);
    }
  }

  const BackwardArgs& args_;
  const Problem& problem_;
  int64_t batch_, head_;  // of the item
  const bool streaming_;
  const int stride_;
  const HeadWindow window_;
  const Products<A> products_;
  const int64_t piece_;
  const RowLayout layout_;
  const int32_t step_;  // rows walked at a time
  const RowRing<A> query_, key_, value_, grad_out_;
  ScoreLimits<A> limits_;
  const RowRing<A> delta_, lse_;               // a number per slot
  const RowRing<A> probability_, grad_score_;  // (taps, slots) per row; grad_score is times scale
  Vec<A>* const partial_;
  Vec<A>* const scores_;
  Vec<A>* const grad_probability_;
  Vec<A>* const grad_bias_;
  A* const result_;
  BlockWindows<A> windows_;
  const A** const weight_rows_;
};

template <typename T>
void run_items(const BackwardArgs& args, const Plan& plan, int64_t begin, int64_t end,
               void* grad_bias, char* buffer) {
  const Problem& problem = args.problem;
  const int64_t taps = problem.kernel_h * problem.kernel_w;
  const InputView views[] = {args.query,
                             args.key,
                             args.value,
                             args.grad_out,
                             contiguous_view(problem, args.out),
                             contiguous_view(problem, args.grad_query),
                             contiguous_view(problem, args.grad_key),
                             contiguous_view(problem, args.grad_value)};
  Prefetcher<5, 8> prefetch(problem, plan, views, begin, end);
  auto* const sums = static_cast<Accumulation<T>*>(grad_bias);
  for_each_item<BackwardKernel<T>>(
      args, plan, begin, end, buffer,
      [&](BackwardKernel<T>& kernel, const ItemBounds& bounds, int64_t item) {
        kernel.run(bounds, sums ? sums + item * taps : nullptr, prefetch);
      });
}

}  // namespace

int64_t backward_scratch(const BackwardArgs& args, const Plan& plan) {
  return with_type(args.problem.dtype, [&](auto type) {
    using A = Accumulation<typename decltype(type)::type>;
    return largest_scratch<BackwardKernel<A>>(args, plan);
  });
}

void backward(const BackwardArgs& args, const Plan& plan, int64_t begin, int64_t end,
              void* grad_bias, char* scratch) {
  with_type(args.problem.dtype, [&](auto type) {
    run_items<typename decltype(type)::type>(args, plan, begin, end, grad_bias, scratch);
  });
}

}  // namespace sdwa::cpu::SDWA_ISA
