#include "model/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/math.h"
#include "model/numeric.h"

namespace agentd::model::reference {
namespace {

float MaybeRound(float value, bool round) { return round ? RoundBf16(value) : value; }

float Tree16(const float* s) {
  float t[16];
  std::copy(s, s + 16, t);
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) t[i] += t[i + width];
  }
  return t[0];
}

}  // namespace

float LaneSum(std::span<const float> values) {
  float lanes[16] = {};
  for (size_t i = 0; i < values.size(); ++i) lanes[i % 16] += values[i];
  return Tree16(lanes);
}

float Dot(std::span<const float> weight, std::span<const float> x) {
  const size_t slice = ((weight.size() + 7) / 8 + 1) / 2 * 2;
  float sums[8] = {};
  for (size_t k = 0; k < weight.size(); ++k) sums[k / slice] += x[k] * weight[k];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

Floats RmsNorm(std::span<const float> x, std::span<const float> weight, float eps, bool round) {
  Floats squares(x.begin(), x.end());
  for (float& v : squares) v *= v;
  const float factor = 1 / std::sqrt(LaneSum(squares) / static_cast<float>(x.size()) + eps);
  Floats out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = MaybeRound(x[i] * factor * weight[i], round);
  return out;
}

Floats HeadNorm(std::span<const float> q, float eps, bool low_precision) {
  Floats squares(q.begin(), q.end());
  for (float& v : squares) v = MaybeRound(v * v, low_precision);
  const float mean = MaybeRound(LaneSum(squares) / static_cast<float>(q.size()), low_precision);
  const float factor =
      MaybeRound(1 / std::sqrt(MaybeRound(mean + eps, low_precision)), low_precision);
  Floats out(q.size());
  for (size_t i = 0; i < q.size(); ++i) out[i] = MaybeRound(q[i] * factor, low_precision);
  return out;
}

Floats QuantizeFp8(std::span<const float> x, int block) {
  Floats out(x.size());
  for (size_t begin = 0; begin < x.size(); begin += size_t(block)) {
    const size_t end = std::min(x.size(), begin + size_t(block));
    float amax = 0;
    for (size_t i = begin; i < end; ++i) amax = std::max(amax, std::fabs(x[i]));
    const double ratio = std::max(double(amax), double(1e-4f)) / 448;
    const double scale = std::exp2(std::ceil(std::log2(static_cast<float>(ratio))));
    for (size_t i = begin; i < end; ++i) {
      // The nearest of all 127 magnitudes; of two equally near ones the even code.
      const double value = std::fabs(double(x[i])) / scale;
      int best = 0;
      for (int code = 1; code < 127; ++code) {
        const double now = std::fabs(value - double(E4M3ToFloat(uint8_t(best))));
        const double then = std::fabs(value - double(E4M3ToFloat(uint8_t(code))));
        if (then < now || (then == now && code % 2 == 0)) best = code;
      }
      out[i] = std::copysign(static_cast<float>(E4M3ToFloat(uint8_t(best)) * scale), x[i]);
    }
  }
  return out;
}

Floats MixIn(std::span<const float> streams, std::span<const float> pre, bool round) {
  const size_t d = streams.size() / pre.size();
  Floats out(d);
  for (size_t i = 0; i < d; ++i) {
    float sum = pre[0] * streams[i];
    for (size_t s = 1; s < pre.size(); ++s) sum += pre[s] * streams[s * d + i];
    out[i] = MaybeRound(sum, round);
  }
  return out;
}

Floats MixOut(std::span<const float> streams, std::span<const float> sub,
              std::span<const float> post, std::span<const float> comb, bool round) {
  const size_t d = sub.size();
  const size_t h = post.size();
  Floats out(streams.size());
  for (size_t j = 0; j < h; ++j) {
    for (size_t i = 0; i < d; ++i) {
      float sum = post[j] * sub[i];
      for (size_t s = 0; s < h; ++s) sum += comb[s * h + j] * streams[s * d + i];
      out[j * d + i] = MaybeRound(sum, round);
    }
  }
  return out;
}

Floats SwiGlu(std::span<const float> gate, std::span<const float> up, float weight, float limit,
              bool round) {
  Floats out(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) {
    const float g = std::min(gate[i], limit);
    const float u = std::clamp(up[i], -limit, limit);
    out[i] = MaybeRound(g / (1 + ExpF32(-g)) * u * weight, round);
  }
  return out;
}

Pool Fold(const Pool& in, float k, float gate, bool first) {
  if (first) return {gate, 1, k};
  if (gate > in.max) {
    const float e = ExpF32(in.max - gate);
    return {gate, in.sum * e + 1, in.weighted * e + k};
  }
  const float e = ExpF32(gate - in.max);
  return {in.max, in.sum + e, in.weighted + k * e};
}

float Finish(const Pool* a, const Pool& b) {
  if (a == nullptr) return b.weighted / b.sum;
  const float max = std::max(a->max, b.max);
  const float ea = ExpF32(a->max - max);
  const float eb = ExpF32(b.max - max);
  return (a->weighted * ea + b.weighted * eb) / (a->sum * ea + b.sum * eb);
}

Floats Attend(std::span<const float> q, const std::vector<Floats>& entries, float scale,
              float sink) {
  Floats scores;
  float max = sink;
  for (const Floats& entry : entries) {
    float dot = 0;
    for (size_t i = 0; i < q.size(); ++i) dot += q[i] * entry[i];
    scores.push_back(dot * scale);
    max = std::max(max, scores.back());
  }
  for (float& score : scores) score = ExpF32(score - max);
  const float total = LaneSum(scores) + ExpF32(sink - max);
  Floats out(q.size(), 0.0f);
  for (size_t e = 0; e < entries.size(); ++e) {
    for (size_t i = 0; i < q.size(); ++i) out[i] += scores[e] * entries[e][i];
  }
  const float inverse = 1 / total;
  for (float& v : out) v *= inverse;
  return out;
}

float IndexScore(const std::vector<Floats>& q, std::span<const float> weights,
                 std::span<const float> key, bool low_precision) {
  float total = 0;
  for (size_t h = 0; h < q.size(); ++h) {
    float dot = 0;
    for (size_t i = 0; i < key.size(); ++i) dot += q[h][i] * key[i];
    total += MaybeRound(std::max(MaybeRound(dot, low_precision), 0.0f) * weights[h], low_precision);
  }
  return MaybeRound(total, low_precision);
}

std::vector<int32_t> TopK(std::span<const float> scores, int k) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return scores[size_t(a)] > scores[size_t(b)]; });
  order.resize(std::min(order.size(), size_t(k)));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace agentd::model::reference
