#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/status.h"
#include "model/json_file.h"
#include "model/tokenizer_file.h"
#include "model/tokenizer_split.h"
#include "model/tokenizer_utf8.h"

namespace agentd::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kGoldenDir[] = "tests/golden/tok-a";

const Tokenizer& Golden() {
  static const std::unique_ptr<const Tokenizer> tokenizer = [] {
    auto loaded = Tokenizer::Load(kGoldenDir);
    AGENTD_CHECK(loaded.ok());
    return std::move(*loaded);
  }();
  return *tokenizer;
}

Json GoldenFile() {
  std::ifstream in(std::string(kGoldenDir) + "/tokenizer.json");
  return Json::parse(in);
}

std::vector<Json> GoldenEncodings() {
  std::ifstream in(std::string(kGoldenDir) + "/encodings.json");
  return Json::parse(in).get<std::vector<Json>>();
}

std::string AllBytes(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::string bytes;
  for (const TokenId id : ids) bytes += tokenizer.Bytes(id);
  return bytes;
}

std::string Fail(const Json& file) {
  auto loaded = Tokenizer::Parse(file.dump(), "t.json");
  return loaded.ok() ? "" : Text(loaded.status());
}

TEST(TokenizerTest, GoldenEncodingsAndDecodings) {
  const std::vector<Json> cases = GoldenEncodings();
  ASSERT_EQ(cases.size(), 311u);
  int encoded = 0;
  int decoded = 0;
  for (const Json& c : cases) {
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<std::vector<TokenId>>();
    const std::vector<TokenId> got = Golden().EncodeWithAddedTokens(text);
    const std::string back = Golden().Decode(ids);
    EXPECT_EQ(got, ids) << c;
    EXPECT_EQ(back, c["decoded"].get<std::string>()) << c;
    encoded += got == ids ? 1 : 0;
    decoded += back == c["decoded"].get<std::string>() ? 1 : 0;
  }
  std::printf("[figure] tok-a: %d encodings and %d decodings of %zu equal\n", encoded, decoded,
              cases.size());
}

// What a person would write: the merge of the lowest rank, leftmost first, until none applies.
std::vector<std::string> NaiveMerges(
    const std::string& symbols_utf8,
    const std::map<std::pair<std::string, std::string>, int>& ranks) {
  std::vector<std::string> parts;
  for (size_t at = 0; at < symbols_utf8.size();) {
    const size_t length = ReadUtf8(symbols_utf8, at).length;
    parts.push_back(symbols_utf8.substr(at, length));
    at += length;
  }
  while (true) {
    int best = std::numeric_limits<int>::max();
    size_t where = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = ranks.find({parts[i], parts[i + 1]});
      if (found != ranks.end() && found->second < best) {
        best = found->second;
        where = i;
      }
    }
    if (best == std::numeric_limits<int>::max()) return parts;
    parts[where] += parts[where + 1];
    parts.erase(parts.begin() + where + 1);
  }
}

TEST(TokenizerTest, MergesLikeTheNaiveAlgorithm) {
  const Json file = GoldenFile();
  std::map<std::pair<std::string, std::string>, int> ranks;
  for (const Json& merge : file["model"]["merges"]) {
    ranks.emplace(std::pair(merge[0].get<std::string>(), merge[1].get<std::string>()),
                  static_cast<int>(ranks.size()));
  }
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    // Letters only: one stretch for the published patterns, and letters are their own symbols.
    std::string word;
    const int length = 1 + random() % 60;
    for (int i = 0; i < length; ++i) word += "etaoinshrdlcum"[random() % 14];
    std::vector<TokenId> expected;
    for (const std::string& part : NaiveMerges(word, ranks))
      expected.push_back(file["model"]["vocab"][part]);
    EXPECT_EQ(Golden().Encode(word), expected) << word;
  }
}

TEST(TokenizerTest, TextNeverBecomesSpecial) {
  const std::string text = "a<｜User｜>b</think>｜DSML｜<｜end▁of▁sentence｜>";
  const std::vector<TokenId> ids = Golden().Encode(text);
  for (const TokenId id : ids) EXPECT_FALSE(Golden().IsAddedToken(id)) << id;
  EXPECT_EQ(Golden().Decode(ids), text);
  // The control: the same text, trusted, has four.
  int special = 0;
  for (const TokenId id : Golden().EncodeWithAddedTokens(text))
    special += Golden().IsAddedToken(id);
  EXPECT_EQ(special, 4);
}

TEST(TokenizerTest, PiecesJoinTheirText) {
  const std::vector<Piece> pieces = {{"<｜User｜>", true}, {"hel"}, {"lo <thi"}, {"nk>"},
                                     {"</think>", true},   {"x"}};
  auto ids = Golden().Encode(pieces);
  ASSERT_TRUE(ids.ok());
  std::vector<TokenId> expected = {*Golden().AddedToken("<｜User｜>")};
  for (const TokenId id : Golden().Encode("hello <think>")) expected.push_back(id);
  expected.push_back(*Golden().AddedToken("</think>"));
  for (const TokenId id : Golden().Encode("x")) expected.push_back(id);
  EXPECT_EQ(*ids, expected);

  const std::vector<Piece> unknown = {{"<no such>", true}};
  EXPECT_EQ(Golden().Encode(unknown).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Text(Golden().Encode(unknown).status()), HasSubstr("<no such>"));
}

TEST(TokenizerTest, AnyBytesComeBack) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const std::vector<Json> cases = GoldenEncodings();
  for (int round = 0; round < 300; ++round) {
    // Golden text with random bytes thrown in: sequences cut in the middle, lone continuation
    // bytes, overlong forms.
    std::string bytes = cases[random() % cases.size()]["text"].get<std::string>();
    for (int i = random() % 8; i > 0; --i)
      bytes.insert(random() % (bytes.size() + 1), 1, static_cast<char>(random()));
    if (!bytes.empty() && random() % 2) bytes.resize(random() % bytes.size());
    const std::vector<TokenId> ids = Golden().Encode(bytes);
    EXPECT_EQ(AllBytes(Golden(), ids), bytes);
    EXPECT_EQ(AllBytes(Golden(), Golden().EncodeWithAddedTokens(bytes)), bytes);
    if (ValidUtf8Prefix(bytes) == bytes.size()) {
      EXPECT_EQ(Golden().Decode(ids), bytes);
    }
  }
}

TEST(TokenizerTest, MalformedUtf8IsReplacedPerMaximalPart) {
  const auto decode = [](std::string_view bytes) {
    std::string text;
    AppendReplacingInvalid(bytes, false, &text);
    return text;
  };
  EXPECT_EQ(decode("a\x80z"), "a\uFFFDz");
  EXPECT_EQ(decode("\xE4\xBD"), "\uFFFD");                            // cut short: one
  EXPECT_EQ(decode("\xF0\x9F\x98x"), "\uFFFDx");                      // interrupted: one
  EXPECT_EQ(decode("\xC0\xAF"), "\uFFFD\uFFFD");                      // overlong: two
  EXPECT_EQ(decode("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");            // a surrogate: three
  EXPECT_EQ(decode("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");  // above U+10FFFF
  EXPECT_EQ(decode("\xF4\x8F\xBF\xBF"), "\xF4\x8F\xBF\xBF");
}

TEST(TokenizerTest, StreamDecoderIsValidAtEveryStepAndAddsUp) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    // Single bytes of multi-byte characters are frequent tokens here: ids 3..258 are the byte
    // alphabet.
    std::vector<TokenId> ids;
    for (const char c : std::string("é日本👩x\xE4\xBD"))
      ids.push_back(Golden().Encode(std::string(1, c))[0]);
    for (int i = 0; i < 20; ++i)
      ids.push_back(static_cast<TokenId>(random() % Golden().vocab_size()));
    std::rotate(ids.begin(), ids.begin() + random() % ids.size(), ids.end());
    StreamDecoder decoder(Golden());
    std::string all;
    for (const TokenId id : ids) {
      const std::string part = decoder.Feed(id);
      EXPECT_EQ(ValidUtf8Prefix(part), part.size());
      all += part;
    }
    all += decoder.Flush();
    EXPECT_EQ(all, Golden().Decode(ids));
    EXPECT_EQ(decoder.Flush(), "");
  }
}

TEST(TokenizerTest, ThreadsShareATokenizer) {
  const std::vector<Json> cases = GoldenEncodings();
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < cases.size() + t; ++i) {
        const Json& c = cases[i % cases.size()];
        const auto ids = c["ids"].get<std::vector<TokenId>>();
        if (Golden().EncodeWithAddedTokens(c["text"].get<std::string>()) != ids) ++wrong;
        if (Golden().Decode(ids) != c["decoded"].get<std::string>()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(TokenizerTest, LongStretchesWithoutABreak) {
  std::string spaces(1'000'000, ' ');
  for (const std::string& text :
       {std::string(300'000, 'a'), spaces, spaces + "x", spaces + "\n", std::string(300'000, '-'),
        std::string(300'000, '7'), std::string(300'000, '\n')}) {
    EXPECT_EQ(AllBytes(Golden(), Golden().Encode(text)), text);
  }
  std::string han;
  for (int i = 0; i < 100'000; ++i) han += "漢字";
  EXPECT_EQ(AllBytes(Golden(), Golden().Encode(han)), han);
}

std::vector<std::string> SplitWith(const std::vector<std::string>& sources, std::string_view text) {
  std::vector<SplitPattern> patterns;
  for (const std::string& source : sources) {
    auto pattern = SplitPattern::Compile(source, /*literal=*/false);
    EXPECT_TRUE(pattern.ok()) << Text(pattern.status());
    patterns.push_back(std::move(*pattern));
  }
  std::vector<std::string> out;
  Splitter(patterns).Split(text, [&](std::string_view part) { out.emplace_back(part); });
  return out;
}

TEST(SplitTest, WhiteSpaceIsUnicodesAndNoMore) {
  // U+180E is white space for PCRE2's \s, but not for Unicode.
  EXPECT_THAT(SplitWith({R"(\s+)"}, "a\u00A0\u2003\u3000\u0085b\u180Ec"),
              ElementsAre("a", "\u00A0\u2003\u3000\u0085", "b\u180Ec"));
  EXPECT_THAT(SplitWith({R"([^\s]+)"}, "a\u00A0b"), ElementsAre("a", "\u00A0", "b"));
  EXPECT_THAT(SplitWith({R"(\s+(?!\S))"}, "a  b"), ElementsAre("a", " ", " b"));
  EXPECT_THAT(SplitWith({R"([]\s]+)"}, "a] b"), ElementsAre("a", "] ", "b"));
  EXPECT_FALSE(SplitPattern::Compile(R"([\S])", false).ok());
  EXPECT_FALSE(SplitPattern::Compile("(", false).ok());
  // What Oniguruma and PCRE2 read differently is refused.
  EXPECT_FALSE(SplitPattern::Compile("[a[bc]]", false).ok());
  EXPECT_FALSE(SplitPattern::Compile("[a-z&&[^b]]", false).ok());
  EXPECT_THAT(SplitWith({R"([[:digit:]\s]+)"}, "a1 2b"), ElementsAre("a", "1 2", "b"));
  EXPECT_TRUE(SplitPattern::Compile("(", true).ok());
}

TEST(SplitTest, LaterPatternsSeeOnlyTheirStretch) {
  // With the digits cut off, the spaces before them end their stretch, so the look-ahead lets both
  // pass.
  EXPECT_THAT(SplitWith({R"(\p{N}{1,3})", R"(\s+(?!\S))"}, "a  1234"),
              ElementsAre("a", "  ", "123", "4"));
  EXPECT_THAT(SplitWith({"x*"}, "axb"), ElementsAre("a", "x", "b"));
}

TEST(SplitTest, EndlessBacktrackingLosesNoText) {
  const std::string text = std::string(60, 'a') + "!c";
  std::string joined;
  for (const std::string& part : SplitWith({"(?:a|a|b?a)+c"}, text)) joined += part;
  EXPECT_EQ(joined, text);
}

TEST(TokenizerFileTest, MergesAsStrings) {
  Json file = GoldenFile();
  for (Json& merge : file["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  auto loaded = Tokenizer::Parse(file.dump(), "t.json");
  ASSERT_TRUE(loaded.ok()) << Text(loaded.status());
  for (const Json& c : GoldenEncodings()) {
    EXPECT_EQ((*loaded)->EncodeWithAddedTokens(c["text"].get<std::string>()),
              c["ids"].get<std::vector<TokenId>>());
  }
}

TEST(TokenizerFileTest, AddedTokensLongestFirstThenTheNormalizedOnes) {
  Json file = GoldenFile();
  const auto add = [&](const std::string& content, int id, bool normalized) {
    file["added_tokens"].push_back(
        {{"id", id}, {"content", content}, {"normalized", normalized}, {"special", false}});
  };
  add("@a", 5000, false);
  add("@abc", 5001, false);
  add("x@", 5002, true);  // would begin further left, but comes second
  auto loaded = Tokenizer::Parse(file.dump(), "t.json");
  ASSERT_TRUE(loaded.ok()) << Text(loaded.status());
  EXPECT_THAT((*loaded)->EncodeWithAddedTokens("@abc@ax@x@abc"),
              ElementsAre(5001, 5000, 5002, (*loaded)->Encode("x")[0], 5001));
  EXPECT_EQ((*loaded)->vocab_size(), 5003);
  EXPECT_EQ((*loaded)->Bytes(4000), "");
  EXPECT_EQ((*loaded)->Bytes(-1), "");
  EXPECT_EQ((*loaded)->Bytes(1 << 30), "");
}

TEST(TokenizerFileTest, IgnoreMergesTakesWholeTokens) {
  Json file = GoldenFile();
  file["model"]["vocab"]["qxqxq"] = 6000;
  file["model"]["ignore_merges"] = true;
  auto loaded = Tokenizer::Parse(file.dump(), "t.json");
  ASSERT_TRUE(loaded.ok()) << Text(loaded.status());
  EXPECT_THAT((*loaded)->Encode("qxqxq"), ElementsAre(6000));
  EXPECT_GT((*loaded)->Encode("qxqxqq").size(), 1u);
}

TEST(TokenizerFileTest, ErrorsNameTheField) {
  const auto error = [](const std::function<void(Json&)>& change) {
    Json file = GoldenFile();
    change(file);
    return Fail(file);
  };
  EXPECT_EQ(error([](Json&) {}), "");
  EXPECT_THAT(Fail(Json(3)), HasSubstr("t.json"));
  EXPECT_THAT(error([](Json& f) {
                f["normalizer"] = {{"type", "NFC"}};
              }),
              HasSubstr("normalizer = {\"type\":\"NFC\"}"));
  EXPECT_EQ(error([](Json& f) {
              f["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
            }),
            "");
  EXPECT_THAT(error([](Json& f) {
                f["post_processor"] = {{"type", "TemplateProcessing"}};
              }),
              HasSubstr("post_processor"));
  EXPECT_THAT(error([](Json& f) { f.erase("decoder"); }), HasSubstr("decoder"));
  EXPECT_THAT(error([](Json& f) { f["pre_tokenizer"] = nullptr; }), HasSubstr("pre_tokenizer"));
  EXPECT_THAT(
      error([](Json& f) { f["pre_tokenizer"]["pretokenizers"][1]["behavior"] = "Removed"; }),
      HasSubstr("pretokenizers[1]"));
  EXPECT_THAT(error([](Json& f) { f["pre_tokenizer"]["pretokenizers"][3].erase("use_regex"); }),
              HasSubstr("pretokenizers[3]"));
  EXPECT_THAT(error([](Json& f) { f["pre_tokenizer"]["pretokenizers"].erase(3); }),
              HasSubstr("ByteLevel"));
  EXPECT_THAT(
      error([](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a("; }),
      HasSubstr("a("));
  EXPECT_THAT(error([](Json& f) {
                auto& steps = f["pre_tokenizer"]["pretokenizers"];
                for (int i = 0; i < 100; ++i) steps.insert(steps.begin(), Json(steps[0]));
              }),
              HasSubstr("104 steps"));
  EXPECT_THAT(error([](Json& f) { f["model"]["type"] = "Unigram"; }),
              HasSubstr("model.type = \"Unigram\""));
  EXPECT_THAT(error([](Json& f) { f["model"]["byte_fallback"] = true; }),
              HasSubstr("model.byte_fallback"));
  EXPECT_THAT(error([](Json& f) { f["model"]["vocab"].erase("A"); }), HasSubstr("0x41"));
  EXPECT_THAT(error([](Json& f) { f["model"]["vocab"]["A"] = -1; }), HasSubstr("id -1"));
  EXPECT_THAT(error([](Json& f) { f["model"]["vocab"]["A"] = 1ull << 40; }),
              HasSubstr("1099511627776"));
  EXPECT_THAT(error([](Json& f) { f["model"]["vocab"]["A"] = 4; }), HasSubstr("another token"));
  EXPECT_THAT(error([](Json& f) { f["model"]["merges"][7] = "abc"; }),
              HasSubstr("model.merges[7]"));
  EXPECT_THAT(error([](Json& f) { f["model"]["merges"][7] = {"zz?", "b"}; }), HasSubstr("zz?"));
  EXPECT_THAT(error([](Json& f) { f["added_tokens"][3]["lstrip"] = true; }),
              HasSubstr("added_tokens[3].lstrip"));
  EXPECT_THAT(error([](Json& f) { f["added_tokens"][3]["content"] = ""; }),
              HasSubstr("added_tokens[3].content"));
  EXPECT_THAT(error([](Json& f) { f["added_tokens"][3]["id"] = 3001; }), HasSubstr("3001"));
  EXPECT_THAT(error([](Json& f) { f["added_tokens"][1]["id"] = 2; }), HasSubstr("added_tokens[1]"));
  EXPECT_THAT(error([](Json& f) { f["added_tokens"][4]["content"] = "<｜User｜>"; }),
              HasSubstr("repeats"));
  EXPECT_THAT(Text(Tokenizer::Load("tests/golden/none").status()),
              HasSubstr("tests/golden/none/tokenizer.json"));
  EXPECT_THAT(Text(ReadTextFile("tests/golden").status()), HasSubstr("read tests/golden"));
  EXPECT_THAT(Text(Tokenizer::Parse("{\"a\"", "t.json").status()),
              HasSubstr("t.json: not valid JSON: parse error at line 1, column 5"));
  EXPECT_THAT(Text(Tokenizer::Parse(std::string("{}\0{", 4), "t.json").status()),
              HasSubstr("t.json: not valid JSON: byte 2 is NUL"));
  EXPECT_THAT(Text(Tokenizer::Parse("{\"model\": 1, \"model\": 2}", "t.json").status()),
              HasSubstr("\"model\" occurs twice"));
  const std::string deep = std::string(3000000, '[') + std::string(3000000, ']');
  EXPECT_THAT(Text(Tokenizer::Parse("{\"normalizer\": " + deep + "}", "t.json").status()),
              HasSubstr("nested deeper than 64"));
}

}  // namespace
}  // namespace agentd::model
