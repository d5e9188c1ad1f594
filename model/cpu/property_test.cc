// The determinism contract with everything drawn at random together: instruction set, threads, rows
// a step, chunks, and where a state is written by one engine and read by another.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "base/sanitized.h"
#include "model/cpu/kernels.h"
#include "model/cpu/test_util.h"

namespace agentd::model {
namespace {

class Property : public testing::TestWithParam<const char*> {
 protected:
  Property() : random_(Seed()), targets_(SimdTargets()) {}
  ~Property() override { ForceSimdTarget(0); }

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  std::vector<TokenId> RandomTokens(const Engine& engine, int count) {
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    for (TokenId& token : tokens) token = Draw(0, engine.config().vocab_size - 1);
    return tokens;
  }

  // Another instruction set from here on; what it and the engine are, for the failure's message.
  std::unique_ptr<Engine> AnyEngine(std::string* what) {
    ForceSimdTarget(targets_[size_t(Draw(0, int(targets_.size()) - 1))]);
    const EngineOptions options = {.threads = Draw(1, 8), .max_batch_rows = Draw(1, 300)};
    *what += fmt::format("{}, {} threads, {} rows; ", SimdTargetName(), options.threads,
                         options.max_batch_rows);
    return LoadEngine(GetParam(), options);
  }

  std::vector<float> StepInChunks(Engine& engine, Sequence& sequence,
                                  std::span<const TokenId> tokens) {
    const int largest = Draw(0, 3) == 0 ? int(tokens.size()) : Draw(1, 60);
    std::vector<float> all;
    while (!tokens.empty()) {
      const size_t count = std::min(tokens.size(), size_t(Draw(1, std::max(1, largest))));
      const std::vector<float> logits = StepAll(engine, sequence, tokens.first(count));
      all.insert(all.end(), logits.begin(), logits.end());
      tokens = tokens.subspan(count);
    }
    return all;
  }

  std::mt19937_64 random_;
  const std::vector<int64_t> targets_;
};

// examples/model is what a person runs first; the others are small and of both kinds of arithmetic.
INSTANTIATE_TEST_SUITE_P(
    Models, Property,
    testing::Values("tests/golden/hf-a", "tests/golden/official-a", "examples/model"),
    [](const auto& info) {
      return std::string(info.index == 0 ? "Float" : info.index == 1 ? "LowPrecision" : "Shipped");
    });

constexpr int kRounds = kSanitized ? 2 : 4;

TEST_P(Property, AnyWayGivesTheSameLogits) {
  auto plain = LoadEngine(GetParam(), {.threads = 1});
  const size_t vocab = size_t(plain->config().vocab_size);
  const auto tokens = RandomTokens(*plain, 330);
  auto straight = plain->NewSequence();
  const auto want = StepAll(*plain, *straight, tokens);
  const std::string end = *straight->ExportAnchor();
  for (int round = 0; round < kRounds; ++round) {
    std::string what;
    auto writer = AnyEngine(&what);
    EXPECT_EQ(writer->fingerprint(), plain->fingerprint());
    auto first = writer->NewSequence();
    const size_t t = size_t(round == 0 ? 256 : Draw(1, 329));
    what += fmt::format("until {}; ", t);
    auto got = StepInChunks(*writer, *first, std::span(tokens).first(t));
    std::vector<BlockPayload> blocks;
    for (int64_t block = 0; block < int64_t(t) / kBlockTokens; ++block)
      blocks.push_back(*first->ExportBlock(block));
    const std::string anchor = *first->ExportAnchor();

    auto reader = AnyEngine(&what);
    auto second = reader->NewSequence();
    for (const BlockPayload& block : blocks) ASSERT_OK(second->ImportBlock(block));
    ASSERT_OK(second->ImportAnchor(anchor));
    const auto rest = StepInChunks(*reader, *second, std::span(tokens).subspan(t));
    got.insert(got.end(), rest.begin(), rest.end());
    EXPECT_EQ(FirstDifference(got, want, vocab), -1) << what;
    EXPECT_TRUE(*second->ExportAnchor() == end) << what << "the state differs";
  }
}

}  // namespace
}  // namespace agentd::model
