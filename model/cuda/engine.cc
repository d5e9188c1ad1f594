#include "model/cuda/engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/cuda/device.h"
#include "model/cuda/expert_cache.h"
#include "model/cuda/expert_placement.h"
#include "model/cuda/forward.h"
#include "model/cuda/graph.h"
#include "model/cuda/limits.h"
#include "model/cuda/sequence.h"
#include "model/cuda/upload.h"
#include "model/cuda/weights.h"
#include "model/engine_base.h"
#include "model/numeric.h"
#include "model/parallel_ranges.h"

namespace agentd::model {
namespace cuda {
namespace {

// Raised whenever an order of operations changes (as cpu/engine.cc's).
constexpr char kNumericsId[] = "cuda-sm90/4/exact";

// Logits are made and brought to the host for so many rows at a time: those of a large vocabulary
// are large.
constexpr int kLogitRows = 64;
// Batches of single tokens of up to so many sequences are captured as graphs.
constexpr int kGraphRows = 32;
constexpr size_t kMaxGraphs = 64;
constexpr int kMissingAtOnce = 4096;

class CudaEngine final : public EngineBase {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const Config& config,
                                                      std::unique_ptr<const Checkpoint> checkpoint,
                                                      const EngineOptions& options);

  std::unique_ptr<Sequence> NewSequence() override {
    return std::make_unique<CudaSequence>(layout(), &*sequence_memory_);
  }
  absl::StatusOr<HostExperts> host_experts() override;

 private:
  CudaEngine(Identity identity, int max_batch_rows, Stream stream, DeviceWeights shapes)
      : EngineBase(std::move(identity), max_batch_rows),
        stream_(std::move(stream)),
        weights_(std::move(shapes)) {}

  // All buffers, then, in what is left of the device's memory, the weights.
  absl::Status Prepare(int max_batch_rows);
  static absl::Status PrepareSequences(const Batch& batch);
  absl::Status LoadWeights(WeightLoader* loader, const EngineOptions& options);
  absl::Status RunBatch(Batch* batch, std::span<const LogitsRow> logits) override {
    return Checked(Evaluate(batch, logits));
  }
  absl::Status DraftRow(Batch* batch, std::span<float> logits) override {
    return Checked(EvaluateDraft(batch, logits));
  }
  absl::Status RunLayerRows(int layer, Batch* batch, std::span<float> streams) override {
    return Checked(EvaluateLayer(layer, batch, streams));
  }
  // A launch can fail at any time.
  bool CanFail(const SequenceBase&) const override { return true; }

  absl::Status Evaluate(Batch* batch, std::span<const LogitsRow> logits);
  absl::Status EvaluateDraft(Batch* batch, std::span<float> logits);
  absl::Status EvaluateLayer(int layer, Batch* batch, std::span<float> streams);
  // A batch's own status. After a failure nothing is known of which experts were fetched.
  absl::Status Checked(absl::Status status) {
    if (!status.ok() && expert_cache_ != nullptr) (void)expert_cache_->Forget();
    return status;
  }

  // Enqueues the pass over the uploaded batch, up to streams and logits on the device.
  absl::Status EnqueuePass(const Forward::Fetch& fetch, bool logits_of_all);
  // After it, and after the logits' copies: the MTP block's keys, and the batch becomes state.
  void EnqueueState(bool mtp_rows);
  absl::Status RunCaptured(int rows, bool logits, bool mtp_rows);
  absl::Status FetchMissing(Batch* batch, const SelectArgs& args);
  absl::Status WriteLogits(const Batch& batch, std::span<const LogitsRow> logits);
  // Enqueues the copies of the logits to the host, a row at a time.
  absl::Status ReadLogits(int count);
  // Waits for them, and copies those of rows that did not fail to where they are wanted. What was
  // enqueued behind them may still run.
  absl::Status TakeLogits(const Batch& batch, std::span<const LogitsRow> logits) const;

  const Stream stream_;
  DeviceWeights weights_;
  std::optional<SequenceMemory> sequence_memory_;
  std::unique_ptr<Forward> forward_;
  std::unique_ptr<ExpertCache> expert_cache_;  // nullptr: all experts are on the device
  Upload upload_;
  PinnedMemory logits_;
  std::vector<Event> logits_read_;  // by row
  DeviceMemory missing_;            // int2 [kMissingAtOnce], int count
  // Captured passes by rows, bound of positions, whether logits are made, whether MTP keys are.
  struct Captured {
    Graph pass;
    Graph state;
  };
  std::map<std::tuple<int, int64_t, bool, bool>, Captured> graphs_;
};

absl::StatusOr<std::unique_ptr<Engine>> CudaEngine::Load(
    const Config& config, std::unique_ptr<const Checkpoint> checkpoint,
    const EngineOptions& options) {
  if (options.max_batch_rows < 1 || options.max_batch_rows > 1 << 16) {
    return InvalidArgument("max_batch_rows is {}: it must be between 1 and 65536",
                           options.max_batch_rows);
  }
  RETURN_IF_ERROR(CheckLimits(config));
  RETURN_IF_ERROR(CheckDevice());
  ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  ASSIGN_OR_RETURN(const auto loader, WeightLoader::Create(config, *checkpoint, stream));
  DeviceWeights shapes = loader->Shapes();
  Identity identity = {
      .config = config, .low_precision = shapes.low_precision, .numerics_id = kNumericsId};
  const bool made_up = checkpoint->tensors().begin()->second.data == nullptr;
  if (!made_up) identity.fingerprint = checkpoint->Fingerprint(CanonicalConfig(config));
  std::unique_ptr<CudaEngine> engine(new CudaEngine(std::move(identity), options.max_batch_rows,
                                                    std::move(stream), std::move(shapes)));
  RETURN_IF_ERROR(engine->Prepare(options.max_batch_rows));
  RETURN_IF_ERROR(engine->LoadWeights(loader.get(), options));
  return std::unique_ptr<Engine>(std::move(engine));
}

absl::Status CudaEngine::LoadWeights(WeightLoader* loader, const EngineOptions& options) {
  size_t free = 0;
  size_t total = 0;
  RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free, &total), "ask for free memory"));
  ASSIGN_OR_RETURN(const ExpertPlacement placement,
                   PlaceExperts(options, loader->Sizes(), int64_t(free)));
  ASSIGN_OR_RETURN(weights_, loader->Load(placement));
  if (placement.slots == 0) return absl::OkStatus();
  const auto layers = std::count(placement.on_host.begin(), placement.on_host.end(), true);
  ASSIGN_OR_RETURN(expert_cache_,
                   ExpertCache::Create(int(layers), config().n_routed_experts, placement.slots,
                                       placement.slot_bytes, stream_));
  BindExperts(expert_cache_->tables().data, placement.slot_bytes, &weights_);
  forward_->UseCache(expert_cache_.get());
  return absl::OkStatus();
}

absl::StatusOr<HostExperts> CudaEngine::host_experts() {
  HostExperts out;
  if (expert_cache_ == nullptr) return out;
  for (size_t i = 0; i < weights_.experts.size(); ++i) {
    if (weights_.experts[i].host != nullptr) out.layers.push_back(int(i));
  }
  for (const PinnedMemory& memory : weights_.host_memory) out.host_bytes += int64_t(memory.bytes());
  out.experts = int(out.layers.size()) * config().n_routed_experts;
  out.cached = expert_cache_->tables().slots;
  out.expert_bytes = expert_cache_->tables().slot_bytes;
  ASSIGN_OR_RETURN(const ExpertCounts counts, expert_cache_->Counts());
  out.hits = int64_t(counts.hits);
  out.misses = int64_t(counts.misses);
  out.fetched_bytes = int64_t(counts.bytes);
  return out;
}

absl::Status CudaEngine::Prepare(int max_batch_rows) {
  ASSIGN_OR_RETURN(Stream export_stream, Stream::Create());
  sequence_memory_.emplace(layout(), stream_.get(), std::move(export_stream));
  ASSIGN_OR_RETURN(forward_, Forward::Create(config(), weights_, layout(), max_batch_rows,
                                             kLogitRows, stream_.get()));
  RETURN_IF_ERROR(upload_.Allocate(max_batch_rows));
  ASSIGN_OR_RETURN(logits_,
                   PinnedMemory::Allocate(
                       size_t(kLogitRows) * size_t(config().vocab_size) * sizeof(float), "logits"));
  for (int i = 0; i < kLogitRows; ++i) {
    ASSIGN_OR_RETURN(Event event, Event::Create());
    logits_read_.push_back(std::move(event));
  }
  ASSIGN_OR_RETURN(missing_,
                   DeviceMemory::Allocate(kMissingAtOnce * sizeof(int2) + 16, "missing entries"));
  return stream_.Synchronize();
}

absl::Status CudaEngine::EnqueuePass(const Forward::Fetch& fetch, bool logits_of_all) {
  forward_->Begin(upload_.shape());
  forward_->Embed();
  for (int layer = 0; layer < config().num_hidden_layers; ++layer)
    RETURN_IF_ERROR(forward_->Layer(layer, fetch));
  forward_->Fold();
  if (logits_of_all) forward_->Logits(nullptr, upload_.shape().view.rows, /*mtp=*/false);
  return absl::OkStatus();
}

void CudaEngine::EnqueueState(bool mtp_rows) {
  if (mtp_rows) forward_->MtpKeys(upload_.mtp_rows(), upload_.mtp_keys());
  forward_->Commit(/*with_streams=*/true, /*mtp_in_place=*/false);
}

absl::Status CudaEngine::PrepareSequences(const Batch& batch) {
  for (const Segment& segment : batch.segments)
    RETURN_IF_ERROR(static_cast<CudaSequence*>(segment.sequence)->Prepare());
  return absl::OkStatus();
}

absl::Status CudaEngine::ReadLogits(int count) {
  const size_t vocab = size_t(config().vocab_size);
  for (size_t i = 0; i < size_t(count); ++i) {
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(logits_.as<float>() + i * vocab, forward_->logits() + i * vocab,
                                   vocab * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()),
                   "read logits"));
    RETURN_IF_ERROR(logits_read_[i].Record(stream_));
  }
  return absl::OkStatus();
}

absl::Status CudaEngine::TakeLogits(const Batch& batch, std::span<const LogitsRow> logits) const {
  RETURN_IF_ERROR(logits_read_[0].Synchronize());
  // All threads take a row as soon as it is there, and the columns between them.
  const size_t vocab = size_t(config().vocab_size);
  std::atomic<bool> ok{true};
  ForRanges(vocab, logits.size() * sizeof(float), [&](size_t begin, size_t end) {
    for (size_t i = 0; i < logits.size(); ++i) {
      if (i > 0 && cudaEventSynchronize(logits_read_[i].get()) != cudaSuccess) ok = false;
      const auto segment = size_t(batch.segment_of[size_t(logits[i].row)]);
      if (!batch.segments[segment].status.ok()) continue;
      std::copy(logits_.as<float>() + i * vocab + begin, logits_.as<float>() + i * vocab + end,
                logits[i].to + begin);
    }
  });
  return ok ? absl::OkStatus() : logits_read_[logits.size() - 1].Synchronize();
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
    Captured captured;
    const absl::Status status = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(captured.pass, Graph::Capture(stream_.get(), [&] {
                         return EnqueuePass(/*fetch=*/nullptr, logits);
                       }));
      ASSIGN_OR_RETURN(captured.state, Graph::Capture(stream_.get(), [&] {
                         EnqueueState(mtp_rows);
                         return absl::OkStatus();
                       }));
      return absl::OkStatus();
    }();
    if (!status.ok()) {
      graphs_.erase(found);
      return status;
    }
    found->second = std::move(captured);
  }
  RETURN_IF_ERROR(found->second.pass.Launch(stream_.get()));
  if (logits) RETURN_IF_ERROR(ReadLogits(rows));
  return found->second.state.Launch(stream_.get());
}

absl::Status CudaEngine::Evaluate(Batch* batch, std::span<const LogitsRow> logits) {
  RETURN_IF_ERROR(PrepareSequences(*batch));
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
    RETURN_IF_ERROR(EnqueuePass(fetch, of_all));
    if (of_all) RETURN_IF_ERROR(ReadLogits(batch->rows));
    EnqueueState(mtp_rows);
  }
  if (!of_all && !logits.empty()) {
    std::vector<LogitsRow> wanted;
    for (const LogitsRow& row : logits) {
      if (batch->segments[size_t(batch->segment_of[size_t(row.row)])].status.ok())
        wanted.push_back(row);
    }
    return WriteLogits(*batch, wanted);
  }
  if (logits.empty()) return stream_.Synchronize();
  // The batch's state may still be in the making: whoever uses it does so on this stream, or waits
  // for it.
  return TakeLogits(*batch, logits);
}

absl::Status CudaEngine::WriteLogits(const Batch& batch, std::span<const LogitsRow> logits) {
  RETURN_IF_ERROR(stream_.Synchronize());
  for (size_t begin = 0; begin < logits.size(); begin += kLogitRows) {
    const size_t count = std::min<size_t>(kLogitRows, logits.size() - begin);
    std::vector<int> rows;
    for (size_t i = 0; i < count; ++i) rows.push_back(logits[begin + i].row);
    upload_.SetLogitRows(rows);
    RETURN_IF_ERROR(upload_.Send(stream_.get()));
    forward_->Logits(upload_.logit_rows(), int(count), /*mtp=*/false);
    RETURN_IF_ERROR(ReadLogits(int(count)));
    RETURN_IF_ERROR(TakeLogits(batch, logits.subspan(begin, count)));
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
    std::map<int, std::set<int>> blocks;  // by segment
    for (const int2& missing : found) blocks[missing.x].insert(missing.y);
    bool failed = false;
    for (const auto& [segment, missing] : blocks) {
      Segment& of = batch->segments[size_t(segment)];
      std::vector<CsaPart> parts;
      for (const int block : missing) parts.push_back({block, args.number});
      of.status = of.sequence->FetchCsa(parts);
      if (!of.status.ok()) upload_.SetFailed(segment);
      failed |= !of.status.ok();
      RETURN_IF_ERROR(static_cast<CudaSequence*>(of.sequence)->Prepare());
    }
    if (failed) RETURN_IF_ERROR(upload_.Send(stream_.get()));
    if (total <= kMissingAtOnce) return absl::OkStatus();
  }
}

absl::Status CudaEngine::EvaluateDraft(Batch* batch, std::span<float> logits) {
  RETURN_IF_ERROR(PrepareSequences(*batch));
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

absl::Status CudaEngine::EvaluateLayer(int layer, Batch* batch, std::span<float> streams) {
  RETURN_IF_ERROR(PrepareSequences(*batch));
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

absl::StatusOr<std::unique_ptr<Engine>> LoadCudaEngine(const Config& config,
                                                       std::unique_ptr<const Checkpoint> checkpoint,
                                                       const EngineOptions& options) {
  return cuda::CudaEngine::Load(config, std::move(checkpoint), options);
}

absl::StatusOr<std::unique_ptr<Engine>> LoadCudaEngine(const std::filesystem::path& model_dir,
                                                       const EngineOptions& options) {
  // Before the files: without a device they need not be read.
  RETURN_IF_ERROR(cuda::CheckDevice());
  ASSIGN_OR_RETURN(const Config config, Config::Load(model_dir));
  ASSIGN_OR_RETURN(std::unique_ptr<const Checkpoint> checkpoint, Checkpoint::Open(model_dir));
  return LoadCudaEngine(config, std::move(checkpoint), options);
}

}  // namespace agentd::model
