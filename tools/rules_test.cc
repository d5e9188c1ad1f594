#include "tools/rules.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace agentd::tools {
namespace {

TEST(Rules, Patterns) {
  const struct {
    const char* pattern;
    const char* text;
    bool fits;
  } kCases[] = {
      {"", "", true},        {"", "a", false},         {"*", "", true},
      {"*", "a\nb", true},   {"a", "a", true},         {"a", "ab", false},
      {"a*", "a", true},     {"a*", "ab", true},       {"*a", "ba", true},
      {"*a", "ab", false},   {"a*c", "abc", true},     {"a*c", "abcd", false},
      {"**", "", true},      {"*a*b*", "xaxxb", true}, {"*a*b*", "ba", false},
      {"a.c", "abc", false}, {"*aab", "aaab", true},   {"rm *", "rm -rf /", true},
      {"rm *", "rm", false}, {"[a]", "a", false},
  };
  for (const auto& one : kCases)
    EXPECT_EQ(MatchesPattern(one.pattern, one.text), one.fits) << one.pattern << " : " << one.text;
}

// What a pattern allows is one command: a star stands for nothing that begins another.
TEST(Rules, PlainStarsDoNotReachIntoAnotherCommand) {
  for (const char* text : {"git log -3", "git log --author=a.b", "git log -- 'a b'"})
    EXPECT_TRUE(MatchesPattern("git log *", text, /*plain=*/true)) << text;
  for (const char* text :
       {"git log x; rm a", "git log x && rm a", "git log x | sh", "git log > a", "git log $(rm a)",
        "git log `rm a`", "git log x\nrm a", "git log <(rm a)", "git log ${x}", "git log x & rm a",
        "git log x\rrm a"}) {
    EXPECT_FALSE(MatchesPattern("git log *", text, /*plain=*/true)) << text;
    EXPECT_TRUE(MatchesPattern("git log*", text)) << text;
  }
  // Written out it may be there.
  EXPECT_TRUE(MatchesPattern("cat * | wc -l", "cat a.txt | wc -l", /*plain=*/true));
  EXPECT_FALSE(MatchesPattern("cat * | wc -l", "cat a | sh | wc -l", /*plain=*/true));
}

// By the definition: the texts that a star may stand for, all tried.
bool Slow(const std::string& pattern, const std::string& text, bool plain) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] != '*')
    return !text.empty() && text[0] == pattern[0] && Slow(pattern.substr(1), text.substr(1), plain);
  for (size_t n = 0;; ++n) {
    if (Slow(pattern.substr(1), text.substr(n), plain)) return true;
    if (n == text.size() || (plain && text[n] == ';')) return false;
  }
}

TEST(Rules, RandomPatternsFitAsDefined) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto draw = [&](const std::string& letters, size_t most) {
    std::string text(random() % (most + 1), ' ');
    for (char& c : text) c = letters[random() % letters.size()];
    return text;
  };
  int fitting = 0;
  for (int round = 0; round < 50'000; ++round) {
    const std::string pattern = draw("ab;**", 7), text = draw("ab;", 9);
    const bool plain = random() % 2 == 0;
    const bool expected = Slow(pattern, text, plain);
    fitting += expected ? 1 : 0;
    ASSERT_EQ(MatchesPattern(pattern, text, plain), expected)
        << pattern << " : " << text << (plain ? " plain" : "");
  }
  EXPECT_GT(fitting, 1000);
}

TEST(Rules, TheFirstThatFitsDecides) {
  Rules rules;
  rules.Add({"bash", {{"command", "git *"}}, RuleAction::kAllow, "", ""});
  rules.Add({"bash", {{"command", "*sudo*"}}, RuleAction::kDeny, "no root here", ""});
  rules.Add({"bash", {}, RuleAction::kAsk, "runs anything", ""});
  rules.Add({"write_*", {{"path", "*.lock"}, {"content", "*"}}, RuleAction::kAsk, "", ""});
  const auto decide = [&](const char* tool, const char* arguments, bool needs = false) {
    return rules.Decide(tool, arguments, needs);
  };
  EXPECT_EQ(decide("bash", R"({"command":"git log"})").action, RuleAction::kAllow);
  const Decision sudo = decide("bash", R"({"command":"git log; sudo rm"})");
  EXPECT_EQ(sudo.action, RuleAction::kDeny);
  EXPECT_EQ(sudo.reason, "no root here");
  const Decision other = decide("bash", R"({"command":"ls"})");
  EXPECT_EQ(other.action, RuleAction::kAsk);
  EXPECT_EQ(other.rule, "bash");
  EXPECT_EQ(other.reason, "runs anything");
  EXPECT_EQ(decide("write_file", R"({"path":"a.lock","content":""})").action, RuleAction::kAsk);
  // An argument that is not given fits no pattern; one that is no text fits as its JSON.
  EXPECT_EQ(decide("write_file", R"({"path":"a.lock"})").action, RuleAction::kAllow);
  EXPECT_EQ(decide("write_file", R"({"path":"a.lock","content":[1]})").action, RuleAction::kAsk);
  EXPECT_EQ(decide("read_file", R"({"path":"a"})").action, RuleAction::kAllow);
  const Decision needed = decide("read_file", R"({"path":"a"})", /*needs=*/true);
  EXPECT_EQ(needed.action, RuleAction::kAsk);
  EXPECT_EQ(needed.rule, "read_file");
}

}  // namespace
}  // namespace agentd::tools
