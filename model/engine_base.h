// What an engine does on every backend: checks, splitting of a Step into batches, undoing rows that
// fail, which logits go where. The arithmetic is the backend's, behind a few hooks.
#ifndef AGENTD_MODEL_ENGINE_BASE_H_
#define AGENTD_MODEL_ENGINE_BASE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/sha256.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/engine.h"
#include "model/sequence_base.h"
#include "model/state_layout.h"

namespace agentd::model {

class EngineBase : public Engine {
 public:
  const Config& config() const final { return config_; }
  const Sha256Digest& fingerprint() const final { return fingerprint_; }
  const std::string& numerics_id() const final { return numerics_id_; }
  absl::Status Step(std::span<StepRow> rows) final;
  absl::Status Draft(const Sequence& sequence, TokenId next_token, std::span<float> logits) final;
  absl::Status RunLayer(int layer, std::span<const TokenId> tokens,
                        std::span<const float> streams_in, std::span<float> streams_out) final;

 protected:
  struct Identity {
    Config config;
    bool low_precision = false;
    Sha256Digest fingerprint = {};
    std::string numerics_id;
  };
  EngineBase(Identity identity, int max_batch_rows);

  // What NewSequence makes are SequenceBases of this layout.
  const StateLayout& layout() const { return layout_; }

  // Logits [vocab_size] of a batch's row, and where they go.
  struct LogitsRow {
    int row = 0;
    float* to = nullptr;
  };
  // Evaluates a batch, for whose segments BeginRows was called, up to where CommitRows (which the
  // caller calls) makes it the sequences' state: entries, frontiers with their streams, window
  // keys. A segment that fails alone is marked in its status, and its logits are not written. An
  // error is that of the whole batch: nothing of it becomes state.
  virtual absl::Status RunBatch(Batch* batch, std::span<const LogitsRow> logits) = 0;
  // Logits of the MTP block's row: the batch has one row, of the token to come, at the position of
  // the last one. Changes no state.
  virtual absl::Status DraftRow(Batch* batch, std::span<float> logits) = 0;
  // One layer alone: `streams` of the batch's rows, in place, up to where CommitRows makes it the
  // state. The MTP block's window keys are those of the rows' own positions.
  virtual absl::Status RunLayerRows(int layer, Batch* batch, std::span<float> streams) = 0;
  // Whether evaluating this sequence's rows can fail: then what a Step of several batches commits
  // early is saved before. Where an error of a whole batch is possible, true of every sequence.
  virtual bool CanFail(const SequenceBase& sequence) const { return !sequence.all_resident(); }

 private:
  struct Progress;  // of a row of Step
  struct Part;      // of it, in a batch

  absl::Status CheckRows(std::span<const StepRow> rows) const;
  absl::Status CheckTokens(std::span<const TokenId> tokens, int64_t position) const;
  void BeginStep(std::span<StepRow> rows, std::span<Progress> progress) const;
  std::vector<Part> FillBatch(std::span<StepRow> rows, std::span<Progress> progress);
  std::vector<LogitsRow> WantedLogits(std::span<const StepRow> rows,
                                      std::span<const Part> parts) const;
  const SequenceBase* Own(const Sequence* sequence) const;

  const Config config_;
  const StateLayout layout_;
  const Sha256Digest fingerprint_;
  const std::string numerics_id_;
  const int max_batch_rows_;
  Batch batch_;
};

// What of the configuration determines results, as text.
std::string CanonicalConfig(const Config& config);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_ENGINE_BASE_H_
