// What a configuration implies, without any weights: tensors, parameters, bytes, cache, arithmetic.
// `v4 inspect` prints it.
#ifndef AGENTD_MODEL_INSPECT_H_
#define AGENTD_MODEL_INSPECT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"

namespace agentd::model {

// How a checkpoint stores its weights.
enum class WeightStorage {
  kPublished,  // experts FP4, other linears FP8, each with scales; the rest BF16 and F32
  kBf16,
  kF32,
};

// From quantization_config and torch_dtype of a config.json. InvalidArgument names the field and
// the value.
absl::StatusOr<WeightStorage> StorageFromConfig(std::string_view json,
                                                const std::string& source_name);

// A tensor that a checkpoint of this configuration has.
struct TensorSpec {
  std::string name;
  std::string_view dtype;      // safetensors' name of the stored type: "BF16"
  std::vector<int64_t> shape;  // as stored: FP4 values are packed two in a byte
  int64_t parameters = 0;      // weights it holds: none in scales and in the hash layers' tables
  int64_t bytes = 0;
  bool is_routed_expert = false;
  bool is_mtp = false;
  bool is_scale = false;
};

// In the order of the layers; the MTP block's last. Names and shapes as published.
std::vector<TensorSpec> ExpectedTensors(const Config& config, WeightStorage storage);

struct ParameterCount {
  int64_t total = 0;  // without the MTP block
  int64_t mtp = 0;
  int64_t embedding = 0;  // of the total: a lookup, no arithmetic
  int64_t active_per_token =
      0;  // of the total: without the embedding and the experts that a token does not choose
};
ParameterCount CountParameters(const Config& config, const std::vector<TensorSpec>& tensors);

// Bytes of the cache in the storage types of the checkpoint, which hold it without loss.
struct KvSize {
  int swa_layers = 0;
  int csa_layers = 0;
  int hca_layers = 0;
  int64_t entry_bytes = 0;      // a window key or a compressed entry
  int64_t index_key_bytes = 0;  // CSA layers, one per entry

  // Growth with the context.
  double csa_entries_per_token = 0;
  double index_keys_per_token = 0;
  double hca_entries_per_token = 0;
  double bytes_per_token() const {
    return csa_entries_per_token + index_keys_per_token + hca_entries_per_token;
  }

  int64_t block_index_bytes = 0;  // of a block: what every step reads
  int64_t block_csa_bytes = 0;    // read where top-k picks it
  int64_t window_bytes =
      0;  // constant: the last sliding_window tokens in all layers, the MTP block's too
};
KvSize ComputeKvSize(const Config& config, WeightStorage storage);

// One kind of arithmetic for one decoded token; a multiply-add is two FLOPs.
struct FlopsPart {
  std::string name;
  std::string how;        // the product that gives `flops`
  std::string_view type;  // of the operands, which decides what it costs
  double flops = 0;
  double fp8_equivalent = 0;
};
struct Flops {
  std::vector<FlopsPart> parts;
  double total() const;
  double fp8_equivalent() const;
};

// What one FLOP costs in FP8 FLOPs: FP4 0.5, FP8 1, BF16 and F32 2. (Experts with FP4 weights
// multiply FP8 activations: 1.)
double Fp8Cost(std::string_view type);

// The matrix products of one decode step at position context - 1, without MTP. Left out everywhere:
// norms, softmax, RoPE, activations, top-k, Sinkhorn, which are small beside these.
Flops ComputeFlops(const Config& config, WeightStorage storage, int64_t context);

// DeepSeek-V3.2, which V4's report compares itself with: the same quantities from its shape.
Flops V32Flops(int64_t context);
int64_t V32KvBytesPerToken();

// All of the above as text, with how each figure comes about. `title` names the model; one FLOPs
// section per context.
std::string InspectReport(const std::string& title, const Config& config, WeightStorage storage,
                          const std::vector<int64_t>& contexts);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_INSPECT_H_
