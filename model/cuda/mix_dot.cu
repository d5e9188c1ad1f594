// mHC, first half: a sublayer's output into the streams, and the products of the streams with fn.
#include <type_traits>

#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kWarps = 6;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpOutputs = 4;  // so 6 warps have the 24 of four streams
constexpr int kQuads = kMixChunk / 4;
constexpr int kFewMixRows = 4;  // up to so many each have CTAs of their own
constexpr int kManyRows = 8;
constexpr int kManyCtas = 4;  // of an SM, of many rows

struct Quad {
  float v[4];
};

__device__ inline Quad LoadFloats4(const float* p, int count) {
  if (count >= 4 && Aligned(p, 16)) {
    const float4 a = *reinterpret_cast<const float4*>(p);
    return {{a.x, a.y, a.z, a.w}};
  }
  Quad q;
#pragma unroll
  for (int e = 0; e < 4; ++e) q.v[e] = e < count ? p[e] : 0.0f;
  return q;
}

__device__ inline Quad QuadOf(uint2 bits) {
  return {{LowBf16(bits.x), HighBf16(bits.x), LowBf16(bits.y), HighBf16(bits.y)}};
}

template <bool kLow>
__device__ inline Quad LoadStream(const void* streams, int64_t at, int count) {
  if constexpr (kLow) {
    const uint16_t* p = static_cast<const uint16_t*>(streams) + at;
    if (count >= 4 && Aligned(p, 8)) return QuadOf(*reinterpret_cast<const uint2*>(p));
    Quad q;
#pragma unroll
    for (int e = 0; e < 4; ++e) q.v[e] = e < count ? Bf16ToFloat(p[e]) : 0.0f;
    return q;
  } else {
    return LoadFloats4(static_cast<const float*>(streams) + at, count);
  }
}

// v are BF16 already if kLow.
template <bool kLow>
__device__ inline void StoreStream(void* streams, int64_t at, int count, const Quad& q) {
  if constexpr (kLow) {
    uint16_t* p = static_cast<uint16_t*>(streams) + at;
    const uint2 bits = make_uint2(PackBf16(q.v[0], q.v[1]), PackBf16(q.v[2], q.v[3]));
    if (count >= 4 && Aligned(p, 8)) {
      *reinterpret_cast<uint2*>(p) = bits;
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t pair = e < 2 ? bits.x : bits.y;
      if (e < count) p[e] = static_cast<uint16_t>(pair >> (e % 2 * 16));
    }
  } else {
    float* p = static_cast<float*>(streams) + at;
    if (count >= 4 && Aligned(p, 16)) {
      *reinterpret_cast<float4*>(p) = make_float4(q.v[0], q.v[1], q.v[2], q.v[3]);
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (e < count) p[e] = q.v[e];
    }
  }
}

__device__ inline Quad SubAt(const Planes& p, int64_t row, int i, int count) {
  if (p.rounded) return LoadStream<true>(p.data, row * p.row_stride + i, count);
  const float* at = PlaneOf(p, row, i);
  Quad q = LoadFloats4(at, count);
#pragma unroll 4
  for (int n = 1; n < p.planes; ++n) {
    const Quad next = LoadFloats4(at + n * p.plane_stride, count);
#pragma unroll
    for (int e = 0; e < 4; ++e) q.v[e] += next.v[e];
  }
  return q;
}

// How a sublayer's output lies: in planes, rounded, or as what experts made.
enum class Sub { kPlanes, kRounded, kExperts };

// Four numbers of it, loaded when it is made if they are `wanted`.
template <int kTogether, Sub kSub>
struct SubLoads {
  PlaneLoads<float4, kTogether> planes;
  __device__ inline SubLoads(const MixDotArgs& a, int64_t row, int i, bool wanted)
      : planes(a.sub, PlaneOf(a.sub, row, i), wanted) {}
  __device__ inline Quad Sum() {
    const float4 sum = planes.Sum();
    return {{sum.x, sum.y, sum.z, sum.w}};
  }
};
template <int kTogether>
struct SubLoads<kTogether, Sub::kRounded> {
  uint2 bits;
  __device__ inline SubLoads(const MixDotArgs& a, int64_t row, int i, bool wanted)
      : bits(
            LoadIf(wanted, reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(a.sub.data) +
                                                          row * a.sub.row_stride + i))) {}
  __device__ inline Quad Sum() const { return QuadOf(bits); }
};
// Of one row; its routed rows are known.
constexpr int kMostExperts = 8;
struct RoutedAt {
  int row[kMostExperts];
  __device__ inline RoutedAt(const ExpertSums& e, int64_t of) {
#pragma unroll
    for (int j = 0; j < kMostExperts; ++j) row[j] = j < e.k ? e.routed_at[of * e.k + j] : 0;
  }
};
struct ExpertLoads {
  int k;
  float4 y[kMostExperts];
  PlaneLoads<float4, 4> shared;
  __device__ inline ExpertLoads(const ExpertSums& e, const RoutedAt& at, int64_t row, int i,
                                bool wanted)
      : k(e.k), shared(e.shared, PlaneOf(e.shared, row, i), wanted) {
#pragma unroll
    for (int j = 0; j < kMostExperts; ++j) {
      y[j] =
          LoadIf(wanted && j < k, reinterpret_cast<const float4*>(PlaneOf(e.routed, at.row[j], i)));
    }
  }
  // AddExperts'.
  __device__ inline Quad Sum() {
    float4 sum = {};
#pragma unroll
    for (int j = 0; j < kMostExperts; ++j) {
      if (j < k) sum = Plus(sum, RoundAll<true>(y[j]));
    }
    sum = RoundAll<true>(Plus(sum, RoundAll<true>(shared.Sum())));
    return {{sum.x, sum.y, sum.z, sum.w}};
  }
};

// Two neighbouring weights of an output, zero beyond the row's end.
__device__ inline float2 LoadPair(const float* p, int count) {
  if (count >= 2 && Aligned(p, 8)) return *reinterpret_cast<const float2*>(p);
  return make_float2(count >= 1 ? p[0] : 0.0f, count >= 2 ? p[1] : 0.0f);
}

// Sums kValues (a power of two, at most 32) numbers over the warp: lane l has the sum of value
// l / (32 / kValues). Each sum is the same tree, over lanes 16 apart, then 8, ..., for any kValues.
template <int kValues, int kStep = 16>
__device__ inline float TransposedSum(const float (&value)[kValues]) {
  if constexpr (kValues == 1) {
    float sum = value[0];
#pragma unroll
    for (int step = kStep; step >= 1; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    return sum;
  } else {
    constexpr int kHalf = kValues / 2;
    const bool upper = (threadIdx.x & kStep) != 0;
    float half[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float keep = upper ? value[i + kHalf] : value[i];
      const float send = upper ? value[i] : value[i + kHalf];
      half[i] = keep + __shfl_xor_sync(kAllLanes, send, kStep);
    }
    return TransposedSum<kHalf, kStep / 2>(half);
  }
}

// A CTA has one chunk of channels of all streams, for kRows rows at a time; of fn it loads the
// chunk once. kH: h if it is 4, and then outputs are 24 at most; 0: any. kFast: Fast() of the
// arguments.
// shared: [kRows][h][kMixChunk] streams; for kH == 0 as much again.
template <bool kLow, int kH, int kRows, bool kFast, Sub kSub = Sub::kPlanes>
__global__ void __launch_bounds__(kThreads, kRows > 1 && kFast ? kManyCtas : 1)
    MixDotKernel(const MixDotArgs a) {
  GridDependencyLaunch();
  float4* const shared_quads = SharedMemory<float4>();
  float* const u = reinterpret_cast<float*>(shared_quads);
  const int h = kH > 0 ? kH : a.h;
  const int chunks = int(gridDim.x);
  const int begin = int(blockIdx.x) * kMixChunk;
  const int width = min(kMixChunk, a.d - begin);
  const int thread = int(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int64_t wide = int64_t(h) * a.d;

  // Of many rows the weights wait in shared memory while streams are loaded, for more CTAs of an
  // SM. A thread reads only its own.
  constexpr bool kShared = kH > 0 && kRows > 1 && kFast;
  __shared__ float2 shared_fn[kShared ? kWarpOutputs * kH * kThreads : 1];
  float2 fn[kWarpOutputs][kH > 0 ? kH : 1];
  if constexpr (kH > 0) {
#pragma unroll
    for (int k = 0; k < kWarpOutputs; ++k) {
      const int output = warp * kWarpOutputs + k;
      const bool has = a.fn != nullptr && output < a.outputs;
#pragma unroll
      for (int s = 0; s < kH; ++s) {
        const float* const at = a.fn + output * wide + int64_t(s) * a.d + begin + 2 * lane;
        if constexpr (kFast) {
          fn[k][s] = LoadIf(has, reinterpret_cast<const float2*>(at));
        } else {
          fn[k][s] = has ? LoadPair(at, width - 2 * lane) : make_float2(0.0f, 0.0f);
        }
        if constexpr (kShared) shared_fn[(k * kH + s) * kThreads + thread] = fn[k][s];
      }
    }
  }
  constexpr bool kExperts = kSub == Sub::kExperts;
  [[maybe_unused]] const RoutedAt routed_at(kExperts ? a.experts : ExpertSums(), blockIdx.y);
  GridDependencyWait();

  for (int64_t first = int64_t(blockIdx.y) * kRows; first < a.rows;
       first += int64_t(gridDim.y) * kRows) {
    // Whole warps, as lanes sum together.
    if (thread < max(32, kRows * kQuads)) {
      const int local = thread / kQuads;
      const int quad = thread % kQuads;
      const int64_t row = first + local;
      const bool real = local < kRows && row < a.rows;
      const int count = real ? width - 4 * quad : 0;
      const int64_t at = row * wide + begin + 4 * quad;
      float squares = 0;
      if constexpr (kH > 0) {
        static_assert(kH == 4);
        Quad x[kH];
        const bool folds = (kExperts || a.sub.data != nullptr) && count > 0;
        float post[kH];
        float comb[kH][kH];
        Quad sub = {};
        if constexpr (kFast) {
          // What is loaded is not looked at before the last load is under way.
          std::conditional_t<kLow, uint2, float4> bits[kH];
#pragma unroll
          for (int s = 0; s < kH; ++s) {
            const int64_t from = at + int64_t(s) * a.d;
            if constexpr (kLow) {
              bits[s] = LoadIf(real, reinterpret_cast<const uint2*>(
                                         static_cast<const uint16_t*>(a.streams) + from));
            } else {
              bits[s] = LoadIf(real, reinterpret_cast<const float4*>(
                                         static_cast<const float*>(a.streams) + from));
            }
          }
          // All planes of one row; of many rows fewer, for more CTAs of an SM.
          auto loads = [&] {
            if constexpr (kExperts) {
              return ExpertLoads(a.experts, routed_at, row, begin + 4 * quad, folds);
            } else {
              constexpr int kTogether = kRows == 1 ? 8 : 4;
              return SubLoads<kTogether, kSub>(a, row, begin + 4 * quad, folds);
            }
          }();
          const float4 post_row = LoadIf(folds, reinterpret_cast<const float4*>(a.post + row * kH));
          float4 comb_row[kH];
#pragma unroll
          for (int s = 0; s < kH; ++s) {
            comb_row[s] =
                LoadIf(folds, reinterpret_cast<const float4*>(a.comb + (row * kH + s) * kH));
          }
          if (folds) {
            sub = loads.Sum();
          }
          post[0] = post_row.x, post[1] = post_row.y, post[2] = post_row.z, post[3] = post_row.w;
#pragma unroll
          for (int s = 0; s < kH; ++s) {
            comb[s][0] = comb_row[s].x, comb[s][1] = comb_row[s].y;
            comb[s][2] = comb_row[s].z, comb[s][3] = comb_row[s].w;
            if constexpr (kLow) {
              x[s] = QuadOf(bits[s]);
            } else {
              x[s] = {{bits[s].x, bits[s].y, bits[s].z, bits[s].w}};
            }
          }
        } else {
#pragma unroll
          for (int s = 0; s < kH; ++s)
            x[s] = LoadStream<kLow>(a.streams, at + int64_t(s) * a.d, count);
          if (folds) {
            sub = SubAt(a.sub, row, begin + 4 * quad, count);
#pragma unroll
            for (int s = 0; s < kH; ++s) {
              post[s] = a.post[row * kH + s];
#pragma unroll
              for (int j = 0; j < kH; ++j) comb[s][j] = a.comb[(row * kH + s) * kH + j];
            }
          }
        }
        if (folds) {
          Quad mixed[kH];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float value = Round<kLow>(sub.v[e]);
#pragma unroll
            for (int j = 0; j < kH; ++j) {
              float sum = post[j] * value;
#pragma unroll
              for (int s = 0; s < kH; ++s) sum = sum + comb[s][j] * x[s].v[e];
              mixed[j].v[e] = Round<kLow>(sum);
            }
          }
#pragma unroll
          for (int j = 0; j < kH; ++j) {
            x[j] = mixed[j];
            StoreStream<kLow>(a.streams, at + int64_t(j) * a.d, count, x[j]);
          }
        }
#pragma unroll
        for (int s = 0; s < kH; ++s) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float value = e < count ? x[s].v[e] : 0.0f;
            squares += value * value;
            x[s].v[e] = value;
          }
          if (local < kRows) {
            shared_quads[(local * kH + s) * kQuads + quad] =
                make_float4(x[s].v[0], x[s].v[1], x[s].v[2], x[s].v[3]);
          }
        }
      } else if (local < kRows) {
        // The old streams wait in the second half of `u`.
        float* const mixed = u + quad * 4;
        float* const old = mixed + h * kMixChunk;
        const bool folds = a.sub.data != nullptr && count > 0;
        const Quad sub = folds ? SubAt(a.sub, row, begin + 4 * quad, count) : Quad{};
        for (int s = 0; s < h; ++s) {
          const Quad x = LoadStream<kLow>(a.streams, at + int64_t(s) * a.d, count);
#pragma unroll
          for (int e = 0; e < 4; ++e) old[s * kMixChunk + e] = x.v[e];
        }
        for (int j = 0; j < h; ++j) {
          Quad x;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float sum = old[j * kMixChunk + e];
            if (folds) {
              sum = a.post[row * h + j] * Round<kLow>(sub.v[e]);
              for (int s = 0; s < h; ++s)
                sum = sum + a.comb[(row * h + s) * h + j] * old[s * kMixChunk + e];
              sum = Round<kLow>(sum);
            }
            x.v[e] = e < count ? sum : 0.0f;
            mixed[j * kMixChunk + e] = x.v[e];
            squares += x.v[e] * x.v[e];
          }
          if (folds) StoreStream<kLow>(a.streams, at + int64_t(j) * a.d, count, x);
        }
      }
      squares = GroupSum<kQuads>(squares);
      if (real && quad == 0 && a.fn != nullptr)
        a.partial[(row * chunks + blockIdx.x) * (a.outputs + 1) + a.outputs] = squares;
    }
    if (a.fn == nullptr) continue;
    __syncthreads();

    const float2* const pairs = reinterpret_cast<const float2*>(u);
    if constexpr (kH > 0) {
      if constexpr (kShared) {
#pragma unroll
        for (int k = 0; k < kWarpOutputs; ++k) {
#pragma unroll
          for (int s = 0; s < kH; ++s) fn[k][s] = shared_fn[(k * kH + s) * kThreads + thread];
        }
      }
      float sums[kRows * kWarpOutputs];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int k = 0; k < kWarpOutputs; ++k) sums[r * kWarpOutputs + k] = 0;
#pragma unroll
        for (int s = 0; s < kH; ++s) {
          const float2 x = pairs[(r * kH + s) * (kMixChunk / 2) + lane];
#pragma unroll
          for (int k = 0; k < kWarpOutputs; ++k) {
            float& sum = sums[r * kWarpOutputs + k];
            sum = __fmaf_rn(fn[k][s].x, x.x, sum);
            sum = __fmaf_rn(fn[k][s].y, x.y, sum);
          }
        }
      }
      const float sum = TransposedSum(sums);
      constexpr int kLanesPer = 32 / (kRows * kWarpOutputs);
      const int value = lane / kLanesPer;
      const int64_t row = first + value / kWarpOutputs;
      const int output = warp * kWarpOutputs + value % kWarpOutputs;
      if (lane % kLanesPer == 0 && row < a.rows && output < a.outputs)
        a.partial[(row * chunks + blockIdx.x) * (a.outputs + 1) + output] = sum;
    } else {
      for (int group = warp * kWarpOutputs; group < a.outputs; group += kWarps * kWarpOutputs) {
        float sums[kWarpOutputs] = {};
        for (int s = 0; s < h; ++s) {
          const float2 x = pairs[s * (kMixChunk / 2) + lane];
#pragma unroll
          for (int k = 0; k < kWarpOutputs; ++k) {
            if (group + k >= a.outputs) continue;
            const float2 w = LoadPair(
                a.fn + (group + k) * wide + int64_t(s) * a.d + begin + 2 * lane, width - 2 * lane);
            sums[k] = __fmaf_rn(w.x, x.x, sums[k]);
            sums[k] = __fmaf_rn(w.y, x.y, sums[k]);
          }
        }
        const float sum = TransposedSum(sums);
        const int output = group + lane / 8;
        if (lane % 8 == 0 && output < a.outputs)
          a.partial[(first * chunks + blockIdx.x) * (a.outputs + 1) + output] = sum;
      }
    }
    __syncthreads();
  }
}

bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whole chunks of aligned memory: no branches around loads.
bool Fast(const MixDotArgs& a) {
  const bool folds = a.sub.data != nullptr || a.experts.k > 0;
  return a.d % kMixChunk == 0 && IsAligned(a.streams) && IsAligned(a.fn) &&
         (!folds || (Aligned16(a.sub) && IsAligned(a.post) && IsAligned(a.comb)));
}

template <bool kLow, bool kFast>
void LaunchFour(const MixDotArgs& a, unsigned chunks, size_t row_bytes, cudaStream_t stream) {
  const bool rounded = a.sub.data != nullptr && a.sub.rounded;
  if (a.rows <= kFewMixRows) {
    // Of so few rows products are not rounded.
    auto kernel = rounded ? MixDotKernel<kLow, 4, 1, false> : MixDotKernel<kLow, 4, 1, kFast>;
    if constexpr (kLow && kFast) {
      if (a.experts.k > 0) kernel = MixDotKernel<true, 4, 1, true, Sub::kExperts>;
    }
    Launch(kernel, dim3(chunks, unsigned(a.rows)), dim3(kThreads), row_bytes, stream, a);
    return;
  }
  // As many CTAs as fit the device at once; more would load fn more often.
  const unsigned groups = unsigned(DivideUp(a.rows, kManyRows));
  const unsigned most = std::max(1u, 132u * kManyCtas / chunks);
  auto kernel = MixDotKernel<kLow, 4, kManyRows, kFast>;
  if constexpr (kLow && kFast) {
    if (rounded) kernel = MixDotKernel<true, 4, kManyRows, true, Sub::kRounded>;
  }
  Launch(kernel, dim3(chunks, std::min(groups, most)), dim3(kThreads), kManyRows * row_bytes,
         stream, a);
}

template <bool kLow>
void LaunchMixDot(const MixDotArgs& a, cudaStream_t stream) {
  const unsigned chunks = unsigned(DivideUp(a.d, kMixChunk));
  const size_t row_bytes = size_t(a.h) * kMixChunk * sizeof(float);
  if (a.h != 4 || a.outputs > kWarps * kWarpOutputs) {
    const dim3 grid(chunks, unsigned(std::min(a.rows, 65535)));
    Launch(MixDotKernel<kLow, 0, 1, false>, grid, dim3(kThreads), 2 * row_bytes, stream, a);
  } else if (Fast(a)) {
    LaunchFour<kLow, true>(a, chunks, row_bytes, stream);
  } else {
    LaunchFour<kLow, false>(a, chunks, row_bytes, stream);
  }
}

}  // namespace

bool CanAddExperts(const ExpertSums& experts, int rows, int h, int d, bool low) {
  return low && rows <= kFewMixRows && h == 4 && d % kMixChunk == 0 && experts.k >= 1 &&
         experts.k <= kMostExperts && experts.routed.planes == 1 && !experts.routed.rounded &&
         !experts.shared.rounded && Aligned16(experts.routed) && Aligned16(experts.shared);
}

void MixDot(const MixDotArgs& args, cudaStream_t stream) {
  if (args.rows <= 0) return;
  Require(
      args.experts.k == 0 || (CanAddExperts(args.experts, args.rows, args.h, args.d, args.low) &&
                              Fast(args) && args.outputs <= kWarps * kWarpOutputs),
      "experts that are added");
  Require(args.h >= 1 && args.h <= 16, "streams");
  Require(args.low || args.sub.data == nullptr || !args.sub.rounded, "products that are rounded");
  if (args.low) {
    LaunchMixDot<true>(args, stream);
  } else {
    LaunchMixDot<false>(args, stream);
  }
}

}  // namespace agentd::model::cuda
