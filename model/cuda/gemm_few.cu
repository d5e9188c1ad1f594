// Products of few rows (decode): the floor is the weights' bytes over the memory's bandwidth.
//
// Four groups of four warps a block, a block per multiprocessor. For each group a thread streams
// the weights of its units through a ring of shared memory, unit after unit without a pause, and
// begins before the kernels ahead have ended.
#include "model/cuda/gemm_common.cuh"
#include "model/cuda/gemm_kernels.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kGroups = 4;
constexpr int kGroupThreads = 128;
constexpr int kThreads = kGroups * (kGroupThreads + 32);  // and a warp each that copies
constexpr int kRows = 64;                                 // of weights of a unit
constexpr int kStageBytes = 8192;

// Multiprocessors that a product of one row leaves to the kernels around it, whose few blocks are
// there early then, and in no block's way: the others' shared memory and registers are all taken.
constexpr int kSpare = 4;

template <typename S>
constexpr Cut kCut = {.m_rows = kRows, .n_rows = 8 * S::kTiles, .slices = true};

// Steps of 64 columns of a stage: 8 KiB of 64 rows.
template <MatrixType kType>
constexpr int kStageSteps = kStageBytes / Rows16<kType>::kStepBytes;

// Tiles of 8 rows of inputs; kOne: there is one row, which all lanes read.
template <int kTilesOf, bool kOneOf>
struct Shape {
  static constexpr int kTiles = kTilesOf;
  static constexpr bool kOne = kOneOf;
  static constexpr int kHeld = kOne ? 1 : 8 * kTiles;
  static constexpr int kStages = kTiles <= 2 ? 4 : 2;  // of the ring: what shared memory holds
};

template <typename S>
struct Group {
  // Inputs held at once. Of one row [columns / 64][t][16]: what lane t needs of 64 columns, side by
  // side. Otherwise [rows][columns + 8]: lanes g, t read word g * stride / 2 + t of 32 banks.
  static constexpr int kChunkSteps = S::kOne ? 64 : S::kTiles == 1 ? 8 : 4;
  static constexpr int kRowStride = kChunkSteps * 64 + 8;
  static constexpr int kBufferElements = S::kHeld * kRowStride;

  uint8_t weights[S::kStages][kStageBytes];
  uint8_t scales[S::kStages][512];
  alignas(16) __nv_bfloat16 inputs[2][kBufferElements];
  uint64_t full[S::kStages];
  uint64_t empty[S::kStages];
};

// Stages that a copying thread asks for one at a time at first. All at once (17 MB of all blocks)
// would make the small kernels ahead wait for memory behind them.
constexpr int kPaced = 3;

// One thread: all stages of a unit. `paced`: of so many more each waits for the one before.
template <MatrixType kType, typename S>
__device__ void Stream(const GemmJob& job, const Work& work, Group<S>* group,
                       RingPlace<S::kStages>* place, int* paced) {
  constexpr int kSteps = kStageSteps<kType>;
  using Layout = Rows16<kType>;
  const int steps = DivideUpInt(job.weight.columns, 64);
  const uint8_t* data = static_cast<const uint8_t*>(job.weight.data) +
                        work.expert * job.expert_data + Layout::Data(work.m_tile * 4, steps);
  const uint8_t* scales =
      job.weight.scales + work.expert * job.expert_scales + Layout::Scales(work.m_tile * 4, steps);
  // Stages end at whole multiples, so that one unit of scales serves each.
  for (int at = work.step_begin / kSteps * kSteps; at < work.step_end; at += kSteps) {
    const int begin = max(at, work.step_begin);
    const int bytes = (min(at + kSteps, work.step_end) - begin) * Layout::kStepBytes;
    BarrierWait(&group->empty[place->stage], place->parity ^ 1);
    uint64_t* full = &group->full[place->stage];
    BarrierExpect(full, bytes + 4 * Layout::kScaleBytes);
    CopyBulkOnce(group->weights[place->stage] + (begin - at) * Layout::kStepBytes,
                 data + int64_t(begin) * Layout::kStepBytes, bytes, full);
    if constexpr (Layout::kScaleBytes > 0) {
      CopyBulkOnce(group->scales[place->stage],
                   scales + int64_t(at / Layout::kScaleSteps) * 4 * Layout::kScaleBytes,
                   4 * Layout::kScaleBytes, full);
    }
    if (*paced > 0) {
      --*paced;
      BarrierWait(full, place->parity);
    }
    place->Next();
  }
}

// How a launch's units are shared out among slots, one for each group of each block. Units of jobs
// that are not grouped are known before the kernels ahead have ended, so each slot begins with its
// own; they go to the last `plain_slots` slots, those of grouped jobs to the first ones on, since a
// slot that has both ends last.
struct Sharing {
  int plain_units = 0;
  int plain_slots = 0;
};

template <typename S>
struct Slot {
  int number;
  int slots;
  int from_last;
  int plain;  // units of jobs that are not grouped
  const Sharing& sharing;

  __device__ __forceinline__ Slot(const Sharing& how, int group) : sharing(how) {
    // Units go to all blocks before a block's second group gets one.
    number = group * int(gridDim.x) + int(blockIdx.x);
    slots = kGroups * int(gridDim.x);
    from_last = slots - 1 - number;
    plain = from_last < min(sharing.plain_slots, sharing.plain_units)
                ? DivideUpInt(sharing.plain_units - from_last, sharing.plain_slots)
                : 0;
  }
  // Its i-th unit; grouped jobs have `tiles` tiles.
  __device__ __forceinline__ Work Find(const GemmArgs& a, int i, int tiles) const {
    const int unit = i < plain ? from_last + i * sharing.plain_slots
                               : sharing.plain_units + number + (i - plain) * slots;
    return FindWork(a, unit, kCut<S>, tiles);
  }
};

// A group's copying thread: the weights of its slot's units.
template <typename S>
__device__ void StreamUnits(const GemmArgs& a, Group<S>* group, const Slot<S>& slot) {
  RingPlace<S::kStages> place;
  int paced = kPaced;
  // Tiles of grouped jobs may have been written by the kernel ahead.
  bool settled = !HasGroups(a);
  int tiles = 0;
  for (int i = 0;; ++i) {
    if (i == slot.plain && !settled) {
      if (!a.tiles_settled) GridDependencyWait();
      settled = true;
      tiles = *a.tile_count;
    }
    const Work work = slot.Find(a, i, tiles);
    if (work.job < 0) break;
    const GemmJob& job = a.jobs[work.job];
    if (job.weight.type == MatrixType::kBf16)
      Stream<MatrixType::kBf16>(job, work, group, &place, &paced);
    else if (job.weight.type == MatrixType::kFp8)
      Stream<MatrixType::kFp8>(job, work, group, &place, &paced);
    else
      Stream<MatrixType::kFp4>(job, work, group, &place, &paced);
  }
}

// Inputs of a chunk from `step` on into one buffer; columns beyond the matrix become zeros. Rows
// that do not exist keep what is there: their sums go nowhere.
template <typename S>
__device__ __forceinline__ void LoadInputs(const GemmJob& job, const Work& work, int step,
                                           int thread, __nv_bfloat16* buffer) {
  const int columns = job.weight.columns;
  if constexpr (S::kOne) {
    const auto* row = static_cast<const __nv_bfloat16*>(job.x) +
                      int64_t(SourceRow(job, work.first)) * job.x_stride;
    const int pairs = min(Group<S>::kChunkSteps, work.step_end - step) * 32;
    for (int i = thread; i < pairs; i += kGroupThreads) {
      const int column = step * 64 + i * 2;
      // Lane t has columns 2t, 2t+1, 2t+8, 2t+9 of each 16.
      const int to = i / 32 * 32 + i % 4 * 8 + i % 32 / 4;
      const bool there = column < columns;
      CopyAsync4(SharedAddress(buffer + to * 2), there ? row + column : row, there ? 4 : 0);
    }
  } else {
    constexpr int kPieces = Group<S>::kChunkSteps * 8;  // of 16 bytes a row
    for (int i = thread; i < work.count * kPieces; i += kGroupThreads) {
      const int n = i / kPieces;
      const int piece = i % kPieces;
      const int column = step * 64 + piece * 8;
      const int bytes = max(0, min(16, (columns - column) * 2));
      const auto* row = static_cast<const __nv_bfloat16*>(job.x) +
                        int64_t(SourceRow(job, work.first + n)) * job.x_stride;
      CopyAsync16(SharedAddress(buffer + n * Group<S>::kRowStride + piece * 8),
                  bytes > 0 ? row + column : row, bytes);
    }
  }
  CopyAsyncCommit();
}

// The steps of a stage for one warp: those in [begin, end), or all. All weights are loaded before
// the first is used. inputs: of this lane, from the stage's first step on.
template <MatrixType kType, typename S, bool kWhole>
__device__ __forceinline__ void MultiplyStage(const uint8_t* weights, const uint8_t* scales,
                                              const __nv_bfloat16* inputs, int at, int begin,
                                              int end, int lane, float (&sums)[S::kTiles][4]) {
  constexpr int kSteps = kStageSteps<kType>;
  Piece<kType> pieces[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int p = 0; p < Piece<kType>::kParts; ++p) {
      pieces[i].raw[p] = *reinterpret_cast<const uint4*>(weights + i * Rows16<kType>::kStepBytes +
                                                         p * 512 + lane * 16);
    }
    pieces[i].LoadScale(scales, at + i, lane);
  }
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if (!kWhole && (at + i < begin || at + i >= end)) continue;
    uint4 pairs[2];
    if constexpr (S::kOne) {
      pairs[0] = *reinterpret_cast<const uint4*>(inputs + i * 64);
      pairs[1] = *reinterpret_cast<const uint4*>(inputs + i * 64 + 8);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t fragment[4];
      pieces[i].Fragment(j, fragment);
      if constexpr (S::kOne) {
        const uint4& pair = pairs[j / 2];
        MultiplyAdd(sums[0], fragment, j % 2 == 0 ? pair.x : pair.z, j % 2 == 0 ? pair.y : pair.w);
      } else {
#pragma unroll
        for (int n = 0; n < S::kTiles; ++n) {
          const auto* b = reinterpret_cast<const uint32_t*>(inputs + n * 8 * Group<S>::kRowStride +
                                                            i * 64 + j * 16);
          MultiplyAdd(sums[n], fragment, b[0], b[4]);
        }
      }
    }
  }
}

// A group's warps: a unit, whose first chunk of inputs is on its way into inputs[*buffer]. The next
// unit's is sent for on the way.
template <MatrixType kType, typename S>
__device__ void Multiply(const GemmArgs& a, const Work& work, const Work& next, int number,
                         int thread, Group<S>* group, RingPlace<S::kStages>* place, int* buffer) {
  const GemmJob& job = a.jobs[work.job];
  using Layout = Rows16<kType>;
  constexpr int kSteps = kStageSteps<kType>;
  constexpr int kChunk = Group<S>::kChunkSteps;
  const int lane = thread % 32;
  const int warp = thread / 32;
  float sums[S::kTiles][4] = {};
  for (int chunk = work.step_begin / kChunk * kChunk; chunk < work.step_end; chunk += kChunk) {
    CopyAsyncWait<0>();
    SyncSome<kGroupThreads>(number + 1);
    // The other buffer was read to the end before this barrier.
    if (chunk + kChunk < work.step_end) {
      LoadInputs<S>(job, work, chunk + kChunk, thread, group->inputs[*buffer ^ 1]);
    } else if (next.job >= 0) {
      LoadInputs<S>(a.jobs[next.job], next, next.step_begin / kChunk * kChunk, thread,
                    group->inputs[*buffer ^ 1]);
    }
    const __nv_bfloat16* inputs =
        group->inputs[*buffer] +
        (S::kOne ? lane % 4 * 16 : lane / 4 * Group<S>::kRowStride + lane % 4 * 2);
    for (int at = max(chunk, work.step_begin / kSteps * kSteps);
         at < min(chunk + kChunk, work.step_end); at += kSteps) {
      BarrierWait(&group->full[place->stage], place->parity);
      const uint8_t* weights = group->weights[place->stage] + warp * Layout::kPieceBytes;
      const uint8_t* scales = group->scales[place->stage] + warp * Layout::kScaleBytes;
      const __nv_bfloat16* here = inputs + (at - chunk) * 64;
      if (at >= work.step_begin && at + kSteps <= work.step_end) {
        MultiplyStage<kType, S, true>(weights, scales, here, at, 0, 0, lane, sums);
      } else {
        MultiplyStage<kType, S, false>(weights, scales, here, at, work.step_begin, work.step_end,
                                       lane, sums);
      }
      __syncwarp();
      WarpArrive(&group->empty[place->stage], lane);
      place->Next();
    }
    *buffer ^= 1;
  }

  float* y = static_cast<float*>(job.y) + work.slice * job.plane_stride;
#pragma unroll
  for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = n * 8 + lane % 4 * 2 + e % 2;
      const int m = work.m_tile * kRows + warp * 16 + lane / 4 + e / 2 * 8;
      if (row < work.count && m < job.weight.rows)
        y[int64_t(work.first + row) * job.y_stride + m] = sums[n][e] * job.weight.factor;
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 1)
    FewRowsKernel(const __grid_constant__ GemmArgs a, const __grid_constant__ Sharing sharing) {
  auto* groups = SharedMemory<Group<S>>();
  // Who relies on tiles_settled must not start before they are.
  if (!HasGroups(a)) GridDependencyLaunch();
  if (threadIdx.x < kGroups * S::kStages) {
    Group<S>& group = groups[threadIdx.x / S::kStages];
    BarrierInit(&group.full[threadIdx.x % S::kStages], 1);
    BarrierInit(&group.empty[threadIdx.x % S::kStages], kGroupThreads / 32 * kWarpArrivals);
    FenceBarrierInit();
  }
  __syncthreads();
  const bool copies = threadIdx.x >= kGroups * kGroupThreads;
  const int number =
      copies ? (threadIdx.x - kGroups * kGroupThreads) / 32 : threadIdx.x / kGroupThreads;
  Group<S>* group = groups + number;
  const Slot<S> slot(sharing, number);
  if (copies) {
    if (threadIdx.x % 32 == 0) StreamUnits(a, group, slot);
    return;
  }
  // What can be known of its first units is found before the wait.
  Work work = slot.Find(a, 0, 0);
  Work next = slot.Find(a, 1, 0);
  GridDependencyWait();
  int tiles = 0;
  if (HasGroups(a)) {
    GridDependencyLaunch();
    tiles = *a.tile_count;
    if (slot.plain < 1) work = slot.Find(a, 0, tiles);
    if (slot.plain < 2) next = slot.Find(a, 1, tiles);
  }
  if (work.job < 0) return;
  RingPlace<S::kStages> place;
  const int thread = int(threadIdx.x) % kGroupThreads;
  constexpr int kChunk = Group<S>::kChunkSteps;
  LoadInputs<S>(a.jobs[work.job], work, work.step_begin / kChunk * kChunk, thread,
                group->inputs[0]);
  int buffer = 0;
  for (int i = 2;; ++i) {
    const MatrixType type = a.jobs[work.job].weight.type;
    if (type == MatrixType::kBf16)
      Multiply<MatrixType::kBf16>(a, work, next, number, thread, group, &place, &buffer);
    else if (type == MatrixType::kFp8)
      Multiply<MatrixType::kFp8>(a, work, next, number, thread, group, &place, &buffer);
    else
      Multiply<MatrixType::kFp4>(a, work, next, number, thread, group, &place, &buffer);
    if (next.job < 0) return;
    work = next;
    next = slot.Find(a, i, tiles);
  }
}

// Slots for units of jobs that are not grouped: those that have one unit fewer of grouped jobs, or
// more where these would take longer than the others.
int PlainSlots(const GemmArgs& args, const Cut& cut, int slots, int tile_limit) {
  int64_t plain_steps = 0;
  int grouped_units = 0;
  int longest = 1;  // steps of a unit of a grouped job
  for (int i = 0; i < args.job_count; ++i) {
    const GemmJob& job = args.jobs[i];
    const int steps = DivideUpInt(job.weight.columns, 64);
    const int units = cut.Across(job.weight) * cut.Tiles(job, args.rows, tile_limit);
    if (job.grouped) {
      grouped_units += units;
      longest = std::max(longest, DivideUpInt(steps, job.weight.slices));
    } else {
      plain_steps += int64_t(units) * DivideUpInt(steps, job.weight.slices);
    }
  }
  const int idle = slots - grouped_units % slots;
  return int(std::min<int64_t>(slots, std::max<int64_t>(idle, plain_steps / longest + 1)));
}

template <typename S>
void Start(const GemmArgs& args, int tile_limit, cudaStream_t stream) {
  constexpr size_t kBytes = kGroups * sizeof(Group<S>);
  RaiseSharedMemory<FewRowsKernel<S>>();
  const int units = CountUnits(args, kCut<S>, tile_limit);
  const int most = Multiprocessors();
  const bool spares = S::kOne && units <= 2 * kGroups * (most - kSpare);
  const int blocks = std::min(spares ? most - kSpare : most, units);
  const Sharing sharing = {.plain_units = CountUnits(args, kCut<S>, 0),
                           .plain_slots = PlainSlots(args, kCut<S>, kGroups * blocks, tile_limit)};
  Launch(FewRowsKernel<S>, dim3(unsigned(blocks)), dim3(kThreads), kBytes, stream, args, sharing);
}

}  // namespace

void GemmFewRows(const GemmArgs& args, int tile, int tile_limit, cudaStream_t stream) {
  if (args.rows == 1) return Start<Shape<1, true>>(args, tile_limit, stream);
  if (tile == 8) return Start<Shape<1, false>>(args, tile_limit, stream);
  if (tile == 16) return Start<Shape<2, false>>(args, tile_limit, stream);
  Start<Shape<4, false>>(args, tile_limit, stream);
}

}  // namespace agentd::model::cuda
