// Heads of the queries and of the indexer's: some warps of a block have one head.
#include <cmath>

#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kFewQueries = 8;

template <bool kLow>
__device__ inline float Squares(const Octet& o) {
  float squares = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) squares += Round<kLow>(o.v[e] * o.v[e]);
  return squares;
}

// Heads first, then the indexer's; kTogether warps have one head of the queries, the first of them
// one of the indexer's. kOctets: of a lane, enough for the widest head. Short code is what makes it
// quick for few rows: most of its time its instructions are on the way.
// kRounded: of both products.
template <bool kLow, int kOctets, int kTogether, bool kRounded>
__global__ void __launch_bounds__(32 * kWarps) QueriesKernel(const QueryArgs a, float hadamard) {
  GridDependencyLaunch();
  __shared__ float sums[kWarps];
  const int warp = int(threadIdx.x) / 32;
  const int lane = int(threadIdx.x) % 32 + warp % kTogether * 32;  // of the head's
  const int unit = int(blockIdx.y) * (kWarps / kTogether) + warp / kTogether;
  const int64_t row = blockIdx.x;
  GridDependencyWait();
  if (unit >= a.heads + a.index_heads) return;
  const bool index = unit >= a.heads;
  const int head = index ? unit - a.heads : unit;
  const int n = index ? a.index_channels : a.channels;
  const Planes& in = index ? a.index_q : a.q;
  const int pairs = a.rotary / 2;
  const int plain = n - a.rotary;
  const float* const cosine = a.cosine + row * pairs;
  const float* const sine = a.sine + row * pairs;
  // All loads at once; products of the low rank have one plane.
  constexpr bool kEarlyAngles = kOctets <= 2;
  OctetLoads<1, kRounded> loads[kOctets];
  OctetAngles angles[kEarlyAngles ? kOctets : 1];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = 8 * (lane + 32 * kTogether * k);
    loads[k] = OctetLoads<1, kRounded>(in, row, head * n + i, n - i);
    if constexpr (kEarlyAngles) angles[k] = OctetAngles(i, plain, n, cosine, sine);
  }
  PlaneLoads<float, 4> weight_loads(a.index_weights, PlaneOf(a.index_weights, row, head),
                                    index && lane == 0);
  Octet x[kOctets];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    x[k] = loads[k].Sum(in);
    RoundOctet<kLow>(&x[k]);
  }
  if (!index) {
    // A sum of every 256 channels, in order: the same whichever warps have them.
    float squares = 0;
    if constexpr (kTogether > 1) {
      const float own = GroupSum<32>(Squares<kLow>(x[0]));
      if (lane % 32 == 0) sums[warp] = own;
      SyncSome<32 * kTogether>(1 + warp / kTogether);
#pragma unroll
      for (int w = 0; w < kTogether; ++w) squares += sums[warp / kTogether * kTogether + w];
    } else {
#pragma unroll
      for (int k = 0; k < kOctets; ++k) squares += GroupSum<32>(Squares<kLow>(x[k]));
    }
    const float mean = Round<kLow>(squares / static_cast<float>(n));
    const float factor = Round<kLow>(1.0f / sqrtf(Round<kLow>(mean + a.eps)));
#pragma unroll
    for (int k = 0; k < kOctets; ++k) {
#pragma unroll
      for (int e = 0; e < 8; ++e) x[k].v[e] *= factor;
      RoundOctet<kLow>(&x[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = 8 * (lane + 32 * kTogether * k);
    if constexpr (kEarlyAngles) {
      Rotate<kLow>(&x[k], i, plain, n, cosine, sine, angles[k]);
    } else {
      Rotate<kLow>(&x[k], i, plain, n, cosine, sine);
    }
  }
  if (index) {
    if (lane >= 32) return;
    if constexpr (kLow) {
      Hadamard(x, n);
#pragma unroll
      for (int k = 0; k < kOctets; ++k) {
#pragma unroll
        for (int e = 0; e < 8; ++e) x[k].v[e] *= hadamard;
        RoundOctet<kLow>(&x[k]);
        const int exponent = Fp4ScaleExponent(GroupMax<4>(LargestMagnitude(x[k])));
        const float scale = PowerOfTwo(exponent);
        const float inverse = PowerOfTwo(-exponent);
#pragma unroll
        for (int e = 0; e < 8; ++e) x[k].v[e] = RoundE2M1(x[k].v[e] * inverse) * scale;
      }
    }
    if (lane == 0) {
      const float weight = Round<kLow>(weight_loads.Sum());
      a.index_weights_out[row * a.index_heads + head] = Round<kLow>(weight * a.index_scale);
    }
  }
  void* const out = index ? a.index_q_out : a.q_out;
  const int64_t at = (row * (index ? a.index_heads : a.heads) + head) * n;
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = 8 * (lane + 32 * kTogether * k);
    StoreValues<kLow>(out, at + i, n - i, x[k]);
  }
}

template <bool kLow, bool kRounded>
void LaunchQueries(const QueryArgs& a, cudaStream_t stream) {
  const int widest =
      std::max(a.heads > 0 ? a.channels : 0, a.index_heads > 0 ? a.index_channels : 0);
  const auto hadamard = static_cast<float>(1 / std::sqrt(double(std::max(1, a.index_channels))));
  auto launch = [&](auto kernel, int together) {
    const dim3 grid(unsigned(a.rows),
                    unsigned(DivideUp((a.heads + a.index_heads) * together, kWarps)));
    Launch(kernel, grid, dim3(32 * kWarps), 0, stream, a, hadamard);
  };
  if (widest <= 256) {
    launch(QueriesKernel<kLow, 1, 1, kRounded>, 1);
  } else if (widest <= 512 && a.index_channels <= 256 && a.rows <= kFewQueries) {
    launch(QueriesKernel<kLow, 1, 2, kRounded>, 2);
  } else if (widest <= 512) {
    launch(QueriesKernel<kLow, 2, 1, kRounded>, 1);
  } else {
    Require(widest <= 2048, "width of a head");
    launch(QueriesKernel<kLow, 8, 1, kRounded>, 1);
  }
}

}  // namespace

void Queries(const QueryArgs& args, cudaStream_t stream) {
  if (args.rows <= 0 || args.heads + args.index_heads <= 0) return;
  const bool rounded = args.q.rounded;
  Require((args.index_heads == 0 || args.index_q.rounded == rounded) && (args.low || !rounded),
          "products that are rounded");
  if (rounded) {
    LaunchQueries<true, true>(args, stream);
  } else if (args.low) {
    LaunchQueries<true, false>(args, stream);
  } else {
    LaunchQueries<false, false>(args, stream);
  }
}

}  // namespace agentd::model::cuda
