// Number formats of V4's checkpoints and caches, one value at a time. Every kernel must agree with
// these bit for bit. Device code may include this too (--expt-relaxed-constexpr, -fmad=false): so
// no library functions that are not constexpr.
#ifndef AGENTD_MODEL_NUMERIC_H_
#define AGENTD_MODEL_NUMERIC_H_

#include <algorithm>
#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define AGENTD_HOST_DEVICE __host__ __device__
#else
#define AGENTD_HOST_DEVICE
#endif

namespace agentd::model {

// BF16: the upper half of an F32.
AGENTD_HOST_DEVICE inline float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// Nearest, ties to even. Not for NaN.
AGENTD_HOST_DEVICE inline uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
AGENTD_HOST_DEVICE inline float RoundBf16(float value) { return Bf16ToFloat(FloatToBf16(value)); }

// E8M0: byte b means 2^(b-127); 255 is not a number and never loaded.
AGENTD_HOST_DEVICE inline float E8M0ToFloat(uint8_t byte) {
  return std::bit_cast<float>(std::max(uint32_t{byte} << 23, 0x00400000u));
}

// E4M3 (fn): sign, 4 exponent bits of bias 7, 3 mantissa bits; largest 448. 0x7F and 0xFF are not
// numbers and never loaded.
AGENTD_HOST_DEVICE inline float E4M3ToFloat(uint8_t code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const float magnitude =
      exponent == 0
          ? static_cast<float>(mantissa) * 0x1p-9f
          : std::bit_cast<float>(uint32_t(exponent + 120) << 23 | uint32_t(mantissa) << 20);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// Nearest, ties to even; |value| <= 464 (what rounds to 448 at most).
AGENTD_HOST_DEVICE inline uint8_t FloatToE4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude < 0x3C800000u) {  // below 2^-6: multiples of 2^-9
    const float steps = std::bit_cast<float>(magnitude) * 0x1p9f;
    return static_cast<uint8_t>(sign | static_cast<uint8_t>((steps + 0x1p23f) - 0x1p23f));
  }
  const uint32_t rounded = magnitude + 0x7FFFFu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | std::min<uint32_t>((rounded >> 20) - (120u << 3), 0x7E));
}

// E2M1: 0, .5, 1, 1.5, 2, 3, 4, 6; bit 3 the sign.
AGENTD_HOST_DEVICE inline float E2M1ToFloat(uint8_t code) {
  constexpr float kValues[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return (code & 8) != 0 ? -kValues[code & 7] : kValues[code & 7];
}

// Nearest, ties to the even code; |value| <= 6. (NaN, which only numbers that overflowed give,
// becomes some number.)
AGENTD_HOST_DEVICE inline uint8_t FloatToE2M1(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = bits >> 31 != 0 ? 8 : 0;
  const float a = std::bit_cast<float>(bits & 0x7FFFFFFFu);
  // a + 2^23 - 2^23 rounds to an integer, ties to even.
  if (a < 2) return sign | static_cast<uint8_t>((a * 2 + 0x1p23f) - 0x1p23f);
  if (a < 4) return sign | static_cast<uint8_t>(2 + ((a + 0x1p23f) - 0x1p23f));
  return sign | (a > 5 ? 7 : 6);
}

// 2^ceil(log2(value)) of a positive normal value, as its exponent.
AGENTD_HOST_DEVICE inline int CeilLog2(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7FFFFFu) != 0 ? 1 : 0);
}
AGENTD_HOST_DEVICE inline float PowerOfTwo(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

// Scales of spec section 4: 2^ceil(log2(max(amax, 1e-4) / 448)) and 2^ceil(log2(max(amax, 6 *
// 2^-126) / 6)).
AGENTD_HOST_DEVICE inline int Fp8ScaleExponent(float amax) {
  return CeilLog2(std::max(amax, 1e-4f) / 448.0f);
}
AGENTD_HOST_DEVICE inline int Fp4ScaleExponent(float amax) {
  return CeilLog2(std::max(amax, 0x1.8p-124f) / 6.0f);
}

AGENTD_HOST_DEVICE inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
AGENTD_HOST_DEVICE inline int64_t RoundUp(int64_t a, int64_t b) { return DivideUp(a, b) * b; }

}  // namespace agentd::model

#endif  // AGENTD_MODEL_NUMERIC_H_
