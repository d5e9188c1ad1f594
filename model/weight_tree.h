// The weights of one model, over a backend's own types for them:
//   struct Types {
//     using Matrix = ...;  // a weight in the kernels' layout
//     using Vector = ...;  // F32 values
//     using Ids = ...;     // experts by token: [V, experts per token]
//   };
#ifndef AGENTD_MODEL_WEIGHT_TREE_H_
#define AGENTD_MODEL_WEIGHT_TREE_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"

namespace agentd::model {

template <typename Types>
struct HyperConnectionOf {  // mHC before a sublayer: fn [(2+H)H, H*d], base [(2+H)H], scale [3]; of
                            // a head: fn [H, H*d], base [H], scale [1]
  typename Types::Matrix fn;
  typename Types::Vector base;
  typename Types::Vector scale;
};

template <typename Types>
struct CompressorOf {
  int ratio = 0;     // m
  int channels = 0;  // c of its entries
  int width = 0;     // channels of k and gate: 2c for m = 4, c for m = 128
  typename Types::Matrix wkv;
  typename Types::Matrix wgate;
  typename Types::Vector ape;   // [m, width]
  typename Types::Vector norm;  // [c]
};

template <typename Types>
struct IndexerOf {
  typename Types::Matrix wq_b;
  typename Types::Matrix weights_proj;
  CompressorOf<Types> compressor;
};

template <typename Types>
struct ExpertOf {
  typename Types::Matrix w1;
  typename Types::Matrix w2;
  typename Types::Matrix w3;
};

template <typename Types>
struct LayerWeightsOf {
  LayerKind kind = LayerKind::kSwa;
  bool hash_routed = false;
  HyperConnectionOf<Types> hc_attn;
  HyperConnectionOf<Types> hc_ffn;
  typename Types::Vector attn_norm;
  typename Types::Vector ffn_norm;
  typename Types::Matrix wq_a;
  typename Types::Matrix wq_b;
  typename Types::Matrix wkv;
  std::vector<typename Types::Matrix> wo_a;  // per group
  typename Types::Matrix wo_b;
  typename Types::Vector q_norm;
  typename Types::Vector kv_norm;
  typename Types::Vector sinks;
  std::optional<CompressorOf<Types>> compressor;
  std::optional<IndexerOf<Types>> indexer;
  typename Types::Matrix gate;
  typename Types::Vector gate_bias;  // score-routed
  typename Types::Ids experts_of;    // hash-routed: [V, experts per token]
  std::vector<ExpertOf<Types>> experts;
  ExpertOf<Types> shared;
};

template <typename Types>
struct MtpWeightsOf {
  LayerWeightsOf<Types> layer;
  typename Types::Matrix e_proj;
  typename Types::Matrix h_proj;
  typename Types::Vector enorm;
  typename Types::Vector hnorm;
  typename Types::Vector norm;
  HyperConnectionOf<Types> head_mix;
};

template <typename Types>
struct WeightsOf {
  // The checkpoint has FP8 or FP4 weights: the low-precision rules hold (spec section 4); otherwise
  // plain F32 arithmetic.
  bool low_precision = false;
  const Tensor* embed = nullptr;  // [V, d], BF16 or F32, in the mapping
  typename Types::Matrix head;
  typename Types::Vector norm;
  HyperConnectionOf<Types> head_mix;
  std::vector<LayerWeightsOf<Types>> layers;
  std::optional<MtpWeightsOf<Types>> mtp;

  const LayerWeightsOf<Types>& layer(int index) const {  // layers.size() is the MTP block's own
    return size_t(index) < layers.size() ? layers[size_t(index)] : mtp->layer;
  }
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_WEIGHT_TREE_H_
