// Backward on the matrix unit: bfloat16 and float16, square windows of 3, 5 and 7, in one pass.
// Each type has a file of its own, so that both compile at the same time.
//
// A warp gathers all three gradients of its tile. The neighbourhood is used twice: its pixels are
// the queries that read the tile, for the gradients of key and value, and then the keys that the
// tile reads, for that of query. Scores are computed for each of the two, which is cheaper than to
// exchange them.
#pragma once

#include "cuda/bias_parts.cuh"
#include "cuda/kernels.h"
#include "cuda/matrix_tile.cuh"

namespace sdwa::cuda {
namespace {

template <typename T>
struct BackwardParams {
  Work work;
  View<T> query, key, value, grad_out, out;
  const float* bias;
  const float* lse;
  const float* grad_lse;
  T* grad_query;
  T* grad_key;
  T* grad_value;
  BiasParts<float> bias_parts;
  float scale, scale_log2;
  int warp_bytes;  // of shared memory
};

// What the neighbourhood's pixels have in common as queries.
struct alignas(8) QueryFacts {
  float lse_log2, delta;
};

// Shared memory of a warp: the slots, each for a chunk of two tensors, and then the rest.
template <int kKernel, typename Stage>
struct BackwardLayout {
  using N = Neighbourhood<kKernel>;
  static constexpr int kTaps = kKernel * kKernel;
  static constexpr int kSlotBytes = 2 * Stage::kBytes;
  static constexpr int kFactsBytes = N::kRows * N::kColumns * sizeof(QueryFacts);
  static constexpr int kBiasBytes = kTilePixels * kTaps * sizeof(float);

  static constexpr int other_bytes(bool bias) { return kFactsBytes + (bias ? kBiasBytes : 0); }
};

// kPlain: there is neither a bias nor a key mask. kSlots: see Stages.
template <typename T, int kKernel, typename Features, bool kPlain, int kSlots>
struct Gradients {
  using N = Neighbourhood<kKernel>;
  using F = Fragments<T, kKernel, Features>;
  using Rows = typename F::Rows;
  using TileRows = typename F::TileRows;
  using Weights = typename F::Weights;
  using Stage = typename F::Stage;
  using Layout = BackwardLayout<kKernel, Stage>;
  using Place = LanePlace<kKernel>;
  static constexpr int kTaps = kKernel * kKernel;
  // Rows whose products are in registers at once, and rows of `out`.
  static constexpr int kGroupRows = !Features::kSingle && kKernel < 7 ? 4 : 2;
  static constexpr int kGroups = (N::kRows + kGroupRows - 1) / kGroupRows;
  static constexpr int kOutRows = !Features::kSingle ? 2 : kKernel == 3 ? N::kRows : 4;

  // Whether both pieces, of which there are two, keep their slots to the end.
  static constexpr bool kBothStaged = kSlots == 2 && Features::kSingle;

  const BackwardParams<T>& p;
  const Place& place;
  unsigned char* const staged;  // the warp's part of shared memory
  const int head_dim = p.work.head_dim;
  const int chunks = Features::chunks(head_dim);
  const Anchor<T> query_at{p.query, place.tile, p.work}, key_at{p.key, place.tile, p.work};
  const Anchor<T> value_at{p.value, place.tile, p.work},
      grad_out_at{p.grad_out, place.tile, p.work};
  const Anchor<T> out_at{p.out, place.tile, p.work};
  const typename F::Lane lane{place};

  // The pieces of a pass are its chunks in order, for the products with each group of rows, and
  // back to the first one, for the sums: the last chunk then serves both.
  __device__ __forceinline__ int product_pieces() const {
    return Features::kSingle ? 1 : kGroups * chunks;
  }
  __device__ __forceinline__ int pass_pieces() const { return product_pieces() + chunks - 1; }
  __device__ __forceinline__ int chunk_of(int piece) const {
    if (Features::kSingle) return 0;
    if (piece >= product_pieces()) return pass_pieces() - 1 - piece;
    return kGroups > 1 ? piece % chunks : piece;
  }

  __device__ __forceinline__ void compute() const {
    Pipeline pipeline(2 * pass_pieces(), kSlots, [&](int piece, int slot) {
      const bool queries = piece < pass_pieces();
      const Anchor<T> first = queries ? query_at : key_at;
      const Anchor<T> second = queries ? grad_out_at : value_at;
      const int chunk = chunk_of(queries ? piece : piece - pass_pieces()) * Features::kChunk;
      if (piece == 0) copy_facts();
      const typename F::Copies copies(place);
      unsigned char* const to = staged + slot * Layout::kSlotBytes;
      copies.start(to, first, chunk, head_dim);
      copies.start(to + Stage::kBytes, second, chunk, head_dim);
    });
    key_and_value(pipeline);
    query(pipeline);
  }

 private:
  __device__ __forceinline__ bool has_bias() const { return !kPlain && p.bias != nullptr; }
  __device__ __forceinline__ bool has_key_mask() const {
    return !kPlain && p.work.key_mask != nullptr;
  }

  // Pixels of the tile are keys here, in the rows of the products; the neighbourhood's are queries.
  template <typename Pipeline>
  __device__ __forceinline__ void key_and_value(Pipeline& pipeline) const {
    float dot[N::kRows] = {};
    Rows out[kOutRows];
    const auto load_out = [&](int t, int feature) {
      out[t % kOutRows] = F::neighbour_row(out_at, place, t, feature, head_dim);
    };
    Weights probabilities[N::kRows / 2], grad_scores[N::kRows / 2];
    const auto load = [&](int feature) {
#pragma unroll
      for (int t = 0; t < kOutRows; ++t) load_out(t, feature);
    };
    const auto arrived = [&](int feature, const unsigned char* slot) {
    // <out, grad_out> of two times 8 pixels: the diagonals of their products. Of `out` so many
    // rows at once as there are registers for.
#pragma unroll
      for (int t = 0; t < N::kRows; t += 2) {
        const TileRows both = F::join(out[t % kOutRows], out[(t + 1) % kOutRows], p.work.zero);
        if (t + kOutRows < N::kRows) {
          load_out(t + kOutRows, feature), load_out(t + kOutRows + 1, feature);
        }
        float upper[4] = {}, lower[4] = {};
        F::multiply(upper, both, F::staged_row(slot + Stage::kBytes, lane, t));
        F::multiply(lower, both, F::staged_row(slot + Stage::kBytes, lane, t + 1));
        dot[t] += place.g % 2 ? upper[1] : upper[0];
        dot[t + 1] += place.g % 2 ? lower[3] : lower[2];
      }
      // Keeps the compiler from holding what it has read in registers, of which there are too few.
      __syncwarp();
    };
    const auto ready = [&] {
      // These lanes hold the diagonals.
      if (place.j == place.g / 2 && place.g < N::kColumns) {
#pragma unroll
        for (int t = 0; t < N::kRows; ++t) write_facts(t, dot[t]);
      }
      __syncwarp();
    };
    products(pipeline, 0, key_at, value_at, load, arrived, ready,
             [&](int t, const float (&score)[4], const float (&grad_probability)[4]) {
               float probability[2][2] = {}, grad_score[2][2] = {};  // [half][e]
               QueryFacts queries[2];
               float shift[2][2];  // of scores, in base 2
#pragma unroll
               for (int e = 0; e < 2; ++e) {
                 const int column = min(2 * place.j, N::kColumns - 2) + e;
                 queries[e] = read_shared(facts(t, column));
#pragma unroll
                 for (int half = 0; half < 2; ++half) shift[half][e] = -queries[e].lse_log2;
               }
               if (has_bias()) add_bias(shift, t, true);
#pragma unroll
               for (int e = 0; e < 2; ++e) {
#pragma unroll
                 for (int half = 0; half < 2; ++half) {
                   if (!N::reaches(half, t)) continue;
                   const float log2_p = score[2 * half + e] * p.scale_log2 + shift[half][e];
                   probability[half][e] = place.in_window(half, t, e) ? power2(log2_p) : 0.f;
                   grad_score[half][e] =
                       probability[half][e] * (grad_probability[2 * half + e] - queries[e].delta);
                 }
               }
#pragma unroll
               for (int half = 0; half < 2; ++half) {
                 probabilities[t / 2].pair[2 * (t % 2) + half] =
                     pack<T>(probability[half][0], probability[half][1]);
                 grad_scores[t / 2].pair[2 * (t % 2) + half] =
                     pack<T>(grad_score[half][0], grad_score[half][1]);
               }
             });
    if (has_key_mask()) {
      clear_left_out_tile(probabilities);
      clear_left_out_tile(grad_scores);
    }

    for (int piece = product_pieces() - 1; piece < pass_pieces(); ++piece) {
      if (piece >= product_pieces()) pipeline.wait(piece);
      const unsigned char* const queries = slot_of(pipeline, piece);
      const int feature = chunk_of(piece) * Features::kChunk;
      float grad_value[F::kSlices][4] = {};
      F::gather(grad_value, probabilities, queries + Stage::kBytes, lane);
      F::store(p.grad_value, grad_value, 1.f, p.work, place, feature);
      float grad_key[F::kSlices][4] = {};
      F::gather(grad_key, grad_scores, queries, lane);
      F::store(p.grad_key, grad_key, p.scale, p.work, place, feature);
      pipeline.release();
    }
  }

  // Pixels of the tile are queries here; the neighbourhood's are keys.
  template <typename Pipeline>
  __device__ __forceinline__ void query(Pipeline& pipeline) const {
    const int first_piece = pass_pieces();
    const Counting<kKernel> counting(p.work, place);
    Weights grad_scores[N::kRows / 2];
    QueryFacts queries[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      queries[half] =
          read_shared(facts(place.tile_dy(half) + kKernel / 2, place.tile_dx + kKernel / 2));
    }
    products(pipeline, first_piece, query_at, grad_out_at, nullptr, nullptr, nullptr,
             [&](int t, const float (&score)[4], const float (&grad_probability)[4]) {
               float shift[2][2];
#pragma unroll
               for (int half = 0; half < 2; ++half) {
                 shift[half][0] = shift[half][1] = -queries[half].lse_log2;
               }
               if (has_bias()) add_bias(shift, t, false);
#pragma unroll
               for (int half = 0; half < 2; ++half) {
                 float grad_score[2] = {};
#pragma unroll
                 for (int e = 0; e < 2; ++e) {
                   if (!N::reaches(half, t)) continue;
                   const float log2_p = score[2 * half + e] * p.scale_log2 + shift[half][e];
                   grad_score[e] =
                       counting.at(half, t, e)
                           ? power2(log2_p) * (grad_probability[2 * half + e] - queries[half].delta)
                           : 0.f;
                   if (has_bias() && place.in_window(half, t, e)) {
                     write_shared(shared_grad_score(half, place.tap(half, t, e)), grad_score[e]);
                   }
                 }
                 grad_scores[t / 2].pair[2 * (t % 2) + half] =
                     pack<T>(grad_score[0], grad_score[1]);
               }
             });
    if (has_key_mask()) clear_left_out_neighbours(grad_scores);
    if (has_bias()) sum_bias();

    for (int piece = product_pieces() - 1; piece < pass_pieces(); ++piece) {
      if (piece >= product_pieces()) pipeline.wait(first_piece + piece);
      float grad_query[F::kSlices][4] = {};
      F::gather(grad_query, grad_scores, slot_of(pipeline, first_piece + piece), lane);
      pipeline.release();
      F::store(p.grad_query, grad_query, p.scale, p.work, place,
               chunk_of(piece) * Features::kChunk);
    }
  }

  // Products of the tile of two tensors with the rows of the neighbourhood of two others, which are
  // staged: use(row, product of the first, of the second). Before the first use of a chunk
  // load(feature) and, when it is there, arrived(feature, slot) are called, and ready() when all
  // are; null: there is nothing to do.
  template <typename Pipeline, typename Load, typename Arrived, typename Ready, typename Use>
  __device__ __forceinline__ void products(Pipeline& pipeline, int first_piece, const Anchor<T>& a,
                                           const Anchor<T>& b, Load load, Arrived arrived,
                                           Ready ready, Use use) const {
    constexpr bool kLoads = !std::is_null_pointer_v<Load>;
    TileRows tile_a, tile_b;
    const auto load_tile = [&](int feature) {
      if constexpr (kBothStaged) {
        // The tile's rows of a pass are in the piece of the other: L2, which bounds this pass, is
        // asked for them once.
        if (kLoads) pipeline.wait(1);
        const unsigned char* const others = slot_of(pipeline, kLoads ? 1 : 0);
        tile_a = F::staged_tile(others, place, p.work.zero);
        tile_b = F::staged_tile(others + Stage::kBytes, place, p.work.zero);
      } else {
        tile_a = F::tile_rows(a, place, feature, p.work);
        tile_b = F::tile_rows(b, place, feature, p.work);
      }
    };
#pragma unroll
    for (int first = 0; first < N::kRows; first += kGroupRows) {
      float product_a[kGroupRows][4] = {}, product_b[kGroupRows][4] = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int feature = chunk * Features::kChunk;
        const int piece = Features::kSingle ? 0 : first / kGroupRows * chunks + chunk;
        const unsigned char* const slot = slot_of(pipeline, first_piece + piece);
        if (kLoads && first == 0) {
          if constexpr (kLoads) {
            load(feature);
            pipeline.wait(first_piece + piece);
            arrived(feature, slot);
          }
          load_tile(feature);
        } else if (!Features::kSingle || first == 0) {
          load_tile(feature);
          pipeline.wait(first_piece + piece);
        }
#pragma unroll
        for (int i = 0; i < kGroupRows && first + i < N::kRows; ++i) {
          F::multiply(product_a[i], tile_a, F::staged_row(slot, lane, first + i));
          F::multiply(product_b[i], tile_b, F::staged_row(slot + Stage::kBytes, lane, first + i));
        }
        if (piece + 1 < product_pieces()) pipeline.release();
      }
      if constexpr (kLoads) {
        if (first == 0) ready();
      }
#pragma unroll
      for (int i = 0; i < kGroupRows && first + i < N::kRows; ++i) {
        use(first + i, product_a[i], product_b[i]);
      }
    }
  }

  template <typename Pipeline>
  __device__ __forceinline__ unsigned char* slot_of(const Pipeline& pipeline, int piece) const {
    return staged + pipeline.slot(piece) * Layout::kSlotBytes;
  }
  __device__ __forceinline__ unsigned char* other() const {
    return staged + kSlots * Layout::kSlotBytes;
  }

  // Of a pixel of the neighbourhood.
  __device__ __forceinline__ QueryFacts* facts(int row, int column) const {
    return reinterpret_cast<QueryFacts*>(other()) + (row * N::kColumns + column);
  }
  // Starts to copy what is known of the neighbourhood's queries.
  __device__ __forceinline__ void copy_facts() const {
    constexpr int kPixels = N::kRows * N::kColumns;
    const WindowAxis steps = Place::kSteps;
    const float* const grad_lse = p.grad_lse != nullptr ? p.grad_lse : p.lse;  // not read then
#pragma unroll
    for (int first = 0; first < kPixels; first += kWarpLanes) {
      const int pixel = first + threadIdx.x % kWarpLanes;
      if (first + kWarpLanes > kPixels && pixel >= kPixels) break;
      const int row = small_quotient<N::kColumns>(pixel), column = pixel - row * N::kColumns;
      const bool ok = place.row_on_map(row) && place.column_on_map(column);
      const int64_t token = place.token + (steps.offset(row) * place.token_step_h +
                                           steps.offset(column) * place.token_step_w);
      QueryFacts* const to = facts(row, column);
      copy_async<4>(&to->lse_log2, p.lse + token, ok);
      copy_async<4>(&to->delta, grad_lse + token, ok && p.grad_lse != nullptr);
    }
  }
  // Makes the facts of row t, column g, of what copy_facts has brought; dot: <out, grad_out>.
  __device__ __forceinline__ void write_facts(int t, float dot) const {
    QueryFacts* const at = facts(t, place.g);
    const QueryFacts given = read_shared(at);  // lse and grad_lse
    const float lse_log2 = given.lse_log2 * log2e_v<float>;
    QueryFacts result{lse_log2, dot - given.delta};
    // Nothing goes back through a window with nothing left, nor off the map.
    const bool on_map = place.row_on_map(t) && place.column_on_map(place.g);
    if (!on_map || lse_log2 < kLowestScore<float>) result = {INFINITY, 0.f};
    write_shared(at, result);
  }

  // Adds the bias of the taps by which the tile sees row t of the neighbourhood, or, mirrored, the
  // row sees the tile.
  __device__ __forceinline__ void add_bias(float (&to)[2][2], int t, bool mirrored) const {
    const float* const bias = p.bias + place.tile.head * kTaps;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (!N::reaches(half, t) || !place.in_window(half, t, e)) continue;
        const int tap = place.tap(half, t, e);
        to[half][e] += log2e_v<float> * bias[mirrored ? kTaps - 1 - tap : tap];
      }
    }
  }

  // The next two find the tile anew: to keep all of it takes registers from calls without a mask.
  //
  // What the tile takes from keys that the mask leaves out.
  __device__ __forceinline__ void clear_left_out_neighbours(
      Weights (&grad_scores)[N::kRows / 2]) const {
    const LeftOut<kKernel> left_out(p.work, find_tile(p.work), place);
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (!left_out.at(t, e)) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          grad_scores[t / 2].pair[2 * (t % 2) + half] &= e == 0 ? 0xffff0000u : 0x0000ffffu;
          if (has_bias() && N::reaches(half, t) && place.in_window(half, t, e)) {
            write_shared(shared_grad_score(half, place.tap(half, t, e)), 0.f);
          }
        }
      }
    }
  }
  // What the neighbourhood takes from keys of the tile that the mask leaves out.
  __device__ __forceinline__ void clear_left_out_tile(Weights (&weights)[N::kRows / 2]) const {
    const Tile tile = find_tile(p.work);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t y = tile.y + place.tile_dy(half) * tile.dilation_h;
      const int32_t x = tile.x + place.tile_dx * tile.dilation_w;
      if (!place.tile_ok[half] || keeps_key(p.work, tile, y, x)) continue;
#pragma unroll
      for (int t = 0; t < N::kRows; ++t) weights[t / 2].pair[2 * (t % 2) + half] = 0;
    }
  }

  // Of pixel g + 8 half of the tile.
  __device__ __forceinline__ float* shared_grad_score(int half, int tap) const {
    return reinterpret_cast<float*>(other() + Layout::kFactsBytes) +
           ((place.g + 8 * half) * kTaps + tap);
  }

  __device__ __forceinline__ void sum_bias() const {
    __syncwarp();
    float* const sums = p.bias_parts.row(p.work, place.tile);
    const float* const grad_scores = reinterpret_cast<const float*>(other() + Layout::kFactsBytes);
    for (int tap = threadIdx.x % kWarpLanes; tap < kTaps; tap += kWarpLanes) {
      float sum = 0;
      for (int pixel = 0; pixel < kTilePixels; ++pixel) {
        sum += read_shared(grad_scores + (pixel * kTaps + tap));
      }
      sums[tap] = sum;
    }
  }
};

// Blocks that a multiprocessor holds at once: as many as registers allow without spills.
template <typename Features, bool kPlain, int kSlots>
constexpr int kResidentBlocks = !kPlain ? 2 : kSlots + (Features::kChunk == 32 ? 2 : 1);

template <typename T, int kKernel, typename Features, bool kPlain, int kSlots>
__global__ void __launch_bounds__(kMostWarps* kWarpLanes, kResidentBlocks<Features, kPlain, kSlots>)
    backward_matrix(const __grid_constant__ BackwardParams<T> p) {
  const Tile tile = find_tile(p.work);
  if (!tile.inside) {
    if (!kPlain && p.bias_parts.data != nullptr && tile.numbered) {
      float* const sums = p.bias_parts.row(p.work, tile);
      for (int t = threadIdx.x % kWarpLanes; t < kKernel * kKernel; t += kWarpLanes) sums[t] = 0;
    }
    return;
  }
  const LanePlace<kKernel> place(p.work, tile);
  const Gradients<T, kKernel, Features, kPlain, kSlots> gradients{
      p, place, dynamic_shared<unsigned char>() + threadIdx.x / kWarpLanes * p.warp_bytes};
  gradients.compute();
}

template <typename T, int kKernel>
void launch_kernel(const BackwardArgs& args, float* bias_parts, Stream stream) {
  using N = Neighbourhood<kKernel>;
  const Problem& problem = args.problem;
  BackwardParams<T> params{
      {},
      View<T>::of(args.query),
      View<T>::of(args.key),
      View<T>::of(args.value),
      View<T>::of(args.grad_out),
      View<T>::of(contiguous_view(problem, args.out)),
      static_cast<const float*>(args.bias),
      static_cast<const float*>(args.lse),
      static_cast<const float*>(args.grad_lse),
      static_cast<T*>(args.grad_query),
      static_cast<T*>(args.grad_key),
      static_cast<T*>(args.grad_value),
      {bias_parts, bias_part_rows(problem, N::kTileH, N::kTileW), kKernel * kKernel},
      static_cast<float>(problem.scale),
      static_cast<float>(problem.scale) * log2e_v<float>,
      0};
  with_features<kKernel, 32>(problem.head_dim, row_alignment(args), [&](auto features) {
    using Features = decltype(features);
    using Layout = BackwardLayout<kKernel, typename Fragments<T, kKernel, Features>::Stage>;
    with_plain<kKernel, Features>(args, [&](auto plain) {
      // Two slots have kernels of their own, where registers are what limits the warps.
      constexpr int kWarps1 = kMostWarps * kResidentBlocks<Features, plain, 1>;
      constexpr int kWarps2 = plain ? kMostWarps * kResidentBlocks<Features, plain, 2> : 0;
      const Stages stages = choose_stages(
          Layout::kSlotBytes, Layout::other_bytes(bias_parts != nullptr), {kWarps1, kWarps2});
      params.warp_bytes = stages.warp_bytes;
      specialize<1, plain ? 2 : 1>(stages.slots, [&](auto slots) {
        if constexpr (slots > 0) {
          for_each_launch(
              args, N::kTileH, N::kTileW, stages.warps, [&](const Work& work, int64_t blocks) {
                params.work = work;
                launch("backward_matrix", backward_matrix<T, kKernel, Features, plain, slots>,
                       blocks, stages.warps * kWarpLanes, stages.warps * stages.warp_bytes, stream,
                       params);
              });
        }
      });
    });
  });
  if (bias_parts != nullptr) {
    launch_sum_bias_parts(args, bias_parts, N::kTileH, N::kTileW, stream);
  }
}

template <typename T>
void launch_type(const BackwardArgs& args, float* bias_parts, Stream stream) {
  with_window(args.problem, [&](auto kernel) {
    if constexpr (kernel > 0) launch_kernel<T, kernel>(args, bias_parts, stream);
  });
}

}  // namespace
}  // namespace sdwa::cuda
