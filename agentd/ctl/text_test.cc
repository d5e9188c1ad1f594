#include "agentd/ctl/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace agentd::ctl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Printable, LeavesTextAlone) {
  EXPECT_EQ(Printable("Grüße\n\tこんにちは 👋"), "Grüße\n\tこんにちは 👋");
}

TEST(Printable, DisarmsTerminalControl) {
  EXPECT_EQ(Printable("\033]0;title\007"), "␛]0;title␇");
  EXPECT_EQ(Printable("a\rb\x7f"), "a␍b␡");
  EXPECT_EQ(Printable("\xC2\x9B"
                      "31m"),
            "\uFFFD31m");  // the one-character CSI of C1
}

TEST(Printable, RandomBytesBecomeHarmlessUtf8) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(random() % 40, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    const std::string out = Printable(bytes);
    EXPECT_EQ(ValidUtf8Prefix(out), out.size());
    for (const char c : out) {
      const auto byte = static_cast<unsigned char>(c);
      EXPECT_TRUE(byte >= 0x20 || byte == '\n' || byte == '\t');
      EXPECT_NE(byte, 0x7F);
    }
  }
}

TEST(ValidUtf8Prefix, StopsAtTheFirstBadByte) {
  EXPECT_EQ(ValidUtf8Prefix("aä€😀"), 10u);
  EXPECT_EQ(ValidUtf8Prefix("ab\xFF"), 2u);
  EXPECT_EQ(ValidUtf8Prefix("\xC0\x80"), 0u);          // overlong
  EXPECT_EQ(ValidUtf8Prefix("a\xED\xA0\x80"), 1u);     // surrogate
  EXPECT_EQ(ValidUtf8Prefix("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(ValidUtf8Prefix("a\xE2\x82"), 1u);         // cut short
}

TEST(CutAtCharacter, NeverSplitsOne) {
  const std::string text = "a€b😀";
  for (size_t limit = 4; limit <= text.size() + 1; ++limit) {
    const size_t cut = CutAtCharacter(text, limit);
    EXPECT_LE(cut, limit);
    EXPECT_EQ(ValidUtf8Prefix(text.substr(0, cut)), cut);
    EXPECT_GT(cut, 0u);
  }
  EXPECT_EQ(CutAtCharacter(text, 100), text.size());
}

TEST(OneLine, CutsAtColumnsNotBytes) {
  EXPECT_EQ(OneLine("äöü", 3), "äöü");
  EXPECT_EQ(OneLine("äöüß", 3), "äö…");
  EXPECT_EQ(OneLine("a\nb\tc\n", 10), "a⏎b c");
  EXPECT_LE(Columns(OneLine(std::string(100000, 'x'), 50)), 50u);
}

TEST(OneLine, WideCharactersTakeTwoColumns) {
  EXPECT_EQ(Columns("こa👋"), 5u);
  EXPECT_EQ(Columns("e\u0301"), 1u);
  EXPECT_EQ(OneLine("こんにちは", 10), "こんにちは");
  EXPECT_EQ(OneLine("こんにちは", 9), "こんにち…");
  EXPECT_EQ(OneLine("こんにちは", 8), "こんに…");
  EXPECT_EQ(OneLine("aこ", 2), "a…");
}

api::ToolStarted Call(const std::string& name, const std::string& arguments) {
  api::ToolStarted call;
  call.set_name(name);
  call.set_arguments_json(arguments);
  call.set_attempt(1);
  return call;
}

TEST(ToolCallLine, FirstArgumentStandsAlone) {
  EXPECT_EQ(ToolCallLine(Call("bash", R"({"command":"wc -l x.txt"})"), 80), "▸ bash: wc -l x.txt");
  EXPECT_EQ(ToolCallLine(Call("write_file", R"({"path":"a.txt","content":"one\ntwo"})"), 80),
            R"(▸ write_file: a.txt content="one\ntwo")");
  EXPECT_EQ(ToolCallLine(Call("list_dir", "{}"), 80), "▸ list_dir");
}

TEST(ToolCallLine, SurvivesAnything) {
  EXPECT_EQ(ToolCallLine(Call("bash", "{broken"), 80), "▸ bash: {broken");
  EXPECT_THAT(ToolCallLine(Call("bash", R"({"command":"printf '\u001b[2J'"})"), 80),
              Not(HasSubstr("\033")));
  auto again = Call("bash", R"({"command":"ls"})");
  again.set_attempt(2);
  EXPECT_EQ(ToolCallLine(again, 80), "▸ bash: ls (attempt 2)");
}

api::ToolFinished Result(api::ToolOutcome outcome, const std::string& text) {
  api::ToolFinished result;
  result.set_outcome(outcome);
  result.set_text(text);
  return result;
}

TEST(ToolResultLines, ShowsAFewLines) {
  EXPECT_EQ(ToolResultLines(Result(api::TOOL_OUTCOME_OK, "12"), 3, 80), "◂ 12");
  EXPECT_EQ(ToolResultLines(Result(api::TOOL_OUTCOME_OK, "1\n2\n3\n4\n5\n"), 3, 80),
            "◂ 1\n  2\n  3\n  … 2 more lines");
  EXPECT_EQ(ToolResultLines(Result(api::TOOL_OUTCOME_OK, "1\n2\n3\n4"), 3, 80),
            "◂ 1\n  2\n  3\n  4");
  EXPECT_EQ(ToolResultLines(Result(api::TOOL_OUTCOME_OK, ""), 3, 80), "◂ ");
}

TEST(ToolResultLines, NamesWhatIsNotSuccess) {
  EXPECT_EQ(ToolResultLines(Result(api::TOOL_OUTCOME_REFUSED, "Error: unknown tool x"), 3, 80),
            "◂ refused: Error: unknown tool x");
  EXPECT_EQ(ToolResultLines(Result(api::TOOL_OUTCOME_UNKNOWN, ""), 3, 80), "◂ unknown");
}

TEST(TurnSummary, CountsWhatHappened) {
  api::TurnFinished turn;
  turn.set_end(api::TURN_END_TOKEN_LIMIT);
  turn.set_prompt_tokens(812);
  turn.set_sampled_tokens(46);
  turn.set_tool_calls(2);
  turn.set_repaired_calls(1);
  turn.set_duration_ms(1204);
  EXPECT_EQ(TurnSummary(turn),
            "token limit · 812 prompt + 46 sampled tokens · 2 tool calls (1 repaired) · 1.20 s");
}

TEST(AdoptedLine, NamesBothModels) {
  api::ModelAdopted adopted;
  adopted.set_from_model("old");
  adopted.set_from_fingerprint("0123456789abcdef");
  adopted.set_to_model("new");
  adopted.set_to_fingerprint("fedcba9876543210");
  EXPECT_EQ(AdoptedLine(adopted),
            "another model goes on: new (fedcba987654) instead of old (0123456789ab)");
}

TEST(ResumedLine, HasTheThreeCounters) {
  api::Resumed resumed;
  resumed.set_restored(1024);
  resumed.set_replayed(12);
  resumed.set_duration_us(35000);
  resumed.set_after_crash(true);
  EXPECT_EQ(ResumedLine(resumed),
            "resumed after a crash: 1024 tokens restored, 12 replayed, 0 prefilled again, 35.0 ms");
}

TEST(ProgressLine, StaysWithinItsBar) {
  api::Progress progress;
  progress.set_what("prefill");
  progress.set_done(4096);
  progress.set_total(8192);
  EXPECT_EQ(ProgressLine(progress, 10), "prefill [#####-----] 4096/8192 tokens");
  progress.set_done(9000);
  EXPECT_EQ(ProgressLine(progress, 10), "prefill [##########] 8192/8192 tokens");
  progress.set_total(0);
  EXPECT_THAT(ProgressLine(progress, 10), HasSubstr("prefill ["));
}

TEST(ProgressLine, SaysThePaceOfTheLastHalfMinute) {
  Pace pace;
  EXPECT_EQ(pace.per_second(), 0);
  pace.Note(0, 0);
  pace.Note(500'000, 1000);
  EXPECT_EQ(pace.per_second(), 0);  // too short to say
  pace.Note(20'000'000, 40'000);
  EXPECT_EQ(pace.per_second(), 2000);
  pace.Note(50'000'000, 70'000);  // slower: what was before does not count
  EXPECT_EQ(pace.per_second(), 1000);
  pace.Note(51'000'000, 10'000);  // begun anew
  EXPECT_EQ(pace.per_second(), 0);

  api::Progress progress;
  progress.set_what("prefill");
  progress.set_done(4096);
  progress.set_total(8192);
  EXPECT_EQ(ProgressLine(progress, 2, 850.4),
            "prefill [#-] 4096/8192 tokens, 850 tokens/s, 4 s left");
  EXPECT_THAT(ProgressLine(progress, 2, 10), HasSubstr(", 10 tokens/s, 6 min 49 s left"));
}

TEST(Units, ReadNaturally) {
  EXPECT_EQ(Duration(999), "999 us");
  EXPECT_EQ(Duration(35'000), "35.0 ms");
  EXPECT_EQ(Duration(1'204'000), "1.20 s");
  EXPECT_EQ(Duration(125'000'000), "2 min 5 s");
  EXPECT_EQ(Bytes(512), "512 B");
  EXPECT_EQ(Bytes(1536), "1.5 KiB");
  EXPECT_EQ(Ago(0, 59'000'000), "59 s ago");
  EXPECT_EQ(Ago(0, 3'600'000'000), "1 h ago");
  EXPECT_EQ(Ago(10, 0), "0 s ago");  // a clock that went back
}

TEST(Style, WithoutColourChangesNothing) {
  EXPECT_EQ(Style(false).Dim("x"), "x");
  EXPECT_EQ(Style(true).Dim("x"), "\033[2mx\033[0m");
  EXPECT_EQ(Style(true).Dim(""), "");
}

}  // namespace
}  // namespace agentd::ctl
