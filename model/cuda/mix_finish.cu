// mHC, second half: a row's mixing coefficients, and the sublayer's normed input.
#include <type_traits>

#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kMaxStreams = 16;
constexpr int kMaxNumbers = (2 + kMaxStreams) * kMaxStreams + 1;
constexpr int kAllBarrier = 0;
constexpr int kMixBarrier = 1;     // without the warp of the coefficients
constexpr int kTogether = 4;       // chunks of a number that a thread loads at a time
constexpr int kMaxThreads = 1024;  // of them a warp that only computes coefficients
constexpr int kMaxMixThreads = kMaxThreads - 32;

// Divides rows (kStep 1) or columns (kStep 4) of a 4 x 4 matrix by their sums, as MixCoefficients
// does.
template <int kStep, typename Reciprocal>
__device__ inline void Normalize(float (&c)[16], float eps, const Reciprocal& reciprocal) {
  constexpr int kOther = 4 / kStep;
  float inverse[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float sum = c[kOther * i];
#pragma unroll
    for (int j = 1; j < 4; ++j) sum += c[kOther * i + kStep * j];
    inverse[i] = reciprocal(sum + eps);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) c[kOther * i + kStep * j] *= inverse[i];
  }
}
template <typename Reciprocal>
__device__ inline void Sinkhorn(float (&c)[16], float eps, int iterations,
                                const Reciprocal& reciprocal) {
  if (iterations > 0) Normalize<4>(c, eps, reciprocal);
#pragma unroll 1
  for (int iteration = 1; iteration < iterations; ++iteration) {
    Normalize<1>(c, eps, reciprocal);
    Normalize<4>(c, eps, reciprocal);
  }
}

// MixCoefficients for four streams, by one warp; `part_sums` [parts][numbers]. `publish` runs when
// pre is in `pre`.
template <typename Publish>
__device__ inline void FourStreams(const MixFinishArgs& a, int64_t row, const float* part_sums,
                                   int parts, float base, float scale, float* pre,
                                   const Publish& publish) {
  const int lane = int(threadIdx.x) % 32;
  const int numbers = a.outputs + 1;
  float f = 0;
  const float* const from = part_sums + min(lane, numbers - 1);
  for (int first = 0; first < parts; first += 8) {
    float part[8];
#pragma unroll
    for (int p = 0; p < 8; ++p) part[p] = from[min(first + p, parts - 1) * numbers];
#pragma unroll
    for (int p = 0; p < 8; ++p) {
      if (first + p < parts) f += part[p];
    }
  }
  const float squares = __shfl_sync(kAllLanes, f, a.outputs);
  const float rsqrt = RmsFactor(squares, 4 * a.d, a.norm_eps);
  const float z = f * rsqrt * scale + base;
  if (lane < 4) pre[lane] = Sigmoid(z) + a.hc_eps;
  publish();
  if (a.outputs == 4) return;
  if (lane >= 4 && lane < 8) a.post[row * 4 + lane - 4] = 2 * Sigmoid(z);
  // The softmax of a row by the four lanes that have it.
  float largest = fmaxf(z, __shfl_xor_sync(kAllLanes, z, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
  const float e = ExpF32(z - largest);
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) sum += __shfl_sync(kAllLanes, e, (lane & ~3) + j);
  const float start = e / sum + a.hc_eps;
  // Then every lane has the whole matrix: exchanging sums would take longer than computing all.
  float c[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) c[i] = __shfl_sync(kAllLanes, start, 8 + i);
  // Sums are 4 + 5 eps at most.
  if (a.hc_eps > 0x1p-100f && a.hc_eps < 0x1p100f) {
    Sinkhorn(c, a.hc_eps, a.iterations, [](float x) { return ReciprocalInRange(x); });
  } else {
    Sinkhorn(c, a.hc_eps, a.iterations, [](float x) { return 1 / x; });
  }
  float mine = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) mine = lane == i ? c[i] : mine;
  if (lane < 16) a.comb[row * 16 + lane] = mine;
}

// The same for any number of streams. f [numbers] and comb [h][h] are shared memory.
template <typename Publish>
__device__ inline void AnyStreams(const MixFinishArgs& a, int64_t row, const float* part_sums,
                                  int parts, float* f, float* comb, float* pre,
                                  const Publish& publish) {
  const int lane = int(threadIdx.x) % 32;
  const int numbers = a.outputs + 1;
  const int h = a.h;
  for (int o = lane; o < numbers; o += 32) {
    float sum = 0;
    for (int p = 0; p < parts; ++p) sum += part_sums[p * numbers + o];
    f[o] = sum;
  }
  __syncwarp();
  const float rsqrt = RmsFactor(f[a.outputs], h * a.d, a.norm_eps);
  auto value = [&](int at, int part) { return f[at] * rsqrt * a.scale[part] + a.base[at]; };
  if (lane < h) pre[lane] = Sigmoid(value(lane, 0)) + a.hc_eps;
  publish();
  if (a.outputs == h) return;
  if (lane < h) {
    a.post[row * h + lane] = 2 * Sigmoid(value(h + lane, 1));
    float* const r = comb + lane * h;
    float largest = -3e38f;
    for (int j = 0; j < h; ++j) {
      r[j] = value((2 + lane) * h + j, 2);
      largest = fmaxf(largest, r[j]);
    }
    float sum = 0;
    for (int j = 0; j < h; ++j) {
      r[j] = ExpF32(r[j] - largest);
      sum += r[j];
    }
    for (int j = 0; j < h; ++j) r[j] = r[j] / sum + a.hc_eps;
  }
  // `step` apart, lane by lane.
  auto normalize = [&](int first, int step) {
    __syncwarp();
    if (lane >= h) return;
    float sum = 0;
    for (int i = 0; i < h; ++i) sum += comb[first + i * step];
    const float inverse = 1 / (sum + a.hc_eps);
    for (int i = 0; i < h; ++i) comb[first + i * step] *= inverse;
  };
  for (int iteration = 0; iteration < a.iterations; ++iteration) {
    if (iteration > 0) normalize(lane * h, 1);
    normalize(lane, h);
  }
  __syncwarp();
  for (int i = lane; i < h * h; i += 32) a.comb[row * h * h + i] = comb[i];
}

// A CTA has one row: the last warp its coefficients, the others the input, each thread kOctets
// octets. kH: h if it is 4, and then outputs are 4 or 24; 0: any.
template <bool kLow, int kH, int kOctets>
__global__ void __maxnreg__(kLow&& kOctets < 4 ? 56 : 64) MixFinishKernel(const MixFinishArgs a) {
  GridDependencyLaunch();
  __shared__ float part_sums[kMaxThreads];
  __shared__ float pre[kMaxStreams];
  __shared__ float warp_sums[32];
  __shared__ float f[kH > 0 ? 1 : kMaxNumbers];
  __shared__ float comb[kH > 0 ? 1 : kMaxStreams * kMaxStreams];
  constexpr bool kEarly = kH > 0 && kOctets == 1;  // the row's streams fit into registers
  const int thread = int(threadIdx.x);
  const int threads = int(blockDim.x);
  const int mix_threads = threads - 32;
  const bool mixes = thread < mix_threads;
  const int64_t row = blockIdx.x;
  const int h = kH > 0 ? kH : a.h;
  const int numbers = a.outputs + 1;
  const int chunks = (a.d + kMixChunk - 1) / kMixChunk;
  const int64_t streams = row * h * a.d;

  float base = 0;
  float scale = 0;
  if constexpr (kH > 0) {
    const int lane = thread % 32;
    if (!mixes && lane < a.outputs) {
      base = a.base[lane];
      scale = a.scale[lane < kH ? 0 : lane < 2 * kH ? 1 : 2];
    }
  }
  const int first = 8 * thread;
  Octet weight;
  if constexpr (kEarly && kLow) weight = LoadFloats(a.norm + first, mixes ? a.d - first : 0);
  GridDependencyWait();

  // Each number's sum over the chunks, in `parts` parts that neighbouring threads read together.
  // The loads of these and of the streams are under way at once.
  const int parts = max(1, min(threads / numbers, (chunks + kTogether - 1) / kTogether));
  const bool sums = thread < parts * numbers;
  const int part = thread / numbers;
  const float* const from = a.partial + (row * chunks + part) * numbers + thread % numbers;
  float first_sums[kTogether];
#pragma unroll
  for (int n = 0; n < kTogether; ++n)
    first_sums[n] = LoadIf(sums && part + n * parts < chunks, from + n * parts * numbers);

  std::conditional_t<kLow, PackedOctet, Octet> early[kEarly ? kH : 1];
  if constexpr (kEarly) {
    const int count = mixes ? a.d - first : 0;
    const bool wide = kLow && a.d % 8 == 0 && Aligned(a.streams, 16);
#pragma unroll
    for (int s = 0; s < kH; ++s) {
      const int64_t at = streams + int64_t(s) * a.d + first;
      if constexpr (kLow) {
        const float4 bits =
            LoadIf(wide && count > 0,
                   reinterpret_cast<const float4*>(static_cast<const uint16_t*>(a.streams) + at));
        early[s] = {{__float_as_uint(bits.x), __float_as_uint(bits.y), __float_as_uint(bits.z),
                     __float_as_uint(bits.w)}};
      }
    }
    if (!wide) {
#pragma unroll
      for (int s = 0; s < kH; ++s) {
        const int64_t at = streams + int64_t(s) * a.d + first;
        if constexpr (kLow) {
          early[s] = LoadPacked(static_cast<const uint16_t*>(a.streams) + at, count);
        } else {
          early[s] = LoadFloats(static_cast<const float*>(a.streams) + at, count);
        }
      }
    }
  }

  if (sums) {
    float sum = first_sums[0];
#pragma unroll
    for (int n = 1; n < kTogether; ++n) {
      if (part + n * parts < chunks) sum += first_sums[n];
    }
    for (int chunk = part + kTogether * parts; chunk < chunks; chunk += parts)
      sum += a.partial[(row * chunks + chunk) * numbers + thread % numbers];
    part_sums[thread] = sum;
  }
  // More numbers than threads: one part.
  for (int i = thread + threads; i < parts * numbers; i += threads) {
    float sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk)
      sum += a.partial[(row * chunks + chunk) * numbers + i];
    part_sums[i] = sum;
  }
  Barrier(kAllBarrier, threads);
  if (!mixes) {
    auto publish = [threads] { Barrier(kAllBarrier, threads); };
    if constexpr (kH > 0) {
      FourStreams(a, row, part_sums, parts, base, scale, pre, publish);
    } else {
      AnyStreams(a, row, part_sums, parts, f, comb, pre, publish);
    }
    return;
  }
  Barrier(kAllBarrier, threads);

  Octet mixed[kOctets];
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = 8 * (thread + k * mix_threads);
    Octet& sum = mixed[k];
    if constexpr (kEarly) {
#pragma unroll
      for (int s = 0; s < kH; ++s) {
        Octet x;
        if constexpr (kLow) {
          x = Unpack(early[s]);
        } else {
          x = early[s];
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float product = pre[s] * x.v[e];
          sum.v[e] = s == 0 ? product : sum.v[e] + product;
        }
      }
    } else {
      for (int s = 0; s < h; ++s) {
        const Octet x = LoadValues<kLow>(a.streams, streams + int64_t(s) * a.d + i, a.d - i);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float product = pre[s] * x.v[e];
          sum.v[e] = s == 0 ? product : sum.v[e] + product;
        }
      }
    }
    RoundOctet<kLow>(&sum);
    squares += SumSquares(sum);
  }
  const float factor =
      RmsFactor(BlockSum(squares, warp_sums, mix_threads, kMixBarrier), a.d, a.norm_eps);
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = 8 * (thread + k * mix_threads);
    const int count = a.d - i;
    if constexpr (!(kEarly && kLow)) weight = LoadFloats(a.norm + i, count);
    ScaleByNorm<kLow>(&mixed[k], factor, weight);
    StoreValues<kLow>(a.y, row * a.d + i, count, mixed[k]);
    if constexpr (kLow) {
      if (a.y_fp8 != nullptr) {
        RoundFp8(&mixed[k]);
        StoreValues<kLow>(a.y_fp8, row * a.d + i, count, mixed[k]);
      }
    }
  }
}

template <bool kLow, int kH>
void LaunchMixFinish(const MixFinishArgs& a, cudaStream_t stream) {
  const int octets = int(DivideUp(a.d, 8));
  auto launch = [&](auto kernel, int per_thread) {
    const int threads = int(RoundUp(std::max<int64_t>(96, DivideUp(octets, per_thread)), 32)) + 32;
    Launch(kernel, dim3(unsigned(a.rows)), dim3(unsigned(threads)), 0, stream, a);
  };
  if (octets <= kMaxMixThreads) {
    launch(MixFinishKernel<kLow, kH, 1>, 1);
  } else if (octets <= 2 * kMaxMixThreads) {
    launch(MixFinishKernel<kLow, kH, 2>, 2);
  } else {
    Require(octets <= 4 * kMaxMixThreads, "hidden size");
    launch(MixFinishKernel<kLow, kH, 4>, 4);
  }
}

}  // namespace

void MixFinish(const MixFinishArgs& args, cudaStream_t stream) {
  if (args.rows <= 0) return;
  Require(args.h >= 1 && args.h <= kMaxStreams, "streams");
  Require(args.outputs == args.h || args.outputs == (2 + args.h) * args.h, "mix outputs");
  const bool four = args.h == 4;
  if (args.low) {
    four ? LaunchMixFinish<true, 4>(args, stream) : LaunchMixFinish<true, 0>(args, stream);
  } else {
    four ? LaunchMixFinish<false, 4>(args, stream) : LaunchMixFinish<false, 0>(args, stream);
  }
}

}  // namespace agentd::model::cuda
