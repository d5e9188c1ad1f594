#include "model/kv_format.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/numeric.h"

namespace agentd::model {
namespace {

constexpr int kEntryBlock = 64;
constexpr int kKeyBlock = 32;

float LargestMagnitude(const float* values, int n) {
  float amax = 0;
  for (int i = 0; i < n; ++i) amax = std::max(amax, std::fabs(values[i]));
  return amax;
}

int ScalesOffset(const EntryShape& shape) { return shape.channels - shape.rotary; }
int RotaryOffset(const EntryShape& shape) {
  const int plain = shape.channels - shape.rotary;
  return int(RoundUp(plain + DivideUp(plain, kEntryBlock), 8));
}

bool AllNumbers(const uint8_t* floats, int n) {
  bool ok = true;
  for (int i = 0; i < n; ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, floats + 4 * i, 4);
    ok &= (bits & 0x7FFFFFFFu) <= 0x7F800000u;
  }
  return ok;
}

}  // namespace

EntryShape MakeEntryShape(int channels, int rotary, bool low_precision) {
  EntryShape shape{.channels = channels, .rotary = rotary, .low_precision = low_precision};
  shape.bytes = low_precision ? RotaryOffset(shape) + 2 * rotary : 4 * channels;
  return shape;
}

int IndexKeyBytes(int channels, bool low_precision) {
  return low_precision ? channels / 2 + int(DivideUp(channels, kKeyBlock)) : 4 * channels;
}

void EncodeEntry(const EntryShape& shape, const float* values, uint8_t* entry) {
  if (!shape.low_precision) {
    std::memcpy(entry, values, size_t(shape.bytes));
    return;
  }
  const int plain = shape.channels - shape.rotary;
  uint8_t* scales = entry + ScalesOffset(shape);
  std::memset(scales, 0, size_t(RotaryOffset(shape) - ScalesOffset(shape)));
  for (int begin = 0; begin < plain; begin += kEntryBlock) {
    const int count = std::min(kEntryBlock, plain - begin);
    const int exponent = Fp8ScaleExponent(LargestMagnitude(values + begin, count));
    const float inverse = PowerOfTwo(-exponent);
    for (int i = begin; i < begin + count; ++i) entry[i] = FloatToE4M3(values[i] * inverse);
    scales[begin / kEntryBlock] = static_cast<uint8_t>(exponent + 127);
  }
  uint8_t* rotary = entry + RotaryOffset(shape);
  for (int i = 0; i < shape.rotary; ++i) {
    const uint16_t bits = FloatToBf16(values[plain + i]);
    std::memcpy(rotary + 2 * i, &bits, 2);
  }
}

void DecodeEntry(const EntryShape& shape, const uint8_t* entry, float* values) {
  if (!shape.low_precision) {
    std::memcpy(values, entry, size_t(shape.bytes));
    return;
  }
  const int plain = shape.channels - shape.rotary;
  const uint8_t* scales = entry + ScalesOffset(shape);
  for (int i = 0; i < plain; ++i)
    values[i] = E4M3ToFloat(entry[i]) * E8M0ToFloat(scales[i / kEntryBlock]);
  const uint8_t* rotary = entry + RotaryOffset(shape);
  for (int i = 0; i < shape.rotary; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, rotary + 2 * i, 2);
    values[plain + i] = Bf16ToFloat(bits);
  }
}

bool IsEntry(const EntryShape& shape, const uint8_t* entry) {
  if (!shape.low_precision) return AllNumbers(entry, shape.channels);
  const int plain = shape.channels - shape.rotary;
  bool ok = true;
  for (int i = 0; i < plain; ++i) ok &= (entry[i] & 0x7F) != 0x7F;
  const int padding = plain + int(DivideUp(plain, kEntryBlock));
  for (int i = plain; i < padding; ++i) ok &= entry[i] != 0xFF;
  for (int i = padding; i < RotaryOffset(shape); ++i) ok &= entry[i] == 0;
  for (int i = 0; i < shape.rotary; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, entry + RotaryOffset(shape) + 2 * i, 2);
    ok &= (bits & 0x7FFF) <= 0x7F80;
  }
  return ok;
}

bool IsIndexKey(int channels, bool low_precision, const uint8_t* key) {
  if (!low_precision) return AllNumbers(key, channels);
  bool ok = true;  // every code is a number
  for (int i = channels / 2; i < IndexKeyBytes(channels, true); ++i) ok &= key[i] != 0xFF;
  return ok;
}

void EncodeIndexKey(int channels, bool low_precision, const float* values, uint8_t* key) {
  if (!low_precision) {
    std::memcpy(key, values, size_t(channels) * 4);
    return;
  }
  for (int begin = 0; begin < channels; begin += kKeyBlock) {
    const int count = std::min(kKeyBlock, channels - begin);
    const int exponent = Fp4ScaleExponent(LargestMagnitude(values + begin, count));
    const float inverse = PowerOfTwo(-exponent);
    for (int i = begin; i < begin + count; i += 2) {
      key[i / 2] = static_cast<uint8_t>(FloatToE2M1(values[i] * inverse) |
                                        FloatToE2M1(values[i + 1] * inverse) << 4);
    }
    key[channels / 2 + begin / kKeyBlock] = static_cast<uint8_t>(exponent + 127);
  }
}

void DecodeIndexKey(int channels, bool low_precision, const uint8_t* key, float* values) {
  if (!low_precision) {
    std::memcpy(values, key, size_t(channels) * 4);
    return;
  }
  const uint8_t* scales = key + channels / 2;
  for (int i = 0; i < channels; ++i) {
    const int code = key[i / 2] >> (i % 2 * 4) & 15;
    values[i] = E2M1ToFloat(static_cast<uint8_t>(code)) * E8M0ToFloat(scales[i / kKeyBlock]);
  }
}

void HadamardBf16(float* values, int n) {
  for (int step = 1; step < n; step *= 2) {
    for (int i = 0; i < n; i += 2 * step) {
      for (int j = i; j < i + step; ++j) {
        const float a = values[j];
        const float b = values[j + step];
        values[j] = a + b;
        values[j + step] = a - b;
      }
    }
  }
  const float scale = static_cast<float>(1 / std::sqrt(double(n)));
  for (int i = 0; i < n; ++i) values[i] = RoundBf16(values[i] * scale);
}

void QuantizeFp4(float* values, int n) {
  for (int begin = 0; begin < n; begin += kKeyBlock) {
    const int count = std::min(kKeyBlock, n - begin);
    const int exponent = Fp4ScaleExponent(LargestMagnitude(values + begin, count));
    const float scale = PowerOfTwo(exponent);
    const float inverse = PowerOfTwo(-exponent);
    for (int i = begin; i < begin + count; ++i)
      values[i] = E2M1ToFloat(FloatToE2M1(values[i] * inverse)) * scale;
  }
}

}  // namespace agentd::model
