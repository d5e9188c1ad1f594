// Which tensor of a checkpoint goes where among a model's weights, and all that is wrong with the
// checkpoint as far as its headers tell. Every backend's loading and `v4 inspect` go by one plan;
// planning and running it: weight_plan-inl.h.
#ifndef AGENTD_MODEL_WEIGHT_PLAN_H_
#define AGENTD_MODEL_WEIGHT_PLAN_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cpu/thread_pool.h"
#include "model/weight_tree.h"

namespace agentd::model {

// Why a checkpoint is not the model of a configuration.
struct WeightProblem {
  enum class Kind { kMissing, kShape, kUnknown, kOther };
  Kind kind = Kind::kOther;
  std::string tensor;
  absl::Status status;  // names file, tensor, what was expected
};

// One tensor to check and, but for the embeddings, to copy.
struct WeightJob {
  const Tensor* weight = nullptr;
  const Tensor* scale = nullptr;  // of FP8 and FP4
  int parts = 1;                  // matrices, of equally many rows
  int expert_count = 0;           // not 0: ids of experts below it
};

// At most one destination is set.
template <typename Types>
struct WeightJobOf : WeightJob {
  typename Types::Matrix* matrices = nullptr;  // [parts]
  typename Types::Vector* values = nullptr;
  typename Types::Ids* experts = nullptr;
};

// The jobs point into `weights`, so a plan stays where it is until they are done.
template <typename Types>
struct WeightPlanOf {
  WeightPlanOf() = default;
  WeightPlanOf(const WeightPlanOf&) = delete;
  WeightPlanOf& operator=(const WeightPlanOf&) = delete;

  WeightsOf<Types> weights;
  std::vector<WeightJobOf<Types>> jobs;  // in the order of the layers
  std::vector<WeightProblem> problems;   // in the same order, then unknown tensors
};

// That every element of a job's tensors is a number, every id one of an expert. Reads every byte.
absl::Status CheckJob(const Checkpoint& checkpoint, const WeightJob& job);

// All that loading a checkpoint would refuse but for a lack of memory; reads as much and keeps
// nothing.
std::vector<WeightProblem> CheckWeights(const Config& config, const Checkpoint& checkpoint,
                                        ThreadPool* pool);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_WEIGHT_PLAN_H_
