// Attention on tensor cores: how rows are split, and the kernel for few of them (attend_group.cu
// has that for many). Entries are gathered by address and decoded to BF16 in shared memory,
// exactly.
#include <algorithm>

#include "model/cuda/attend_tensor.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxRows = 32768;
// 16 bytes beyond a multiple of 128: the 8 rows of a matrix meet in no bank.
constexpr int kStride = 2 * kMaxChannels + 16;

// 16 heads of a row's query to shared memory.
__device__ inline void FetchQuery(const AttendArgs& a, int row, int head, uint8_t* query) {
  const int pieces = a.state.channels / 8;
  const auto* q =
      static_cast<const uint16_t*>(a.q) + (int64_t(row) * a.heads + head) * a.state.channels;
  for (int h = threadIdx.x / 32; h < 16; h += kWarps) {
    for (int piece = threadIdx.x % 32; piece < pieces; piece += 32)
      CopyAsync(query + h * kStride + 16 * piece, q + h * a.state.channels + 8 * piece);
  }
}

// Scores of 16 heads and 8 entries, those from `left` on not existing; the maxima of heads g and
// g + 8.
__device__ inline void Scores(const AttendArgs& a, const uint8_t* query, const uint8_t* keys,
                              int left, float (&scores)[1][4], float (&largest)[2]) {
  const int lane = threadIdx.x % 32;
  query += lane % 16 * kStride + lane / 16 * 16;
  keys += lane % 8 * kStride + lane / 8 * 16;
  float odd[1][4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) scores[0][i] = 0;
  const int chunks = a.state.channels / 32;
#pragma unroll 8
  for (int chunk = 0; chunk < chunks; ++chunk) {
    uint32_t q[2][4];
    LoadMatrices(q[0], query + 64 * chunk);
    LoadMatrices(q[1], query + 64 * chunk + 32);
    uint32_t k[4];
    LoadMatrices(k, keys + 64 * chunk);
    MultiplyAdd(scores[0], q[0], k[0], k[1]);
    MultiplyAdd(odd[0], q[1], k[2], k[3]);
  }
  FinishScores(a.scale, left, odd, scores, largest);
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
  const uint8_t* late_entries[kTile];
  float max[kWarps][16];
  float sum[kWarps][16];
  float largest[16];
};

// kEarly: past entries are loaded before the wait, which pays where all blocks run at once.
template <bool kEarly>
__global__ void __launch_bounds__(kThreads, 2)
    TileKernel(const __grid_constant__ AttendArgs a, const __grid_constant__ Parts s) {
  GridDependencyLaunch();
  const int in_batch = blockIdx.z;
  const int row = s.first_row + in_batch;
  const int head = 16 * blockIdx.x;  // the first
  const int begin = kTile * blockIdx.y;
  const int tid = threadIdx.x;
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int channels = a.state.channels;
  auto* shared = SharedMemory<TileShared>();
  StoredUnit stored[2][8];  // of each warp 8 entries, all loads under way at once
  if constexpr (kEarly) {
    const EntryList known = ListKnownEntries(a, row);
    if (tid < kTile) {
      const int i = begin + tid;
      shared->entries[tid] =
          i < known.count && IsPast(a, known, i) ? EntryAt(a, known, i) : nullptr;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int unit = lane + 32 * j;
      if (unit >= channels / 8) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        stored[j][i] = LoadUnit(a.state, shared->entries[8 * warp + i], unit);
    }
  }
  GridDependencyWait();
  // The selected entry, if the window is a whole one: under way while that is found out.
  int chosen = 0;
  const int guess = begin + tid - a.state.window;
  if (tid < kTile && a.kind == EntryKind::kCsa && guess >= 0 && guess < a.topk)
    chosen = a.selected[int64_t(row) * a.topk + guess];
  FetchQuery(a, row, head, shared->query);
  CopyAsyncCommit();
  const EntryList list = ListEntries(a, row);
  if (begin >= list.count) {
    CopyAsyncWait<0>();
    return;
  }
  if (tid < kTile) {
    const int i = begin + tid;
    const uint8_t* entry = nullptr;
    if (i < list.count && !(kEarly && IsPast(a, list, i))) {
      entry = list.window == a.state.window ? EntryAt(a, list, i, chosen) : EntryAt(a, list, i);
    }
    shared->late_entries[tid] = entry;
  }
  __syncthreads();

  {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int unit = lane + 32 * j;
      if (unit >= channels / 8) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint8_t* entry = shared->late_entries[8 * warp + i];
        if (!kEarly || entry != nullptr) stored[j][i] = LoadUnit(a.state, entry, unit);
      }
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

int Tiles(int max_entries) { return int(DivideUp(std::max(max_entries, 1), kTile)); }

int64_t PartBytes(int heads, int channels) {
  return int64_t(heads) * (channels * int64_t(sizeof(float)) + int64_t(sizeof(float2)));
}

// Whether rows are better done in groups. In microseconds with 64 heads of 512 channels, tiles as
// measured, groups as expected (attend_group.cu): what matters is where the two meet.
bool InGroups(const AttendArgs& a, int tiles) {
  if (a.state.channels != kMaxChannels || a.heads % kGroupHeads != 0) return false;
  const int64_t rows = a.row_end - a.row_begin;
  const int64_t by_tile = 7 * DivideUp(rows * tiles * (a.heads / 16), 2 * 132) +
                          rows * tiles * PartBytes(a.heads, a.state.channels) / 1500000;
  const int64_t by_group =
      4 + 5 * std::min(tiles, kGroupTiles) *
              DivideUp(rows * DivideUp(tiles, kGroupTiles) * (a.heads / kGroupHeads), 132) / 2;
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
  RaiseSharedMemory<TileKernel<false>>();
  RaiseSharedMemory<TileKernel<true>>();
  for (int first = a.row_begin; first < a.row_end; first += batch) {
    const int rows = std::min(batch, a.row_end - first);
    s.first_row = first;
    s.sums = static_cast<float*>(a.scratch);
    s.stats =
        reinterpret_cast<float2*>(s.sums + int64_t(rows) * s.parts * a.heads * a.state.channels);
    if (in_groups) {
      AttendGroups(a, s, rows, stream);
      if (!whole) JoinGroups(a, s, rows, stream);
    } else {
      const dim3 grid(a.heads / 16, tiles, rows);
      const bool at_once = int64_t(grid.x) * grid.y * grid.z <= 2 * Multiprocessors();
      Launch(at_once ? TileKernel<true> : TileKernel<false>, grid, dim3(kThreads),
             sizeof(TileShared), stream, a, s);
      JoinTiles(a, s, rows, stream);
    }
  }
}

}  // namespace agentd::model::cuda
