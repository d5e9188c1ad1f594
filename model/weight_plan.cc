#include "model/weight_plan.h"

#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/numeric.h"
#include "model/weight_plan-inl.h"

namespace agentd::model {
namespace {

// Weights of which nothing is kept.
struct NoWeights {
  struct Nothing {};
  using Matrix = Nothing;
  using Vector = Nothing;
  using Ids = Nothing;
};

bool IsFloat(const Tensor& tensor) {
  return tensor.dtype == DType::kF32 || tensor.dtype == DType::kBf16;
}

}  // namespace

TensorFinder::TensorFinder(const Config& config, const Checkpoint& checkpoint,
                           std::vector<WeightProblem>* problems)
    : c_(config), checkpoint_(checkpoint), problems_(*problems) {
  for (const auto& [name, tensor] : checkpoint_.tensors()) {
    low_precision_ |= tensor.dtype == DType::kF8E4M3 || tensor.dtype == DType::kI8;
  }
  if (low_precision_) CheckLowPrecisionShapes();
}

void TensorFinder::Problem(Kind kind, const std::string& tensor, absl::Status status) {
  problems_.push_back({kind, tensor, std::move(status)});
}

std::string TensorFinder::File(const Tensor& tensor) const {
  return checkpoint_.files()[size_t(tensor.shard)].string();
}

void TensorFinder::CheckLowPrecisionShapes() {
  for (LayerKind kind : c_.layer_kinds) {
    const int n = c_.index_head_dim;
    if (kind != LayerKind::kCsa || ((n & (n - 1)) == 0 && n % 32 == 0)) continue;
    return Problem(
        Kind::kOther, "",
        InvalidArgument(
            "index_head_dim is {}: with FP8 weights it must be a power of two of 32 or more", n));
  }
}

const Tensor* TensorFinder::Get(const std::string& name, std::initializer_list<int64_t> shape) {
  known_.insert(name);
  const absl::StatusOr<const Tensor*> tensor = checkpoint_.Get(name, std::vector<int64_t>(shape));
  if (tensor.ok()) return *tensor;
  Problem(absl::IsNotFound(tensor.status()) ? Kind::kMissing : Kind::kShape, name, tensor.status());
  return nullptr;
}

const Tensor* TensorFinder::WrongType(const Tensor& tensor, const char* wanted) {
  Problem(Kind::kOther, tensor.name,
          InvalidArgument("{}: tensor {} has dtype {}, {} is required", File(tensor), tensor.name,
                          DTypeName(tensor.dtype), wanted));
  return nullptr;
}

const Tensor* TensorFinder::Float(const std::string& name, std::initializer_list<int64_t> shape) {
  const Tensor* tensor = Get(name, shape);
  if (tensor == nullptr || IsFloat(*tensor)) return tensor;
  return WrongType(*tensor, "F32 or BF16");
}

const Tensor* TensorFinder::ExpertTable(const std::string& name) {
  const Tensor* table = Get(name, {c_.vocab_size, c_.num_experts_per_tok});
  if (table == nullptr || table->dtype == DType::kI64) return table;
  return WrongType(*table, "I64");
}

ScaledTensor TensorFinder::Linear(const std::string& name, int rows, int columns) {
  const std::string weight_name = name + ".weight";
  const std::string scale_name = name + ".scale";
  const Tensor* found = checkpoint_.Find(weight_name);
  // Even where the weight is wrong, its scale is no unknown tensor.
  const bool fp4 = found != nullptr && found->dtype == DType::kI8;
  const bool fp8 = found != nullptr && found->dtype == DType::kF8E4M3;
  if (fp4 || fp8 || found == nullptr) known_.insert(scale_name);
  if (fp4 && columns % 2 != 0) {
    known_.insert(weight_name);
    return {WrongType(*found, "a type other than FP4 (its inputs are odd)")};
  }
  const Tensor* weight = Get(weight_name, {rows, fp4 ? columns / 2 : columns});
  if (found == nullptr && low_precision_ && checkpoint_.Find(scale_name) == nullptr) {
    Problem(Kind::kMissing, scale_name,
            NotFound("tensor {} is missing as {} is", scale_name, weight_name));
  }
  const Tensor* scale = nullptr;
  if (fp4 || fp8) {
    scale = Get(scale_name,
                {fp4 ? int64_t{rows} : DivideUp(rows, 128), DivideUp(columns, fp4 ? 32 : 128)});
    if (scale == nullptr) return {};
    if (scale->dtype != DType::kF8E8M0) return {WrongType(*scale, "F8_E8M0")};
  } else if (weight != nullptr && !IsFloat(*weight)) {
    return {WrongType(*weight, "F8_E4M3, I8 (FP4), BF16 or F32")};
  }
  return {weight, scale};
}

void TensorFinder::NoteUnknown() {
  for (const auto& [name, tensor] : checkpoint_.tensors()) {
    if (known_.count(name) != 0) continue;
    Problem(Kind::kUnknown, name,
            InvalidArgument("{}: tensor {} is unknown: this configuration has no place for it",
                            File(tensor), name));
  }
}

absl::Status CheckJob(const Checkpoint& checkpoint, const WeightJob& job) {
  RETURN_IF_ERROR(checkpoint.CheckValues(*job.weight));
  if (job.scale != nullptr) RETURN_IF_ERROR(checkpoint.CheckValues(*job.scale));
  if (job.expert_count == 0) return absl::OkStatus();
  const Tensor& table = *job.weight;
  for (size_t i = 0; i < size_t(table.size_bytes) / 8; ++i) {
    int64_t expert = 0;
    std::memcpy(&expert, table.data + 8 * i, 8);
    if (expert >= 0 && expert < job.expert_count) continue;
    return InvalidArgument("{}: tensor {}: element {} is {}; there are {} experts",
                           checkpoint.files()[size_t(table.shard)].string(), table.name, i, expert,
                           job.expert_count);
  }
  return absl::OkStatus();
}

std::vector<WeightProblem> CheckWeights(const Config& config, const Checkpoint& checkpoint,
                                        ThreadPool* pool) {
  WeightPlanOf<NoWeights> plan;
  PlanWeights(config, checkpoint, &plan);
  auto nothing = [](const WeightJobOf<NoWeights>&) { return absl::OkStatus(); };
  for (WeightProblem& problem : RunJobs(checkpoint, plan, /*stop_early=*/false, pool, nothing)) {
    plan.problems.push_back(std::move(problem));
  }
  return std::move(plan.problems);
}

}  // namespace agentd::model
