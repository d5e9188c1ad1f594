// The model's shape, read from config.json. Field names and meanings: DeepSeek-V4's published
// configuration.
#ifndef AGENTD_MODEL_CONFIG_H_
#define AGENTD_MODEL_CONFIG_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::model {

// How a layer sees tokens older than its sliding window; the value is the compression ratio m.
enum class LayerKind : int { kSwa = 0, kCsa = 4, kHca = 128 };

struct RopeScaling {  // YaRN, without magnitude scaling
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
};

// A plain value. Immutable once an engine holds it.
struct Config {
  int vocab_size = 0;
  int hidden_size = 0;  // d
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int head_dim = 0;          // c = plain channels, then qk_rope_head_dim rotary ones
  int qk_rope_head_dim = 0;  // r
  int q_lora_rank = 0;
  int o_groups = 0;
  int o_lora_rank = 0;
  int n_routed_experts = 0;
  int n_shared_experts = 0;
  int num_experts_per_tok = 0;
  int num_hash_layers = 0;  // the first layers route by token id
  int moe_intermediate_size = 0;
  double routed_scaling_factor = 1;
  double swiglu_limit = 0;
  int sliding_window = 0;
  int index_n_heads = 0;
  int index_head_dim = 0;
  int index_topk = 0;
  std::vector<LayerKind> layer_kinds;  // [num_hidden_layers]
  double rope_theta = 0;
  double compress_rope_theta = 0;
  RopeScaling rope_scaling;
  int hc_mult = 0;  // H, residual streams
  int hc_sinkhorn_iters = 0;
  double hc_eps = 0;
  double rms_norm_eps = 0;
  int64_t max_position_embeddings = 0;
  int num_nextn_predict_layers = 0;  // MTP blocks: 0 or 1
  int bos_token_id = 0;
  int eos_token_id = 1;

  // Reads DIR/config.json. InvalidArgument names the file, the field and the value for anything
  // missing, malformed, inconsistent (a head_dim below qk_rope_head_dim, ...) or not implemented
  // (another model_type, an unknown ratio).
  static absl::StatusOr<Config> Load(const std::filesystem::path& model_dir);
  static absl::StatusOr<Config> Parse(std::string_view json, const std::string& source_name);
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CONFIG_H_
