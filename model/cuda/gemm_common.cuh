// What the product's kernels share: weights from their packed form to BF16 fragments, copies into
// shared memory, and which part of which job a block does.
#ifndef AGENTD_MODEL_CUDA_GEMM_COMMON_CUH_
#define AGENTD_MODEL_CUDA_GEMM_COMMON_CUH_

#include <cuda_bf16.h>

#include <cstdint>

#include "model/cuda/gemm.h"

namespace agentd::model::cuda {

__host__ __device__ __forceinline__ int DivideUpInt(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory, of which `bytes` are read and the rest becomes zeros.
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CopyCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void CopyWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Weights are read once by a step: they should not push out what is read again.
__device__ __forceinline__ uint4 LoadWeights(const void* from) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(from));
  return out;
}

__device__ __forceinline__ uint32_t MultiplyBf16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// One lane's share of a 16 x 64 piece: what is loaded, and how it becomes the four fragments of 16
// columns (registers 0..3: rows g, g+8, g, g+8; columns 2t, 2t, 2t+8, 2t+8).
template <MatrixType kType>
struct Piece;

template <>
struct Piece<MatrixType::kBf16> {
  static constexpr int kParts = 4;
  static constexpr int kAhead = 2;  // steps of weights in flight of a warp: 128 bytes a lane
  uint4 raw[kParts];
  __device__ __forceinline__ void LoadScale(const uint8_t*, int, int) {}
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    a[0] = raw[j].x, a[1] = raw[j].y, a[2] = raw[j].z, a[3] = raw[j].w;
  }
};

template <>
struct Piece<MatrixType::kFp8> {
  static constexpr int kParts = 2;
  static constexpr int kAhead = 4;
  uint4 raw[kParts];
  uint32_t scale;
  // scales of 16 rows: units of 512 columns, 64 bytes each.
  __device__ __forceinline__ void LoadScale(const uint8_t* scales, int step, int lane) {
    scale = *reinterpret_cast<const uint16_t*>(scales + step / 8 * 64 + lane / 4 * 8 +
                                               step / 2 % 4 * 2);
  }
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    const uint4& part = raw[j / 2];
    const uint32_t first = j % 2 == 0 ? part.x : part.z;
    const uint32_t second = j % 2 == 0 ? part.y : part.w;
    const uint32_t low = (scale & 0xFF) * 0x00800080u;
    const uint32_t high = (scale >> 8) * 0x00800080u;
    a[0] = MultiplyBf16x2((first & 0x80008000u) | ((first >> 4) & 0x07F007F0u), low);
    a[1] = MultiplyBf16x2(((first << 8) & 0x80008000u) | ((first << 4) & 0x07F007F0u), high);
    a[2] = MultiplyBf16x2((second & 0x80008000u) | ((second >> 4) & 0x07F007F0u), low);
    a[3] = MultiplyBf16x2(((second << 8) & 0x80008000u) | ((second << 4) & 0x07F007F0u), high);
  }
};

template <>
struct Piece<MatrixType::kFp4> {
  static constexpr int kParts = 1;
  static constexpr int kAhead = 8;
  uint4 raw[kParts];
  uint32_t scale;
  // units of 256 columns, 128 bytes each.
  __device__ __forceinline__ void LoadScale(const uint8_t* scales, int step, int lane) {
    scale =
        *reinterpret_cast<const uint32_t*>(scales + step / 4 * 128 + lane / 4 * 16 + step % 4 * 4);
  }
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    const uint32_t w = j == 0 ? raw[0].x : j == 1 ? raw[0].y : j == 2 ? raw[0].z : raw[0].w;
    const uint32_t shifted = scale >> (j / 2 * 8);
    const uint32_t low = (shifted & 0xFF) * 0x00800080u;
    const uint32_t high = (shifted >> 16 & 0xFF) * 0x00800080u;
    a[0] = MultiplyBf16x2(((w << 1) & 0x80008000u) | ((w << 6) & 0x01C001C0u), low);
    a[1] = MultiplyBf16x2((w << 3) & 0x81C081C0u, high);
    a[2] = MultiplyBf16x2(w & 0x81C081C0u, low);
    a[3] = MultiplyBf16x2(((w << 2) & 0x80008000u) | ((w >> 3) & 0x01C001C0u), high);
  }
};

// Bytes of scales of 16 rows.
template <MatrixType kType>
__device__ __forceinline__ int ScaleRowBytes(int columns) {
  if constexpr (kType == MatrixType::kFp8) return DivideUpInt(columns, 512) * 64;
  if constexpr (kType == MatrixType::kFp4) return DivideUpInt(columns, 256) * 128;
  return 0;
}

// What a block does: some rows of weights of one job, one slice of K, one tile of rows.
struct Work {
  int job = -1;  // -1: nothing
  int m_tile = 0;
  int slice = 0;
  int first = 0;  // row
  int count = 0;  // rows
  int expert = 0;
  int step_begin = 0;  // of 64 columns
  int step_end = 0;
};

// m_rows: rows of weights of a block; n_rows: rows of a tile.
__device__ __forceinline__ Work FindWork(const GemmArgs& a, int m_rows, int n_rows) {
  Work work;
  int unit = int(blockIdx.x);
  for (int i = 0; i < a.job_count; ++i) {
    const Matrix& w = a.jobs[i].weight;
    const int units = DivideUpInt(w.rows, m_rows) * w.slices;
    if (unit >= units) {
      unit -= units;
      continue;
    }
    work.job = i;
    work.slice = unit % w.slices;
    work.m_tile = unit / w.slices;
    const int steps = DivideUpInt(w.columns, 64);
    const int per_slice = DivideUpInt(steps, w.slices);
    work.step_begin = min(steps, work.slice * per_slice);
    work.step_end = min(steps, work.step_begin + per_slice);
    break;
  }
  if (work.job < 0 || a.jobs[work.job].grouped) return work;
  work.first = int(blockIdx.y) * n_rows;
  work.count = min(n_rows, a.rows - work.first);
  if (work.count <= 0) work.job = -1;
  return work;
}

// Of a grouped job, after GridDependencyWait: the tile was written by an earlier kernel.
__device__ __forceinline__ void FindTile(const GemmArgs& a, Work* work) {
  const int tile = int(blockIdx.y);
  if (tile >= *a.tile_count) {
    work->job = -1;
    return;
  }
  const int4 t = a.tiles[tile];
  work->expert = t.x;
  work->first = t.y;
  work->count = t.z;
}

// Row of x of the tile's row n.
__device__ __forceinline__ int SourceRow(const GemmJob& job, int row) {
  return job.grouped && job.row_index != nullptr ? job.row_index[row] : row;
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_GEMM_COMMON_CUH_
