// What is done to numbers one by one: embeddings, products to inputs of the next product, the
// experts' activation and sum.
#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kFewSwiGluRows = 64;

template <typename T>
struct Two {
  T of[2];
};

// blockIdx.y is the table.
__global__ void __launch_bounds__(kThreads)
    RopeTablesKernel(const int* positions, int rows, int pairs,
                     const __grid_constant__ Two<AngleTable> tables) {
  GridDependencyLaunch();
  GridDependencyWait();
  const AngleTable& table = tables.of[blockIdx.y];
  const int64_t count = int64_t(rows) * pairs;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    double s;
    double c;
    SinCos(static_cast<double>(positions[i / pairs]) * table.frequencies[i % pairs], &s, &c);
    table.cosine[i] = static_cast<float>(c);
    table.sine[i] = static_cast<float>(s);
  }
}

// For the kernels below: blockIdx.x is the row, blockIdx.y its part of 8 channels per thread.
__device__ inline int FirstChannel() { return 8 * int(blockIdx.y * blockDim.x + threadIdx.x); }

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

template <bool kLow, bool kRounded>
__global__ void __launch_bounds__(kThreads)
    CollectKernel(const Planes in, int n, bool fp8, void* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;
  const int i = FirstChannel();
  Octet x = OctetLoads<4, kRounded>(in, row, i, n - i).Sum(in);
  RoundOctet<kLow>(&x);
  if (fp8) RoundFp8(&x);
  StoreValues<kLow>(out, row * n + i, n - i, x);
}

// What both products of a channel become, before it is rounded.
template <bool kLow>
__device__ inline float Activate(float gate, float up, float limit, float scale) {
  const float g = fminf(Round<kLow>(gate), limit);
  const float silu = g / (1.0f + ExpF32(-g));
  return silu * fminf(fmaxf(Round<kLow>(up), -limit), limit) * scale;
}

// Which part a block's row is of; the second's rows follow the first's.
struct PartRow {
  const SwiGluRows& part;
  int64_t row;
  __device__ inline explicit PartRow(const Two<SwiGluRows>& parts)
      : part(parts.of[int(blockIdx.x) < parts.of[0].rows ? 0 : 1]),
        row(int(blockIdx.x) - (&part == &parts.of[0] ? 0 : parts.of[0].rows)) {}
};

template <bool kLow, bool kRounded>
__global__ void __launch_bounds__(kThreads, 6)
    SwiGluKernel(const __grid_constant__ Two<SwiGluRows> parts, int n, float limit) {
  GridDependencyLaunch();
  GridDependencyWait();
  const auto [part, row] = PartRow(parts);
  const int i = FirstChannel();
  OctetLoads<4, kRounded> gate_loads(part.gate, row, i, n - i);
  OctetLoads<4, kRounded> up_loads(part.up, row, i, n - i);
  const float scale = part.weight == nullptr ? 1.0f : part.weight[row];
  Octet x = gate_loads.Sum(part.gate);
  const Octet u = up_loads.Sum(part.up);
#pragma unroll
  for (int e = 0; e < 8; ++e) x.v[e] = Activate<kLow>(x.v[e], u.v[e], limit, scale);
  RoundOctet<kLow>(&x);
  if (part.fp8) RoundFp8(&x);
  StoreValues<kLow>(part.out, row * n + i, n - i, x);
}

// Of few rows a thread has one channel, a block the 128 of an FP8 scale: such a kernel takes as
// long as its instructions take to come from memory, and these are an eighth.
template <bool kLow>
__global__ void __launch_bounds__(kThreads)
    SwiGluFewKernel(const __grid_constant__ Two<SwiGluRows> parts, int n, float limit) {
  static_assert(kThreads == 128);
  GridDependencyLaunch();
  __shared__ float largest[kThreads / 32];
  GridDependencyWait();
  const auto [part, row] = PartRow(parts);
  const int i = int(blockIdx.y) * kThreads + int(threadIdx.x);
  const bool exists = i < n;
  PlaneLoads<float, 4> gate(part.gate, PlaneOf(part.gate, row, i), exists);
  PlaneLoads<float, 4> up(part.up, PlaneOf(part.up, row, i), exists);
  const float scale = part.weight == nullptr ? 1.0f : part.weight[row];
  float x = exists ? Round<kLow>(Activate<kLow>(gate.Sum(), up.Sum(), limit, scale)) : 0.0f;
  if (part.fp8) {
    const float of_warp = GroupMax<32>(fabsf(x));
    if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = of_warp;
    __syncthreads();
    x = RoundFp8(x, fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3])));
  }
  if (!exists) return;
  if constexpr (kLow) {
    static_cast<uint16_t*>(part.out)[row * n + i] = FloatToBf16(x);
  } else {
    static_cast<float*>(part.out)[row * n + i] = x;
  }
}

template <bool kLow>
__global__ void __launch_bounds__(kThreads, 4)
    MtpAddKernel(const Planes e, const Planes h_rows, int h, int d, void* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;  // of h_rows
  const int i = FirstChannel();
  OctetLoads<4> x_loads(h_rows, row, i, d - i);
  OctetLoads<4> y_loads(e, row / h, i, d - i);
  Octet x = x_loads.Sum(h_rows);
  Octet y = y_loads.Sum(e);
  RoundOctet<kLow>(&x);
  RoundOctet<kLow>(&y);
#pragma unroll
  for (int c = 0; c < 8; ++c) x.v[c] += y.v[c];
  StoreValues<kLow>(out, row * d + i, d - i, x);
}

// T: float4 if everything is aligned so. A thread loads kTogether experts' numbers at a time.
constexpr int kTogether = 8;
template <bool kLow, typename T>
__global__ void __launch_bounds__(kThreads)
    AddExpertsKernel(const Planes routed, const int* routed_at, int k, const Planes shared, int d,
                     float* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;
  const int i = int(sizeof(T) / sizeof(float)) * int(blockIdx.y * blockDim.x + threadIdx.x);
  if (i >= d) return;
  // The shared expert is the last.
  PlaneLoads<T, 4> last(shared, PlaneOf(shared, row, i), true);
  T sum = {};
  for (int first = 0; first < k; first += kTogether) {
    const float* from[kTogether];
    T y[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int at = first + j < k ? routed_at[row * k + first + j] : 0;
      from[j] = PlaneOf(routed, at, i);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      y[j] = LoadIf(first + j < k, reinterpret_cast<const T*>(from[j]));
    for (int p = 1; p < routed.planes; ++p) {
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        y[j] = Plus(y[j], LoadIf(first + j < k,
                                 reinterpret_cast<const T*>(from[j] + p * routed.plane_stride)));
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (first + j < k) sum = Plus(sum, RoundAll<kLow>(y[j]));
    }
  }
  sum = RoundAll<kLow>(Plus(sum, RoundAll<kLow>(last.Sum())));
  *reinterpret_cast<T*>(out + row * d + i) = sum;
}

// The same of rounded products; so is the sum.
__global__ void __launch_bounds__(kThreads)
    AddRoundedKernel(const Planes routed, const int* routed_at, int k, const Planes shared, int d,
                     uint16_t* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;
  const int i = FirstChannel();
  if (i >= d) return;
  using Loads = OctetLoads<1, true>;
  const Loads last(shared, row, i, d - i);
  Octet sum = {};
  for (int first = 0; first < k; first += kTogether) {
    Loads y[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const bool exists = first + j < k;
      y[j] = Loads(routed, exists ? routed_at[row * k + first + j] : 0, i, exists ? d - i : 0);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (first + j < k) sum = Plus(sum, y[j].Sum(routed));
    }
  }
  sum = Plus(sum, last.Sum(shared));
  StoreBf16s(out + row * d + i, d - i, sum);
}

// Of few rows the blocks are small, so that there are more.
unsigned Threads(int rows) { return rows <= 16 ? 32 : kThreads; }
dim3 RowGrid(int rows, int channels, int per_thread) {
  return dim3(unsigned(rows), unsigned(DivideUp(channels, int64_t(per_thread) * Threads(rows))));
}

}  // namespace

void RopeTables(const int* positions, int rows, int pairs, const AngleTable& first,
                const AngleTable& second, cudaStream_t stream) {
  if (rows <= 0 || pairs <= 0) return;
  const int64_t blocks = std::min<int64_t>(DivideUp(int64_t(rows) * pairs, kThreads), 4096);
  Launch(RopeTablesKernel, dim3(unsigned(blocks), second.frequencies != nullptr ? 2 : 1),
         dim3(kThreads), 0, stream, positions, rows, pairs, Two<AngleTable>{{first, second}});
}

void Embed(const int* tokens, int rows, const void* table, bool table_bf16, int h, int d, bool low,
           void* streams, cudaStream_t stream) {
  if (rows <= 0) return;
  Launch(low ? EmbedKernel<true> : EmbedKernel<false>, RowGrid(rows, d, 8), dim3(Threads(rows)), 0,
         stream, tokens, table, table_bf16, h, d, streams);
}

void Collect(const Planes& in, int rows, int n, bool low, bool fp8, void* out,
             cudaStream_t stream) {
  if (rows <= 0) return;
  Require(low || !in.rounded, "products that are rounded");
  Launch(in.rounded ? CollectKernel<true, true>
         : low      ? CollectKernel<true, false>
                    : CollectKernel<false, false>,
         RowGrid(rows, n, 8), dim3(Threads(rows)), 0, stream, in, n, fp8, out);
}

void SwiGlu(const SwiGluRows& first, const SwiGluRows& second, int n, float limit, bool low,
            cudaStream_t stream) {
  const int rows = std::max(0, first.rows) + std::max(0, second.rows);
  if (rows <= 0) return;
  const bool rounded = first.rows > 0 ? first.gate.rounded : second.gate.rounded;
  for (const SwiGluRows& part : {first, second}) {
    Require(part.rows <= 0 ||
                (part.gate.rounded == rounded && part.up.rounded == rounded && (low || !rounded)),
            "products that are rounded");
  }
  if (rows <= kFewSwiGluRows && !rounded) {
    Launch(low ? SwiGluFewKernel<true> : SwiGluFewKernel<false>,
           dim3(unsigned(rows), unsigned(DivideUp(n, kThreads))), dim3(kThreads), 0, stream,
           Two<SwiGluRows>{{first, second}}, n, limit);
    return;
  }
  Launch(rounded ? SwiGluKernel<true, true>
         : low   ? SwiGluKernel<true, false>
                 : SwiGluKernel<false, false>,
         RowGrid(rows, n, 8), dim3(Threads(rows)), 0, stream, Two<SwiGluRows>{{first, second}}, n,
         limit);
}

void AddExperts(const ExpertSums& experts, int rows, int d, bool low, void* out,
                cudaStream_t stream) {
  if (rows <= 0) return;
  const auto& [routed, routed_at, k, shared] = experts;
  Require(routed.rounded == shared.rounded && (low || !routed.rounded),
          "products that are rounded");
  if (routed.rounded) {
    Launch(AddRoundedKernel, RowGrid(rows, d, 8), dim3(Threads(rows)), 0, stream, routed, routed_at,
           k, shared, d, static_cast<uint16_t*>(out));
    return;
  }
  const bool aligned = Aligned16(routed) && Aligned16(shared) && d % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(out) % 16 == 0;
  auto launch = [&](auto kernel, int width) {
    Launch(kernel, RowGrid(rows, d, width), dim3(Threads(rows)), 0, stream, routed, routed_at, k,
           shared, d, static_cast<float*>(out));
  };
  if (aligned) {
    launch(low ? AddExpertsKernel<true, float4> : AddExpertsKernel<false, float4>, 4);
  } else {
    launch(low ? AddExpertsKernel<true, float> : AddExpertsKernel<false, float>, 1);
  }
}

void MtpAdd(const Planes& e, const Planes& h_rows, int count, int h, int d, bool low, void* out,
            cudaStream_t stream) {
  if (count <= 0) return;
  Launch(low ? MtpAddKernel<true> : MtpAddKernel<false>, RowGrid(count * h, d, 8),
         dim3(Threads(count * h)), 0, stream, e, h_rows, h, d, out);
}

}  // namespace agentd::model::cuda
