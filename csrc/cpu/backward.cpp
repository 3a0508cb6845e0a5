// Backward kernel. Compiled once for each instruction set.
//
// The rows of a phase are walked once. Each step has two stages:
// - queries: the probabilities of a row's queries are computed again from lse, with
//   grad_score = probability * (<grad_out, value> - delta + grad_lse), delta = <grad_out, out>;
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
        streaming_(streaming(args, plan)),
        in_place_(has_scratch_form<T>(problem_.head_dim)),
        stride_(token_stride<A>(problem_.head_dim)),
        window_(problem_, head),
        products_(choose_products<A>(window_.columns.size, stride_ / kLanes<A>)),
        piece_(piece),
        layout_(window_.columns, window_.width, Pieces(problem_, plan, head)[piece],
                window_.columns.farthest(), false, scratch),
        step_(rows_per_block<A>(layout_)),
        query_(token_ring<A>(query_rows(), layout_, stride_, scratch)),
        key_(token_ring<A>(key_rows(), layout_, stride_, scratch)),
        value_(token_ring<A>(key_rows(), layout_, stride_, scratch)),
        grad_out_(token_ring<A>(query_rows(), layout_, stride_, scratch)),
        limits_(args.key_mask, window_, layout_, key_rows(), scratch),
        delta_(step_, layout_.slots, scratch),
        lse_(step_, layout_.slots, scratch),
        grad_lse_(step_, layout_.slots, scratch),
        probability_(query_rows(), int64_t(window_.taps()) * layout_.slots, scratch),
        grad_score_(query_rows(), int64_t(window_.taps()) * layout_.slots, scratch),
        end_pitch_(window_.columns.size + kStripSize - 1),
        end_lanes_(layout_.end_queries > 0 ? layout_.end_queries + kStripSize - 1 : 0),
        end_probability_(query_rows(), end_row_size(), scratch),
        end_grad_score_(query_rows(), end_row_size(), scratch),
        partial_(scratch.take<Vec<A>>(window_.taps() * kStrips)),
        scores_(scratch.take<Vec<A>>(window_.taps())),
        grad_probability_(scratch.take<Vec<A>>(window_.taps())),
        grad_bias_(scratch.take<Vec<A>>(window_.taps())),
        bias_lost_(scratch.take<Vec<A>>(window_.taps())),
        bias_sums_(scratch.take<A>(args.grad_bias ? problem_.bias_size() : 0)),
        result_(scratch.take<A>(int64_t(kStripSize) * stride_)),
        windows_(window_, stride_, scratch),
        own_rows_(scratch.take<const A*>(window_.rows.size)),
        token_rows_(scratch.take<const A*>(3 * window_.rows.most_queries())),
        weight_rows_(scratch.take<const A*>(3 * window_.rows.most_queries())) {
    if (own_rows_ == nullptr) return;
    for (int32_t h = 0; h < window_.rows.size; ++h) {
      own_rows_[h] = reinterpret_cast<const A*>(grad_probability_ + h * window_.columns.size);
    }
  }

  // Whether results go past the caches.
  static bool streaming(const BackwardArgs& args, const Plan& plan) {
    const int64_t head_dim = args.problem.head_dim;
    return plan.streaming && can_stream<T>(args.grad_query, head_dim) &&
           can_stream<T>(args.grad_key, head_dim) && can_stream<T>(args.grad_value, head_dim);
  }

  bool serves(int64_t head, int64_t piece) const {
    return piece == piece_ && window_.same_dilation(problem_, head);
  }

  // grad_bias: (bias_h, bias_w) sums over the item's queries, or null.
  template <typename Prefetch>
  void run(const ItemBounds& item, A* grad_bias, Prefetch& prefetch) {
    batch_ = item.batch;
    head_ = item.head;
    const int32_t taps = window_.taps();
    // Margins and rows of weights are read before they are written: as zeros.
    std::memset(probability_.data(), 0, sizeof(A) * probability_.size());
    std::memset(grad_score_.data(), 0, sizeof(A) * grad_score_.size());
    for (int32_t t = 0; t < taps; ++t) grad_bias_[t] = bias_lost_[t] = Vec<A>{};
    if (grad_bias) std::memset(bias_sums_, 0, sizeof(A) * problem_.bias_size());
    for (int32_t phase = 0; phase < window_.rows.phases(window_.height); ++phase) {
      run_phase(phase, PhaseRows(window_.rows, window_.height, phase, item.row_begin, item.row_end),
                prefetch);
    }
    if (grad_bias == nullptr) return;
    if (!problem_.by_distance) {
      for (int32_t t = 0; t < taps; ++t) bias_sums_[t] = sum_lanes<A>(grad_bias_[t]);
    }
    std::memcpy(grad_bias, bias_sums_, sizeof(A) * problem_.bias_size());
  }

 private:
  int32_t key_rows() const { return window_.key_rows(step_); }
  int32_t query_rows() const { return window_.query_rows(step_); }
  int64_t end_row_size() const { return int64_t(window_.rows.size) * end_pitch_ * end_lanes_; }

  template <typename Prefetch>
  void run_phase(int32_t phase, const PhaseRows& rows, Prefetch& prefetch) {
    if (rows.first >= rows.last) return;
    const WindowAxis& axis = window_.rows;
    // Keys of the band are read by queries outside it, too.
    const int32_t begin = first_query_row(rows.first);
    const int32_t end = end_of_query_rows(rows.last - 1, rows);
    int32_t read = axis.start(begin, rows.on_map) > 0 ? axis.start(begin, rows.on_map) : 0;
    int32_t key_row = rows.first;
    for (int32_t row = begin; row < end; row += step_) {
      const int32_t row_end = row + step_ < end ? row + step_ : end;
      const int32_t keys_end = axis.start(row_end - 1, rows.on_map) + axis.size;
      for (; read < keys_end && read < rows.on_map; ++read) read_keys(phase, read);
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
      while (key_row < rows.last && end_of_query_rows(key_row, rows) <= row_end) {
        finish_keys(phase, key_row++, rows, begin, row_end);
      }
    }
  }

  // Rows of queries whose windows hold a row of keys.
  int32_t first_query_row(int32_t key_row) const {
    const int32_t row = window_.rows.first_query(key_row);
    return row > 0 ? row : 0;
  }
  int32_t end_of_query_rows(int32_t key_row, const PhaseRows& rows) const {
    const int32_t end = window_.rows.last_query(key_row, rows.on_map) + 1;
    return end < rows.on_map ? end : rows.on_map;
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
    read_row(grad_out.row(y), grad_out.width_stride, layout_, problem_.head_dim, stride_,
             grad_out_.row(row));
    const int head_dim = static_cast<int>(problem_.head_dim);
    const T* const grads = grad_out.row(y);
    A* const delta = delta_.row(row);
    A* const lse = lse_.row(row);
    A* const grad_lse = grad_lse_.row(row);
    const int64_t first =
        ((batch_ * problem_.height + y) * problem_.width) * problem_.heads + head_;
    const T* const out = static_cast<const T*>(args_.out);
    for_each_slot(layout_, [&](int32_t slot, int32_t x) __attribute__((always_inline)) {
      const int64_t token = first + x * problem_.heads;
      delta[slot] =
          dot_tokens(out + token * problem_.head_dim, grads + x * grad_out.width_stride, head_dim);
      grad_lse[slot] = args_.grad_lse ? static_cast<const A*>(args_.grad_lse)[token] : A(0);
      lse[slot] = static_cast<const A*>(args_.lse)[token];
    });
  }

  template <typename Prefetch>
  void finish_queries(Block& block, const PhaseRows& rows, Prefetch& prefetch) {
    A delta[kWidth] = {};
    A lse[kWidth] = {};
    A grad_lse[kWidth] = {};
    unroll<kStrips>([&](int u) __attribute__((always_inline)) {
      if (u >= block.count) return;
      const PlacedStrip& at = block.strips[u];
      constexpr int kBytes = sizeof(A) * kStripSize;
      std::memcpy(delta + u * kStripSize, delta_.row(at.row) + at.strip.slot, kBytes);
      std::memcpy(lse + u * kStripSize, lse_.row(at.row) + at.strip.slot, kBytes);
      std::memcpy(grad_lse + u * kStripSize, grad_lse_.row(at.row) + at.strip.slot, kBytes);
    });
    const auto of = [&](const RowRing<A>& ring) {
      return [&](const PlacedStrip& at) { return strip_tokens(at, ring, stride_); };
    };
    for (int32_t u = 0; u < block.count; ++u) {
      windows_.find(u, block.strips[u], key_, rows.on_map);
    }
    dot_block(block, of(query_), windows_, 0, window_, products_, partial_, scores_);
    dot_block(block, of(grad_out_), windows_, key_.shift_to(value_), window_, products_, partial_,
              grad_probability_);
    differentiate(block, load(delta), load(lse), load(grad_lse), rows);
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
    return at.strip.own && at.row >= rows.first && at.row < rows.last;
  }

  // From <query, key> and <grad_out, value> to probability, grad_score and grad_bias.
  void differentiate(const Block& block, Vec<A> delta, Vec<A> lse, Vec<A> grad_lse,
                     const PhaseRows& rows) {
    const int32_t taps = window_.taps();
    const A scale = static_cast<A>(problem_.scale);
    finish_scores<A>(args_, head_, window_, limits_, block, rows.on_map, scores_);
    // Nothing was left of such a window: probabilities of 0, whatever its gradients are.
    const auto nothing = lse == -kInfinity<A>;
    lse = nothing ? broadcast(kInfinity<A>) : lse;
    delta = nothing ? Vec<A>{} : delta;
    grad_lse = nothing ? Vec<A>{} : grad_lse;
    typename Types<A>::Int queries[kWidth] = {};      // of each lane's strip
    typename Types<A>::Int own_queries[kWidth] = {};  // those of the item
    for (int32_t u = 0; u < block.count; ++u) {
      const PlacedStrip& at = block.strips[u];
      const int32_t of_item = is_own(at, rows) ? at.strip.count : 0;
      unroll<kStripSize>([&](int i) __attribute__((always_inline)) {
        queries[u * kStripSize + i] = at.strip.count;
        own_queries[u * kStripSize + i] = of_item;
      });
    }
    const IntVec<A> numbers = lane_numbers<A>() % kStripSize;
    IntVec<A> present, own;  // lanes with a query, and those with one of the item
    std::memcpy(&present, queries, sizeof present);
    std::memcpy(&own, own_queries, sizeof own);
    present = numbers < present;
    own = numbers < own;
    // Where the strips' probabilities go; grad_score lies as far behind as its ring does.
    A* weights[kStrips] = {};
    for (int32_t u = 0; u < block.count; ++u) {
      weights[u] = probability_.row(block.strips[u].row) + block.strips[u].strip.slot;
    }
    const bool by_distance = args_.grad_bias && problem_.by_distance;
    for (int32_t t = 0; t < taps; ++t) {
      const Vec<A> probability = present ? exp<A>(scores_[t] - lse) : Vec<A>{};
      const Vec<A> grad_score =
          present ? probability * (grad_probability_[t] - delta + grad_lse) : Vec<A>{};
      if (by_distance) {
        grad_bias_[t] = own ? grad_score : Vec<A>{};
      } else if (args_.grad_bias) {
        // Kahan's summation: the terms are many, and most of them cancel out.
        const Vec<A> term = (own ? grad_score : Vec<A>{}) - bias_lost_[t];
        const Vec<A> sum = grad_bias_[t] + term;
        const Vec<A> lost = (sum - grad_bias_[t]) - term;
        bias_lost_[t] = lost == lost ? lost : Vec<A>{};  // infinities stay what they are
        grad_bias_[t] = sum;
      }
      scores_[t] = probability;
      grad_probability_[t] = grad_score * scale;
      const int64_t tap = int64_t(t) * layout_.slots;
      save(block, weights, tap, probability);
      save(block, weights, tap + probability_.shift_to(grad_score_), grad_probability_[t]);
    }
    for (int32_t u = 0; u < block.count; ++u) {
      const PlacedStrip& at = block.strips[u];
      if (at.strip.around == Around::kShared) save_end(at, u);
      if (by_distance) add_grad_bias(at, u, rows.on_map);
    }
  }

  // Lanes without a query are zero: they fall on margins, or on slots that a later strip fills.
  // Those of shared strips go elsewhere, and their slots stay zero.
  static void save(const Block& block, A* const (&weights)[kStrips], int64_t shift, Vec<A> values) {
    A lanes[kWidth];
    store(lanes, values);
    for (int32_t u = 0; u < block.count; ++u) {
      if (block.strips[u].strip.around == Around::kShared) continue;
      std::memcpy(weights[u] + shift, lanes + u * kStripSize, sizeof(A) * kStripSize);
    }
  }

  // The weights of a shared strip, for the keys: tap by tap, those of all queries at ends next to
  // each other. Behind a row of taps is room for the keys of a strip that are not among them. As
  // above, lanes without a query fall on what a later strip fills, or on spare ones.
  void save_end(const PlacedStrip& at, int32_t u) {
    const auto* probability = reinterpret_cast<const A*>(scores_) + u * kStripSize;
    const auto* grad_score = reinterpret_cast<const A*>(grad_probability_) + u * kStripSize;
    for (int32_t h = 0; h < window_.rows.size; ++h) {
      int64_t to = end_weight(h, 0, at.strip.end);
      for (int32_t w = 0; w < window_.columns.size; ++w, to += end_lanes_) {
        std::memcpy(end_probability_.row(at.row) + to, probability, sizeof(A) * kStripSize);
        std::memcpy(end_grad_score_.row(at.row) + to, grad_score, sizeof(A) * kStripSize);
        probability += kWidth;
        grad_score += kWidth;
      }
    }
  }

  // Where that of a tap of a query at an end is in a row.
  int64_t end_weight(int32_t tap_h, int32_t tap_w, int32_t query) const {
    return (int64_t(tap_h) * end_pitch_ + tap_w) * end_lanes_ + query;
  }

  // Adds up the gradients of a strip's scores by distance.
  void add_grad_bias(const PlacedStrip& at, int32_t u, int32_t rows_on_map) {
    const DistanceBias of(window_, at, rows_on_map);
    const auto* grad_score = reinterpret_cast<const A*>(grad_bias_) + u * kStripSize;
    for (int32_t h = 0; h < window_.rows.size; ++h) {
      A* const sums = bias_sums_ + of.first + h * of.row;
      for (int32_t w = 0; w < window_.columns.size; ++w, grad_score += kWidth) {
        for (int32_t i = 0; i < at.strip.count; ++i) sums[w - i * of.step] += grad_score[i];
      }
    }
  }

  void write_grad_query(const PlacedStrip& at, int32_t u) {
    const StripWeights<A> weights{own_rows_, u * kStripSize, kWidth};
    const StripTokens<A> results{at.strip.around, at.strip.count, result_, stride_};
    if (at.strip.around == Around::kShared) {
      std::memset(result_, 0, sizeof(A) * kStripSize * stride_);
      products_.add_shared(windows_.of(u), weights, results);
    } else if (in_place_) {
      products_.sum(windows_.of(u), weights, in_memory(at, args_.grad_query));
      return;
    } else {
      products_.sum(windows_.of(u), weights, results);
    }
    write_result(at, args_.grad_query);
  }

  // The rows [begin, rows_ready) of queries are there.
  void finish_keys(int32_t phase, int32_t row, const PhaseRows& rows, int32_t begin,
                   int32_t rows_ready) {
    const int32_t y = phase + row * window_.rows.dilation;
    const QueryRows queries{window_.rows.first_query(row),
                            window_.rows.last_query(row, rows.on_map) + 1, begin, rows_ready,
                            rows.on_map};
    for (int32_t i = 0; i < layout_.strip_count; ++i) {
      const PlacedStrip at{row, y, layout_.strips[i]};
      if (!at.strip.own) continue;
      find_queries(at, queries);
      write_gathered(at, 0, 0, 0, args_.grad_key);
      write_gathered(at, query_.shift_to(grad_out_), grad_score_.shift_to(probability_),
                     end_grad_score_.shift_to(end_probability_), args_.grad_value);
    }
  }

  // The rows of queries whose windows hold a row of keys: of these, [begin, end) are there.
  struct QueryRows {
    int32_t first, last, begin, end, on_map;
    int32_t count() const { return last - first; }
  };

  // Some columns of these rows, where the queries' tokens and weights are, and which keys of the
  // strip their windows hold. A key beside these must not even take a query times 0.
  struct Queries {
    int32_t rows, columns;
    const A** tokens;
    const A** weights;
    int32_t first_key, keys;
  };

  // Finds the queries whose windows hold keys: around them, and at the ends of the row.
  void find_queries(const PlacedStrip& at, const QueryRows& rows) {
    const WindowAxis& columns = window_.columns;
    // The queries from `after` before a key to `before` after it read it, each by the tap before.
    const int32_t slot = at.strip.slot - columns.after();
    around_.columns = 0;
    if (layout_.any_between_ends(at.strip, slot, at.strip.slot + at.strip.count + columns.before)) {
      around_ = find(rows, columns.size, slot, 0, 0, at.strip.count);
      each_row(at, rows, [&](int32_t n, int32_t row, int32_t tap_h) {
        const int32_t tap = tap_index(columns, tap_h, columns.size - 1);
        around_.weights[n] = grad_score_.row(row) + int64_t(tap) * layout_.slots + slot;
      });
    }
    for (int32_t e = 0; e < 2; ++e) {
      at_end_[e].columns = 0;
      if (!columns.shifted) continue;
      const RowEnd& end = layout_.ends[2 * at.strip.phase + e];
      const int32_t tap = at.strip.slot - end.window;  // that reads the first key
      const int32_t first = tap < 0 ? -tap : 0;
      const int32_t left = columns.size - tap;
      const int32_t last = left < at.strip.count ? left : at.strip.count;
      if (first >= last) continue;
      at_end_[e] = find(rows, end.count, end.slot, 1 + e, first, last - first);
      each_row(at, rows, [&](int32_t n, int32_t row, int32_t tap_h) {
        at_end_[e].weights[n] =
            end_grad_score_.row(row) + end_weight(tap_h, tap + first, end.number);
      });
    }
  }

  Queries find(const QueryRows& rows, int32_t columns, int32_t slot, int32_t which,
               int32_t first_key, int32_t keys) {
    const int32_t place = which * window_.rows.most_queries();
    find_rows(query_, rows.first, rows.count(), rows.begin, rows.end, int64_t(slot) * stride_,
              token_rows_ + place);
    return {rows.count(), columns, token_rows_ + place, weight_rows_ + place, first_key, keys};
  }

  // Calls f(n, row, tap) for the rows of queries that are there, which read the key by that tap.
  template <typename F>
  SDWA_INLINE void each_row(const PlacedStrip& at, const QueryRows& rows, F&& f) const {
    for (int32_t n = 0; n < rows.count(); ++n) {
      const int32_t row = rows.first + n;
      if (row < rows.begin || row >= rows.end) continue;
      f(n, row, at.row - window_.rows.start(row, rows.on_map));
    }
  }

  // Sums the queries found, or what lies that far from them, with their weights.
  void write_gathered(const PlacedStrip& at, int64_t token_shift, int64_t weight_shift,
                      int64_t end_weight_shift, void* target) {
    const auto results = [&](const Queries& queries) {
      return StripTokens<A>{at.strip.around, queries.keys, result_ + queries.first_key * stride_,
                            stride_};
    };
    const auto window = [&](const Queries& queries) {
      return StripWindow<A>{queries.tokens, token_shift, queries.rows, queries.columns, stride_};
    };
    const StripWeights<A> weights{around_.weights, weight_shift, 1 - layout_.slots};
    const bool around_alone = at_end_[0].columns + at_end_[1].columns == 0;
    if (in_place_ && around_.columns > 0 && around_alone) {
      products_.sum(window(around_), weights, in_memory(at, target));
      return;
    }
    if (around_.columns > 0) {
      products_.sum(window(around_), weights, results(around_));
    } else {
      std::memset(result_, 0, sizeof(A) * kStripSize * stride_);
    }
    for (const Queries& queries : at_end_) {
      if (queries.columns == 0) continue;
      products_.add_shared(window(queries),
                           StripWeights<A>{queries.weights, end_weight_shift, 1, end_lanes_},
                           results(queries));
    }
    write_result(at, target);
  }

  int64_t pixel_of(const PlacedStrip& at) const {
    return (batch_ * problem_.height + at.y) * problem_.width + at.strip.x;
  }

  // A strip's tokens in a tensor, where they are as in scratch.
  StripTokens<A> in_memory(const PlacedStrip& at, void* target) const {
    const int64_t pixel_size = problem_.heads * problem_.head_dim;
    return {at.strip.around,
            at.strip.count,
            static_cast<A*>(target) + pixel_of(at) * pixel_size + head_ * problem_.head_dim,
            window_.columns.dilation * pixel_size,
            0,
            streaming_};
  }

  void write_result(const PlacedStrip& at, void* target) {
    int64_t pixel = pixel_of(at);
    for (int32_t i = 0; i < at.strip.count; ++i, pixel += window_.columns.dilation) {
      write_token(result_ + i * stride_, problem_.head_dim, streaming_,
                  static_cast<T*>(target) + (pixel * problem_.heads + head_) * problem_.head_dim);
    }
  }

  const BackwardArgs& args_;
  const Problem& problem_;
  int64_t batch_, head_;  // of the item
  const bool streaming_;
  const bool in_place_;
  const int stride_;
  const HeadWindow window_;
  const Products<A> products_;
  const int64_t piece_;
  const RowLayout layout_;
  const int32_t step_;  // rows walked at a time
  const RowRing<A> query_, key_, value_, grad_out_;
  ScoreLimits<A> limits_;
  const RowRing<A> delta_, lse_, grad_lse_;    // a number per slot
  const RowRing<A> probability_, grad_score_;  // (taps, slots) per row; grad_score is times scale
  const int32_t end_pitch_, end_lanes_;
  const RowRing<A> end_probability_, end_grad_score_;  // (kernel_h, end_pitch_, end_lanes_)
  Vec<A>* const partial_;
  Vec<A>* const scores_;
  Vec<A>* const grad_probability_;
  Vec<A>* const grad_bias_;
  Vec<A>* const bias_lost_;  // what its sums have lost by rounding
  A* const bias_sums_;
  A* const result_;
  BlockWindows<A> windows_;
  const A** const own_rows_;
  const A** const token_rows_;
  const A** const weight_rows_;
  Queries around_, at_end_[2];  // whose windows hold a strip of keys
};

template <typename T>
void run_items(const BackwardArgs& args, const Plan& plan, int64_t begin, int64_t end,
               void* grad_bias, char* buffer) {
  const Problem& problem = args.problem;
  const InputView keys[] = {args.key, args.value};
  const InputView queries[] = {args.query,
                               args.grad_out,
                               contiguous_view(problem, args.out),
                               contiguous_view(problem, args.grad_query),
                               contiguous_view(problem, args.grad_key),
                               contiguous_view(problem, args.grad_value)};
  // Rows are read at once.
  Prefetchers<Prefetcher<2, 2>, Prefetcher<3, 6>> prefetch{
      {problem, plan, keys, begin, end, problem.kernel_h / 2 + 1},
      {problem, plan, queries, begin, end, 1, BackwardKernel<T>::streaming(args, plan)}};
  auto* const sums = static_cast<Accumulation<T>*>(grad_bias);
  for_each_item<BackwardKernel<T>>(
      args, plan, begin, end, buffer,
      [&](BackwardKernel<T>& kernel, const ItemBounds& bounds, int64_t item) {
        kernel.run(bounds, sums ? sums + item * problem.bias_size() : nullptr, prefetch);
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
