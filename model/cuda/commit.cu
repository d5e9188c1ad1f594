// The batch's own keys and streams become its sequences' state, except of segments that failed.
#include "model/cuda/device_math.cuh"
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kOctetsPerThread = 4;
constexpr int kStreamPart = 8 * kThreads * kOctetsPerThread;

template <typename Word>
__device__ inline void CopyWords(uint8_t* to, const uint8_t* from, int bytes) {
  for (int i = int(threadIdx.x); i < bytes / int(sizeof(Word)); i += kThreads)
    reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
}

// blockIdx.x is the row; blockIdx.y a layer, whose key it copies, or beyond them a part of the
// streams.
template <bool kLow>
__global__ void __launch_bounds__(kThreads) CommitKernel(const CommitArgs a) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t row = blockIdx.x;
  const SegmentView& g = a.batch.segments[a.batch.segment_of[row]];
  if (g.failed) return;
  const int64_t j = row - g.row_begin;
  const int part = int(blockIdx.y);
  if (part < a.layers) {
    const bool early = a.mtp && part + 1 == a.layers && !a.mtp_in_place;
    const int64_t position = g.start + j - (early ? 1 : 0);
    // Of rows that share a place in the ring only the last may write.
    if (position < 0 || j < g.rows - a.state.ring) return;
    const int bytes = a.state.entry_bytes;
    const uint8_t* const from = a.window_keys + (int64_t(part) * a.batch.rows + row) * bytes;
    uint8_t* const to = g.rings + (int64_t(part) * a.state.ring + position % a.state.ring) * bytes;
    if (bytes % 8 == 0 && Aligned(from, 8) && Aligned(to, 8)) {
      CopyWords<uint2>(to, from, bytes);
    } else {
      CopyWords<uint8_t>(to, from, bytes);
    }
    return;
  }
  const int slot = g.slots[j + 1];
  if (slot < 0) return;
  float* const to = g.frontiers + (slot + int64_t{1}) * a.state.frontier_floats - a.stream_floats;
  const int64_t first = int64_t(part - a.layers) * kStreamPart;
#pragma unroll
  for (int k = 0; k < kOctetsPerThread; ++k) {
    const int64_t i = first + 8 * (int(threadIdx.x) + k * kThreads);
    const int count = int(min(a.stream_floats - i, int64_t{8}));
    StoreFloats(to + i, count, LoadValues<kLow>(a.streams, row * a.stream_floats + i, count));
  }
}

}  // namespace

void Commit(const CommitArgs& args, cudaStream_t stream) {
  if (args.batch.rows <= 0) return;
  const int64_t parts =
      args.streams == nullptr ? 0 : DivideUp(args.stream_floats, int64_t{kStreamPart});
  if (args.layers + parts <= 0) return;
  const dim3 grid(unsigned(args.batch.rows), unsigned(args.layers + parts));
  Launch(args.state.low ? CommitKernel<true> : CommitKernel<false>, grid, dim3(kThreads), 0, stream,
         args);
}

}  // namespace agentd::model::cuda
