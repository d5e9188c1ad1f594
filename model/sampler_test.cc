#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "base/status.h"
#include "model/philox.h"
#include "model/sampler_exp.h"

namespace agentd::model {
namespace {

using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();

// The answers that the authors of Philox publish with their code (Random123, kat_vectors).
TEST(PhiloxTest, KnownAnswers) {
  using Counter = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(SamplerTest, ExpIsWithinTwoUnitsInTheLastPlace) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 200000; ++i) {
    const double x =
        -708.0 * std::pow(std::uniform_real_distribution<double>(0, 1)(random), i % 2 ? 1 : 20);
    const double exact = static_cast<double>(std::exp(static_cast<long double>(x)));
    EXPECT_LE(std::abs(ExpOfNegative(x) - exact),
              2 * std::numeric_limits<double>::epsilon() * exact)
        << x;
  }
  EXPECT_EQ(ExpOfNegative(0), 1);
  EXPECT_EQ(ExpOfNegative(-0.0), 1);
  EXPECT_EQ(ExpOfNegative(-709), 0);
  EXPECT_EQ(ExpOfNegative(-std::numeric_limits<double>::infinity()), 0);
}

// The definition, the slow way: probabilities after the filters.
std::vector<double> Expected(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (params.top_k > 0 && params.top_k < static_cast<int>(order.size())) order.resize(params.top_k);
  const auto weight = [&](int id) {
    return std::exp((logits[id] - static_cast<double>(logits[order[0]])) / params.temperature);
  };
  double total = 0;
  for (const int id : order) total += weight(id);
  double sum = 0;
  size_t keep = 0;
  while (keep < order.size() && sum < params.top_p * total) sum += weight(order[keep++]);
  if (params.top_p < 1) order.resize(keep);
  std::vector<double> out(logits.size(), 0);
  for (const int id : order) {
    if (weight(id) >= params.min_p) out[id] = weight(id);
  }
  const double all = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& p : out) p /= all;
  return out;
}

// Counts follow a binomial law: N p with deviation sqrt(N p (1-p)). 7 deviations plus 5 (for the
// Poisson tail of rare tokens) are exceeded by chance less than once in 10^8 comparisons.
void ExpectDistribution(const std::vector<float>& logits, const SamplingParams& params,
                        uint64_t seed) {
  constexpr int kDraws = 20000;
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < kDraws; ++i) ++counts[Sample(logits, params, seed, i / 4, i % 4)];
  const std::vector<double> expected = Expected(logits, params);
  for (size_t id = 0; id < logits.size(); ++id) {
    if (expected[id] == 0) {
      EXPECT_EQ(counts[id], 0) << "token " << id << " was filtered out";
    } else {
      const double mean = kDraws * expected[id];
      EXPECT_NEAR(counts[id], mean, 7 * std::sqrt(mean * (1 - expected[id])) + 5) << "token " << id;
    }
  }
}

TEST(SamplerTest, FollowsTheFilteredDistribution) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 40; ++round) {
    std::vector<float> logits(2 + random() % 300);
    // Quarters: many ties.
    for (float& logit : logits)
      logit = static_cast<float>(static_cast<int>(random() % 40) - 20) / 4;
    SamplingParams params;
    params.temperature = std::array{0.3, 0.7, 1.0, 1.0, 2.5}[random() % 5];
    if (random() % 2) params.top_k = 1 + random() % logits.size();
    // Not at a tie's edge, where the reference's rounding could decide otherwise: odd fractions.
    if (random() % 2)
      params.top_p = 0.05 + 0.9 * std::uniform_real_distribution<double>(0, 1)(random);
    if (random() % 3 == 0) params.min_p = 0.0437;
    ExpectDistribution(logits, params, seed + round);
  }
}

TEST(SamplerTest, GreedyTakesTheLowestIdOfTheBest) {
  SamplingParams greedy;
  greedy.temperature = 0;
  EXPECT_EQ(Sample(std::vector<float>{1, 3, 2, 3}, greedy, 1, 2, 3), 1);
  EXPECT_EQ(Sample(std::vector<float>{-1, -0.0f, 0.0f}, greedy, 1, 2, 3), 1);
  EXPECT_EQ(Sample(std::vector<float>{-kInf, -kInf}, greedy, 1, 2, 3), 0);
  EXPECT_EQ(Sample(std::vector<float>{-kInf, -5}, greedy, 1, 2, 3), 1);
  SamplingParams one;
  one.top_k = 1;
  EXPECT_EQ(Sample(std::vector<float>{1, 3, 2, 3}, one, 1, 2, 3), 1);
}

std::map<TokenId, int> Counts(const std::vector<float>& logits, const SamplingParams& params) {
  std::map<TokenId, int> counts;
  for (int i = 0; i < 4000; ++i) ++counts[Sample(logits, params, 99, i, 0)];
  return counts;
}

TEST(SamplerTest, TiesAtAnEdgeGoToTheLowerIds) {
  const std::vector<float> equal(1000, 0.5f);
  SamplingParams params;
  params.top_k = 300;
  EXPECT_EQ(Counts(equal, params).rbegin()->first, 299);
  params.top_k = 0;
  params.top_p = 0.25;  // 250 equal tokens reach it exactly
  EXPECT_EQ(Counts(equal, params).rbegin()->first, 249);
  params.top_p = 0.2501;
  EXPECT_EQ(Counts(equal, params).rbegin()->first, 250);
  // -0 and 0 are equal: the lower id stays.
  params = SamplingParams();
  params.top_k = 2;
  EXPECT_EQ(Counts({0.0f, -0.0f, 0.0f}, params).rbegin()->first, 1);
}

TEST(SamplerTest, ExtremeParametersAndLogits) {
  SamplingParams params;
  params.top_p = 1e-300;  // the best alone
  EXPECT_EQ(Counts({1, 2, 0}, params).size(), 1u);
  params = SamplingParams();
  params.temperature = 1e-300;
  EXPECT_EQ(Counts({1, 2, 2, 0}, params), Counts({-kInf, 2, 2, -kInf}, SamplingParams()));
  params.temperature = 1e6;
  EXPECT_EQ(Counts({-3e38f, 3e38f}, params).size(), 1u);
  EXPECT_EQ(Counts({-kInf, 1, -kInf, 1}, SamplingParams()).size(), 2u);
  EXPECT_EQ(Counts({kInf, 1, kInf, -kInf}, SamplingParams()).count(1), 0u);
  EXPECT_EQ(Counts({-kInf, -kInf, -kInf}, SamplingParams()).size(), 3u);
  params = SamplingParams();
  params.min_p = 0.999999;
  EXPECT_EQ(Counts({1, 1, 0.9f}, params).size(), 2u);
  params = SamplingParams();
  params.top_k = 1000;  // more than there are
  EXPECT_EQ(Counts({1, 1}, params).size(), 2u);
  EXPECT_EQ(Counts({3}, SamplingParams()).size(), 1u);
}

TEST(SamplerTest, IsAFunctionOfSeedPositionAndDraw) {
  const std::vector<float> logits(1 << 16, 0.0f);
  const SamplingParams params;
  const TokenId token = Sample(logits, params, 7, 8, 9);
  EXPECT_EQ(Sample(logits, params, 7, 8, 9), token);
  // Each coordinate matters, the upper halves too; one accidental equality among six has a chance
  // of 6 in 65,536 to the power of two, since two positions are looked at.
  const auto differs = [&](uint64_t seed, int64_t position, uint32_t draw) {
    return Sample(logits, params, seed, position, draw) != token ||
           Sample(logits, params, seed, position + 64, draw) != Sample(logits, params, 7, 72, 9);
  };
  EXPECT_TRUE(differs(6, 8, 9));
  EXPECT_TRUE(differs(7 + (1ull << 40), 8, 9));
  EXPECT_TRUE(differs(7, 10, 9));
  EXPECT_TRUE(differs(7, 8 + (1ll << 40), 9));
  EXPECT_TRUE(differs(7, 8, 10));
}

// Pins the arithmetic: with these bits another machine, compiler or library must give the same
// tokens.
TEST(SamplerTest, PinnedTokens) {
  std::vector<float> logits(5000);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>((i * 2654435761u) % 4096) / 512;
  SamplingParams filtered;
  filtered.temperature = 0.8;
  filtered.top_p = 0.9;
  filtered.min_p = 0.01;
  filtered.top_k = 2000;
  std::vector<TokenId> tokens;
  for (int i = 0; i < 4; ++i) tokens.push_back(Sample(logits, SamplingParams(), 42, i, 0));
  for (int i = 0; i < 4; ++i) tokens.push_back(Sample(logits, filtered, 42, i, 1));
  EXPECT_THAT(tokens, ::testing::ElementsAre(2331, 1621, 3287, 3353, 624, 4966, 614, 3399));
}

TEST(SamplerTest, ValidateNamesTheField) {
  const auto error = [](double temperature, double top_p, double min_p, int top_k) {
    return Text(
        Validate({.temperature = temperature, .top_p = top_p, .min_p = min_p, .top_k = top_k}));
  };
  const double nan = std::nan("");
  EXPECT_EQ(error(1, 1, 0, 0), "");
  EXPECT_EQ(error(0, 0.1, 0.99, 1), "");
  for (const double bad : {-0.1, nan, 1e300 * 1e300})
    EXPECT_THAT(error(bad, 1, 0, 0), HasSubstr("temperature"));
  for (const double bad : {0.0, 1.01, nan}) EXPECT_THAT(error(1, bad, 0, 0), HasSubstr("top_p"));
  for (const double bad : {-0.1, 1.0, nan}) EXPECT_THAT(error(1, 1, bad, 0), HasSubstr("min_p"));
  EXPECT_THAT(error(1, 1, 0, -1), HasSubstr("top_k"));
}

TEST(SamplerDeathTest, NanLogitsEndTheProcess) {
  EXPECT_DEATH(Sample(std::vector<float>{1, std::nanf("")}, SamplingParams(), 0, 0, 0), "CHECK");
  EXPECT_DEATH(Sample({}, SamplingParams(), 0, 0, 0), "CHECK");
}

}  // namespace
}  // namespace agentd::model
