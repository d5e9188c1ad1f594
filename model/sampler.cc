#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/philox.h"
#include "model/sampler_exp.h"

namespace agentd::model {
namespace {

// Orders tokens by falling logit, then by rising id, as one integer. Adding 0 makes -0 equal to 0.
uint64_t RankKey(float logit, size_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
  const uint32_t rising = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~rising) << 32 | static_cast<uint32_t>(id);
}
size_t IdOf(uint64_t rank_key) { return static_cast<uint32_t>(rank_key); }

// The highest logit, lowest id first; ends the process at a NaN.
size_t Best(std::span<const float> logits) {
  size_t best = 0;
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan |= std::isnan(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  AGENTD_CHECK(!has_nan);
  return best;
}

// Unnormalised probabilities at this temperature; the best token's is 1.
std::vector<double> Weights(std::span<const float> logits, double best, double temperature) {
  std::vector<double> weights(logits.size());
  if (std::isinf(best)) {
    // There is no difference to scale: all that share the best logit are equal, the rest is
    // impossible.
    for (size_t i = 0; i < logits.size(); ++i) weights[i] = logits[i] == best ? 1.0 : 0.0;
    return weights;
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = ExpOfNegative((static_cast<double>(logits[i]) - best) / temperature);
  }
  return weights;
}

double Sum(const std::vector<double>& weights) {
  double sum = 0;
  for (const double weight : weights) sum += weight;
  return sum;
}

// Keeps the weights of the tokens in `kept` and sets all others to zero.
void KeepOnly(std::span<const uint64_t> kept, std::vector<double>* weights) {
  std::vector<double> out(weights->size(), 0);
  for (const uint64_t key : kept) out[IdOf(key)] = (*weights)[IdOf(key)];
  *weights = std::move(out);
}

void FilterTopK(std::span<const float> logits, size_t top_k, std::vector<double>* weights) {
  std::vector<uint64_t> ranked(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) ranked[i] = RankKey(logits[i], i);
  std::nth_element(ranked.begin(), ranked.begin() + (top_k - 1), ranked.end());
  KeepOnly({ranked.data(), top_k}, weights);
}

// Keeps the tokens whose weights first reach top_p of the sum when added from the best on.
void FilterTopP(std::span<const float> logits, double top_p, std::vector<double>* weights) {
  const double sum = Sum(*weights);
  // All tokens below this weight together cannot make up what top_p leaves out, so none of them is
  // wanted; in a model's usual distribution that is nearly all. Half of the bound leaves room for
  // rounding.
  const double floor = 0.5 * (1 - top_p) * sum / static_cast<double>(weights->size());
  std::vector<uint64_t> ranked;
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((*weights)[i] > 0 && (*weights)[i] >= floor) ranked.push_back(RankKey(logits[i], i));
  }
  // Brings just as many into order as are needed, more with each step.
  const auto begin = ranked.begin();
  double reached = 0;
  size_t keep = 0;
  for (size_t step = 64; keep < ranked.size() && reached < top_p * sum; step *= 4) {
    const size_t next = std::min(ranked.size(), keep + step);
    std::nth_element(begin + keep, begin + (next - 1), ranked.end());
    std::sort(begin + keep, begin + next);
    while (keep < next && reached < top_p * sum) reached += (*weights)[IdOf(ranked[keep++])];
  }
  KeepOnly({ranked.data(), keep}, weights);
}

void Filter(std::span<const float> logits, const SamplingParams& params,
            std::vector<double>* weights) {
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size())
    FilterTopK(logits, params.top_k, weights);
  if (params.top_p < 1) FilterTopP(logits, params.top_p, weights);
  if (params.min_p == 0) return;
  for (double& weight : *weights) {
    if (weight < params.min_p) weight = 0;  // the best one's is 1
  }
}

// 53 random bits in [0, 1).
double Uniform(uint64_t seed, int64_t position, uint32_t draw) {
  const uint64_t at = static_cast<uint64_t>(position);
  const std::array<uint32_t, 4> bits =
      Philox4x32({static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), draw, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t mantissa = (static_cast<uint64_t>(bits[1]) << 32 | bits[0]) >> 11;
  return static_cast<double>(mantissa) * 0x1p-53;
}

}  // namespace

absl::Status Validate(const SamplingParams& params) {
  // Written so that NaN fails.
  if (!(params.temperature >= 0 && params.temperature <= 1e6)) {
    return InvalidArgument("temperature is {}, must be 0 to 1000000", params.temperature);
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return InvalidArgument("top_p is {}, must be above 0 and at most 1", params.top_p);
  }
  if (!(params.min_p >= 0 && params.min_p < 1)) {
    return InvalidArgument("min_p is {}, must be at least 0 and below 1", params.min_p);
  }
  if (params.top_k < 0)
    return InvalidArgument("top_k is {}, must be 0 (off) or more", params.top_k);
  return absl::OkStatus();
}

TokenId Sample(std::span<const float> logits, const SamplingParams& params, uint64_t seed,
               int64_t position, uint32_t draw) {
  AGENTD_CHECK(!logits.empty() &&
               logits.size() <= static_cast<size_t>(std::numeric_limits<TokenId>::max()));
  AGENTD_CHECK(Validate(params).ok());
  const size_t best = Best(logits);
  if (params.temperature == 0 || params.top_k == 1) return static_cast<TokenId>(best);

  std::vector<double> weights = Weights(logits, logits[best], params.temperature);
  Filter(logits, params, &weights);
  const double target = Uniform(seed, position, draw) * Sum(weights);
  double sum = 0;
  size_t last =
      best;  // where rounding makes the target equal the whole sum, the last possible token
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0) continue;
    sum += weights[i];
    last = i;
    if (sum > target) break;
  }
  return static_cast<TokenId>(last);
}

}  // namespace agentd::model
