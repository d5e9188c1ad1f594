// Attention's scores and values on tensor cores: entries are gathered by address and decoded to
// BF16 in shared memory, exactly.
#include <algorithm>
#include <limits>

#include "model/cuda/attend.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeadBlock = 64;  // heads of a block of the scores' kernel
// Enough blocks that more of them, each doing less, would not use more SMs.
constexpr int kEnoughBlocks = 200;

// Scores of 16 * kTiles entries with 64 heads: warps 4 over heads by 2 over entries, kTiles tiles
// of 8 entries each. Products run over channels in an order that needs no matrix loads: of 32
// channels lane 4g + t has the 8 from 8t on, of the query (row g) as of the key (column g).
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 2)
    ScoresKernel(const __grid_constant__ AttendArgs a,
                 const __grid_constant__ AttendScratchView s) {
  constexpr int kEntries = 16 * kTiles;
  constexpr int kPerWarp = kEntries / 8;  // entries that a warp gathers
  constexpr int kAhead = 4;               // query loads under way, of 32 channels
  struct Shared {
    const uint8_t* entries[kEntries];
    float max[2][kHeadBlock];
    alignas(128) uint8_t keys[1];  // [kEntries][stride]
  };
  GridDependencyLaunch();
  GridDependencyWait();
  const EntryList list = ListEntries(a, s.first_row + blockIdx.y);
  const int begin = blockIdx.x * kEntries;
  if (begin >= list.count) return;
  const int channels = a.state.channels;
  // 64 bytes beyond a multiple of 128: loads of two keys' 64 bytes meet in no bank.
  const int stride = 2 * channels + 64;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  auto* shared = SharedMemory<Shared>();
  if (threadIdx.x < kEntries) {
    const int i = begin + threadIdx.x;
    shared->entries[threadIdx.x] = i < list.count ? EntryAt(a, list, i) : nullptr;
  }

  const int in_block = warp % 4 * 16;
  const int half = warp / 4;
  const int head = blockIdx.z * kHeadBlock + in_block;  // the first of 16
  const bool active = head < a.heads;
  const uint16_t* q = static_cast<const uint16_t*>(a.q) +
                      (int64_t(list.row) * a.heads + (active ? head + g : 0)) * channels + 8 * t;
  const int chunks = channels / 32;
  uint4 query[kAhead][2];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i >= chunks) break;
    query[i][0] = *reinterpret_cast<const uint4*>(q + 32 * i);
    query[i][1] = *reinterpret_cast<const uint4*>(q + (active ? 8 * channels : 0) + 32 * i);
  }
  __syncthreads();

  for (int unit = lane; unit < channels / 8; unit += 32) {
    StoredUnit stored[kPerWarp];
#pragma unroll
    for (int i = 0; i < kPerWarp; ++i)
      stored[i] = LoadUnit(a.state, shared->entries[8 * i + warp], unit);
#pragma unroll
    for (int i = 0; i < kPerWarp; ++i) {
      *reinterpret_cast<uint4*>(shared->keys + (8 * i + warp) * stride + 16 * unit) =
          DecodeUnit(a.state, stored[i], unit);
    }
  }
  __syncthreads();

  const int first = half * 8 * kTiles;  // entry of the tile
  float largest[2] = {-std::numeric_limits<float>::infinity(),
                      -std::numeric_limits<float>::infinity()};
  if (active) {
    float dots[kTiles][4] = {};
    const uint8_t* keys = shared->keys + (first + g) * stride + 16 * t;
    for (int base = 0; base < chunks; base += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int chunk = base + i;
        if (chunk >= chunks) break;
        const uint4 x = query[i][0];
        const uint4 y = query[i][1];
        if (chunk + kAhead < chunks) {
          query[i][0] = *reinterpret_cast<const uint4*>(q + 32 * (chunk + kAhead));
          query[i][1] = *reinterpret_cast<const uint4*>(q + 8 * channels + 32 * (chunk + kAhead));
        }
        const uint32_t a0[4] = {x.x, y.x, x.y, y.y};
        const uint32_t a1[4] = {x.z, y.z, x.w, y.w};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4 k = *reinterpret_cast<const uint4*>(keys + 8 * tile * stride + 64 * chunk);
          MultiplyAdd(dots[tile], a0, k.x, k.y);
          MultiplyAdd(dots[tile], a1, k.z, k.w);
        }
      }
    }
    float* out = s.scores + (int64_t(blockIdx.y) * a.heads + head + g) * s.padded + begin + first;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float score[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool exists = begin + first + 8 * tile + 2 * t + i < list.count;
          score[i] =
              exists ? dots[tile][2 * row + i] * a.scale : -std::numeric_limits<float>::infinity();
          largest[row] = max(largest[row], score[i]);
        }
        *reinterpret_cast<float2*>(out + int64_t(row) * 8 * s.padded + 8 * tile + 2 * t) =
            make_float2(score[0], score[1]);
      }
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    largest[row] = max(largest[row], __shfl_xor_sync(0xFFFFFFFFu, largest[row], 1));
    largest[row] = max(largest[row], __shfl_xor_sync(0xFFFFFFFFu, largest[row], 2));
    if (t == 0) shared->max[half][in_block + 8 * row + g] = largest[row];
  }
  __syncthreads();
  const int own_head = blockIdx.z * kHeadBlock + threadIdx.x;
  if (threadIdx.x < kHeadBlock && own_head < a.heads) {
    const int64_t tile = int64_t(blockIdx.y) * (s.padded / kMinScoreTile) + blockIdx.x;
    s.tile_max[tile * a.heads + own_head] =
        max(shared->max[0][threadIdx.x], shared->max[1][threadIdx.x]);
  }
}

// What a block of the values' kernel does: kHeads heads, kSlice channels, a group's entries kChunk
// at a time; its warps are kHeadWarps over heads, the others over channels, kTiles tiles of 8 each.
template <int kHeadWarps, int kTilesOfWarp, int kEntries>
struct ValuesShape {
  static constexpr int kTiles = kTilesOfWarp;
  static constexpr int kChunk = kEntries;
  static constexpr int kHeads = 16 * kHeadWarps;
  static constexpr int kSlice = 8 * kTiles * (8 / kHeadWarps);
  // 16 bytes beyond a multiple of 128: the 8 rows of a matrix meet in no bank.
  static constexpr int kValueStride = 2 * kSlice + 16;
  static constexpr int kWeightStride = 2 * kChunk + 16;
  struct Shared {
    alignas(128) uint8_t values[kChunk * kValueStride];       // [entry][channel] BF16
    alignas(128) uint8_t weights[2][kHeads * kWeightStride];  // p's two parts [head][entry] BF16
    const uint8_t* entries[kGroup];
    float max_parts[kThreads];
    float max[kHeads];
  };
};
// For few rows, a group at once: many blocks, each of which does little. For many: each
// exponential is computed for as many channels as possible. The sums are the same.
using FewRows = ValuesShape<1, 1, kGroup>;
using ManyRows = ValuesShape<2, 8, kSumTile>;

template <typename Shape>
__global__ void __launch_bounds__(kThreads, 2)
    ValuesKernel(const __grid_constant__ AttendArgs a,
                 const __grid_constant__ AttendScratchView s) {
  constexpr int kHeads = Shape::kHeads;
  constexpr int kChunk = Shape::kChunk;
  constexpr int kTiles = Shape::kTiles;
  GridDependencyLaunch();
  GridDependencyWait();
  const EntryList list = ListEntries(a, s.first_row + blockIdx.z);
  const int group = blockIdx.y;
  const int begin = group * kGroup;
  if (begin >= list.count) return;
  const int count = min(kGroup, list.count - begin);
  const int channels = a.state.channels;
  const int slices = channels / Shape::kSlice;
  const int slice = blockIdx.x % slices;
  const int head = blockIdx.x / slices * kHeads;  // the first
  const int in_batch = blockIdx.z;                // what lies in the scratch has places below 2^31
  const int tid = threadIdx.x;
  const int warp = tid / 32;
  const int lane = tid % 32;
  auto* shared = SharedMemory<typename Shape::Shared>();

  for (int i = tid; i < kGroup; i += kThreads)
    shared->entries[i] = i < count ? EntryAt(a, list, begin + i) : nullptr;
  {
    const int part = tid / kHeads;
    const int own = tid % kHeads;
    const float* tile_max =
        s.tile_max + in_batch * (s.padded / kMinScoreTile) * a.heads + head + own;
    float largest = a.sinks[head + own];
#pragma unroll 4
    for (int tile = part; tile * s.score_tile < list.count; tile += kThreads / kHeads)
      largest = max(largest, tile_max[int64_t(tile) * a.heads]);
    shared->max_parts[tid] = largest;
  }
  __syncthreads();
  if (tid < kHeads) {
    float largest = shared->max_parts[tid];
    for (int part = 1; part < kThreads / kHeads; ++part)
      largest = max(largest, shared->max_parts[part * kHeads + tid]);
    shared->max[tid] = largest;
    if (group == 0 && slice == 0) s.max[in_batch * a.heads + head + tid] = largest;
  }
  __syncthreads();

  constexpr int kHeadWarps = kHeads / 16;
  const int warp_head = warp % kHeadWarps * 16;
  const int warp_channel = warp / kHeadWarps * 8 * kTiles;
  // A lane's row in LoadMatrices: of weights [16 heads][16 entries], of values [32 entries][8].
  const int weight_row = (warp_head + lane % 16) * Shape::kWeightStride + lane / 16 * 16;
  const int value_row = lane * Shape::kValueStride + 2 * warp_channel;
  float high[kTiles][4] = {};  // sums over p's upper part, and over its lower
  float low[kTiles][4] = {};

  for (int from = 0; from < count; from += kChunk) {
    // Whole steps of 32 entries, whatever kChunk is; entries beyond the list are zeros.
    const int used = min(kChunk, (count - from + 31) / 32 * 32);

    constexpr int kUnits = Shape::kSlice / 8;
    constexpr int kStep = kThreads / kUnits;    // entries at once
    constexpr int kBatch = kTiles > 1 ? 4 : 8;  // loads under way
    static_assert(kChunk % (kStep * kBatch) == 0);
    const int unit = slice * kUnits + tid % kUnits;
#pragma unroll 1
    for (int base = tid / kUnits; base < used; base += kStep * kBatch) {
      StoredUnit stored[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        stored[i] = LoadUnit(a.state, shared->entries[from + base + i * kStep], unit);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        *reinterpret_cast<uint4*>(shared->values + (base + i * kStep) * Shape::kValueStride +
                                  16 * (tid % kUnits)) = DecodeUnit(a.state, stored[i], unit);
      }
    }

    // 16 lanes take 64 entries of a head, four each.
    constexpr int kSumTiles = kChunk / kSumTile;
    const int quarter = tid % 16 * 4;
#pragma unroll(kSumTiles > 1 ? 4 : 1)
    for (int item = tid / 16; item < kHeads * kSumTiles; item += kThreads / 16) {
      const int own = item % kHeads;
      const int at = item / kHeads * kSumTile;  // entry of the chunk
      if (at >= used) break;  // alike in all lanes: `at` depends on the warp's items
      const float4 x = *reinterpret_cast<const float4*>(
          s.scores + (in_batch * a.heads + head + own) * s.padded + begin + from + at + quarter);
      const float largest = shared->max[own];
      const int left = count - from - at - quarter;
      const float p0 = left > 0 ? ExpF32(x.x - largest) : 0;
      const float p1 = left > 1 ? ExpF32(x.y - largest) : 0;
      const float p2 = left > 2 ? ExpF32(x.z - largest) : 0;
      const float p3 = left > 3 ? ExpF32(x.w - largest) : 0;
      const uint32_t high01 = PackBf16(p0, p1);
      const uint32_t high23 = PackBf16(p2, p3);
      const uint32_t low01 = PackBf16(p0 - FirstBf16(high01), p1 - SecondBf16(high01));
      const uint32_t low23 = PackBf16(p2 - FirstBf16(high23), p3 - SecondBf16(high23));
      const int place = own * Shape::kWeightStride + 2 * (at + quarter);
      *reinterpret_cast<uint2*>(shared->weights[0] + place) = make_uint2(high01, high23);
      *reinterpret_cast<uint2*>(shared->weights[1] + place) = make_uint2(low01, low23);
      float sum = (p0 + p1) + (p2 + p3);
#pragma unroll
      for (int mask = 8; mask >= 1; mask /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, mask);
      if (slice == 0 && tid % 16 == 0) {
        const int64_t tile = in_batch * (s.padded / kSumTile) + (begin + from + at) / kSumTile;
        s.tile_sum[tile * a.heads + head + own] = sum;
      }
    }
    __syncthreads();

#pragma unroll 1
    for (int entry = 0; entry < used; entry += 32) {
      uint32_t p[2][2][4];  // [part][16 entries]
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        LoadMatrices(p[part][0], shared->weights[part] + weight_row + 2 * entry);
        LoadMatrices(p[part][1], shared->weights[part] + weight_row + 2 * entry + 32);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        uint32_t v[4];
        LoadMatricesTransposed(
            v, shared->values + value_row + entry * Shape::kValueStride + 16 * tile);
        MultiplyAdd(high[tile], p[0][0], v[0], v[1]);
        MultiplyAdd(low[tile], p[1][0], v[0], v[1]);
        MultiplyAdd(high[tile], p[0][1], v[2], v[3]);
        MultiplyAdd(low[tile], p[1][1], v[2], v[3]);
      }
    }
    if (from + kChunk < count) __syncthreads();  // before the next chunk takes its place
  }

  float* out = s.partial +
               ((in_batch * s.groups + group) * a.heads + head + warp_head + lane / 4) * channels +
               slice * Shape::kSlice + warp_channel + lane % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    *reinterpret_cast<float2*>(out + 8 * tile) =
        make_float2(high[tile][0] + low[tile][0], high[tile][1] + low[tile][1]);
    *reinterpret_cast<float2*>(out + 8 * channels + 8 * tile) =
        make_float2(high[tile][2] + low[tile][2], high[tile][3] + low[tile][3]);
  }
}

template <int kTiles>
void LaunchScores(const AttendArgs& a, const AttendScratchView& s, int rows, cudaStream_t stream) {
  constexpr int kEntries = 16 * kTiles;
  constexpr size_t kFixed = 128 * ((kEntries * 8 + 2 * kHeadBlock * 4 + 127) / 128);
  RaiseSharedMemory<ScoresKernel<kTiles>>();
  Launch(ScoresKernel<kTiles>, dim3(s.padded / kEntries, rows, DivideUp(a.heads, kHeadBlock)),
         dim3(kThreads), kFixed + size_t(kEntries) * (2 * a.state.channels + 64), stream, a, s);
}

template <typename Shape>
void LaunchValues(const AttendArgs& a, const AttendScratchView& s, int rows, cudaStream_t stream) {
  RaiseSharedMemory<ValuesKernel<Shape>>();
  Launch(ValuesKernel<Shape>,
         dim3(a.heads / Shape::kHeads * (a.state.channels / Shape::kSlice), s.groups, rows),
         dim3(kThreads), sizeof(typename Shape::Shared), stream, a, s);
}

}  // namespace

int TensorScoreTile(const AttendArgs& a, int padded, int rows) {
  const int64_t blocks = int64_t(padded / 64) * rows * DivideUp(a.heads, kHeadBlock);
  return blocks < kEnoughBlocks / 2 ? 32 : 64;
}

void TensorScores(const AttendArgs& a, const AttendScratchView& s, int rows, cudaStream_t stream) {
  if (s.score_tile == 32) {
    LaunchScores<2>(a, s, rows, stream);
  } else {
    LaunchScores<4>(a, s, rows, stream);
  }
}

void TensorValues(const AttendArgs& a, const AttendScratchView& s, int rows, cudaStream_t stream) {
  const int channels = a.state.channels;
  const bool fits = channels % ManyRows::kSlice == 0 && a.heads % ManyRows::kHeads == 0;
  const int64_t blocks =
      int64_t(a.heads / ManyRows::kHeads) * (channels / ManyRows::kSlice) * s.groups * rows;
  if (fits && blocks >= kEnoughBlocks) {
    LaunchValues<ManyRows>(a, s, rows, stream);
  } else {
    LaunchValues<FewRows>(a, s, rows, stream);
  }
}

}  // namespace agentd::model::cuda
