// Numbers the tiles of a problem as the kernels do: tiles BATCH HEIGHT WIDTH TILE_H TILE_W
// DILATION...
//
// One dilation per head. Ends with an error where a pixel is in no tile or in two, or two tiles of
// a head have one index; prints the warps that are launched and those that have a tile on the map.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/work.cuh"

namespace sdwa::cuda {
namespace {

struct Counts {
  int64_t launched = 0, useful = 0;
  std::vector<int> visits;   // (batch, height, width, heads)
  std::vector<int> indices;  // (heads, batch x tiles of an image)
};

struct Params {
  Work work;
  Counts* counts;
  int64_t most_indices;  // of a head
};

[[noreturn]] void fail(const char* what, const Tile& tile) {
  std::fprintf(stderr, "%s: image %lld, head %d, y %d, x %d\n", what,
               static_cast<long long>(tile.image), tile.head, tile.y, tile.x);
  std::exit(1);
}

void visit(Params p) {
  if (threadIdx.x % kWarpLanes != 0) return;
  const Work& work = p.work;
  Counts& counts = *p.counts;
  ++counts.launched;
  const Tile tile = find_tile(work);
  if (!tile.numbered) return;
  const int64_t tiles = work.head[tile.head - work.first_head].tiles;
  const int64_t index = work.first_image * tiles + tile.index;
  if (index >= p.most_indices) fail("an index too large", tile);
  if (counts.indices[tile.head * p.most_indices + index]++ > 0) fail("an index twice", tile);
  if (!tile.inside) return;
  ++counts.useful;
  for (int dy = 0; dy < work.tile_h; ++dy) {
    for (int dx = 0; dx < work.tile_w; ++dx) {
      const int y = tile.y + dy * tile.dilation_h, x = tile.x + dx * tile.dilation_w;
      if (!on_axis(y, work.height) || !on_axis(x, work.width)) continue;
      if (counts.visits[token_index(work, tile, y, x)]++ > 0) fail("a pixel in two tiles", tile);
    }
  }
}

void count(const Problem& problem, int tile_h, int tile_w) {
  ForwardArgs args{};
  args.problem = problem;
  int64_t most_tiles = 0;
  for (int64_t h = 0; h < problem.heads; ++h) {
    most_tiles = std::max<int64_t>(most_tiles, head_tiles(problem, h, tile_h, tile_w).tiles);
  }
  Counts counts;
  Params params{{}, &counts, problem.batch * most_tiles};
  counts.visits.resize(problem.batch * problem.height * problem.width * problem.heads);
  counts.indices.resize(problem.heads * params.most_indices);
  constexpr int kWarps = 4;
  for_each_launch(args, tile_h, tile_w, kWarps, [&](const Work& work, int64_t blocks) {
    params.work = work;
    launch("visit", visit, blocks, kWarps * kWarpLanes, 0, nullptr, params);
  });
  for (const int visits : counts.visits) {
    if (visits != 1) fail("a pixel in no tile", {});
  }
  std::printf("%lld %lld\n", static_cast<long long>(counts.launched),
              static_cast<long long>(counts.useful));
}

}  // namespace
}  // namespace sdwa::cuda

int main(int count, char** arguments) {
  if (count < 7) {
    std::fprintf(stderr, "usage: tiles BATCH HEIGHT WIDTH TILE_H TILE_W DILATION...\n");
    return 2;
  }
  std::vector<int64_t> given;
  for (int i = 1; i < count; ++i) given.push_back(std::atoll(arguments[i]));
  std::vector<int64_t> dilation;
  for (size_t i = 5; i < given.size(); ++i) dilation.insert(dilation.end(), 2, given[i]);
  sdwa::Problem problem{};
  problem.batch = given[0];
  problem.height = given[1];
  problem.width = given[2];
  problem.heads = static_cast<int64_t>(dilation.size()) / 2;
  problem.head_dim = 1;
  problem.set_windows(3, 3, false, false, false);
  problem.dilation = dilation.data();
  sdwa::cuda::count(problem, static_cast<int>(given[3]), static_cast<int>(given[4]));
  return 0;
}
