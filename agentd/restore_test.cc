// Sessions that come back while parts of what they had are still on the disk, or damaged there.
#include "agentd/restore.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <tuple>

#include "agentd/scheduler.h"
#include "agentd/testing_daemon.h"
#include "base/status.h"
#include "sessions/database.h"
#include "sessions/record.h"

namespace agentd::daemon {
namespace {

using sessions::internal::Column;
using Tokens = std::vector<std::pair<TokenId, bool>>;

constexpr int kSessions = 4;
// Babble: the model's own, so it shows that state came back to the bit.
constexpr int64_t kTurnTokens = 40;

std::unique_ptr<Daemon> StartOn(const std::filesystem::path& data, int64_t budget_bytes = 0) {
  DaemonOptions options = TestOptions(data, {});
  options.store_budget_bytes = budget_bytes;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(std::move(options));
  AGENTD_CHECK(daemon.ok());
  return std::move(daemon).value();
}

std::string Prompt(int session) {
  std::string text;
  for (int word = 0; word < 400; ++word) text += fmt::format("{} ", (word * 37 + session) % 91);
  return text;
}

std::vector<std::string> SessionIds(Daemon& daemon) {
  std::vector<std::string> ids;
  const absl::StatusOr<v1::ListSessionsResponse> list = daemon.List({});
  AGENTD_CHECK(list.ok());
  for (const v1::Session& session : list->sessions()) ids.insert(ids.begin(), session.id());
  return ids;
}

// A data directory with sessions of several blocks, each after its first turn.
std::filesystem::path CopyTo(const std::filesystem::path& to) {
  static const TemporaryDirectory* made = [] {
    auto* directory = new TemporaryDirectory;
    const auto daemon = StartOn(directory->path() / "data");
    for (int i = 0; i < kSessions; ++i) {
      v1::CreateSessionRequest request;
      request.mutable_config()->set_seed(100 + static_cast<uint64_t>(i));
      request.mutable_config()->set_max_turn_tokens(kTurnTokens);
      const std::string id = daemon->Create(request)->id();
      AGENTD_CHECK(RunTurn(*daemon, id, Prompt(i)).ok());
    }
    return directory;
  }();
  std::filesystem::copy(made->path() / "data", to, std::filesystem::copy_options::recursive);
  return to;
}

struct Outcome {
  std::vector<Tokens> tokens;   // by session
  int64_t prefilled_again = 0;  // all together
  int64_t restored = 0;
};

// Another turn of the first `sessions` sessions, at the same time.
Outcome OneMoreTurn(const std::filesystem::path& data, int sessions, int64_t budget_bytes = 0) {
  const auto daemon = StartOn(data, budget_bytes);
  Outcome outcome;
  std::vector<std::string> ids = SessionIds(*daemon);
  ids.resize(static_cast<size_t>(sessions));
  std::vector<uint64_t> before;
  for (const std::string& id : ids) {
    before.push_back(AllEvents(*daemon, id).back().seq());
    EXPECT_TRUE(daemon->Run(id, "More.").ok());
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    WaitIdle(*daemon, ids[i]);
    const std::vector<v1::Event> events = AllEvents(*daemon, ids[i]);
    EXPECT_TRUE(Gapless(events));
    EXPECT_NE(events.back().turn_finished().end(), v1::TURN_END_ERROR)
        << events.back().turn_finished().error();
    outcome.tokens.push_back(AllTokens(events));
    for (const v1::Event& event : events) {
      if (event.seq() <= before[i] || !event.has_resumed()) continue;
      outcome.prefilled_again += event.resumed().prefilled_again();
      outcome.restored += event.resumed().restored();
    }
  }
  return outcome;
}

const Outcome& Undamaged() {
  static const auto* outcome = [] {
    TemporaryDirectory directory;
    return new Outcome(OneMoreTurn(CopyTo(directory.path() / "data"), kSessions));
  }();
  return *outcome;
}

enum class Damage { kFlip, kRemove, kReplace };

// Does that to the parts `part` of the blocks that `chosen` takes by their number in their session.
int DamageParts(const std::filesystem::path& data, uint32_t part, Damage damage,
                const std::function<bool(int64_t)>& chosen) {
  namespace internal = sessions::internal;
  auto database = internal::Database::Open(data / "store", false, {});
  AGENTD_CHECK(database.ok());
  std::vector<internal::WriteEntry> writes;
  const absl::Status scanned = (*database)->Scan(
      Column::kKv, "", [&](std::string_view key, std::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(internal::KvPart decoded, internal::DecodeKvPart(key, value));
        if (decoded.part != part || !chosen(decoded.block)) return absl::OkStatus();
        std::optional<std::string> written;
        const std::string useless(decoded.data.size(), '\xff');
        if (damage == Damage::kFlip) {
          written = std::string(value);
          written->back() = static_cast<char>(written->back() ^ 1);
        } else if (damage == Damage::kReplace) {
          decoded.data = useless;
          written = internal::EncodeKvPart(key, decoded);
        }
        writes.push_back({Column::kKv, std::string(key), std::move(written)});
        return absl::OkStatus();
      });
  AGENTD_CHECK(scanned.ok());
  AGENTD_CHECK((*database)->Write(writes, /*sync=*/true).ok());
  return static_cast<int>(writes.size());
}

TEST(RestoreTest, SessionsGoOnWithWhatTheyHad) {
  EXPECT_EQ(Undamaged().prefilled_again, 0);
  EXPECT_GT(Undamaged().restored, kSessions * 3 * model::kBlockTokens);
  // Two in one process: the second goes on with a sequence that still streams, or is there.
  TemporaryDirectory directory;
  CopyTo(directory.path() / "data");
  const auto daemon = StartOn(directory.path() / "data");
  const std::string id = SessionIds(*daemon).front();
  ASSERT_TRUE(RunTurn(*daemon, id, "More.").ok());
  EXPECT_EQ(AllTokens(AllEvents(*daemon, id)), Undamaged().tokens.front());
  ASSERT_TRUE(RunTurn(*daemon, id, "Still more.").ok());
  EXPECT_EQ(AllEvents(*daemon, id).back().turn_finished().error(), "");
}

class RestoreDamageTest : public testing::TestWithParam<std::tuple<int, Damage, int64_t>> {};

// Whoever meets the damage first, the anchor's reader, a step or the reader ahead.
TEST_P(RestoreDamageTest, CostsTimeAndNothingElse) {
  const auto& [part, damage, block] = GetParam();
  TemporaryDirectory directory;
  const std::filesystem::path data = CopyTo(directory.path() / "data");
  ASSERT_GT(
      DamageParts(data, static_cast<uint32_t>(part), damage,
                  [&, block = block](int64_t number) { return block < 0 || number == block; }),
      0);
  const Outcome mended = OneMoreTurn(data, 1);
  EXPECT_EQ(mended.tokens[0], Undamaged().tokens[0]);
  EXPECT_GT(mended.prefilled_again, 0);
  EXPECT_EQ(OneMoreTurn(data, 1).prefilled_again, 0) << "what was computed again was not stored";
}

std::string NameOf(const testing::TestParamInfo<RestoreDamageTest::ParamType>& info) {
  const auto& [part, damage, block] = info.param;
  const char* kNames[] = {"Flipped", "Missing", "Refused"};
  return fmt::format("{}{}{}", part == 0 ? "Index" : "Csa", kNames[static_cast<int>(damage)],
                     block < 0 ? "Everywhere" : fmt::format("InBlock{}", block));
}

INSTANTIATE_TEST_SUITE_P(All, RestoreDamageTest,
                         testing::Values(std::tuple(0, Damage::kFlip, int64_t{2}),
                                         std::tuple(0, Damage::kRemove, int64_t{0}),
                                         std::tuple(0, Damage::kFlip, int64_t{-1}),
                                         std::tuple(0, Damage::kReplace, int64_t{1}),
                                         std::tuple(1, Damage::kFlip, int64_t{0}),
                                         std::tuple(1, Damage::kFlip, int64_t{3}),
                                         std::tuple(1, Damage::kFlip, int64_t{-1}),
                                         std::tuple(1, Damage::kRemove, int64_t{1}),
                                         std::tuple(1, Damage::kReplace, int64_t{2})),
                         NameOf);

TEST(RestoreTest, ManySessionsAtOnceWithDamageInThemAll) {
  TemporaryDirectory directory;
  const std::filesystem::path data = CopyTo(directory.path() / "data");
  ASSERT_GT(DamageParts(data, 1, Damage::kFlip, [](int64_t block) { return block % 3 == 2; }), 0);
  const Outcome mended = OneMoreTurn(data, kSessions);
  EXPECT_EQ(mended.tokens, Undamaged().tokens);
  EXPECT_GT(mended.prefilled_again, 0);
}

// Files that are never evicted fill the budget: all KV goes, and what a turn makes anew goes too.
TEST(RestoreTest, EvictedKvCostsTimeAndNothingElse) {
  TemporaryDirectory directory;
  const std::filesystem::path data = CopyTo(directory.path() / "data");
  const std::filesystem::path files = directory.path() / "files";
  std::filesystem::create_directory(files);
  {
    std::mt19937_64 random(17);  // does not compress
    std::string bytes;
    while (bytes.size() < size_t{sessions::kLeastBudget} + (4 << 20)) {
      const uint64_t word = random();
      bytes.append(reinterpret_cast<const char*>(&word), sizeof(word));
    }
    std::ofstream(files / "large", std::ios::binary) << bytes;
    const auto daemon = StartOn(data, sessions::kLeastBudget);
    v1::CreateSessionRequest request;
    request.set_import_directory(files);
    ASSERT_TRUE(daemon->Create(request).ok());
    ASSERT_TRUE(daemon->runtime().store->Reclaim().ok());
    EXPECT_GT(daemon->runtime().store->Stats()->evicted_blocks, kSessions);
  }
  const Outcome evicted = OneMoreTurn(data, kSessions, sessions::kLeastBudget);
  EXPECT_EQ(evicted.tokens, Undamaged().tokens);
  EXPECT_LT(evicted.restored, Undamaged().restored);
}

TEST(RestoreTest, LookingForDamageStopsWhenItIsTold) {
  TemporaryDirectory directory;
  const std::filesystem::path data = CopyTo(directory.path() / "data");
  ASSERT_GT(DamageParts(data, 1, Damage::kFlip, [](int64_t) { return true; }), 0);
  const auto daemon = StartOn(data);
  const Runtime& runtime = daemon->runtime();
  std::vector<TokenId> tokens;
  for (const auto& [token, sampled] : AllTokens(AllEvents(*daemon, SessionIds(*daemon).front())))
    tokens.push_back(token);
  const auto offered = [&] {
    return ReadRestorePoint(*runtime.store, runtime.owner, tokens,
                            static_cast<int64_t>(tokens.size()), runtime.csa_layers, {})
        .value();
  };
  const Restored before = offered();
  ASSERT_TRUE(before.state);
  EXPECT_GT(before.state->position, 3 * model::kBlockTokens);
  before.state->csa->DropDamaged([] { return true; });
  EXPECT_EQ(offered().point.position, before.point.position);
  before.state->csa->DropDamaged({});
  EXPECT_LT(offered().point.position, model::kBlockTokens);
}

TEST(RestoreTest, DeletedWhileItComesBack) {
  TemporaryDirectory directory;
  CopyTo(directory.path() / "data");
  for (int life = 0; life < 2; ++life) {
    const auto daemon = StartOn(directory.path() / "data");
    const std::vector<std::string> ids = SessionIds(*daemon);
    ASSERT_GE(ids.size(), 2u);
    for (const std::string& id : ids) {
      const bool begun = daemon->Run(id, "More.").ok();
      // In the second life the first one's turns go on by themselves.
      EXPECT_TRUE(begun || life > 0);
    }
    std::atomic<bool> cancelled = false;
    daemon->Cancel(ids[0], [&](const absl::Status&) { cancelled = true; });
    while (!cancelled) std::this_thread::yield();
    WaitIdle(*daemon, ids[0]);
    EXPECT_TRUE(daemon->Delete(ids[0]).ok());
    EXPECT_TRUE(absl::IsNotFound(daemon->Get(ids[0]).status()));
    // The others are stopped, perhaps before all of them is there.
  }
  const auto daemon = StartOn(directory.path() / "data");
  for (const std::string& id : SessionIds(*daemon)) {
    WaitIdle(*daemon, id);
    EXPECT_EQ(AllEvents(*daemon, id).back().turn_finished().error(), "");
  }
}

// Entries in memory. Steps get them at once; the reader ahead waits until it may go on.
class GatedCsa final : public CsaStore {
 public:
  GatedCsa(std::vector<model::BlockPayload> blocks, std::thread::id stepping)
      : blocks_(std::move(blocks)), stepping_(stepping) {}
  int64_t blocks() const override { return static_cast<int64_t>(blocks_.size()); }
  int csa_layers() const override { return static_cast<int>(blocks_[0].csa.size()); }
  std::vector<absl::StatusOr<std::string>> Read(std::span<const model::CsaPart> parts) override {
    const bool ahead = std::this_thread::get_id() != stepping_;
    while (ahead && !open) std::this_thread::yield();
    std::vector<absl::StatusOr<std::string>> results;
    for (const model::CsaPart& part : parts) {
      if (ahead && damaged)
        results.emplace_back(DataLoss("block {} is damaged", part.block));
      else
        results.emplace_back(
            blocks_[static_cast<size_t>(part.block)].csa[static_cast<size_t>(part.csa_layer)]);
    }
    if (ahead) answered = true;
    return results;
  }
  void Drop(int64_t) override {}
  void DropDamaged(const std::function<bool()>&) override {}

  std::atomic<bool> open = false;
  std::atomic<bool> answered = false;  // the reader ahead has got something
  std::atomic<bool> damaged = false;

 private:
  const std::vector<model::BlockPayload> blocks_;
  const std::thread::id stepping_;
};

class SchedulerRestoreTest : public testing::Test {
 protected:
  static constexpr int64_t kPrompt = 3 * model::kBlockTokens + 20;
  static constexpr int64_t kNew = 40;

  SchedulerRestoreTest() {
    SchedulerOptions options;
    options.token_override = [this](const std::string&, std::span<const TokenId>) {
      stepping_ = std::this_thread::get_id();
      if (on_token_) on_token_();
      return std::optional<TokenId>();
    };
    auto engine = model::Engine::Load(NarrowModel(), {.threads = 1});
    AGENTD_CHECK(engine.ok());
    scheduler_ = std::make_unique<Scheduler>(std::move(engine).value(), options);
    for (int64_t i = 0; i < kPrompt; ++i)
      prompt_.push_back(static_cast<TokenId>((i * 31 + i / 7) % 256));
    // From nothing, to its end: what is stored on the way, and the tokens.
    const std::shared_ptr<Job> job = scheduler_->Submit(Spec("whole", prompt_));
    Follow(*job, [&](JobUpdate& update) {
      if (update.kind != JobUpdate::Kind::kKv || update.kv.position != kPrompt - 1) return;
      state_ = update.kv.state->Take().value();
    });
    expected_ = tokens_;
    AGENTD_CHECK(static_cast<int64_t>(expected_.size()) == kNew && state_.blocks.size() == 3);
    csa_ = std::make_shared<GatedCsa>(state_.blocks, stepping_);
  }
  ~SchedulerRestoreTest() override { csa_->open = true; }

  // A step picks one entry in each layer, so that it takes several to need all parts.
  std::filesystem::path NarrowModel() {
    const std::filesystem::path from = "tests/golden/official-a", to = directory_.path() / "model";
    std::filesystem::create_directory(to);
    std::filesystem::copy(from / "model.safetensors", to);
    std::ifstream file(from / "config.json");
    nlohmann::json config = nlohmann::json::parse(file);
    config["index_topk"] = 1;
    std::ofstream(to / "config.json") << config.dump();
    return to;
  }

  JobSpec Spec(const std::string& session, std::vector<TokenId> context) {
    JobSpec spec;
    spec.session_id = session;
    spec.context = std::move(context);
    spec.max_new_tokens = kNew;
    spec.context_limit_tokens = 1024;
    spec.stop_token = -1;
    spec.seed = 5;
    spec.resident = ResidentPtr(nullptr, ResidentDeleter{scheduler_.get()});
    return spec;
  }
  JobSpec StoredSpec() {
    JobSpec spec = Spec("stored", prompt_);
    spec.stored.emplace();
    spec.stored->position = kPrompt - 1;
    for (const model::BlockPayload& block : state_.blocks)
      spec.stored->blocks.push_back({block.index, {}});
    spec.stored->anchor = state_.anchor;
    spec.stored->csa = csa_;
    return spec;
  }
  // Reads a job's updates to its end; the tokens go to tokens_, the end to end_.
  void Follow(
      Job& job, const std::function<void(JobUpdate&)>& look = [](JobUpdate&) {}) {
    tokens_.clear();
    for (bool ended = false; !ended;) {
      std::vector<JobUpdate> updates;
      job.WaitUpdates(std::chrono::steady_clock::now() + std::chrono::seconds(1), updates);
      for (JobUpdate& update : updates) {
        if (update.kind == JobUpdate::Kind::kToken) tokens_.push_back(update.token);
        look(update);
        ended = update.kind == JobUpdate::Kind::kEnd;
        if (ended) end_ = std::move(update);
      }
    }
  }

  TemporaryDirectory directory_;
  std::thread::id stepping_;
  std::function<void()> on_token_;  // on the scheduler's thread
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<TokenId> prompt_, expected_, tokens_;
  model::Export::State state_;
  std::shared_ptr<GatedCsa> csa_;
  JobUpdate end_;
};

TEST_F(SchedulerRestoreTest, DamageThatIsFoundWhileItDecodesEndsTheJob) {
  csa_->damaged = true;
  on_token_ = [this] {
    csa_->open = true;
    while (!csa_->answered) std::this_thread::yield();
  };
  const std::shared_ptr<Job> job = scheduler_->Submit(StoredSpec());
  Follow(*job);
  ASSERT_EQ(end_.end, JobEnd::kImportFailed) << end_.status;
  ASSERT_TRUE(end_.lost);
  // One of those that were read together.
  EXPECT_GE(end_.lost->block, 0);
  EXPECT_LT(end_.lost->block, csa_->blocks());
  EXPECT_FALSE(end_.lost->unfit);
  EXPECT_EQ(end_.lost->store, csa_);
  EXPECT_EQ(end_.anchored_at, kPrompt - 1);
  ASSERT_GE(tokens_.size(), 1u);
  EXPECT_LT(tokens_.size(), expected_.size());
  EXPECT_TRUE(std::equal(tokens_.begin(), tokens_.end(), expected_.begin()));
  // Nothing of it is gone on with.
  EXPECT_EQ(scheduler_->Take("stored", expected_), nullptr);
}

TEST_F(SchedulerRestoreTest, AnIdleSequenceThatIsNotWholeGoesOn) {
  const std::shared_ptr<Job> first = scheduler_->Submit(StoredSpec());
  Follow(*first);
  ASSERT_EQ(end_.end, JobEnd::kMaxTokens) << end_.status;
  EXPECT_EQ(tokens_, expected_);
  std::vector<TokenId> context = prompt_;
  context.insert(context.end(), expected_.begin(), expected_.end());
  JobSpec spec = Spec("stored", context);
  spec.resident = scheduler_->Take("stored", context);
  ASSERT_NE(spec.resident, nullptr);
  const std::shared_ptr<Job> second = scheduler_->Submit(std::move(spec));
  csa_->open = true;
  Follow(*second);
  ASSERT_EQ(end_.end, JobEnd::kMaxTokens) << end_.status;
  const std::vector<TokenId> more = tokens_;
  JobSpec whole = Spec("whole", context);
  whole.resident = scheduler_->Take("whole", context);
  const std::shared_ptr<Job> control = scheduler_->Submit(std::move(whole));
  Follow(*control);
  EXPECT_EQ(more, tokens_);
}

TEST_F(SchedulerRestoreTest, AnIdleSequenceWithDamageIsForgotten) {
  const std::shared_ptr<Job> job = scheduler_->Submit(StoredSpec());
  Follow(*job);
  ASSERT_EQ(end_.end, JobEnd::kMaxTokens) << end_.status;
  csa_->damaged = true;
  csa_->open = true;
  // Nobody may take it meanwhile, so it is looked at from the outside: the scheduler lets go of it.
  while (csa_.use_count() > 1) std::this_thread::yield();
  EXPECT_EQ(scheduler_->Take("stored", prompt_), nullptr);
}

TEST_F(SchedulerRestoreTest, DroppedWhileItIsRead) {
  const std::shared_ptr<Job> job = scheduler_->Submit(StoredSpec());
  Follow(*job);
  scheduler_->Drop("stored");
  csa_->open = true;
  while (csa_.use_count() > 1) std::this_thread::yield();
  EXPECT_EQ(scheduler_->Take("stored", prompt_), nullptr);
}

TEST_F(SchedulerRestoreTest, CancelledBeforeAllIsImported) {
  const std::shared_ptr<Job> job = scheduler_->Submit(StoredSpec());
  job->Cancel();
  Follow(*job);
  EXPECT_EQ(end_.end, JobEnd::kCancelled);
}

TEST_F(SchedulerRestoreTest, TheBlockThatDoesNotFitIsKnown) {
  for (size_t block = 0; block < state_.blocks.size(); ++block) {
    JobSpec spec = StoredSpec();
    std::string& index = spec.stored->blocks[block].index;
    index.assign(index.size(), '\xff');
    Follow(*scheduler_->Submit(std::move(spec)));
    EXPECT_EQ(end_.end, JobEnd::kImportFailed) << end_.status;
    EXPECT_EQ(end_.fitting_blocks, block);
  }
  JobSpec spec = StoredSpec();
  spec.stored->anchor.pop_back();
  Follow(*scheduler_->Submit(std::move(spec)));
  EXPECT_EQ(end_.end, JobEnd::kImportFailed) << end_.status;
  EXPECT_EQ(end_.fitting_blocks, state_.blocks.size());
}

// A device on which nothing can be imported.
class FullSequence final : public model::Sequence {
 public:
  explicit FullSequence(absl::Status error) : error_(std::move(error)) {}
  int64_t position() const override { return 0; }
  int64_t memory_bytes() const override { return 0; }
  absl::Status Truncate(int64_t) override { return error_; }
  absl::StatusOr<std::unique_ptr<model::Export>> StartExport(int64_t, int64_t,
                                                             bool) const override {
    return error_;
  }
  absl::Status ImportBlocks(std::span<const model::BlockPayload>, size_t* fitting) override {
    *fitting = 0;
    return error_;
  }
  absl::Status ImportAnchor(std::string_view) override { return error_; }
  void SetCsaSource(model::CsaSource) override {}
  absl::Status ImportCsa(std::span<const model::CsaPart>, std::span<const std::string>) override {
    return error_;
  }
  bool all_resident() const override { return true; }

 private:
  const absl::Status error_;
};

class FullEngine final : public model::Engine {
 public:
  explicit FullEngine(absl::Status error) : error_(std::move(error)) { config_.vocab_size = 256; }
  const model::Config& config() const override { return config_; }
  const Sha256Digest& fingerprint() const override { return fingerprint_; }
  const std::string& numerics_id() const override { return numerics_id_; }
  std::unique_ptr<model::Sequence> NewSequence() override {
    return std::make_unique<FullSequence>(error_);
  }
  absl::Status Step(std::span<model::StepRow>) override { return error_; }
  absl::Status Draft(const model::Sequence&, TokenId, std::span<float>) override { return error_; }
  absl::Status RunLayer(int, std::span<const TokenId>, std::span<const float>,
                        std::span<float>) override {
    return error_;
  }

 private:
  const absl::Status error_;
  model::Config config_;
  Sha256Digest fingerprint_ = {};
  std::string numerics_id_ = "full";
};

// The turn drops what an import refused (kImportFailed), but not what there was no memory for.
TEST_F(SchedulerRestoreTest, StoredStateIsNotBlamedForMemory) {
  for (const bool blocks : {true, false}) {
    for (const absl::Status& error :
         {absl::ResourceExhaustedError("full"), absl::InternalError("the device is gone"),
          absl::DataLossError("no numbers")}) {
      scheduler_ =
          std::make_unique<Scheduler>(std::make_unique<FullEngine>(error), SchedulerOptions());
      JobSpec spec = StoredSpec();
      if (!blocks) spec.stored->position %= model::kBlockTokens;
      if (!blocks) spec.stored->blocks.clear();
      Follow(*scheduler_->Submit(std::move(spec)));
      EXPECT_EQ(end_.end, absl::IsDataLoss(error) ? JobEnd::kImportFailed : JobEnd::kError);
      EXPECT_EQ(end_.status, error);
      EXPECT_FALSE(end_.lost);
    }
  }
}

}  // namespace
}  // namespace agentd::daemon
