// Products in plain F32: float checkpoints, and F32 weights of others. A warp computes one output
// of up to four rows; lane l takes columns l, l + 32, ..., a fixed tree adds the lanes.
#include <type_traits>

#include "model/cuda/gemm_common.cuh"
#include "model/cuda/gemm_kernels.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 4;
constexpr Cut kCut = {.m_rows = kWarps, .n_rows = 16, .slices = true};

__device__ __forceinline__ float Number(float x) { return x; }
__device__ __forceinline__ float Number(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Weight, typename Input>
__device__ void Run(const GemmJob& job, const Work& work) {
  const int columns = job.weight.columns;
  const int lane = int(threadIdx.x) % 32;
  const int m = work.m_tile * kWarps + int(threadIdx.x) / 32;
  if (m >= job.weight.rows) return;
  const auto* weight =
      reinterpret_cast<const Weight*>(static_cast<const uint8_t*>(job.weight.data) +
                                      work.expert * job.expert_data) +
      int64_t(m) * columns;
  for (int begin = 0; begin < work.count; begin += kTokens) {
    const Input* rows[kTokens];
    float sums[kTokens] = {};
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      const int row = work.first + min(begin + n, work.count - 1);
      rows[n] = static_cast<const Input*>(job.x) + int64_t(SourceRow(job, row)) * job.x_stride;
    }
    for (int k = lane; k < columns; k += 32) {
      const float w = Number(weight[k]);
#pragma unroll
      for (int n = 0; n < kTokens; ++n) sums[n] = sums[n] + w * Number(rows[n][k]);
    }
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2)
        sums[n] = sums[n] + __shfl_xor_sync(0xFFFFFFFFu, sums[n], step);
      if (lane == 0 && begin + n < work.count)
        static_cast<float*>(job.y)[int64_t(work.first + begin + n) * job.y_stride + m] = sums[n];
    }
  }
}

template <typename Input>
__global__ void __launch_bounds__(kWarps * 32) PlainKernel(const __grid_constant__ GemmArgs a) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int tiles = HasGroups(a) ? *a.tile_count : 0;
  const Work work = FindWork(a, int(blockIdx.x), kCut, tiles);
  if (work.job < 0) return;
  const GemmJob& job = a.jobs[work.job];
  if (job.weight.type == MatrixType::kF32) {
    Run<float, Input>(job, work);
  } else {
    Run<__nv_bfloat16, Input>(job, work);
  }
}

}  // namespace

void GemmPlain(const GemmArgs& args, int tile_limit, cudaStream_t stream) {
  const dim3 grid(unsigned(CountUnits(args, kCut, tile_limit)));
  if (args.low) {
    Launch(PlainKernel<__nv_bfloat16>, grid, dim3(kWarps * 32), 0, stream, args);
  } else {
    Launch(PlainKernel<float>, grid, dim3(kWarps * 32), 0, stream, args);
  }
}

int ChooseSlices(int rows, int columns, bool alone) {
  // A router's few rows are a launch of their own, which takes as long as one slice does.
  if (alone && rows <= 512 && columns >= 2048) return min(16, columns / 256);
  // Few rows of long columns: more blocks. 1,024 columns are 64 KiB of FP8 to a block of 64 rows.
  if (rows > 8192 || columns < 2048) return 1;
  return min(8, columns / 1024);
}

int GemmTile(int rows) {
  for (int tile : {8, 16, kFewRows}) {
    if (rows <= tile) return tile;
  }
  return 128;
}

int ProductPlanes(const Matrix& weight, int rows) {
  return GemmTile(rows) <= kFewRows ? weight.slices : 1;
}

int64_t PlaneRows(const Matrix& weight, int rows) {
  return max(int64_t(rows) * ProductPlanes(weight, rows),
             int64_t(min(rows, kFewRows)) * weight.slices);
}

bool CanRound(const Matrix& weight, int tile) { return tile > kFewRows && !IsPlain(weight); }

// Plain jobs and packed ones of one call become two launches.
void Gemm(const GemmArgs& args, cudaStream_t stream) {
  GemmArgs plain = args;
  GemmArgs packed = args;
  plain.job_count = packed.job_count = 0;
  bool grouped = false;
  for (int i = 0; i < args.job_count; ++i) {
    const GemmJob& job = args.jobs[i];
    (IsPlain(job.weight) ? plain.jobs[plain.job_count++] : packed.jobs[packed.job_count++]) = job;
    Require(job.grouped || !grouped, "grouped jobs come last");
    grouped |= job.grouped;
  }
  if (args.rows == 0 && !grouped) return;
  // Tiles of grouped jobs were cut to group_tile rows: all jobs of a launch have the same.
  const int tile = grouped ? args.group_tile : GemmTile(args.rows);
  for (int i = 0; i < args.job_count; ++i) {
    const GemmJob& job = args.jobs[i];
    Require(!job.rounded || CanRound(job.weight, tile), "products that are rounded");
  }
  if (plain.job_count > 0) GemmPlain(plain, args.tile_limit, stream);
  if (packed.job_count == 0) return;
  if (tile <= kFewRows) {
    GemmFewRows(packed, tile, args.tile_limit, stream);
  } else {
    GemmManyRows(packed, args.tile_limit, stream);
  }
}

}  // namespace agentd::model::cuda
