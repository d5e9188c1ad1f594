#include "tests/bench/resume_engine.h"

#include <utility>

#include "base/status.h"
#ifdef AGENTD_HAS_CUDA
#include "model/cuda/engine.h"
#include "model/synthetic_checkpoint.h"
#include "model/v4/shapes.h"
#endif

namespace agentd::bench {

absl::StatusOr<std::unique_ptr<model::Engine>> LoadEngine(const EngineChoice& choice) {
  if (choice.shape.empty()) return model::Engine::Load(choice.model, choice.options);
#ifdef AGENTD_HAS_CUDA
  const std::string text(model::v4::ShapeConfig(choice.shape));
  if (text.empty()) return InvalidArgument("--shape: there is no shape {}", choice.shape);
  ASSIGN_OR_RETURN(model::Config config, model::Config::Parse(text, choice.shape));
  if (choice.layers > 0) config = model::FirstLayers(config, choice.layers);
  auto checkpoint = std::make_unique<model::SyntheticCheckpoint>(config);
  return model::LoadCudaEngine(config, std::move(checkpoint), choice.options);
#else
  return InvalidArgument("--shape needs the cuda backend, which is not built in");
#endif
}

}  // namespace agentd::bench
