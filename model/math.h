// Elementary functions with one defined result everywhere: IEEE add, multiply, divide and square
// root only, no libm (whose last bits differ between machines). Double precision; a few ulp. Device
// code may include this too, as numeric.h.
#ifndef AGENTD_MODEL_MATH_H_
#define AGENTD_MODEL_MATH_H_

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "model/numeric.h"

namespace agentd::model {

struct Config;

namespace math_internal {

constexpr double kLn2High = 0x1.62e42feep-1;       // 33 bits: n * it is exact for |n| < 2^20
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;  // ln 2 - kLn2High
constexpr double kRounder = 0x1.8p52;              // x + it - it rounds to an integer

// x / divisor for a small whole number that the compiler knows, rounded as a division. On a device
// by a multiplication and its remainder, as a division is a long branch there: q is x / divisor
// within 2 ulp, the remainder x - divisor * q is exact, and a quotient of a double by a small whole
// number is never so near the middle of two doubles that the last product's error could matter.
AGENTD_HOST_DEVICE inline double Over(double x, int divisor) {
#if defined(__CUDA_ARCH__)
  const double reciprocal = 1.0 / divisor;
  const double q = x * reciprocal;
  if ((divisor & (divisor - 1)) == 0) return q;
  return __fma_rn(__fma_rn(-double(divisor), q, x), reciprocal, q);
#else
  return x / divisor;
#endif
}

}  // namespace math_internal

// 0 below -708, largest finite above 709; NaN of NaN.
AGENTD_HOST_DEVICE inline double Exp(double x) {
  if (!(x >= -708)) return x != x ? x : 0;
  x = std::min(x, 709.0);
  const double n = (x * 0x1.71547652b82fep0 + math_internal::kRounder) - math_internal::kRounder;
  const double r = (x - n * math_internal::kLn2High) - n * math_internal::kLn2Low;
  double sum = 1;
  for (int i = 14; i >= 1; --i) sum = 1 + math_internal::Over(sum * r, i);
  const auto exponent = static_cast<int64_t>(n);
  // In two steps: 2^1024 is no double.
  const double half = std::bit_cast<double>(static_cast<uint64_t>(exponent / 2 + 1023) << 52);
  const double rest =
      std::bit_cast<double>(static_cast<uint64_t>(exponent - exponent / 2 + 1023) << 52);
  return sum * half * rest;
}

// x positive and normal.
AGENTD_HOST_DEVICE inline double Log(double x) {
  uint64_t bits = std::bit_cast<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  // log m = 2 atanh(s), |s| <= 0.1716: the series to s^23 leaves 1e-19.
  const double s = (m - 1) / (m + 1);
  const double s2 = s * s;
  double sum = 0;
  for (int i = 23; i >= 3; i -= 2) sum = (sum + 1.0 / i) * s2;
  const double n = static_cast<double>(exponent);
  return n * math_internal::kLn2High + (2 * s + (2 * s * sum + n * math_internal::kLn2Low));
}

// |x| <= 2^26.
AGENTD_HOST_DEVICE inline void SinCos(double x, double* sine, double* cosine) {
  // pi/2 in three parts of 33 bits: n * part is exact for |n| < 2^20, and the rest is below 2^-99.
  constexpr double kPart1 = 0x1.921fb544p+0;
  constexpr double kPart2 = 0x1.0b4611a6p-34;
  constexpr double kPart3 = 0x1.3198a2e037073p-69;
  const double n = (x * 0x1.45f306dc9c883p-1 + math_internal::kRounder) - math_internal::kRounder;
  const double r = ((x - n * kPart1) - n * kPart2) - n * kPart3;
  const double r2 = r * r;
  double s = 1;
  for (int i = 16; i >= 2; i -= 2) s = 1 - math_internal::Over(s * r2, i * (i + 1));
  s *= r;
  double c = 1;
  for (int i = 17; i >= 1; i -= 2) c = 1 - math_internal::Over(c * r2, i * (i + 1));
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      *sine = s, *cosine = c;
      break;
    case 1:
      *sine = c, *cosine = -s;
      break;
    case 2:
      *sine = -s, *cosine = -c;
      break;
    default:
      *sine = -c, *cosine = s;
      break;
  }
}

// log(1 + e^x), as the published code computes it: x itself above 20.
AGENTD_HOST_DEVICE inline float Softplus(float x) {
  if (x > 20) return x;
  const double e = Exp(x);
  // log(1 + e) loses e's last bits below 2^-20; the first two terms of the series are then exact to
  // F32.
  return static_cast<float>(e < 1e-6 ? e - 0.5 * e * e : Log(1 + e));
}

// F32 e^x: the same arithmetic as the SIMD kernels' exponential, lane for lane.
AGENTD_HOST_DEVICE inline float ExpF32(float x) {
  // e^x = 2^n e^r with |r| <= ln(2)/2; Taylor to r^7 leaves 1e-8 relative. Below -87 it is 0.
  if (!(x >= -87.0f)) return 0;
  x = std::min(x, 88.0f);
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

// 1 / (1 + e^-x) in F32 arithmetic throughout.
AGENTD_HOST_DEVICE inline float Sigmoid(float x) { return 1.0f / (1.0f + ExpF32(-x)); }

// Rotary frequencies, one for each of the r/2 pairs.
std::vector<double> RopeFrequencies(const Config& config, bool compressed);
// cos and sin of position * frequency, as F32, for each pair.
void RopeTable(const std::vector<double>& frequencies, double position, float* cosine, float* sine);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_MATH_H_
