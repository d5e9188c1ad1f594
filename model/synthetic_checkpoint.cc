#include "model/synthetic_checkpoint.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status.h"

namespace agentd::model {

SyntheticCheckpoint::SyntheticCheckpoint(const Config& config, WeightStorage storage)
    : Checkpoint({"synthetic weights"}) {
  for (TensorSpec& spec : ExpectedTensors(config, storage)) {
    const std::optional<DType> dtype = DTypeFromName(spec.dtype);
    AGENTD_CHECK(dtype.has_value());
    Insert({.name = std::move(spec.name),
            .dtype = *dtype,
            .shape = std::move(spec.shape),
            .size_bytes = spec.bytes});
  }
}

Config FirstLayers(Config config, int layers) {
  config.num_hidden_layers = std::min(config.num_hidden_layers, layers);
  config.layer_kinds.resize(size_t(config.num_hidden_layers));
  config.num_hash_layers = std::min(config.num_hash_layers, config.num_hidden_layers);
  return config;
}

}  // namespace agentd::model
