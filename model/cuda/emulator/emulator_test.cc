// The emulated device itself: what kernels do with each other, and that mistakes are seen.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "model/cuda/barrier.cuh"
#include "model/cuda/launch.cuh"
#include "model/cuda/tensor.cuh"
#include "model/cuda/test_util.h"
#include "model/cuda/wgmma.cuh"
#include "model/numeric.h"

namespace agentd::model::cuda {
namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

template <typename... Params, typename... Args>
void RunKernel(void (*kernel)(Params...), unsigned blocks, unsigned threads, size_t shared,
               const Args&... args) {
  Launch(kernel, dim3(blocks), dim3(threads), shared, nullptr, args...);
  CheckCuda(cudaGetLastError());
  CheckCuda(cudaDeviceSynchronize());
}

// Every thread adds what all others wrote.
__global__ void SumKernel(const int* in, int* out) {
  __shared__ int values[100];
  const int thread = int(threadIdx.x);
  values[thread] = in[blockIdx.x * 100 + thread];
  __syncthreads();
  int sum = 0;
  for (int value : values) sum += value;
  atomicAdd(out + blockIdx.x, sum);
}

TEST(Emulator, BlocksShareMemory) {
  std::vector<int> in(300);
  for (size_t i = 0; i < in.size(); ++i) in[i] = int(i);
  const OnDevice<int> values(in);
  const OnDevice<int> sums(std::vector<int>(3, 0));
  RunKernel(SumKernel, 3, 100, 0, values.get(), sums.get());
  EXPECT_EQ(sums.Read(), (std::vector<int>{100 * 4950, 100 * 14950, 100 * 24950}));
}

__global__ void LanesKernel(int* out) {
  const int lane = int(threadIdx.x);
  out[lane] = __shfl_xor_sync(kAll, lane, 5);
  out[32 + lane] = __shfl_up_sync(kAll, lane, 3);
  out[64 + lane] = int(__ballot_sync(kAll, lane % 3 == 0));
  out[96 + lane] = int(__match_any_sync(kAll, lane / 8));
  out[128 + lane] = __reduce_max_sync(kAll, lane * 7 % 32);
}

TEST(Emulator, LanesExchange) {
  const OnDevice<int> out(size_t{160});
  RunKernel(LanesKernel, 1, 32, 0, out.get());
  const std::vector<int> got = out.Read();
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(got[size_t(lane)], lane ^ 5);
    EXPECT_EQ(got[size_t(32 + lane)], lane < 3 ? lane : lane - 3);
    EXPECT_EQ(unsigned(got[size_t(64 + lane)]), 0x49249249u);
    EXPECT_EQ(unsigned(got[size_t(96 + lane)]), 255u << (lane / 8 * 8));
    EXPECT_EQ(got[size_t(128 + lane)], 31);
  }
}

// What each block's neighbour wrote.
__global__ void NeighbourKernel(unsigned* out) {
  auto* word = SharedMemory<unsigned>();
  if (threadIdx.x == 0) *word = blockIdx.x + 10;
  ClusterSync();
  if (threadIdx.x == 0) out[blockIdx.x] = ClusterLoad(word, (blockIdx.x + 1) % 4);
  ClusterSync();
}

TEST(Emulator, BlocksOfAClusterReadEachOther) {
  const OnDevice<unsigned> out(size_t{8});
  LaunchClusters(4, NeighbourKernel, dim3(8), dim3(64), 16, nullptr, out.get());
  CheckCuda(cudaGetLastError());
  EXPECT_EQ(out.Read(), (std::vector<unsigned>{11, 12, 13, 10, 15, 16, 17, 14}));
}

// A thread's four floats through shared memory.
template <bool kWaits>
__global__ void CopyKernel(const float4* in, float4* out) {
  auto* shared = SharedMemory<float4>();
  CopyAsync(shared + threadIdx.x, in + threadIdx.x);
  CopyAsyncCommit();
  if constexpr (kWaits) CopyAsyncWait<0>();
  out[threadIdx.x] = shared[threadIdx.x];
}
template <bool kWaits>
__global__ void CopyArriveKernel(const float4* in, float4* out) {
  struct Shared {
    float4 values[32];
    uint64_t barrier;
  };
  auto* shared = SharedMemory<Shared>();
  if (threadIdx.x == 0) {
    BarrierInit(&shared->barrier, 32);
    FenceBarrierInit();
  }
  __syncthreads();
  CopyAsync(shared->values + threadIdx.x, in + threadIdx.x);
  CopyAsyncArrive(&shared->barrier);
  if constexpr (kWaits) BarrierWait(&shared->barrier, 0);
  out[threadIdx.x] = shared->values[31 - threadIdx.x];
  if constexpr (!kWaits) BarrierWait(&shared->barrier, 0);
}
template <bool kWaits>
__global__ void BulkKernel(const float4* in, float4* out) {
  struct Shared {
    float4 values[32];
    uint64_t barrier;
  };
  auto* shared = SharedMemory<Shared>();
  if (threadIdx.x == 0) {
    BarrierInit(&shared->barrier, 1);
    FenceBarrierInit();
    BarrierExpect(&shared->barrier, sizeof(shared->values));
    CopyBulkOnce(shared->values, in, sizeof(shared->values), &shared->barrier);
  }
  __syncthreads();
  if constexpr (kWaits) BarrierWait(&shared->barrier, 0);
  out[threadIdx.x] = shared->values[threadIdx.x];
  if constexpr (!kWaits) BarrierWait(&shared->barrier, 0);
}

TEST(Emulator, CopiesAreThereOnceWaitedFor) {
  std::vector<float4> in(32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = make_float4(float(i), 1, 2, 3);
  const OnDevice<float4> from(in);
  const OnDevice<float4> to(size_t{32});
  auto late = [&] {
    size_t count = 0;
    for (const float4& value : to.Read()) count += std::isnan(value.x);
    return count;
  };
  RunKernel(CopyKernel<true>, 1, 32, 512, from.get(), to.get());
  EXPECT_EQ(late(), 0u);
  RunKernel(CopyKernel<false>, 1, 32, 512, from.get(), to.get());
  EXPECT_EQ(late(), 32u);
  RunKernel(CopyArriveKernel<true>, 1, 32, 528, from.get(), to.get());
  EXPECT_EQ(late(), 0u);
  RunKernel(CopyArriveKernel<false>, 1, 32, 528, from.get(), to.get());
  EXPECT_EQ(late(), 32u);
  RunKernel(BulkKernel<true>, 1, 32, 528, from.get(), to.get());
  EXPECT_EQ(late(), 0u);
  RunKernel(BulkKernel<false>, 1, 32, 528, from.get(), to.get());
  EXPECT_EQ(late(), 32u);
}

// a [64][16] times b [16][64]: by mma, a tile of 16 x 8 a warp, and by wgmma.
struct Operands {
  uint16_t a[64][16];
  uint16_t b[16][64];
};
__global__ void MmaKernel(const Operands* in, float* out) {
  const int lane = int(threadIdx.x) % 32;
  const int m = int(threadIdx.x) / 32 * 16 + lane / 4;
  const int k = lane % 4 * 2;
  auto pair = [](uint16_t low, uint16_t high) { return uint32_t{high} << 16 | low; };
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) {
    const uint16_t* at = &in->a[m + i % 2 * 8][k + i / 2 * 8];
    a[i] = pair(at[0], at[1]);
  }
  for (int tile = 0; tile < 8; ++tile) {
    const int n = tile * 8 + lane / 4;
    float d[4] = {1, 1, 1, 1};
    MultiplyAdd(d, a, pair(in->b[k][n], in->b[k + 1][n]), pair(in->b[k + 8][n], in->b[k + 9][n]));
    for (int i = 0; i < 4; ++i) out[(m + i / 2 * 8) * 64 + tile * 8 + lane % 4 * 2 + i % 2] = d[i];
  }
}
enum class Form { kRegisters, kShared, kNMajor };  // a in registers, in shared memory; b N-major
template <Form kForm, bool kWaits>
__global__ void WgmmaKernel(const Operands* in, float* out) {
  auto* b = SharedMemory<uint16_t[64][8]>();  // [k / 8][n][k % 8]
  auto* n_major = &b[0][0];                   // [k / 8][n / 8][k % 8][n % 8]
  auto* shared_a = b + 2;                     // [k / 8][m][k % 8]
  for (int i = int(threadIdx.x); i < 16 * 64; i += 128) {
    const int k = i / 64;
    const int n = i % 64;
    if constexpr (kForm == Form::kNMajor) {
      n_major[k / 8 * 64 + n / 8 * 8 + k % 8][n % 8] = in->b[k][n];
    } else {
      b[k / 8][n][k % 8] = in->b[k][n];
    }
    shared_a[k / 8][n][k % 8] = in->a[n][k];
  }
  FenceAsyncProxy();
  __syncthreads();
  const int lane = int(threadIdx.x) % 32;
  const int m = int(threadIdx.x) / 32 * 16 + lane / 4;
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) {
    const uint16_t* at = &in->a[m + i % 2 * 8][lane % 4 * 2 + i / 2 * 8];
    a[i] = uint32_t{at[1]} << 16 | at[0];
  }
  float d[32];
  for (float& sum : d) sum = 1;
  WgmmaFence();
  const uint64_t descriptor = WgmmaDescriptor(SharedAddress(b), 1024, 128);
  if constexpr (kForm == Form::kRegisters) Wgmma<64>::Run(d, a, descriptor);
  if constexpr (kForm == Form::kNMajor) WgmmaNMajor(d, a, descriptor);
  if constexpr (kForm == Form::kShared)
    WgmmaOfShared(d, WgmmaDescriptor(SharedAddress(shared_a), 1024, 128), descriptor);
  WgmmaCommit();
  if constexpr (kWaits) WgmmaWait<0>();
  for (int i = 0; i < 32; ++i)
    out[(m + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
  if constexpr (!kWaits) WgmmaWait<0>();
}

TEST(Emulator, ProductsAreSums) {
  std::mt19937 random(3);
  Operands in;
  for (auto* values : {&in.a[0][0], &in.b[0][0]}) {
    for (int i = 0; i < 64 * 16; ++i)
      values[i] = FloatToBf16(std::normal_distribution<float>()(random));
  }
  const OnDevice<Operands> operands(std::vector<Operands>{in});
  const OnDevice<float> by_mma(size_t{64 * 64});
  const OnDevice<float> by_wgmma(size_t{64 * 64});
  RunKernel(MmaKernel, 1, 128, 0, operands.get(), by_mma.get());
  const std::vector<float> got = by_mma.Read();
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < 64; ++n) {
      double sum = 1;
      for (int k = 0; k < 16; ++k) sum += double(Bf16ToFloat(in.a[m][k])) * Bf16ToFloat(in.b[k][n]);
      ASSERT_EQ(got[size_t(m * 64 + n)], float(sum));
    }
  }
  for (const auto kernel : {WgmmaKernel<Form::kRegisters, true>, WgmmaKernel<Form::kShared, true>,
                            WgmmaKernel<Form::kNMajor, true>}) {
    RunKernel(kernel, 1, 128, 4096, operands.get(), by_wgmma.get());
    EXPECT_EQ(by_wgmma.Read(), got);
  }
  RunKernel(WgmmaKernel<Form::kShared, false>, 1, 128, 4096, operands.get(), by_wgmma.get());
  for (const float sum : by_wgmma.Read()) ASSERT_TRUE(std::isnan(sum));
}

__global__ void UnwrittenKernel(unsigned* out) {
  __shared__ unsigned value;
  out[0] = value;
  out[1] = *SharedMemory<unsigned>();
  value = 0;
  *SharedMemory<unsigned>() = 0;
}

TEST(Emulator, MemoryIsPoisoned) {
  const OnDevice<unsigned> out(size_t{2});
  for (int run = 0; run < 2; ++run) {
    RunKernel(UnwrittenKernel, 2, 1, 16, out.get());
    EXPECT_EQ(out.Read(), (std::vector<unsigned>{kAll, kAll}));
  }
}

// A stream does nothing until it is waited for.
TEST(Emulator, CopiesAreUnderWayUntilWaitedFor) {
  const OnDevice<int> device(std::vector<int>{7});
  const PinnedMemory pinned = std::move(*PinnedMemory::Allocate(4, "a test"));
  const Stream stream = std::move(*Stream::Create());
  CheckCuda(cudaMemcpyAsync(pinned.as<>(), device.get(), 4, cudaMemcpyDeviceToHost, stream.get()));
  EXPECT_EQ(*pinned.as<int>(), -1);
  ASSERT_TRUE(stream.Synchronize().ok());
  EXPECT_EQ(*pinned.as<int>(), 7);
}

__global__ void DeadlockKernel() {
  if (threadIdx.x < 64) Barrier(3, 96);
}
__global__ void ForgottenArrivalKernel() {
  auto* barrier = SharedMemory<uint64_t>();
  if (threadIdx.x == 0) BarrierInit(barrier, 2);
  __syncthreads();
  if (threadIdx.x == 0) BarrierArrive(barrier);
  BarrierWait(barrier, 0);
}
__global__ void DivergedKernel(int* out) {
  *out = threadIdx.x % 2 == 0 ? __shfl_xor_sync(kAll, 1, 1) : int(__ballot_sync(kAll, true));
}
__global__ void BeyondKernel(int* out) { out[threadIdx.x + 64] = 0; }
__global__ void JustBeyondKernel(uint8_t* out) { out[5] = 0; }

TEST(EmulatorDeathTest, MistakesEndTheProgram) {
  EXPECT_DEATH(
      RunKernel(DeadlockKernel, 1, 96, 0),
      "DeadlockKernel.*deadlock\n.*64 threads of block \\(0, 0, 0\\): barrier 3 \\(64 of 96");
  EXPECT_DEATH(RunKernel(ForgottenArrivalKernel, 1, 32, 8), "mbarrier at 0 .*1 of 2 arrived");
  const OnDevice<int> out(size_t{64});
  EXPECT_DEATH(RunKernel(DivergedKernel, 1, 32, 0, out.get()), "lanes .* of the warp are in a");
  EXPECT_DEATH(RunKernel(BeyondKernel, 1, 32, 0, out.get()), "BeyondKernel.*an access to");
  EXPECT_DEATH(
      {
        const OnDevice<uint8_t> five(size_t{5});
        RunKernel(JustBeyondKernel, 1, 1, 0, five.get());
      },
      "byte 5 of 5 of an allocation was written");
}

TEST(Emulator, RefusesWhatADeviceRefuses) {
  Launch(DeadlockKernel, dim3(1), dim3(1025), 0, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  Launch(DeadlockKernel, dim3(1), dim3(32), 49 << 10, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  cudaFuncSetAttribute(reinterpret_cast<const void*>(DeadlockKernel),
                       cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace agentd::model::cuda
