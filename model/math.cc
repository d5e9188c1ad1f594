#include "model/math.h"

#include <algorithm>
#include <cmath>

#include "model/config.h"

namespace agentd::model {

std::vector<double> RopeFrequencies(const Config& config, bool compressed) {
  const int r = config.qk_rope_head_dim;
  const double log_base = Log(compressed ? config.compress_rope_theta : config.rope_theta);
  const RopeScaling& scaling = config.rope_scaling;
  const bool yarn = compressed && scaling.original_max_position_embeddings > 0;
  double low = 0;
  double high = 0;
  if (yarn) {
    constexpr double kTwoPi = 6.283185307179586;
    auto dim = [&](double rotations) {
      const double turns = double(scaling.original_max_position_embeddings) / (kTwoPi * rotations);
      return r * Log(turns) / (2 * log_base);
    };
    low = std::max(std::floor(dim(scaling.beta_fast)), 0.0);
    high = std::min(std::ceil(dim(scaling.beta_slow)), double(r - 1));
    if (low == high) high += 0.001;
  }
  std::vector<double> frequencies(static_cast<size_t>(r / 2));
  for (int i = 0; i < r / 2; ++i) {
    double frequency = Exp(-(2.0 * i / r) * log_base);
    if (yarn) {
      const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
      frequency = frequency * (1 - ramp) + frequency / scaling.factor * ramp;
    }
    frequencies[static_cast<size_t>(i)] = frequency;
  }
  return frequencies;
}

void RopeTable(const std::vector<double>& frequencies, double position, float* cosine,
               float* sine) {
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double s = 0;
    double c = 0;
    SinCos(position * frequencies[i], &s, &c);
    cosine[i] = static_cast<float>(c);
    sine[i] = static_cast<float>(s);
  }
}

}  // namespace agentd::model
