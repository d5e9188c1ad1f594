#include "model/cpu/weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/cpu/memory.h"
#include "model/cpu/weight_plan.h"
#include "model/numeric.h"

namespace agentd::model {
namespace {

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

absl::Status CopyExperts(const Checkpoint& checkpoint, const WeightJob& job, bool copy) {
  const Tensor& table = *job.weight;
  const size_t count = size_t(table.size_bytes) / 8;
  if (copy) job.experts->resize(count);
  for (size_t i = 0; i < count; ++i) {
    int64_t expert = 0;
    std::memcpy(&expert, table.data + 8 * i, 8);
    if (expert < 0 || expert >= job.expert_count) {
      return InvalidArgument("{}: tensor {}: element {} is {}; there are {} experts",
                             checkpoint.files()[size_t(table.shard)].string(), table.name, i,
                             expert, job.expert_count);
    }
    if (copy) (*job.experts)[i] = static_cast<int32_t>(expert);
  }
  return absl::OkStatus();
}

absl::Status RunJob(const Checkpoint& checkpoint, const WeightJob& job, bool copy) {
  RETURN_IF_ERROR(checkpoint.CheckValues(*job.weight));
  if (job.scale != nullptr) RETURN_IF_ERROR(checkpoint.CheckValues(*job.scale));
  if (job.experts != nullptr) RETURN_IF_ERROR(CopyExperts(checkpoint, job, copy));
  if (copy && job.values != nullptr) CopyValues(*job.weight, job.values);
  if (copy && job.matrices != nullptr) {
    const int rows = int(job.weight->shape[0]) / job.parts;
    for (int part = 0; part < job.parts; ++part) {
      ASSIGN_OR_RETURN(job.matrices[part], Pack(*job.weight, job.scale, part * rows, rows));
    }
  }
  checkpoint.Release(*job.weight);
  if (job.scale != nullptr) checkpoint.Release(*job.scale);
  return absl::OkStatus();
}

// All jobs on all threads; the statuses that are not OK, in the jobs' order. Stops soon after the
// first if `copy`.
std::vector<WeightProblem> RunJobs(const Checkpoint& checkpoint, const WeightPlan& plan, bool copy,
                                   ThreadPool* pool) {
  constexpr size_t kAtOnce = 1024;
  std::vector<WeightProblem> problems;
  for (size_t begin = 0; begin < plan.jobs.size(); begin += kAtOnce) {
    std::vector<absl::Status> statuses(std::min(kAtOnce, plan.jobs.size() - begin));
    pool->Run(int(statuses.size()), [&](int task, int) {
      statuses[size_t(task)] = RunJob(checkpoint, plan.jobs[begin + size_t(task)], copy);
    });
    for (size_t i = 0; i < statuses.size(); ++i) {
      if (statuses[i].ok()) continue;
      problems.push_back(
          {WeightProblem::Kind::kOther, plan.jobs[begin + i].weight->name, std::move(statuses[i])});
    }
    if (copy && !problems.empty()) break;
  }
  checkpoint.ReleaseAll();
  return problems;
}

// What the copies take, but for panels that are not full.
int64_t CopyBytes(const WeightPlan& plan) {
  int64_t total = 0;
  for (const WeightJob& job : plan.jobs) {
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
  const std::vector<WeightProblem> problems = RunJobs(checkpoint, plan, /*copy=*/true, pool);
  if (!problems.empty()) return problems[0].status;
  return std::move(plan.weights);
}

std::vector<WeightProblem> CheckWeights(const Config& config, const Checkpoint& checkpoint,
                                        ThreadPool* pool) {
  WeightPlan plan;
  PlanWeights(config, checkpoint, &plan);
  for (WeightProblem& problem : RunJobs(checkpoint, plan, /*copy=*/false, pool)) {
    plan.problems.push_back(std::move(problem));
  }
  return std::move(plan.problems);
}

}  // namespace agentd::model
