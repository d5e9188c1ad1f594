// The CUDA backend behind model/engine.h: one device, compute capability 9.0.
#ifndef AGENTD_MODEL_CUDA_ENGINE_H_
#define AGENTD_MODEL_CUDA_ENGINE_H_

#include <filesystem>
#include <memory>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/engine.h"

namespace agentd::model {

// NotFound where there is no usable device, ResourceExhausted where its memory does not hold the
// weights; otherwise as Engine::Load.
absl::StatusOr<std::unique_ptr<Engine>> LoadCudaEngine(const std::filesystem::path& model_dir,
                                                       const EngineOptions& options);

// Of a checkpoint whose tensors may have no data: those get random weights, made on the device.
absl::StatusOr<std::unique_ptr<Engine>> LoadCudaEngine(const Config& config,
                                                       std::unique_ptr<const Checkpoint> checkpoint,
                                                       const EngineOptions& options);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CUDA_ENGINE_H_
