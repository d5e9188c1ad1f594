// The engine's serial arithmetic (rotations, mixing coefficients, routing, Hadamard) on fresh
// random input against the specification's formulas in double precision.
#include "model/reference/formulas.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "model/cpu/forward.h"
#include "model/cpu/test_util.h"
#include "model/kv_format.h"
#include "model/math.h"

namespace agentd::model {
namespace {

using formulas::Doubles;

class Formulas : public testing::Test {
 protected:
  Formulas() : random_(Seed()) {}

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  std::vector<float> Normal(size_t n, float deviation = 1) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> out(n);
    for (float& v : out) v = normal(random_);
    return out;
  }
  static Doubles Wide(const std::vector<float>& x) { return {x.begin(), x.end()}; }

  std::mt19937_64 random_;
};

TEST_F(Formulas, RopeAtAnyPosition) {
  for (int round = 0; round < 200; ++round) {
    Config c;
    c.qk_rope_head_dim = 2 * Draw(1, 48);
    c.rope_theta = std::exp(std::uniform_real_distribution(1.0, 14.0)(random_));
    c.compress_rope_theta = std::exp(std::uniform_real_distribution(1.0, 14.0)(random_));
    c.rope_scaling = {.factor = double(Draw(1, 64)),
                      .original_max_position_embeddings = Draw(64, 1 << 17),
                      .beta_fast = double(Draw(8, 64)),
                      .beta_slow = double(Draw(1, 4))};
    const bool compressed = Draw(0, 1) == 1;
    const std::vector<double> got = RopeFrequencies(c, compressed);
    formulas::Yarn yarn;
    if (compressed) {
      yarn = {c.rope_scaling.factor, double(c.rope_scaling.original_max_position_embeddings),
              c.rope_scaling.beta_fast, c.rope_scaling.beta_slow};
    }
    const Doubles want = formulas::Frequencies(
        c.qk_rope_head_dim, compressed ? c.compress_rope_theta : c.rope_theta, yarn);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i] / want[i], 1, 1e-12);

    const int t = Draw(0, 1) == 0 ? Draw(0, 300) : Draw(0, 1 << 20);
    std::vector<float> cosine(got.size());
    std::vector<float> sine(got.size());
    RopeTable(got, t, cosine.data(), sine.data());
    const std::vector<float> x = Normal(2 * got.size());
    std::vector<float> turned = x;
    const bool back = Draw(0, 1) == 1;
    RotatePairs(turned.data(), int(got.size()), cosine.data(), sine.data(), back);
    // The frequency is off by 1e-12 at most, so is the angle, times t; then F32: a product and a
    // sum.
    const Doubles expected = formulas::Rope(Wide(x), want, back ? -t : t);
    for (size_t i = 0; i < x.size(); ++i) {
      const double size = std::hypot(double(x[i / 2 * 2]), double(x[i / 2 * 2 + 1]));
      ASSERT_NEAR(turned[i], expected[i], (4 * 0x1p-24 + 1e-12 * t) * size + 1e-30)
          << "position " << t << ", channel " << i;
    }
  }
}

TEST_F(Formulas, MixingCoefficients) {
  for (int round = 0; round < 300; ++round) {
    const int h = Draw(1, 8);
    const int iterations = Draw(1, 20);
    const size_t count = size_t((2 + h) * h);
    HyperConnection hc;
    hc.base = Normal(count);
    hc.scale = Normal(3);
    const std::vector<float> f = Normal(count, 2);
    const float rsqrt = 0.25f;  // exact, so that the products below are the same
    std::vector<float> pre(static_cast<size_t>(h));
    std::vector<float> post(static_cast<size_t>(h));
    std::vector<float> comb(static_cast<size_t>(h * h));
    const float eps = 1e-6f;
    MixCoefficients(hc, h, iterations, eps, f.data(), rsqrt, pre.data(), post.data(), comb.data());
    Doubles scaled = Wide(f);
    for (double& v : scaled) v *= double(rsqrt);
    const formulas::Mix want =
        formulas::Coefficients(h, scaled, Wide(hc.scale), Wide(hc.base), double(eps), iterations);
    // F32: an exponent of up to some tens is off by some 1e-6, and so is its exponential.
    for (int i = 0; i < h; ++i) {
      ASSERT_NEAR(pre[size_t(i)], want.pre[size_t(i)], 5e-6);
      ASSERT_NEAR(post[size_t(i)], want.post[size_t(i)], 1e-5);
    }
    for (size_t i = 0; i < comb.size(); ++i)
      ASSERT_NEAR(comb[i], want.comb[i], 2e-5) << "h " << h << ", " << iterations << " iterations";
  }
}

TEST_F(Formulas, Routing) {
  int decided = 0;
  for (int round = 0; round < 2000; ++round) {
    const int experts = Draw(1, 300);
    const int k = Draw(1, std::min(experts, 80));
    std::vector<float> gate = Normal(size_t(experts), 3);
    std::vector<float> bias = Normal(size_t(experts), 0.3f);
    if (round % 4 == 0) {  // equals: the lower index is the better one
      for (float& v : gate) v = std::round(v);
      std::fill(bias.begin(), bias.end(), 0.0f);
    }
    std::vector<int> chosen(static_cast<size_t>(k));
    std::vector<float> weights(static_cast<size_t>(k));
    ChooseExperts(gate.data(), bias.data(), experts, k, chosen.data());
    std::sort(chosen.begin(), chosen.end());
    const Doubles s = formulas::Affinities(Wide(gate));
    const std::vector<int> want = formulas::Choose(s, Wide(bias), k);
    // Where the last that is in and the first that is out are nearer than F32 tells apart, but not
    // equal, either may be chosen.
    Doubles sums;
    for (size_t e = 0; e < s.size(); ++e) sums.push_back(s[e] + double(bias[e]));
    std::sort(sums.begin(), sums.end(), std::greater<>());
    const double gap = k < experts ? sums[size_t(k) - 1] - sums[size_t(k)] : 1;
    if (gap > 1e-6 || gap == 0) {
      ++decided;
      ASSERT_EQ(chosen, want) << "k " << k << " of " << experts << ", gap " << gap;
    }
    ExpertWeights(gate.data(), chosen.data(), k, 2.5f, weights.data());
    const Doubles expected = formulas::Weights(s, chosen, 2.5);
    for (size_t i = 0; i < weights.size(); ++i) ASSERT_NEAR(weights[i], expected[i], 1e-5);
  }
  EXPECT_GT(decided, 1900);
}

TEST_F(Formulas, Hadamard) {
  for (int round = 0; round < 100; ++round) {
    const int n = 1 << Draw(0, 9);
    std::vector<float> x = Normal(size_t(n));
    for (float& v : x) v = RoundBf16(v);
    const Doubles want = formulas::Hadamard(Wide(x));
    HadamardBf16(x.data(), n);
    double norm = 0;
    for (const double v : want) norm += v * v;
    for (int i = 0; i < n; ++i) {
      // Half a step of BF16, and the sums' F32.
      const double bound = std::fabs(want[size_t(i)]) * 0x1p-8 + 1e-6 * std::sqrt(norm);
      ASSERT_NEAR(x[size_t(i)], want[size_t(i)], bound) << n;
    }
  }
}

}  // namespace
}  // namespace agentd::model
