// The compressors: running softmax of the open blocks, entries of the closed ones.
#include <cmath>

#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kMaxFoldThreads = 512;  // beside a warp for the angles
constexpr int kMaxChannels = 4096;    // a thread has at most one octet of an entry
constexpr int kTogether = 8;          // rows of a long block that are loaded at a time

// One channel of a pooling block.
struct State {
  float max;
  float sum;
  float weighted;
};

// `at` points to the channel's first number; the others lie `stride` floats apart.
__device__ inline State LoadState(const float* at, int stride) {
  return {at[0], at[stride], at[2 * stride]};
}
__device__ inline void StoreState(const State& s, float* at, int stride) {
  at[0] = s.max;
  at[stride] = s.sum;
  at[2 * stride] = s.weighted;
}

// FoldPooling of the CPU backend.
__device__ inline State Fold(const State& in, float k, float g, bool first) {
  if (first) return {g, 1.0f, k};
  const bool grows = g > in.max;
  const float largest = grows ? g : in.max;
  const float smallest = grows ? in.max : g;
  const float e = ExpF32(smallest - largest);
  const float keep = grows ? e : 1.0f;
  const float add = grows ? 1.0f : e;
  return {largest, in.sum * keep + add, in.weighted * keep + k * add};
}

// FinishPooling.
__device__ inline float Finish(const State& b) { return b.weighted / b.sum; }
__device__ inline float Finish(const State& a, const State& b) {
  const float largest = a.max > b.max ? a.max : b.max;
  const float scale_a = ExpF32(a.max - largest);
  const float scale_b = ExpF32(b.max - largest);
  const float sum = a.sum * scale_a + b.sum * scale_b;
  const float weighted = a.weighted * scale_a + b.weighted * scale_b;
  return weighted / sum;
}

// What a thread folds: one channel of one block of one segment.
struct Place {
  const PoolArgs& a;
  const SegmentView& g;
  int64_t row;  // in the segment, of the block's first token; negative if it began before
  int channel;

  __device__ float* Frontier(int slot) const {
    return g.frontiers + slot * a.state.frontier_floats + a.frontier + channel;
  }
  __device__ float K(int64_t j, int i) const { return PlaneAt(a.k, g.row_begin + j, i); }
  __device__ float Gate(int64_t j, int i) const { return PlaneAt(a.gate, g.row_begin + j, i); }
};

// A block of 4 tokens, whose entry also has the first half of the block before. Returns the pooled
// value if the block closes.
__device__ inline float FoldOverlapping(const Place& p) {
  const int c = p.a.channels;
  const int width = 2 * c;
  float ape[2][4];
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    ape[0][s] = p.a.ape[s * width + p.channel];
    ape[1][s] = p.a.ape[s * width + c + p.channel];
  }
  // All loads first: stores to frontiers would order them. Index 0: the block before, first half;
  // 1 and 2: this block's halves.
  float k[3][4];
  float g[3][4];
  int slots[4];
  const bool has_before = p.row + p.g.start >= 4;
  const bool before_is_state = p.row <= 0;  // the block before closed before this segment
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const int64_t j = p.row + s;
    const bool here = j >= 0 && j < p.g.rows;
    const bool before = !before_is_state && j >= 4;  // j - 4 is a row of this segment
    k[0][s] = before ? p.K(j - 4, p.channel) : 0.0f;
    g[0][s] = before ? p.Gate(j - 4, p.channel) : 0.0f;
    k[1][s] = here ? p.K(j, p.channel) : 0.0f;
    g[1][s] = here ? p.Gate(j, p.channel) : 0.0f;
    k[2][s] = here ? p.K(j, c + p.channel) : 0.0f;
    g[2][s] = here ? p.Gate(j, c + p.channel) : 0.0f;
    slots[s] = here ? p.g.slots[j + 1] : -1;
  }
  State before = {};
  State first = {};
  State second = {};
  if (p.row < 4) {  // this block or the one before began in the frontier
    const float* const in = p.Frontier(p.g.slots[0]);
    if (before_is_state) {
      before = LoadState(in, c);
      if (p.row < 0) {
        first = LoadState(in + 3 * c, c);
        second = LoadState(in + 6 * c, c);
      }
    } else {
      before = LoadState(in + 3 * c, c);
    }
  }
  if (!before_is_state) {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (p.row + s >= 4) before = Fold(before, k[0][s], g[0][s] + ape[0][s], s == 0);
    }
  }
  float pooled = 0;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const int64_t j = p.row + s;
    if (j < 0 || j >= p.g.rows) continue;
    first = Fold(first, k[1][s], g[1][s] + ape[0][s], s == 0);
    second = Fold(second, k[2][s], g[2][s] + ape[1][s], s == 0);
    if (s == 3) {
      pooled = has_before ? Finish(before, second) : Finish(second);
      before = first;
    }
    if (slots[s] < 0) continue;
    float* const out = p.Frontier(slots[s]);
    StoreState(before, out, c);
    StoreState(first, out + 3 * c, c);
    StoreState(second, out + 6 * c, c);
  }
  return pooled;
}

// A block of `ratio` tokens by itself.
__device__ inline float FoldPlain(const Place& p, int ratio) {
  const int c = p.a.channels;
  const int64_t begin = max(p.row, int64_t{0});
  const int64_t end = min(p.row + ratio, int64_t{p.g.rows});
  State state = {};
  if (p.row < 0) state = LoadState(p.Frontier(p.g.slots[0]), c);
  for (int64_t base = begin; base < end; base += kTogether) {
    float k[kTogether];
    float g[kTogether];
    int slots[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t j = base + i;
      const bool here = j < end;
      k[i] = here ? p.K(j, p.channel) : 0.0f;
      g[i] = here ? p.Gate(j, p.channel) + p.a.ape[(j - p.row) * c + p.channel] : 0.0f;
      slots[i] = here ? p.g.slots[j + 1] : -1;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (base + i >= end) continue;
      state = Fold(state, k[i], g[i], base + i == p.row);
      if (slots[i] >= 0) StoreState(state, p.Frontier(slots[i]), c);
    }
  }
  return Finish(state);
}

// Makes an entry or an indexer key of the pooled values [channels]; overwrites them.
template <bool kLow>
__device__ inline void Emit(const PoolArgs& a, const SegmentView& g, int64_t entry,
                            const Octet& norm, float hadamard, float* values, const float* cosine,
                            const float* sine, float* shared) {
  const int n = a.channels;
  const int thread = int(threadIdx.x);
  const int threads = int(blockDim.x);
  const int i = 8 * thread;
  Octet x = LoadFloats(values + i, n - i);
  RoundOctet<kLow>(&x);
  const float squares = BlockSum(SumSquares(x), shared, threads);
  ScaleByNorm<kLow>(&x, RmsFactor(squares, n, a.eps), norm);
  Rotate<kLow>(&x, i, n - a.state.rotary, n, cosine, sine);
  if (!a.index) {
    EncodeEntry<kLow>(a.state, i, x,
                      a.ratio == 4 ? CsaEntryAt(a.state, g, a.number, entry)
                                   : HcaEntryAt(a.state, g, a.number, entry));
    return;
  }
  if constexpr (kLow) {
    StoreFloats(values + i, n - i, x);
    for (int step = 1; step < n; step *= 2) {
      __syncthreads();
      for (int pair = thread; pair < n / 2; pair += threads) {
        const int j = pair / step * 2 * step + pair % step;
        const float p = values[j];
        const float q = values[j + step];
        values[j] = p + q;
        values[j + step] = p - q;
      }
    }
    __syncthreads();
    x = LoadFloats(values + i, n - i);
#pragma unroll
    for (int e = 0; e < 8; ++e) x.v[e] *= hadamard;
    RoundOctet<kLow>(&x);
  }
  EncodeIndexKey<kLow>(n, i, x, IndexKeyAt(a.state, g, a.number, entry));
}

// A CTA has block blockIdx.x of those that segment blockIdx.y touches; its last warp computes the
// angles of the entry's position. shared: [channels] values, [rotary / 2] cosines, as many sines.
template <bool kLow, bool kOverlap>
__global__ void __launch_bounds__(kMaxFoldThreads + 32)
    PoolKernel(const PoolArgs a, float hadamard) {
  GridDependencyLaunch();
  extern __shared__ float4 shared_quads[];
  __shared__ float warp_sums[32];
  float* const values = reinterpret_cast<float*>(shared_quads);
  float* const cosine = values + (a.channels + 3) / 4 * 4;
  float* const sine = cosine + a.state.rotary / 2;
  const int ratio = kOverlap ? 4 : a.ratio;
  const int thread = int(threadIdx.x);
  const int fold_threads = int(blockDim.x) - 32;
  const Octet norm = LoadFloats(a.norm + 8 * thread, a.channels - 8 * thread);
  GridDependencyWait();
  const SegmentView g = a.batch.segments[blockIdx.y];
  const int64_t entry = g.start / ratio + blockIdx.x;
  const int64_t begin = entry * ratio;
  if (begin >= g.start + g.rows) return;
  const bool closes = begin + ratio <= g.start + g.rows;
  if (thread < fold_threads) {
    for (int channel = thread; channel < a.channels; channel += fold_threads) {
      const Place place = {a, g, begin - g.start, channel};
      const float pooled = kOverlap ? FoldOverlapping(place) : FoldPlain(place, ratio);
      if (closes) values[channel] = pooled;
    }
  } else if (closes) {
    for (int pair = thread - fold_threads; pair < a.state.rotary / 2; pair += 32) {
      double s;
      double c;
      SinCos(static_cast<double>(begin) * a.frequencies[pair], &s, &c);
      cosine[pair] = static_cast<float>(c);
      sine[pair] = static_cast<float>(s);
    }
  }
  if (!closes) return;
  __syncthreads();
  Emit<kLow>(a, g, entry, norm, hadamard, values, cosine, sine, warp_sums);
}

}  // namespace

void Pool(const PoolArgs& args, cudaStream_t stream) {
  if (args.batch.rows <= 0 || args.batch.segment_count <= 0 || args.max_segment_rows <= 0) return;
  Require(args.ratio == 4 || args.ratio == 128, "compression ratio");
  Require(args.channels >= 1 && args.channels <= kMaxChannels, "channels of an entry");
  const bool low = args.state.low;
  // Blocks that a segment of the most rows can touch.
  const int blocks = (args.max_segment_rows + args.ratio - 2) / args.ratio + 1;
  const dim3 grid{unsigned(blocks), unsigned(args.batch.segment_count)};
  const unsigned threads =
      unsigned(std::min<int64_t>(RoundUp(args.channels, 32), kMaxFoldThreads)) + 32;
  const size_t bytes =
      size_t(RoundUp(args.channels, 4) + args.state.rotary / 2 * 2) * sizeof(float);
  const auto hadamard = static_cast<float>(1 / std::sqrt(double(args.channels)));
  auto launch = [&](auto kernel) {
    Launch(kernel, grid, dim3(threads), bytes, stream, args, hadamard);
  };
  if (args.ratio == 4) {
    launch(low ? PoolKernel<true, true> : PoolKernel<false, true>);
  } else {
    launch(low ? PoolKernel<true, false> : PoolKernel<false, false>);
  }
}

}  // namespace agentd::model::cuda
