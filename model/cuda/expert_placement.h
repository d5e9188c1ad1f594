// Which layers' routed experts lie in host memory, and how large the cache of them on the device
// is. Needs no device.
#ifndef AGENTD_MODEL_CUDA_EXPERT_PLACEMENT_H_
#define AGENTD_MODEL_CUDA_EXPERT_PLACEMENT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/engine.h"

namespace agentd::model::cuda {

// What weights take.
struct ExpertSizes {
  std::vector<int64_t> expert_bytes;  // of one expert, by layer; the MTP block's last
  bool mtp = false;
  int experts = 0;          // of a layer
  int chosen = 0;           // by a token
  int64_t other_bytes = 0;  // all but routed experts
};

struct ExpertPlacement {
  std::vector<bool> on_host;  // by layer
  int slots = 0;              // of the cache; 0: no layer is on the host
  int64_t slot_bytes = 0;
};

// So many layers, the MTP block's first, since only drafts read it; the rest evenly among the
// others.
std::vector<bool> HostLayers(const ExpertSizes& sizes, int count);

// By the options, for a device with `free_bytes` left for weights, cache and sequences' state.
// InvalidArgument if the options ask for what cannot be, ResourceExhausted with the figures if the
// memory does not hold it.
absl::StatusOr<ExpertPlacement> PlaceExperts(const EngineOptions& options, const ExpertSizes& sizes,
                                             int64_t free_bytes);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_EXPERT_PLACEMENT_H_
