// Products of many rows (prefill): a block computes 256 rows of weights times a tile of tokens. One
// warpgroup copies the tokens' values into a ring of shared memory; two others take two tiles of 64
// rows each, straight from memory into registers, make them BF16 there and issue wgmma with the
// weights as its register operand: while one converts, the matrix units work for the other.
//
// Arithmetic: 256 x 128 x 64 products are 1,024 cycles of the matrix units, for which 28 KiB (FP8)
// come from L2.
#include "model/cuda/gemm_common.cuh"
#include "model/cuda/gemm_kernels.h"
#include "model/cuda/launch.cuh"
#include "model/cuda/wgmma.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kRows = 256;  // of weights
constexpr int kThreads = 384;
constexpr int kStages = 6;
constexpr int kLag = 2;  // stages whose copies may be under way

template <int kTokens>
struct Shared {
  __nv_bfloat16 tokens[kStages][8][kTokens][8];  // [k / 8][token][k % 8]
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// The copying warpgroup: a thread's share of all stages of a unit, 16 bytes of each of some tokens.
template <int kTokens>
__device__ void Produce(const GemmJob& job, const Work& work, Shared<kTokens>* shared,
                        RingPlace<kStages>* place, RingPlace<kStages>* arrived) {
  constexpr int kCopies = kTokens / 16;
  const int thread = int(threadIdx.x) % 128;
  const int lane = thread % 32;
  const int columns = job.weight.columns;
  // 8 tokens x 4 pieces of 16 bytes a warp and copy: whole sectors of 64 bytes of memory, whole
  // lines of 128 bytes of shared memory.
  const int piece = lane / 8 + thread / 32 % 2 * 4;
  const __nv_bfloat16* rows[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int n = (i * 2 + thread / 64) * 8 + lane % 8;
    rows[i] = n < work.count ? static_cast<const __nv_bfloat16*>(job.x) +
                                   int64_t(SourceRow(job, work.first + n)) * job.x_stride
                             : nullptr;
  }
  const int steps = work.step_end - work.step_begin;
  for (int i = 0; i < steps + kLag; ++i) {
    if (i < steps) {
      BarrierWait(&shared->empty[place->stage], place->parity ^ 1);
      const int column = (work.step_begin + i) * 64 + piece * 8;
      const int bytes = max(0, min(16, (columns - column) * 2));
#pragma unroll
      for (int c = 0; c < kCopies; ++c) {
        const int n = (c * 2 + thread / 64) * 8 + lane % 8;
        const bool there = rows[c] != nullptr && bytes > 0;
        CopyAsync16(SharedAddress(&shared->tokens[place->stage][piece][n][0]),
                    there ? rows[c] + column : static_cast<const __nv_bfloat16*>(job.x),
                    there ? bytes : 0);
      }
      place->Next();
    }
    CopyAsyncCommit();
    if (i >= kLag) {
      CopyAsyncWait<kLag>();
      FenceAsyncProxy();
      BarrierArrive(&shared->full[arrived->stage]);
      arrived->Next();
    }
  }
}

// Where a warp finds the weights of a unit's two tiles of 64 rows.
template <MatrixType kType>
struct WeightPlace {
  const uint8_t* data[2];
  const uint8_t* scales[2];

  __device__ __forceinline__ void Set(const GemmJob& job, const Work& work, int warpgroup,
                                      int warp) {
    const int steps = DivideUpInt(job.weight.columns, 64);
    const int last_tile = DivideUpInt(job.weight.rows, 64) - 1;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      // A tile beyond the matrix computes the last one again and stores nothing.
      const int tile = min(work.m_tile * (kRows / 64) + warpgroup * 2 + t, last_tile);
      const int m16 = tile * 4 + warp;
      data[t] = static_cast<const uint8_t*>(job.weight.data) + work.expert * job.expert_data +
                Rows16<kType>::Data(m16, steps);
      scales[t] =
          job.weight.scales + work.expert * job.expert_scales + Rows16<kType>::Scales(m16, steps);
    }
  }

  __device__ __forceinline__ void Load(int t, int step, int lane, Piece<kType>* piece) const {
#pragma unroll
    for (int p = 0; p < Piece<kType>::kParts; ++p) {
      // Blocks of other tokens read the same weights: they stay in L2.
      piece->raw[p] = __ldg(reinterpret_cast<const uint4*>(
          data[t] + int64_t(step) * Rows16<kType>::kStepBytes + p * 512 + lane * 16));
    }
    piece->LoadScale(
        scales[t] + step / Rows16<kType>::kScaleSteps * (4 * Rows16<kType>::kScaleBytes), step,
        lane);
  }
};

template <int kTokens>
__device__ __forceinline__ void Store(const GemmJob& job, const Work& work, int warpgroup, int warp,
                                      int lane, const float (&sums)[2][kTokens / 2]) {
  float* y = job.y + work.slice * job.plane_stride;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
      const int m =
          work.m_tile * kRows + (warpgroup * 2 + t) * 64 + warp * 16 + lane / 4 + i / 2 % 2 * 8;
      if (row < work.count && m < job.weight.rows)
        y[int64_t(work.first + row) * job.y_stride + m] = sums[t][i] * job.weight.factor;
    }
  }
}

// A multiplying warpgroup: unit *work and those after it (every gridDim.x-th), as long as their
// weights are of this type; *work becomes the first that is not. A unit's first weights are loaded
// while the one before is stored.
template <MatrixType kType, int kTokens>
__device__ void Consume(const GemmArgs& a, int tiles, Work* work, int* unit,
                        Shared<kTokens>* shared, RingPlace<kStages>* place) {
  const int warpgroup = int(threadIdx.x) / 128 - 1;
  const int warp = int(threadIdx.x) / 32 % 4;
  const int lane = int(threadIdx.x) % 32;
  WeightPlace<kType> weights;
  weights.Set(a.jobs[work->job], *work, warpgroup, warp);
  Piece<kType> pieces[2];
#pragma unroll
  for (int t = 0; t < 2; ++t) weights.Load(t, work->step_begin, lane, &pieces[t]);
  while (true) {
    *unit += int(gridDim.x);
    const Work next = FindWork(a, *unit, kRows, kTokens, tiles);
    const bool same = next.job >= 0 && a.jobs[next.job].weight.type == kType;
    float sums[2][kTokens / 2];
    for (int step = work->step_begin; step < work->step_end; ++step) {
      uint32_t fragments[2][4][4];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) pieces[t].Fragment(j, fragments[t][j]);
      }
      int load = step + 1;
      if (load == work->step_end && same) {
        weights.Set(a.jobs[next.job], next, warpgroup, warp);
        load = next.step_begin;
      }
      if (load != work->step_end || same) {
#pragma unroll
        for (int t = 0; t < 2; ++t) weights.Load(t, load, lane, &pieces[t]);
      }
      BarrierWait(&shared->full[place->stage], place->parity);
      const uint32_t tokens = SharedAddress(&shared->tokens[place->stage][0][0][0]);
      WgmmaFence();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          Wgmma<kTokens>::Run(sums[t], fragments[t][j],
                              WgmmaDescriptor(tokens + j * 2 * kTokens * 16, kTokens * 16, 128),
                              j > 0 || step > work->step_begin);
        }
      }
      WgmmaCommit();
      // The compiler serialises every product if fragments are written while some are under way;
      // the other warpgroup keeps the matrix units busy meanwhile.
      WgmmaWait<0>();
      if (lane == 0) BarrierArrive(&shared->empty[place->stage]);
      place->Next();
    }
    Store<kTokens>(a.jobs[work->job], *work, warpgroup, warp, lane, sums);
    *work = next;
    if (!same) return;
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads, 1) ManyRowsKernel(const __grid_constant__ GemmArgs a) {
  extern __shared__ __align__(128) uint8_t bytes[];
  auto* shared = reinterpret_cast<Shared<kTokens>*>(bytes);
  GridDependencyLaunch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&shared->full[i], 128);
      BarrierInit(&shared->empty[i], 8);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  GridDependencyWait();
  const int tiles = HasGroups(a) ? *a.tile_count : 0;
  int unit = int(blockIdx.x);
  Work work = FindWork(a, unit, kRows, kTokens, tiles);
  RingPlace<kStages> place;
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    RingPlace<kStages> arrived;
    while (work.job >= 0) {
      Produce<kTokens>(a.jobs[work.job], work, shared, &place, &arrived);
      unit += int(gridDim.x);
      work = FindWork(a, unit, kRows, kTokens, tiles);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    while (work.job >= 0) {
      switch (a.jobs[work.job].weight.type) {
        case MatrixType::kBf16:
          Consume<MatrixType::kBf16>(a, tiles, &work, &unit, shared, &place);
          break;
        case MatrixType::kFp8:
          Consume<MatrixType::kFp8>(a, tiles, &work, &unit, shared, &place);
          break;
        case MatrixType::kFp4:
          Consume<MatrixType::kFp4>(a, tiles, &work, &unit, shared, &place);
          break;
        case MatrixType::kF32:
          return;
      }
    }
  }
}

template <int kTokens>
void Start(const GemmArgs& args, dim3 grid, cudaStream_t stream) {
  static const bool allowed = [] {
    AllowSharedBytes(ManyRowsKernel<kTokens>, sizeof(Shared<kTokens>));
    return true;
  }();
  (void)allowed;
  Launch(ManyRowsKernel<kTokens>, grid, dim3(kThreads), sizeof(Shared<kTokens>), stream, args);
}

}  // namespace

void GemmManyRows(const GemmArgs& args, int tile, int tile_limit, cudaStream_t stream) {
  const dim3 grid(unsigned(std::min(Multiprocessors(), CountUnits(args, kRows, tile, tile_limit))));
  if (tile == 64) return Start<64>(args, grid, stream);
  Start<128>(args, grid, stream);
}

}  // namespace agentd::model::cuda
