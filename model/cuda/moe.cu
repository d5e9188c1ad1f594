// What is done to numbers one by one: embeddings, products to inputs of the next product, the
// experts' activation and sum.
#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    RopeTablesKernel(const int* positions, int rows, const double* frequencies, int pairs,
                     float* cosine, float* sine) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t count = int64_t(rows) * pairs;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    double s;
    double c;
    SinCos(static_cast<double>(positions[i / pairs]) * frequencies[i % pairs], &s, &c);
    cosine[i] = static_cast<float>(c);
    sine[i] = static_cast<float>(s);
  }
}

// For the kernels below: blockIdx.x is the row, blockIdx.y its part of 8 * kThreads channels.
__device__ inline int FirstChannel() { return 8 * int(blockIdx.y * kThreads + threadIdx.x); }

template <bool kLow>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(const int* tokens, const void* table, bool table_bf16, int h, int d,
                void* streams) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;
  const int i = FirstChannel();
  const int64_t from = int64_t(tokens[row]) * d + i;
  const Octet x =
      table_bf16 ? LoadValues<true>(table, from, d - i) : LoadValues<false>(table, from, d - i);
  for (int s = 0; s < h; ++s) StoreValues<kLow>(streams, (row * h + s) * d + i, d - i, x);
}

template <bool kLow>
__global__ void __launch_bounds__(kThreads)
    CollectKernel(const Planes in, int n, bool fp8, void* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;
  const int i = FirstChannel();
  Octet x = PlanesAt(in, row, i, n - i);
  RoundOctet<kLow>(&x);
  if (fp8) RoundFp8(&x);
  StoreValues<kLow>(out, row * n + i, n - i, x);
}

template <bool kLow>
__global__ void __launch_bounds__(kThreads)
    SwiGluKernel(const Planes gate, const Planes up, const float* weight, int n, float limit,
                 bool fp8, void* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;
  const int i = FirstChannel();
  const float scale = weight == nullptr ? 1.0f : weight[row];
  Octet x = PlanesAt(gate, row, i, n - i);
  Octet u = PlanesAt(up, row, i, n - i);
  RoundOctet<kLow>(&x);
  RoundOctet<kLow>(&u);
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const float g = fminf(x.v[e], limit);
    const float silu = g / (1.0f + ExpF32(-g));
    x.v[e] = silu * fminf(fmaxf(u.v[e], -limit), limit) * scale;
  }
  RoundOctet<kLow>(&x);
  if (fp8) RoundFp8(&x);
  StoreValues<kLow>(out, row * n + i, n - i, x);
}

template <bool kLow>
__global__ void __launch_bounds__(kThreads)
    MtpAddKernel(const Planes e, const Planes h_rows, int h, int d, void* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;  // of h_rows
  const int i = FirstChannel();
  Octet x = PlanesAt(h_rows, row, i, d - i);
  Octet y = PlanesAt(e, row / h, i, d - i);
  RoundOctet<kLow>(&x);
  RoundOctet<kLow>(&y);
#pragma unroll
  for (int c = 0; c < 8; ++c) x.v[c] += y.v[c];
  StoreValues<kLow>(out, row * d + i, d - i, x);
}

__device__ inline float4 Add4(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
template <bool kLow>
__device__ inline float4 Round4(float4 a) {
  return make_float4(Round<kLow>(a.x), Round<kLow>(a.y), Round<kLow>(a.z), Round<kLow>(a.w));
}

// A thread has four channels and loads kTogether experts' at a time. `aligned`: all of 16 bytes.
constexpr int kTogether = 8;
template <bool kLow, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    AddExpertsKernel(const Planes routed, const int* routed_at, int k, const Planes shared, int d,
                     float* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  constexpr int kWidth = kAligned ? 4 : 1;
  const int64_t row = blockIdx.x;
  const int i = kWidth * int(blockIdx.y * kThreads + threadIdx.x);
  if (i >= d) return;
  auto load = [](const float* p) {
    if constexpr (kAligned) return *reinterpret_cast<const float4*>(p);
    return make_float4(*p, 0, 0, 0);
  };
  float4 sum = make_float4(0, 0, 0, 0);
  // The shared expert is the last.
  for (int first = 0; first <= k; first += kTogether) {
    const float* from[kTogether];
    float4 y[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (first + j > k) continue;
      from[j] = first + j < k
                    ? routed.data + int64_t(routed_at[row * k + first + j]) * routed.row_stride + i
                    : shared.data + row * shared.row_stride + i;
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (first + j <= k) y[j] = load(from[j]);
    }
    for (int p = 1; p < max(routed.planes, shared.planes); ++p) {
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (first + j < k && p < routed.planes)
          y[j] = Add4(y[j], load(from[j] + p * routed.plane_stride));
        if (first + j == k && p < shared.planes)
          y[j] = Add4(y[j], load(from[j] + p * shared.plane_stride));
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (first + j <= k) sum = Add4(sum, Round4<kLow>(y[j]));
    }
  }
  sum = Round4<kLow>(sum);
  if constexpr (kAligned) {
    *reinterpret_cast<float4*>(out + row * d + i) = sum;
  } else {
    out[row * d + i] = sum.x;
  }
}

dim3 RowGrid(int rows, int channels, int per_thread) {
  return dim3(unsigned(rows), unsigned(DivideUp(channels, int64_t(per_thread) * kThreads)));
}

bool Aligned16(const Planes& p) {
  return reinterpret_cast<uintptr_t>(p.data) % 16 == 0 && p.row_stride % 4 == 0 &&
         (p.planes == 1 || p.plane_stride % 4 == 0);
}

}  // namespace

void RopeTables(const int* positions, int rows, const double* frequencies, int pairs, float* cosine,
                float* sine, cudaStream_t stream) {
  if (rows <= 0 || pairs <= 0) return;
  const int64_t blocks = std::min<int64_t>(DivideUp(int64_t(rows) * pairs, kThreads), 4096);
  Launch(RopeTablesKernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, positions, rows,
         frequencies, pairs, cosine, sine);
}

void Embed(const int* tokens, int rows, const void* table, bool table_bf16, int h, int d, bool low,
           void* streams, cudaStream_t stream) {
  if (rows <= 0) return;
  Launch(low ? EmbedKernel<true> : EmbedKernel<false>, RowGrid(rows, d, 8), dim3(kThreads), 0,
         stream, tokens, table, table_bf16, h, d, streams);
}

void Collect(const Planes& in, int rows, int n, bool low, bool fp8, void* out,
             cudaStream_t stream) {
  if (rows <= 0) return;
  Launch(low ? CollectKernel<true> : CollectKernel<false>, RowGrid(rows, n, 8), dim3(kThreads), 0,
         stream, in, n, fp8, out);
}

void SwiGlu(const Planes& gate, const Planes& up, const float* weight, int rows, int n, float limit,
            bool low, bool fp8, void* out, cudaStream_t stream) {
  if (rows <= 0) return;
  Launch(low ? SwiGluKernel<true> : SwiGluKernel<false>, RowGrid(rows, n, 8), dim3(kThreads), 0,
         stream, gate, up, weight, n, limit, fp8, out);
}

void AddExperts(const Planes& routed_y, const int* routed_at, int k, const Planes& shared_y,
                int rows, int d, bool low, float* out, cudaStream_t stream) {
  if (rows <= 0) return;
  const bool aligned = Aligned16(routed_y) && Aligned16(shared_y) && d % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(out) % 16 == 0;
  auto launch = [&](auto kernel, int width) {
    Launch(kernel, RowGrid(rows, d, width), dim3(kThreads), 0, stream, routed_y, routed_at, k,
           shared_y, d, out);
  };
  if (aligned) {
    launch(low ? AddExpertsKernel<true, true> : AddExpertsKernel<false, true>, 4);
  } else {
    launch(low ? AddExpertsKernel<true, false> : AddExpertsKernel<false, false>, 1);
  }
}

void MtpAdd(const Planes& e, const Planes& h_rows, int count, int h, int d, bool low, void* out,
            cudaStream_t stream) {
  if (count <= 0) return;
  Launch(low ? MtpAddKernel<true> : MtpAddKernel<false>, RowGrid(count * h, d, 8), dim3(kThreads),
         0, stream, e, h_rows, h, d, out);
}

}  // namespace agentd::model::cuda
