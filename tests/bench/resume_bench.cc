// How fast a long session comes back from the disk, through the daemon's own restore code, beside
// what the disk alone does.
//
// A session of a model's state is saved through the store, the store is closed and its files are
// taken out of the page cache. Then it is resumed while the sequence that was never closed waits
// for the comparison: both must give the same logits, bit for bit.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agentd/csa_stream.h"
#include "agentd/event_hub.h"
#include "agentd/freed_memory.h"
#include "agentd/restore.h"
#include "agentd/session_log.h"
#include "base/status.h"
#include "base/temporary_directory.h"
#include "sessions/store.h"
#include "tests/bench/cold_files.h"
#include "tests/bench/figures.h"
#include "tests/bench/resume_engine.h"

namespace agentd::bench {
namespace {

using model::kBlockTokens;
using model::TokenId;

// Evaluated for real, then repeated as the past of longer contexts.
constexpr int64_t kSeedTokens = 4096;
// Where an anchor has its position (model/anchor.h).
constexpr size_t kAnchorPosition = 32;
// Of one commit: the daemon's, between anchors of a prefill.
constexpr int64_t kCommitBlocks = daemon::kPrefillAnchorTokens / kBlockTokens;
constexpr int64_t kEventTokens = 1 << 16;
constexpr int kNewTokens = 8;  // whose logits are compared
constexpr char kOwner[] = "bench";

struct Options {
  EngineChoice engine;
  int64_t tokens = 1'000'000;
  std::string directory = std::filesystem::temp_directory_path().string();
};

// Hands the state to the sequence as it comes, like the scheduler between steps. The seconds in
// which nothing had come.
absl::StatusOr<double> ImportAll(daemon::StoredState& state, model::Sequence& sequence) {
  constexpr std::chrono::microseconds kWait(200);
  double waited = 0;
  size_t blocks = 0;
  for (;;) {
    ASSIGN_OR_RETURN(
        const bool done,
        daemon::ImportSome(state, sequence, blocks, std::chrono::steady_clock::time_point::max()));
    if (done) return waited;
    const Clock wait;
    std::this_thread::sleep_for(kWait);
    waited += wait.seconds();
  }
}

class ResumeBench {
 public:
  ResumeBench(const Options& options, std::unique_ptr<model::Engine> engine,
              std::filesystem::path store_path)
      : options_(options), store_path_(std::move(store_path)), engine_(std::move(engine)) {
    for (model::LayerKind kind : engine_->config().layer_kinds)
      csa_layers_ += kind == model::LayerKind::kCsa ? 1 : 0;
    blocks_ = options_.tokens / kBlockTokens;
    tokens_.resize(static_cast<size_t>(blocks_ * kBlockTokens + kNewTokens));
    for (TokenId& token : tokens_)
      token = static_cast<TokenId>(random_() % unsigned(engine_->config().vocab_size));
  }

  // The sequence that is never closed, the saved session, and the next logits of the former.
  absl::Status Save();
  // False: other logits.
  absl::StatusOr<bool> Resume();

 private:
  absl::Status Fill();
  absl::Status OpenStore();
  absl::Status CommitAll(sessions::TimelineId timeline);
  absl::Status MeasureRaw();
  absl::StatusOr<std::unique_ptr<model::Sequence>> Import();
  absl::Status ImportReady(model::Sequence& sequence);
  absl::Status AwaitStep(model::Sequence& sequence);
  absl::Status StreamRest(model::Sequence& sequence);
  absl::StatusOr<std::vector<float>> Next(model::Sequence& sequence, int first, int count);
  std::span<const TokenId> past() const { return std::span(tokens_).first(size_t(position())); }
  int64_t position() const { return blocks_ * kBlockTokens; }

  const Options& options_;
  const std::filesystem::path store_path_;
  const std::unique_ptr<model::Engine> engine_;
  int csa_layers_ = 0;
  int64_t blocks_ = 0;
  std::mt19937 random_{1};
  std::vector<TokenId> tokens_;
  std::unique_ptr<model::Sequence> original_;
  std::unique_ptr<sessions::Store> store_;
  int64_t saved_bytes_ = 0;
  std::vector<float> expected_;
  RawRead raw_;
  daemon::CsaReader reader_{[] {}};
  std::unique_ptr<daemon::CsaStream> stream_;
  double fetch_seconds_ = 0;  // waiting for it
};

absl::StatusOr<std::vector<float>> ResumeBench::Next(model::Sequence& sequence, int first,
                                                     int count) {
  const size_t vocab = static_cast<size_t>(engine_->config().vocab_size);
  std::vector<float> logits(static_cast<size_t>(count) * vocab);
  for (int i = 0; i < count; ++i) {  // one by one, as a decoding session does
    model::StepRow row = {
        .sequence = &sequence,
        .tokens = std::span(tokens_).subspan(static_cast<size_t>(position() + first + i), 1),
        .logits = std::span(logits).subspan(static_cast<size_t>(i) * vocab, vocab),
        .status = {}};
    RETURN_IF_ERROR(engine_->Step({&row, 1}));
    RETURN_IF_ERROR(row.status);
    if (stream_) stream_->EndStep();
  }
  return logits;
}

// Evaluates the beginning and repeats its blocks up to the position.
absl::Status ResumeBench::Fill() {
  const int64_t seed_blocks = std::min(blocks_, kSeedTokens / kBlockTokens);
  auto seed = engine_->NewSequence();
  model::StepRow row = {.sequence = seed.get(),
                        .tokens = past().first(static_cast<size_t>(seed_blocks * kBlockTokens)),
                        .logits = {},
                        .status = {}};
  RETURN_IF_ERROR(engine_->Step({&row, 1}));
  RETURN_IF_ERROR(row.status);
  if (seed_blocks == blocks_) {
    original_ = std::move(seed);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(auto started, seed->StartExport(0, seed_blocks, /*anchor=*/true));
  ASSIGN_OR_RETURN(model::Export::State state, started->Take());
  seed.reset();
  const int64_t end = position();
  std::memcpy(state.anchor.data() + kAnchorPosition, &end, sizeof(end));
  original_ = engine_->NewSequence();
  for (int64_t block = 0; block < blocks_; ++block)
    RETURN_IF_ERROR(original_->ImportBlock(state.blocks[size_t(block % seed_blocks)]));
  return original_->ImportAnchor(state.anchor);
}

absl::Status ResumeBench::OpenStore() {
  sessions::StoreOptions options;
  options.kv_identity = "resume_bench " + engine_->numerics_id();
  ASSIGN_OR_RETURN(store_, sessions::Store::Open(store_path_, options));
  return absl::OkStatus();
}

absl::Status ResumeBench::CommitAll(sessions::TimelineId timeline) {
  daemon::SessionLog log(store_.get(), std::make_shared<daemon::EventHub>(timeline, 0), timeline);
  for (int64_t at = 0; at < position(); at += kEventTokens) {
    const auto run = past().subspan(size_t(at), size_t(std::min(kEventTokens, position() - at)));
    RETURN_IF_ERROR(
        log.Append({sessions::NewEvent::Tokens({run.begin(), run.end()}, /*sampled=*/false)}));
  }
  for (int64_t first = 0; first < blocks_; first += kCommitBlocks) {
    daemon::KvExport kv;
    kv.first_block = first;
    const int64_t count = std::min(kCommitBlocks, blocks_ - first);
    // The anchor of the end at every commit: as many bytes as the daemon writes.
    ASSIGN_OR_RETURN(kv.state, original_->StartExport(first, count, /*anchor=*/true));
    kv.position = (first + count) * kBlockTokens;
    RETURN_IF_ERROR(log.AppendKv(std::move(kv)));
  }
  return log.Flush();
}

absl::Status ResumeBench::Save() {
  RETURN_IF_ERROR(Fill());
  RETURN_IF_ERROR(OpenStore());
  ASSIGN_OR_RETURN(const sessions::SessionInfo session, store_->Create({kOwner, 1, ""}));
  const Clock clock;
  RETURN_IF_ERROR(CommitAll(session.timeline));
  const double seconds = clock.seconds();
  store_.reset();
  for (const auto& entry : std::filesystem::recursive_directory_iterator(store_path_))
    if (entry.is_regular_file()) saved_bytes_ += static_cast<int64_t>(entry.file_size());
  fmt::print("[figure] resume of {} tokens, {} blocks, {} CSA layers, {}\n", position(), blocks_,
             csa_layers_, engine_->numerics_id());
  Row("save, through the store, fsynced", Rate(saved_bytes_, seconds));
  ASSIGN_OR_RETURN(expected_, Next(*original_, 0, kNewTokens));
  return absl::OkStatus();
}

absl::Status ResumeBench::MeasureRaw() {
  RETURN_IF_ERROR(DropFromPageCache(store_path_));
  ASSIGN_OR_RETURN(raw_, ReadRaw(store_path_, /*to_device=*/false));
  Row(fmt::format("raw read of the blob files, {}, 4 threads", raw_.direct ? "O_DIRECT" : "cold"),
      Rate(raw_.bytes, raw_.seconds));
  if (options_.engine.options.backend == "cuda") {
    RETURN_IF_ERROR(DropFromPageCache(store_path_));
    ASSIGN_OR_RETURN(raw_, ReadRaw(store_path_, /*to_device=*/true));
    Row("the same, and to the device (pinned)", Rate(raw_.bytes, raw_.seconds));
  }
  return DropFromPageCache(store_path_);
}

absl::StatusOr<std::unique_ptr<model::Sequence>> ResumeBench::Import() {
  const Clock open;
  RETURN_IF_ERROR(OpenStore());
  ASSIGN_OR_RETURN(const sessions::RestorePoint point,
                   store_->FindRestorePoint(kOwner, past(), position()));
  Row("open the store, find the restore point", fmt::format("{:.3f} s", open.seconds()));
  if (point.position != position()) {
    return Internal("the store offers {} of {} tokens", point.position, position());
  }
  const Clock read;
  ASSIGN_OR_RETURN(daemon::Restored restored,
                   daemon::ReadRestorePoint(*store_, kOwner, past(), position(), csa_layers_, {}));
  if (!restored.state || restored.state->position != position())
    return Internal("the state at {} cannot be read", position());
  auto sequence = engine_->NewSequence();
  const auto anchor_bytes = static_cast<int64_t>(restored.state->anchor.size());
  ASSIGN_OR_RETURN(const double waited, ImportAll(*restored.state, *sequence));
  Row("anchor and index parts (13% of Flash) imported",
      Rate(anchor_bytes + restored.state->index->bytes(), read.seconds()));
  Row("of that waiting for the disk", fmt::format("{:.3f} s", waited));
  stream_ = reader_.Open(restored.state->csa);
  sequence->SetCsaSource([this](std::span<const model::CsaPart> parts) {
    const Clock fetch;
    auto entries = stream_->Fetch(parts);
    fetch_seconds_ += fetch.seconds();
    return entries;
  });
  return sequence;
}

// What was read ahead, as the scheduler takes it between steps; a short wait if there is nothing.
absl::Status ResumeBench::ImportReady(model::Sequence& sequence) {
  if (!stream_->ready()) std::this_thread::sleep_for(std::chrono::microseconds(200));
  return stream_->ImportReady(sequence, std::chrono::steady_clock::now() + daemon::kImportTime);
}

// Until the scheduler would make the next step.
absl::Status ResumeBench::AwaitStep(model::Sequence& sequence) {
  do {
    RETURN_IF_ERROR(ImportReady(sequence));
  } while (!sequence.all_resident() && stream_->waits_for_rest(std::chrono::steady_clock::now()));
  return absl::OkStatus();
}

absl::Status ResumeBench::StreamRest(model::Sequence& sequence) {
  while (!sequence.all_resident()) RETURN_IF_ERROR(ImportReady(sequence));
  return absl::OkStatus();
}

absl::StatusOr<bool> ResumeBench::Resume() {
  RETURN_IF_ERROR(MeasureRaw());
  const Clock all;
  const double processor = ProcessorSeconds();
  ASSIGN_OR_RETURN(auto sequence, Import());
  const Clock step;
  ASSIGN_OR_RETURN(std::vector<float> logits, Next(*sequence, 0, 1));
  Row("first new token after that",
      fmt::format("{:.3f} s; {} parts, {:.3f} GB on demand in {:.3f} s", step.seconds(),
                  stream_->fetched_parts(), double(stream_->fetched_bytes()) / 1e9,
                  fetch_seconds_));
  Row("first new token, from the closed store", fmt::format("{:.3f} s", all.seconds()));
  for (int i = 1; i < kNewTokens; ++i) {
    RETURN_IF_ERROR(AwaitStep(*sequence));
    ASSIGN_OR_RETURN(const std::vector<float> more, Next(*sequence, i, 1));
    logits.insert(logits.end(), more.begin(), more.end());
  }
  Row(fmt::format("{} new tokens, from the closed store", kNewTokens),
      fmt::format("{:.3f} s; {:.3f} GB on demand", all.seconds(),
                  double(stream_->fetched_bytes()) / 1e9));
  RETURN_IF_ERROR(StreamRest(*sequence));
  const double seconds = all.seconds();
  Row("all resident, from the closed store",
      fmt::format("{}; {:.1f} s of processor time", Rate(raw_.bytes, seconds),
                  ProcessorSeconds() - processor));
  Row("that beside the raw read", fmt::format("{:.2f} x its time", seconds / raw_.seconds));
  const bool equal =
      logits.size() == expected_.size() &&
      std::memcmp(logits.data(), expected_.data(), logits.size() * sizeof(float)) == 0;
  Row(fmt::format("logits of {} tokens: {}", kNewTokens, equal ? "equal" : "DIFFERENT"), "");
  return equal;
}

absl::Status Run(const Options& options) {
  if (options.tokens < 2 * kBlockTokens)
    return InvalidArgument("--tokens: at least {}", 2 * kBlockTokens);
  EngineChoice choice = options.engine;
  // The one that is kept, the one that comes back, and the one whose blocks are repeated.
  choice.sequences = {options.tokens + kNewTokens, options.tokens + kNewTokens, kSeedTokens};
  ASSIGN_OR_RETURN(auto engine, LoadEngine(choice));
  const int64_t limit = engine->config().max_position_embeddings;
  if (options.tokens + kNewTokens > limit)
    return InvalidArgument("--tokens: the model takes {} with {} new ones", limit, kNewTokens);
  ASSIGN_OR_RETURN(const TemporaryDirectory made, TemporaryDirectory::In(options.directory));
  ResumeBench bench(options, std::move(engine), made.path() / "store");
  RETURN_IF_ERROR(bench.Save());
  ASSIGN_OR_RETURN(const bool equal, bench.Resume());
  return equal ? absl::OkStatus() : Internal("the resumed session gives other logits");
}

}  // namespace
}  // namespace agentd::bench

int main(int argc, char** argv) {
  agentd::daemon::KeepFreedMemory();  // as agentd
  agentd::bench::Options options;
  CLI::App app("Saves a session through the store and resumes it, beside what the disk does.");
  auto* model = app.add_option("--model", options.engine.model, "Directory of a checkpoint");
  auto* shape = app.add_option("--shape", options.engine.shape,
                               "Made-up weights of a published shape (flash, pro); CUDA only");
  model->excludes(shape);
  app.add_option("--layers", options.engine.layers, "Only so many layers of the shape");
  app.add_option("--backend", options.engine.options.backend, "cpu or cuda");
  app.add_option("--threads", options.engine.options.threads, "0: one per core");
  app.add_option("--tokens", options.tokens, "Length of the session")->capture_default_str();
  app.add_option("--dir", options.directory, "Where the store is made, on the disk to measure")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (options.engine.model.empty() == options.engine.shape.empty()) {
    fmt::print(stderr, "resume_bench: give one of --model and --shape\n");
    return 1;
  }
  return agentd::bench::ExitCode("resume_bench", agentd::bench::Run(options));
}
