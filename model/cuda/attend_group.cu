// Attention on tensor cores for many rows: a block takes a row's group of tiles and 64 heads after
// the other. One warpgroup fetches stored entries into registers, ahead of their use, decodes them
// and leaves each tile in one of two places of shared memory. Two others multiply: the scores, of
// which each does one chain (every other 16 channels), then p v, of which each has 256 channels.
//
// A tile lies in shared memory as core matrices of 8 entries x 8 channels: K-major to the scores
// (k: channels), N-major to the values (k: entries), so that either product reads it once and whole
// (wgmma.cuh). Multiplying warpgroups share nothing but scores, maxima, sums and p, of which a warp
// needs no more than those of its 16 heads: it waits for the one warp beside it.
//
// Expected cycles of a tile, of which the matrix units work 3,072:
// - Scores, 1,100: 1,024 of the matrix units and as many of shared memory, which has 64 KB of query
//   and 64 KB of keys to read.
// - Scores to p, 850: the matrix units idle. About 300 instructions a warp, two warps a scheduler.
// - Values, 2,250: 2,048 of the matrix units, of both parts of p; 128 KB of shared memory. A
//   warpgroup joins sums while the other's products run.
// About 4,200 together: 2.4 us at 1.75 GHz. Beside them the copying warpgroup needs 1,600
// instructions a warp, about 2,700 cycles, for a tile, and goes on with the next row while this
// one's sums are stored.
#include <algorithm>

#include "model/cuda/attend_tensor.cuh"
#include "model/cuda/barrier.cuh"
#include "model/cuda/wgmma.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kThreads = 128 * (1 + kGroups);
constexpr int kStages = 2;
constexpr int kAhead = 4;  // entries of a warp under way
// Of what the launch gives a warpgroup, 168 a thread.
constexpr int kProducerRegisters = 72;
constexpr int kConsumerRegisters = 216;
constexpr int kSlice = 64;  // channels of a product of values
constexpr int kSlices = kMaxChannels / kGroups / kSlice;
// Named barriers: a pair of warps with the same heads, a multiplying warpgroup, the copying one.
constexpr int kPairBarrier = 1;
constexpr int kGroupBarrier = 5;
constexpr int kProducerBarrier = 7;

// [channels / 8][head or entry][8 channels] BF16; one more, so that writes of neighbouring channels
// meet in no bank.
using Rows = uint8_t[kMaxChannels / 8][kTile + 1][16];
constexpr int kEightBytes = (kTile + 1) * 16;  // from 8 channels to the next

// What is in a stage.
struct Note {
  int unit = 0;  // kDone after the last
  int left = 0;  // entries of this tile and those after it
  bool last = false;
};
constexpr int kDone = -1;

struct Shared {
  alignas(128) Rows query;
  alignas(128) Rows tiles[kStages];
  // Of a pair of warps: scores to be exchanged, then p, [part][16 heads][kTile].
  alignas(128) uint8_t weights[4][2 * 16 * kWeightStride];
  const uint8_t* entries[kGroupTiles * kTile];  // the copying warpgroup's
  float max[kGroups][kGroupHeads];
  float sum[kGroups][kGroupHeads];
  Note notes[kStages];
  uint64_t full[kStages];  // and the query, when the tile is its first
  uint64_t empty[kStages];
  uint64_t query_empty;
};

// What is the same in all lanes anyway: the compiler then derives descriptors once for the warp.
__device__ inline uint32_t Uniform(uint32_t x) { return __shfl_sync(0xFFFFFFFFu, x, 0); }

// The work of a block, one after the other: heads, then groups, then rows.
struct Unit {
  int in_batch;
  int group;
  int first_head;
};
__device__ inline Unit UnitAt(const AttendArgs& a, const Parts& s, int unit) {
  const int blocks = a.heads / kGroupHeads;
  return {unit / blocks / s.groups, unit / blocks % s.groups, unit % blocks * kGroupHeads};
}

// The copying warpgroup, a thread's part.
struct Producer {
  const AttendArgs& a;
  Shared* shared;
  RingPlace<kStages> place;
  int units = 0;  // so far

  static __device__ __forceinline__ int Thread() { return int(threadIdx.x) % 128; }
  static __device__ __forceinline__ int Lane() { return int(threadIdx.x) % 32; }
  static __device__ __forceinline__ int Warp() { return int(threadIdx.x) / 32 % 4; }

  // Whoever multiplies is done with what was in the next stage.
  __device__ __forceinline__ void WaitForStage() {
    BarrierWait(&shared->empty[place.stage], place.parity ^ 1);
  }
  __device__ __forceinline__ void Publish(const Note& note) {
    if (Thread() == 0) shared->notes[place.stage] = note;
    FenceAsyncProxy();
    BarrierArrive(&shared->full[place.stage]);
    place.Next();
  }

  __device__ __forceinline__ void ListAddresses(const EntryList& list, int begin, int count) {
    SyncSome<128>(kProducerBarrier);  // those of the unit before have been used
    const int padded = (count + kTile - 1) / kTile * kTile;
    for (int i = Thread(); i < padded; i += 128)
      shared->entries[i] = i < count ? EntryAt(a, list, begin + i) : nullptr;
    SyncSome<128>(kProducerBarrier);
  }

  __device__ __forceinline__ void FetchQuery(int row, int first_head) {
    const auto* q = static_cast<const uint16_t*>(a.q) +
                    (int64_t(row) * a.heads + first_head) * kMaxChannels + 8 * (Thread() % 64);
#pragma unroll 4
    for (int head = Thread() / 64; head < kGroupHeads; head += 2)
      CopyAsync(shared->query[Thread() % 64][head], q + head * kMaxChannels);
    CopyAsyncCommit();
  }

  // Entry i of the warp's, of which a tile has 16: units `lane` and `lane` + 32.
  __device__ __forceinline__ void Load(int i, StoredUnit (&x)[2]) const {
    const uint8_t* entry = shared->entries[i / 16 * kTile + 16 * Warp() + i % 16];
    x[0] = LoadUnit(a.state, entry, Lane());
    x[1] = LoadUnit(a.state, entry, Lane() + 32);
  }
  __device__ __forceinline__ void Store(int i, const StoredUnit (&x)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int unit = Lane() + 32 * half;
      *reinterpret_cast<uint4*>(shared->tiles[place.stage][unit][16 * Warp() + i % 16]) =
          DecodeUnit(a.state, x[half], unit);
    }
  }

  // A unit of `count` entries whose addresses are listed.
  __device__ __forceinline__ void Fill(int unit, int row, int first_head, int count) {
    const int entries = (count + kTile - 1) / kTile * 16;  // of the warp
    StoredUnit ahead[kAhead][2];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) Load(j, ahead[j]);
    BarrierWait(&shared->query_empty, (units & 1) ^ 1);
    ++units;
    FetchQuery(row, first_head);
#pragma unroll 1
    for (int begin = 0; begin < entries; begin += 16) {
      WaitForStage();
#pragma unroll 1
      for (int i = begin; i < begin + 16; i += kAhead) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          Store(i + j, ahead[j]);
          if (i + j + kAhead < entries) Load(i + j + kAhead, ahead[j]);
        }
      }
      CopyAsyncWait<0>();
      Publish({.unit = unit, .left = count - begin / 16 * kTile, .last = begin + 16 == entries});
    }
  }

  __device__ __forceinline__ void Run(const Parts& s, int end) {
    for (int unit = int(blockIdx.x); unit < end; unit += int(gridDim.x)) {
      const Unit u = UnitAt(a, s, unit);
      const int row = s.first_row + u.in_batch;
      const EntryList list = ListEntries(a, row);
      const int begin = kGroupTiles * kTile * u.group;
      const int count = min(kGroupTiles * kTile, list.count - begin);
      if (count <= 0) continue;
      ListAddresses(list, begin, count);
      Fill(unit, row, u.first_head, count);
    }
    WaitForStage();
    Publish({.unit = kDone});
  }
};

// A warp of a multiplying warpgroup: 16 heads, of which lanes have g and g + 8.
struct Consumer {
  const AttendArgs& a;
  const Parts& s;
  Shared* shared;
  int group;  // the warpgroup
  int pair;   // the warp of it
  RingPlace<kStages> place;
  float out[kSlices][kSlice / 2];
  float run_max[2];
  float run_sum[2];

  static __device__ __forceinline__ int Lane() { return int(threadIdx.x) % 32; }
  __device__ __forceinline__ int Head() const { return 16 * pair + Lane() / 4; }
  __device__ __forceinline__ int Channel() const {
    return kMaxChannels / kGroups * group + Lane() % 4 * 2;
  }
  __device__ __forceinline__ void SyncPair() const { SyncSome<64>(kPairBarrier + pair); }

  __device__ __forceinline__ void Reset() {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int i = 0; i < kSlice / 2; ++i) out[slice][i] = 0;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) run_max[i] = NoScore(), run_sum[i] = 0;
  }

  // This warpgroup's chain of the scores of all entries: 16 channels of every 32.
  __device__ __forceinline__ void MultiplyScores(float (&chain)[32]) const {
#pragma unroll
    for (int i = 0; i < 32; ++i) chain[i] = 0;
    const uint64_t q =
        WgmmaDescriptor(Uniform(SharedAddress(shared->query[2 * group])), kEightBytes, 128);
    const uint64_t k = WgmmaDescriptor(
        Uniform(SharedAddress(shared->tiles[place.stage][2 * group])), kEightBytes, 128);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kMaxChannels / 32; ++step)
      WgmmaOfShared(chain, q + step * (4 * kEightBytes / 16), k + step * (4 * kEightBytes / 16));
    WgmmaCommit();
    WgmmaWait<0>();
  }

  // Whole scores of the half of the entries that is this warpgroup's.
  __device__ __forceinline__ void Exchange(const float (&chain)[32], float (&scores)[4][4],
                                           float (&other)[4][4]) const {
    auto* place = reinterpret_cast<float4*>(shared->weights[pair]) + Lane();
    const auto give = [&](int first) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        place[32 * (4 * group + e)] =
            make_float4(chain[first + 4 * e], chain[first + 4 * e + 1], chain[first + 4 * e + 2],
                        chain[first + 4 * e + 3]);
      }
    };
    const auto keep = [&](int first) {
#pragma unroll
      for (int i = 0; i < 16; ++i) scores[i / 4][i % 4] = chain[first + i];
    };
    if (group == 0) {
      give(16);
      keep(0);
    } else {
      give(0);
      keep(16);
    }
    SyncPair();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float4 sums = place[32 * (4 * (1 - group) + e)];
      other[e][0] = sums.x;
      other[e][1] = sums.y;
      other[e][2] = sums.z;
      other[e][3] = sums.w;
    }
  }

  // p of all entries of the tile, in shared memory; maxima and sums of heads g and g + 8.
  __device__ __forceinline__ void MakeWeights(const float (&chain)[32], int left,
                                              float2 (&stats)[2]) const {
    float scores[4][4];
    float other[4][4];
    Exchange(chain, scores, other);
    float largest[2];
    FinishScores(a.scale, left - kTile / 2 * group, other, scores, largest);
    if (Lane() % 4 == 0) {
      shared->max[group][Head()] = largest[0];
      shared->max[group][Head() + 8] = largest[1];
    }
    SyncPair();
    float sums[4][2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      largest[i] = max(largest[i], shared->max[1 - group][Head() + 8 * i]);
    Weigh(scores, largest, shared->weights[pair] + kTile * group, 16 * kWeightStride, sums);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      stats[i].x = largest[i];
      stats[i].y = SumOfFour(sums[0][i], sums[1][i], sums[2][i], sums[3][i]);
      if (Lane() % 4 == 0) shared->sum[group][Head() + 8 * i] = stats[i].y;
    }
    SyncPair();
#pragma unroll
    for (int i = 0; i < 2; ++i) stats[i].y += shared->sum[1 - group][Head() + 8 * i];
  }

  __device__ __forceinline__ void LoadWeights(uint32_t (&p)[4][2][4]) const {
    const uint8_t* weights = shared->weights[pair] + Lane() % 16 * kWeightStride + Lane() / 16 * 16;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrices(p[step][0], weights + 32 * step);
      LoadMatrices(p[step][1], weights + 16 * kWeightStride + 32 * step);
    }
    SyncPair();  // before the next tile's scores take their place
  }

  // p [16 entries][part] times the tile's values joins `out`.
  __device__ __forceinline__ void AddValues(const uint32_t (&p)[4][2][4],
                                            const Factors (&factors)[2], bool last) {
    const uint64_t v = WgmmaDescriptor(
        Uniform(SharedAddress(shared->tiles[place.stage][kMaxChannels / kGroups / 8 * group])), 128,
        kEightBytes);
    // Not unrolled: the compiler would have all slices' products in registers at once.
#pragma unroll 1
    for (int slice = 0; slice < kSlices; ++slice) {
      float products[kSlice / 2] = {};
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          WgmmaNMajor(products, p[step][part],
                      v + slice * (kSlice / 8 * kEightBytes / 16) + step * (2 * 128 / 16));
        }
      }
      WgmmaCommit();
      WgmmaWait<0>();
      static_assert(kSlices == 4);
      switch (slice) {
        case 0:
          Join(products, factors, out[0]);
          break;
        case 1:
          Join(products, factors, out[1]);
          break;
        case 2:
          Join(products, factors, out[2]);
          break;
        default:
          if (!last) Release();
          Join(products, factors, out[3]);
      }
    }
  }
  static __device__ __forceinline__ void Join(const float (&products)[kSlice / 2],
                                              const Factors (&factors)[2],
                                              float (&sums)[kSlice / 2]) {
#pragma unroll
    for (int i = 0; i < kSlice / 2; ++i)
      sums[i] = JoinSums(sums[i], products[i], factors[i / 2 % 2]);
  }

  __device__ __forceinline__ void Release() const {
    WarpArrive(&shared->empty[place.stage], Lane());
  }

  __device__ __forceinline__ void StoreSums(const Unit& u) const {
    const int64_t part =
        (int64_t(u.in_batch) * s.parts + u.group) * a.heads + u.first_head + Head();
    if (group == 0 && Lane() % 4 == 0) {
      s.stats[part] = make_float2(run_max[0], run_sum[0]);
      s.stats[part + 8] = make_float2(run_max[1], run_sum[1]);
    }
    float* to = s.sums + part * kMaxChannels + Channel();
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int e = 0; e < kSlice / 8; ++e) {
        const float* sums = out[slice] + 4 * e;
        float* place = to + kSlice * slice + 8 * e;
        *reinterpret_cast<float2*>(place) = make_float2(sums[0], sums[1]);
        *reinterpret_cast<float2*>(place + 8 * kMaxChannels) = make_float2(sums[2], sums[3]);
      }
    }
  }

  // By way of the warpgroup's half of the last tile: [64 heads][256 channels], of which 16 bytes
  // lie elsewhere in each row, so that neither writes nor reads meet in a bank. Of what a warp
  // writes a lane reads the same 8 channels of all heads.
  __device__ __forceinline__ void StoreRow(const Unit& u) const {
    constexpr int kRowBytes = 2 * kMaxChannels / kGroups;
    static_assert(kGroupHeads * kRowBytes <= int(sizeof(Rows)) / kGroups && kRowBytes == 32 * 16);
    const int row = s.first_row + u.in_batch;
    const int channel = kMaxChannels / kGroups * group + 8 * Lane();
    Angle angles[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) angles[i] = LoadAngle(a, row, channel + 2 * i);
    SyncSome<128>(kGroupBarrier + group);  // the other warps' products have read it
    uint8_t* staged =
        shared->tiles[place.stage][kMaxChannels / kGroups / 8 * group][0] + 16 * kRowBytes * pair;
    Stage(staged, u.first_head);
    __syncwarp();
    auto* to = static_cast<uint4*>(a.out) +
               (int64_t(row) * a.heads + u.first_head + 16 * pair) * (kMaxChannels / 8) +
               channel / 8;
    const bool turned = channel >= a.state.channels - a.state.rotary;
#pragma unroll 4
    for (int head = 0; head < 16; ++head) {
      auto x =
          *reinterpret_cast<const uint4*>(staged + head * kRowBytes + 16 * (Lane() ^ head % 8));
      if (turned) {
        x = make_uint4(Turn(x.x, angles[0]), Turn(x.y, angles[1]), Turn(x.z, angles[2]),
                       Turn(x.w, angles[3]));
      }
      to[head * (kMaxChannels / 8)] = x;
    }
    __syncwarp();
  }
  __device__ __forceinline__ void Stage(uint8_t* staged, int first_head) const {
    constexpr int kRowBytes = 2 * kMaxChannels / kGroups;
    const int g = Lane() / 4;
    staged += g * kRowBytes + Lane() % 4 * 4 + 16 * g;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float quotient = Quotient(run_max[i], run_sum[i], a.sinks[first_head + Head() + 8 * i]);
#pragma unroll
      for (int e = 0; e < kMaxChannels / kGroups / 8; ++e) {
        const float* sums = out[e / 8] + e % 8 * 4 + 2 * i;
        // 16 * (e ^ g) of the row, which begins at a multiple of 128.
        auto* place = reinterpret_cast<uint32_t*>(reinterpret_cast<uintptr_t>(staged) ^
                                                  unsigned(16 * (e % 8)));
        place[(8 * i * kRowBytes + 16 * (e / 8 * 8)) / 4] =
            PackBf16(sums[0] * quotient, sums[1] * quotient);
      }
    }
  }

  __device__ __forceinline__ void Run() {
    Reset();
#pragma unroll 1
    while (true) {
      BarrierWait(&shared->full[place.stage], place.parity);
      const Note note = shared->notes[place.stage];
      if (note.unit == kDone) return;
      float2 stats[2];
      {
        float chain[32];
        MultiplyScores(chain);
        if (note.last) WarpArrive(&shared->query_empty, Lane());
        MakeWeights(chain, note.left, stats);
      }
      Factors factors[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) factors[i] = JoinStats(&run_max[i], &run_sum[i], stats[i]);
      uint32_t p[4][2][4];
      LoadWeights(p);
      AddValues(p, factors, note.last);
      if (note.last) {
        const Unit u = UnitAt(a, s, note.unit);
        if (s.groups > 1) {
          StoreSums(u);
        } else {
          StoreRow(u);
        }
        Release();
        Reset();
      }
      place.Next();
    }
  }
};

__global__ void __launch_bounds__(kThreads, 1)
    GroupKernel(const __grid_constant__ AttendArgs a, const __grid_constant__ Parts s, int units) {
  GridDependencyLaunch();
  auto* shared = SharedMemory<Shared>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&shared->full[i], 128);
      BarrierInit(&shared->empty[i], 4 * kGroups * kWarpArrivals);
    }
    BarrierInit(&shared->query_empty, 4 * kGroups * kWarpArrivals);
    FenceBarrierInit();
  }
  __syncthreads();
  GridDependencyWait();
  if (threadIdx.x < 128) {
    GiveRegisters<kProducerRegisters>();
    Producer producer = {.a = a, .shared = shared};
    producer.Run(s, units);
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consumer consumer = {.a = a,
                         .s = s,
                         .shared = shared,
                         .group = int(Uniform(threadIdx.x / 128 - 1)),
                         .pair = int(Uniform(threadIdx.x / 32 % 4))};
    consumer.Run();
  }
}

}  // namespace

void AttendGroups(const AttendArgs& a, const Parts& s, int rows, cudaStream_t stream) {
  RaiseSharedMemory<GroupKernel>();
  const int units = rows * s.groups * (a.heads / kGroupHeads);
  Launch(GroupKernel, dim3(unsigned(std::min(units, Multiprocessors()))), dim3(kThreads),
         sizeof(Shared), stream, a, s, units);
}

}  // namespace agentd::model::cuda
