#include "model/engine.h"

#include <utility>

#include "base/status.h"
#include "model/cpu/engine.h"
#ifdef AGENTD_HAS_CUDA
#include "model/cuda/engine.h"
#endif

namespace agentd::model {
namespace {

absl::Status CheckExpertOptions(const EngineOptions& options) {
  if (options.host_expert_layers < kAutoHostExperts) {
    return InvalidArgument("host_expert_layers is {}: it must be 0 or more, or {} (automatic)",
                           options.host_expert_layers, kAutoHostExperts);
  }
  if (options.expert_cache_bytes < 0 || options.state_bytes < 0) {
    return InvalidArgument("expert_cache_bytes is {} and state_bytes {}: neither may be negative",
                           options.expert_cache_bytes, options.state_bytes);
  }
  if (options.backend == "cpu" && (options.host_expert_layers > 0 ||
                                   options.expert_cache_bytes > 0 || options.state_bytes > 0)) {
    return InvalidArgument(
        "the cpu backend has all weights in host memory: --host-experts, --expert-cache-gib and "
        "--sequence-gib are for --backend cuda");
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const EngineOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    return InvalidArgument("threads is {}: it must be between 0 (one per core) and 1024",
                           options.threads);
  }
  if (options.max_batch_rows < 1 || options.max_batch_rows > 1 << 16) {
    return InvalidArgument("max_batch_rows is {}: it must be between 1 and 65536",
                           options.max_batch_rows);
  }
  return CheckExpertOptions(options);
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

absl::StatusOr<BlockPayload> Sequence::ExportBlock(int64_t block) const {
  ASSIGN_OR_RETURN(const auto started, StartExport(block, 1, /*anchor=*/false));
  ASSIGN_OR_RETURN(Export::State state, started->Take());
  return std::move(state.blocks[0]);
}

absl::StatusOr<std::string> Sequence::ExportAnchor() const {
  ASSIGN_OR_RETURN(const auto started, StartExport(0, 0, /*anchor=*/true));
  ASSIGN_OR_RETURN(Export::State state, started->Take());
  return std::move(state.anchor);
}

std::string DescribeHostExperts(const HostExperts& experts) {
  if (experts.layers.empty()) return "all experts are on the device";
  std::string layers;
  for (const int layer : experts.layers)
    layers += fmt::format("{}{}", layers.empty() ? "" : ", ", layer);
  const auto share = double(experts.cached) / experts.experts;
  return fmt::format(
      "experts of {} layers ({}) are in host memory: {:.2f} GB page-locked; a cache of {:.2f} GiB "
      "on "
      "the device holds {} of their {} ({:.1f}%)",
      experts.layers.size(), layers, double(experts.host_bytes) / 1e9,
      double(experts.cached) * double(experts.expert_bytes) / (1 << 30), experts.cached,
      experts.experts, 100 * share);
}

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
