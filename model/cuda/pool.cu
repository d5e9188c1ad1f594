// The compressors: running softmax of the open blocks, entries of the closed ones.
#include <cmath>

#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/latents.cuh"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kMaxFoldThreads = 512;
constexpr int kManyFoldThreads = 256;  // where there are many blocks
constexpr int kMaxChannels = 4096;     // a thread has at most one octet of an entry
constexpr int kTogether = 4;           // rows of a long block that are loaded at a time
constexpr int kAngleBarrier = 0;
constexpr int kEmitBarrier = 1;

// The compressors of a launch, and beside them the latents of segments of one row.
struct Compressors {
  PoolArgs of[2];
  float hadamard[2];
  int count = 0;
  LatentArgs latents;  // rows == 0: none
};

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
};

// k and gate of the segment's rows `row` to `row` + kRows, channel `channel`, of those in [begin,
// end); the loads of kPlanes planes are under way together.
template <int kRows>
struct Rows {
  float k[kRows];
  float gate[kRows];
};
template <int kPlanes, int kHalves, int kRows>
__device__ inline void LoadRows(const Place& p, int64_t row, int64_t begin, int64_t end,
                                const int (&channel)[kHalves], Rows<kRows> (&out)[kHalves]) {
  const int planes = max(p.a.k.planes, p.a.gate.planes);
#pragma unroll 1
  for (int first = 0; first < planes; first += kPlanes) {
    float k[kHalves][kRows][kPlanes];
    float gate[kHalves][kRows][kPlanes];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const bool wanted = row + i >= begin && row + i < end;
        const int64_t at = p.g.row_begin + row + i;
        const float* const k_at = PlaneOf(p.a.k, at, channel[half]);
        const float* const gate_at = PlaneOf(p.a.gate, at, channel[half]);
#pragma unroll
        for (int n = 0; n < kPlanes; ++n) {
          const int64_t plane = first + n;
          k[half][i][n] = LoadIf(wanted && plane < p.a.k.planes, k_at + plane * p.a.k.plane_stride);
          gate[half][i][n] =
              LoadIf(wanted && plane < p.a.gate.planes, gate_at + plane * p.a.gate.plane_stride);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        Rows<kRows>& o = out[half];
#pragma unroll
        for (int n = 0; n < kPlanes; ++n) {
          const int plane = first + n;
          if (plane == 0) {
            o.k[i] = k[half][i][n];
            o.gate[i] = gate[half][i][n];
            continue;
          }
          if (plane < p.a.k.planes) o.k[i] += k[half][i][n];
          if (plane < p.a.gate.planes) o.gate[i] += gate[half][i][n];
        }
      }
    }
  }
}

// A block of 4 tokens, whose entry also has the first half of the block before. Returns the pooled
// value if the block closes.
__device__ inline float FoldOverlapping(const Place& p) {
  const int c = p.a.channels;
  float ape[2][4];
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    ape[0][s] = p.a.ape[2 * s * c + p.channel];
    ape[1][s] = p.a.ape[(2 * s + 1) * c + p.channel];
  }
  const bool has_before = p.row + p.g.start >= 4;
  const bool before_is_state = p.row <= 0;  // the block before closed before this segment
  int slots[4];
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const int64_t j = p.row + s;
    slots[s] = j >= 0 && j < p.g.rows ? p.g.slots[j + 1] : -1;
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
    Rows<4> rows[1];
    LoadRows<2, 1, 4>(p, p.row - 4, 0, p.g.rows, {p.channel}, rows);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (p.row + s >= 4) before = Fold(before, rows[0].k[s], rows[0].gate[s] + ape[0][s], s == 0);
    }
  }
  // All of the block's loads before its stores to frontiers, which would order them.
  Rows<4> halves[2];
  {
    Rows<4> half[1];
    LoadRows<2, 1, 4>(p, p.row, 0, p.g.rows, {p.channel}, half);
    halves[0] = half[0];
    LoadRows<2, 1, 4>(p, p.row, 0, p.g.rows, {c + p.channel}, half);
    halves[1] = half[0];
  }
  float pooled = 0;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const int64_t j = p.row + s;
    if (j < 0 || j >= p.g.rows) continue;
    first = Fold(first, halves[0].k[s], halves[0].gate[s] + ape[0][s], s == 0);
    second = Fold(second, halves[1].k[s], halves[1].gate[s] + ape[1][s], s == 0);
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

// The same for a segment of one row: everything is loaded at once.
__device__ inline float FoldOneOverlapping(const Place& p) {
  const int c = p.a.channels;
  const int s = int(-p.row);  // the row's place in the block
  const int from = p.g.slots[0];
  const int to = p.g.slots[1];
  const float ape_first = p.a.ape[2 * s * c + p.channel];
  const float ape_second = p.a.ape[(2 * s + 1) * c + p.channel];
  Rows<1> row[2];
  // The loads of the frontier wait for its slot, so they come last.
  LoadRows<4, 2, 1>(p, 0, 0, 1, {p.channel, c + p.channel}, row);
  const float* const in = p.Frontier(from);
  State before = LoadState(in, c);
  State first = {};
  State second = {};
  if (s > 0) {
    first = LoadState(in + 3 * c, c);
    second = LoadState(in + 6 * c, c);
  }
  first = Fold(first, row[0].k[0], row[0].gate[0] + ape_first, s == 0);
  second = Fold(second, row[1].k[0], row[1].gate[0] + ape_second, s == 0);
  float pooled = 0;
  if (s == 3) {
    pooled = p.g.start >= 4 ? Finish(before, second) : Finish(second);
    before = first;
  }
  if (to >= 0) {
    float* const out = p.Frontier(to);
    StoreState(before, out, c);
    StoreState(first, out + 3 * c, c);
    StoreState(second, out + 6 * c, c);
  }
  return pooled;
}

// A block of `ratio` tokens by itself, kRows at a time.
template <int kRows>
__device__ inline float FoldPlain(const Place& p, int ratio) {
  const int c = p.a.channels;
  const int64_t begin = max(p.row, int64_t{0});
  const int64_t end = min(p.row + ratio, int64_t{p.g.rows});
  State state = {};
  if (p.row < 0) state = LoadState(p.Frontier(p.g.slots[0]), c);
#pragma unroll 1
  for (int64_t base = begin; base < end; base += kRows) {
    float ape[kRows];
    int slots[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t j = base + i;
      ape[i] = LoadIf(j < end, p.a.ape + (j - p.row) * c + p.channel);
      slots[i] = j < end ? p.g.slots[j + 1] : -1;
    }
    Rows<kRows> rows[1];
    LoadRows<4, 1, kRows>(p, base, base, end, {p.channel}, rows);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (base + i >= end) continue;
      state = Fold(state, rows[0].k[i], rows[0].gate[i] + ape[i], base + i == p.row);
      if (slots[i] >= 0) StoreState(state, p.Frontier(slots[i]), c);
    }
  }
  return Finish(state);
}

// Makes an entry or an indexer key at `to` of the pooled values [channels]; overwrites them. By the
// first `threads`, which have an octet each.
template <bool kLow>
__device__ inline void Emit(const PoolArgs& a, uint8_t* to, const Octet& norm, float hadamard,
                            float* values, const float* cosine, const float* sine, float* shared,
                            int threads) {
  const int n = a.channels;
  const int thread = int(threadIdx.x);
  const int i = 8 * thread;
  Octet x = LoadFloats(values + i, n - i);
  RoundOctet<kLow>(&x);
  const float squares = BlockSum(SumSquares(x), shared, threads, kEmitBarrier);
  ScaleByNorm<kLow>(&x, RmsFactor(squares, n, a.eps), norm);
  Rotate<kLow>(&x, i, n - a.state.rotary, n, cosine, sine);
  if (!a.index) {
    EncodeEntry<kLow>(a.state, i, x, to);
    return;
  }
  if constexpr (kLow) {
    if (n <= 256) {
      Octet lanes[1] = {x};
      Hadamard(lanes, n);
      x = lanes[0];
    } else {
      StoreFloats(values + i, n - i, x);
      for (int step = 1; step < n; step *= 2) {
        Barrier(kEmitBarrier, threads);
        for (int pair = thread; pair < n / 2; pair += threads) {
          const int j = pair / step * 2 * step + pair % step;
          const float p = values[j];
          const float q = values[j + step];
          values[j] = p + q;
          values[j + step] = p - q;
        }
      }
      Barrier(kEmitBarrier, threads);
      x = LoadFloats(values + i, n - i);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) x.v[e] *= hadamard;
    RoundOctet<kLow>(&x);
  }
  EncodeIndexKey<kLow>(n, i, x, to);
}

// A CTA has block blockIdx.x of those that segment blockIdx.y touches, for compressor blockIdx.z;
// kOne: segments have one row; then a last warp computes the angles of the entry's position
// meanwhile, and CTAs beyond the compressors have the row's latents. shared: [channels] values,
// [rotary / 2] cosines, as many sines.
template <bool kLow, bool kOverlap, bool kOne>
__global__ void __launch_bounds__(kMaxFoldThreads + (kOne ? 32 : 0))
    PoolKernel(const __grid_constant__ Compressors compressors) {
  GridDependencyLaunch();
  float4* const shared_quads = SharedMemory<float4>();
  __shared__ float warp_sums[32];
  if constexpr (kOne) {
    if (int(blockIdx.z) >= compressors.count) {
      const LatentArgs& l = compressors.latents;
      const bool keys = int(blockIdx.z) > compressors.count;
      const int threads = ((keys ? l.state.channels : l.q_rank) + 255) / 256 * 32;
      if (int(threadIdx.x) < threads) LatentRow<kLow, 1>(l, blockIdx.y, keys, warp_sums, threads);
      return;
    }
  }
  const PoolArgs& a = compressors.of[blockIdx.z];
  float* const values = reinterpret_cast<float*>(shared_quads);
  float* const cosine = values + (a.channels + 3) / 4 * 4;
  float* const sine = cosine + a.state.rotary / 2;
  const int ratio = kOverlap ? 4 : a.ratio;
  const int thread = int(threadIdx.x);
  const int fold_threads = int(blockDim.x) - (kOne ? 32 : 0);
  const int pairs = a.state.rotary / 2;
  const bool folds = thread < fold_threads;
  // Weights, which no kernel before writes.
  auto load_norm = [&] { return LoadFloats(a.norm + 8 * thread, a.channels - 8 * thread); };
  Octet norm;
  if constexpr (kOne) norm = load_norm();
  const int first_pair = kOne ? thread - fold_threads : thread;
  double frequency = 0;
  if (kOne && !folds && first_pair < pairs) frequency = a.frequencies[first_pair];
  GridDependencyWait();
  const SegmentView g = a.batch.segments[blockIdx.y];
  const int64_t entry = g.start / ratio + blockIdx.x;
  const int64_t begin = entry * ratio;
  if (begin >= g.start + g.rows) return;
  const bool closes = begin + ratio <= g.start + g.rows;
  // The page's address under way early (of a block that stays open anything readable).
  uint8_t* const* pages = reinterpret_cast<uint8_t* const*>(a.batch.segments + blockIdx.y);
  if (closes) {
    pages = a.index      ? g.index_pages + entry / 64
            : ratio == 4 ? g.csa_pages + a.number * g.csa_stride + entry / 64
                         : g.index_pages + entry / 2;
  }
  uint8_t* const page = *pages;
  if (folds) {
    for (int channel = thread; channel < a.channels; channel += fold_threads) {
      const Place place = {a, g, begin - g.start, channel};
      float pooled;
      if constexpr (!kOverlap) {
        pooled = FoldPlain < kOne ? 1 : kTogether > (place, ratio);
      } else {
        pooled = kOne ? FoldOneOverlapping(place) : FoldOverlapping(place);
      }
      if (closes) values[channel] = pooled;
    }
  }
  if (closes && !(kOne && folds)) {
    for (int pair = first_pair; pair < pairs; pair += kOne ? 32 : fold_threads) {
      double s;
      double c;
      if (!kOne || pair != first_pair) frequency = a.frequencies[pair];
      SinCos(static_cast<double>(begin) * frequency, &s, &c);
      cosine[pair] = static_cast<float>(c);
      sine[pair] = static_cast<float>(s);
    }
  }
  if (!closes) return;
  if constexpr (!kOne) norm = load_norm();
  Barrier(kAngleBarrier, int(blockDim.x));
  const int emits = (a.channels + 255) / 256 * 32;
  if (thread >= emits) return;
  uint8_t* const to = a.index      ? KeyInPage(a.state, page, a.number, entry)
                      : ratio == 4 ? CsaEntryInPage(a.state, page, entry)
                                   : HcaEntryInPage(a.state, page, a.number, entry);
  Emit<kLow>(a, to, norm, compressors.hadamard[blockIdx.z], values, cosine, sine, warp_sums, emits);
}

template <bool kLow, bool kOverlap>
void LaunchPool(const Compressors& args, bool one, dim3 grid, dim3 block, size_t bytes,
                cudaStream_t stream) {
  Launch(one ? PoolKernel<kLow, kOverlap, true> : PoolKernel<kLow, kOverlap, false>, grid, block,
         bytes, stream, args);
}

}  // namespace

void LatentsAndPool(const LatentArgs& latents, const PoolArgs& first, const PoolArgs& second,
                    cudaStream_t stream) {
  if (first.batch.rows <= 0 || first.batch.segment_count <= 0 || first.max_segment_rows <= 0)
    return;
  const bool two = second.channels > 0;
  Require(first.ratio == 4 || first.ratio == 128, "compression ratio");
  Require(!two || second.ratio == first.ratio, "compression ratios");
  const int widest = std::max(first.channels, second.channels);
  Require(first.channels >= 1 && widest <= kMaxChannels, "channels of an entry");
  const bool low = first.state.low;
  // Blocks that a segment of the most rows can touch.
  const int blocks = (first.max_segment_rows + first.ratio - 2) / first.ratio + 1;
  const bool many = first.ratio == 4 && int64_t(blocks) * first.batch.segment_count > 132;
  const int64_t emits = DivideUp(widest, 256) * 32;
  const int64_t folds =
      std::min<int64_t>(RoundUp(widest, 32), many ? kManyFoldThreads : kMaxFoldThreads);
  const bool one = first.max_segment_rows == 1;
  const dim3 block(unsigned(std::max(emits, folds)) + (one ? 32 : 0));
  // Of one row's segments what these make does not wait for what those make, in one launch.
  const bool beside = one && first.batch.rows == first.batch.segment_count &&
                      latents.q.data != nullptr && latents.kv.data != nullptr &&
                      std::max(latents.q_rank, latents.state.channels) <= 8 * int(block.x);
  if (!beside) Latents(latents, stream);
  const int count = two ? 2 : 1;
  const dim3 grid{unsigned(blocks), unsigned(first.batch.segment_count),
                  unsigned(count + (beside ? 2 : 0))};
  const size_t bytes = size_t(RoundUp(widest, 4) + first.state.rotary / 2 * 2) * sizeof(float);
  auto hadamard = [](const PoolArgs& a) {
    return static_cast<float>(1 / std::sqrt(double(std::max(1, a.channels))));
  };
  const Compressors args = {
      {first, second}, {hadamard(first), hadamard(second)}, count, beside ? latents : LatentArgs()};
  if (first.ratio == 4) {
    low ? LaunchPool<true, true>(args, one, grid, block, bytes, stream)
        : LaunchPool<false, true>(args, one, grid, block, bytes, stream);
  } else {
    low ? LaunchPool<true, false>(args, one, grid, block, bytes, stream)
        : LaunchPool<false, false>(args, one, grid, block, bytes, stream);
  }
}

void Pool(const PoolArgs& first, const PoolArgs& second, cudaStream_t stream) {
  LatentsAndPool({}, first, second, stream);
}

}  // namespace agentd::model::cuda
