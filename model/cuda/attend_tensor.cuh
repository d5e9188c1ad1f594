// Attention on tensor cores, in tiles of kTile entries. Of each tile and head: scores s = q . k *
// scale, their maximum m, p = e^(s - m) as two BF16 (what the first leaves is the second), the sum
// of p and that of p v. Sums of tiles join in order into a group's, those of groups in order into
// the row's: always with the factors e^(m - maximum so far). So a tile needs nothing of the others,
// and where a row is split is a matter of speed alone:
//   TileKernel   a tile and 16 heads per block, whose sums go to memory: for few rows;
//   GroupKernel  a group and 64 heads at a time, whose sums go to memory if there are more groups;
//   JoinKernel   joins what went to memory.
#ifndef AGENTD_MODEL_CUDA_ATTEND_TENSOR_CUH_
#define AGENTD_MODEL_CUDA_ATTEND_TENSOR_CUH_

#include <limits>

#include "model/cuda/attend.cuh"

namespace agentd::model::cuda {

constexpr int kTile = 64;
constexpr int kGroupTiles = 10;  // of a group
constexpr int kGroupHeads = 64;  // of a block of GroupKernel
constexpr int kMaxChannels = 512;
// 16 bytes beyond a multiple of 128: the 8 rows of a matrix meet in no bank.
constexpr int kWeightStride = 2 * kTile + 16;

// Sums that lie in memory, of the rows of one launch, row i of them being row first_row + i.
struct Parts {
  int first_row = 0;
  int parts = 0;            // of a row: tiles or groups
  int groups = 0;           // of a row
  float* sums = nullptr;    // [rows][parts][heads][channels], of p v
  float2* stats = nullptr;  // [rows][parts][heads]: the maximum, and the sum of p
};

__device__ inline float NoScore() { return -std::numeric_limits<float>::infinity(); }

// e^x, x <= 0: about 2^-21 of it off near 0, 2^-17 where it is e^-80 (p is stored to 2^-17). A
// sixth of GroupKernel's time would go into ExpF32.
__device__ inline float Exp(float x) { return PowerOfTwoNear(x * 1.44269504f); }

// Scores of 16 heads and kEights * 8 entries, as lanes have them in a product, of which `scores`
// and `odd` have a part each; entries from `left` on do not exist. The maxima of heads g and g + 8.
template <int kEights>
__device__ inline void FinishScores(float scale, int left, const float (&odd)[kEights][4],
                                    float (&scores)[kEights][4], float (&largest)[2]) {
  const int lane = threadIdx.x % 32;
  largest[0] = largest[1] = NoScore();
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool exists = 8 * e + lane % 4 * 2 + i % 2 < left;
      scores[e][i] = exists ? (scores[e][i] + odd[e][i]) * scale : NoScore();
      largest[i / 2] = max(largest[i / 2], scores[e][i]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = max(largest[half], __shfl_xor_sync(0xFFFFFFFFu, largest[half], 1));
    largest[half] = max(largest[half], __shfl_xor_sync(0xFFFFFFFFu, largest[half], 2));
  }
}

// The p of scores as a product has them, as two BF16 to `weights` and `weights` + `second`, [16
// heads][kTile] beginning at the first entry; the sums of each eight.
template <int kEights>
__device__ inline void Weigh(const float (&scores)[kEights][4], const float (&largest)[2],
                             uint8_t* weights, int second, float (&sums)[kEights][2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float p0 = Exp(scores[e][2 * half] - largest[half]);
      const float p1 = Exp(scores[e][2 * half + 1] - largest[half]);
      const uint32_t high = PackBf16(p0, p1);
      uint8_t* place = weights + (8 * half + lane / 4) * kWeightStride + 16 * e + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(place) = high;
      *reinterpret_cast<uint32_t*>(place + second) =
          PackBf16(p0 - FirstBf16(high), p1 - SecondBf16(high));
      float sum = p0 + p1;
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
      sums[e][half] = sum;
    }
  }
}
__device__ inline float SumOfFour(float a, float b, float c, float d) { return (a + b) + (c + d); }

// What a maximum and a sum become, and what the sums of p v are multiplied by, when another joins.
struct Factors {
  float kept;
  float added;
};
__device__ inline Factors JoinStats(float* largest, float* sum, float2 other) {
  const float next = max(*largest, other.x);
  const Factors f = {Exp(*largest - next), Exp(other.x - next)};
  *largest = next;
  *sum = __fmaf_rn(*sum, f.kept, other.y * f.added);
  return f;
}
__device__ inline float JoinSums(float sum, float other, Factors f) {
  return __fmaf_rn(sum, f.kept, other * f.added);
}

// The sink joins; what the sums of p v are multiplied by at last.
__device__ inline float Quotient(float largest, float sum, float sink) {
  const float next = max(largest, sink);
  const float kept = Exp(largest - next);
  return kept * (1.0f / __fmaf_rn(sum, kept, Exp(sink - next)));
}

// Of a pair of rotary channels; of others, nothing.
struct Angle {
  float cosine = 1;
  float sine = 0;
};
__device__ inline Angle LoadAngle(const AttendArgs& a, int row, int channel) {
  const int plain = a.state.channels - a.state.rotary;
  if (channel < plain) return {};
  const int64_t at = int64_t(row) * (a.state.rotary / 2) + (channel - plain) / 2;
  return {a.cosine[at], -a.sine[at]};
}

// A pair of BF16 turned back.
__device__ inline uint32_t Turn(uint32_t pair, Angle angle) {
  const float first = FirstBf16(pair);
  const float second = SecondBf16(pair);
  return PackBf16(first * angle.cosine - second * angle.sine,
                  first * angle.sine + second * angle.cosine);
}

// Two neighbouring channels of the output.
__device__ inline uint32_t Finish(const AttendArgs& a, int channel, float x, float y,
                                  float quotient, Angle angle) {
  const uint32_t pair = PackBf16(x * quotient, y * quotient);
  return channel < a.state.channels - a.state.rotary ? pair : Turn(pair, angle);
}

// Rows [s.first_row, s.first_row + rows) by GroupKernel: kMaxChannels channels, heads in
// kGroupHeads.
void AttendGroups(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream);

// What TileKernel or GroupKernel left in memory.
void JoinTiles(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream);
void JoinGroups(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_ATTEND_TENSOR_CUH_
