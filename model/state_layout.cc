#include "model/state_layout.h"

namespace agentd::model {

StateLayout::StateLayout(const Config& config, bool low_precision_in)
    : window(config.sliding_window),
      ring(config.sliding_window + kMaxTruncateTokens),
      channels(config.head_dim),
      index_channels(config.index_head_dim),
      low_precision(low_precision_in),
      mtp(config.num_nextn_predict_layers > 0),
      entry(MakeEntryShape(config.head_dim, config.qk_rope_head_dim, low_precision_in)),
      key_bytes(IndexKeyBytes(config.index_head_dim, low_precision_in)),
      stream_floats(size_t(config.hc_mult) * size_t(config.hidden_size)) {
  size_t floats = 0;
  for (LayerKind kind : config.layer_kinds) {
    Layer layer{.kind = kind};
    layer.frontier = floats;
    if (kind == LayerKind::kCsa) {
      layer.number = csa_layers++;
      layer.index_frontier = floats + CsaFrontier(channels);
      floats = layer.index_frontier + CsaFrontier(index_channels);
    } else if (kind == LayerKind::kHca) {
      layer.number = hca_layers++;
      floats += HcaFrontier(channels);
    }
    layers.push_back(layer);
  }
  if (mtp) layers.push_back(Layer{});
  frontier_floats = floats + stream_floats;
}

int64_t StateLayout::SequenceBytes(int64_t tokens) const {
  // With the frontiers that a long batch keeps, and the copies that undo it.
  constexpr int64_t kRingsAndFrontiers = int64_t{64} << 20;
  const int64_t block = int64_t(index_bytes()) + csa_layers * int64_t(csa_bytes());
  return kRingsAndFrontiers + (tokens / kBlockTokens + 1) * block;
}

}  // namespace agentd::model
