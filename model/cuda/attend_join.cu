// The last step of attention on tensor cores where a row's sums lie in memory.
#include <algorithm>

#include "model/cuda/attend_tensor.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kJoinChannels = 128;  // of a block, 4 of a lane
constexpr int kJoinWarps = 8;       // at most, each with a group
constexpr int kFewParts = 4;
struct JoinShared {
  float4 sums[kJoinWarps][32];
  float2 stats[kJoinWarps];
};

__device__ inline void JoinSums(float4* sum, float4 other, Factors f) {
  sum->x = JoinSums(sum->x, other.x, f);
  sum->y = JoinSums(sum->y, other.y, f);
  sum->z = JoinSums(sum->z, other.z, f);
  sum->w = JoinSums(sum->w, other.w, f);
}

// One head. kPartsOfGroup: kGroupTiles where the parts are tiles (kFewParts where there are no
// more), 1 where they are groups.
// kBeside: with 64 registers a thread, its blocks of one row and few groups leave room beside them
// for those of the product that follows, whose weights are then on their way meanwhile.
template <int kPartsOfGroup, bool kBeside>
__global__ void __maxnreg__(kBeside ? (kPartsOfGroup <= kFewParts ? 40 : 64) : 128)
    JoinKernel(const __grid_constant__ AttendArgs a, const __grid_constant__ Parts s) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int channels = a.state.channels;
  const int slices = (channels + kJoinChannels - 1) / kJoinChannels;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
  const int head = blockIdx.x / slices;
  const int channel = blockIdx.x % slices * kJoinChannels + 4 * lane;
  const int in_batch = blockIdx.y;
  const int row = s.first_row + in_batch;
  auto* shared = SharedMemory<JoinShared>();
  const float sink = a.sinks[head];
  Angle angles[2];
  if (channel < channels) {
    angles[0] = LoadAngle(a, row, channel);
    angles[1] = LoadAngle(a, row, channel + 2);
  }
  float4 all = make_float4(0, 0, 0, 0);
  float largest = NoScore();
  float sum = 0;
  for (int base = 0; base < s.groups; base += warps) {
    // Loads of whatever may exist, before it is known what does.
    const int first = (base + warp) * kPartsOfGroup;
    const int upto = min(kPartsOfGroup, s.parts - first);
    const int64_t part = (int64_t(in_batch) * s.parts + first) * a.heads + head;
    float4 parts[kPartsOfGroup];
#pragma unroll
    for (int i = 0; i < kPartsOfGroup; ++i) {
      if (i < upto && channel < channels)
        parts[i] = *reinterpret_cast<const float4*>(
            s.sums + (part + int64_t(i) * a.heads) * channels + channel);
    }
    float2 stats = make_float2(0, 0);
    if (lane < upto) stats = s.stats[part + int64_t(lane) * a.heads];
    const int tiles = (ListEntries(a, row).count + kTile - 1) / kTile;
    constexpr int kTilesOfPart = kPartsOfGroup == 1 ? kGroupTiles : 1;
    const int existing = min(upto, (tiles + kTilesOfPart - 1) / kTilesOfPart - first);

    // Lane i finds the factors of part i.
    float upto_max = lane < existing ? stats.x : NoScore();
    for (int step = 1; step < kPartsOfGroup; step *= 2) {
      const float other = __shfl_up_sync(0xFFFFFFFFu, upto_max, step);
      if (lane >= step) upto_max = max(upto_max, other);
    }
    float before_max = __shfl_up_sync(0xFFFFFFFFu, upto_max, 1);
    if (lane == 0) before_max = NoScore();
    const Factors own = {Exp(before_max - upto_max), Exp(stats.x - upto_max)};
    float4 group = make_float4(0, 0, 0, 0);
    float group_sum = 0;
#pragma unroll
    for (int i = 0; i < kPartsOfGroup; ++i) {
      const Factors f = {__shfl_sync(0xFFFFFFFFu, own.kept, i),
                         __shfl_sync(0xFFFFFFFFu, own.added, i)};
      const float other = __shfl_sync(0xFFFFFFFFu, stats.y, i);
      if (i >= existing) continue;
      group_sum = __fmaf_rn(group_sum, f.kept, other * f.added);
      if (channel < channels) JoinSums(&group, parts[i], f);
    }
    shared->sums[warp][lane] = group;
    const float group_max = __shfl_sync(0xFFFFFFFFu, upto_max, kPartsOfGroup - 1);
    if (lane == 0) shared->stats[warp] = make_float2(group_max, group_sum);
    __syncthreads();
    if (warp == 0) {
      for (int w = 0; w < warps && (base + w) * kGroupTiles < tiles; ++w)
        JoinSums(&all, shared->sums[w][lane], JoinStats(&largest, &sum, shared->stats[w]));
    }
    if (base + warps < s.groups) __syncthreads();  // before the next ones take their places
  }
  if (warp != 0 || channel >= channels) return;
  const float quotient = Quotient(largest, sum, sink);
  const uint2 pairs = make_uint2(Finish(a, channel, all.x, all.y, quotient, angles[0]),
                                 Finish(a, channel + 2, all.z, all.w, quotient, angles[1]));
  auto* out = static_cast<uint16_t*>(a.out) + (int64_t(row) * a.heads + head) * channels + channel;
  *reinterpret_cast<uint2*>(out) = pairs;
}

template <int kPartsOfGroup>
void LaunchJoin(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream) {
  const int warps = int(DivideUp(s.groups, DivideUp(s.groups, kJoinWarps)));
  Launch(rows == 1 ? JoinKernel<kPartsOfGroup, true> : JoinKernel<kPartsOfGroup, false>,
         dim3(a.heads * DivideUp(a.state.channels, kJoinChannels), rows), dim3(32 * warps),
         sizeof(JoinShared), stream, a, s);
}

}  // namespace

void JoinTiles(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream) {
  if (rows == 1 && s.parts <= kFewParts) {
    LaunchJoin<kFewParts>(a, s, rows, stream);
  } else {
    LaunchJoin<kGroupTiles>(a, s, rows, stream);
  }
}

void JoinGroups(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream) {
  LaunchJoin<1>(a, s, rows, stream);
}

}  // namespace agentd::model::cuda
