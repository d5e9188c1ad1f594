#include "model/engine.h"

#include "base/status.h"
#include "model/cpu/engine.h"
#ifdef AGENTD_HAS_CUDA
#include "model/cuda/engine.h"
#endif

namespace agentd::model {
namespace {

absl::Status CheckOptions(const EngineOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    return InvalidArgument("threads is {}: it must be between 0 (one per core) and 1024",
                           options.threads);
  }
  if (options.max_batch_rows < 1 || options.max_batch_rows > 1 << 16) {
    return InvalidArgument("max_batch_rows is {}: it must be between 1 and 65536",
                           options.max_batch_rows);
  }
  return absl::OkStatus();
}

absl::Status NotBuiltIn(const std::string& backend) {
#ifdef AGENTD_HAS_CUDA
  constexpr char kBuiltIn[] = "cpu and cuda are";
#else
  constexpr char kBuiltIn[] = "cpu is";
#endif
  // Only a build without it comes here with the CUDA backend.
  return InvalidArgument(
      "backend \"{}\" is not built in{}: {}", backend,
      backend == "cuda" ? " (no CUDA toolkit was found when this was built)" : "", kBuiltIn);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const std::filesystem::path& model_dir,
                                                     const EngineOptions& options) {
  auto* load = options.backend == "cpu" ? &CpuEngine::Load : nullptr;
#ifdef AGENTD_HAS_CUDA
  if (options.backend == "cuda") load = &LoadCudaEngine;
#endif
  if (load == nullptr) return NotBuiltIn(options.backend);
  RETURN_IF_ERROR(CheckOptions(options));
  return load(model_dir, options);
}

}  // namespace agentd::model
