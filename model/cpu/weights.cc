#include "model/cpu/weights.h"

#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/cpu/memory.h"
#include "model/numeric.h"
#include "model/weight_plan-inl.h"

namespace agentd::model {
namespace {

using Job = WeightJobOf<CpuWeightTypes>;
using WeightPlan = WeightPlanOf<CpuWeightTypes>;

void CopyValues(const Tensor& tensor, Vector* out) {
  const size_t bytes = size_t(DTypeBytes(tensor.dtype));
  out->resize(size_t(tensor.size_bytes) / bytes);
  for (size_t i = 0; i < out->size(); ++i) {
    if (bytes == 4) {
      std::memcpy(&(*out)[i], tensor.data + 4 * i, 4);
    } else {
      uint16_t bits = 0;
      std::memcpy(&bits, tensor.data + 2 * i, 2);
      (*out)[i] = Bf16ToFloat(bits);
    }
  }
}

void CopyExperts(const Tensor& table, std::vector<int32_t>* out) {
  out->resize(size_t(table.size_bytes) / 8);
  for (size_t i = 0; i < out->size(); ++i) {
    int64_t expert = 0;
    std::memcpy(&expert, table.data + 8 * i, 8);
    (*out)[i] = static_cast<int32_t>(expert);
  }
}

absl::Status Copy(const Job& job) {
  if (job.experts != nullptr) CopyExperts(*job.weight, job.experts);
  if (job.values != nullptr) CopyValues(*job.weight, job.values);
  if (job.matrices == nullptr) return absl::OkStatus();
  const int rows = int(job.weight->shape[0]) / job.parts;
  for (int part = 0; part < job.parts; ++part) {
    ASSIGN_OR_RETURN(job.matrices[part], Pack(*job.weight, job.scale, part * rows, rows));
  }
  return absl::OkStatus();
}

// What the copies take, but for panels that are not full.
int64_t CopyBytes(const WeightPlan& plan) {
  int64_t total = 0;
  for (const Job& job : plan.jobs) {
    if (job.matrices == nullptr && job.values == nullptr && job.experts == nullptr) continue;
    total += job.weight->size_bytes / (job.experts != nullptr ? 2 : 1);
    if (job.scale != nullptr) total += job.scale->size_bytes;
  }
  return total;
}

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Config& config, const Checkpoint& checkpoint,
                                    ThreadPool* pool) {
  WeightPlan plan;
  PlanWeights(config, checkpoint, &plan);
  if (!plan.problems.empty()) return plan.problems[0].status;
  RETURN_IF_ERROR(CheckMemory("the weights", CopyBytes(plan)));
  const std::vector<WeightProblem> problems =
      RunJobs(checkpoint, plan, /*stop_early=*/true, pool, Copy);
  if (!problems.empty()) return problems[0].status;
  return std::move(plan.weights);
}

}  // namespace agentd::model
