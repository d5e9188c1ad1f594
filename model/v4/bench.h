// What the parts of `v4 bench` share.
#ifndef AGENTD_MODEL_V4_BENCH_H_
#define AGENTD_MODEL_V4_BENCH_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/engine.h"

namespace agentd::model::v4 {

struct BenchOptions {
  std::string model;
  std::string shape;
  int layers = 0;  // 0: all
  int prefill = 1024;
  int decode = 128;
  int context = 0;
  int batch = 1;
  EngineOptions engine;
};

// What one token's products compute, and what a decode step reads, counted from the tensors:
// everything but the embedding and the MTP block. Attention over the cache is not in it.
struct StepCost {
  double step_bytes = 0;     // by `batch` tokens together: each expert that one of them chose, once
  double multiply_adds = 0;  // of a token
  double head_bytes = 0;     // of step_bytes, what is no layer's
};
StepCost CountStep(const Config& config, const Checkpoint& checkpoint, int batch);

// What steps of one kind had of experts in host memory, a step.
struct ExpertTraffic {
  double needed = 0;  // experts
  double hits = 0;    // of those, in the cache
  double bytes = 0;   // fetched
};
ExpertTraffic CountTraffic(const HostExperts& before, const HostExperts& after, int steps);

// Bytes of the cache that a decode step reads at a position: indexer keys, entries, window keys.
double CountCache(const Config& config, int64_t position);

// A past as long as one likes without evaluating all of it: kSeedTokens tokens are, and their
// blocks repeat. As much state as any past of that length has, and as much work for the tokens
// after it.
class RepeatedPast {
 public:
  static constexpr int kSeedTokens = 4096;

  // Evaluates the tokens, kSeedTokens of them.
  static absl::StatusOr<RepeatedPast> Make(Engine* engine, std::span<const TokenId> tokens);
  // A sequence of the whole blocks of `context` tokens.
  absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(int64_t context);

 private:
  Engine* engine_ = nullptr;
  std::vector<BlockPayload> blocks_;
  std::string anchor_;
};

// Made-up weights of a published shape, or of its first layers, on a device.
absl::Status BenchShape(const BenchOptions& options);

}  // namespace agentd::model::v4

#endif  // AGENTD_MODEL_V4_BENCH_H_
