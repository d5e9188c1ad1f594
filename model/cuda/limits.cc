#include "model/cuda/limits.h"

#include <cstdint>

#include "base/status.h"

namespace agentd::model::cuda {

absl::Status CheckLimits(const Config& config) {
  const struct {
    const char* field;
    int64_t value;
    int64_t most;
  } limits[] = {
      {"hidden_size", config.hidden_size, 31744},
      {"hc_mult", config.hc_mult, 16},
      {"head_dim", config.head_dim, 2048},
      {"index_head_dim", config.index_head_dim, 2048},
      {"q_lora_rank", config.q_lora_rank, 31744},
      {"o_groups", config.o_groups, 20},
      {"index_topk", config.index_topk, 2048},
      {"n_routed_experts", config.n_routed_experts, 1024},
      {"num_experts_per_tok", config.num_experts_per_tok, 64},
  };
  for (const auto& limit : limits) {
    if (limit.value <= limit.most) continue;
    return InvalidArgument("{} is {}: the cuda backend takes {} at most; use --backend cpu",
                           limit.field, limit.value, limit.most);
  }
  if (config.head_dim % 2 != 0 || config.index_head_dim % 2 != 0) {
    return InvalidArgument(
        "head_dim is {} and index_head_dim {}: the cuda backend needs even numbers; use --backend "
        "cpu",
        config.head_dim, config.index_head_dim);
  }
  return absl::OkStatus();
}

}  // namespace agentd::model::cuda
