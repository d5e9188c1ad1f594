// How kernels are launched, and what each does about its neighbours in the stream: a kernel may
// start while the one before it still runs (programmatic dependent launch), so that its launch and
// its loads of weights cost no time.
#ifndef AGENTD_MODEL_CUDA_LAUNCH_CUH_
#define AGENTD_MODEL_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace agentd::model::cuda {

// Every thread calls it before its first access to anything that an earlier kernel wrote or reads.
__device__ inline void GridDependencyWait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel start; first in a kernel. It still waits for this one's end before it uses
// what this one writes.
__device__ inline void GridDependencyLaunch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

template <typename... Params, typename... Args>
void Launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
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
  // The error stays for cudaGetLastError.
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

// Lets a kernel have more than 48 KiB of dynamic shared memory. Once per kernel.
template <typename... Params>
void AllowSharedBytes(void (*kernel)(Params...), size_t bytes) {
  static_cast<void>(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(bytes)));
}

// Of the current device, which does not change.
inline int Multiprocessors() {
  static const int count = [] {
    int device = 0;
    int value = 0;
    (void)cudaGetDevice(&device);
    (void)cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
    return value > 0 ? value : 1;
  }();
  return count;
}

// Sizes that the kernels cannot do are the caller's mistake.
inline void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "CUDA kernels: %s\n", what);
  std::abort();
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_LAUNCH_CUH_
