// What one backend wrote loads in the other, byte for byte, and goes on to nearly the same logits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "model/cpu/test_util.h"

namespace agentd::model {
namespace {

struct Case {
  const char* model;
  double tolerance;  // of the RMS difference, relative to the logits' own RMS
  double most;       // of a token that a near-tie moves
};

class Exchange : public ::testing::TestWithParam<Case> {};

std::unique_ptr<Engine> Load(const char* backend) {
  auto engine = Engine::Load(Exchange::GetParam().model, {.backend = backend});
  AGENTD_CHECK(engine.ok());
  return std::move(engine).value();
}

std::vector<float> Evaluate(Engine& engine, Sequence& sequence, std::span<const TokenId> tokens) {
  std::vector<float> logits(size_t(engine.config().vocab_size));
  StepRow row = {.sequence = &sequence, .tokens = tokens, .logits = logits, .status = {}};
  AGENTD_CHECK(engine.Step({&row, 1}).ok() && row.status.ok());
  return logits;
}

double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (double(got[i]) - want[i]) * (double(got[i]) - want[i]);
    size += double(want[i]) * want[i];
  }
  return std::sqrt(difference / size);
}

TEST_P(Exchange, BlocksAndAnchors) {
  const auto cpu = Load("cpu");
  const auto cuda = Load("cuda");
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  std::vector<TokenId> past(600 + random() % 100);
  std::vector<TokenId> next(12);
  for (auto* tokens : {&past, &next}) {
    for (TokenId& token : *tokens) token = TokenId(random() % unsigned(cpu->config().vocab_size));
  }
  for (const auto& [from, to] : {std::pair(cpu.get(), cuda.get()), {cuda.get(), cpu.get()}}) {
    const auto writer = from->NewSequence();
    Evaluate(*from, *writer, past);
    const auto reader = to->NewSequence();
    for (int64_t block = 0; block < int64_t(past.size()) / kBlockTokens; ++block) {
      const auto payload = writer->ExportBlock(block);
      ASSERT_TRUE(payload.ok());
      ASSERT_OK(reader->ImportBlock(*payload));
    }
    const auto anchor = writer->ExportAnchor();
    ASSERT_TRUE(anchor.ok());
    ASSERT_OK(reader->ImportAnchor(*anchor));
    // The state is what was written.
    EXPECT_EQ(*reader->ExportAnchor(), *anchor);
    EXPECT_EQ(reader->ExportBlock(1)->index, writer->ExportBlock(1)->index);
    EXPECT_EQ(reader->ExportBlock(1)->csa, writer->ExportBlock(1)->csa);
    std::vector<double> errors;
    for (size_t i = 0; i < next.size(); ++i) {
      const auto token = std::span(next).subspan(i, 1);
      errors.push_back(
          RelativeError(Evaluate(*to, *reader, token), Evaluate(*from, *writer, token)));
    }
    // Last bits may decide a near-tie of the selection or the routing, which moves single tokens
    // further: in 18 draws of the shipped model's the largest of 12 errors was 0.02 in the middle
    // and 0.10 at most. Of logits that have nothing in common it would be about 1.4.
    std::sort(errors.begin(), errors.end());
    EXPECT_LE(errors[errors.size() / 2], GetParam().tolerance) << "seed " << seed;
    EXPECT_LE(errors[errors.size() - 3], 0.15) << "seed " << seed;
    EXPECT_LE(errors.back(), GetParam().most) << "seed " << seed;
  }
}

// F32 sums in other orders; with BF16 roundings between, a different last bit grows from layer to
// layer, as it does between the reference's own prefill and decode (spec section 7: 0.013 to 0.08
// of 0.76).
INSTANTIATE_TEST_SUITE_P(Models, Exchange,
                         ::testing::Values(Case{"tests/golden/hf-a", 1e-4, 0.15},
                                           Case{"tests/golden/official-a", 0.15, 0.5},
                                           Case{"examples/model", 0.15, 0.5}));

}  // namespace
}  // namespace agentd::model
