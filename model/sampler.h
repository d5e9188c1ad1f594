// Sampling as a function of (logits, parameters, timeline seed, position, draw): no state, so a
// crash resume, a replay and a speculative check give the same token.
#ifndef AGENTD_MODEL_SAMPLER_H_
#define AGENTD_MODEL_SAMPLER_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "model/engine.h"

namespace agentd::model {

struct SamplingParams {
  double temperature = 1;  // 0: greedy (lowest id wins ties)
  double top_p = 1;        // (0, 1]
  double min_p = 0;        // [0, 1): drops tokens below min_p * the best probability
  int top_k = 0;           // 0: off
};

// InvalidArgument naming the field and its range.
absl::Status Validate(const SamplingParams& params);

// Filters in the order top-k, top-p, min-p over the temperature-scaled distribution, then draws
// with a Philox4x32-10 counter keyed by `seed`, counting (position, draw). Sums run in double in a
// fixed order, so the answer is the same on every machine. NaN logits are an internal error: the
// caller must not sample them (CHECK).
TokenId Sample(std::span<const float> logits, const SamplingParams& params, uint64_t seed,
               int64_t position, uint32_t draw);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_SAMPLER_H_
