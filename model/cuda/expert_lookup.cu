#include "model/cuda/device_math.cuh"
#include "model/cuda/expert_lookup.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 1024;  // an expert each: limits.cc has no more
constexpr int kCopyThreads = 256;
constexpr int kCopyPieces = 4;  // of 16 bytes that a thread has under way
constexpr int kCopyBytes = kCopyThreads * kCopyPieces * 16;
constexpr unsigned long long kNone = ~0ull;

// How many threads before this one say yes; *total: how many do.
template <int kWarps>
__device__ inline int RankInBlock(bool yes, int* total) {
  __shared__ int counts[kWarps];
  const int lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32;
  const unsigned lanes = __ballot_sync(kAllLanes, yes);
  __syncthreads();  // of the call before
  if (lane == 0) counts[warp] = __popc(lanes);
  __syncthreads();
  int rank = __popc(lanes & ((1u << lane) - 1));
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) rank += counts[w];
    *total += counts[w];
  }
  return rank;
}

// The slot of this thread's (every kThreads-th) that was used the longest ago and that the round
// does not need, below its time of use: so the least of all threads' is the slot to take.
__device__ inline unsigned long long OldestSlot(const ExpertTables& t, unsigned long long round) {
  unsigned long long oldest = kNone;
  for (int s = int(threadIdx.x); s < t.slots; s += kThreads) {
    if (t.busy[s] != round) oldest = min(oldest, t.used[s] << 16 | unsigned(s));
  }
  return oldest;
}

__device__ inline unsigned long long WarpLeast(unsigned long long value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    value = min(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// One CTA. Slots are taken one after the other, each time the oldest: that takes a microsecond,
// and to fetch an expert hundreds.
__global__ void __launch_bounds__(kThreads)
    LookUpKernel(const ExpertTables t, const ExpertLookup a) {
  GridDependencyLaunch();
  __shared__ int missing[kThreads];
  __shared__ unsigned long long least[2][kThreads / 32];
  const int thread = int(threadIdx.x);
  GridDependencyWait();
  int* const slot_of = t.slot_of + a.layer * t.experts;
  const bool wanted = thread < t.experts && a.expert_begin[thread + 1] > a.expert_begin[thread];
  const int slot = wanted ? slot_of[thread] : -1;
  int hits = 0;
  int misses = 0;
  RankInBlock<kThreads / 32>(slot >= 0, &hits);
  const int rank = RankInBlock<kThreads / 32>(wanted && slot < 0, &misses);
  unsigned long long round = t.counts->clock + 1;
  if (slot >= 0) {
    t.slot[thread] = slot;
    t.round[thread] = 0;
    t.used[slot] = round;
    t.busy[slot] = round;
  } else if (wanted) {
    missing[rank] = thread;
    t.round[thread] = (hits + rank) / t.slots;
  }
  __syncthreads();
  unsigned long long oldest = OldestSlot(t, round);
  for (int m = 0; m < misses; ++m) {
    if (hits + m > 0 && (hits + m) % t.slots == 0) {
      ++round;
      oldest = OldestSlot(t, round);
    }
    // Written again two misses later, with a barrier between.
    unsigned long long* const of_warps = least[m % 2];
    const unsigned long long of_warp = WarpLeast(oldest);
    if (thread % 32 == 0) of_warps[thread / 32] = of_warp;
    __syncthreads();
    const int taken = int(WarpLeast(of_warps[thread % 32]) & 0xFFFF);
    if (taken % kThreads != thread) continue;
    const int expert = missing[m];
    const int before = t.key_of[taken];
    if (before >= 0) t.slot_of[before] = -1;
    t.key_of[taken] = a.layer * t.experts + expert;
    slot_of[expert] = taken;
    t.used[taken] = a.few ? round : kUsedByMany;
    t.busy[taken] = round;
    t.slot[expert] = taken;
    t.fetches[m] = make_int2(expert, taken);
    oldest = OldestSlot(t, round);
  }
  if (thread != 0) return;
  t.counts->clock = round;
  t.counts->hits += unsigned(hits);
  t.counts->misses += unsigned(misses);
  t.counts->bytes += unsigned(misses) * static_cast<unsigned long long>(a.expert_bytes);
  *t.found = make_int2(hits, misses);
}

__device__ inline void ListTiles(const ExpertTables& t, const ExpertRound& a) {
  const int count = *a.tile_count;
  int listed = 0;
  for (int first = 0; first < count; first += kCopyThreads) {
    const int i = first + int(threadIdx.x);
    const int4 tile = i < count ? a.tiles[i] : make_int4(0, 0, 0, 0);
    const bool here = i < count && t.round[tile.x] == a.round;
    int total = 0;
    const int rank = RankInBlock<kCopyThreads / 32>(here, &total);
    if (here) a.round_tiles[listed + rank] = make_int4(t.slot[tile.x], tile.y, tile.z, 0);
    listed += total;
  }
  if (threadIdx.x == 0) *a.round_tile_count = listed;
}

// The first block lists the tiles, the others copy.
__global__ void __launch_bounds__(kCopyThreads)
    FetchKernel(const ExpertTables t, const ExpertRound a) {
  GridDependencyLaunch();
  GridDependencyWait();
  if (blockIdx.x == 0) return ListTiles(t, a);
  const int2 found = *t.found;  // {hits, misses}
  const int begin = max(0, a.round * t.slots - found.x);
  const int end = min(found.y, (a.round + 1) * t.slots - found.x);
  const int parts = int((a.expert_bytes + kCopyBytes - 1) / kCopyBytes);
  for (int i = int(blockIdx.x) - 1; i < (end - begin) * parts; i += int(gridDim.x) - 1) {
    const int2 fetch = t.fetches[begin + i / parts];
    const int64_t at = int64_t(i % parts) * kCopyBytes + threadIdx.x * 16;
    const uint8_t* const from = a.host + fetch.x * a.expert_bytes;
    uint8_t* const to = t.data + fetch.y * t.slot_bytes;
    uint4 pieces[kCopyPieces];
#pragma unroll
    for (int p = 0; p < kCopyPieces; ++p) {
      const int64_t byte = at + p * (kCopyThreads * 16);
      if (byte < a.expert_bytes) pieces[p] = __ldg(reinterpret_cast<const uint4*>(from + byte));
    }
#pragma unroll
    for (int p = 0; p < kCopyPieces; ++p) {
      const int64_t byte = at + p * (kCopyThreads * 16);
      if (byte < a.expert_bytes) *reinterpret_cast<uint4*>(to + byte) = pieces[p];
    }
  }
}

}  // namespace

void LookUpExperts(const ExpertTables& tables, const ExpertLookup& lookup, cudaStream_t stream) {
  Require(tables.experts >= 1 && tables.experts <= kThreads, "experts of a cache");
  Require(tables.slots >= 1 && tables.slots <= kMaxExpertSlots, "slots of a cache");
  Launch(LookUpKernel, dim3(1), dim3(kThreads), 0, stream, tables, lookup);
}

void FetchExperts(const ExpertTables& tables, const ExpertRound& round, cudaStream_t stream) {
  Require(round.expert_bytes <= tables.slot_bytes && round.expert_bytes % 16 == 0,
          "bytes of an expert");
  Launch(FetchKernel, dim3(unsigned(Multiprocessors()) + 1), dim3(kCopyThreads), 0, stream, tables,
         round);
}

}  // namespace agentd::model::cuda
