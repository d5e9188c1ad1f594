#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
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
  for (size_t i = 0; i < logits.size(); ++i) {
    // With an infinite best logit there is no difference to scale: all that share it are equal, the
    // rest is impossible.
    weights[i] = std::isinf(best)
                     ? (logits[i] == best ? 1.0 : 0.0)
                     : ExpOfNegative((static_cast<double>(logits[i]) - best) / temperature);
  }
  return weights;
}

// Sets the weight of all but `keep` to zero, given all rank keys with the kept ones first in any
// order.
void Drop(const std::vector<uint64_t>& ranked, size_t keep, std::vector<double>* weights) {
  for (size_t i = keep; i < ranked.size(); ++i) (*weights)[IdOf(ranked[i])] = 0;
}

double Sum(const std::vector<double>& weights) {
  double sum = 0;
  for (const double weight : weights) sum += weight;
  return sum;
}

// Of the first `count` keys, those whose weights first reach `target` when added from the best on.
// Brings just as many into order as that takes, a few times more with each step.
size_t Nucleus(std::vector<uint64_t>& ranked, size_t count, const std::vector<double>& weights,
               double target) {
  const auto begin = ranked.begin();
  double sum = 0;
  size_t sorted = 0;
  for (size_t step = 64; sorted < count; step *= 4) {
    const size_t next = std::min(count, sorted + step);
    std::nth_element(begin + sorted, begin + (next - 1), begin + count);
    std::sort(begin + sorted, begin + next);
    for (; sorted < next; ++sorted) {
      sum += weights[IdOf(ranked[sorted])];
      if (sum >= target) return sorted + 1;
    }
  }
  return count;
}

void Filter(std::span<const float> logits, const SamplingParams& params,
            std::vector<double>* weights) {
  const bool some_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  if (some_k || params.top_p < 1) {
    std::vector<uint64_t> ranked(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) ranked[i] = RankKey(logits[i], i);
    size_t keep = logits.size();
    if (some_k) {
      keep = params.top_k;
      std::nth_element(ranked.begin(), ranked.begin() + (keep - 1), ranked.end());
      Drop(ranked, keep, weights);
    }
    if (params.top_p < 1) {
      keep = Nucleus(ranked, keep, *weights, params.top_p * Sum(*weights));
      Drop(ranked, keep, weights);
    }
  }
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
