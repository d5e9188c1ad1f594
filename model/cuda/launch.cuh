// How kernels are launched, and what each does about its neighbours in the stream: a kernel may
// start while the one before it still runs (programmatic dependent launch), so that its launch and
// its loads of weights cost no time.
#ifndef AGENTD_MODEL_CUDA_LAUNCH_CUH_
#define AGENTD_MODEL_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "model/cuda/machine.cuh"

namespace agentd::model::cuda {

template <typename... Params, typename... Args>
void LaunchWith(cudaLaunchAttribute* attributes, unsigned count, void (*kernel)(Params...),
                dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                const Args&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  // The error stays for cudaGetLastError.
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}
inline cudaLaunchAttribute MayOverlap() {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

// A kernel that may start while the one before it runs.
template <typename... Params, typename... Args>
void Launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute attribute = MayOverlap();
  LaunchWith(&attribute, 1, kernel, grid, block, shared_bytes, stream, args...);
}
// The same for a kernel whose __cluster_dims__ are `cluster` blocks along x.
template <typename... Params, typename... Args>
void LaunchClusters(int cluster, void (*kernel)(Params...), dim3 grid, dim3 block,
                    size_t shared_bytes, cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute attributes[2] = {MayOverlap(), {}};
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(cluster), 1, 1};
  LaunchWith(attributes, 2, kernel, grid, block, shared_bytes, stream, args...);
}
// A kernel that waits for all before it.
template <typename... Params, typename... Args>
void LaunchAlone(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream,
                 const Args&... args) {
  LaunchWith(nullptr, 0, kernel, grid, block, 0, stream, args...);
}

// Lets a kernel have more than 48 KiB of dynamic shared memory: all of an SM's but for
// `static_bytes` of its own. Once per kernel and device.
template <auto kKernel>
void RaiseSharedMemory(int static_bytes = 0) {
  constexpr int kBytes = 227 << 10;
  static std::atomic<uint64_t> raised{0};
  int device = 0;
  cudaGetDevice(&device);
  const uint64_t bit = uint64_t{1} << (device & 63);
  if ((raised.load() & bit) != 0) return;
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                       cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes - static_bytes);
  raised.fetch_or(bit);
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
