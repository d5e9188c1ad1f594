// Attention on tensor cores, in tiles of kTile entries. Of each tile and head: scores s = q . k *
// scale, their maximum m, p = e^(s - m) as two BF16 (what the first leaves is the second), the sum
// of p and that of p v. Sums of tiles join in order into a group's, those of groups in order into
// the row's: always with the factors e^(m - maximum so far). So a tile needs nothing of the others,
// and where a row is split is a matter of speed alone:
//   TileKernel   a tile and 16 heads per block, whose sums go to memory: for few rows;
//   GroupKernel  a group and 64 heads per block, whose sums go to memory if there are more groups;
//   JoinKernel   joins what went to memory.
// Entries are gathered by address and decoded to BF16 in shared memory, exactly.
#include <algorithm>
#include <limits>

#include "model/cuda/attend.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 64;
constexpr int kGroupTiles = 10;  // of a group
constexpr int kMaxChannels = 512;
constexpr int kMaxRows = 32768;
// 16 bytes beyond a multiple of 128: the 8 rows of a matrix meet in no bank.
constexpr int kStride = 2 * kMaxChannels + 16;
constexpr int kWeightStride = 2 * kTile + 16;
// A stored entry of GroupKernel.
constexpr int kStoredBytes = 592;

// Sums that lie in memory, of the rows of one launch, row i of them being row first_row + i.
struct Parts {
  int first_row = 0;
  int parts = 0;              // of a row: tiles or groups
  int groups = 0;             // of a row
  float* sums = nullptr;      // [rows][parts][heads][channels], of p v
  float2* stats = nullptr;    // [rows][parts][heads]: the maximum, and the sum of p
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

// Two neighbouring channels of the output.
__device__ inline uint32_t Finish(const AttendArgs& a, int row, int channel, float x, float y,
                                  float quotient) {
  uint32_t pair = PackBf16(x * quotient, y * quotient);
  const int plain = a.state.channels - a.state.rotary;
  if (channel >= plain) {
    const int64_t at = int64_t(row) * (a.state.rotary / 2) + (channel - plain) / 2;
    const float cosine = a.cosine[at];
    const float sine = -a.sine[at];
    const float first = FirstBf16(pair);
    const float second = SecondBf16(pair);
    pair = PackBf16(first * cosine - second * sine, first * sine + second * cosine);
  }
  return pair;
}

// `heads` heads of a row's query to shared memory.
__device__ inline void FetchQuery(const AttendArgs& a, int row, int head, int heads,
                                  uint8_t* query) {
  const int pieces = a.state.channels / 8;
  const auto* q =
      static_cast<const uint16_t*>(a.q) + (int64_t(row) * a.heads + head) * a.state.channels;
  for (int i = threadIdx.x; i < heads * pieces; i += kThreads)
    CopyAsync(query + i / pieces * kStride + i % pieces * 16, q + 8 * i);
}

// Scores of a warp's 16 heads and kEights * 8 entries, those from `left` on not existing, as lanes
// have them in a product; the maxima of heads g and g + 8.
template <int kEights>
__device__ inline void Scores(const AttendArgs& a, const uint8_t* query, const uint8_t* keys,
                              int left, float (&scores)[kEights][4], float (&largest)[2]) {
  const int lane = threadIdx.x % 32;
  query += lane % 16 * kStride + lane / 16 * 16;
  keys += lane % 8 * kStride + lane / 8 * 16;
  float odd[kEights][4] = {};
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[e][i] = 0;
  }
  const int chunks = a.state.channels / 32;
#pragma unroll(kEights == 1 ? 8 : 2)
  for (int chunk = 0; chunk < chunks; ++chunk) {
    uint32_t q[2][4];
    LoadMatrices(q[0], query + 64 * chunk);
    LoadMatrices(q[1], query + 64 * chunk + 32);
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      uint32_t k[4];
      LoadMatrices(k, keys + 8 * e * kStride + 64 * chunk);
      MultiplyAdd(scores[e], q[0], k[0], k[1]);
      MultiplyAdd(odd[e], q[1], k[2], k[3]);
    }
  }
  largest[0] = largest[1] = NoScore();
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool exists = 8 * e + lane % 4 * 2 + i % 2 < left;
      scores[e][i] = exists ? (scores[e][i] + odd[e][i]) * a.scale : NoScore();
      largest[i / 2] = max(largest[i / 2], scores[e][i]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = max(largest[half], __shfl_xor_sync(0xFFFFFFFFu, largest[half], 1));
    largest[half] = max(largest[half], __shfl_xor_sync(0xFFFFFFFFu, largest[half], 2));
  }
}

// Their p, as two BF16 to `weights` and `weights` + `second`, [16 heads][kTile] beginning at the
// first entry; the sums of each eight.
template <int kEights>
__device__ inline void Weigh(const float (&scores)[kEights][4], const float (&largest)[2],
                             uint8_t* weights, int second, float (&sums)[kEights][2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float p0 = ExpF32(scores[e][2 * half] - largest[half]);
      const float p1 = ExpF32(scores[e][2 * half + 1] - largest[half]);
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
__device__ inline float SumOfFour(float a, float b, float c, float d) {
  return (a + b) + (c + d);
}

// Adds p v of 32 entries and 8 channels; p [part][16 entries].
__device__ inline void AddValues(float (&sums)[4], const uint32_t (&p)[2][2][4],
                                 const uint32_t (&v)[4]) {
  MultiplyAdd(sums, p[0][0], v[0], v[1]);
  MultiplyAdd(sums, p[1][0], v[0], v[1]);
  MultiplyAdd(sums, p[0][1], v[2], v[3]);
  MultiplyAdd(sums, p[1][1], v[2], v[3]);
}

struct TileShared {
  alignas(128) uint8_t query[16 * kStride];
  alignas(128) uint8_t keys[kTile * kStride];
  alignas(128) uint8_t weights[2][16 * kWeightStride];
  const uint8_t* entries[kTile];
  float max[kWarps][16];
  float sum[kWarps][16];
  float largest[16];
};

__global__ void __launch_bounds__(kThreads, 2)
    TileKernel(const __grid_constant__ AttendArgs a, const __grid_constant__ Parts s) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int in_batch = blockIdx.z;
  const int row = s.first_row + in_batch;
  const int head = 16 * blockIdx.x;  // the first
  const int begin = kTile * blockIdx.y;
  const int tid = threadIdx.x;
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int channels = a.state.channels;
  auto* shared = SharedMemory<TileShared>();
  // The selected entry, if the window is a whole one: under way while that is found out.
  int chosen = 0;
  const int guess = begin + tid - a.state.window;
  if (tid < kTile && a.kind == EntryKind::kCsa && guess >= 0 && guess < a.topk)
    chosen = a.selected[int64_t(row) * a.topk + guess];
  FetchQuery(a, row, head, 16, shared->query);
  CopyAsyncCommit();
  const EntryList list = ListEntries(a, row);
  if (begin >= list.count) {
    CopyAsyncWait<0>();
    return;
  }
  if (tid < kTile) {
    const int i = begin + tid;
    const uint8_t* entry = nullptr;
    if (i < list.count) {
      entry = list.window == a.state.window ? EntryAt(a, list, i, chosen) : EntryAt(a, list, i);
    }
    shared->entries[tid] = entry;
  }
  __syncthreads();

  {  // Each warp takes 8 entries, all loads under way at once.
    StoredUnit stored[2][8];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int unit = lane + 32 * j;
      if (unit >= channels / 8) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        stored[j][i] = LoadUnit(a.state, shared->entries[8 * warp + i], unit);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int unit = lane + 32 * j;
      if (unit >= channels / 8) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        *reinterpret_cast<uint4*>(shared->keys + (8 * warp + i) * kStride + 16 * unit) =
            DecodeUnit(a.state, stored[j][i], unit);
      }
    }
  }
  CopyAsyncWait<0>();
  __syncthreads();

  const int g = lane / 4;
  float scores[1][4];
  float largest[2];
  Scores(a, shared->query, shared->keys + 8 * warp * kStride, list.count - begin - 8 * warp, scores,
         largest);
  if (lane % 4 == 0) {
    shared->max[warp][g] = largest[0];
    shared->max[warp][g + 8] = largest[1];
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    largest[0] = max(largest[0], shared->max[w][g]);
    largest[1] = max(largest[1], shared->max[w][g + 8]);
  }
  float sums[1][2];
  Weigh(scores, largest, shared->weights[0] + 16 * warp, 16 * kWeightStride, sums);
  if (lane % 4 == 0) {
    shared->sum[warp][g] = sums[0][0];
    shared->sum[warp][g + 8] = sums[0][1];
    if (warp == 0) shared->largest[g] = largest[0];
    if (warp == 0) shared->largest[g + 8] = largest[1];
  }
  __syncthreads();

  const int64_t part = (int64_t(in_batch) * s.parts + blockIdx.y) * a.heads + head;
  if (tid < 16) {
    auto sum = [&](int w) { return shared->sum[w][tid]; };
    s.stats[part + tid] =
        make_float2(shared->largest[tid], SumOfFour(sum(0), sum(1), sum(2), sum(3)) +
                                              SumOfFour(sum(4), sum(5), sum(6), sum(7)));
  }
  const int eights = channels / 64;  // of channels, of a warp
  const uint8_t* weights = shared->weights[0] + lane % 16 * kWeightStride + lane / 16 * 16;
  const uint8_t* values = shared->keys + lane * kStride + 16 * eights * warp;
  float products[8][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t p[2][2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      LoadMatrices(p[i][0], weights + i * 16 * kWeightStride + 64 * half);
      LoadMatrices(p[i][1], weights + i * 16 * kWeightStride + 64 * half + 32);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (e >= eights) break;
      uint32_t v[4];
      LoadMatricesTransposed(v, values + 32 * half * kStride + 16 * e);
      AddValues(products[e], p, v);
    }
  }
  float* out = s.sums + (part + g) * channels + 8 * eights * warp + lane % 4 * 2;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e >= eights) break;
    *reinterpret_cast<float2*>(out + 8 * e) = make_float2(products[e][0], products[e][1]);
    *reinterpret_cast<float2*>(out + 8 * channels + 8 * e) =
        make_float2(products[e][2], products[e][3]);
  }
}

constexpr int kGroupHeads = 64;
struct GroupShared {
  alignas(128) uint8_t query[kGroupHeads * kStride];
  alignas(128) uint8_t keys[kTile * kStride];
  alignas(128) uint8_t weights[2][kGroupHeads * kWeightStride];
  alignas(128) uint8_t stored[kTile * kStoredBytes];
  const uint8_t* entries[kGroupTiles * kTile];
  float max[2][kGroupHeads];
  float sum[2][kGroupHeads];
};

// Warps are 4 over heads by 2, over a tile's entries in scores and over channels in values. The
// next tile's entries are under way while one is worked on.
__global__ void __launch_bounds__(kThreads, 1)
    GroupKernel(const __grid_constant__ AttendArgs a, const __grid_constant__ Parts s) {
  constexpr int kEights = kMaxChannels / 2 / 8;  // of channels, of a warp
  GridDependencyLaunch();
  GridDependencyWait();
  const int in_batch = blockIdx.z;
  const int row = s.first_row + in_batch;
  const EntryList list = ListEntries(a, row);
  const int begin = kGroupTiles * kTile * blockIdx.y;
  if (begin >= list.count) return;
  const int count = min(kGroupTiles * kTile, list.count - begin);
  const int first_head = kGroupHeads * blockIdx.x;
  const int tid = threadIdx.x;
  const int lane = tid % 32;
  const int half = tid / 128;
  const int in_block = tid / 32 % 4 * 16;  // the warp's first head
  const int g = lane / 4;
  auto* shared = SharedMemory<GroupShared>();
  FetchQuery(a, row, first_head, kGroupHeads, shared->query);
  const int tiles = (count + kTile - 1) / kTile;
  for (int i = tid; i < tiles * kTile; i += kThreads)
    shared->entries[i] = i < count ? EntryAt(a, list, begin + i) : nullptr;
  __syncthreads();

  const int words = a.state.entry_bytes / 8;
  auto fetch = [&](int tile) {
#pragma unroll 4
    for (int entry = tid / 64; entry < kTile; entry += kThreads / 64) {
      const uint8_t* from = shared->entries[tile * kTile + entry];
      const bool exists = from != nullptr;
      if (!exists) from = static_cast<const uint8_t*>(a.q);
      for (int word = tid % 64; word < words; word += 64)
        CopyAsyncOrZero(shared->stored + entry * kStoredBytes + 8 * word, from + 8 * word, exists);
    }
    CopyAsyncCommit();
  };
  fetch(0);

  float out[kEights][4] = {};
  float run_max[2] = {NoScore(), NoScore()};  // of heads g and g + 8
  float run_sum[2] = {0, 0};
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    CopyAsyncWait<0>();
    __syncthreads();
#pragma unroll 4
    for (int entry = tid / 64; entry < kTile; entry += kThreads / 64) {
      const int unit = tid % 64;
      const StoredUnit x = LoadUnit(a.state, shared->stored + entry * kStoredBytes, unit);
      *reinterpret_cast<uint4*>(shared->keys + entry * kStride + 16 * unit) =
          DecodeUnit(a.state, x, unit);
    }
    __syncthreads();
    if (tile + 1 < tiles) fetch(tile + 1);

    float2 stats[2];
    {
      float scores[4][4];
      float largest[2];
      Scores(a, shared->query + in_block * kStride, shared->keys + 32 * half * kStride,
             count - tile * kTile - 32 * half, scores, largest);
      if (lane % 4 == 0) {
        shared->max[half][in_block + g] = largest[0];
        shared->max[half][in_block + g + 8] = largest[1];
      }
      __syncthreads();
      largest[0] = max(largest[0], shared->max[1 - half][in_block + g]);
      largest[1] = max(largest[1], shared->max[1 - half][in_block + g + 8]);
      float sums[4][2];
      Weigh(scores, largest, shared->weights[0] + in_block * kWeightStride + 64 * half,
            kGroupHeads * kWeightStride, sums);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        stats[i].x = largest[i];
        stats[i].y = SumOfFour(sums[0][i], sums[1][i], sums[2][i], sums[3][i]);
        if (lane % 4 == 0) shared->sum[half][in_block + g + 8 * i] = stats[i].y;
      }
      __syncthreads();
    }
    Factors factors[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      stats[i].y += shared->sum[1 - half][in_block + g + 8 * i];
      factors[i] = JoinStats(&run_max[i], &run_sum[i], stats[i]);
    }

    uint32_t p[2][2][2][4];  // [half of the entries][part][16 entries]
    const uint8_t* weights =
        shared->weights[0] + (in_block + lane % 16) * kWeightStride + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      LoadMatrices(p[i / 4][i / 2 % 2][i % 2],
                   weights + i / 2 % 2 * kGroupHeads * kWeightStride + i / 4 * 64 + i % 2 * 32);
    }
    const uint8_t* values = shared->keys + lane * kStride + kMaxChannels * half;
    constexpr int kAtOnce = 4;
#pragma unroll
    for (int base = 0; base < kEights; base += kAtOnce) {
      float products[kAtOnce][4] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t v[kAtOnce][4];
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e)
          LoadMatricesTransposed(v[e], values + 32 * h * kStride + 16 * (base + e));
#pragma unroll
        for (int step = 0; step < 4; ++step) {  // AddValues, of several at a time
#pragma unroll
          for (int e = 0; e < kAtOnce; ++e)
            MultiplyAdd(products[e], p[h][step % 2][step / 2], v[e][step / 2 * 2],
                        v[e][step / 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          out[base + e][i] = JoinSums(out[base + e][i], products[e][i], factors[i / 2]);
      }
    }
  }

  const int channel = kMaxChannels / 2 * half + lane % 4 * 2;
  if (s.groups > 1) {
    const int64_t part =
        (int64_t(in_batch) * s.parts + blockIdx.y) * a.heads + first_head + in_block + g;
    if (half == 0 && lane % 4 == 0) {
      s.stats[part] = make_float2(run_max[0], run_sum[0]);
      s.stats[part + 8] = make_float2(run_max[1], run_sum[1]);
    }
    float* to = s.sums + part * kMaxChannels + channel;
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      *reinterpret_cast<float2*>(to + 8 * e) = make_float2(out[e][0], out[e][1]);
      *reinterpret_cast<float2*>(to + 8 * kMaxChannels + 8 * e) = make_float2(out[e][2], out[e][3]);
    }
    return;
  }
  // Each warp writes over the query of its heads, whose other half has been used since the last
  // barrier.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = in_block + g + 8 * i;
    const float quotient = Quotient(run_max[i], run_sum[i], a.sinks[first_head + head]);
    uint8_t* place = shared->query + head * kStride + 2 * channel;
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      *reinterpret_cast<uint32_t*>(place + 16 * e) =
          Finish(a, row, channel + 8 * e, out[e][2 * i], out[e][2 * i + 1], quotient);
    }
  }
  __syncthreads();
  auto* to = static_cast<uint4*>(a.out) + (int64_t(row) * a.heads + first_head) * kMaxChannels / 8;
#pragma unroll 4
  for (int i = tid; i < kGroupHeads * kMaxChannels / 8; i += kThreads) {
    to[i] = *reinterpret_cast<const uint4*>(shared->query + i / (kMaxChannels / 8) * kStride +
                                            i % (kMaxChannels / 8) * 16);
  }
}

constexpr int kJoinChannels = 128;  // of a block, 4 of a lane
constexpr int kJoinWarps = 16;      // each with a group
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

// One head. kPartsOfGroup: kGroupTiles where the parts are tiles, 1 where they are groups.
template <int kPartsOfGroup>
__global__ void __launch_bounds__(32 * kJoinWarps)
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
        parts[i] = *reinterpret_cast<const float4*>(s.sums + (part + int64_t(i) * a.heads) * channels +
                                                    channel);
    }
    float2 stats = make_float2(0, 0);
    if (lane < upto) stats = s.stats[part + int64_t(lane) * a.heads];
    const int tiles = (ListEntries(a, row).count + kTile - 1) / kTile;
    constexpr int kTilesOfPart = kGroupTiles / kPartsOfGroup;
    const int existing = min(upto, (tiles + kTilesOfPart - 1) / kTilesOfPart - first);

    // Lane i finds the factors of part i.
    float upto_max = lane < existing ? stats.x : NoScore();
    for (int step = 1; step < kPartsOfGroup; step *= 2) {
      const float other = __shfl_up_sync(0xFFFFFFFFu, upto_max, step);
      if (lane >= step) upto_max = max(upto_max, other);
    }
    float before_max = __shfl_up_sync(0xFFFFFFFFu, upto_max, 1);
    if (lane == 0) before_max = NoScore();
    const Factors own = {ExpF32(before_max - upto_max), ExpF32(stats.x - upto_max)};
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
  const uint2 pairs = make_uint2(Finish(a, row, channel, all.x, all.y, quotient),
                                 Finish(a, row, channel + 2, all.z, all.w, quotient));
  auto* out =
      static_cast<uint16_t*>(a.out) + (int64_t(row) * a.heads + head) * channels + channel;
  *reinterpret_cast<uint2*>(out) = pairs;
}

int Tiles(int max_entries) { return int(DivideUp(std::max(max_entries, 1), kTile)); }

int64_t PartBytes(int heads, int channels) {
  return int64_t(heads) * (channels * int64_t(sizeof(float)) + int64_t(sizeof(float2)));
}

// Whether rows are better done in groups. In microseconds, as measured with 64 heads of 512
// channels: what matters is where the two meet.
bool InGroups(const AttendArgs& a, int tiles) {
  if (a.state.channels != kMaxChannels || a.heads % kGroupHeads != 0 ||
      a.state.entry_bytes > kStoredBytes)
    return false;
  const int64_t rows = a.row_end - a.row_begin;
  const int64_t by_tile = 7 * DivideUp(rows * tiles * (a.heads / 16), 2 * 132) +
                          rows * tiles * PartBytes(a.heads, a.state.channels) / 1500000;
  const int64_t by_group =
      5 * std::min(tiles, kGroupTiles) *
      DivideUp(rows * DivideUp(tiles, kGroupTiles) * (a.heads / kGroupHeads), 132);
  return by_group < by_tile;
}

template <int kPartsOfGroup>
void LaunchJoin(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream) {
  Launch(JoinKernel<kPartsOfGroup>,
         dim3(a.heads * DivideUp(a.state.channels, kJoinChannels), rows),
         dim3(32 * std::min(s.groups, kJoinWarps)), sizeof(JoinShared), stream, a, s);
}

}  // namespace

bool OnTensorCores(const AttendArgs& a) {
  const StateShape& s = a.state;
  return s.low && s.channels % 64 == 0 && s.channels <= kMaxChannels && s.rotary % 16 == 0 &&
         a.heads % 16 == 0;
}

int64_t TensorRowBytes(int heads, int channels, int max_entries) {
  return Tiles(max_entries) * PartBytes(heads, channels);
}

void TensorAttend(const AttendArgs& a, cudaStream_t stream) {
  const int tiles = Tiles(a.max_entries);
  const bool in_groups = InGroups(a, tiles);
  Parts s;
  s.groups = int(DivideUp(tiles, kGroupTiles));
  s.parts = in_groups ? s.groups : tiles;
  const bool whole = in_groups && s.groups == 1;
  const int64_t fit =
      kScratchBytes / (s.parts * PartBytes(a.heads, a.state.channels));
  const int batch = whole ? kMaxRows : int(std::clamp<int64_t>(fit, 1, kMaxRows));
  RaiseSharedMemory<TileKernel>();
  RaiseSharedMemory<GroupKernel>();
  for (int first = a.row_begin; first < a.row_end; first += batch) {
    const int rows = std::min(batch, a.row_end - first);
    s.first_row = first;
    s.sums = static_cast<float*>(a.scratch);
    s.stats = reinterpret_cast<float2*>(s.sums + int64_t(rows) * s.parts * a.heads *
                                                     a.state.channels);
    if (in_groups) {
      Launch(GroupKernel, dim3(a.heads / kGroupHeads, s.groups, rows), dim3(kThreads),
             sizeof(GroupShared), stream, a, s);
      if (!whole) LaunchJoin<1>(a, s, rows, stream);
    } else {
      Launch(TileKernel, dim3(a.heads / 16, tiles, rows), dim3(kThreads), sizeof(TileShared),
             stream, a, s);
      LaunchJoin<kGroupTiles>(a, s, rows, stream);
    }
  }
}

}  // namespace agentd::model::cuda
