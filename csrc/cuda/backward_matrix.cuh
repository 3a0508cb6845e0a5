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
  int slots, warp_bytes;  // see Stages
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

template <typename T, int kKernel, typename Features>
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

  // The pieces of a pass are its chunks in order, for the products, and back to the first one, for
  // the sums: the last chunk then serves both.
  __device__ __forceinline__ int pass_pieces() const { return 2 * chunks - 1; }
  __device__ __forceinline__ int chunk_of(int piece) const {
    return Features::kSingle ? 0 : piece < chunks ? piece : pass_pieces() - 1 - piece;
  }

  __device__ __forceinline__ void compute() const {
    const typename F::Copies copies(place);
    Pipeline pipeline(2 * pass_pieces(), p.slots, [&](int piece, int slot) {
      const bool queries = piece < pass_pieces();
      const Anchor<T> first = queries ? query_at : key_at;
      const Anchor<T> second = queries ? grad_out_at : value_at;
      const int chunk = chunk_of(queries ? piece : piece - pass_pieces()) * Features::kChunk;
      unsigned char* const to = staged + slot * Layout::kSlotBytes;
      copies.start(to, first, chunk, head_dim);
      copies.start(to + Stage::kBytes, second, chunk, head_dim);
    });
    key_and_value(pipeline);
    query(pipeline);
  }

 private:
  // Pixels of the tile are keys here, in the rows of the products; the neighbourhood's are queries.
  template <typename Pipeline>
  __device__ __forceinline__ void key_and_value(Pipeline& pipeline) const {
    const WindowAxis steps = Place::kSteps;
    // A lane looks after column g of the neighbourhood's rows: loads that are under way with the
    // copies.
    float lse[N::kRows], grad_lse[N::kRows];
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
      const bool ok = keeps_facts() && place.column_on_map(place.g) && place.row_on_map(t);
      const int64_t token = place.token + (steps.offset(t) * place.token_step_h +
                                           steps.offset(place.g) * place.token_step_w);
      lse[t] = ok ? p.lse[token] : -INFINITY;
      grad_lse[t] = ok && p.grad_lse != nullptr ? p.grad_lse[token] : 0.f;
    }
    float score[N::kRows][4] = {}, grad_probability[N::kRows][4] = {};
    float dot[N::kRows] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int feature = chunk * Features::kChunk;
      Rows out[N::kRows];
#pragma unroll
      for (int t = 0; t < N::kRows; ++t) {
        out[t] = F::neighbour_row(out_at, place, t, feature, head_dim);
      }
      pipeline.wait(chunk);
      const unsigned char* const queries = slot_of(pipeline, chunk);
      const unsigned char* const grad_outs = queries + Stage::kBytes;
#pragma unroll
      for (int t = 0; t < N::kRows; t += 2) {
        // <out, grad_out> of two times 8 pixels: the diagonals of their products.
        const TileRows both = F::join(out[t], out[t + 1], p.work.zero);
        float upper[4] = {}, lower[4] = {};
        F::multiply(upper, both, F::staged_row(grad_outs, lane, t));
        F::multiply(lower, both, F::staged_row(grad_outs, lane, t + 1));
        dot[t] += place.g % 2 ? upper[1] : upper[0];
        dot[t + 1] += place.g % 2 ? lower[3] : lower[2];
      }
      // Keeps the compiler from holding what it has read in registers, of which there are too few.
      __syncwarp();
      const TileRows key = F::tile_rows(key_at, place, feature, p.work);
      const TileRows value = F::tile_rows(value_at, place, feature, p.work);
#pragma unroll
      for (int t = 0; t < N::kRows; ++t) {
        F::multiply(score[t], key, F::staged_row(queries, lane, t));
        F::multiply(grad_probability[t], value, F::staged_row(grad_outs, lane, t));
      }
      if (chunk + 1 < chunks) pipeline.release();
    }
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
      if (keeps_facts()) write_shared(facts(t, place.g), facts_of(lse[t], grad_lse[t], dot[t]));
    }
    __syncwarp();

    Weights probabilities[N::kRows / 2], grad_scores[N::kRows / 2];
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
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
      if (p.bias != nullptr) add_bias(shift, t, true);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (!N::reaches(half, t)) continue;
          const float log2_p = score[t][2 * half + e] * p.scale_log2 + shift[half][e];
          probability[half][e] = place.in_window(half, t, e) ? power2(log2_p) : 0.f;
          grad_score[half][e] =
              probability[half][e] * (grad_probability[t][2 * half + e] - queries[e].delta);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        probabilities[t / 2].pair[2 * (t % 2) + half] =
            pack<T>(probability[half][0], probability[half][1]);
        grad_scores[t / 2].pair[2 * (t % 2) + half] =
            pack<T>(grad_score[half][0], grad_score[half][1]);
      }
    }
    if (p.work.key_mask != nullptr) {
      clear_left_out_tile(probabilities);
      clear_left_out_tile(grad_scores);
    }

    for (int piece = chunks - 1; piece < pass_pieces(); ++piece) {
      if (piece >= chunks) pipeline.wait(piece);
      const unsigned char* const queries = slot_of(pipeline, piece);
      const int feature = chunk_of(piece) * Features::kChunk;
      float grad_value[F::kSlices][4] = {};
      F::gather(grad_value, probabilities, queries + Stage::kBytes, lane);
      F::store(p.grad_value, grad_value, 1.f, p.work, place, feature);
      float grad_key[F::kSlices][4] = {};
      F::gather(grad_key, grad_scores, queries, lane);
      pipeline.release();
      F::store(p.grad_key, grad_key, p.scale, p.work, place, feature);
    }
  }

  // Pixels of the tile are queries here; the neighbourhood's are keys.
  template <typename Pipeline>
  __device__ __forceinline__ void query(Pipeline& pipeline) const {
    const int first_piece = pass_pieces();
    float score[N::kRows][4] = {}, grad_probability[N::kRows][4] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int feature = chunk * Features::kChunk;
      const TileRows query = F::tile_rows(query_at, place, feature, p.work);
      const TileRows grad_out = F::tile_rows(grad_out_at, place, feature, p.work);
      pipeline.wait(first_piece + chunk);
      const unsigned char* const keys = slot_of(pipeline, first_piece + chunk);
#pragma unroll
      for (int t = 0; t < N::kRows; ++t) {
        F::multiply(score[t], query, F::staged_row(keys, lane, t));
        F::multiply(grad_probability[t], grad_out, F::staged_row(keys + Stage::kBytes, lane, t));
      }
      if (chunk + 1 < chunks) pipeline.release();
    }

    const Counting<kKernel> counting(p.work, place);
    Weights grad_scores[N::kRows / 2];
    QueryFacts queries[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      queries[half] =
          read_shared(facts(place.tile_dy(half) + kKernel / 2, place.tile_dx + kKernel / 2));
    }
#pragma unroll
    for (int t = 0; t < N::kRows; ++t) {
      float shift[2][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        shift[half][0] = shift[half][1] = -queries[half].lse_log2;
      }
      if (p.bias != nullptr) add_bias(shift, t, false);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float grad_score[2] = {};
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (!N::reaches(half, t)) continue;
          const float log2_p = score[t][2 * half + e] * p.scale_log2 + shift[half][e];
          grad_score[e] =
              counting.at(half, t, e)
                  ? power2(log2_p) * (grad_probability[t][2 * half + e] - queries[half].delta)
                  : 0.f;
          if (p.bias_parts.data != nullptr && place.in_window(half, t, e)) {
            write_shared(shared_grad_score(half, place.tap(half, t, e)), grad_score[e]);
          }
        }
        grad_scores[t / 2].pair[2 * (t % 2) + half] = pack<T>(grad_score[0], grad_score[1]);
      }
    }
    if (p.work.key_mask != nullptr) clear_left_out_neighbours(grad_scores);
    if (p.bias_parts.data != nullptr) sum_bias();

    for (int piece = chunks - 1; piece < pass_pieces(); ++piece) {
      if (piece >= chunks) pipeline.wait(first_piece + piece);
      float grad_query[F::kSlices][4] = {};
      F::gather(grad_query, grad_scores, slot_of(pipeline, first_piece + piece), lane);
      pipeline.release();
      F::store(p.grad_query, grad_query, p.scale, p.work, place,
               chunk_of(piece) * Features::kChunk);
    }
  }

  template <typename Pipeline>
  __device__ __forceinline__ unsigned char* slot_of(const Pipeline& pipeline, int piece) const {
    return staged + pipeline.slot(piece) * Layout::kSlotBytes;
  }
  __device__ __forceinline__ unsigned char* other() const {
    return staged + p.slots * Layout::kSlotBytes;
  }

  // Of a pixel of the neighbourhood.
  __device__ __forceinline__ QueryFacts* facts(int row, int column) const {
    return reinterpret_cast<QueryFacts*>(other()) + (row * N::kColumns + column);
  }
  // Whether the calling lane holds the diagonals of column g.
  __device__ __forceinline__ bool keeps_facts() const {
    return place.j == place.g / 2 && place.g < N::kColumns;
  }
  __device__ __forceinline__ QueryFacts facts_of(float lse, float grad_lse, float dot) const {
    const float in_log2 = lse * log2e_v<float>;
    // Nothing goes back through a window with nothing left, nor off the map.
    return in_log2 < kLowestScore<float> ? QueryFacts{INFINITY, 0.f}
                                         : QueryFacts{in_log2, dot - grad_lse};
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
          if (p.bias_parts.data != nullptr && N::reaches(half, t) && place.in_window(half, t, e)) {
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
template <int kKernel, typename Features>
constexpr int kResidentBlocks =
    (kKernel == 7 ? 2 : 3) + (kKernel == 3 && Features::kSingle && Features::kChunk == 32 ? 1 : 0);

template <typename T, int kKernel, typename Features>
__global__ void __launch_bounds__(kMostWarps* kWarpLanes, kResidentBlocks<kKernel, Features>)
    backward_matrix(const __grid_constant__ BackwardParams<T> p) {
  const Tile tile = find_tile(p.work);
  if (!tile.inside) {
    if (p.bias_parts.data != nullptr && tile.numbered) {
      float* const sums = p.bias_parts.row(p.work, tile);
      for (int t = threadIdx.x % kWarpLanes; t < kKernel * kKernel; t += kWarpLanes) sums[t] = 0;
    }
    return;
  }
  const LanePlace<kKernel> place(p.work, tile);
  const Gradients<T, kKernel, Features> gradients{
      p, place, dynamic_shared<unsigned char>() + threadIdx.x / kWarpLanes * p.warp_bytes};
  gradients.compute();
}

template <typename T, int kKernel, typename Features>
Stages backward_stages(bool bias) {
  using Layout = BackwardLayout<kKernel, typename Fragments<T, kKernel, Features>::Stage>;
  return choose_stages(Layout::kSlotBytes, Layout::other_bytes(bias),
                       kMostWarps * kResidentBlocks<kKernel, Features>);
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
      0,
      0};
  with_features<kKernel>(problem.head_dim, row_alignment(args), [&](auto features) {
    using Features = decltype(features);
    const Stages stages = backward_stages<T, kKernel, Features>(bias_parts != nullptr);
    params.slots = stages.slots, params.warp_bytes = stages.warp_bytes;
    for_each_launch(
        args, N::kTileH, N::kTileW, stages.warps, [&](const Work& work, int64_t blocks) {
          params.work = work;
          launch("backward_matrix", backward_matrix<T, kKernel, Features>, blocks,
                 stages.warps * kWarpLanes, stages.warps * stages.warp_bytes, stream, params);
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
