// Number formats, entry bytes and elementary functions: lossless where they must be, and near the
// C library's.
#include "model/numeric.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "model/cpu/test_util.h"
#include "model/kv_format.h"
#include "model/math.h"

namespace agentd::model {
namespace {

TEST(Numeric, EveryCodeSurvives) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7F) == 0x7F) continue;
    EXPECT_EQ(FloatToE4M3(E4M3ToFloat(uint8_t(code))), code);
  }
  for (int code = 0; code < 16; ++code) EXPECT_EQ(FloatToE2M1(E2M1ToFloat(uint8_t(code))), code);
  // Halfway values go to the even code.
  for (int code = 0; code < 0x7E; ++code) {
    const float middle = (E4M3ToFloat(uint8_t(code)) + E4M3ToFloat(uint8_t(code + 1))) / 2;
    EXPECT_EQ(FloatToE4M3(middle), code + code % 2) << middle;
  }
  for (int code = 0; code < 7; ++code) {
    const float middle = (E2M1ToFloat(uint8_t(code)) + E2M1ToFloat(uint8_t(code + 1))) / 2;
    EXPECT_EQ(FloatToE2M1(middle), code + code % 2) << middle;
  }
}

TEST(Numeric, StorageIsLossless) {
  std::mt19937_64 random(Seed());
  std::normal_distribution<float> normal;
  for (int round = 0; round < 200; ++round) {
    const EntryShape shape = MakeEntryShape(512, 64, true);
    EXPECT_EQ(shape.bytes, 584);
    EXPECT_EQ(IndexKeyBytes(128, true), 68);
    std::vector<float> values(512);
    for (float& v : values)
      v = RoundBf16(normal(random) * std::exp2(float(int(random() % 30) - 15)));
    std::vector<uint8_t> entry(584), again(584);
    EncodeEntry(shape, values.data(), entry.data());
    DecodeEntry(shape, entry.data(), values.data());
    EncodeEntry(shape, values.data(), again.data());
    std::vector<float> second(512);
    DecodeEntry(shape, again.data(), second.data());
    ASSERT_EQ(values, second);
    std::vector<float> key(values.begin(), values.begin() + 128), key_again(128);
    std::vector<uint8_t> bytes(68);
    HadamardBf16(key.data(), 128);
    EncodeIndexKey(128, true, key.data(), bytes.data());
    QuantizeFp4(key.data(), 128);
    DecodeIndexKey(128, true, bytes.data(), key_again.data());
    ASSERT_EQ(key, key_again);
  }
}

TEST(Math, AgreesWithTheLibrary) {
  // What overflowed upstream stays visible.
  EXPECT_TRUE(std::isnan(Exp(std::nan(""))));
  std::mt19937_64 random(Seed());
  auto uniform = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  for (int i = 0; i < 20000; ++i) {
    const double x = uniform(-700, 700);
    EXPECT_NEAR(Exp(x) / std::exp(x), 1, 1e-14) << x;
    const double y = std::exp(uniform(-300, 300));
    EXPECT_NEAR(Log(y), std::log(y), 1e-14 * std::max(1.0, std::fabs(std::log(y)))) << y;
    const double z = uniform(-1, 1) * (i % 2 == 0 ? 10 : 1048576);
    double s = 0;
    double c = 0;
    SinCos(z, &s, &c);
    EXPECT_NEAR(s, std::sin(z), 1e-15 * 8) << z;
    EXPECT_NEAR(c, std::cos(z), 1e-15 * 8) << z;
    const float f = float(uniform(-86, 87));
    EXPECT_NEAR(ExpF32(f) / std::exp(double(f)), 1, 3e-7) << f;
    const float g = float(uniform(-30, 30));
    EXPECT_NEAR(Softplus(g), std::log1p(std::exp(double(g))),
                1e-7 * std::max(1.0, double(std::fabs(g))))
        << g;
  }
  EXPECT_EQ(ExpF32(-std::numeric_limits<float>::infinity()), 0);
}

}  // namespace
}  // namespace agentd::model
