// The weights of one model in the kernels' layout. Immutable after LoadWeights.
#ifndef AGENTD_MODEL_CPU_WEIGHTS_H_
#define AGENTD_MODEL_CPU_WEIGHTS_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cpu/packed_matrix.h"
#include "model/cpu/thread_pool.h"

namespace agentd::model {

using Vector = std::vector<float>;

struct HyperConnection {  // mHC before a sublayer: fn [(2+H)H, H*d], base [(2+H)H], scale [3]; of a
                          // head: fn [H, H*d], base [H], scale [1]
  PackedMatrix fn;
  Vector base;
  Vector scale;
};

struct Compressor {
  int ratio = 0;     // m
  int channels = 0;  // c of its entries
  int width = 0;     // channels of k and gate: 2c for m = 4, c for m = 128
  PackedMatrix wkv;
  PackedMatrix wgate;
  Vector ape;   // [m, width]
  Vector norm;  // [c]
};

struct Indexer {
  PackedMatrix wq_b;
  PackedMatrix weights_proj;
  Compressor compressor;
};

struct Expert {
  PackedMatrix w1;
  PackedMatrix w2;
  PackedMatrix w3;
};

struct LayerWeights {
  LayerKind kind = LayerKind::kSwa;
  bool hash_routed = false;
  HyperConnection hc_attn;
  HyperConnection hc_ffn;
  Vector attn_norm;
  Vector ffn_norm;
  PackedMatrix wq_a;
  PackedMatrix wq_b;
  PackedMatrix wkv;
  std::vector<PackedMatrix> wo_a;  // per group
  PackedMatrix wo_b;
  Vector q_norm;
  Vector kv_norm;
  Vector sinks;
  std::optional<Compressor> compressor;
  std::optional<Indexer> indexer;
  PackedMatrix gate;
  Vector gate_bias;                 // score-routed
  std::vector<int32_t> experts_of;  // hash-routed: [V, experts per token]
  std::vector<Expert> experts;
  Expert shared;
};

struct MtpWeights {
  LayerWeights layer;
  PackedMatrix e_proj;
  PackedMatrix h_proj;
  Vector enorm;
  Vector hnorm;
  Vector norm;
  HyperConnection head_mix;
};

struct Weights {
  // The checkpoint has FP8 or FP4 weights: the low-precision rules hold (spec section 4); otherwise
  // plain F32 arithmetic.
  bool low_precision = false;
  const Tensor* embed = nullptr;  // [V, d], BF16 or F32, in the mapping
  PackedMatrix head;
  Vector norm;
  HyperConnection head_mix;
  std::vector<LayerWeights> layers;
  std::optional<MtpWeights> mtp;

  const LayerWeights& layer(int index) const {  // layers.size() is the MTP block's own
    return size_t(index) < layers.size() ? layers[size_t(index)] : mtp->layer;
  }
};

// Why a checkpoint is not the model of a configuration.
struct WeightProblem {
  enum class Kind { kMissing, kShape, kUnknown, kOther };
  Kind kind = Kind::kOther;
  std::string tensor;
  absl::Status status;  // names file, tensor, what was expected
};

// Reads every tensor that `config` asks for, on the pool's threads, and leaves no page of the
// checkpoint's mapping resident. Errors name a tensor that is missing, of another shape or type, or
// unknown, the first element that is no number, or the memory that is lacking: always the first in
// the order of the layers.
absl::StatusOr<Weights> LoadWeights(const Config& config, const Checkpoint& checkpoint,
                                    ThreadPool* pool);
// All that LoadWeights would refuse but for a lack of memory; reads as much and keeps nothing.
std::vector<WeightProblem> CheckWeights(const Config& config, const Checkpoint& checkpoint,
                                        ThreadPool* pool);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_WEIGHTS_H_
