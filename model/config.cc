#include "model/config.h"

#include <cmath>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"
#include "model/json_file.h"

namespace agentd::model {
namespace {

using Json = nlohmann::json;

// Reads fields of one JSON object and keeps the first error, which names source, field and value.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const absl::Status& status() const { return status_; }

  bool Has(const char* name) const {
    auto it = object_.find(name);
    return it != object_.end() && !it->is_null();
  }

  void Fail(const char* name, const std::string& problem) {
    if (!status_.ok()) return;
    std::string value = "is missing";
    if (auto it = object_.find(name); it != object_.end()) {
      value = it->dump(-1, ' ', false, Json::error_handler_t::replace);
      if (value.size() > 80) value = value.substr(0, 80) + "...";
      value = "is " + value;
    }
    status_ = InvalidArgument("{}: {} {}: {}", where_, name, value, problem);
  }

  template <typename Int>
  void Integer(const char* name, int64_t low, int64_t high, Int* out) {
    auto it = object_.find(name);
    if (it == object_.end() || !it->is_number_integer())
      return Fail(name, "an integer is required");
    const bool too_big = it->is_number_unsigned() &&
                         it->get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max());
    const int64_t value = too_big ? 0 : it->get<int64_t>();
    if (too_big || value < low || value > high) {
      return Fail(name, fmt::format("it must be between {} and {}", low, high));
    }
    *out = static_cast<Int>(value);
  }

  void Number(const char* name, double low, double high, double* out) {
    auto it = object_.find(name);
    if (it == object_.end() || !it->is_number()) return Fail(name, "a number is required");
    const double value = it->get<double>();
    if (!(value >= low && value <= high)) {
      return Fail(name, fmt::format("it must be between {} and {}", low, high));
    }
    *out = value;
  }

  // The field, when present, has this one value; nothing else is implemented.
  void Only(const char* name, const Json& value, bool required = false) {
    if (!Has(name)) {
      if (required) Fail(name, fmt::format("only {} is implemented", value.dump()));
      return;
    }
    if (object_.at(name) != value) Fail(name, fmt::format("only {} is implemented", value.dump()));
  }

 private:
  const Json& object_;
  const std::string where_;
  absl::Status status_;
};

constexpr int kMaxDimension = 1 << 24;

void ParseShape(Fields& f, Config* c) {
  f.Integer("vocab_size", 1, kMaxDimension, &c->vocab_size);
  f.Integer("hidden_size", 1, kMaxDimension, &c->hidden_size);
  f.Integer("num_hidden_layers", 1, 4096, &c->num_hidden_layers);
  f.Integer("num_attention_heads", 1, 65536, &c->num_attention_heads);
  f.Only("num_key_value_heads", 1);
  f.Integer("head_dim", 2, 65536, &c->head_dim);
  f.Integer("qk_rope_head_dim", 2, 65536, &c->qk_rope_head_dim);
  f.Integer("q_lora_rank", 1, kMaxDimension, &c->q_lora_rank);
  f.Integer("o_groups", 1, 65536, &c->o_groups);
  f.Integer("o_lora_rank", 1, kMaxDimension, &c->o_lora_rank);
  f.Integer("n_routed_experts", 1, 65536, &c->n_routed_experts);
  f.Integer("n_shared_experts", 1, 1, &c->n_shared_experts);
  f.Integer("num_experts_per_tok", 1, 65536, &c->num_experts_per_tok);
  f.Integer("num_hash_layers", 0, 4096, &c->num_hash_layers);
  f.Integer("moe_intermediate_size", 1, kMaxDimension, &c->moe_intermediate_size);
  f.Number("routed_scaling_factor", 0, 1e6, &c->routed_scaling_factor);
  f.Number("swiglu_limit", 0, 1e6, &c->swiglu_limit);
  f.Integer("sliding_window", 1, 8192, &c->sliding_window);
  f.Integer("hc_mult", 1, 16, &c->hc_mult);
  f.Integer("hc_sinkhorn_iters", 1, 1000, &c->hc_sinkhorn_iters);
  f.Number("hc_eps", 0, 1, &c->hc_eps);
  f.Number("rms_norm_eps", 0, 1, &c->rms_norm_eps);
  f.Number("rope_theta", 1.0001, 1e15, &c->rope_theta);
  f.Number("compress_rope_theta", 1.0001, 1e15, &c->compress_rope_theta);
  f.Integer("max_position_embeddings", 1, int64_t{1} << 24, &c->max_position_embeddings);
  f.Integer("num_nextn_predict_layers", 0, 1, &c->num_nextn_predict_layers);
  f.Integer("bos_token_id", 0, c->vocab_size - 1, &c->bos_token_id);
  f.Integer("eos_token_id", 0, c->vocab_size - 1, &c->eos_token_id);
}

void ParseOnly(const Json& json, Fields& f) {
  f.Only("scoring_func", "sqrtsoftplus", /*required=*/true);
  f.Only("norm_topk_prob", true);
  f.Only("hidden_act", "silu");
  f.Only("tie_word_embeddings", false);
  f.Only("attention_bias", false);
  f.Only("topk_method", "noaux_tc");
  f.Only("first_k_dense_replace", 0);
  f.Only("moe_layer_freq", 1);
  f.Only("mlp_bias", false);
  // Experts in groups of which the best are kept, all of them: as if there were none.
  const bool all_groups = f.Has("n_group") && f.Has("topk_group") &&
                          json["n_group"].is_number_integer() &&
                          json["n_group"] == json["topk_group"];
  if (!all_groups) {
    f.Only("n_group", 1);
    f.Only("topk_group", 1);
  }
  if (f.Has("expert_dtype")) f.Only("expert_dtype", "fp4");
  for (const auto& [name, value] : json.items()) {
    if (name.starts_with("dspark_"))
      f.Fail(name.c_str(), "this checkpoint format is not implemented");
  }
}

absl::Status ParseQuantization(const Json& json, const std::string& where) {
  if (!json.contains("quantization_config") || json["quantization_config"].is_null()) {
    return absl::OkStatus();
  }
  const Json& object = json["quantization_config"];
  if (!object.is_object()) {
    return InvalidArgument("{}: quantization_config: an object is required", where);
  }
  Fields f(object, where + ": quantization_config");
  f.Only("quant_method", "fp8", /*required=*/true);
  f.Only("fmt", "e4m3");
  f.Only("scale_fmt", "ue8m0");
  f.Only("weight_block_size", Json::array({128, 128}));
  f.Only("activation_scheme", "dynamic");
  return f.status();
}

absl::Status ParseRatios(const Json& json, const std::string& where, Config* c) {
  auto it = json.find("compress_ratios");
  if (it == json.end() || !it->is_array()) {
    return InvalidArgument("{}: compress_ratios: an array of 0, 4 and 128 is required", where);
  }
  const size_t expected = size_t(c->num_hidden_layers + c->num_nextn_predict_layers);
  if (it->size() != expected) {
    return InvalidArgument(
        "{}: compress_ratios has {} entries; {} are required (num_hidden_layers {} + "
        "num_nextn_predict_layers {})",
        where, it->size(), expected, c->num_hidden_layers, c->num_nextn_predict_layers);
  }
  for (size_t i = 0; i < expected; ++i) {
    const Json& value = (*it)[i];
    const bool known = value.is_number_integer() && (value == 0 || value == 4 || value == 128);
    if (!known) {
      return InvalidArgument("{}: compress_ratios[{}] is {}: only 0, 4 and 128 are implemented",
                             where, i, value.dump(-1, ' ', false, Json::error_handler_t::replace));
    }
    if (i < size_t(c->num_hidden_layers)) {
      c->layer_kinds.push_back(static_cast<LayerKind>(value.get<int>()));
    } else if (value != 0) {
      return InvalidArgument("{}: compress_ratios[{}] is {}: an MTP block must have 0", where, i,
                             value.dump());
    }
  }
  return absl::OkStatus();
}

absl::Status ParseScaling(const Json& json, const std::string& where, Config* c) {
  c->rope_scaling = {};
  if (!json.contains("rope_scaling") || json["rope_scaling"].is_null()) return absl::OkStatus();
  const Json& object = json["rope_scaling"];
  if (!object.is_object()) {
    return InvalidArgument("{}: rope_scaling: an object is required", where);
  }
  Fields f(object, where + ": rope_scaling");
  f.Only(object.contains("type") ? "type" : "rope_type", "yarn", /*required=*/true);
  f.Number("factor", 1, 1e6, &c->rope_scaling.factor);
  f.Integer("original_max_position_embeddings", 1, int64_t{1} << 24,
            &c->rope_scaling.original_max_position_embeddings);
  f.Number("beta_fast", 1e-3, 1e6, &c->rope_scaling.beta_fast);
  f.Number("beta_slow", 1e-3, 1e6, &c->rope_scaling.beta_slow);
  // V4 does not scale magnitudes: 1 is what these are where they change nothing.
  for (const char* name : {"mscale", "mscale_all_dim", "attention_factor"}) f.Only(name, 1);
  f.Only("truncate", true);
  if (!f.status().ok()) return f.status();
  if (c->rope_scaling.beta_fast <= c->rope_scaling.beta_slow) {
    f.Fail("beta_fast",
           fmt::format("it must be above beta_slow, which is {}", c->rope_scaling.beta_slow));
  }
  const int64_t original = c->rope_scaling.original_max_position_embeddings;
  if (const auto it = json.find("original_max_position_embeddings");
      it != json.end() && !it->is_null() && *it != original) {
    f.Fail("original_max_position_embeddings", "the one beside rope_scaling is another");
  }
  return f.status();
}

// All weights, roughly and never too few: in doubles, which do not overflow.
double Parameters(const Config& c) {
  const double d = c.hidden_size;
  const double q = c.q_lora_rank;
  const double heads = double(c.num_attention_heads) * c.head_dim;
  const double output = double(c.o_groups) * c.o_lora_rank;
  const double compressor = 2.0 * c.head_dim * (2 * d + 128) + 2.0 * c.index_head_dim * (2 * d + 4);
  const double indexer = double(c.index_n_heads) * (c.index_head_dim * q + d);
  const double attention = q * d + heads * q + c.head_dim * d + output * heads / c.o_groups +
                           d * output + compressor + indexer;
  const double experts = (3.0 * c.moe_intermediate_size * d + d) * (c.n_routed_experts + 1.0);
  const double table = double(c.vocab_size) * c.num_experts_per_tok;
  const double mix = 2.0 * (2 + c.hc_mult) * c.hc_mult * c.hc_mult * d;
  const double layers = double(c.num_hidden_layers) + c.num_nextn_predict_layers;
  return layers * (attention + experts + mix + table + 8 * d) + 2.0 * c.vocab_size * d +
         2.0 * d * d;
}

// Relations between fields.
absl::Status Check(const Config& c, const std::string& where) {
  auto bad = [&](const char* what) { return InvalidArgument("{}: {}", where, what); };
  if (c.head_dim < c.qk_rope_head_dim) {
    return InvalidArgument("{}: head_dim {} is below qk_rope_head_dim {}", where, c.head_dim,
                           c.qk_rope_head_dim);
  }
  if (c.head_dim % 2 != 0) return InvalidArgument("{}: head_dim {} is odd", where, c.head_dim);
  if (c.qk_rope_head_dim % 2 != 0) {
    return InvalidArgument("{}: qk_rope_head_dim {} is odd", where, c.qk_rope_head_dim);
  }
  if (c.num_attention_heads % c.o_groups != 0) {
    return InvalidArgument("{}: num_attention_heads {} is no multiple of o_groups {}", where,
                           c.num_attention_heads, c.o_groups);
  }
  if (c.num_experts_per_tok > c.n_routed_experts) {
    return InvalidArgument("{}: num_experts_per_tok {} is above n_routed_experts {}", where,
                           c.num_experts_per_tok, c.n_routed_experts);
  }
  if (c.num_hash_layers > c.num_hidden_layers) {
    return bad("num_hash_layers is above num_hidden_layers");
  }
  // Lists of tensors and experts are in memory; the largest published model has 61 x 384.
  if (int64_t(c.num_hidden_layers) * c.n_routed_experts > 1 << 17) {
    return bad("num_hidden_layers x n_routed_experts must not exceed 131072");
  }
  const int64_t widest = int64_t(c.num_attention_heads) * c.head_dim;
  if (widest > kMaxDimension || int64_t(c.o_groups) * c.o_lora_rank > kMaxDimension ||
      int64_t(c.hc_mult) * c.hidden_size > kMaxDimension ||
      int64_t(c.index_n_heads) * c.index_head_dim > kMaxDimension) {
    return bad(
        "num_attention_heads x head_dim, o_groups x o_lora_rank, hc_mult x hidden_size and "
        "index_n_heads x index_head_dim must not exceed 2^24");
  }
  // Some 500 times the largest published one; sums of bytes stay far from the limits of 64 bits.
  constexpr double kMaxParameters = 0x1p50;
  if (const double parameters = Parameters(c); parameters > kMaxParameters) {
    return InvalidArgument(
        "{}: its sizes ask for some {:.2g} parameters; at most 2^50 are possible", where,
        parameters);
  }
  return absl::OkStatus();
}

absl::Status ParseIndexer(Fields& f, Config* c) {
  bool has_csa = false;
  for (LayerKind kind : c->layer_kinds) has_csa |= kind == LayerKind::kCsa;
  if (!has_csa && !f.Has("index_topk")) return absl::OkStatus();
  f.Integer("index_n_heads", 1, 65536, &c->index_n_heads);
  f.Integer("index_head_dim", 2, 65536, &c->index_head_dim);
  f.Integer("index_topk", 1, 65536, &c->index_topk);
  if (f.status().ok() && c->index_head_dim < c->qk_rope_head_dim) {
    f.Fail("index_head_dim", "it must not be below qk_rope_head_dim");
  }
  if (f.status().ok() && c->index_head_dim % 2 != 0) f.Fail("index_head_dim", "it must be even");
  return f.status();
}

}  // namespace

absl::StatusOr<Config> Config::Parse(std::string_view text, const std::string& source_name) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, source_name));
  if (!json.is_object()) return InvalidArgument("{}: a JSON object is required", source_name);
  Config c;
  Fields f(json, source_name);
  f.Only("model_type", "deepseek_v4", /*required=*/true);
  ParseOnly(json, f);
  RETURN_IF_ERROR(f.status());
  ParseShape(f, &c);
  RETURN_IF_ERROR(f.status());
  RETURN_IF_ERROR(ParseRatios(json, source_name, &c));
  RETURN_IF_ERROR(ParseIndexer(f, &c));
  RETURN_IF_ERROR(ParseScaling(json, source_name, &c));
  RETURN_IF_ERROR(ParseQuantization(json, source_name));
  RETURN_IF_ERROR(Check(c, source_name));
  return c;
}

absl::StatusOr<Config> Config::Load(const std::filesystem::path& model_dir) {
  ASSIGN_OR_RETURN(const std::string text, ReadModelFile(model_dir, "config.json"));
  return Parse(text, (model_dir / "config.json").string());
}

}  // namespace agentd::model
