// Experts in host memory change no bit of what an engine computes, whatever its cache holds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/cpu/test_util.h"

namespace agentd::model {
namespace {

using ::testing::HasSubstr;

class HostExpertsTest : public ::testing::TestWithParam<const char*> {
 protected:
  HostExpertsTest() : random_(Seed()) {}
  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  std::vector<TokenId> RandomTokens(int count) {
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    for (TokenId& token : tokens) token = Draw(0, resident_->config().vocab_size - 1);
    return tokens;
  }

  void SetUp() override {
    resident_ = LoadEngine(GetParam(), {.host_expert_layers = 0});
    layers_ = resident_->config().num_hidden_layers + resident_->config().num_nextn_predict_layers;
    const auto all = LoadEngine(GetParam(), {.host_expert_layers = layers_});
    const auto experts = all->host_experts();
    ASSERT_TRUE(experts.ok()) << Text(experts.status());
    ASSERT_EQ(int(experts->layers.size()), layers_);
    expert_bytes_ = experts->expert_bytes;
  }

  // All layers' experts in host memory, and a cache of so many.
  std::unique_ptr<Engine> Load(int cached, int max_batch_rows) {
    return LoadEngine(GetParam(), {.max_batch_rows = max_batch_rows,
                                   .host_expert_layers = layers_,
                                   .expert_cache_bytes = cached * expert_bytes_});
  }
  int Least() const { return resident_->config().num_experts_per_tok; }
  size_t Vocabulary() const { return size_t(resident_->config().vocab_size); }

  std::vector<float> StepInChunks(Engine& engine, Sequence& sequence,
                                  std::span<const TokenId> tokens, int largest) {
    return model::StepInChunks(engine, sequence, tokens, largest, random_);
  }

  std::mt19937_64 random_;
  std::unique_ptr<Engine> resident_;
  int layers_ = 0;
  int64_t expert_bytes_ = 0;
};

TEST_P(HostExpertsTest, TheSameBitsInAnyChunksWithAnyCache) {
  const auto tokens = RandomTokens(150);
  const auto sequence = resident_->NewSequence();
  const auto want = StepAll(*resident_, *sequence, tokens);
  const std::string anchor = *sequence->ExportAnchor();
  const int experts = layers_ * resident_->config().n_routed_experts;
  for (const auto& [cached, largest] :
       {std::pair(Least(), 150), {Least() + 1, 9}, {Draw(Least(), experts), 90}}) {
    const auto engine = Load(cached, Draw(1, 512));
    const auto other = engine->NewSequence();
    const auto got = StepInChunks(*engine, *other, tokens, largest);
    EXPECT_EQ(FirstDifference(got, want, Vocabulary()), -1)
        << "a cache of " << cached << ", chunks to " << largest;
    EXPECT_TRUE(*other->ExportAnchor() == anchor) << "the state differs";
    const auto counts = engine->host_experts();
    ASSERT_TRUE(counts.ok()) << Text(counts.status());
    EXPECT_EQ(counts->cached, std::min(cached, experts));
    EXPECT_GT(counts->misses, 0);
    EXPECT_EQ(counts->fetched_bytes, counts->misses * expert_bytes_);
  }
}

TEST_P(HostExpertsTest, TheSameBitsOfBatches) {
  constexpr int kSequences = 5;
  const auto engine = Load(Draw(Least(), 3 * Least()), Draw(kSequences, 100));
  std::vector<std::unique_ptr<Sequence>> mine;
  std::vector<std::unique_ptr<Sequence>> theirs;
  for (int i = 0; i < kSequences; ++i) {
    mine.push_back(engine->NewSequence());
    theirs.push_back(resident_->NewSequence());
    const auto past = RandomTokens(Draw(1, 60));
    const auto want = StepAll(*resident_, *theirs.back(), past);
    EXPECT_EQ(FirstDifference(StepAll(*engine, *mine.back(), past), want, Vocabulary()), -1);
  }
  // A token each: captured graphs, launched again and again.
  for (int step = 0; step < 8; ++step) {
    const auto tokens = RandomTokens(kSequences);
    std::vector<std::vector<float>> got(kSequences, std::vector<float>(Vocabulary()));
    std::vector<std::vector<float>> want = got;
    std::vector<StepRow> rows;
    std::vector<StepRow> wanted;
    for (size_t i = 0; i < kSequences; ++i) {
      const std::span token(&tokens[i], 1);
      rows.push_back({mine[i].get(), token, got[i], {}});
      wanted.push_back({theirs[i].get(), token, want[i], {}});
    }
    ASSERT_OK(engine->Step(rows));
    ASSERT_OK(resident_->Step(wanted));
    for (size_t i = 0; i < kSequences; ++i)
      ASSERT_EQ(FirstDifference(got[i], want[i], Vocabulary()), -1) << "step " << step;
  }
}

// The MTP block's experts are in host memory too.
TEST_P(HostExpertsTest, TheSameDrafts) {
  if (resident_->config().num_nextn_predict_layers == 0)
    GTEST_SKIP() << "the model has no MTP block to draft with";
  const auto engine = Load(Least(), 64);
  const auto tokens = RandomTokens(40);
  const auto mine = engine->NewSequence();
  const auto theirs = resident_->NewSequence();
  StepAll(*engine, *mine, tokens);
  StepAll(*resident_, *theirs, tokens);
  for (int i = 0; i < 3; ++i) {
    const TokenId next = RandomTokens(1)[0];
    std::vector<float> got(Vocabulary());
    std::vector<float> want(Vocabulary());
    ASSERT_OK(engine->Draft(*mine, next, got));
    ASSERT_OK(resident_->Draft(*theirs, next, want));
    EXPECT_EQ(FirstDifference(got, want, Vocabulary()), -1);
  }
}

// With room for all of them, each is fetched once.
TEST_P(HostExpertsTest, WhatIsCachedIsNotFetchedAgain) {
  const int experts = layers_ * resident_->config().n_routed_experts;
  const auto engine = Load(experts, 256);
  const auto tokens = RandomTokens(100);
  StepAll(*engine, *engine->NewSequence(), tokens);
  const auto first = *engine->host_experts();
  EXPECT_LE(first.misses, experts);
  StepAll(*engine, *engine->NewSequence(), tokens);
  const auto second = *engine->host_experts();
  EXPECT_EQ(second.misses, first.misses);
  EXPECT_EQ(second.hits, 2 * first.hits + first.misses);
  EXPECT_THAT(DescribeHostExperts(second),
              HasSubstr(fmt::format("holds {} of their {} (100.0%)", experts, experts)));
}

TEST_P(HostExpertsTest, SomeLayers) {
  const auto tokens = RandomTokens(60);
  const auto sequence = resident_->NewSequence();
  const auto want = StepAll(*resident_, *sequence, tokens);
  for (int layers = 1; layers < layers_; ++layers) {
    const auto engine = LoadEngine(
        GetParam(),
        {.host_expert_layers = layers, .expert_cache_bytes = Draw(Least(), 20) * expert_bytes_});
    EXPECT_EQ(int(engine->host_experts()->layers.size()), layers);
    const auto got = StepInChunks(*engine, *engine->NewSequence(), tokens, 30);
    EXPECT_EQ(FirstDifference(got, want, Vocabulary()), -1) << layers << " layers on the host";
  }
}

TEST_P(HostExpertsTest, BadOptions) {
  auto error = [](EngineOptions options) {
    options.backend = "cuda";
    const auto engine = Engine::Load(GetParam(), options);
    return engine.ok() ? std::string("loaded") : Text(engine.status());
  };
  EXPECT_THAT(error({.host_expert_layers = layers_ + 1}),
              HasSubstr(fmt::format("this model has {}", layers_)));
  EXPECT_THAT(error({.host_expert_layers = -2}), HasSubstr("host_expert_layers is -2"));
  EXPECT_THAT(error({.host_expert_layers = 1, .expert_cache_bytes = Least() * expert_bytes_ - 1}),
              HasSubstr(fmt::format("a token needs {} experts", Least())));
  EXPECT_THAT(error({.host_expert_layers = 0, .expert_cache_bytes = 1 << 30}),
              HasSubstr("none are in host memory"));
}

INSTANTIATE_TEST_SUITE_P(
    Models, HostExpertsTest,
    testing::Values("tests/golden/hf-a", "tests/golden/official-a", "examples/model"),
    [](const auto& info) {
      return std::string(info.index == 0 ? "Float" : info.index == 1 ? "LowPrecision" : "Shipped");
    });

}  // namespace
}  // namespace agentd::model
