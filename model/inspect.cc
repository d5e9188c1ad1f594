#include "model/inspect.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/status.h"
#include "model/engine.h"
#include "model/json_file.h"

namespace agentd::model {
namespace {

constexpr int64_t kScaleBlock = 128;  // FP8: one scale per 128 x 128
constexpr int64_t kExpertScale = 32;  // FP4: one scale per 32 columns of a row
constexpr int64_t kEntryScale = 64;   // KV entries: one scale per 64 channels

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t Product(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (const int64_t n : shape) product *= n;
  return product;
}

int64_t TypeBytes(std::string_view dtype) {
  if (dtype == "I64") return 8;
  if (dtype == "F32") return 4;
  return dtype == "BF16" ? 2 : 1;
}

// Collects the tensors of one checkpoint.
class TensorLister {
 public:
  TensorLister(const Config& config, WeightStorage storage) : c_(config), storage_(storage) {}

  std::vector<TensorSpec> Run() {
    Bf16("embed.weight", {c_.vocab_size, c_.hidden_size});
    Bf16("head.weight", {c_.vocab_size, c_.hidden_size});
    Bf16("norm.weight", {c_.hidden_size});
    HeadMix("");
    for (int i = 0; i < c_.num_hidden_layers; ++i) {
      Layer(fmt::format("layers.{}.", i), c_.layer_kinds[i], i < c_.num_hash_layers);
    }
    if (c_.num_nextn_predict_layers > 0) Mtp();
    return std::move(out_);
  }

 private:
  TensorSpec& Add(std::string name, std::string_view dtype, std::vector<int64_t> shape,
                  int64_t parameters) {
    const int64_t bytes = Product(shape) * TypeBytes(dtype);
    out_.push_back({std::move(name), dtype, std::move(shape), parameters, bytes});
    out_.back().is_mtp = in_mtp_;
    return out_.back();
  }
  void F32(const std::string& name, std::vector<int64_t> shape) {
    const int64_t parameters = Product(shape);
    Add(name, storage_ == WeightStorage::kBf16 ? "BF16" : "F32", std::move(shape), parameters);
  }
  void Bf16(const std::string& name, std::vector<int64_t> shape) {
    const int64_t parameters = Product(shape);
    Add(name, storage_ == WeightStorage::kF32 ? "F32" : "BF16", std::move(shape), parameters);
  }
  void Scale(const std::string& name, std::vector<int64_t> shape, bool is_routed_expert) {
    TensorSpec& scale = Add(name + ".scale", "F8_E8M0", std::move(shape), 0);
    scale.is_scale = true;
    scale.is_routed_expert = is_routed_expert;
  }
  void Linear(const std::string& name, int64_t rows, int64_t columns) {
    if (storage_ != WeightStorage::kPublished) return Bf16(name + ".weight", {rows, columns});
    Add(name + ".weight", "F8_E4M3", {rows, columns}, rows * columns);
    Scale(name, {CeilDiv(rows, kScaleBlock), CeilDiv(columns, kScaleBlock)}, false);
  }
  void Expert(const std::string& name, int64_t rows, int64_t columns) {
    if (storage_ != WeightStorage::kPublished) {
      Bf16(name + ".weight", {rows, columns});
      out_.back().is_routed_expert = true;
      return;
    }
    Add(name + ".weight", "I8", {rows, columns / 2}, rows * columns).is_routed_expert = true;
    Scale(name, {rows, CeilDiv(columns, kExpertScale)}, true);
  }

  void HeadMix(const std::string& prefix) {
    F32(prefix + "hc_head_fn", {c_.hc_mult, int64_t{c_.hc_mult} * c_.hidden_size});
    F32(prefix + "hc_head_base", {c_.hc_mult});
    F32(prefix + "hc_head_scale", {1});
  }

  void Layer(const std::string& prefix, LayerKind kind, bool hashed) {
    const int64_t mix = (2 + int64_t{c_.hc_mult}) * c_.hc_mult;
    for (const char* part : {"attn", "ffn"}) {
      Bf16(fmt::format("{}{}_norm.weight", prefix, part), {c_.hidden_size});
      F32(fmt::format("{}hc_{}_fn", prefix, part), {mix, int64_t{c_.hc_mult} * c_.hidden_size});
      F32(fmt::format("{}hc_{}_base", prefix, part), {mix});
      F32(fmt::format("{}hc_{}_scale", prefix, part), {3});
    }
    Attention(prefix + "attn.", kind);
    Moe(prefix + "ffn.", hashed);
  }

  void Attention(const std::string& prefix, LayerKind kind) {
    const int64_t head_channels = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t output_rank = int64_t{c_.o_groups} * c_.o_lora_rank;
    Linear(prefix + "wq_a", c_.q_lora_rank, c_.hidden_size);
    Linear(prefix + "wq_b", head_channels, c_.q_lora_rank);
    Linear(prefix + "wkv", c_.head_dim, c_.hidden_size);
    Linear(prefix + "wo_a", output_rank, head_channels / c_.o_groups);
    Linear(prefix + "wo_b", c_.hidden_size, output_rank);
    Bf16(prefix + "q_norm.weight", {c_.q_lora_rank});
    Bf16(prefix + "kv_norm.weight", {c_.head_dim});
    F32(prefix + "attn_sink", {c_.num_attention_heads});
    if (kind == LayerKind::kSwa) return;
    Compressor(prefix + "compressor.", kind, c_.head_dim);
    if (kind != LayerKind::kCsa) return;
    Linear(prefix + "indexer.wq_b", int64_t{c_.index_n_heads} * c_.index_head_dim, c_.q_lora_rank);
    Bf16(prefix + "indexer.weights_proj.weight", {c_.index_n_heads, c_.hidden_size});
    Compressor(prefix + "indexer.compressor.", kind, c_.index_head_dim);
  }

  void Compressor(const std::string& prefix, LayerKind kind, int64_t channels) {
    const int64_t rows = (kind == LayerKind::kCsa ? 2 : 1) * channels;
    F32(prefix + "ape", {static_cast<int>(kind), rows});
    Bf16(prefix + "wkv.weight", {rows, c_.hidden_size});
    Bf16(prefix + "wgate.weight", {rows, c_.hidden_size});
    Bf16(prefix + "norm.weight", {channels});
  }

  void Moe(const std::string& prefix, bool hashed) {
    const int64_t inter = c_.moe_intermediate_size;
    Bf16(prefix + "gate.weight", {c_.n_routed_experts, c_.hidden_size});
    if (hashed) {
      Add(prefix + "gate.tid2eid", "I64", {c_.vocab_size, c_.num_experts_per_tok}, 0);
    } else {
      F32(prefix + "gate.bias", {c_.n_routed_experts});
    }
    for (int e = 0; e < c_.n_routed_experts; ++e) {
      const std::string expert = fmt::format("{}experts.{}.", prefix, e);
      Expert(expert + "w1", inter, c_.hidden_size);
      Expert(expert + "w2", c_.hidden_size, inter);
      Expert(expert + "w3", inter, c_.hidden_size);
    }
    const int64_t shared = inter * c_.n_shared_experts;
    Linear(prefix + "shared_experts.w1", shared, c_.hidden_size);
    Linear(prefix + "shared_experts.w2", c_.hidden_size, shared);
    Linear(prefix + "shared_experts.w3", shared, c_.hidden_size);
  }

  void Mtp() {
    in_mtp_ = true;
    Layer("mtp.0.", LayerKind::kSwa, /*hashed=*/false);
    Linear("mtp.0.e_proj", c_.hidden_size, c_.hidden_size);
    Linear("mtp.0.h_proj", c_.hidden_size, c_.hidden_size);
    for (const char* norm : {"enorm", "hnorm", "norm"})
      Bf16(fmt::format("mtp.0.{}.weight", norm), {c_.hidden_size});
    HeadMix("mtp.0.");
  }

  const Config& c_;
  const WeightStorage storage_;
  std::vector<TensorSpec> out_;
  bool in_mtp_ = false;
};

// Whether a decode step multiplies by the tensor: matrices but for the embedding, the position
// tables and lookups.
bool IsMultiplied(const TensorSpec& tensor) {
  return tensor.parameters > 0 && tensor.shape.size() == 2 && !tensor.is_mtp &&
         tensor.name != "embed.weight" && !tensor.name.ends_with(".ape");
}

void AddPart(Flops* flops, std::string name, std::string how, std::string_view type,
             double amount) {
  if (amount > 0)
    flops->parts.push_back({std::move(name), std::move(how), type, amount, amount * Fp8Cost(type)});
}

}  // namespace

absl::StatusOr<WeightStorage> StorageFromConfig(std::string_view json,
                                                const std::string& source_name) {
  ASSIGN_OR_RETURN(const nlohmann::json config, ParseJson(json, source_name));
  if (!config.is_object()) return InvalidArgument("{}: is not a JSON object", source_name);
  if (config.contains("quantization_config") && !config["quantization_config"].is_null())
    return WeightStorage::kPublished;
  const nlohmann::json type = config.value("torch_dtype", nlohmann::json("bfloat16"));
  if (type == "bfloat16") return WeightStorage::kBf16;
  if (type == "float32") return WeightStorage::kF32;
  return InvalidArgument("{}: torch_dtype {} is not implemented", source_name,
                         type.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::vector<TensorSpec> ExpectedTensors(const Config& config, WeightStorage storage) {
  return TensorLister(config, storage).Run();
}

ParameterCount CountParameters(const Config& config, const std::vector<TensorSpec>& tensors) {
  ParameterCount count;
  int64_t experts = 0;
  for (const TensorSpec& tensor : tensors) {
    (tensor.is_mtp ? count.mtp : count.total) += tensor.parameters;
    if (tensor.is_routed_expert && !tensor.is_mtp) experts += tensor.parameters;
    if (tensor.name == "embed.weight") count.embedding = tensor.parameters;
  }
  count.active_per_token =
      count.total - count.embedding -
      experts / config.n_routed_experts * (config.n_routed_experts - config.num_experts_per_tok);
  return count;
}

KvSize ComputeKvSize(const Config& config, WeightStorage storage) {
  KvSize size;
  for (const LayerKind kind : config.layer_kinds) {
    (kind == LayerKind::kSwa   ? size.swa_layers
     : kind == LayerKind::kCsa ? size.csa_layers
                               : size.hca_layers) += 1;
  }
  if (storage == WeightStorage::kPublished) {
    const int64_t plain = config.head_dim - config.qk_rope_head_dim;
    // FP8 codes and a scale per 64 channels, filled up to 8 bytes; the rotary channels in BF16.
    size.entry_bytes =
        CeilDiv(plain + CeilDiv(plain, kEntryScale), 8) * 8 + 2 * config.qk_rope_head_dim;
    size.index_key_bytes = config.index_head_dim / 2 + CeilDiv(config.index_head_dim, kExpertScale);
  } else {
    size.entry_bytes = int64_t{4} * config.head_dim;
    size.index_key_bytes = int64_t{4} * config.index_head_dim;
  }
  constexpr double kCsa = static_cast<int>(LayerKind::kCsa);
  constexpr double kHca = static_cast<int>(LayerKind::kHca);
  size.csa_entries_per_token = size.csa_layers * size.entry_bytes / kCsa;
  size.index_keys_per_token = size.csa_layers * size.index_key_bytes / kCsa;
  size.hca_entries_per_token = size.hca_layers * size.entry_bytes / kHca;
  const int64_t csa_entries = kBlockTokens / static_cast<int>(LayerKind::kCsa);
  const int64_t hca_entries = kBlockTokens / static_cast<int>(LayerKind::kHca);
  size.block_index_bytes = size.csa_layers * csa_entries * size.index_key_bytes +
                           size.hca_layers * hca_entries * size.entry_bytes;
  size.block_csa_bytes = size.csa_layers * csa_entries * size.entry_bytes;
  size.window_bytes =
      static_cast<int64_t>(config.layer_kinds.size() + config.num_nextn_predict_layers) *
      config.sliding_window * size.entry_bytes;
  return size;
}

double Flops::total() const {
  double sum = 0;
  for (const FlopsPart& part : parts) sum += part.flops;
  return sum;
}

double Flops::fp8_equivalent() const {
  double sum = 0;
  for (const FlopsPart& part : parts) sum += part.fp8_equivalent;
  return sum;
}

double Fp8Cost(std::string_view type) {
  if (type == "FP4") return 0.5;
  return type == "FP8" ? 1 : 2;
}

Flops ComputeFlops(const Config& config, WeightStorage storage, int64_t context) {
  const bool published = storage == WeightStorage::kPublished;
  double experts = 0;
  double linears = 0;
  double wide = 0;
  for (const TensorSpec& tensor : ExpectedTensors(config, storage)) {
    if (!IsMultiplied(tensor)) continue;
    const double flops = 2.0 * static_cast<double>(tensor.parameters);
    if (tensor.is_routed_expert) {
      experts += flops * config.num_experts_per_tok / config.n_routed_experts;
    } else {
      (tensor.dtype == "F8_E4M3" ? linears : wide) += flops;
    }
  }
  const KvSize kv = ComputeKvSize(config, storage);
  const int64_t csa = context / static_cast<int>(LayerKind::kCsa);
  const int64_t hca = context / static_cast<int>(LayerKind::kHca);
  const int64_t chosen = std::min<int64_t>(config.index_topk, csa);
  const int64_t window = std::min<int64_t>(config.sliding_window, context);
  const int64_t layers = kv.swa_layers + kv.csa_layers + kv.hca_layers;
  const int64_t keys = layers * window + kv.csa_layers * chosen + kv.hca_layers * hca;
  const double attention =
      4.0 * config.num_attention_heads * config.head_dim * static_cast<double>(keys);
  const double indexer =
      2.0 * config.index_n_heads * config.index_head_dim * static_cast<double>(kv.csa_layers * csa);

  Flops out;
  const std::string_view linear_type = published ? "FP8" : "BF16";
  AddPart(&out, "routed experts",
          fmt::format("2 x weights of {} of {} experts", config.num_experts_per_tok,
                      config.n_routed_experts),
          linear_type, experts);
  AddPart(&out, "FP8 linears", "2 x weights: attention, indexer queries, shared expert", "FP8",
          linears);
  AddPart(&out, "other linears", "2 x weights: head, compressors, router, mHC", "BF16", wide);
  AddPart(
      &out, "attention",
      fmt::format("4 x {} heads x {} channels x ({} layers x {} + {} CSA x {} + {} HCA x {}) keys",
                  config.num_attention_heads, config.head_dim, layers, window, kv.csa_layers,
                  chosen, kv.hca_layers, hca),
      "BF16", attention);
  AddPart(&out, "indexer",
          fmt::format("2 x {} heads x {} channels x {} CSA layers x {} keys", config.index_n_heads,
                      config.index_head_dim, kv.csa_layers, csa),
          published ? "FP4" : "BF16", indexer);
  return out;
}

}  // namespace agentd::model
