// Weights into the order in which the product's lanes load them. Layouts: gemm.h.
#include <cuda_bf16.h>

#include <cmath>

#include "model/cuda/gemm.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 256;

__host__ __device__ int64_t Up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int PieceBytes(MatrixType type) {  // of 16 rows x 64 columns
  return type == MatrixType::kBf16 ? 2048 : type == MatrixType::kFp8 ? 1024 : 512;
}

// Row and column within 16 x 16 of element `half` (0 or 1) of a lane's register `i` (0..3).
__device__ int RowOf(int lane, int i) { return lane / 4 + 8 * (i & 1); }
__device__ int ColumnOf(int lane, int i, int half) { return lane % 4 * 2 + 8 * (i >> 1) + half; }

struct Source {
  const void* data;
  int rows;
  int columns;
};

__device__ uint32_t Bf16At(const Source& s, int row, int column) {
  if (row >= s.rows || column >= s.columns) return 0;
  return static_cast<const uint16_t*>(s.data)[int64_t(row) * s.columns + column];
}
__device__ uint32_t Fp8At(const Source& s, int row, int column) {
  if (row >= s.rows || column >= s.columns) return 0;
  return static_cast<const uint8_t*>(s.data)[int64_t(row) * s.columns + column];
}
__device__ uint32_t Fp4At(const Source& s, int row, int column) {
  if (row >= s.rows || column >= s.columns) return 0;
  const uint8_t two =
      static_cast<const uint8_t*>(s.data)[int64_t(row) * (s.columns / 2) + column / 2];
  return two >> (column % 2 * 4) & 15;
}

// A lane's word of k16 step `step` (of 4) of an m16 x k64 piece. BF16: register i. FP8: registers
// 2i and 2i+1, in each half the first's sign in bit 15 and magnitude in bits 4..10, where BF16 has
// them; of the second, in what is left, the sign in bit 11 and the magnitude's bits 0..3 in bits
// 0..3, 4..6 in bits 12..14. FP4: all four registers: signs of register 0..3 in bits 14, 12, 15, 13
// of each half, magnitudes in bits 3i..3i+2. So that few instructions take them apart.
__device__ uint32_t Bf16Word(const Source& s, int row, int column, int lane, int i) {
  const int r = row + RowOf(lane, i);
  return Bf16At(s, r, column + ColumnOf(lane, i, 0)) | Bf16At(s, r, column + ColumnOf(lane, i, 1))
                                                           << 16;
}
__device__ uint32_t Fp8Word(const Source& s, int row, int column, int lane, int i) {
  uint32_t word = 0;
  for (int odd = 0; odd < 2; ++odd) {
    const int reg = 2 * i + odd;
    for (int half = 0; half < 2; ++half) {
      const uint32_t code = Fp8At(s, row + RowOf(lane, reg), column + ColumnOf(lane, reg, half));
      const uint32_t placed = odd == 0 ? (code >> 7) << 15 | (code & 127) << 4
                                       : (code >> 7) << 11 | (code & 15) | (code >> 4 & 7) << 12;
      word |= placed << (16 * half);
    }
  }
  return word;
}
__device__ uint32_t Fp4Word(const Source& s, int row, int column, int lane) {
  constexpr int kSignBit[4] = {14, 12, 15, 13};
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    for (int half = 0; half < 2; ++half) {
      const uint32_t code = Fp4At(s, row + RowOf(lane, i), column + ColumnOf(lane, i, half));
      word |= (code >> 3) << (kSignBit[i] + 16 * half) | (code & 7) << (3 * i + 16 * half);
    }
  }
  return word;
}

__global__ void __launch_bounds__(kThreads)
    PackKernel(MatrixType type, Source source, int64_t words, uint32_t* out) {
  const int steps = int(Up(source.columns, 64));
  const int per_piece = type == MatrixType::kBf16 ? 512 : type == MatrixType::kFp8 ? 256 : 128;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < words;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t piece = i / per_piece;
    const int within = int(i % per_piece);
    const int row = int(piece / 4 / steps) * 64 + int(piece % 4) * 16;
    const int column = int(piece / 4 % steps) * 64;
    const int part = within / 128;      // 16-byte piece
    const int lane = within % 128 / 4;  // of the warp
    const int word = within % 4;
    if (type == MatrixType::kBf16) {
      out[i] = Bf16Word(source, row, column + part * 16, lane, word);
    } else if (type == MatrixType::kFp8) {
      out[i] = Fp8Word(source, row, column + part * 32 + word / 2 * 16, lane, word % 2);
    } else {
      out[i] = Fp4Word(source, row, column + word * 16, lane);
    }
  }
}

// The biased exponent of a scale as BF16 multiplier: 2^(s - shift) times what the code's bits in a
// BF16 lack (2^120 of E4M3, 2^126 of E2M1).
__device__ uint8_t Multiplier(MatrixType type, int byte, int top) {
  const int bias = type == MatrixType::kFp8 ? 120 : 126;
  const int limit = type == MatrixType::kFp8 ? kFp8TopExponent : kFp4TopExponent;
  const int shift = max(0, top - 127 - limit);
  return uint8_t(byte - 127 - shift + bias + 127);
}

__global__ void __launch_bounds__(kThreads) PackScalesKernel(PackArgs a, int64_t bytes) {
  const bool fp8 = a.type == MatrixType::kFp8;
  const int group = fp8 ? 128 : 32;
  const int per_unit = fp8 ? 64 : 128;  // bytes of 16 rows and 512 or 256 columns
  const int unit_columns = fp8 ? 512 : 256;
  const int units = int(Up(a.columns, unit_columns));
  const int stride = int(Up(a.columns, group));
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < bytes;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t unit = i / per_unit;
    const int within = int(i % per_unit);
    const int g = within / (per_unit / 8);
    const int at = within % (per_unit / 8);
    int row = int(unit / 4 / units) * 64 + int(unit % 4) * 16 + g;
    int column = int(unit / 4 % units) * unit_columns;
    if (fp8) {
      row += at % 2 * 8;
      column += at / 2 * 128;
    } else {
      row += at % 4 / 2 * 8;
      column += at / 4 * 64 + at % 2 * 32;
    }
    uint8_t out = 0;  // of padding: its codes are zeros
    if (row < a.rows && column < a.columns) {
      const int64_t from = fp8 ? int64_t((a.scale_row + row) / 128) * stride + column / 128
                               : int64_t(row) * stride + column / 32;
      out = Multiplier(a.type, a.from_scales[from], a.top);
    }
    a.scales[i] = out;
  }
}

// splitmix64: every word of a matrix from its number alone.
__device__ uint64_t Mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Codes are drawn so that no value is a NaN and magnitudes stay about 1: E4M3 of exponents 4..7,
// any E2M1, BF16 and F32 of +-[0.5, 2).
__global__ void __launch_bounds__(kThreads)
    RandomKernel(MatrixType type, int64_t words, uint64_t seed, float magnitude, uint32_t* out) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < words;
       i += int64_t(gridDim.x) * kThreads) {
    const auto bits = uint32_t(Mixed(seed ^ uint64_t(i) * 0x2545F4914F6CDD1Dull) >> 16);
    uint32_t word = bits;
    if (type == MatrixType::kFp8) word = (bits & 0x99FF99FFu) | 0x22002200u;
    if (type == MatrixType::kBf16) {
      const float low = (float(bits & 0xFFFF) / 32768.0f - 1) * magnitude;
      const float high = (float(bits >> 16) / 32768.0f - 1) * magnitude;
      const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
      word = *reinterpret_cast<const uint32_t*>(&pair);
    } else if (type == MatrixType::kF32) {
      word = __float_as_uint((float(bits) / 2147483648.0f - 1) * magnitude);
    }
    out[i] = word;
  }
}

unsigned Blocks(int64_t items) { return unsigned(std::min<int64_t>(Up(items, kThreads), 16384)); }

}  // namespace

int64_t MatrixBytes(MatrixType type, bool plain, int rows, int columns) {
  if (plain || type == MatrixType::kF32) {
    return int64_t(rows) * columns * (type == MatrixType::kF32 ? 4 : 2);
  }
  return Up(rows, 64) * 4 * Up(columns, 64) * PieceBytes(type);
}

int64_t ScaleBytes(MatrixType type, int rows, int columns) {
  if (type == MatrixType::kFp8) return Up(rows, 64) * 4 * Up(columns, 512) * 64;
  if (type == MatrixType::kFp4) return Up(rows, 64) * 4 * Up(columns, 256) * 128;
  return 0;
}

float ScaleFactor(MatrixType type, int top) {
  const int limit = type == MatrixType::kFp8 ? kFp8TopExponent : kFp4TopExponent;
  return std::ldexp(1.0f, std::max(0, top - 127 - limit));
}

void Pack(const PackArgs& args, cudaStream_t stream) {
  const int64_t words = MatrixBytes(args.type, false, args.rows, args.columns) / 4;
  LaunchAlone(PackKernel, Blocks(words), kThreads, stream, args.type,
              Source{args.from, args.rows, args.columns}, words, static_cast<uint32_t*>(args.data));
  const int64_t scales = ScaleBytes(args.type, args.rows, args.columns);
  if (scales > 0) LaunchAlone(PackScalesKernel, Blocks(scales), kThreads, stream, args, scales);
}

void PackRandom(MatrixType type, bool plain, int rows, int columns, uint64_t seed, float magnitude,
                void* data, uint8_t* scales, cudaStream_t stream) {
  const int64_t words = MatrixBytes(type, plain, rows, columns) / 4;
  LaunchAlone(RandomKernel, Blocks(words), kThreads, stream, type, words, seed, magnitude,
              static_cast<uint32_t*>(data));
  const int64_t bytes = ScaleBytes(type, rows, columns);
  if (bytes > 0) {
    const int exponent = int(std::floor(std::log2(magnitude)));
    const int bias = type == MatrixType::kFp8 ? 247 : 253;
    cudaMemsetAsync(scales, bias + exponent, size_t(bytes), stream);
  }
}

}  // namespace agentd::model::cuda
