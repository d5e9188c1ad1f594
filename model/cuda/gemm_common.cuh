// What the product's kernels share: weights from their packed form to BF16 fragments, and which
// part of which job a block does.
#ifndef AGENTD_MODEL_CUDA_GEMM_COMMON_CUH_
#define AGENTD_MODEL_CUDA_GEMM_COMMON_CUH_

#include <cuda_bf16.h>

#include <cstdint>

#include "model/cuda/barrier.cuh"
#include "model/cuda/gemm.h"
#include "model/cuda/tensor.cuh"

namespace agentd::model::cuda {

__host__ __device__ __forceinline__ int DivideUpInt(int a, int b) { return (a + b - 1) / b; }

// One lane's share of a 16 x 64 piece: what is loaded, and how it becomes the four fragments of 16
// columns (registers 0..3: rows g, g+8, g, g+8; columns 2t, 2t, 2t+8, 2t+8).
template <MatrixType kType>
struct Piece;

template <>
struct Piece<MatrixType::kBf16> {
  static constexpr int kParts = 4;
  uint4 raw[kParts];
  __device__ __forceinline__ void LoadScale(const uint8_t*, int, int) {}
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    a[0] = raw[j].x, a[1] = raw[j].y, a[2] = raw[j].z, a[3] = raw[j].w;
  }
};

template <>
struct Piece<MatrixType::kFp8> {
  static constexpr int kParts = 2;
  uint4 raw[kParts];
  uint32_t scale;
  // From the unit of scales (of 16 rows) that holds the step.
  __device__ __forceinline__ void LoadScale(const uint8_t* unit, int step, int lane) {
    scale = *reinterpret_cast<const uint16_t*>(unit + lane / 4 * 8 + step / 2 % 4 * 2);
  }
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    const uint4& part = raw[j / 2];
    const uint32_t first = j % 2 == 0 ? part.x : part.z;
    const uint32_t second = j % 2 == 0 ? part.y : part.w;
    // A byte as the exponent of both halves.
    const uint32_t low = __byte_perm(scale, 0, 0x0404) >> 1;
    const uint32_t high = __byte_perm(scale, 0, 0x1414) >> 1;
    a[0] = MultiplyBf16(first & 0x87F087F0u, low);
    a[1] = MultiplyBf16(((first << 4) & 0x80F080F0u) | ((first >> 4) & 0x07000700u), high);
    a[2] = MultiplyBf16(second & 0x87F087F0u, low);
    a[3] = MultiplyBf16(((second << 4) & 0x80F080F0u) | ((second >> 4) & 0x07000700u), high);
  }
};

template <>
struct Piece<MatrixType::kFp4> {
  static constexpr int kParts = 1;
  uint4 raw[kParts];
  uint32_t scale;
  __device__ __forceinline__ void LoadScale(const uint8_t* unit, int step, int lane) {
    scale = *reinterpret_cast<const uint32_t*>(unit + lane / 4 * 16 + step % 4 * 4);
  }
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    const uint32_t w = j == 0 ? raw[0].x : j == 1 ? raw[0].y : j == 2 ? raw[0].z : raw[0].w;
    // A byte as the exponent of both halves.
    const uint32_t low = __byte_perm(scale, 0, j / 2 == 0 ? 0x0404 : 0x1414) >> 1;
    const uint32_t high = __byte_perm(scale, 0, j / 2 == 0 ? 0x2424 : 0x3434) >> 1;
    a[0] = MultiplyBf16(((w << 1) & 0x80008000u) | ((w << 6) & 0x01C001C0u), low);
    a[1] = MultiplyBf16((w << 3) & 0x81C081C0u, high);
    a[2] = MultiplyBf16(w & 0x81C081C0u, low);
    a[3] = MultiplyBf16(((w << 2) & 0x80008000u) | ((w >> 3) & 0x01C001C0u), high);
  }
};

// Where 16 rows' pieces begin, and how far apart steps (and units of scales) are.
template <MatrixType kType>
struct Rows16 {
  static constexpr int kPieceBytes = Piece<kType>::kParts * 512;
  static constexpr int kStepBytes = 4 * kPieceBytes;  // of 64 rows
  // Steps and bytes of a unit of scales of 16 rows.
  static constexpr int kScaleSteps = kType == MatrixType::kFp8 ? 8 : 4;
  static constexpr int kScaleBytes = kType == MatrixType::kFp8   ? 64
                                     : kType == MatrixType::kFp4 ? 128
                                                                 : 0;

  static __device__ __forceinline__ int64_t Data(int m16, int steps) {
    return int64_t(m16 / 4) * steps * kStepBytes + m16 % 4 * kPieceBytes;
  }
  static __device__ __forceinline__ int64_t Scales(int m16, int steps) {
    return int64_t(m16 / 4) * DivideUpInt(steps, kScaleSteps) * 4 * kScaleBytes +
           m16 % 4 * kScaleBytes;
  }
};

// A unit of work: some rows of weights of one job, one slice of K or all, one tile of rows.
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

// How a kernel cuts jobs into units.
struct Cut {
  int m_rows = 0;       // of weights
  int n_rows = 0;       // of a tile of a job that is not grouped
  bool slices = false;  // each slice of K is a unit of its own
  // So many units beside each other along the weights, then the next tile of rows: what runs at one
  // time then shares both weights and rows. 0: all.
  int band = 0;

  __host__ __device__ __forceinline__ int Across(const Matrix& w) const {
    return (w.rows + m_rows - 1) / m_rows * (slices ? w.slices : 1);
  }
  __host__ __device__ __forceinline__ int Tiles(const GemmJob& job, int rows, int tiles) const {
    return job.grouped ? tiles : (rows + n_rows - 1) / n_rows;
  }
};

// Unit `unit` of a launch. Units of a job: its slices, then rows of weights, then tiles. `tiles`:
// how many there are of grouped jobs.
__device__ __forceinline__ Work FindWork(const GemmArgs& a, int unit, Cut cut, int tiles) {
  Work work;
  for (int i = 0; i < a.job_count; ++i) {
    const GemmJob& job = a.jobs[i];
    const Matrix& w = job.weight;
    const int across = cut.Across(w);
    const int down = cut.Tiles(job, a.rows, tiles);
    if (unit >= across * down) {
      unit -= across * down;
      continue;
    }
    int begin = 0;
    int width = across;
    if (cut.band > 0) {
      begin = unit / (cut.band * down) * cut.band;
      unit -= begin * down;
      width = min(cut.band, across - begin);
    }
    const int tile = unit / width;
    unit = begin + unit % width;
    const int steps = DivideUpInt(w.columns, 64);
    const int slices = cut.slices ? w.slices : 1;
    const int per_slice = DivideUpInt(steps, slices);
    work.job = i;
    work.slice = unit % slices;
    work.m_tile = unit / slices;
    work.step_begin = min(steps, work.slice * per_slice);
    work.step_end = min(steps, work.step_begin + per_slice);
    if (job.grouped) {
      const int4 t = a.tiles[tile];
      work.expert = t.x;
      work.first = t.y;
      work.count = t.z;
    } else {
      work.first = tile * cut.n_rows;
      work.count = min(cut.n_rows, a.rows - work.first);
    }
    return work;
  }
  return work;
}

// Of all jobs together; grouped ones counted for `tiles` tiles.
__host__ __device__ __forceinline__ int CountUnits(const GemmArgs& a, Cut cut, int tiles) {
  int units = 0;
  for (int i = 0; i < a.job_count; ++i)
    units += cut.Across(a.jobs[i].weight) * cut.Tiles(a.jobs[i], a.rows, tiles);
  return units;
}

// Whether a launch's units depend on what an earlier kernel wrote.
__host__ __device__ __forceinline__ bool HasGroups(const GemmArgs& a) {
  for (int i = 0; i < a.job_count; ++i) {
    if (a.jobs[i].grouped) return true;
  }
  return false;
}

// Row of x of the tile's row n.
__device__ __forceinline__ int SourceRow(const GemmJob& job, int row) {
  return job.grouped && job.row_index != nullptr ? job.row_index[row] : row;
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_GEMM_COMMON_CUH_
