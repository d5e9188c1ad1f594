// Which experts a row goes to, and which rows an expert gets.
#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kMaxExperts = 1024;
constexpr int kMaxChosen = 64;
constexpr int kSortThreads = 1024;

__device__ inline float Affinity(float gate) { return sqrtf(Softplus(gate)); }

// A number that orders as the float does, -0 equal to 0; NaN is the lowest. 0 is none of them.
__device__ inline unsigned RankOf(float score) {
  if (score != score) return 1;
  const unsigned bits = __float_as_uint(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The k experts of the best scores, of equals the lower, ascending into `chosen`; by one warp.
template <int kPerLane>
__device__ inline void ChooseExperts(const float* scores, int experts, int k, int* chosen) {
  const int lane = int(threadIdx.x) % 32;
  unsigned ranks[kPerLane];
#pragma unroll
  for (int q = 0; q < kPerLane; ++q) {
    const int expert = 32 * q + lane;
    ranks[q] = expert < experts ? RankOf(scores[expert]) : 0;
  }
  unsigned taken = 0;  // bit q: expert 32 q + lane
  for (int i = 0; i < k; ++i) {
    unsigned best = 0;
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) best = max(best, ranks[q]);
    best = __reduce_max_sync(kAllLanes, best);
    unsigned lowest = kMaxExperts;
#pragma unroll
    for (int q = kPerLane - 1; q >= 0; --q) {
      if (ranks[q] == best) lowest = unsigned(32 * q + lane);
    }
    lowest = __reduce_min_sync(kAllLanes, lowest);
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) {
      if (lowest == unsigned(32 * q + lane)) {
        ranks[q] = 0;
        taken |= 1u << q;
      }
    }
  }
  int before = 0;
#pragma unroll
  for (int q = 0; q < kPerLane; ++q) {
    const unsigned lanes = __ballot_sync(kAllLanes, (taken >> q & 1) != 0);
    if ((taken >> q & 1) != 0) chosen[before + __popc(lanes & ((1u << lane) - 1))] = 32 * q + lane;
    before += __popc(lanes);
  }
}

// What SortKernel leaves, of a batch of one row.
__device__ inline void SortOneRow(const RouteArgs& a, const int* chosen, const float* weights,
                                  bool real) {
  const int thread = int(threadIdx.x);
  const int threads = int(blockDim.x);
  for (int e = thread; e <= a.experts; e += threads) {
    int below = 0;
    for (int i = 0; i < a.k; ++i) below += chosen[i] < e ? 1 : 0;
    if (real) a.expert_begin[e] = below;
  }
  for (int i = thread; i < a.k; i += threads) {
    if (real) {
      a.routed_row[i] = 0;
      a.routed_at[i] = i;
      a.routed_weight[i] = weights[i];
    }
    // A tile starts at every `tile`th place of an expert.
    int tiles = 0;
    int begin = 0;
    int end = 0;
    int run = 0;  // where the expert of place j began
    for (int j = 0; j < a.k; ++j) {
      if (j > 0 && chosen[j] != chosen[j - 1]) run = j;
      if (j == i) begin = run;
      if (j < i && (j == run || (a.tile < a.k && (j - run) % a.tile == 0))) ++tiles;
      if (chosen[j] == chosen[i]) end = j + 1;
    }
    const bool starts = (i - begin) % a.tile == 0;
    if (real && starts) a.tiles[tiles] = make_int4(chosen[i], i, min(a.tile, end - i), 0);
    if (real && i == a.k - 1) *a.tile_count = tiles + (starts ? 1 : 0);
  }
}

// A CTA has one row.
template <int kPerLane>
__global__ void __launch_bounds__(32 * kPerLane) RouteKernel(const RouteArgs a) {
  GridDependencyLaunch();
  __shared__ float affinity[32 * kPerLane];
  __shared__ float scores[32 * kPerLane];
  __shared__ int listed[kMaxChosen];
  __shared__ int chosen[kMaxChosen];
  __shared__ float chosen_affinity[kMaxChosen];
  __shared__ float weights[kMaxChosen];
  const int thread = int(threadIdx.x);
  const int64_t row = blockIdx.x;
  // An expert per thread, at least.
  float bias = 0;
  if (a.bias != nullptr && thread < a.experts) bias = a.bias[thread];
  Rehearsed(a.rows <= kRehearsedRows, [&](bool real) {
    const Planes gate = PlanesIf(real, a.gate);
    auto affinity_of = [&](int expert) {
      return Affinity(PlaneLoads<float, 16>(gate, PlaneOf(gate, row, expert), true).Sum());
    };
    if (a.experts_of != nullptr) {
      if (thread < a.k) listed[thread] = a.experts_of[int64_t(a.tokens[row]) * a.k + thread];
      __syncthreads();
      if (thread < a.k) {
        const int expert = listed[thread];
        int before = 0;
        for (int i = 0; i < a.k; ++i) {
          const int other = listed[i];
          before += other < expert || (other == expert && i < thread) ? 1 : 0;
        }
        chosen[before] = expert;
        chosen_affinity[before] = affinity_of(expert);
      }
    } else {
      if (thread < a.experts) {
        const float s = affinity_of(thread);
        affinity[thread] = s;
        scores[thread] = s + bias;
      }
      __syncthreads();
      if (thread < 32) {
        ChooseExperts<kPerLane>(scores, a.experts, a.k, chosen);
        __syncwarp();
        for (int i = thread; i < a.k; i += 32) chosen_affinity[i] = affinity[chosen[i]];
      }
    }
    __syncthreads();
    if (thread < a.k) {
      float sum = 0;
      for (int i = 0; i < a.k; ++i) sum += chosen_affinity[i];
      const float weight = chosen_affinity[thread] / sum * a.factor;
      if (real) {
        a.chosen[row * a.k + thread] = chosen[thread];
        a.chosen_weight[row * a.k + thread] = weight;
      }
      weights[thread] = weight;
    }
    if (a.rows != 1) return;
    __syncthreads();
    SortOneRow(a, chosen, weights, real);
  });
}

// One CTA: a counting sort of the chosen experts that keeps the order of rows. Each of `parts`
// warps has a part of them, in order. counts: [parts][experts].
__global__ void __launch_bounds__(kSortThreads) SortKernel(const RouteArgs a, int parts) {
  GridDependencyLaunch();
  int* const counts = SharedMemory<int>();
  __shared__ unsigned long long warp_totals[32];
  const int thread = int(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  for (int i = thread; i < parts * a.experts; i += kSortThreads) counts[i] = 0;
  const int total = a.rows * a.k;
  const int part = (total + 32 * parts - 1) / (32 * parts) * 32;
  const int begin = min(total, warp * part);
  const int end = warp < parts ? min(total, begin + part) : begin;
  int* const mine = counts + (warp < parts ? warp : 0) * a.experts;
  GridDependencyWait();
  __syncthreads();
  for (int i = begin + lane; i < end; i += 32) atomicAdd(mine + a.chosen[i], 1);
  __syncthreads();

  // Thread e: how many rows the expert has, and how many tiles (in the upper half).
  int count = 0;
  if (thread < a.experts) {
    for (int p = 0; p < parts; ++p) {
      const int here = counts[p * a.experts + thread];
      counts[p * a.experts + thread] = count;
      count += here;
    }
  }
  const int tiles = (count + a.tile - 1) / a.tile;
  const unsigned long long own =
      static_cast<unsigned long long>(tiles) << 32 | static_cast<unsigned>(count);
  unsigned long long sum = own;  // of this thread and those before it
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned long long before = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) warp_totals[warp] = sum;
  __syncthreads();
  unsigned long long before = sum - own;
  for (int w = 0; w < warp; ++w) before += warp_totals[w];
  if (thread < a.experts) {
    const int first = int(before & 0xFFFFFFFFu);
    const int first_tile = int(before >> 32);
    a.expert_begin[thread] = first;
    for (int p = 0; p < parts; ++p) counts[p * a.experts + thread] += first;
    for (int t = 0; t < tiles; ++t) {
      a.tiles[first_tile + t] =
          make_int4(thread, first + t * a.tile, min(a.tile, count - t * a.tile), 0);
    }
    if (thread == a.experts - 1) {
      a.expert_begin[a.experts] = total;
      *a.tile_count = first_tile + tiles;
    }
  }
  __syncthreads();

  for (int base = begin; base < end; base += 32) {
    const int i = base + lane;
    const bool real = i < end;
    const int expert = real ? a.chosen[i] : -1;
    const unsigned same = __match_any_sync(kAllLanes, expert);
    const int rank = __popc(same & ((1u << lane) - 1));
    const int at = real ? mine[expert] + rank : 0;
    __syncwarp();
    if (real && rank == 0) mine[expert] += __popc(same);
    __syncwarp();
    if (!real) continue;
    a.routed_row[at] = i / a.k;
    a.routed_weight[at] = a.chosen_weight[i];
    a.routed_at[i] = at;
  }
}

}  // namespace

void Route(const RouteArgs& args, cudaStream_t stream) {
  if (args.rows <= 0) return;
  Require(args.experts >= 1 && args.experts <= kMaxExperts, "experts");
  Require(args.k >= 1 && args.k <= kMaxChosen && args.k <= args.experts, "experts per token");
  Require(args.tile >= 1, "tile of routed rows");
  const dim3 grid(unsigned(args.rows));
  // An expert per thread: their affinities are what takes time.
  const dim3 block(unsigned(RoundUp(std::max(args.experts, kMaxChosen), 32)));
  if (args.experts <= 256) {
    Launch(RouteKernel<8>, grid, block, 0, stream, args);
  } else if (args.experts <= 512) {
    Launch(RouteKernel<16>, grid, block, 0, stream, args);
  } else {
    Launch(RouteKernel<32>, grid, block, 0, stream, args);
  }
  if (args.rows == 1) return;
  const int parts = int(std::min<int64_t>(32, DivideUp(int64_t(args.rows) * args.k, 32)));
  const size_t bytes = size_t(parts) * size_t(args.experts) * sizeof(int);
  RaiseSharedMemory<SortKernel>(32 * int(sizeof(unsigned long long)));
  Launch(SortKernel, dim3(1), dim3(kSortThreads), bytes, stream, args, parts);
}

}  // namespace agentd::model::cuda
