// Entries that come after the sequence that needs them: on demand, ahead of it, damaged, too late.
#include "agentd/csa_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <set>

#include "base/status.h"

namespace agentd::daemon {
namespace {

using model::CsaPart;
using Clock = std::chrono::steady_clock;
using Part = std::pair<int64_t, int>;

constexpr int64_t kBlocks = 3;
constexpr auto kNoDeadline = Clock::time_point::max();

// Entries in memory. Whoever made it reads at once; other threads wait at the gate.
class FakeCsa final : public CsaStore {
 public:
  FakeCsa(int64_t blocks, int csa_layers) : blocks_(blocks), csa_layers_(csa_layers) {}
  int64_t blocks() const override { return blocks_; }
  int csa_layers() const override { return csa_layers_; }

  std::vector<absl::StatusOr<std::string>> Read(std::span<const CsaPart> parts) override {
    std::unique_lock lock(mutex_);
    const bool ahead = std::this_thread::get_id() != owner_;
    waiting_ += ahead ? 1 : 0;
    changed_.notify_all();
    if (ahead) changed_.wait(lock, [this] { return open_; });
    std::vector<absl::StatusOr<std::string>> results;
    for (const CsaPart& part : parts) {
      const Part key = {part.block, part.csa_layer};
      if (ahead) read_ahead_.push_back(key);
      const auto found = entries.find(key);
      if (found == entries.end())
        results.emplace_back(NotFound("part {} of block {} is missing", key.second, key.first));
      else
        results.push_back(found->second);
    }
    return results;
  }
  void Drop(int64_t block) override { dropped.insert(block); }
  void DropDamaged(const std::function<bool()>&) override {}

  void OpenGate() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void AwaitReader() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }
  std::vector<Part> read_ahead() {
    std::lock_guard lock(mutex_);
    return read_ahead_;
  }

  std::map<Part, absl::StatusOr<std::string>> entries;  // before it is used
  std::set<int64_t> dropped;

 private:
  const int64_t blocks_;
  const int csa_layers_;
  const std::thread::id owner_ = std::this_thread::get_id();
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;             // guarded by mutex_
  int waiting_ = 0;               // guarded by mutex_
  std::vector<Part> read_ahead_;  // guarded by mutex_
};

// A real sequence that was imported without its entries, and the same one whole.
class CsaStreamTest : public testing::Test {
 protected:
  CsaStreamTest() {
    absl::StatusOr<std::unique_ptr<model::Engine>> engine =
        model::Engine::Load("tests/golden/official-a", {.threads = 1});
    AGENTD_CHECK(engine.ok());
    engine_ = std::move(engine).value();
    std::mt19937 random(7);
    for (int64_t i = 0; i < kBlocks * model::kBlockTokens + 8; ++i)
      tokens_.push_back(static_cast<model::TokenId>(random() % 256));
    whole_ = engine_->NewSequence();
    const size_t past = static_cast<size_t>(kBlocks) * model::kBlockTokens;
    AGENTD_CHECK(Step(*whole_, std::span(tokens_).first(past), {}).ok());
    for (int64_t block = 0; block < kBlocks; ++block)
      payloads_.push_back(whole_->ExportBlock(block).value());
    anchor_ = whole_->ExportAnchor().value();
    store_ = std::make_shared<FakeCsa>(kBlocks, static_cast<int>(payloads_[0].csa.size()));
    for (int64_t block = 0; block < kBlocks; ++block) {
      for (int layer = 0; layer < store_->csa_layers(); ++layer)
        store_->entries.emplace(Part{block, layer}, payloads_[size_t(block)].csa[size_t(layer)]);
    }
  }

  ~CsaStreamTest() override { store_->OpenGate(); }

  absl::Status Step(model::Sequence& sequence, std::span<const model::TokenId> tokens,
                    std::span<float> logits) {
    model::StepRow row = {.sequence = &sequence, .tokens = tokens, .logits = logits, .status = {}};
    RETURN_IF_ERROR(engine_->Step({&row, 1}));
    return row.status;
  }
  // The next tokens' logits.
  absl::StatusOr<std::vector<float>> Next(model::Sequence& sequence) {
    std::vector<float> logits(8 * 256);
    RETURN_IF_ERROR(Step(sequence, std::span(tokens_).last(8), logits));
    return logits;
  }

  std::unique_ptr<model::Sequence> Import() {
    StoredState state;
    state.position = kBlocks * model::kBlockTokens;
    for (const model::BlockPayload& payload : payloads_)
      state.blocks.push_back({payload.index, {}});
    state.anchor = anchor_;
    std::unique_ptr<model::Sequence> sequence = engine_->NewSequence();
    size_t fitting = 0;
    const auto done = ImportSome(state, *sequence, fitting, kNoDeadline);
    EXPECT_TRUE(done.ok() && *done) << done.status();
    stream_ = reader_.Open(store_);
    sequence->SetCsaSource(
        [this](std::span<const CsaPart> parts) { return stream_->Fetch(parts); });
    return sequence;
  }

  // What the reader brings, until all is there or something is wrong.
  absl::Status ImportAll(model::Sequence& sequence) {
    store_->OpenGate();
    while (!sequence.all_resident()) RETURN_IF_ERROR(stream_->ImportReady(sequence, kNoDeadline));
    return absl::OkStatus();
  }

  std::unique_ptr<model::Engine> engine_;
  std::vector<model::TokenId> tokens_;
  std::unique_ptr<model::Sequence> whole_;
  std::vector<model::BlockPayload> payloads_;
  std::string anchor_;
  std::shared_ptr<FakeCsa> store_;
  std::atomic<int> wakes_ = 0;
  CsaReader reader_{[this] { ++wakes_; }};
  std::unique_ptr<CsaStream> stream_;
};

TEST_F(CsaStreamTest, DecodesBeforeAllIsThereAndTheRestFollows) {
  const auto sequence = Import();
  const auto early = Next(*sequence);
  ASSERT_TRUE(early.ok()) << early.status();
  EXPECT_EQ(*early, *Next(*whole_));
  EXPECT_GT(stream_->fetched_parts(), 0);
  EXPECT_GT(stream_->fetched_bytes(), 0);
  ASSERT_TRUE(ImportAll(*sequence).ok());
  const std::vector<Part> ahead = store_->read_ahead();
  EXPECT_EQ(std::set<Part>(ahead.begin(), ahead.end()).size(), ahead.size());
  for (int64_t block = 0; block < kBlocks; ++block)
    EXPECT_EQ(sequence->ExportBlock(block)->csa, payloads_[size_t(block)].csa);
}

TEST_F(CsaStreamTest, AfterAStepThatMissedMuchTheNextWaitsForTheRest) {
  const auto sequence = Import();
  const Clock::time_point now = Clock::now();
  EXPECT_FALSE(stream_->waits_for_rest(now));
  ASSERT_TRUE(Next(*sequence).ok());
  EXPECT_FALSE(stream_->waits_for_rest(now)) << "in the middle of a step";
  stream_->EndStep();
  EXPECT_TRUE(stream_->waits_for_rest(now));
  EXPECT_FALSE(stream_->waits_for_rest(now + std::chrono::hours(1))) << "nothing comes";
  // One that misses nothing.
  stream_->EndStep();
  EXPECT_FALSE(stream_->waits_for_rest(now));
}

TEST_F(CsaStreamTest, AllThereBeforeTheFirstStepAsksForNothing) {
  const auto sequence = Import();
  store_->OpenGate();
  while (wakes_ == 0) std::this_thread::yield();
  EXPECT_TRUE(stream_->ready());
  ASSERT_TRUE(ImportAll(*sequence).ok());
  const auto logits = Next(*sequence);
  ASSERT_TRUE(logits.ok()) << logits.status();
  EXPECT_EQ(*logits, *Next(*whole_));
  EXPECT_EQ(stream_->fetched_parts(), 0);
}

TEST_F(CsaStreamTest, DamageOnDemandIsNamed) {
  for (int layer = 0; layer < store_->csa_layers(); ++layer)
    store_->entries.insert_or_assign(Part{1, layer}, absl::DataLossError("damaged"));
  const auto sequence = Import();
  const absl::Status status = Next(*sequence).status();
  ASSERT_FALSE(status.ok());
  stream_->Explain(*sequence, status);
  ASSERT_TRUE(stream_->failure());
  EXPECT_EQ(stream_->failure()->block, 1);
  EXPECT_FALSE(stream_->failure()->unfit);
  EXPECT_TRUE(IsDamage(stream_->failure()->status));
  EXPECT_EQ(sequence->position(), kBlocks * model::kBlockTokens);
}

TEST_F(CsaStreamTest, EntriesThatTheModelRefusesOnDemandAreNamed) {
  for (int layer = 0; layer < store_->csa_layers(); ++layer) {
    store_->entries.insert_or_assign(Part{2, layer},
                                     std::string(payloads_[2].csa[0].size(), '\xff'));
  }
  const auto sequence = Import();
  const absl::Status status = Next(*sequence).status();
  ASSERT_FALSE(status.ok());
  stream_->Explain(*sequence, status);
  ASSERT_TRUE(stream_->failure());
  EXPECT_EQ(stream_->failure()->block, 2);
  EXPECT_TRUE(stream_->failure()->unfit);
}

TEST_F(CsaStreamTest, AnErrorThatIsNobodysFaultIsNotExplained) {
  const auto sequence = Import();
  ASSERT_TRUE(Next(*sequence).ok());
  stream_->Explain(*sequence, absl::InvalidArgumentError("a bad token"));
  stream_->Explain(*sequence, absl::InternalError("the device is gone"));
  EXPECT_FALSE(stream_->failure());
}

TEST_F(CsaStreamTest, AMissingPartIsFoundAhead) {
  store_->entries.erase({1, 1});
  const auto sequence = Import();
  EXPECT_FALSE(ImportAll(*sequence).ok());
  ASSERT_TRUE(stream_->failure());
  EXPECT_EQ(stream_->failure()->block, 1);
  EXPECT_FALSE(stream_->failure()->unfit);
}

TEST_F(CsaStreamTest, EntriesThatTheModelRefusesAreFoundAhead) {
  store_->entries.insert_or_assign(Part{2, 0}, "short");
  const auto sequence = Import();
  EXPECT_FALSE(ImportAll(*sequence).ok());
  ASSERT_TRUE(stream_->failure());
  EXPECT_EQ(stream_->failure()->block, 2);
  EXPECT_TRUE(stream_->failure()->unfit);
}

TEST_F(CsaStreamTest, AStreamMayGoAwayWhileItIsRead) {
  const auto sequence = Import();
  store_->AwaitReader();
  stream_.reset();
  store_->OpenGate();
}

TEST(CsaReaderTest, WhatAStepHadIsNotReadAgain) {
  constexpr int64_t kParts = 40;
  CsaReader reader([] {});
  const auto store = std::make_shared<FakeCsa>(kParts, /*csa_layers=*/1);
  for (int64_t block = 0; block < kParts; ++block)
    store->entries.emplace(Part{block, 0}, std::string(1000, 'x'));
  const auto stream = reader.Open(store);
  // The readers have begun at the front.
  const std::vector<CsaPart> had = {{20, 0}, {30, 0}, {39, 0}};
  ASSERT_TRUE(stream->Fetch(had).ok());
  store->OpenGate();
  while (store->read_ahead().size() < kParts - had.size()) std::this_thread::yield();
  for (const auto& [block, layer] : store->read_ahead())
    EXPECT_TRUE(block != 20 && block != 30 && block != 39) << "block " << block;
}

TEST(CsaReaderTest, AStepThatMissedLittleWaitsForNothing) {
  CsaReader reader([] {});
  const auto store = std::make_shared<FakeCsa>(/*blocks=*/100, /*csa_layers=*/1);
  for (int64_t block = 0; block < 100; ++block)
    store->entries.emplace(Part{block, 0}, std::string(1000, 'x'));
  store->OpenGate();  // nobody takes what is read
  const auto stream = reader.Open(store);
  ASSERT_TRUE(stream->Fetch(std::vector<CsaPart>{{50, 0}, {60, 0}, {70, 0}}).ok());
  const Clock::time_point now = Clock::now();
  stream->EndStep();
  EXPECT_FALSE(stream->waits_for_rest(now));
  std::vector<CsaPart> many;
  for (int64_t block = 80; block < 90; ++block) many.push_back({block, 0});
  ASSERT_TRUE(stream->Fetch(many).ok());
  stream->EndStep();
  EXPECT_TRUE(stream->waits_for_rest(now));
}

TEST(CsaReaderTest, MemoryIsBoundedAndSharedAmongStreams) {
  constexpr int kStreams = 4;
  constexpr int64_t kParts = 24, kPartBytes = 1 << 20, kMemory = 40 << 20;
  CsaReader reader([] {}, kMemory);
  std::vector<std::shared_ptr<FakeCsa>> stores;
  std::vector<std::unique_ptr<CsaStream>> streams;
  for (int i = 0; i < kStreams; ++i) {
    auto store = std::make_shared<FakeCsa>(/*blocks=*/kParts, /*csa_layers=*/1);
    for (int64_t block = 0; block < kParts; ++block)
      store->entries.emplace(Part{block, 0}, std::string(kPartBytes, 'x'));
    stores.push_back(store);
    streams.push_back(reader.Open(store));
  }
  for (const auto& store : stores) store->OpenGate();
  // Nobody takes anything: each gets something, together they stop at the bound.
  const auto total = [&] {
    size_t parts = 0;
    for (const auto& store : stores) parts += store->read_ahead().size();
    return static_cast<int64_t>(parts);
  };
  int64_t before = -1;
  while (before != total() || before == 0) {
    before = total();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_LE(before * kPartBytes, kMemory);
  for (const auto& store : stores) EXPECT_GT(store->read_ahead().size(), 0u);
  // Those that go away leave their shares to the others.
  streams.resize(2);
  while (total() == before) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace
}  // namespace agentd::daemon
