#include "model/cpu/weights.h"

#include <array>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "base/status.h"
#include "model/cpu/numeric.h"

namespace agentd::model {
namespace {

class Loader {
 public:
  Loader(const Config& config, const Checkpoint& checkpoint)
      : c_(config), checkpoint_(checkpoint) {}

  absl::StatusOr<Weights> Load() {
    Weights w;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      w.low_precision |= tensor.dtype == DType::kF8E4M3 || tensor.dtype == DType::kI8;
    }
    if (w.low_precision) RETURN_IF_ERROR(CheckLowPrecisionShapes());
    ASSIGN_OR_RETURN(w.embed, Get("embed.weight", {c_.vocab_size, c_.hidden_size}));
    RETURN_IF_ERROR(CheckFloat(*w.embed));
    RETURN_IF_ERROR(Matrix("head.weight", c_.vocab_size, c_.hidden_size, &w.head));
    RETURN_IF_ERROR(Values("norm.weight", {c_.hidden_size}, &w.norm));
    RETURN_IF_ERROR(Mix("hc_head", c_.hc_mult, 1, &w.head_mix));
    w.layers.resize(size_t(c_.num_hidden_layers));
    for (int i = 0; i < c_.num_hidden_layers; ++i) {
      LayerWeights& layer = w.layers[size_t(i)];
      layer.kind = c_.layer_kinds[size_t(i)];
      layer.hash_routed = i < c_.num_hash_layers;
      RETURN_IF_ERROR(Layer(fmt::format("layers.{}.", i), &layer));
    }
    if (c_.num_nextn_predict_layers > 0) RETURN_IF_ERROR(Mtp("mtp.0.", &w.mtp.emplace()));
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (used_.count(name) == 0) {
        return InvalidArgument("{}: tensor {} is unknown: this configuration has no place for it",
                               checkpoint_.files()[size_t(tensor.shard)].string(), name);
      }
    }
    return w;
  }

 private:
  absl::Status CheckLowPrecisionShapes() {
    for (LayerKind kind : c_.layer_kinds) {
      if (kind != LayerKind::kCsa) continue;
      const int n = c_.index_head_dim;
      if ((n & (n - 1)) != 0 || n % 32 != 0) {
        return InvalidArgument(
            "index_head_dim is {}: with FP8 weights it must be a power of two of 32 or more", n);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<const Tensor*> Get(const std::string& name, std::initializer_list<int64_t> shape) {
    const std::vector<int64_t> wanted(shape);
    used_.insert(name);
    return checkpoint_.Get(name, wanted);
  }

  absl::Status WrongType(const Tensor& tensor, const char* wanted) {
    return InvalidArgument("{}: tensor {} has dtype {}, {} is required",
                           checkpoint_.files()[size_t(tensor.shard)].string(), tensor.name,
                           DTypeName(tensor.dtype), wanted);
  }

  absl::Status CheckFloat(const Tensor& tensor) {
    const bool ok = tensor.dtype == DType::kF32 || tensor.dtype == DType::kBf16;
    return ok ? absl::OkStatus() : WrongType(tensor, "F32 or BF16");
  }

  absl::Status Values(const std::string& name, std::initializer_list<int64_t> shape, Vector* out) {
    ASSIGN_OR_RETURN(const Tensor* tensor, Get(name, shape));
    RETURN_IF_ERROR(CheckFloat(*tensor));
    const size_t bytes = size_t(DTypeBytes(tensor->dtype));
    out->resize(size_t(tensor->size_bytes) / bytes);
    for (size_t i = 0; i < out->size(); ++i) {
      if (bytes == 4) {
        std::memcpy(&(*out)[i], tensor->data + 4 * i, 4);
      } else {
        uint16_t bits = 0;
        std::memcpy(&bits, tensor->data + 2 * i, 2);
        (*out)[i] = Bf16ToFloat(bits);
      }
    }
    return absl::OkStatus();
  }

  // A plain F32 or BF16 matrix by its full name.
  absl::Status Matrix(const std::string& name, int rows, int columns, PackedMatrix* out) {
    ASSIGN_OR_RETURN(const Tensor* tensor, Get(name, {rows, columns}));
    RETURN_IF_ERROR(CheckFloat(*tensor));
    ASSIGN_OR_RETURN(*out, Pack(*tensor, nullptr, 0, rows));
    return absl::OkStatus();
  }

  // NAME.weight of any weight type, with NAME.scale where the type has one. `parts` matrices of
  // rows/parts each.
  absl::Status Linear(const std::string& name, int rows, int columns, int parts,
                      PackedMatrix* out) {
    const std::string weight_name = name + ".weight";
    const Tensor* found = checkpoint_.Find(weight_name);
    const bool fp4 = found != nullptr && found->dtype == DType::kI8;
    if (fp4 && columns % 2 != 0)
      return WrongType(*found, "a type other than FP4 (its inputs are odd)");
    ASSIGN_OR_RETURN(const Tensor* weight, Get(weight_name, {rows, fp4 ? columns / 2 : columns}));
    const Tensor* scale = nullptr;
    if (fp4 || weight->dtype == DType::kF8E4M3) {
      const int64_t scale_rows = fp4 ? rows : DivideUp(rows, 128);
      ASSIGN_OR_RETURN(scale,
                       Get(name + ".scale", {scale_rows, DivideUp(columns, fp4 ? 32 : 128)}));
      if (scale->dtype != DType::kF8E8M0) return WrongType(*scale, "F8_E8M0");
    } else if (!CheckFloat(*weight).ok()) {
      return WrongType(*weight, "F8_E4M3, I8 (FP4), BF16 or F32");
    }
    for (int part = 0; part < parts; ++part) {
      ASSIGN_OR_RETURN(out[part], Pack(*weight, scale, part * (rows / parts), rows / parts));
    }
    return absl::OkStatus();
  }

  absl::Status Linear(const std::string& name, int rows, int columns, PackedMatrix* out) {
    return Linear(name, rows, columns, 1, out);
  }

  absl::Status Mix(const std::string& prefix, int outputs, int scales, HyperConnection* out) {
    RETURN_IF_ERROR(Matrix(prefix + "_fn", outputs, c_.hc_mult * c_.hidden_size, &out->fn));
    RETURN_IF_ERROR(Values(prefix + "_base", {outputs}, &out->base));
    return Values(prefix + "_scale", {scales}, &out->scale);
  }

  absl::Status LoadCompressor(const std::string& prefix, LayerKind kind, int channels,
                              Compressor* out) {
    out->ratio = static_cast<int>(kind);
    out->channels = channels;
    out->width = kind == LayerKind::kCsa ? 2 * channels : channels;
    RETURN_IF_ERROR(Matrix(prefix + "wkv.weight", out->width, c_.hidden_size, &out->wkv));
    RETURN_IF_ERROR(Matrix(prefix + "wgate.weight", out->width, c_.hidden_size, &out->wgate));
    RETURN_IF_ERROR(Values(prefix + "ape", {out->ratio, out->width}, &out->ape));
    return Values(prefix + "norm.weight", {channels}, &out->norm);
  }

  absl::Status Attention(const std::string& prefix, LayerWeights* out) {
    const int heads = c_.num_attention_heads;
    const int c = c_.head_dim;
    const int d = c_.hidden_size;
    RETURN_IF_ERROR(Linear(prefix + "wq_a", c_.q_lora_rank, d, &out->wq_a));
    RETURN_IF_ERROR(Linear(prefix + "wq_b", heads * c, c_.q_lora_rank, &out->wq_b));
    RETURN_IF_ERROR(Linear(prefix + "wkv", c, d, &out->wkv));
    out->wo_a.resize(size_t(c_.o_groups));
    RETURN_IF_ERROR(Linear(prefix + "wo_a", c_.o_groups * c_.o_lora_rank, heads * c / c_.o_groups,
                           c_.o_groups, out->wo_a.data()));
    RETURN_IF_ERROR(Linear(prefix + "wo_b", d, c_.o_groups * c_.o_lora_rank, &out->wo_b));
    RETURN_IF_ERROR(Values(prefix + "q_norm.weight", {c_.q_lora_rank}, &out->q_norm));
    RETURN_IF_ERROR(Values(prefix + "kv_norm.weight", {c}, &out->kv_norm));
    RETURN_IF_ERROR(Values(prefix + "attn_sink", {heads}, &out->sinks));
    if (out->kind == LayerKind::kSwa) return absl::OkStatus();
    RETURN_IF_ERROR(
        LoadCompressor(prefix + "compressor.", out->kind, c, &out->compressor.emplace()));
    if (out->kind != LayerKind::kCsa) return absl::OkStatus();
    Indexer& indexer = out->indexer.emplace();
    RETURN_IF_ERROR(Linear(prefix + "indexer.wq_b", c_.index_n_heads * c_.index_head_dim,
                           c_.q_lora_rank, &indexer.wq_b));
    RETURN_IF_ERROR(
        Matrix(prefix + "indexer.weights_proj.weight", c_.index_n_heads, d, &indexer.weights_proj));
    return LoadCompressor(prefix + "indexer.compressor.", out->kind, c_.index_head_dim,
                          &indexer.compressor);
  }

  absl::Status LoadExpert(const std::string& prefix, Expert* out) {
    RETURN_IF_ERROR(Linear(prefix + "w1", c_.moe_intermediate_size, c_.hidden_size, &out->w1));
    RETURN_IF_ERROR(Linear(prefix + "w2", c_.hidden_size, c_.moe_intermediate_size, &out->w2));
    return Linear(prefix + "w3", c_.moe_intermediate_size, c_.hidden_size, &out->w3);
  }

  absl::Status LoadExpertTable(const std::string& name, std::vector<int32_t>* out) {
    ASSIGN_OR_RETURN(const Tensor* table, Get(name, {c_.vocab_size, c_.num_experts_per_tok}));
    if (table->dtype != DType::kI64) return WrongType(*table, "I64");
    const size_t count = size_t(table->size_bytes) / 8;
    out->resize(count);
    for (size_t i = 0; i < count; ++i) {
      int64_t expert = 0;
      std::memcpy(&expert, table->data + 8 * i, 8);
      if (expert < 0 || expert >= c_.n_routed_experts) {
        return InvalidArgument("tensor {}: element {} is {}; there are {} experts", name, i, expert,
                               c_.n_routed_experts);
      }
      (*out)[i] = static_cast<int32_t>(expert);
    }
    return absl::OkStatus();
  }

  absl::Status Moe(const std::string& prefix, LayerWeights* out) {
    RETURN_IF_ERROR(
        Matrix(prefix + "gate.weight", c_.n_routed_experts, c_.hidden_size, &out->gate));
    if (out->hash_routed) {
      RETURN_IF_ERROR(LoadExpertTable(prefix + "gate.tid2eid", &out->experts_of));
    } else {
      RETURN_IF_ERROR(Values(prefix + "gate.bias", {c_.n_routed_experts}, &out->gate_bias));
    }
    out->experts.resize(size_t(c_.n_routed_experts));
    for (int e = 0; e < c_.n_routed_experts; ++e) {
      const std::string name = fmt::format("{}experts.{}.", prefix, e);
      RETURN_IF_ERROR(LoadExpert(name, &out->experts[size_t(e)]));
      const WeightType type = out->experts[0].w1.type;
      for (const PackedMatrix* m : {&out->experts[size_t(e)].w1, &out->experts[size_t(e)].w2,
                                    &out->experts[size_t(e)].w3}) {
        if (m->type != type) {
          return InvalidArgument(
              "{}*: its weights have other types than the layer's first expert's", name);
        }
      }
    }
    RETURN_IF_ERROR(LoadExpert(prefix + "shared_experts.", &out->shared));
    if (out->shared.w1.type != out->shared.w3.type) {
      return InvalidArgument("{}shared_experts: w1 and w3 have different types", prefix);
    }
    return absl::OkStatus();
  }

  absl::Status Layer(const std::string& prefix, LayerWeights* out) {
    const int outputs = (2 + c_.hc_mult) * c_.hc_mult;
    RETURN_IF_ERROR(Mix(prefix + "hc_attn", outputs, 3, &out->hc_attn));
    RETURN_IF_ERROR(Mix(prefix + "hc_ffn", outputs, 3, &out->hc_ffn));
    RETURN_IF_ERROR(Values(prefix + "attn_norm.weight", {c_.hidden_size}, &out->attn_norm));
    RETURN_IF_ERROR(Values(prefix + "ffn_norm.weight", {c_.hidden_size}, &out->ffn_norm));
    RETURN_IF_ERROR(Attention(prefix + "attn.", out));
    return Moe(prefix + "ffn.", out);
  }

  absl::Status Mtp(const std::string& prefix, MtpWeights* out) {
    const int d = c_.hidden_size;
    out->layer.kind = LayerKind::kSwa;
    RETURN_IF_ERROR(Layer(prefix, &out->layer));
    RETURN_IF_ERROR(Linear(prefix + "e_proj", d, d, &out->e_proj));
    RETURN_IF_ERROR(Linear(prefix + "h_proj", d, d, &out->h_proj));
    RETURN_IF_ERROR(Values(prefix + "enorm.weight", {d}, &out->enorm));
    RETURN_IF_ERROR(Values(prefix + "hnorm.weight", {d}, &out->hnorm));
    RETURN_IF_ERROR(Values(prefix + "norm.weight", {d}, &out->norm));
    return Mix(prefix + "hc_head", c_.hc_mult, 1, &out->head_mix);
  }

  const Config& c_;
  const Checkpoint& checkpoint_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Config& config, const Checkpoint& checkpoint) {
  return Loader(config, checkpoint).Load();
}

}  // namespace agentd::model
