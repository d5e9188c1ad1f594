// Products of many rows (prefill): a block computes 256 rows of weights times a tile of tokens. One
// warpgroup copies the tokens' values into a ring of shared memory and has weights fetched into L2
// ahead of their use. Four others take 64 rows of weights each, from L2 into registers, make them
// BF16 there and issue wgmma with the weights as its register operand: while some convert, wait or
// store, the matrix units work for the others.
//
// A unit goes through all slices of K. Their sums meet in shared memory, in the order in which a
// reader would add planes, are rounded there if they are to be, and leave it by the copy engine
// while the next unit is worked on.
//
// Arithmetic: 256 x 128 x 64 products are 1,024 cycles of the matrix units, for which 32 KiB (FP8)
// come from L2; a warp needs about 130 instructions for its part of them, 16 warps about 520 cycles
// of each scheduler.
#include "model/cuda/gemm_common.cuh"
#include "model/cuda/gemm_kernels.h"
#include "model/cuda/launch.cuh"
#include "model/cuda/machine.cuh"
#include "model/cuda/wgmma.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kGroups = 4;           // warpgroups that multiply
constexpr int kRows = 64 * kGroups;  // of weights
constexpr int kTokens = 128;         // of a tile at most
constexpr int kThreads = 128 * (1 + kGroups);
constexpr int kStages = 5;
constexpr int kAhead = 4;           // steps whose weights are fetched into L2 together
constexpr int kOutStride = 64 + 4;  // lanes of a warp meet in no bank
// Units of which some stage may be in the ring or some sums not stored yet, and more: a power of
// two.
constexpr int kWorks = 8;
constexpr int kProducerRegisters = 32;
constexpr int kConsumerRegisters = 112;
constexpr int kDone = -1;  // Work::job of the last

// Eight tiles of 128 rows beside sixteen of 256 weights' rows are about as many units as there are
// multiprocessors.
constexpr Cut CutFor(int tile) { return {.m_rows = kRows, .n_rows = tile, .band = 16}; }

struct Shared {
  __nv_bfloat16 tokens[kStages][8][kTokens][8];  // [k / 8][token][k % 8]
  float out[kGroups][kTokens][kOutStride];
  Work work[kWorks];  // unit by unit
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// Bytes of 64 rows and 64 columns; of a unit of scales of 64 rows, and its steps.
struct Layout {
  int step_bytes;
  int scale_bytes;
  int scale_steps;
};
template <MatrixType kType>
__device__ constexpr Layout LayoutOf() {
  return {Rows16<kType>::kStepBytes, 4 * Rows16<kType>::kScaleBytes, Rows16<kType>::kScaleSteps};
}
__device__ __forceinline__ Layout LayoutOf(MatrixType type) {
  if (type == MatrixType::kFp4) return LayoutOf<MatrixType::kFp4>();
  if (type == MatrixType::kFp8) return LayoutOf<MatrixType::kFp8>();
  return LayoutOf<MatrixType::kBf16>();
}

// Weights of a unit's steps from `begin` on into L2, those of warpgroup `group`; at first the
// scales of all steps too. One thread.
__device__ __forceinline__ void Prefetch(const GemmJob& job, const Work& work, int group,
                                         int begin) {
  const int tile = work.m_tile * kGroups + group;
  const int end = min(begin + kAhead, work.step_end);
  if (tile * 64 >= job.weight.rows || begin >= end) return;
  const Layout layout = LayoutOf(job.weight.type);
  const int steps = DivideUpInt(job.weight.columns, 64);
  PrefetchBulk(static_cast<const uint8_t*>(job.weight.data) + work.expert * job.expert_data +
                   (int64_t(tile) * steps + begin) * layout.step_bytes,
               (end - begin) * layout.step_bytes);
  if (begin > 0 || layout.scale_bytes == 0) return;
  const int bytes = DivideUpInt(steps, layout.scale_steps) * layout.scale_bytes;
  PrefetchBulk(job.weight.scales + work.expert * job.expert_scales + int64_t(tile) * bytes, bytes);
}

// The copying warpgroup: a thread's share of all stages of a unit, 16 bytes of each of some tokens.
// All stages of the ring may be on their way at a time: the copies arrive at `full` by themselves.
__device__ __forceinline__ void Produce(const GemmJob& job, const Work& work, Work* publish,
                                        Shared* shared, RingPlace<kStages>* place) {
  constexpr int kCopies = kTokens / 16;
  const int thread = int(threadIdx.x) % 128;
  const int lane = thread % 32;
  const int columns = job.weight.columns;
  // 8 tokens x 4 pieces of 16 bytes a warp and copy: whole sectors of 64 bytes of memory, whole
  // lines of 128 bytes of shared memory.
  const int piece = lane / 8 + thread / 32 % 2 * 4;
  const int first = thread / 64 * 8 + lane % 8;
  // Of a token's row, in units of 16 bytes: what a copy needs beyond this is one instruction, or
  // the copies would be what the products wait for.
  uint32_t rows[kCopies] = {};
  const auto stride = uint32_t(job.x_stride) / 8;
#pragma unroll
  for (int c = 0; c < kCopies; ++c) {
    const int token = c * 16 + first;
    if (token < work.count) rows[c] = uint32_t(SourceRow(job, work.first + token)) * stride;
  }
  if (thread < kGroups) Prefetch(job, work, thread, 0);
  const uint4* x = static_cast<const uint4*>(job.x) + piece;
  int left = (columns - piece * 8) * 2;  // bytes of the row from there on
  const int steps = work.step_end;
  for (int i = 0; i < steps; ++i, x += 8, left -= 128) {
    if (thread < kGroups && i % kAhead == 0) Prefetch(job, work, thread, i + kAhead);
    BarrierWait(&shared->empty[place->stage], place->parity ^ 1);
    const uint32_t to = SharedAddress(&shared->tokens[place->stage][piece][first][0]);
    const int bytes = max(0, min(16, left));
#pragma unroll
    for (int c = 0; c < kCopies; ++c) {
      // Sums of tokens that do not exist go nowhere.
      if (c * 16 + first >= work.count) continue;
      CopyAsync16(to + c * int(sizeof(shared->tokens[0][0][0]) * 16),
                  bytes > 0 ? x + rows[c] : static_cast<const uint4*>(job.x), bytes);
    }
    CopyAsyncArrive(&shared->full[place->stage]);
    if (thread == 0) {
      if (i == 0) *publish = work;
      BarrierArrive(&shared->full[place->stage]);
    }
    place->Next();
  }
}

__device__ __forceinline__ void ProduceAll(const GemmArgs& a, Cut cut, int tiles, Shared* shared) {
  RingPlace<kStages> place;
  int unit = int(blockIdx.x);
  for (int number = 0;; ++number, unit += int(gridDim.x)) {
    Work* publish = &shared->work[number % kWorks];
    const Work work = FindWork(a, unit, cut, tiles);
    if (work.job >= 0) {
      Produce(a.jobs[work.job], work, publish, shared, &place);
      continue;
    }
    BarrierWait(&shared->empty[place.stage], place.parity ^ 1);
    if (threadIdx.x == 0) {
      publish->job = kDone;
      BarrierArrive(&shared->full[place.stage]);
    }
    BarrierArrive(&shared->full[place.stage]);
    return;
  }
}

// A warp of a multiplying warpgroup, and what it has loaded of weights of this type: always the
// next step's. Registers are scarce: what a unit is stays in shared memory.
template <MatrixType kType>
struct Multiplier {
  Shared* shared;
  int number;  // of the unit
  RingPlace<kStages> place;
  const uint8_t* data = nullptr;  // nullptr: no such rows of weights
  const uint8_t* scales = nullptr;
  // The next step's weights are loaded while one's products run; of BF16 there is no room for them
  // but where they are used.
  static constexpr bool kEarly = kType != MatrixType::kBf16;
  Piece<kType> piece;

  static __device__ __forceinline__ int Lane() { return int(threadIdx.x) % 32; }
  static __device__ __forceinline__ int Warp() { return int(threadIdx.x) / 32 % 4; }
  static __device__ __forceinline__ int Group() { return int(threadIdx.x) / 128 - 1; }
  __device__ __forceinline__ const Work& Unit(int more = 0) const {
    return shared->work[(number + more) % kWorks];
  }

  // Of the first 16 columns of a stage.
  __device__ __forceinline__ uint64_t Tokens(int stage) const {
    const uint64_t first =
        WgmmaDescriptor(SharedAddress(shared->tokens), kTokens * 16, /*n_bytes=*/128);
    return WgmmaAdvance(first, stage * int(sizeof(shared->tokens[0])));
  }

  // Unsigned: cheaper to divide.
  __device__ __forceinline__ void Load(unsigned step) {
#pragma unroll
    for (int p = 0; p < Piece<kType>::kParts; ++p) {
      // Blocks of other tokens read the same weights: they stay in L2.
      piece.raw[p] = __ldg(reinterpret_cast<const uint4*>(
          data + int64_t(step) * Rows16<kType>::kStepBytes + p * 512));
    }
    constexpr unsigned kSteps = Rows16<kType>::kScaleSteps;
    piece.LoadScale(scales + step / kSteps * (4 * Rows16<kType>::kScaleBytes), int(step % kSteps),
                    Lane());
  }

  // Waits for the first stage of the unit `more` further on, which the ring is at; loads its first
  // weights, if they are of this type.
  __device__ __forceinline__ bool Begin(const GemmArgs& a, int more) {
    BarrierWait(&shared->full[place.stage], place.parity);
    const Work& work = Unit(more);
    if (work.job < 0 || a.jobs[work.job].weight.type != kType) return false;
    const GemmJob& job = a.jobs[work.job];
    const int steps = DivideUpInt(job.weight.columns, 64);
    const int tile = work.m_tile * kGroups + Group();
    data = nullptr;
    if (tile * 64 >= job.weight.rows) return true;
    const int m16 = tile * 4 + Warp();
    data = static_cast<const uint8_t*>(job.weight.data) + work.expert * job.expert_data +
           Rows16<kType>::Data(m16, steps) + Lane() * 16;
    scales =
        job.weight.scales + work.expert * job.expert_scales + Rows16<kType>::Scales(m16, steps);
    if constexpr (kEarly) Load(0);
    return true;
  }

  __device__ __forceinline__ void Release() {
    WarpArrive(&shared->empty[place.stage], Lane());
    place.Next();
  }

  // Steps [begin, end) of `steps`, of kCount tokens.
  template <int kCount>
  __device__ __forceinline__ void Multiply(int begin, int end, int steps,
                                           float (&sums)[kCount / 2]) {
    for (int step = begin; step < end; ++step) {
      if constexpr (!kEarly) Load(unsigned(step));
      uint32_t fragments[4][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) piece.Fragment(j, fragments[j]);
      if constexpr (kEarly) {
        if (step + 1 < steps) Load(unsigned(step) + 1);
      }
      BarrierWait(&shared->full[place.stage], place.parity);
      FenceAsyncProxy();
      const uint64_t tokens = Tokens(place.stage);
      WgmmaFence();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Wgmma<kCount>::Run(sums, fragments[j], WgmmaAdvance(tokens, j * 2 * kTokens * 16));
      }
      WgmmaCommit();
      // The compiler serialises every product if fragments are written while some are under way;
      // the other warpgroups keep the matrix units busy meanwhile.
      WgmmaWait<0>();
      Release();
    }
  }

  // Of a thread's number i, from its first: numbers of `size` to a float.
  static __device__ __forceinline__ int Place(int i, int size) {
    return (i / 4 * 8 + i % 2) * kOutStride * size + i / 2 % 2 * 8;
  }

  // A slice's sums join those before it; a thread has the same places in each.
  template <int kCount>
  __device__ __forceinline__ void Join(const float (&sums)[kCount / 2], float factor, bool first) {
    float* out = &shared->out[Group()][Lane() % 4 * 2][Warp() * 16 + Lane() / 4];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      float* place = out + Place(i, 1);
      const float sum = sums[i] * factor;
      *place = first ? sum : *place + sum;
    }
  }

  // The last slice's do, and are rounded: a token's BF16 lie where its first floats did.
  template <int kCount>
  __device__ __forceinline__ void JoinRounded(float (&sums)[kCount / 2], float factor, bool first) {
    auto* tokens = shared->out[Group()][Lane() % 4 * 2];
    const int row = Warp() * 16 + Lane() / 4;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      sums[i] *= factor;
      if (!first) sums[i] = tokens[row + Place(i, 1)] + sums[i];
    }
    if (!first) Sync();  // nobody reads what others overwrite
    auto* out = reinterpret_cast<uint16_t*>(tokens) + row;
#pragma unroll
    for (int i = 0; i < kCount / 2; i += 2) {
      const uint32_t pair = PackBf16(sums[i], sums[i + 1]);
      out[Place(i, 2)] = static_cast<uint16_t>(pair);
      out[Place(i + 1, 2)] = static_cast<uint16_t>(pair >> 16);
    }
  }

  static __device__ __forceinline__ void Sync() { SyncSome<128>(1 + Group()); }

  // The warpgroup's tokens, one a thread. T: of y.
  template <typename T>
  __device__ __forceinline__ void Store(const Work& work, const GemmJob& job) const {
    FenceAsyncProxy();
    Sync();
    const auto* out = reinterpret_cast<const T*>(shared->out[Group()]);
    constexpr int kStride = kOutStride * int(sizeof(float) / sizeof(T));
    const int first = (work.m_tile * kGroups + Group()) * 64;
    const int count = min(64, job.weight.rows - first);
    T* y = static_cast<T*>(job.y) + int64_t(work.first) * job.y_stride + first;
    const int thread = int(threadIdx.x) % 128;
    constexpr int kSize = sizeof(T);
    if ((reinterpret_cast<uintptr_t>(y) | job.y_stride * kSize | count * kSize) % 16 == 0) {
      if (thread < work.count)
        StoreBulk(y + int64_t(thread) * job.y_stride, out + thread * kStride, count * kSize);
      StoreBulkCommit();
    } else {
      for (int i = thread; i < work.count * 64; i += 128) {
        if (i % 64 < count)
          y[int64_t(i / 64) * job.y_stride + i % 64] = out[i / 64 * kStride + i % 64];
      }
    }
  }

  // A unit of up to kCount tokens, whose first weights are loaded; before its sums leave, the next
  // one's are. Whether there are such.
  template <int kCount>
  __device__ __forceinline__ bool Do(const GemmArgs& a) {
    const int steps = Unit().step_end;
    const int slice = DivideUpInt(steps, a.jobs[Unit().job].weight.slices);
    bool more = false;
    for (int begin = 0; begin < steps; begin += slice) {
      float sums[kCount / 2] = {};
      Multiply<kCount>(begin, min(begin + slice, steps), steps, sums);
      if (begin + slice >= steps) more = Begin(a, 1);
      if (begin == 0) {
        StoreBulkWaitRead();  // of the unit before
        Sync();
      }
      const GemmJob& job = a.jobs[Unit().job];
      if (job.rounded && begin + slice >= steps) {
        JoinRounded<kCount>(sums, job.weight.factor, begin == 0);
      } else {
        Join<kCount>(sums, job.weight.factor, begin == 0);
      }
    }
    const GemmJob& job = a.jobs[Unit().job];
    if (job.rounded) {
      Store<uint16_t>(Unit(), job);
    } else {
      Store<float>(Unit(), job);
    }
    ++number;
    return more;
  }

  __device__ __forceinline__ bool Skip(const GemmArgs& a) {
    const int steps = Unit().step_end;
    for (int step = 0; step < steps; ++step) {
      BarrierWait(&shared->full[place.stage], place.parity);
      Release();
    }
    ++number;
    return Begin(a, 0);
  }

  // Units as long as their weights are of this type.
  __device__ __forceinline__ void Run(const GemmArgs& a) {
    for (bool more = Begin(a, 0); more;) {
      const int count = Unit().count;
      if (data == nullptr) {
        more = Skip(a);
      } else if (count <= 32) {
        more = Do<32>(a);
      } else if (count <= 64) {
        more = Do<64>(a);
      } else if (count <= 96) {
        more = Do<96>(a);
      } else if (count <= 112) {
        more = Do<112>(a);
      } else {
        more = Do<128>(a);
      }
    }
  }
};

template <MatrixType kType>
__device__ __forceinline__ void MultiplyType(const GemmArgs& a, Shared* shared, int* number,
                                             RingPlace<kStages>* place) {
  Multiplier<kType> m = {.shared = shared, .number = *number, .place = *place};
  m.Run(a);
  *number = m.number;
  *place = m.place;
}

__device__ __forceinline__ void MultiplyAll(const GemmArgs& a, Shared* shared) {
  RingPlace<kStages> place;
  int number = 0;
  while (true) {
    BarrierWait(&shared->full[place.stage], place.parity);
    const int job = shared->work[number % kWorks].job;
    if (job < 0) break;
    const MatrixType type = a.jobs[job].weight.type;
    if (type == MatrixType::kBf16) {
      MultiplyType<MatrixType::kBf16>(a, shared, &number, &place);
    } else if (type == MatrixType::kFp8) {
      MultiplyType<MatrixType::kFp8>(a, shared, &number, &place);
    } else {
      MultiplyType<MatrixType::kFp4>(a, shared, &number, &place);
    }
  }
  StoreBulkWait();
}

__global__ void __launch_bounds__(kThreads, 1)
    ManyRowsKernel(const __grid_constant__ GemmArgs a, int tile) {
  auto* shared = SharedMemory<Shared>();
  GridDependencyLaunch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&shared->full[i], 1 + 128);  // the unit is there; a thread's copies are
      BarrierInit(&shared->empty[i], 4 * kGroups * kWarpArrivals);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  GridDependencyWait();
  if (threadIdx.x < 128) {
    GiveRegisters<kProducerRegisters>();
    ProduceAll(a, CutFor(tile), HasGroups(a) ? *a.tile_count : 0, shared);
  } else {
    TakeRegisters<kConsumerRegisters>();
    MultiplyAll(a, shared);
  }
}

// Rows of a tile of jobs that are not grouped: of the rounds in which the multiprocessors do all
// units, the last should not be an almost empty one. A unit costs its rows and a little more.
int ChooseTile(const GemmArgs& args) {
  constexpr int kMore = 16;
  int best = 0;
  int least = 0;
  for (const int tile : {128, 112, 96, 64}) {
    const int units = CountUnits(args, CutFor(tile), 0);
    const int cost = DivideUpInt(units, Multiprocessors()) * (tile + kMore);
    if (best == 0 || cost < least) best = tile, least = cost;
  }
  return best;
}

}  // namespace

void GemmManyRows(const GemmArgs& args, int tile_limit, cudaStream_t stream) {
  RaiseSharedMemory<ManyRowsKernel>();
  const int tile = HasGroups(args) ? kTokens : ChooseTile(args);
  const int units = CountUnits(args, CutFor(tile), tile_limit);
  Launch(ManyRowsKernel, dim3(unsigned(std::min(Multiprocessors(), units))), dim3(kThreads),
         sizeof(Shared), stream, args, tile);
}

}  // namespace agentd::model::cuda
