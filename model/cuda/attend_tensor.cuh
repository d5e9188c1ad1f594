// Attention on tensor cores, in tiles of kTile entries. Of each tile and head: scores s = q . k *
// scale, their maximum m, p = e^(s - m) as two BF16 (what the first leaves is the second), the sum
// of p and that of p v. Sums of tiles join in order into a group's, those of groups in order into
// the row's: always with the factors e^(m - maximum so far). So a tile needs nothing of the others,
// and where a row is split is a matter of speed alone:
//   TileKernel   a tile and 16 heads per block, whose sums go to memory: for few rows;
//   GroupKernel  a group and 64 heads per block, whose sums go to memory if there are more groups;
//   JoinKernel   joins what went to memory.
#ifndef AGENTD_MODEL_CUDA_ATTEND_TENSOR_CUH_
#define AGENTD_MODEL_CUDA_ATTEND_TENSOR_CUH_

#include <limits>

#include "model/cuda/attend.cuh"

namespace agentd::model::cuda {

constexpr int kTile = 64;
constexpr int kGroupTiles = 10;  // of a group

// Sums that lie in memory, of the rows of one launch, row i of them being row first_row + i.
struct Parts {
  int first_row = 0;
  int parts = 0;            // of a row: tiles or groups
  int groups = 0;           // of a row
  float* sums = nullptr;    // [rows][parts][heads][channels], of p v
  float2* stats = nullptr;  // [rows][parts][heads]: the maximum, and the sum of p
};

__device__ inline float NoScore() { return -std::numeric_limits<float>::infinity(); }

// What a maximum and a sum become, and what the sums of p v are multiplied by, when another joins.
struct Factors {
  float kept;
  float added;
};
__device__ inline Factors JoinStats(float* largest, float* sum, float2 other) {
  const float next = max(*largest, other.x);
  const Factors f = {ExpF32(*largest - next), ExpF32(other.x - next)};
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
  const float kept = ExpF32(largest - next);
  return kept * (1.0f / __fmaf_rn(sum, kept, ExpF32(sink - next)));
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

// Two neighbouring channels of the output.
__device__ inline uint32_t Finish(const AttendArgs& a, int channel, float x, float y,
                                  float quotient, Angle angle) {
  const uint32_t pair = PackBf16(x * quotient, y * quotient);
  if (channel < a.state.channels - a.state.rotary) return pair;
  const float first = FirstBf16(pair);
  const float second = SecondBf16(pair);
  return PackBf16(first * angle.cosine - second * angle.sine,
                  first * angle.sine + second * angle.cosine);
}

// What TileKernel or GroupKernel left in memory.
void JoinTiles(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream);
void JoinGroups(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_ATTEND_TENSOR_CUH_
