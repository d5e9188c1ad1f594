#include "tests/bench/resume_engine.h"

#include <utility>

#include "base/status.h"
#include "model/state_layout.h"
#ifdef AGENTD_HAS_CUDA
#include "model/cuda/engine.h"
#include "model/synthetic_checkpoint.h"
#include "model/v4/shapes.h"
#endif

namespace agentd::bench {

namespace {

// Of the sequences, and a little for all else. The published storage types, of which others take
// more: but then the weights leave much room.
int64_t StateBytes(const EngineChoice& choice, const model::Config& config) {
  constexpr int64_t kElse = int64_t{1} << 30;
  const model::StateLayout layout(config, /*low_precision=*/true);
  int64_t bytes = kElse;
  for (int64_t tokens : choice.sequences) bytes += layout.SequenceBytes(tokens);
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<model::Engine>> LoadEngine(const EngineChoice& choice) {
  model::EngineOptions options = choice.options;
  if (choice.shape.empty()) {
    ASSIGN_OR_RETURN(const model::Config config, model::Config::Load(choice.model));
    if (options.backend == "cuda") options.state_bytes = StateBytes(choice, config);
    return model::Engine::Load(choice.model, options);
  }
#ifdef AGENTD_HAS_CUDA
  const std::string text(model::v4::ShapeConfig(choice.shape));
  if (text.empty()) return InvalidArgument("--shape: there is no shape {}", choice.shape);
  ASSIGN_OR_RETURN(model::Config config, model::Config::Parse(text, choice.shape));
  if (choice.layers > 0) config = model::FirstLayers(config, choice.layers);
  auto checkpoint = std::make_unique<model::SyntheticCheckpoint>(config);
  options.state_bytes = StateBytes(choice, config);
  return model::LoadCudaEngine(config, std::move(checkpoint), options);
#else
  return InvalidArgument("--shape needs the cuda backend, which is not built in");
#endif
}

}  // namespace agentd::bench
