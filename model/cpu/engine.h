// The CPU backend behind model/engine.h.
#ifndef AGENTD_MODEL_CPU_ENGINE_H_
#define AGENTD_MODEL_CPU_ENGINE_H_

#include <memory>

#include "model/checkpoint.h"
#include "model/cpu/forward.h"
#include "model/cpu/sequence.h"
#include "model/cpu/thread_pool.h"
#include "model/cpu/weights.h"
#include "model/engine_base.h"

namespace agentd::model {

class CpuEngine final : public EngineBase {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::filesystem::path& model_dir,
                                                      const EngineOptions& options);

  std::unique_ptr<Sequence> NewSequence() override {
    return std::make_unique<CpuSequence>(layout());
  }

  std::vector<PartTime> TakePartTimes() { return forward_.TakePartTimes(); }

 private:
  CpuEngine(Identity identity, std::unique_ptr<const Checkpoint> checkpoint, Weights weights,
            int max_batch_rows, std::unique_ptr<ThreadPool> pool);

  absl::Status RunBatch(Batch* batch, std::span<const LogitsRow> logits) override;
  absl::Status DraftRow(Batch* batch, std::span<float> logits) override;
  absl::Status RunLayerRows(int layer, Batch* batch, std::span<float> streams) override;

  void WriteLogits(std::span<const LogitsRow> wanted);
  void StoreWindowKeys(const Segment& segment, bool mtp_in_place) const;

  const std::unique_ptr<const Checkpoint> checkpoint_;
  const Weights weights_;
  const std::unique_ptr<ThreadPool> pool_;
  Forward forward_;
  Buffer<float> streams_;
  Buffer<float> head_streams_;
  Buffer<float> head_logits_;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_ENGINE_H_
