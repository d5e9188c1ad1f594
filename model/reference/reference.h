// The engine's operations in plain scalar C++, in the order that model/cpu/kernels.h promises: what
// the SIMD kernels must reproduce bit for bit, on every instruction set. For tests; nothing here is
// fast.
#ifndef AGENTD_MODEL_REFERENCE_REFERENCE_H_
#define AGENTD_MODEL_REFERENCE_REFERENCE_H_

#include <cstdint>
#include <span>
#include <vector>

namespace agentd::model::reference {

using Floats = std::vector<float>;

// A sum of 16 virtual lanes, lane i over elements i, i+16, ...
float LaneSum(std::span<const float> values);

// One output of a product: 8 slices, each in order, added by one tree. weight and x: [columns].
float Dot(std::span<const float> weight, std::span<const float> x);

Floats RmsNorm(std::span<const float> x, std::span<const float> weight, float eps, bool round);
Floats HeadNorm(std::span<const float> q, float eps, bool low_precision);
Floats QuantizeFp8(std::span<const float> x, int block);
// streams [h, d]
Floats MixIn(std::span<const float> streams, std::span<const float> pre, bool round);
Floats MixOut(std::span<const float> streams, std::span<const float> sub,
              std::span<const float> post, std::span<const float> comb, bool round);
Floats SwiGlu(std::span<const float> gate, std::span<const float> up, float weight, float limit,
              bool round);

struct Pool {  // one channel of a pooling block
  float max = 0;
  float sum = 0;
  float weighted = 0;
};
Pool Fold(const Pool& in, float k, float gate, bool first);
float Finish(const Pool* a, const Pool& b);

// Attention of one head over decoded entries [n][c].
Floats Attend(std::span<const float> q, const std::vector<Floats>& entries, float scale,
              float sink);

// One indexer score; q [heads][channels].
float IndexScore(const std::vector<Floats>& q, std::span<const float> weights,
                 std::span<const float> key, bool low_precision);

// Indices of the k best, ascending; of equals the lower index.
std::vector<int32_t> TopK(std::span<const float> scores, int k);

}  // namespace agentd::model::reference

#endif  // AGENTD_MODEL_REFERENCE_REFERENCE_H_
