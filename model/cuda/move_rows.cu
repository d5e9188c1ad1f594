// Rows from here to there by a list of indices.
#include "model/cuda/elementwise.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 256;

template <bool kGather>
__global__ void __launch_bounds__(kThreads)
    MoveRowsKernel(const uint32_t* in, const int* rows, int64_t words, uint32_t* out) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int64_t at = rows[blockIdx.x] * words;
  const int64_t here = blockIdx.x * words;
  for (int64_t i = int64_t(blockIdx.y) * kThreads + threadIdx.x; i < words;
       i += int64_t(gridDim.y) * kThreads) {
    out[(kGather ? here : at) + i] = in[(kGather ? at : here) + i];
  }
}

dim3 Grid(int count, int64_t words) {
  const int64_t blocks = (words + kThreads - 1) / kThreads;
  return dim3(unsigned(count), unsigned(blocks < 64 ? blocks : 64));
}

}  // namespace

void GatherRows(const void* in, const int* rows, int count, int64_t bytes, void* out,
                cudaStream_t stream) {
  Launch(MoveRowsKernel<true>, Grid(count, bytes / 4), dim3(kThreads), 0, stream,
         static_cast<const uint32_t*>(in), rows, bytes / 4, static_cast<uint32_t*>(out));
}

void ScatterRows(const void* in, const int* rows, int count, int64_t bytes, void* out,
                 cudaStream_t stream) {
  Launch(MoveRowsKernel<false>, Grid(count, bytes / 4), dim3(kThreads), 0, stream,
         static_cast<const uint32_t*>(in), rows, bytes / 4, static_cast<uint32_t*>(out));
}

}  // namespace agentd::model::cuda
