// Products of weights with rows of activations: y[row][m] = sum over k of w[m][k] * x[row][k].
//
// Weights lie on the matrix units' M side, rows on the N side: one row and thousands differ only in
// N, so a row's bits do not depend on how many there are. Every weight type becomes BF16 in
// registers (exactly: an FP8 or FP4 code times a power of two), the inputs are BF16 (a value
// rounded to FP8 is one too), the sums F32. K runs in order through one chain of matrix
// instructions per slice. Of few rows the slices are written as Planes and added by whoever reads
// them; of many the product adds them, in the same order, and may round their sum.
//
// Float checkpoints, and F32 weights of others, take plain F32 arithmetic instead.
#ifndef AGENTD_MODEL_CUDA_GEMM_H_
#define AGENTD_MODEL_CUDA_GEMM_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/batch.h"

namespace agentd::model::cuda {

enum class MatrixType : int { kF32, kBf16, kFp8, kFp4 };

// A matrix [rows][columns] on the device.
//   kF32: row-major float (kBf16 too where plain_bf16 says so).
//   kBf16, kFp8, kFp4: packed in the order in which lanes of a warp need them for m16 x k16 steps:
//   per
//     64 rows, per 64 columns, per 16 of the rows, per 16-byte piece (4 of BF16, 2 of FP8, 1 of
//     FP4), per lane 16 bytes. Rows and columns are padded to 64 (with zeros).
//   Scales of kFp8 and kFp4: per row and 128 or 32 columns a byte b, the weight is code * 2^(b -
//   bias) *
//     factor. Per 64 rows, per 512 (kFp8) or 256 columns (kFp4), per 16 rows, per lane / 4: kFp8 4
//     x {row, row + 8}; kFp4 4 x {row of the first 32, of the next 32, row + 8 of both}.
struct Matrix {
  MatrixType type = MatrixType::kF32;
  bool plain_bf16 = false;
  int rows = 0;
  int columns = 0;
  const void* data = nullptr;
  const uint8_t* scales = nullptr;
  float factor = 1;  // a power of two
  int slices = 1;    // of K, each a multiple of 64 columns but for the last
};

// Whether its products are plain F32 arithmetic.
inline bool IsPlain(const Matrix& weight) {
  return weight.type == MatrixType::kF32 || weight.plain_bf16;
}
// Bytes that a matrix takes on the device.
int64_t MatrixBytes(MatrixType type, bool plain, int rows, int columns);
int64_t ScaleBytes(MatrixType type, int rows, int columns);
// How a matrix's K is cut: so that one row's product keeps the whole device busy. `alone`: no other
// matrix is in its launch.
int ChooseSlices(int rows, int columns, bool alone);

// What scale bytes may be, relative to the largest of the matrix, and the largest exponent that
// needs no factor: beyond, BF16 could not hold a weight exactly.
inline constexpr int kMaxScaleSpread = 120;
inline constexpr int kFp8TopExponent = 7;
inline constexpr int kFp4TopExponent = 1;

// Rearranges a row-major matrix that lies on the device (as in the checkpoint: FP4 two a byte, the
// low nibble first) into `data` and `scales`. Scales: FP8 [ceil/128][ceil/128] from `scale_row`
// rows into its first block; FP4 [rows][ceil(columns/32)], E8M0. top: the largest scale byte of the
// matrix.
struct PackArgs {
  MatrixType type = MatrixType::kF32;
  int rows = 0;
  int columns = 0;
  const void* from = nullptr;
  const uint8_t* from_scales = nullptr;
  int scale_row = 0;
  int top = 0;
  void* data = nullptr;
  uint8_t* scales = nullptr;
};
void Pack(const PackArgs& args, cudaStream_t stream);
// Matrix::factor for that top.
float ScaleFactor(MatrixType type, int top);
// Random weights of about `magnitude`, for benchmarks; the same for the same seed.
void PackRandom(MatrixType type, bool plain, int rows, int columns, uint64_t seed, float magnitude,
                void* data, uint8_t* scales, cudaStream_t stream);

// One product of a launch.
struct GemmJob {
  Matrix weight;
  const void* x = nullptr;  // [rows][x_stride] Value
  int x_stride = 0;
  void* y = nullptr;  // ProductPlanes() planes of [rows][y_stride] floats, plane_stride apart
  int y_stride = 0;
  int64_t plane_stride = 0;
  bool rounded = false;  // y is BF16, the product rounded; where CanRound()
  // Grouped: tiles {expert, first, count} of rows; the weight is expert 0's, others follow at these
  // strides. row_index: of which row of x a tile's row is (nullptr: itself).
  bool grouped = false;
  int64_t expert_data = 0;
  int64_t expert_scales = 0;
  const int* row_index = nullptr;
};

inline constexpr int kMaxGemmJobs = 20;

// Rows of a tile for `rows` rows: 8, 16 or 32 for few, 128 for many.
inline constexpr int kFewRows = 32;
int GemmTile(int rows);
// Planes that a product of a matrix with `rows` rows is written as.
int ProductPlanes(const Matrix& weight, int rows);
// Whether a product in tiles of so many rows can be written as BF16.
bool CanRound(const Matrix& weight, int tile);
// What room the planes of up to `rows` rows take, in rows.
int64_t PlaneRows(const Matrix& weight, int rows);

struct GemmArgs {
  GemmJob jobs[kMaxGemmJobs];  // grouped ones last
  int job_count = 0;
  int rows = 0;  // of the jobs that are not grouped
  bool low = false;
  // Of grouped jobs: int4 {expert, first row, count, 0} each; room for tile_limit tiles of
  // group_tile rows at most.
  const int4* tiles = nullptr;
  const int* tile_count = nullptr;
  int tile_limit = 0;
  int group_tile = 0;
  // The tiles were written before the launch ahead of this one began its own grouped jobs.
  bool tiles_settled = false;
};
// Jobs of one launch run side by side. rows == 0: nothing is done.
void Gemm(const GemmArgs& args, cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_GEMM_H_
