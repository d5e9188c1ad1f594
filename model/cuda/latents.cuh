// Norms of whole rows, and what becomes of a row of the queries' low rank or of window keys: also
// beside other work in one launch.
#ifndef AGENTD_MODEL_CUDA_LATENTS_CUH_
#define AGENTD_MODEL_CUDA_LATENTS_CUH_

#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"

namespace agentd::model::cuda {

// The first `threads` of a CTA have one row of n channels, each thread kOctets octets; in place.
// weight: [n].
template <bool kLow, int kOctets>
__device__ inline void NormRow(Octet (&x)[kOctets], const Octet (&weight)[kOctets], int n,
                               float eps, float* shared, int threads) {
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kOctets; ++k) squares += SumSquares(x[k]);
  const float factor = RmsFactor(BlockSum(squares, shared, threads), n, eps);
#pragma unroll
  for (int k = 0; k < kOctets; ++k) ScaleByNorm<kLow>(&x[k], factor, weight[k]);
}

template <int kOctets>
__device__ inline int ChannelOf(int k, int threads) {
  return 8 * (int(threadIdx.x) + k * threads);
}

// Row `row` of the keys or of the queries; waits for what was launched before. The first `threads`
// of a CTA call, whole warps that have an octet of the row or more. shared: [32].
template <bool kLow, int kOctets>
__device__ inline void LatentRow(const LatentArgs& a, int64_t row, bool keys, float* shared,
                                 int threads) {
  const int n = keys ? a.state.channels : a.q_rank;
  const float* norm = keys ? a.kv_norm : a.q_norm;
  Octet weight[kOctets];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = ChannelOf<kOctets>(k, threads);
    weight[k] = LoadFloats(norm + i, n - i);
  }
  GridDependencyWait();
  const int pairs = a.state.rotary / 2;
  const int plain = n - a.state.rotary;
  OctetAngles angles;
  if constexpr (kOctets == 1) {
    angles = OctetAngles(keys ? 8 * int(threadIdx.x) : n, plain, n, a.cosine + row * pairs,
                         a.sine + row * pairs);
  }
  Octet x[kOctets];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = ChannelOf<kOctets>(k, threads);
    x[k] = PlanesAt(keys ? a.kv : a.q, row, i, n - i);
    RoundOctet<kLow>(&x[k]);
  }
  NormRow<kLow>(x, weight, n, a.eps, shared, threads);
  if (keys) {
    uint8_t* const entry = a.window_keys + row * a.state.entry_bytes;
#pragma unroll
    for (int k = 0; k < kOctets; ++k) {
      const int i = ChannelOf<kOctets>(k, threads);
      const float* const cosine = a.cosine + row * pairs;
      const float* const sine = a.sine + row * pairs;
      if constexpr (kOctets == 1) {
        Rotate<kLow>(&x[k], i, plain, n, cosine, sine, angles);
      } else {
        Rotate<kLow>(&x[k], i, plain, n, cosine, sine);
      }
      EncodeEntry<kLow>(a.state, i, x[k], entry);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = ChannelOf<kOctets>(k, threads);
    StoreValues<kLow>(a.q_out, row * n + i, n - i, x[k]);
    if constexpr (kLow) {
      if (a.q_fp8 != nullptr) {
        RoundFp8(&x[k]);
        StoreValues<kLow>(a.q_fp8, row * n + i, n - i, x[k]);
      }
    }
  }
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_LATENTS_CUH_
