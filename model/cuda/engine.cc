#include "model/cuda/engine.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/cuda/device.h"
#include "model/cuda/forward.h"
#include "model/cuda/graph.h"
#include "model/cuda/limits.h"
#include "model/cuda/sequence.h"
#include "model/cuda/upload.h"
#include "model/cuda/weights.h"
#include "model/engine_base.h"
#include "model/numeric.h"

namespace agentd::model {
namespace cuda {
namespace {

// Raised whenever an order of operations changes (as cpu/engine.cc's).
constexpr char kNumericsId[] = "cuda-sm90/1/exact";

// Logits are made and brought to the host for so many rows at a time: those of a large vocabulary
// are large.
constexpr int kLogitRows = 64;
// Batches of single tokens of up to so many sequences are captured as graphs.
constexpr int kGraphRows = 32;
constexpr size_t kMaxGraphs = 64;
constexpr int kMissingAtOnce = 4096;

class CudaEngine final : public EngineBase {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Load(Config config,
                                                      std::unique_ptr<const Checkpoint> checkpoint,
                                                      const EngineOptions& options);

  std::unique_ptr<Sequence> NewSequence() override {
    return std::make_unique<CudaSequence>(layout(), &*sequence_memory_);
  }

 private:
  CudaEngine(Identity identity, int max_batch_rows, Stream stream, DeviceWeights weights)
      : EngineBase(std::move(identity), max_batch_rows),
        stream_(std::move(stream)),
        weights_(std::move(weights)) {}

  absl::Status Prepare(int max_batch_rows);
  absl::Status RunBatch(Batch* batch, std::span<const LogitsRow> logits) override;
  absl::Status DraftRow(Batch* batch, std::span<float> logits) override;
  absl::Status RunLayerRows(int layer, Batch* batch, std::span<float> streams) override;
  // A launch can fail at any time.
  bool CanFail(const SequenceBase&) const override { return true; }

  // Enqueues the pass over the uploaded batch, up to streams and the MTP block's keys.
  absl::Status Enqueue(const Forward::Fetch& fetch, bool logits_of_all, bool mtp_rows);
  absl::Status RunCaptured(int rows, bool logits, bool mtp_rows);
  absl::Status FetchMissing(Batch* batch, const SelectArgs& args);
  absl::Status WriteLogits(std::span<const LogitsRow> logits);
  absl::Status ReadLogits(int count);

  const Stream stream_;
  const DeviceWeights weights_;
  std::optional<SequenceMemory> sequence_memory_;
  std::unique_ptr<Forward> forward_;
  Upload upload_;
  PinnedMemory logits_;
  DeviceMemory missing_;  // int2 [kMissingAtOnce], int count
  // Captured passes by rows, bound of positions, whether logits are made, whether MTP keys are.
  std::map<std::tuple<int, int64_t, bool, bool>, Graph> graphs_;
};

absl::StatusOr<std::unique_ptr<Engine>> CudaEngine::Load(
    Config config, std::unique_ptr<const Checkpoint> checkpoint, const EngineOptions& options) {
  if (options.max_batch_rows < 1 || options.max_batch_rows > 1 << 16) {
    return InvalidArgument("max_batch_rows is {}: it must be between 1 and 65536",
                           options.max_batch_rows);
  }
  RETURN_IF_ERROR(CheckLimits(config));
  RETURN_IF_ERROR(CheckDevice());
  ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  ASSIGN_OR_RETURN(DeviceWeights weights, LoadDeviceWeights(config, *checkpoint, stream));
  Identity identity = {.low_precision = weights.low_precision, .numerics_id = kNumericsId};
  const bool made_up = checkpoint->tensors().begin()->second.data == nullptr;
  if (!made_up) identity.fingerprint = checkpoint->Fingerprint(CanonicalConfig(config));
  identity.config = std::move(config);
  std::unique_ptr<CudaEngine> engine(new CudaEngine(std::move(identity), options.max_batch_rows,
                                                    std::move(stream), std::move(weights)));
  RETURN_IF_ERROR(engine->Prepare(options.max_batch_rows));
  return std::unique_ptr<Engine>(std::move(engine));
}

absl::Status CudaEngine::Prepare(int max_batch_rows) {
  sequence_memory_.emplace(layout(), stream_.get());
  ASSIGN_OR_RETURN(forward_, Forward::Create(config(), weights_, layout(), max_batch_rows,
                                             kLogitRows, stream_.get()));
  RETURN_IF_ERROR(upload_.Allocate(max_batch_rows));
  ASSIGN_OR_RETURN(logits_,
                   PinnedMemory::Allocate(
                       size_t(kLogitRows) * size_t(config().vocab_size) * sizeof(float), "logits"));
  ASSIGN_OR_RETURN(missing_,
                   DeviceMemory::Allocate(kMissingAtOnce * sizeof(int2) + 16, "missing entries"));
  return stream_.Synchronize();
}

absl::Status CudaEngine::Enqueue(const Forward::Fetch& fetch, bool logits_of_all, bool mtp_rows) {
  forward_->Begin(upload_.shape());
  forward_->Embed();
  for (int layer = 0; layer < config().num_hidden_layers; ++layer)
    RETURN_IF_ERROR(forward_->Layer(layer, fetch));
  forward_->Fold();
  if (mtp_rows) forward_->MtpKeys(upload_.mtp_rows(), upload_.mtp_keys());
  if (logits_of_all) {
    forward_->Logits(nullptr, upload_.shape().view.rows, /*mtp=*/false);
    RETURN_IF_ERROR(ReadLogits(upload_.shape().view.rows));
  }
  forward_->Commit(/*with_streams=*/true, /*mtp_in_place=*/false);
  return absl::OkStatus();
}

absl::Status CudaEngine::ReadLogits(int count) {
  return CudaStatus(cudaMemcpyAsync(logits_.as<>(), forward_->logits(),
                                    size_t(count) * size_t(config().vocab_size) * sizeof(float),
                                    cudaMemcpyDeviceToHost, stream_.get()),
                    "read logits");
}

absl::Status CudaEngine::RunCaptured(int rows, bool logits, bool mtp_rows) {
  // Grids are made for positions below a power of two; beyond it another graph is captured.
  int64_t bound = 1024;
  while (bound < upload_.shape().end) bound *= 2;
  auto [found, added] = graphs_.try_emplace({rows, bound, logits, mtp_rows});
  if (added) {
    // A daemon that has seen every mix of rows and lengths need not keep a graph of each.
    if (graphs_.size() > kMaxGraphs) {
      graphs_.clear();
      found = graphs_.try_emplace({rows, bound, logits, mtp_rows}).first;
    }
    upload_.SetEnd(bound);
    absl::StatusOr<Graph> graph =
        Graph::Capture(stream_.get(), [&] { return Enqueue(/*fetch=*/nullptr, logits, mtp_rows); });
    if (!graph.ok()) {
      graphs_.erase(found);
      return graph.status();
    }
    found->second = std::move(*graph);
  }
  return found->second.Launch(stream_.get());
}

absl::Status CudaEngine::RunBatch(Batch* batch, std::span<const LogitsRow> logits) {
  upload_.SetBatch(*batch, /*rows_begun=*/true);
  const bool mtp_rows = layout().mtp && upload_.SetMtpRows(*batch, layout());
  const bool resident =
      std::all_of(batch->segments.begin(), batch->segments.end(),
                  [](const Segment& segment) { return segment.sequence->all_resident(); });
  RETURN_IF_ERROR(upload_.Send(stream_.get()));
  // Logits of every row in order, or of none: what decoding asks for.
  bool in_order = int(logits.size()) == batch->rows;
  for (size_t i = 0; in_order && i < logits.size(); ++i) in_order = logits[i].row == int(i);
  const bool of_all = in_order && batch->rows <= kLogitRows;
  const bool captured = resident && batch->rows <= kGraphRows &&
                        batch->rows == int(batch->segments.size()) && (of_all || logits.empty()) &&
                        (!layout().mtp || upload_.mtp_rows().count == batch->rows);
  if (captured) {
    RETURN_IF_ERROR(RunCaptured(batch->rows, of_all, mtp_rows));
  } else {
    Forward::Fetch fetch;
    if (!resident) fetch = [&](const SelectArgs& args) { return FetchMissing(batch, args); };
    RETURN_IF_ERROR(Enqueue(fetch, of_all, mtp_rows));
  }
  if (!of_all && !logits.empty()) {
    std::vector<LogitsRow> wanted;
    for (const LogitsRow& row : logits) {
      if (batch->segments[size_t(batch->segment_of[size_t(row.row)])].status.ok())
        wanted.push_back(row);
    }
    return WriteLogits(wanted);
  }
  RETURN_IF_ERROR(stream_.Synchronize());
  const size_t vocab = size_t(config().vocab_size);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!batch->segments[size_t(batch->segment_of[i])].status.ok()) continue;
    std::copy_n(logits_.as<float>() + i * vocab, vocab, logits[i].to);
  }
  return absl::OkStatus();
}

absl::Status CudaEngine::WriteLogits(std::span<const LogitsRow> logits) {
  const size_t vocab = size_t(config().vocab_size);
  RETURN_IF_ERROR(stream_.Synchronize());
  for (size_t begin = 0; begin < logits.size(); begin += kLogitRows) {
    const size_t count = std::min<size_t>(kLogitRows, logits.size() - begin);
    std::vector<int> rows;
    for (size_t i = 0; i < count; ++i) rows.push_back(logits[begin + i].row);
    upload_.SetLogitRows(rows);
    RETURN_IF_ERROR(upload_.Send(stream_.get()));
    forward_->Logits(upload_.logit_rows(), int(count), /*mtp=*/false);
    RETURN_IF_ERROR(ReadLogits(int(count)));
    RETURN_IF_ERROR(stream_.Synchronize());
    for (size_t i = 0; i < count; ++i)
      std::copy_n(logits_.as<float>() + i * vocab, vocab, logits[begin + i].to);
  }
  return absl::OkStatus();
}

// Brings in the blocks that the rows selected and that are not on the device. A segment whose
// source fails is marked and goes on without meaning: its missing entries count as zeros.
absl::Status CudaEngine::FetchMissing(Batch* batch, const SelectArgs& args) {
  auto* list = missing_.as<int2>();
  auto* count = reinterpret_cast<int*>(list + kMissingAtOnce);
  std::vector<int2> found;
  while (true) {
    FindMissing(args, list, kMissingAtOnce, count, stream_.get());
    int total = 0;
    RETURN_IF_ERROR(stream_.Synchronize());
    RETURN_IF_ERROR(CudaStatus(cudaMemcpy(&total, count, sizeof(total), cudaMemcpyDeviceToHost),
                               "read missing entries"));
    found.resize(size_t(std::min(total, kMissingAtOnce)));
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy(found.data(), list, found.size() * sizeof(int2), cudaMemcpyDeviceToHost),
        "read missing entries"));
    std::set<std::pair<int, int>> blocks;
    for (const int2& missing : found) blocks.emplace(missing.x, missing.y);
    bool failed = false;
    for (const auto& [segment, block] : blocks) {
      Segment& of = batch->segments[size_t(segment)];
      if (of.status.ok()) of.status = of.sequence->FetchCsa(block, args.number);
      failed |= !of.status.ok();
    }
    if (total <= kMissingAtOnce || failed) return absl::OkStatus();
  }
}

absl::Status CudaEngine::DraftRow(Batch* batch, std::span<float> logits) {
  upload_.SetBatch(*batch, /*rows_begun=*/false);
  upload_.SetDraftRow(*batch);
  RETURN_IF_ERROR(upload_.Send(stream_.get()));
  forward_->Begin(upload_.shape());
  forward_->DraftInput(upload_.mtp_rows());
  RETURN_IF_ERROR(forward_->Layer(config().num_hidden_layers, /*fetch=*/nullptr));
  forward_->Fold();
  forward_->Logits(nullptr, 1, /*mtp=*/true);
  RETURN_IF_ERROR(ReadLogits(1));
  RETURN_IF_ERROR(stream_.Synchronize());
  std::copy_n(logits_.as<float>(), logits.size(), logits.data());
  return absl::OkStatus();
}

absl::Status CudaEngine::RunLayerRows(int layer, Batch* batch, std::span<float> streams) {
  upload_.SetBatch(*batch, /*rows_begun=*/true);
  RETURN_IF_ERROR(upload_.Send(stream_.get()));
  forward_->Begin(upload_.shape());
  const bool low = layout().low_precision;
  std::vector<uint16_t> values(low ? streams.size() : 0);
  for (size_t i = 0; i < values.size(); ++i) values[i] = FloatToBf16(streams[i]);
  void* host = low ? static_cast<void*>(values.data()) : streams.data();
  const size_t bytes = streams.size() * (low ? 2 : 4);
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(forward_->streams(), host, bytes, cudaMemcpyHostToDevice, stream_.get()),
      "send streams"));
  RETURN_IF_ERROR(forward_->Layer(layer, /*fetch=*/nullptr));
  forward_->Fold();
  forward_->Commit(/*with_streams=*/false, /*mtp_in_place=*/true);
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(host, forward_->streams(), bytes, cudaMemcpyDeviceToHost, stream_.get()),
      "read streams"));
  RETURN_IF_ERROR(stream_.Synchronize());
  for (size_t i = 0; i < values.size(); ++i) streams[i] = Bf16ToFloat(values[i]);
  return absl::OkStatus();
}

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<Engine>> LoadCudaEngine(Config config,
                                                       std::unique_ptr<const Checkpoint> checkpoint,
                                                       const EngineOptions& options) {
  return cuda::CudaEngine::Load(std::move(config), std::move(checkpoint), options);
}

absl::StatusOr<std::unique_ptr<Engine>> LoadCudaEngine(const std::filesystem::path& model_dir,
                                                       const EngineOptions& options) {
  // Before the files: without a device they need not be read.
  RETURN_IF_ERROR(cuda::CheckDevice());
  ASSIGN_OR_RETURN(Config config, Config::Load(model_dir));
  ASSIGN_OR_RETURN(std::unique_ptr<const Checkpoint> checkpoint, Checkpoint::Open(model_dir));
  return LoadCudaEngine(std::move(config), std::move(checkpoint), options);
}

}  // namespace agentd::model
