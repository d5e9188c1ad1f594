// Which tensor of a checkpoint goes where in Weights, and all that is wrong with the checkpoint as
// far as its headers tell. Loading and `v4 inspect` go by the same plan.
#ifndef AGENTD_MODEL_CPU_WEIGHT_PLAN_H_
#define AGENTD_MODEL_CPU_WEIGHT_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cpu/weights.h"

namespace agentd::model {

// One tensor to check and, but for the embeddings, to copy: at most one destination is set.
struct WeightJob {
  const Tensor* weight = nullptr;
  const Tensor* scale = nullptr;  // of FP8 and FP4
  PackedMatrix* matrices = nullptr;
  int parts = 1;  // matrices, of equally many rows
  Vector* values = nullptr;
  std::vector<int32_t>* experts = nullptr;  // ids below `expert_count`
  int expert_count = 0;
};

// The jobs point into `weights`, so a plan stays where it is until they are done.
struct WeightPlan {
  WeightPlan() = default;
  WeightPlan(const WeightPlan&) = delete;
  WeightPlan& operator=(const WeightPlan&) = delete;

  Weights weights;
  std::vector<WeightJob> jobs;          // in the order of the layers
  std::vector<WeightProblem> problems;  // in the same order, then unknown tensors
};

void PlanWeights(const Config& config, const Checkpoint& checkpoint, WeightPlan* plan);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_WEIGHT_PLAN_H_
