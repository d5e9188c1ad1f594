// Scores, exponents and values of attention on tensor cores, of tiles and of groups. Entries are
// gathered by address and decoded to BF16 in shared memory, exactly.
#include <algorithm>

#include "model/cuda/attend_tensor.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxChannels = 512;
constexpr int kMaxRows = 32768;
// 16 bytes beyond a multiple of 128: the 8 rows of a matrix meet in no bank.
constexpr int kStride = 2 * kMaxChannels + 16;
constexpr int kWeightStride = 2 * kTile + 16;
// A stored entry of GroupKernel.
constexpr int kStoredBytes = 592;

// `heads` heads of a row's query to shared memory.
__device__ inline void FetchQuery(const AttendArgs& a, int row, int head, int heads,
                                  uint8_t* query) {
  const int pieces = a.state.channels / 8;
  const auto* q =
      static_cast<const uint16_t*>(a.q) + (int64_t(row) * a.heads + head) * a.state.channels;
  for (int h = threadIdx.x / 32; h < heads; h += kWarps) {
    for (int piece = threadIdx.x % 32; piece < pieces; piece += 32)
      CopyAsync(query + h * kStride + 16 * piece, q + h * a.state.channels + 8 * piece);
  }
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
__device__ inline float SumOfFour(float a, float b, float c, float d) { return (a + b) + (c + d); }

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

  auto fetch = [&](int tile) {  // a thread has one or two words of 8 bytes of every fourth entry
    const int word = tid % 64;
    const bool two = 8 * (word + 64) < a.state.entry_bytes;
    const uint8_t* const* entries = shared->entries + tile * kTile + tid / 64;
    uint8_t* to = shared->stored + tid / 64 * kStoredBytes + 8 * word;
#pragma unroll 4
    for (int i = 0; i < kTile; i += kThreads / 64) {
      const bool exists = entries[i] != nullptr;
      const uint8_t* from = exists ? entries[i] + 8 * word : static_cast<const uint8_t*>(a.q);
      CopyAsyncOrZero(to + i * kStoredBytes, from, exists);
      if (two) CopyAsyncOrZero(to + i * kStoredBytes + 512, from + 512, exists);
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
#pragma unroll 2
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
      SyncSome<64>(1 + in_block / 16);  // the two warps of these heads
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
      SyncSome<64>(1 + in_block / 16);
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
    uint32_t v[2][kAtOnce]
              [4];  // of half the entries; one's loads are ahead of the other's products
    auto load = [&](int h, int first) {
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e)
        LoadMatricesTransposed(v[h][e], values + 32 * h * kStride + 16 * (first + e));
    };
    load(0, 0);
#pragma unroll
    for (int base = 0; base < kEights; base += kAtOnce) {
      float products[kAtOnce][4] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (h == 0) load(1, base);
        if (h == 1 && base + kAtOnce < kEights) load(0, base + kAtOnce);
        __syncwarp();  // keeps the compiler from loading further ahead than registers last
#pragma unroll
        for (int step = 0; step < 4; ++step) {  // AddValues, of several at a time
#pragma unroll
          for (int e = 0; e < kAtOnce; ++e)
            MultiplyAdd(products[e], p[h][step % 2][step / 2], v[h][e][step / 2 * 2],
                        v[h][e][step / 2 * 2 + 1]);
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
          Finish(a, channel + 8 * e, out[e][2 * i], out[e][2 * i + 1], quotient,
                 LoadAngle(a, row, channel + 8 * e));
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
  const int64_t fit = kScratchBytes / (s.parts * PartBytes(a.heads, a.state.channels));
  const int batch = whole ? kMaxRows : int(std::clamp<int64_t>(fit, 1, kMaxRows));
  RaiseSharedMemory<TileKernel>();
  RaiseSharedMemory<GroupKernel>();
  for (int first = a.row_begin; first < a.row_end; first += batch) {
    const int rows = std::min(batch, a.row_end - first);
    s.first_row = first;
    s.sums = static_cast<float*>(a.scratch);
    s.stats =
        reinterpret_cast<float2*>(s.sums + int64_t(rows) * s.parts * a.heads * a.state.channels);
    if (in_groups) {
      Launch(GroupKernel, dim3(a.heads / kGroupHeads, s.groups, rows), dim3(kThreads),
             sizeof(GroupShared), stream, a, s);
      if (!whole) JoinGroups(a, s, rows, stream);
    } else {
      Launch(TileKernel, dim3(a.heads / 16, tiles, rows), dim3(kThreads), sizeof(TileShared),
             stream, a, s);
      JoinTiles(a, s, rows, stream);
    }
  }
}

}  // namespace agentd::model::cuda
