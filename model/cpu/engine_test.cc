// The determinism contract: one sequence of tokens has one sequence of logits, bit for bit,
// whatever the way there.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "model/cpu/kernels.h"
#include "model/cpu/test_util.h"

namespace agentd::model {
namespace {

constexpr char kHf[] = "tests/golden/hf-a";
constexpr char kOfficial[] = "tests/golden/official-a";

class Determinism : public testing::TestWithParam<const char*> {
 protected:
  Determinism() : random_(Seed()) {}

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  std::vector<TokenId> RandomTokens(const Engine& engine, int count) {
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    for (TokenId& token : tokens) token = Draw(0, engine.config().vocab_size - 1);
    return tokens;
  }

  std::vector<float> StepInChunks(Engine& engine, Sequence& sequence,
                                  std::span<const TokenId> tokens, int largest) {
    return model::StepInChunks(engine, sequence, tokens, largest, random_);
  }

  std::mt19937_64 random_;
};

INSTANTIATE_TEST_SUITE_P(Fixtures, Determinism, testing::Values(kHf, kOfficial),
                         [](const auto& info) {
                           return std::string(info.index == 0 ? "Float" : "LowPrecision");
                         });

TEST_P(Determinism, ChunksThreadsAndBatchRows) {
  auto engine = LoadEngine(GetParam());
  const auto tokens = RandomTokens(*engine, 420);
  auto sequence = engine->NewSequence();
  const auto want = StepAll(*engine, *sequence, tokens);
  const auto anchor = sequence->ExportAnchor();
  ASSERT_TRUE(anchor.ok());
  for (const auto& [threads, batch_rows, largest] :
       {std::tuple(1, 512, 9), std::tuple(Draw(2, 9), Draw(8, 200), 150),
        std::tuple(Draw(2, 9), Draw(1, 12), 60), std::tuple(Draw(2, 9), 512, 420)}) {
    auto other = LoadEngine(GetParam(), {.threads = threads, .max_batch_rows = batch_rows});
    ASSERT_EQ(other->fingerprint(), engine->fingerprint());
    auto fresh = other->NewSequence();
    const auto got = StepInChunks(*other, *fresh, tokens, largest);
    EXPECT_EQ(FirstDifference(got, want, 256), -1)
        << threads << " threads, " << batch_rows << " rows, chunks to " << largest;
    const auto same = fresh->ExportAnchor();
    ASSERT_TRUE(same.ok());
    EXPECT_TRUE(*same == *anchor) << "the state differs";
  }
}

TEST_P(Determinism, OneTokenAtATime) {
  auto engine = LoadEngine(GetParam());
  const auto tokens = RandomTokens(*engine, 270);
  auto a = engine->NewSequence();
  auto b = engine->NewSequence();
  EXPECT_EQ(
      FirstDifference(StepInChunks(*engine, *a, tokens, 1), StepAll(*engine, *b, tokens), 256), -1);
}

TEST_P(Determinism, BatchMixes) {
  auto engine = LoadEngine(GetParam(), {.max_batch_rows = 100});
  constexpr int kSequences = 5;
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<float>> want;
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int i = 0; i < kSequences; ++i) {
    tokens.push_back(RandomTokens(*engine, Draw(100, 330)));
    sequences.push_back(engine->NewSequence());
    want.push_back(StepAll(*engine, *sequences.back(), tokens.back()));
    sequences.back() = engine->NewSequence();
  }
  std::vector<std::vector<float>> got(kSequences);
  while (true) {
    std::vector<StepRow> rows;
    std::vector<int> which;
    std::vector<std::vector<float>> logits(kSequences);
    for (int i = 0; i < kSequences; ++i) {
      const size_t at = size_t(sequences[size_t(i)]->position());
      const size_t left = tokens[size_t(i)].size() - at;
      if (left == 0 || Draw(0, 3) == 0) continue;
      const size_t count = std::min(left, size_t(Draw(0, 1) == 0 ? 1 : Draw(1, 90)));
      logits[size_t(i)].resize(count * 256);
      rows.push_back({sequences[size_t(i)].get(),
                      std::span(tokens[size_t(i)]).subspan(at, count),
                      logits[size_t(i)],
                      {}});
      which.push_back(i);
    }
    std::shuffle(rows.begin(), rows.end(), random_);
    ASSERT_OK(engine->Step(rows));
    for (const StepRow& row : rows) ASSERT_OK(row.status);
    bool done = true;
    for (int i = 0; i < kSequences; ++i) {
      got[size_t(i)].insert(got[size_t(i)].end(), logits[size_t(i)].begin(),
                            logits[size_t(i)].end());
      done &= size_t(sequences[size_t(i)]->position()) == tokens[size_t(i)].size();
    }
    if (done) break;
  }
  for (int i = 0; i < kSequences; ++i)
    EXPECT_EQ(FirstDifference(got[size_t(i)], want[size_t(i)], 256), -1) << i;
}

TEST_P(Determinism, Truncation) {
  auto engine = LoadEngine(GetParam(), {.max_batch_rows = 64});
  const auto tokens = RandomTokens(*engine, 400);
  auto plain = engine->NewSequence();
  const auto want = StepAll(*engine, *plain, tokens);
  auto sequence = engine->NewSequence();
  size_t at = 0;
  size_t furthest = 0;
  while (at < tokens.size()) {
    // Tokens that are then taken back; first some right ones, so that the boundary falls anywhere.
    const size_t right = std::min(tokens.size() - at, size_t(Draw(1, 70)));
    const auto logits = StepAll(*engine, *sequence, std::span(tokens).subspan(at, right));
    EXPECT_EQ(FirstDifference(logits, std::span(want).subspan(at * 256, right * 256), 256), -1)
        << "from " << at;
    at += right;
    furthest = std::max(furthest, at);
    const int reach = kMaxTruncateTokens - int(furthest - at);
    const int wrong = Draw(0, reach);
    if (wrong > 0) StepInChunks(*engine, *sequence, RandomTokens(*engine, wrong), 40);
    furthest = std::max(furthest, at + size_t(wrong));
    const int back = Draw(0, std::min(kMaxTruncateTokens - int(furthest - at), int(at)));
    at -= size_t(back);
    ASSERT_OK(sequence->Truncate(int64_t(at)));
    ASSERT_EQ(sequence->position(), int64_t(at));
  }
  const auto a = sequence->ExportAnchor();
  const auto b = plain->ExportAnchor();
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_OK(plain->Truncate(400));
  // The drawn steps end at 400 only after the last truncation moved on.
  if (sequence->position() == 400) {
    EXPECT_TRUE(*a == *b);
  }
}

TEST_P(Determinism, TruncationLimits) {
  auto engine = LoadEngine(GetParam());
  auto sequence = engine->NewSequence();
  StepAll(*engine, *sequence, RandomTokens(*engine, 100));
  EXPECT_EQ(sequence->Truncate(101).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(sequence->Truncate(100 - kMaxTruncateTokens - 1).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(sequence->position(), 100);
  EXPECT_OK(sequence->Truncate(100 - kMaxTruncateTokens));
  EXPECT_EQ(sequence->position(), 100 - kMaxTruncateTokens);
}

TEST_P(Determinism, ExportAndImport) {
  auto engine = LoadEngine(GetParam(), {.max_batch_rows = 128});
  auto reader = LoadEngine(GetParam(), {.threads = 1, .max_batch_rows = 50});
  const auto tokens = RandomTokens(*engine, 620);
  auto plain = engine->NewSequence();
  const auto want = StepAll(*engine, *plain, tokens);
  for (int round = 0; round < 6; ++round) {
    // At 580 the rest is one batch, of more tokens than Truncate goes back.
    const int t = round == 0   ? 512
                  : round == 1 ? 3
                  : round == 2 ? 0
                  : round == 3 ? 620 - kMaxTruncateTokens - 8
                               : Draw(1, 610);
    auto writer = engine->NewSequence();
    if (t > 0) StepInChunks(*engine, *writer, std::span(tokens).first(size_t(t)), 200);
    std::map<std::pair<int64_t, int>, std::string> stored;
    auto sequence = reader->NewSequence();
    for (int64_t block = 0; block < t / kBlockTokens; ++block) {
      auto payload = writer->ExportBlock(block);
      ASSERT_TRUE(payload.ok()) << Text(payload.status());
      for (size_t layer = 0; layer < payload->csa.size(); ++layer) {
        stored[{block, int(layer)}] = payload->csa[layer];
        if (Draw(0, 2) > 0) payload->csa[layer].clear();
      }
      if (round == 3 || Draw(0, 3) == 0) payload->csa.clear();
      ASSERT_OK(sequence->ImportBlock(*payload));
    }
    int failures = 1;
    sequence->SetCsaSource(
        [&](std::span<const CsaPart> parts) -> absl::StatusOr<std::vector<std::string>> {
          if (failures-- > 0) return absl::UnavailableError("not yet");
          std::vector<std::string> entries;
          for (const CsaPart& part : parts)
            entries.push_back(stored.at({part.block, part.csa_layer}));
          return entries;
        });
    auto anchor = writer->ExportAnchor();
    ASSERT_TRUE(anchor.ok()) << Text(anchor.status());
    ASSERT_OK(sequence->ImportAnchor(*anchor));
    ASSERT_EQ(sequence->position(), t);
    const auto again = sequence->ExportAnchor();
    ASSERT_TRUE(again.ok());
    EXPECT_TRUE(*again == *anchor) << "at " << t;
    // The source fails first: nothing has happened, and the same call then succeeds.
    const auto rest = std::span(tokens).subspan(size_t(t));
    std::vector<float> logits(rest.size() * 256);
    StepRow row = {sequence.get(), rest, logits, {}};
    ASSERT_OK(reader->Step({&row, 1}));
    if (!row.status.ok()) {
      EXPECT_EQ(row.status.code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(sequence->position(), t);
      const auto unchanged = sequence->ExportAnchor();
      ASSERT_TRUE(unchanged.ok());
      EXPECT_TRUE(*unchanged == *anchor);
      ASSERT_OK(reader->Step({&row, 1}));
    }
    ASSERT_OK(row.status);
    EXPECT_EQ(FirstDifference(logits, std::span(want).subspan(size_t(t) * 256), 256), -1)
        << "imported at " << t;
    // Blocks from an imported sequence are the blocks it was given.
    const auto end_a = sequence->ExportAnchor();
    const auto end_b = plain->ExportAnchor();
    ASSERT_TRUE(end_a.ok() && end_b.ok());
    EXPECT_TRUE(*end_a == *end_b);
    const auto block_a = sequence->ExportBlock(1);
    const auto block_b = plain->ExportBlock(1);
    ASSERT_TRUE(block_b.ok());
    if (block_a.ok()) {
      EXPECT_TRUE(block_a->index == block_b->index && block_a->csa == block_b->csa);
    }
  }
}

TEST_P(Determinism, FailingRowLeavesOthersAlone) {
  auto engine = LoadEngine(GetParam(), {.max_batch_rows = 40});
  const auto tokens = RandomTokens(*engine, 700);
  auto writer = engine->NewSequence();
  StepAll(*engine, *writer, std::span(tokens).first(512));
  auto broken = engine->NewSequence();
  for (int64_t block = 0; block < 2; ++block) {
    auto payload = writer->ExportBlock(block);
    ASSERT_TRUE(payload.ok());
    payload->csa.clear();
    ASSERT_OK(broken->ImportBlock(*payload));
  }
  ASSERT_OK(broken->ImportAnchor(*writer->ExportAnchor()));
  const std::string before = *broken->ExportAnchor();
  int calls = 0;
  broken->SetCsaSource(
      [&](std::span<const CsaPart> parts) -> absl::StatusOr<std::vector<std::string>> {
        // Fails in the middle, after parts of the row were committed.
        if (++calls > 1) return absl::DataLossError("damaged");
        std::vector<std::string> entries;
        for (const CsaPart& part : parts)
          entries.push_back(writer->ExportBlock(part.block)->csa[size_t(part.csa_layer)]);
        return entries;
      });
  auto good = engine->NewSequence();
  auto alone = engine->NewSequence();
  const auto other = RandomTokens(*engine, 90);
  const auto want = StepAll(*engine, *alone, other);
  std::vector<float> logits(90 * 256);
  std::vector<float> unused(188 * 256);
  std::vector<StepRow> rows = {{broken.get(), std::span(tokens).subspan(512), unused, {}},
                               {good.get(), other, logits, {}}};
  ASSERT_OK(engine->Step(rows));
  EXPECT_EQ(rows[0].status.code(), absl::StatusCode::kDataLoss) << Text(rows[0].status);
  EXPECT_OK(rows[1].status);
  EXPECT_EQ(broken->position(), 512);
  EXPECT_TRUE(*broken->ExportAnchor() == before);
  EXPECT_EQ(FirstDifference(logits, want, 256), -1);
}

TEST_P(Determinism, SimdTargets) {
  const auto tokens = [&] {
    auto engine = LoadEngine(GetParam());
    return RandomTokens(*engine, 300);
  }();
  std::vector<float> want;
  std::string names;
  int compared = 0;
  for (const int64_t target : SimdTargets()) {
    ForceSimdTarget(target);
    auto engine = LoadEngine(GetParam());
    auto sequence = engine->NewSequence();
    const auto logits = StepInChunks(*engine, *sequence, tokens, 100);
    if (want.empty()) want = logits;
    EXPECT_EQ(FirstDifference(logits, want, 256), -1) << SimdTargetName();
    names += std::string(names.empty() ? "" : ", ") + SimdTargetName();
    ++compared;
  }
  ForceSimdTarget(0);
  std::printf("[figure] bitwise: the same logits on %d instruction sets: %s\n", compared,
              names.c_str());
  EXPECT_GE(compared, 2);
}

TEST(RunLayer, DoesNotDependOnChunks) {
  std::mt19937_64 random(Seed());
  std::normal_distribution<float> normal;
  auto whole = LoadEngine(kOfficial);
  auto parts = LoadEngine(kOfficial, {.max_batch_rows = 37});
  std::vector<TokenId> tokens(260);
  for (TokenId& token : tokens) token = TokenId(random() % 256);
  std::vector<float> streams(tokens.size() * 1024);
  for (float& v : streams) v = RoundBf16(normal(random));
  for (int layer = 0; layer <= 4; ++layer) {
    std::vector<float> a(streams.size());
    std::vector<float> b(streams.size());
    ASSERT_OK(whole->RunLayer(layer, tokens, streams, a));
    ASSERT_OK(parts->RunLayer(layer, tokens, streams, b));
    EXPECT_EQ(FirstDifference(a, b, 1024), -1) << "layer " << layer;
  }
  EXPECT_FALSE(whole->RunLayer(5, tokens, streams, streams).ok());
  EXPECT_FALSE(whole->RunLayer(0, std::span(tokens).first(3), streams, streams).ok());
}

TEST(Draft, ChangesNothingAndFollowsTheTokensAlone) {
  auto engine = LoadEngine(kOfficial);
  std::mt19937_64 random(Seed());
  std::vector<TokenId> tokens(300);
  for (TokenId& token : tokens) token = TokenId(random() % 256);
  auto a = engine->NewSequence();
  StepAll(*engine, *a, std::span(tokens).first(280));
  std::vector<float> want(256);
  ASSERT_OK(engine->Draft(*a, tokens[280], want));
  // Another way to the same place: drafts in between, wrong tokens taken back, an import.
  auto b = engine->NewSequence();
  std::vector<float> got(256);
  for (size_t at = 0; at < 270; at += 30) {
    StepAll(*engine, *b, std::span(tokens).subspan(at, 30));
    ASSERT_OK(engine->Draft(*b, 7, got));
  }
  StepAll(*engine, *b, std::vector<TokenId>(17, 9));
  ASSERT_OK(b->Truncate(265));
  StepAll(*engine, *b, std::span(tokens).subspan(265, 10));
  auto c = engine->NewSequence();
  ASSERT_OK(c->ImportBlock(*b->ExportBlock(0)));
  ASSERT_OK(c->ImportAnchor(*b->ExportAnchor()));
  StepAll(*engine, *c, std::span(tokens).subspan(275, 5));
  ASSERT_OK(engine->Draft(*c, tokens[280], got));
  EXPECT_EQ(FirstDifference(got, want, 256), -1);
  EXPECT_TRUE(*c->ExportAnchor() == *a->ExportAnchor());
  EXPECT_EQ(engine->Draft(*engine->NewSequence(), 1, got).code(),
            absl::StatusCode::kFailedPrecondition);
  auto no_mtp = LoadEngine(kHf);
  EXPECT_EQ(no_mtp->Draft(*no_mtp->NewSequence(), 1, got).code(), absl::StatusCode::kUnimplemented);
}

TEST(Step, RefusesBadRows) {
  auto engine = LoadEngine(kHf);
  auto other = LoadEngine(kHf);
  auto sequence = engine->NewSequence();
  auto foreign = other->NewSequence();
  const std::vector<TokenId> tokens = {1, 2, 3};
  std::vector<float> logits(256 * 3);
  auto code = [&](std::vector<StepRow> rows) { return engine->Step(rows).code(); };
  EXPECT_EQ(code({{sequence.get(), tokens, {}, {}}, {sequence.get(), tokens, {}, {}}}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{sequence.get(), {}, {}, {}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{nullptr, tokens, {}, {}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{foreign.get(), tokens, {}, {}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{sequence.get(), tokens, std::span(logits).first(255), {}}}),
            absl::StatusCode::kInvalidArgument);
  for (TokenId bad : {-1, 256}) {
    const std::vector<TokenId> wrong = {1, bad};
    StepRow row = {sequence.get(), wrong, {}, {}};
    ASSERT_OK(engine->Step({&row, 1}));
    EXPECT_EQ(row.status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(Text(row.status).find(std::to_string(bad)), std::string::npos);
  }
  const std::vector<TokenId> long_row(4097, 1);
  StepRow row = {sequence.get(), long_row, {}, {}};
  ASSERT_OK(engine->Step({&row, 1}));
  EXPECT_EQ(row.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(Text(row.status).find("end at 4097, beyond this model's context of 4096"),
            std::string::npos)
      << Text(row.status);
  EXPECT_EQ(sequence->position(), 0);
  // Beyond the end by one token: nothing of the row is evaluated.
  StepAll(*engine, *sequence, std::span(long_row).first(4095));
  std::vector<float> untouched(256 * 2, -7);
  row = {sequence.get(), std::span(long_row).first(2), untouched, {}};
  ASSERT_OK(engine->Step({&row, 1}));
  EXPECT_NE(Text(row.status).find("give at most 1"), std::string::npos) << Text(row.status);
  EXPECT_EQ(sequence->position(), 4095);
  EXPECT_EQ(std::count(untouched.begin(), untouched.end(), -7.0f), 512);
}

// Random damage anywhere: refused, or taken as other numbers, on which the engine runs without
// harm. (That it is damage is for the store's checksums to see.)
TEST(Import, SurvivesRandomDamage) {
  std::mt19937_64 random(Seed());
  int refused = 0;
  int taken = 0;
  for (const char* model : {kHf, kOfficial}) {
    auto engine = LoadEngine(model);
    auto writer = engine->NewSequence();
    std::vector<TokenId> tokens(300);
    for (TokenId& token : tokens) token = TokenId(random() % 256);
    StepAll(*engine, *writer, tokens);
    const BlockPayload block = *writer->ExportBlock(0);
    const std::string anchor = *writer->ExportAnchor();
    auto damage = [&](std::string* bytes) {
      for (int count = int(random() % 4); count > 0; --count) {
        const size_t at = random() % bytes->size();
        const size_t length = std::min(bytes->size() - at, size_t(random() % 40));
        // A flipped bit, a stretch of ones, of zeros, of noise.
        const int kind = int(random() % 4);
        if (kind == 0) (*bytes)[at] = char((*bytes)[at] ^ (1 << random() % 8));
        for (size_t i = at; kind > 0 && i < at + length; ++i)
          (*bytes)[i] = char(kind == 1 ? 0xFF : kind == 2 ? 0 : random());
      }
    };
    for (int round = 0; round < 60; ++round) {
      BlockPayload bad_block = block;
      std::string bad_anchor = anchor;
      damage(&bad_block.index);
      damage(&bad_block.csa[random() % bad_block.csa.size()]);
      if (round % 2 == 0) damage(&bad_anchor);
      auto sequence = engine->NewSequence();
      absl::Status status = sequence->ImportBlock(bad_block);
      if (status.ok()) status = sequence->ImportAnchor(bad_anchor);
      if (!status.ok()) {
        ++refused;
        EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsDataLoss(status)) << Text(status);
        EXPECT_EQ(sequence->position(), 0);
        ASSERT_OK(sequence->ImportBlock(block));  // it is empty again
        ASSERT_OK(sequence->ImportAnchor(anchor));
        EXPECT_TRUE(*sequence->ExportAnchor() == anchor);
        continue;
      }
      ++taken;
      StepAll(*engine, *sequence, std::span(tokens).first(9));
      std::vector<float> draft(256);
      const absl::Status drafted = engine->Draft(*sequence, 1, draft);
      EXPECT_EQ(drafted.ok(), model == kOfficial) << Text(drafted);
      EXPECT_TRUE(sequence->ExportAnchor().ok());
      EXPECT_OK(sequence->Truncate(sequence->position() - 9));
    }
  }
  std::printf("damaged states: %d refused, %d taken as other numbers\n", refused, taken);
  EXPECT_GT(refused, 0);
  EXPECT_GT(taken, 0);
}

TEST(Import, RefusesWhatIsNoNumber) {
  for (const char* model : {kHf, kOfficial}) {
    auto engine = LoadEngine(model);
    auto writer = engine->NewSequence();
    StepAll(*engine, *writer, std::vector<TokenId>(300, 5));
    const BlockPayload block = *writer->ExportBlock(0);
    const std::string anchor = *writer->ExportAnchor();
    auto sequence = engine->NewSequence();
    auto refused = [&](const absl::Status& status, const std::string& what) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << Text(status);
      EXPECT_NE(Text(status).find(what), std::string::npos) << Text(status);
      EXPECT_EQ(sequence->position(), 0);
    };
    const std::string ones(200, '\xff');  // of every format no number
    BlockPayload bad = block;
    bad.csa[0].replace(400, ones.size(), ones);
    refused(sequence->ImportBlock(bad), "CSA layer 0");
    bad = block;
    bad.index.replace(bad.index.size() - ones.size(), ones.size(), ones);
    refused(sequence->ImportBlock(bad), "index part");
    // The keys of the window, the frontiers, and the entries of the open block, which are last.
    for (const size_t at : {size_t(40), anchor.size() / 2, anchor.size() - ones.size()}) {
      ASSERT_OK(sequence->ImportBlock(block));
      std::string damaged = anchor;
      damaged.replace(at, ones.size(), ones);
      refused(sequence->ImportAnchor(damaged), "position 300");
    }
    bad = block;
    bad.csa.clear();
    ASSERT_OK(sequence->ImportBlock(bad));
    const std::vector<CsaPart> first = {{0, 0}};
    const std::vector<std::string> damaged = {std::string(block.csa[0].size(), '\xff')};
    EXPECT_EQ(sequence->ImportCsa(first, damaged).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(sequence->ImportCsa(first, {}).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(sequence->all_resident());
    EXPECT_OK(sequence->ImportCsa(first, std::span(block.csa).first(1)));
    EXPECT_OK(sequence->ImportAnchor(anchor));
  }
}

TEST(Import, RefusesWhatDoesNotFit) {
  auto engine = LoadEngine(kOfficial);
  auto writer = engine->NewSequence();
  StepAll(*engine, *writer, std::vector<TokenId>(300, 5));
  const BlockPayload block = *writer->ExportBlock(0);
  const std::string anchor = *writer->ExportAnchor();
  EXPECT_FALSE(writer->ExportBlock(1).ok());
  EXPECT_FALSE(writer->ExportBlock(-1).ok());
  EXPECT_FALSE(writer->ImportBlock(block).ok()) << "into a sequence that is not empty";
  EXPECT_EQ(writer->position(), 300);
  auto sequence = engine->NewSequence();
  auto refused = [&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << Text(status);
    EXPECT_EQ(sequence->position(), 0);
  };
  BlockPayload bad = block;
  bad.index.pop_back();
  refused(sequence->ImportBlock(bad));
  bad = block;
  bad.csa.pop_back();
  refused(sequence->ImportBlock(bad));
  bad = block;
  bad.csa[0].push_back('x');
  refused(sequence->ImportBlock(bad));
  refused(sequence->ImportAnchor(anchor));  // its block is missing
  std::mt19937_64 random(Seed());
  for (int i = 0; i < 50; ++i) {
    ASSERT_OK(sequence->ImportBlock(block));
    std::string damaged = anchor;
    if (i % 2 == 0) {
      damaged.resize(random() % anchor.size());
    } else {
      // The header but for the position: that of another place is found by checksums above.
      damaged[random() % 32] ^= char(1 << random() % 8);
    }
    refused(sequence->ImportAnchor(damaged));
  }
  // After all that it is empty and works.
  ASSERT_OK(sequence->ImportBlock(block));
  EXPECT_OK(engine->Step({}));
  const std::vector<TokenId> one = {1};
  StepRow row = {sequence.get(), one, {}, {}};
  ASSERT_OK(engine->Step({&row, 1}));
  EXPECT_EQ(row.status.code(), absl::StatusCode::kFailedPrecondition) << "no anchor yet";
  ASSERT_OK(sequence->ImportAnchor(anchor));
  EXPECT_EQ(sequence->position(), 300);
  // Entries are in the published storage: 72 bytes plus 128 of rotary for c = 128, r = 64; 68-byte
  // keys.
  EXPECT_EQ(block.csa[0].size(), 64u * 200);
  EXPECT_EQ(block.index.size(), 2u * 64 * 68 + 1u * 2 * 200);
}

}  // namespace
}  // namespace agentd::model
