// A checkpoint without data: what the published layout has for a configuration, for benchmarks with
// made-up weights. Names, types, shapes and sizes are those of a real one, so a plan can be made
// from it; nothing that reads values (CheckValues, Fingerprint, loading) may be.
#ifndef AGENTD_MODEL_SYNTHETIC_CHECKPOINT_H_
#define AGENTD_MODEL_SYNTHETIC_CHECKPOINT_H_

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/inspect.h"

namespace agentd::model {

// Every Tensor's `data` is nullptr.
class SyntheticCheckpoint final : public Checkpoint {
 public:
  explicit SyntheticCheckpoint(const Config& config,
                               WeightStorage storage = WeightStorage::kPublished);
};

// The same model cut after its first `layers` layers (at most those that it has).
Config FirstLayers(Config config, int layers);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_SYNTHETIC_CHECKPOINT_H_
