#include "model/json_python.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "base/status.h"

namespace agentd::model {
namespace {

using ::testing::HasSubstr;

std::string Reprint(std::string_view json) {
  const auto parsed = PythonJson::Parse(json);
  return parsed.ok() ? parsed->Dump() : "error: " + Text(parsed.status());
}

// The expectations are what CPython prints for json.dumps(json.loads(text), ensure_ascii=False).
TEST(PythonJsonTest, PrintsNumbersLikePython) {
  const std::pair<const char*, const char*> cases[] = {
      {"0", "0"},
      {"-0", "0"},
      {"-0.0", "-0.0"},
      {"0e5", "0.0"},
      {"1e-7", "1e-07"},
      {"1E-5", "1e-05"},
      {"0.0001", "0.0001"},
      {"0.00012345", "0.00012345"},
      {"1e15", "1000000000000000.0"},
      {"1e16", "1e+16"},
      {"123456789012345678", "123456789012345678"},
      {"123456789012345678.0", "1.2345678901234568e+17"},
      {"9007199254740993.0", "9007199254740992.0"},
      {"12345678901234567890123456789012345678901234567890",
       "12345678901234567890123456789012345678901234567890"},
      {"2.50", "2.5"},
      {"1e22", "1e+22"},
      {"1.5e300", "1.5e+300"},
      {"1e400", "Infinity"},
      {"-1e400", "-Infinity"},
      {"1e-400", "0.0"},
      {"-1e-400", "-0.0"},
      {"5e-324", "5e-324"},
      {"1e99999999999999999999", "Infinity"},
      {"1e-99999999999999999999", "0.0"},
      {"0e99999999999999999999", "0.0"},
      {"NaN", "NaN"},
      {"-Infinity", "-Infinity"},
      {"0.1", "0.1"},
      {"100.0", "100.0"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"}};
  for (const auto& [in, out] : cases) EXPECT_EQ(Reprint(in), out) << in;
}

TEST(PythonJsonTest, PrintsStructuresAndStringsLikePython) {
  EXPECT_EQ(Reprint("{\"b\":[1,{ }],\"a\" :null , \"\":[]}"),
            "{\"b\": [1, {}], \"a\": null, \"\": []}");
  EXPECT_EQ(Reprint("{\"a\":1,\"b\":2,\"a\":3}"), "{\"a\": 3, \"b\": 2}");
  EXPECT_EQ(Reprint(R"("\u00e9\ud83d\ude00\/\u0001\u007f\b\f\n\r\t\"\\")"),
            "\"é😀/\\u0001\x7F\\b\\f\\n\\r\\t\\\"\\\\\"");
  EXPECT_EQ(Reprint(R"("\ud800x\udc00")"), "\"\uFFFDx\uFFFD\"");
  EXPECT_EQ(Reprint(R"("\ud800\u0041")"), "\"\uFFFDA\"");
  EXPECT_EQ(Reprint(" \n\t\r true "), "true");
}

TEST(PythonJsonTest, RefusesWhatPythonRefuses) {
  for (const char* bad : {"",
                          " ",
                          "{",
                          "[1,]",
                          "{\"a\":1,}",
                          "{a:1}",
                          "{\"a\" 1}",
                          "01",
                          "1.",
                          ".5",
                          "+1",
                          "-",
                          "1e",
                          "tru",
                          "\"",
                          "\"\\x\"",
                          "\"\\u12g4\"",
                          "\"\\u12\"",
                          "\"a\nb\"",
                          "[1 2]",
                          "1 2",
                          "'a'",
                          "\xEF\xBB\xBF"
                          "1",
                          "-NaN"}) {
    EXPECT_THAT(Reprint(bad), HasSubstr("error: JSON")) << bad;
  }
  EXPECT_THAT(Reprint("\"\xFF\""), HasSubstr("UTF-8 at byte 1"));
}

TEST(PythonJsonTest, DeepNestingIsAnErrorNotACrash) {
  EXPECT_THAT(Reprint(std::string(1'000'000, '[')), HasSubstr("nested too deeply"));
  nlohmann::ordered_json deep;
  for (int i = 0; i < 100'000; ++i) deep = nlohmann::ordered_json::array({std::move(deep)});
  EXPECT_FALSE(PythonJson::From(deep).ok());
  EXPECT_EQ(Reprint(std::string(400, '[') + std::string(400, ']')).size(), 800u);
}

TEST(PythonJsonTest, AnyDoubleReadsBackAsItself) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 20000; ++i) {
    double value = std::bit_cast<double>(random());
    if (i % 2)
      value = static_cast<double>(static_cast<int64_t>(random())) /
              static_cast<double>(1 + random() % 1000000000);
    if (!std::isfinite(value)) continue;
    const std::string text = PythonFloat(value);
    EXPECT_EQ(std::bit_cast<uint64_t>(std::strtod(text.c_str(), nullptr)),
              std::bit_cast<uint64_t>(value))
        << text;
    EXPECT_NE(text.find_first_of(".e"), std::string::npos) << text;
    EXPECT_EQ(Reprint(text), text);
  }
}

TEST(PythonJsonTest, FromParsedJson) {
  const auto json = nlohmann::ordered_json::parse(
      R"({"z":[18446744073709551615,-5,0.5,1e-7,true,null],"a":"é"})");
  EXPECT_EQ(PythonJson::From(json)->Dump(),
            R"({"z": [18446744073709551615, -5, 0.5, 1e-07, true, null], "a": "é"})");
}

}  // namespace
}  // namespace agentd::model
