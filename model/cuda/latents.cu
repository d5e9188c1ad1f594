// Norms of whole rows: the queries' low rank, the rows' own window keys, the MTP block's inputs.
#include <type_traits>

#include "model/cuda/latents.cuh"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kMaxThreads = 1024;

// blockIdx.y: 0 the queries, 1 the keys.
template <bool kLow, int kOctets>
__global__ void __launch_bounds__(kMaxThreads) LatentsKernel(const LatentArgs a, int first_part) {
  GridDependencyLaunch();
  __shared__ float shared[32];
  LatentRow<kLow, kOctets>(a, blockIdx.x, /*keys=*/first_part + blockIdx.y == 1, shared,
                           int(blockDim.x));
}

// blockIdx.y: 0 the embedding, 1 + s stream s.
template <bool kLow, int kOctets>
__global__ void __launch_bounds__(kMaxThreads) MtpNormsKernel(const MtpNormArgs a) {
  GridDependencyLaunch();
  __shared__ float shared[32];
  const auto threads = int(blockDim.x);
  const int64_t at = blockIdx.x;
  const bool embedding = blockIdx.y == 0;
  const int stream = int(blockIdx.y) - 1;
  const float* norm = embedding ? a.enorm : a.hnorm;
  Octet weight[kOctets];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = ChannelOf<kOctets>(k, threads);
    weight[k] = LoadFloats(norm + i, a.d - i);
  }
  GridDependencyWait();
  const int64_t source = embedding ? a.next[at] : a.source[at];
  const float* const from = !embedding && source < 0 ? a.from[at] : nullptr;
  Octet x[kOctets];
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = ChannelOf<kOctets>(k, threads);
    const int count = a.d - i;
    if (embedding) {
      x[k] = a.table_bf16 ? LoadValues<true>(a.table, source * a.d + i, count)
                          : LoadValues<false>(a.table, source * a.d + i, count);
      RoundOctet<kLow>(&x[k]);
    } else if (from != nullptr) {
      x[k] = LoadFloats(from + int64_t(stream) * a.d + i, count);
    } else {
      x[k] = LoadValues<kLow>(a.streams, (source * a.h + stream) * a.d + i, count);
    }
  }
  NormRow<kLow>(x, weight, a.d, a.eps, shared, threads);
  void* const out = embedding ? a.e_out : a.h_out;
  const int64_t out_row = embedding ? at : at * a.h + stream;
#pragma unroll
  for (int k = 0; k < kOctets; ++k) {
    const int i = ChannelOf<kOctets>(k, threads);
    if constexpr (kLow) {
      if (embedding ? a.e_fp8 : a.h_fp8) RoundFp8(&x[k]);
    }
    StoreValues<kLow>(out, out_row * a.d + i, a.d - i, x[k]);
  }
}

// Calls launch(threads, octets per thread as a constant) for rows of n channels.
template <typename Function>
void ForWidth(int n, const Function& launch) {
  const int octets = int(DivideUp(n, 8));
  const unsigned threads = unsigned(RoundUp(std::min(octets, kMaxThreads), 32));
  if (octets <= kMaxThreads) {
    launch(threads, std::integral_constant<int, 1>());
  } else if (octets <= 2 * kMaxThreads) {
    launch(threads, std::integral_constant<int, 2>());
  } else {
    Require(octets <= 4 * kMaxThreads, "width of a norm");
    launch(threads, std::integral_constant<int, 4>());
  }
}

}  // namespace

void Latents(const LatentArgs& args, cudaStream_t stream) {
  const bool queries = args.q.data != nullptr;
  const bool keys = args.kv.data != nullptr;
  if (args.rows <= 0 || (!queries && !keys)) return;
  const int widest = std::max(queries ? args.q_rank : 0, keys ? args.state.channels : 0);
  const dim3 grid(unsigned(args.rows), queries && keys ? 2 : 1);
  ForWidth(widest, [&](unsigned threads, auto octets) {
    Launch(args.low ? LatentsKernel<true, octets.value> : LatentsKernel<false, octets.value>, grid,
           dim3(threads), 0, stream, args, queries ? 0 : 1);
  });
}

void MtpNorms(const MtpNormArgs& args, cudaStream_t stream) {
  if (args.count <= 0) return;
  const dim3 grid(unsigned(args.count), unsigned(1 + args.h));
  ForWidth(args.d, [&](unsigned threads, auto octets) {
    Launch(args.low ? MtpNormsKernel<true, octets.value> : MtpNormsKernel<false, octets.value>,
           grid, dim3(threads), 0, stream, args);
  });
}

}  // namespace agentd::model::cuda
