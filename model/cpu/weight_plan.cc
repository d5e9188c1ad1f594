#include "model/cpu/weight_plan.h"

#include <array>
#include <set>
#include <string>
#include <utility>

#include "base/status.h"
#include "model/numeric.h"

namespace agentd::model {
namespace {

class Planner {
 public:
  Planner(const Config& config, const Checkpoint& checkpoint, WeightPlan* plan)
      : c_(config), checkpoint_(checkpoint), plan_(*plan) {}

  void Run() {
    Weights& w = plan_.weights;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      w.low_precision |= tensor.dtype == DType::kF8E4M3 || tensor.dtype == DType::kI8;
    }
    if (w.low_precision) CheckLowPrecisionShapes();
    w.embed = Float("embed.weight", {c_.vocab_size, c_.hidden_size});
    if (w.embed != nullptr) plan_.jobs.push_back({.weight = w.embed});
    Matrix("head.weight", c_.vocab_size, c_.hidden_size, &w.head);
    Values("norm.weight", {c_.hidden_size}, &w.norm);
    Mix("hc_head", c_.hc_mult, 1, &w.head_mix);
    w.layers.resize(size_t(c_.num_hidden_layers));
    for (int i = 0; i < c_.num_hidden_layers; ++i) {
      LayerWeights& layer = w.layers[size_t(i)];
      layer.kind = c_.layer_kinds[size_t(i)];
      layer.hash_routed = i < c_.num_hash_layers;
      Layer(fmt::format("layers.{}.", i), &layer);
    }
    if (c_.num_nextn_predict_layers > 0) Mtp("mtp.0.", &w.mtp.emplace());
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (known_.count(name) != 0) continue;
      Problem(WeightProblem::Kind::kUnknown, name,
              InvalidArgument("{}: tensor {} is unknown: this configuration has no place for it",
                              File(tensor), name));
    }
  }

 private:
  using Kind = WeightProblem::Kind;

  void Problem(Kind kind, const std::string& tensor, absl::Status status) {
    plan_.problems.push_back({kind, tensor, std::move(status)});
  }

  std::string File(const Tensor& tensor) const {
    return checkpoint_.files()[size_t(tensor.shard)].string();
  }

  void CheckLowPrecisionShapes() {
    for (LayerKind kind : c_.layer_kinds) {
      const int n = c_.index_head_dim;
      if (kind != LayerKind::kCsa || ((n & (n - 1)) == 0 && n % 32 == 0)) continue;
      return Problem(
          Kind::kOther, "",
          InvalidArgument(
              "index_head_dim is {}: with FP8 weights it must be a power of two of 32 or more", n));
    }
  }

  // The tensor, or nullptr after a problem was noted.
  const Tensor* Get(const std::string& name, std::initializer_list<int64_t> shape) {
    known_.insert(name);
    const absl::StatusOr<const Tensor*> tensor = checkpoint_.Get(name, std::vector<int64_t>(shape));
    if (tensor.ok()) return *tensor;
    Problem(absl::IsNotFound(tensor.status()) ? Kind::kMissing : Kind::kShape, name,
            tensor.status());
    return nullptr;
  }

  const Tensor* WrongType(const Tensor& tensor, const char* wanted) {
    Problem(Kind::kOther, tensor.name,
            InvalidArgument("{}: tensor {} has dtype {}, {} is required", File(tensor), tensor.name,
                            DTypeName(tensor.dtype), wanted));
    return nullptr;
  }

  static bool IsFloat(const Tensor& tensor) {
    return tensor.dtype == DType::kF32 || tensor.dtype == DType::kBf16;
  }

  const Tensor* Float(const std::string& name, std::initializer_list<int64_t> shape) {
    const Tensor* tensor = Get(name, shape);
    if (tensor == nullptr || IsFloat(*tensor)) return tensor;
    return WrongType(*tensor, "F32 or BF16");
  }

  void Values(const std::string& name, std::initializer_list<int64_t> shape, Vector* out) {
    const Tensor* tensor = Float(name, shape);
    if (tensor != nullptr) plan_.jobs.push_back({.weight = tensor, .values = out});
  }

  // A plain F32 or BF16 matrix by its full name.
  void Matrix(const std::string& name, int rows, int columns, PackedMatrix* out) {
    const Tensor* tensor = Float(name, {rows, columns});
    if (tensor != nullptr) plan_.jobs.push_back({.weight = tensor, .matrices = out});
  }

  // NAME.weight of any weight type, with NAME.scale where the type has one. `parts` matrices of
  // rows/parts each. The weight's tensor, or nullptr after a problem was noted.
  const Tensor* Linear(const std::string& name, int rows, int columns, int parts,
                       PackedMatrix* out) {
    const std::string weight_name = name + ".weight";
    const std::string scale_name = name + ".scale";
    const Tensor* found = checkpoint_.Find(weight_name);
    // Even where the weight is wrong, its scale is no unknown tensor.
    const bool fp4 = found != nullptr && found->dtype == DType::kI8;
    const bool fp8 = found != nullptr && found->dtype == DType::kF8E4M3;
    if (fp4 || fp8 || found == nullptr) known_.insert(scale_name);
    if (fp4 && columns % 2 != 0) {
      known_.insert(weight_name);
      return WrongType(*found, "a type other than FP4 (its inputs are odd)");
    }
    const Tensor* weight = Get(weight_name, {rows, fp4 ? columns / 2 : columns});
    if (found == nullptr && plan_.weights.low_precision &&
        checkpoint_.Find(scale_name) == nullptr) {
      Problem(Kind::kMissing, scale_name,
              NotFound("tensor {} is missing as {} is", scale_name, weight_name));
    }
    const Tensor* scale = nullptr;
    if (fp4 || fp8) {
      scale = Get(scale_name,
                  {fp4 ? int64_t{rows} : DivideUp(rows, 128), DivideUp(columns, fp4 ? 32 : 128)});
      if (scale == nullptr) return nullptr;
      if (scale->dtype != DType::kF8E8M0) return WrongType(*scale, "F8_E8M0");
    } else if (weight != nullptr && !IsFloat(*weight)) {
      return WrongType(*weight, "F8_E4M3, I8 (FP4), BF16 or F32");
    }
    if (weight != nullptr) {
      plan_.jobs.push_back({.weight = weight, .scale = scale, .matrices = out, .parts = parts});
    }
    return weight;
  }

  const Tensor* Linear(const std::string& name, int rows, int columns, PackedMatrix* out) {
    return Linear(name, rows, columns, 1, out);
  }

  void Mix(const std::string& prefix, int outputs, int scales, HyperConnection* out) {
    Matrix(prefix + "_fn", outputs, c_.hc_mult * c_.hidden_size, &out->fn);
    Values(prefix + "_base", {outputs}, &out->base);
    Values(prefix + "_scale", {scales}, &out->scale);
  }

  void LoadCompressor(const std::string& prefix, LayerKind kind, int channels, Compressor* out) {
    out->ratio = static_cast<int>(kind);
    out->channels = channels;
    out->width = kind == LayerKind::kCsa ? 2 * channels : channels;
    Matrix(prefix + "wkv.weight", out->width, c_.hidden_size, &out->wkv);
    Matrix(prefix + "wgate.weight", out->width, c_.hidden_size, &out->wgate);
    Values(prefix + "ape", {out->ratio, out->width}, &out->ape);
    Values(prefix + "norm.weight", {channels}, &out->norm);
  }

  void Attention(const std::string& prefix, LayerWeights* out) {
    const int heads = c_.num_attention_heads;
    const int c = c_.head_dim;
    const int d = c_.hidden_size;
    Linear(prefix + "wq_a", c_.q_lora_rank, d, &out->wq_a);
    Linear(prefix + "wq_b", heads * c, c_.q_lora_rank, &out->wq_b);
    Linear(prefix + "wkv", c, d, &out->wkv);
    out->wo_a.resize(size_t(c_.o_groups));
    Linear(prefix + "wo_a", c_.o_groups * c_.o_lora_rank, heads * c / c_.o_groups, c_.o_groups,
           out->wo_a.data());
    Linear(prefix + "wo_b", d, c_.o_groups * c_.o_lora_rank, &out->wo_b);
    Values(prefix + "q_norm.weight", {c_.q_lora_rank}, &out->q_norm);
    Values(prefix + "kv_norm.weight", {c}, &out->kv_norm);
    Values(prefix + "attn_sink", {heads}, &out->sinks);
    if (out->kind == LayerKind::kSwa) return;
    LoadCompressor(prefix + "compressor.", out->kind, c, &out->compressor.emplace());
    if (out->kind != LayerKind::kCsa) return;
    Indexer& indexer = out->indexer.emplace();
    Linear(prefix + "indexer.wq_b", c_.index_n_heads * c_.index_head_dim, c_.q_lora_rank,
           &indexer.wq_b);
    Matrix(prefix + "indexer.weights_proj.weight", c_.index_n_heads, d, &indexer.weights_proj);
    LoadCompressor(prefix + "indexer.compressor.", out->kind, c_.index_head_dim,
                   &indexer.compressor);
  }

  std::array<const Tensor*, 3> LoadExpert(const std::string& prefix, Expert* out) {
    return {Linear(prefix + "w1", c_.moe_intermediate_size, c_.hidden_size, &out->w1),
            Linear(prefix + "w2", c_.hidden_size, c_.moe_intermediate_size, &out->w2),
            Linear(prefix + "w3", c_.moe_intermediate_size, c_.hidden_size, &out->w3)};
  }

  void LoadExpertTable(const std::string& name, std::vector<int32_t>* out) {
    const Tensor* table = Get(name, {c_.vocab_size, c_.num_experts_per_tok});
    if (table == nullptr) return;
    if (table->dtype != DType::kI64) {
      WrongType(*table, "I64");
      return;
    }
    plan_.jobs.push_back({.weight = table, .experts = out, .expert_count = c_.n_routed_experts});
  }

  void Moe(const std::string& prefix, LayerWeights* out) {
    Matrix(prefix + "gate.weight", c_.n_routed_experts, c_.hidden_size, &out->gate);
    if (out->hash_routed) {
      LoadExpertTable(prefix + "gate.tid2eid", &out->experts_of);
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
        Problem(Kind::kOther, tensor->name,
                InvalidArgument("{}*: its weights have other types than the layer's first expert's",
                                name));
        break;
      }
    }
    const auto [w1, w2, w3] = LoadExpert(prefix + "shared_experts.", &out->shared);
    if (w1 != nullptr && w3 != nullptr && w1->dtype != w3->dtype) {
      Problem(Kind::kOther, w3->name,
              InvalidArgument("{}shared_experts: w1 and w3 have different types", prefix));
    }
  }

  void Layer(const std::string& prefix, LayerWeights* out) {
    const int outputs = (2 + c_.hc_mult) * c_.hc_mult;
    Mix(prefix + "hc_attn", outputs, 3, &out->hc_attn);
    Mix(prefix + "hc_ffn", outputs, 3, &out->hc_ffn);
    Values(prefix + "attn_norm.weight", {c_.hidden_size}, &out->attn_norm);
    Values(prefix + "ffn_norm.weight", {c_.hidden_size}, &out->ffn_norm);
    Attention(prefix + "attn.", out);
    Moe(prefix + "ffn.", out);
  }

  void Mtp(const std::string& prefix, MtpWeights* out) {
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
  const Checkpoint& checkpoint_;
  WeightPlan& plan_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace

void PlanWeights(const Config& config, const Checkpoint& checkpoint, WeightPlan* plan) {
  Planner(config, checkpoint, plan).Run();
}

}  // namespace agentd::model
