// exp for sampling: double arithmetic in one fixed order and no libm, so that it gives the same
// bits on every machine.
#ifndef AGENTD_MODEL_SAMPLER_EXP_H_
#define AGENTD_MODEL_SAMPLER_EXP_H_

#include <bit>
#include <cstdint>

namespace agentd::model {

// exp(x) for x <= 0, -infinity included, within 2 units in the last place; 0 below -708, where
// doubles turn subnormal.
inline double ExpOfNegative(double x) {
  // exp(x) = 2^k exp(r), |r| <= ln(2)/2. The first part of ln 2 has 32 bits, so that k times it is
  // exact. Without branches, so that compilers can run several at once.
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  // Added to a small number, it leaves the nearest integer in the low bits.
  constexpr double kRound = 0x1.8p52;
  const double clamped = x < -708 ? -708 : x;
  const double rounded = clamped * kLog2E + kRound;
  const double k = rounded - kRound;
  const double r = (clamped - k * kLn2High) - k * kLn2Low;
  // Taylor's series: the first term left out, r^14/14!, is below 5e-18.
  constexpr double kCoefficients[] = {1.0 / 6227020800,
                                      1.0 / 479001600,
                                      1.0 / 39916800,
                                      1.0 / 3628800,
                                      1.0 / 362880,
                                      1.0 / 40320,
                                      1.0 / 5040,
                                      1.0 / 720,
                                      1.0 / 120,
                                      1.0 / 24,
                                      1.0 / 6,
                                      0.5,
                                      1.0};
  double sum = kCoefficients[0];
  for (int i = 1; i < 13; ++i) sum = sum * r + kCoefficients[i];
  sum = sum * r + 1.0;
  const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(rounded) + 1023) << 52);
  return x < -708 ? 0 : sum * power;
}

}  // namespace agentd::model

#endif  // AGENTD_MODEL_SAMPLER_EXP_H_
