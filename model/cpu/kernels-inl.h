// Parts shared by the kernels, compiled once per instruction set.
#if defined(AGENTD_MODEL_CPU_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AGENTD_MODEL_CPU_KERNELS_INL_H_
#undef AGENTD_MODEL_CPU_KERNELS_INL_H_
#else
#define AGENTD_MODEL_CPU_KERNELS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "model/cpu/packed_matrix.h"
#include "model/numeric.h"

HWY_BEFORE_NAMESPACE();
namespace agentd::model {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Up to 16 lanes; a panel is kVectors of them.
using F = hn::CappedTag<float, kPanel>;
using U32 = hn::RebindToUnsigned<F>;
using I32 = hn::RebindToSigned<F>;
using V = hn::VFromD<F>;
using F1 = hn::CappedTag<float, 1>;  // for what is left over: the same arithmetic, one lane
constexpr int kLanes = static_cast<int>(hn::MaxLanes(F()));
constexpr int kVectors = kPanel / kLanes;

template <bool kExact>
HWY_INLINE V MultiplyAdd(V a, V b, V sum) {
  if constexpr (kExact) {
    return hn::MulAdd(a, b, sum);
  } else {
    return hn::Add(sum, hn::Mul(a, b));
  }
}

// acc[r][.] += sum over k < length of x[r * x_stride + k] * w[k * w_stride + .], in order of k.
template <int kRows, bool kExact>
HWY_INLINE void Accumulate(const float* HWY_RESTRICT x, size_t x_stride,
                           const float* HWY_RESTRICT w, size_t w_stride, int length,
                           V (&acc)[kRows][kVectors]) {
  const F d;
  for (int k = 0; k < length; ++k) {
    V weight[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      weight[v] = hn::LoadU(d, w + size_t(k) * w_stride + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V value = hn::Set(d, x[size_t(r) * x_stride + size_t(k)]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        acc[r][v] = MultiplyAdd<kExact>(value, weight[v], acc[r][v]);
    }
  }
}

template <class D, class VD>
HWY_INLINE VD RoundBf16Lanes(D d, VD value) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFu)), odd);
  return hn::BitCast(d, hn::And(rounded, hn::Set(du, 0xFFFF0000u)));
}

// e^x as ExpF32 of math.h computes it, lane for lane.
template <class D, class VD>
HWY_INLINE VD ExpLanes(D d, VD x_in) {
  const hn::RebindToSigned<D> di;
  const auto x = hn::Min(hn::Max(x_in, hn::Set(d, -87.0f)), hn::Set(d, 88.0f));
  const auto rounder = hn::Set(d, 12582912.0f);
  const auto n = hn::Sub(hn::Add(hn::Mul(x, hn::Set(d, 1.44269504f)), rounder), rounder);
  const auto r = hn::Sub(hn::Sub(x, hn::Mul(n, hn::Set(d, 0.693359375f))),
                         hn::Mul(n, hn::Set(d, -2.12194440e-4f)));
  auto p = hn::Set(d, 1.0f / 5040);
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.0f / 720));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.0f / 120));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.0f / 24));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.0f / 6));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 0.5f));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.0f));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  const auto result = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenElseZero(hn::Ge(x_in, hn::Set(d, -87.0f)), result);
}

// The one tree by which 16 virtual lanes are added.
HWY_INLINE float SumTree(const float* lanes) {
  float s[8];
  for (int i = 0; i < 8; ++i) s[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) s[i] = s[i] + s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// N = kLanes E4M3 codes, times 2^-8.
HWY_INLINE V DecodeE4M3(const uint8_t* HWY_RESTRICT codes) {
  const F d;
  const hn::Rebind<uint8_t, F> d8;
  const hn::Rebind<uint16_t, F> d16;
  const hn::Rebind<hwy::float16_t, F> dh;
  // E4M3's bits are those of a half with two exponent bits fewer, subnormals included.
  const auto wide = hn::PromoteTo(d16, hn::LoadU(d8, codes));
  const auto sign = hn::ShiftLeft<8>(hn::And(wide, hn::Set(d16, uint16_t{0x80})));
  const auto rest = hn::ShiftLeft<7>(hn::And(wide, hn::Set(d16, uint16_t{0x7F})));
  return hn::PromoteTo(d, hn::BitCast(dh, hn::Or(sign, rest)));
}

// E2M1 codes in the low four bits of 16-bit lanes, times 2^-14.
template <class V16>
HWY_INLINE V DecodeE2M1(V16 codes) {
  const F d;
  const hn::Rebind<uint16_t, F> d16;
  const hn::Rebind<hwy::float16_t, F> dh;
  const auto sign = hn::ShiftLeft<12>(hn::And(codes, hn::Set(d16, uint16_t{8})));
  const auto rest = hn::ShiftLeft<9>(hn::And(codes, hn::Set(d16, uint16_t{7})));
  return hn::PromoteTo(d, hn::BitCast(dh, hn::Or(sign, rest)));
}

// A panel's 16 codes at a time: the shifts run on 16-bit lanes, twice as many as F32 ones.
#if HWY_TARGET != HWY_SCALAR
using U16 = hn::CappedTag<uint16_t, (kVectors >= 2 ? 2 : 1) * kLanes>;
using I16 = hn::RebindToSigned<U16>;

// Bits of halves -> F32, in pairs of vectors.
template <class V16>
HWY_INLINE void PromoteHalves(V16 halves, V* HWY_RESTRICT out) {
  const F d;
  const hn::Rebind<hwy::float16_t, F> dh;
  if constexpr (kVectors >= 2) {
    const hn::Half<U16> half;
    out[0] = hn::PromoteTo(d, hn::BitCast(dh, hn::LowerHalf(half, halves)));
    out[1] = hn::PromoteTo(d, hn::BitCast(dh, hn::UpperHalf(half, halves)));
  } else {
    out[0] = hn::PromoteTo(d, hn::BitCast(dh, halves));
  }
}
constexpr int kPer16 = kVectors >= 2 ? 2 : 1;  // vectors of F32 for one of 16-bit lanes
#endif

// 16 E4M3 codes, times 2^-8.
HWY_INLINE void DecodePanelE4M3(const uint8_t* HWY_RESTRICT codes, V (&out)[kVectors]) {
#if HWY_TARGET == HWY_SCALAR
  for (int v = 0; v < kVectors; ++v) out[v] = DecodeE4M3(codes + v * kLanes);
#else
  const U16 du;
  const I16 di;
  const hn::Rebind<uint8_t, U16> d8;
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; v += kPer16) {
    const auto wide = hn::PromoteTo(du, hn::LoadU(d8, codes + v * kLanes));
    // To the top, then one down: the sign stays, its copy below it goes.
    const auto shifted = hn::ShiftRight<1>(hn::BitCast(di, hn::ShiftLeft<8>(wide)));
    PromoteHalves(hn::And(hn::BitCast(du, shifted), hn::Set(du, uint16_t{0xBFFF})), out + v);
  }
#endif
}

// 16 bytes of two E2M1 codes: the low nibbles and the high ones, times 2^-14.
HWY_INLINE void DecodePanelE2M1(const uint8_t* HWY_RESTRICT bytes, V (&low)[kVectors],
                                V (&high)[kVectors]) {
#if HWY_TARGET == HWY_SCALAR
  const F d;
  for (int v = 0; v < kVectors; ++v) {
    low[v] = hn::Set(d, E2M1ToFloat(bytes[v] & 15) * 0x1p-14f);
    high[v] = hn::Set(d, E2M1ToFloat(bytes[v] >> 4) * 0x1p-14f);
  }
#else
  const U16 du;
  const I16 di;
  const hn::Rebind<uint8_t, U16> d8;
  const auto mask = hn::Set(du, uint16_t{0x8E00});
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; v += kPer16) {
    const auto wide = hn::PromoteTo(du, hn::LoadU(d8, bytes + v * kLanes));
    const auto first = hn::ShiftRight<3>(hn::BitCast(di, hn::ShiftLeft<12>(wide)));
    const auto second = hn::ShiftRight<3>(hn::BitCast(di, hn::ShiftLeft<8>(wide)));
    PromoteHalves(hn::And(hn::BitCast(du, first), mask), low + v);
    PromoteHalves(hn::And(hn::BitCast(du, second), mask), high + v);
  }
#endif
}

HWY_INLINE V DecodeBf16(const uint8_t* HWY_RESTRICT bits) {
  const F d;
  const hn::Rebind<uint16_t, F> d16;
  const U32 du;
  const auto half = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(bits));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, half)));
}

// rows x 16 from 16 x rows: out[k][j] = in[j * in_stride + k], k < count (a multiple of 4 is
// fastest).
HWY_INLINE void Transpose16(const float* HWY_RESTRICT in, size_t in_stride, int count,
                            float* HWY_RESTRICT out) {
  int k = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  for (; k + 4 <= count; k += 4) {
    for (int j = 0; j < kPanel; j += 4) {
      const float* from = in + size_t(j) * in_stride + size_t(k);
      const auto a = hn::LoadU(d, from);
      const auto b = hn::LoadU(d, from + in_stride);
      const auto c = hn::LoadU(d, from + 2 * in_stride);
      const auto e = hn::LoadU(d, from + 3 * in_stride);
      const auto ab_low = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
      const auto ab_high = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
      const auto ce_low = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
      const auto ce_high = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
      float* to = out + size_t(k) * kPanel + j;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_low, ce_low)), d, to);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_low, ce_low)), d, to + kPanel);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_high, ce_high)), d, to + 2 * kPanel);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_high, ce_high)), d, to + 3 * kPanel);
    }
  }
#endif
  for (; k < count; ++k) {
    for (int j = 0; j < kPanel; ++j)
      out[size_t(k) * kPanel + size_t(j)] = in[size_t(j) * in_stride + size_t(k)];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace agentd::model
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
