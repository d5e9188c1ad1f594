// The CUDA runtime's functions on the emulated device (runtime.cc) are declared by the toolkit's
// header; this is how kernels come to it.
//
// A stream does nothing until someone waits for it: then all that was enqueued runs, in order. So
// whoever reads a copy's destination, or writes over its source, before it waited is seen.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_RUNTIME_H_
#define AGENTD_MODEL_CUDA_EMULATOR_RUNTIME_H_

#include <cuda_runtime_api.h>

#include <functional>

namespace agentd::model::cuda::emulator {

cudaError_t EnqueueKernel(const cudaLaunchConfig_t& config, const void* kernel,
                          std::function<void()> body);

}  // namespace agentd::model::cuda::emulator

#endif  // AGENTD_MODEL_CUDA_EMULATOR_RUNTIME_H_
