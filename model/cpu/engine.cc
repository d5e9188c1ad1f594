#include "model/cpu/engine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status.h"

namespace agentd::model {
namespace {

// Raised whenever an order of operations changes, so that values of older versions are not mistaken
// for this one's.
constexpr char kNumericsId[] = "cpu/1/exact";

}  // namespace

std::vector<PartTime> TakePartTimes(Engine* engine) {
  auto* cpu = dynamic_cast<CpuEngine*>(engine);
  return cpu == nullptr ? std::vector<PartTime>() : cpu->TakePartTimes();
}

absl::StatusOr<std::unique_ptr<Engine>> CpuEngine::Load(const std::filesystem::path& model_dir,
                                                        const EngineOptions& options) {
  ASSIGN_OR_RETURN(Config config, Config::Load(model_dir));
  ASSIGN_OR_RETURN(std::unique_ptr<const Checkpoint> checkpoint, Checkpoint::Open(model_dir));
  ASSIGN_OR_RETURN(std::unique_ptr<ThreadPool> pool, ThreadPool::Create(options.threads));
  ASSIGN_OR_RETURN(Weights weights, LoadWeights(config, *checkpoint, pool.get()));
  Identity identity = {.config = std::move(config),
                       .low_precision = weights.low_precision,
                       .numerics_id = kNumericsId};
  identity.fingerprint = checkpoint->Fingerprint(CanonicalConfig(identity.config));
  // The fingerprint may have read everything once more.
  checkpoint->ReleaseAll();
  return std::unique_ptr<Engine>(new CpuEngine(std::move(identity), std::move(checkpoint),
                                               std::move(weights), options.max_batch_rows,
                                               std::move(pool)));
}

CpuEngine::CpuEngine(Identity identity, std::unique_ptr<const Checkpoint> checkpoint,
                     Weights weights, int max_batch_rows, std::unique_ptr<ThreadPool> pool)
    : EngineBase(std::move(identity), max_batch_rows),
      checkpoint_(std::move(checkpoint)),
      weights_(std::move(weights)),
      pool_(std::move(pool)),
      forward_(config(), weights_, layout(), pool_.get()) {}

absl::Status CpuEngine::RunBatch(Batch* batch, std::span<const LogitsRow> logits) {
  const size_t wide = layout().stream_floats;
  float* streams = streams_.Reserve(size_t(batch->rows) * wide);
  forward_.Begin(batch);
  forward_.Embed(streams);
  for (int layer = 0; layer < config().num_hidden_layers; ++layer) forward_.Layer(layer, streams);
  if (layout().mtp) forward_.MtpKeys(streams);
  std::vector<LogitsRow> wanted;
  for (const LogitsRow& row : logits) {
    const int segment = batch->segment_of[size_t(row.row)];
    if (batch->segments[size_t(segment)].status.ok()) wanted.push_back(row);
  }
  WriteLogits(wanted);
  for (const Segment& segment : batch->segments) {
    if (!segment.status.ok()) continue;
    auto& sequence = static_cast<CpuSequence&>(*segment.sequence);
    for (int j = std::max(0, segment.rows - SequenceBase::kKeptRows); j < segment.rows; ++j) {
      const float* from = streams + size_t(segment.row_begin + j) * wide;
      std::copy(from, from + wide, sequence.Frontier(j + 1) + layout().streams_offset());
    }
    StoreWindowKeys(segment, /*mtp_in_place=*/false);
  }
  return absl::OkStatus();
}

void CpuEngine::StoreWindowKeys(const Segment& segment, bool mtp_in_place) const {
  const size_t offset = size_t(segment.row_begin) * size_t(layout().entry.bytes);
  static_cast<CpuSequence&>(*segment.sequence)
      .StoreWindowKeys(segment.rows, forward_.window_keys() + offset, forward_.window_key_stride(),
                       mtp_in_place);
}

void CpuEngine::WriteLogits(std::span<const LogitsRow> wanted) {
  const size_t vocab = size_t(config().vocab_size);
  const size_t wide = layout().stream_floats;
  constexpr size_t kRows = 64;  // at a time: logits of a large vocabulary are large
  for (size_t begin = 0; begin < wanted.size(); begin += kRows) {
    const size_t count = std::min(kRows, wanted.size() - begin);
    float* streams = head_streams_.Reserve(count * wide);
    for (size_t i = 0; i < count; ++i) {
      const float* from = streams_.data() + size_t(wanted[begin + i].row) * wide;
      std::copy(from, from + wide, streams + i * wide);
    }
    float* logits = head_logits_.Reserve(count * vocab);
    forward_.Logits(streams, int(count), /*mtp=*/false, logits);
    for (size_t i = 0; i < count; ++i) std::copy_n(logits + i * vocab, vocab, wanted[begin + i].to);
  }
}

absl::Status CpuEngine::DraftRow(Batch* batch, std::span<float> logits) {
  const Segment& segment = batch->segments[0];
  forward_.Begin(batch);
  float* streams = streams_.Reserve(layout().stream_floats);
  const Forward::MtpRow row = {static_cast<const CpuSequence&>(*segment.sequence).LastStreams(),
                               batch->tokens[0], segment.start, 0};
  forward_.MtpInputs({&row, 1}, streams);
  forward_.Layer(config().num_hidden_layers, streams);
  forward_.Logits(streams, 1, /*mtp=*/true, logits.data());
  return absl::OkStatus();
}

absl::Status CpuEngine::RunLayerRows(int layer, Batch* batch, std::span<float> streams) {
  forward_.Begin(batch);
  forward_.Layer(layer, streams.data());
  StoreWindowKeys(batch->segments[0], /*mtp_in_place=*/true);
  return absl::OkStatus();
}

}  // namespace agentd::model
