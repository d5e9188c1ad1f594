// Norms, roundings, stream mixing, activation and pooling.
#include <algorithm>
#include <cmath>

#include "model/cpu/kernels.h"
#include "model/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/cpu/kernels_elementwise.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "model/cpu/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace agentd::model {
namespace HWY_NAMESPACE {

// Runs body(D, i) over [0, n): whole vectors, then single lanes.
#define AGENTD_FOR_LANES(body)                             \
  {                                                        \
    int i = 0;                                             \
    const F d_whole;                                       \
    for (; i + kLanes <= n; i += kLanes) body(d_whole, i); \
    const F1 d_one;                                        \
    for (; i < n; ++i) body(d_one, i);                     \
  }

// 16 virtual lanes of squares; with `round`, each square to BF16 first.
template <bool kRound>
float SumSquaresLanes(const float* HWY_RESTRICT x, int n) {
  const F d;
  V acc[kVectors];
  for (int v = 0; v < kVectors; ++v) acc[v] = hn::Zero(d);
  int i = 0;
  for (; i + kPanel <= n; i += kPanel) {
    for (int v = 0; v < kVectors; ++v) {
      const V value = hn::LoadU(d, x + i + v * kLanes);
      V square = hn::Mul(value, value);
      if constexpr (kRound) square = RoundBf16Lanes(d, square);
      acc[v] = hn::Add(acc[v], square);
    }
  }
  HWY_ALIGN float lanes[kPanel];
  for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[v], d, lanes + v * kLanes);
  for (int j = 0; i < n; ++i, ++j) {
    float square = x[i] * x[i];
    if constexpr (kRound) square = RoundBf16(square);
    lanes[j] += square;
  }
  return SumTree(lanes);
}

float SumSquaresTarget(const float* x, int n) { return SumSquaresLanes<false>(x, n); }

void RmsNormTarget(const float* x, const float* weight, int n, float eps, bool round, float* out) {
  const float rsqrt = 1.0f / std::sqrt(SumSquaresLanes<false>(x, n) / static_cast<float>(n) + eps);
  auto body = [&](auto d, int i) HWY_ATTR {
    auto value = hn::Mul(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, rsqrt)), hn::LoadU(d, weight + i));
    if (round) value = RoundBf16Lanes(d, value);
    hn::StoreU(value, d, out + i);
  };
  AGENTD_FOR_LANES(body)
}

void HeadNormTarget(float* q, int n, float eps, bool low_precision) {
  float factor = 0;
  if (low_precision) {
    const float mean = RoundBf16(SumSquaresLanes<true>(q, n) / static_cast<float>(n));
    factor = RoundBf16(1.0f / std::sqrt(RoundBf16(mean + eps)));
  } else {
    factor = 1.0f / std::sqrt(SumSquaresLanes<false>(q, n) / static_cast<float>(n) + eps);
  }
  auto body = [&](auto d, int i) HWY_ATTR {
    auto value = hn::Mul(hn::LoadU(d, q + i), hn::Set(d, factor));
    if (low_precision) value = RoundBf16Lanes(d, value);
    hn::StoreU(value, d, q + i);
  };
  AGENTD_FOR_LANES(body)
}

// Nearest E4M3 of |value| <= 448, ties to even, as F32.
template <class D, class VD>
HWY_INLINE VD RoundE4M3Lanes(D d, VD value) {
  const hn::RebindToUnsigned<D> du;
  const auto magnitude = hn::Abs(value);
  const auto bits = hn::BitCast(du, magnitude);
  const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1u));
  const auto rounded =
      hn::And(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFFu)), odd), hn::Set(du, 0xFFF00000u));
  // Below 2^-6 the step is 2^-9: 2^14 is where F32 has it.
  const auto big = hn::Set(d, 16384.0f);
  const auto small = hn::Sub(hn::Add(magnitude, big), big);
  const auto is_small = hn::Lt(magnitude, hn::Set(d, 0x1p-6f));
  return hn::CopySignToAbs(hn::IfThenElse(is_small, small, hn::BitCast(d, rounded)), value);
}

void QuantizeFp8Target(const float* x, int size, int block, float* out) {
  for (int begin = 0; begin < size; begin += block) {
    const int n = std::min(block, size - begin);
    const float* from = x + begin;
    float* to = out + begin;
    const F d;
    V largest = hn::Zero(d);
    int k = 0;
    for (; k + kLanes <= n; k += kLanes)
      largest = hn::Max(largest, hn::Abs(hn::LoadU(d, from + k)));
    HWY_ALIGN float lanes[kPanel];
    hn::StoreU(largest, d, lanes);
    float amax = 0;
    for (int i = 0; i < kLanes; ++i) amax = std::max(amax, lanes[i]);
    for (; k < n; ++k) amax = std::max(amax, std::fabs(from[k]));
    const int exponent = Fp8ScaleExponent(amax);
    const float scale = PowerOfTwo(exponent);
    const float inverse = PowerOfTwo(-exponent);
    auto body = [&](auto dd, int i) HWY_ATTR {
      const auto value = RoundE4M3Lanes(dd, hn::Mul(hn::LoadU(dd, from + i), hn::Set(dd, inverse)));
      hn::StoreU(hn::Mul(value, hn::Set(dd, scale)), dd, to + i);
    };
    AGENTD_FOR_LANES(body)
  }
}

void RoundToBf16Target(float* x, int n) {
  auto body = [&](auto d, int i)
                  HWY_ATTR { hn::StoreU(RoundBf16Lanes(d, hn::LoadU(d, x + i)), d, x + i); };
  AGENTD_FOR_LANES(body)
}

void MixInTarget(const float* streams, int h, int n, const float* pre, bool round, float* out) {
  auto body = [&](auto d, int i) HWY_ATTR {
    auto sum = hn::Mul(hn::Set(d, pre[0]), hn::LoadU(d, streams + i));
    for (int s = 1; s < h; ++s)
      sum = hn::Add(sum,
                    hn::Mul(hn::Set(d, pre[s]), hn::LoadU(d, streams + size_t(s) * size_t(n) + i)));
    if (round) sum = RoundBf16Lanes(d, sum);
    hn::StoreU(sum, d, out + i);
  };
  AGENTD_FOR_LANES(body)
}

// kStreams: h where it is known, so that the sums stay in registers; 0: any up to 16.
template <int kStreams>
void MixOutStreams(float* streams, int any, int n, const float* sub, const float* post,
                   const float* comb, bool round) {
  const int h = kStreams > 0 ? kStreams : any;
  auto body = [&](auto d, int i) HWY_ATTR {
    using VD = decltype(hn::Zero(d));
    VD mixed[kStreams > 0 ? kStreams : 16];
    const VD value = hn::LoadU(d, sub + i);
#pragma GCC unroll 4
    for (int j = 0; j < h; ++j) mixed[j] = hn::Mul(hn::Set(d, post[j]), value);
#pragma GCC unroll 4
    for (int s = 0; s < h; ++s) {
      const VD stream = hn::LoadU(d, streams + size_t(s) * size_t(n) + i);
#pragma GCC unroll 4
      for (int j = 0; j < h; ++j) {
        mixed[j] = hn::Add(mixed[j], hn::Mul(hn::Set(d, comb[s * h + j]), stream));
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < h; ++j) {
      if (round) mixed[j] = RoundBf16Lanes(d, mixed[j]);
      hn::StoreU(mixed[j], d, streams + size_t(j) * size_t(n) + i);
    }
  };
  AGENTD_FOR_LANES(body)
}

void MixOutTarget(float* streams, int h, int n, const float* sub, const float* post,
                  const float* comb, bool round) {
  if (h == 4) return MixOutStreams<4>(streams, h, n, sub, post, comb, round);
  MixOutStreams<0>(streams, h, n, sub, post, comb, round);
}

void SwiGluTarget(const float* gate, const float* up, int n, float weight, float limit, bool round,
                  float* out) {
  auto body = [&](auto d, int i) HWY_ATTR {
    const auto top = hn::Set(d, limit);
    const auto g = hn::Min(hn::LoadU(d, gate + i), top);
    const auto u = hn::Min(hn::Max(hn::LoadU(d, up + i), hn::Set(d, -limit)), top);
    const auto one = hn::Set(d, 1.0f);
    const auto silu = hn::Div(g, hn::Add(one, ExpLanes(d, hn::Neg(g))));
    auto value = hn::Mul(hn::Mul(silu, u), hn::Set(d, weight));
    if (round) value = RoundBf16Lanes(d, value);
    hn::StoreU(value, d, out + i);
  };
  AGENTD_FOR_LANES(body)
}

void AddTarget(const float* x, int n, float* out) {
  auto body = [&](auto d, int i) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, out + i), hn::LoadU(d, x + i)), d, out + i);
  };
  AGENTD_FOR_LANES(body)
}

void FoldPoolingTarget(const float* in, const float* k, const float* gate, const float* ape, int n,
                       size_t stride, bool first, float* out) {
  auto body = [&](auto d, int i) HWY_ATTR {
    const auto g = hn::Add(hn::LoadU(d, gate + i), hn::LoadU(d, ape + i));
    const auto value = hn::LoadU(d, k + i);
    float* sums = out + stride;
    float* weighted = out + 2 * stride;
    if (first) {
      hn::StoreU(g, d, out + i);
      hn::StoreU(hn::Set(d, 1.0f), d, sums + i);
      hn::StoreU(value, d, weighted + i);
      return;
    }
    const auto old = hn::LoadU(d, in + i);
    const auto sum = hn::LoadU(d, in + stride + i);
    const auto product = hn::LoadU(d, in + 2 * stride + i);
    const auto grows = hn::Gt(g, old);
    const auto largest = hn::IfThenElse(grows, g, old);
    const auto smallest = hn::IfThenElse(grows, old, g);
    const auto e = ExpLanes(d, hn::Sub(smallest, largest));
    const auto one = hn::Set(d, 1.0f);
    const auto keep = hn::IfThenElse(grows, e, one);
    const auto add = hn::IfThenElse(grows, one, e);
    hn::StoreU(largest, d, out + i);
    hn::StoreU(hn::Add(hn::Mul(sum, keep), add), d, sums + i);
    hn::StoreU(hn::Add(hn::Mul(product, keep), hn::Mul(value, add)), d, weighted + i);
  };
  AGENTD_FOR_LANES(body)
}

void FinishPoolingTarget(const float* a, const float* b, int n, size_t stride, float* out) {
  auto body = [&](auto d, int i) HWY_ATTR {
    auto sum = hn::LoadU(d, b + stride + i);
    auto product = hn::LoadU(d, b + 2 * stride + i);
    if (a != nullptr) {
      const auto max_a = hn::LoadU(d, a + i);
      const auto max_b = hn::LoadU(d, b + i);
      const auto largest = hn::IfThenElse(hn::Gt(max_a, max_b), max_a, max_b);
      const auto scale_a = ExpLanes(d, hn::Sub(max_a, largest));
      const auto scale_b = ExpLanes(d, hn::Sub(max_b, largest));
      sum = hn::Add(hn::Mul(hn::LoadU(d, a + stride + i), scale_a), hn::Mul(sum, scale_b));
      product =
          hn::Add(hn::Mul(hn::LoadU(d, a + 2 * stride + i), scale_a), hn::Mul(product, scale_b));
    }
    hn::StoreU(hn::Div(product, sum), d, out + i);
  };
  AGENTD_FOR_LANES(body)
}

#undef AGENTD_FOR_LANES

const char* TargetNameTarget() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace agentd::model
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentd::model {

HWY_EXPORT(SumSquaresTarget);
HWY_EXPORT(RmsNormTarget);
HWY_EXPORT(HeadNormTarget);
HWY_EXPORT(QuantizeFp8Target);
HWY_EXPORT(RoundToBf16Target);
HWY_EXPORT(MixInTarget);
HWY_EXPORT(MixOutTarget);
HWY_EXPORT(SwiGluTarget);
HWY_EXPORT(AddTarget);
HWY_EXPORT(FoldPoolingTarget);
HWY_EXPORT(FinishPoolingTarget);
HWY_EXPORT(TargetNameTarget);

float SumSquares(const float* x, int n) { return HWY_DYNAMIC_DISPATCH(SumSquaresTarget)(x, n); }
void RmsNorm(const float* x, const float* weight, int n, float eps, bool round, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormTarget)(x, weight, n, eps, round, out);
}
void HeadNorm(float* q, int n, float eps, bool low_precision) {
  HWY_DYNAMIC_DISPATCH(HeadNormTarget)(q, n, eps, low_precision);
}
void QuantizeFp8(const float* x, int n, int block, float* out) {
  HWY_DYNAMIC_DISPATCH(QuantizeFp8Target)(x, n, block, out);
}
void RoundToBf16(float* x, int n) { HWY_DYNAMIC_DISPATCH(RoundToBf16Target)(x, n); }
void MixIn(const float* streams, int h, int d, const float* pre, bool round, float* out) {
  HWY_DYNAMIC_DISPATCH(MixInTarget)(streams, h, d, pre, round, out);
}
void MixOut(float* streams, int h, int d, const float* sub, const float* post, const float* comb,
            bool round) {
  HWY_DYNAMIC_DISPATCH(MixOutTarget)(streams, h, d, sub, post, comb, round);
}
void SwiGlu(const float* gate, const float* up, int n, float weight, float limit, bool round,
            float* out) {
  HWY_DYNAMIC_DISPATCH(SwiGluTarget)(gate, up, n, weight, limit, round, out);
}
void Add(const float* x, int n, float* out) { HWY_DYNAMIC_DISPATCH(AddTarget)(x, n, out); }
void FoldPooling(const float* in, const float* k, const float* gate, const float* ape, int n,
                 size_t stride, bool first, float* out) {
  HWY_DYNAMIC_DISPATCH(FoldPoolingTarget)(in, k, gate, ape, n, stride, first, out);
}
void FinishPooling(const float* a, const float* b, int n, size_t stride, float* out) {
  HWY_DYNAMIC_DISPATCH(FinishPoolingTarget)(a, b, n, stride, out);
}
const char* SimdTargetName() { return HWY_DYNAMIC_DISPATCH(TargetNameTarget)(); }
std::vector<int64_t> SimdTargets() {
  std::vector<int64_t> out;
  for (int64_t targets = hwy::SupportedTargets() & HWY_TARGETS; targets != 0;
       targets &= targets - 1) {
    out.push_back(targets & -targets);
  }
  return out;
}
void ForceSimdTarget(int64_t target) { hwy::SetSupportedTargetsForTest(target); }

}  // namespace agentd::model
#endif  // HWY_ONCE
