// Heads of the queries and of the indexer's: a warp has one head.
#include <cmath>

#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kWarps = 4;

// Per head: heads first, then the indexer's. kOctets: of a lane, enough for the widest head.
template <bool kLow, int kOctets>
__global__ void __launch_bounds__(32 * kWarps) QueriesKernel(const QueryArgs a, float hadamard) {
  GridDependencyLaunch();
  const int lane = int(threadIdx.x) % 32;
  const int unit = int(blockIdx.y) * kWarps + int(threadIdx.x) / 32;
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
  OctetLoads<1> loads[kOctets];
  OctetAngles angles[kEarlyAngles ? kOctets : 1];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = 8 * (lane + 32 * k);
    loads[k] = OctetLoads<1>(in, row, head * n + i, n - i);
    if constexpr (kEarlyAngles) angles[k] = OctetAngles(i, plain, n, cosine, sine);
  }
  PlaneLoads<float, 4> weight_loads(a.index_weights,
                                    a.index_weights.data + row * a.index_weights.row_stride + head,
                                    index && lane == 0);
  Octet x[kOctets];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    x[k] = loads[k].Sum(in);
    RoundOctet<kLow>(&x[k]);
  }
  if (!index) {
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kOctets; ++k) {
#pragma unroll
      for (int e = 0; e < 8; ++e) squares += Round<kLow>(x[k].v[e] * x[k].v[e]);
    }
    const float mean = Round<kLow>(GroupSum<32>(squares) / static_cast<float>(n));
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
    const int i = 8 * (lane + 32 * k);
    if constexpr (kEarlyAngles) {
      Rotate<kLow>(&x[k], i, plain, n, cosine, sine, angles[k]);
    } else {
      Rotate<kLow>(&x[k], i, plain, n, cosine, sine);
    }
  }
  if (index) {
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
    const int i = 8 * (lane + 32 * k);
    StoreValues<kLow>(out, at + i, n - i, x[k]);
  }
}

template <bool kLow>
void LaunchQueries(const QueryArgs& a, cudaStream_t stream) {
  const int widest =
      std::max(a.heads > 0 ? a.channels : 0, a.index_heads > 0 ? a.index_channels : 0);
  const dim3 grid(unsigned(a.rows), unsigned(DivideUp(a.heads + a.index_heads, kWarps)));
  const auto hadamard = static_cast<float>(1 / std::sqrt(double(std::max(1, a.index_channels))));
  auto launch = [&](auto kernel) {
    Launch(kernel, grid, dim3(32 * kWarps), 0, stream, a, hadamard);
  };
  if (widest <= 256) {
    launch(QueriesKernel<kLow, 1>);
  } else if (widest <= 512) {
    launch(QueriesKernel<kLow, 2>);
  } else {
    Require(widest <= 2048, "width of a head");
    launch(QueriesKernel<kLow, 8>);
  }
}

}  // namespace

void Queries(const QueryArgs& args, cudaStream_t stream) {
  if (args.rows <= 0 || args.heads + args.index_heads <= 0) return;
  args.low ? LaunchQueries<true>(args, stream) : LaunchQueries<false>(args, stream);
}

}  // namespace agentd::model::cuda
