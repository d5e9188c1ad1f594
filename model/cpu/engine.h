// The CPU backend behind model/engine.h.
#ifndef AGENTD_MODEL_CPU_ENGINE_H_
#define AGENTD_MODEL_CPU_ENGINE_H_

#include <memory>
#include <string>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cpu/forward.h"
#include "model/cpu/sequence.h"
#include "model/cpu/thread_pool.h"
#include "model/cpu/weights.h"
#include "model/engine.h"

namespace agentd::model {

class CpuEngine final : public Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::filesystem::path& model_dir,
                                                      const EngineOptions& options);

  const Config& config() const override { return config_; }
  const Sha256Digest& fingerprint() const override { return fingerprint_; }
  const std::string& numerics_id() const override { return numerics_id_; }
  std::unique_ptr<Sequence> NewSequence() override {
    return std::make_unique<CpuSequence>(layout_);
  }
  absl::Status Step(std::span<StepRow> rows) override;
  absl::Status Draft(const Sequence& sequence, TokenId next_token,
                     std::span<float> logits) override;
  absl::Status RunLayer(int layer, std::span<const TokenId> tokens,
                        std::span<const float> streams_in, std::span<float> streams_out) override;

 private:
  CpuEngine(Config config, std::unique_ptr<const Checkpoint> checkpoint, Weights weights,
            int max_batch_rows, std::unique_ptr<ThreadPool> pool);

  absl::Status CheckTokens(std::span<const TokenId> tokens, int64_t position) const;
  // Evaluates and commits one batch; `done` is how many tokens of each segment's row came before.
  void RunBatch(std::span<StepRow> rows, std::span<const int> row_of_segment,
                std::span<const size_t> done);
  void WriteLogits(std::span<StepRow> rows, std::span<const int> row_of_segment,
                   std::span<const size_t> done);

  const Config config_;
  const std::unique_ptr<const Checkpoint> checkpoint_;
  const Weights weights_;
  const StateLayout layout_;
  const int max_batch_rows_;
  const Sha256Digest fingerprint_;
  const std::string numerics_id_;
  const std::unique_ptr<ThreadPool> pool_;
  Forward forward_;
  Batch batch_;
  Buffer<float> streams_;
  Buffer<float> head_streams_;
  Buffer<float> head_logits_;
};

// What of the configuration determines results, as text.
std::string CanonicalConfig(const Config& config);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_ENGINE_H_
