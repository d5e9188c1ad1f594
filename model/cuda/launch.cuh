// How kernels are launched: each may begin while the one before it on the stream still runs
// (programmatic dependent launch). So a kernel calls GridDependencyWait() before it first reads or
// writes anything that an earlier kernel writes or reads, and GridDependencyLaunch() early; what it
// does before the wait (loading weights) overlaps its predecessor's end.
#ifndef AGENTD_MODEL_CUDA_LAUNCH_CUH_
#define AGENTD_MODEL_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <utility>

namespace agentd::model::cuda {

__device__ __forceinline__ void GridDependencyWait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ __forceinline__ void GridDependencyLaunch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// A failed launch is left for cudaGetLastError().
template <typename... Parameters, typename... Arguments>
void Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  (void)cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Lets a kernel have more than 48 KiB of dynamic shared memory. Once per kernel.
template <typename... Parameters>
void AllowSharedBytes(void (*kernel)(Parameters...), size_t bytes) {
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes));
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_LAUNCH_CUH_
