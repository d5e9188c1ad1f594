// Planning (weight_plan.h) for a backend's own types of weights, and running the jobs.
#ifndef AGENTD_MODEL_WEIGHT_PLAN_INL_H_
#define AGENTD_MODEL_WEIGHT_PLAN_INL_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/weight_plan.h"

namespace agentd::model {

struct ScaledTensor {
  const Tensor* weight = nullptr;  // nullptr: a problem was noted
  const Tensor* scale = nullptr;   // of FP8 and FP4
};

// Looks tensors up as the configuration asks for them and notes what is wrong. A tensor that is
// returned is one to use; nullptr: a problem was noted.
class TensorFinder {
 public:
  using Kind = WeightProblem::Kind;

  TensorFinder(const Config& config, const Checkpoint& checkpoint,
               std::vector<WeightProblem>* problems);

  // Some weight is FP8 or FP4.
  bool low_precision() const { return low_precision_; }

  // F32 or BF16.
  const Tensor* Float(const std::string& name, std::initializer_list<int64_t> shape);
  // NAME.weight of any weight type, with NAME.scale where the type has one.
  ScaledTensor Linear(const std::string& name, int rows, int columns);
  // The experts of every token.
  const Tensor* ExpertTable(const std::string& name);

  void Problem(Kind kind, const std::string& tensor, absl::Status status);
  // Tensors that nothing asked for. The last call.
  void NoteUnknown();

 private:
  std::string File(const Tensor& tensor) const;
  void CheckLowPrecisionShapes();
  const Tensor* Get(const std::string& name, std::initializer_list<int64_t> shape);
  const Tensor* WrongType(const Tensor& tensor, const char* wanted);

  const Config& c_;
  const Checkpoint& checkpoint_;
  std::vector<WeightProblem>& problems_;
  bool low_precision_ = false;
  std::set<std::string, std::less<>> known_;
};

template <typename Types>
class Planner {
 public:
  Planner(const Config& config, const Checkpoint& checkpoint, WeightPlanOf<Types>* plan)
      : c_(config), plan_(*plan), finder_(config, checkpoint, &plan->problems) {}

  void Run() {
    WeightsOf<Types>& w = plan_.weights;
    w.low_precision = finder_.low_precision();
    w.embed = finder_.Float("embed.weight", {c_.vocab_size, c_.hidden_size});
    if (w.embed != nullptr) plan_.jobs.push_back({{.weight = w.embed}});
    PlainMatrix("head.weight", c_.vocab_size, c_.hidden_size, &w.head);
    Values("norm.weight", {c_.hidden_size}, &w.norm);
    Mix("hc_head", c_.hc_mult, 1, &w.head_mix);
    w.layers.resize(size_t(c_.num_hidden_layers));
    for (int i = 0; i < c_.num_hidden_layers; ++i) {
      LayerWeightsOf<Types>& layer = w.layers[size_t(i)];
      layer.kind = c_.layer_kinds[size_t(i)];
      layer.hash_routed = i < c_.num_hash_layers;
      Layer(fmt::format("layers.{}.", i), &layer);
    }
    if (c_.num_nextn_predict_layers > 0) Mtp("mtp.0.", &w.mtp.emplace());
    finder_.NoteUnknown();
  }

 private:
  using Kind = WeightProblem::Kind;
  using Matrix = typename Types::Matrix;

  void Values(const std::string& name, std::initializer_list<int64_t> shape,
              typename Types::Vector* out) {
    const Tensor* tensor = finder_.Float(name, shape);
    WeightJobOf<Types> job{{.weight = tensor}};
    job.values = out;
    if (tensor != nullptr) plan_.jobs.push_back(job);
  }

  // `parts` matrices of equally many rows.
  const Tensor* AddMatrices(const ScaledTensor& tensor, int parts, Matrix* out) {
    WeightJobOf<Types> job{{.weight = tensor.weight, .scale = tensor.scale, .parts = parts}};
    job.matrices = out;
    if (tensor.weight != nullptr) plan_.jobs.push_back(job);
    return tensor.weight;
  }

  // F32 or BF16, by its full name.
  void PlainMatrix(const std::string& name, int rows, int columns, Matrix* out) {
    AddMatrices({.weight = finder_.Float(name, {rows, columns})}, 1, out);
  }

  // NAME.weight of any weight type; its tensor, or nullptr after a problem was noted.
  const Tensor* Linear(const std::string& name, int rows, int columns, Matrix* out) {
    return AddMatrices(finder_.Linear(name, rows, columns), 1, out);
  }

  void Mix(const std::string& prefix, int outputs, int scales, HyperConnectionOf<Types>* out) {
    PlainMatrix(prefix + "_fn", outputs, c_.hc_mult * c_.hidden_size, &out->fn);
    Values(prefix + "_base", {outputs}, &out->base);
    Values(prefix + "_scale", {scales}, &out->scale);
  }

  void LoadCompressor(const std::string& prefix, LayerKind kind, int channels,
                      CompressorOf<Types>* out) {
    out->ratio = static_cast<int>(kind);
    out->channels = channels;
    out->width = kind == LayerKind::kCsa ? 2 * channels : channels;
    PlainMatrix(prefix + "wkv.weight", out->width, c_.hidden_size, &out->wkv);
    PlainMatrix(prefix + "wgate.weight", out->width, c_.hidden_size, &out->wgate);
    Values(prefix + "ape", {out->ratio, out->width}, &out->ape);
    Values(prefix + "norm.weight", {channels}, &out->norm);
  }

  void Attention(const std::string& prefix, LayerWeightsOf<Types>* out) {
    const int heads = c_.num_attention_heads;
    const int c = c_.head_dim;
    const int d = c_.hidden_size;
    Linear(prefix + "wq_a", c_.q_lora_rank, d, &out->wq_a);
    Linear(prefix + "wq_b", heads * c, c_.q_lora_rank, &out->wq_b);
    Linear(prefix + "wkv", c, d, &out->wkv);
    out->wo_a.resize(size_t(c_.o_groups));
    AddMatrices(
        finder_.Linear(prefix + "wo_a", c_.o_groups * c_.o_lora_rank, heads * c / c_.o_groups),
        c_.o_groups, out->wo_a.data());
    Linear(prefix + "wo_b", d, c_.o_groups * c_.o_lora_rank, &out->wo_b);
    Values(prefix + "q_norm.weight", {c_.q_lora_rank}, &out->q_norm);
    Values(prefix + "kv_norm.weight", {c}, &out->kv_norm);
    Values(prefix + "attn_sink", {heads}, &out->sinks);
    if (out->kind == LayerKind::kSwa) return;
    LoadCompressor(prefix + "compressor.", out->kind, c, &out->compressor.emplace());
    if (out->kind != LayerKind::kCsa) return;
    IndexerOf<Types>& indexer = out->indexer.emplace();
    Linear(prefix + "indexer.wq_b", c_.index_n_heads * c_.index_head_dim, c_.q_lora_rank,
           &indexer.wq_b);
    PlainMatrix(prefix + "indexer.weights_proj.weight", c_.index_n_heads, d, &indexer.weights_proj);
    LoadCompressor(prefix + "indexer.compressor.", out->kind, c_.index_head_dim,
                   &indexer.compressor);
  }

  std::array<const Tensor*, 3> LoadExpert(const std::string& prefix, ExpertOf<Types>* out) {
    return {Linear(prefix + "w1", c_.moe_intermediate_size, c_.hidden_size, &out->w1),
            Linear(prefix + "w2", c_.hidden_size, c_.moe_intermediate_size, &out->w2),
            Linear(prefix + "w3", c_.moe_intermediate_size, c_.hidden_size, &out->w3)};
  }

  void Moe(const std::string& prefix, LayerWeightsOf<Types>* out) {
    PlainMatrix(prefix + "gate.weight", c_.n_routed_experts, c_.hidden_size, &out->gate);
    if (out->hash_routed) {
      const Tensor* table = finder_.ExpertTable(prefix + "gate.tid2eid");
      WeightJobOf<Types> job{{.weight = table, .expert_count = c_.n_routed_experts}};
      job.experts = &out->experts_of;
      if (table != nullptr) plan_.jobs.push_back(job);
    } else {
      Values(prefix + "gate.bias", {c_.n_routed_experts}, &out->gate_bias);
    }
    out->experts.resize(size_t(c_.n_routed_experts));
    const Tensor* first = nullptr;
    for (int e = 0; e < c_.n_routed_experts; ++e) {
      const std::string name = fmt::format("{}experts.{}.", prefix, e);
      for (const Tensor* tensor : LoadExpert(name, &out->experts[size_t(e)])) {
        if (tensor == nullptr) continue;
        if (first == nullptr) first = tensor;
        if (tensor->dtype == first->dtype) continue;
        finder_.Problem(
            Kind::kOther, tensor->name,
            InvalidArgument("{}*: its weights have other types than the layer's first expert's",
                            name));
        break;
      }
    }
    const auto [w1, w2, w3] = LoadExpert(prefix + "shared_experts.", &out->shared);
    if (w1 != nullptr && w3 != nullptr && w1->dtype != w3->dtype) {
      finder_.Problem(Kind::kOther, w3->name,
                      InvalidArgument("{}shared_experts: w1 and w3 have different types", prefix));
    }
  }

  void Layer(const std::string& prefix, LayerWeightsOf<Types>* out) {
    const int outputs = (2 + c_.hc_mult) * c_.hc_mult;
    Mix(prefix + "hc_attn", outputs, 3, &out->hc_attn);
    Mix(prefix + "hc_ffn", outputs, 3, &out->hc_ffn);
    Values(prefix + "attn_norm.weight", {c_.hidden_size}, &out->attn_norm);
    Values(prefix + "ffn_norm.weight", {c_.hidden_size}, &out->ffn_norm);
    Attention(prefix + "attn.", out);
    Moe(prefix + "ffn.", out);
  }

  void Mtp(const std::string& prefix, MtpWeightsOf<Types>* out) {
    const int d = c_.hidden_size;
    out->layer.kind = LayerKind::kSwa;
    Layer(prefix, &out->layer);
    Linear(prefix + "e_proj", d, d, &out->e_proj);
    Linear(prefix + "h_proj", d, d, &out->h_proj);
    Values(prefix + "enorm.weight", {d}, &out->enorm);
    Values(prefix + "hnorm.weight", {d}, &out->hnorm);
    Values(prefix + "norm.weight", {d}, &out->norm);
    Mix(prefix + "hc_head", c_.hc_mult, 1, &out->head_mix);
  }

  const Config& c_;
  WeightPlanOf<Types>& plan_;
  TensorFinder finder_;
};

template <typename Types>
void PlanWeights(const Config& config, const Checkpoint& checkpoint, WeightPlanOf<Types>* plan) {
  Planner<Types>(config, checkpoint, plan).Run();
}

// Checks every job's values, then calls `load` (const WeightJobOf<Types>& -> absl::Status), on all
// threads; what was wrong, in the jobs' order. Stops soon after the first if `stop_early`. Leaves
// no page of the checkpoint's mapping resident.
template <typename Types, typename Load>
std::vector<WeightProblem> RunJobs(const Checkpoint& checkpoint, const WeightPlanOf<Types>& plan,
                                   bool stop_early, ThreadPool* pool, const Load& load) {
  constexpr size_t kAtOnce = 1024;
  std::vector<WeightProblem> problems;
  for (size_t begin = 0; begin < plan.jobs.size(); begin += kAtOnce) {
    std::vector<absl::Status> statuses(std::min(kAtOnce, plan.jobs.size() - begin));
    pool->Run(int(statuses.size()), [&](int task, int) {
      const WeightJobOf<Types>& job = plan.jobs[begin + size_t(task)];
      absl::Status& status = statuses[size_t(task)];
      status = CheckJob(checkpoint, job);
      if (status.ok()) status = load(job);
      checkpoint.Release(*job.weight);
      if (job.scale != nullptr) checkpoint.Release(*job.scale);
    });
    for (size_t i = 0; i < statuses.size(); ++i) {
      if (statuses[i].ok()) continue;
      problems.push_back(
          {WeightProblem::Kind::kOther, plan.jobs[begin + i].weight->name, std::move(statuses[i])});
    }
    if (stop_early && !problems.empty()) break;
  }
  checkpoint.ReleaseAll();
  return problems;
}

}  // namespace agentd::model

#endif  // AGENTD_MODEL_WEIGHT_PLAN_INL_H_
