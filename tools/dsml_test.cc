#include "tools/dsml.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/status.h"

namespace agentd::tools {
namespace {

struct Piece {
  std::string text;
  bool special;
};

// `|` stands for the special token ｜DSML｜, `{/think}` and `{think}` for the thinking tokens.
std::vector<Piece> Pieces(std::string_view spelled) {
  std::vector<Piece> pieces;
  auto text = [&](char c) {
    if (pieces.empty() || pieces.back().special) pieces.push_back({"", false});
    pieces.back().text.push_back(c);
  };
  while (!spelled.empty()) {
    if (spelled.starts_with("{/think}")) {
      pieces.push_back({"</think>", true});
      spelled.remove_prefix(8);
    } else if (spelled.starts_with("{think}")) {
      pieces.push_back({"<think>", true});
      spelled.remove_prefix(7);
    } else {
      if (spelled[0] == '|') {
        pieces.push_back({"｜DSML｜", true});
      } else {
        text(spelled[0]);
      }
      spelled.remove_prefix(1);
    }
  }
  return pieces;
}

struct Parsed {
  std::string reasoning;
  std::string content;
  std::vector<ParsedCall> calls;
  std::string events;  // a transcript, adjacent deltas joined
  int repairs = 0;
  bool looping = false;
};

Parsed Parse(const std::vector<Piece>& pieces, bool thinking) {
  DsmlParser parser(thinking);
  std::vector<DsmlEvent> events;
  for (const Piece& piece : pieces) parser.Feed(piece.text, piece.special, events);
  parser.Finish(events);
  Parsed parsed{parser.reasoning(), parser.content(), parser.calls(), "",
                parser.repairs(),   parser.looping()};
  std::string reasoning;
  std::string content;
  DsmlEvent::Kind last = DsmlEvent::Kind::kCall;
  size_t call = 0;
  for (const DsmlEvent& event : events) {
    switch (event.kind) {
      case DsmlEvent::Kind::kReasoning:
      case DsmlEvent::Kind::kContent: {
        const bool is_reasoning = event.kind == DsmlEvent::Kind::kReasoning;
        if (event.kind != last) parsed.events += is_reasoning ? "\n[reasoning]" : "\n[content]";
        parsed.events += event.text;
        (is_reasoning ? reasoning : content) += event.text;
        break;
      }
      case DsmlEvent::Kind::kCallStarted:
        parsed.events += "\n[started]" + event.text;
        break;
      case DsmlEvent::Kind::kCall:
        parsed.events += "\n[call]" + event.call.name + event.call.arguments + event.call.error;
        EXPECT_LT(call, parsed.calls.size());
        EXPECT_EQ(event.call.arguments, parsed.calls[call].arguments);
        ++call;
        break;
    }
    last = event.kind;
  }
  EXPECT_EQ(reasoning, parsed.reasoning);
  EXPECT_EQ(content, parsed.content);
  EXPECT_EQ(call, parsed.calls.size());
  return parsed;
}

Parsed Parse(std::string_view spelled, bool thinking = false) {
  return Parse(Pieces(spelled), thinking);
}

// "name{arguments}" per call, or "name!error".
std::vector<std::string> Calls(const Parsed& parsed) {
  std::vector<std::string> calls;
  for (const ParsedCall& call : parsed.calls)
    calls.push_back(call.name + (call.error.empty() ? call.arguments : "!" + call.error));
  return calls;
}

using Strings = std::vector<std::string>;

constexpr char kOne[] =
    "Look.\n\n<|tool_calls>\n<|invoke name=\"bash\">\n<|parameter name=\"command\" "
    "string=\"true\">ls</|parameter>\n</|invoke>\n</|tool_calls>";

TEST(DsmlTest, WellFormed) {
  const Parsed parsed = Parse(kOne);
  EXPECT_EQ(parsed.content, "Look.");
  EXPECT_EQ(Calls(parsed), Strings{R"(bash{"command": "ls"})"});
  EXPECT_EQ(parsed.repairs, 0);
  EXPECT_EQ(parsed.events, "\n[content]Look.\n[started]bash\n[call]bash{\"command\": \"ls\"}");
}

TEST(DsmlTest, ReasoningThenContent) {
  const Parsed parsed = Parse("think\n\n{/think}\n\nanswer\n\n", true);
  EXPECT_EQ(parsed.reasoning, "think\n\n");
  EXPECT_EQ(parsed.content, "\n\nanswer\n\n");
  EXPECT_EQ(parsed.repairs, 0);
}

TEST(DsmlTest, OnlyTheSpecialTokenIsSyntax) {
  const std::string text =
      "a\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"bash\">\n</｜DSML｜invoke>\n</think> <b>";
  const Parsed parsed = Parse({{text, false}}, false);
  EXPECT_EQ(parsed.content, text);
  EXPECT_TRUE(parsed.calls.empty());
  EXPECT_EQ(parsed.repairs, 0);
}

struct Case {
  const char* what;
  const char* text;
  std::vector<std::string> calls;
  bool repaired = true;
  const char* content = "";
  bool thinking = false;
};

#define OPEN "\n\n<|tool_calls>\n<|invoke name=\"bash\">\n"
#define CLOSE "\n</|invoke>\n</|tool_calls>"
#define COMMAND "<|parameter name=\"command\" string=\"true\">"
#define TIMEOUT "<|parameter name=\"timeout\" string=\"false\">"

const Case kCases[] = {
    // Right, but hard.
    {"no parameters",
     "\n\n<|tool_calls>\n<|invoke name=\"x\">\n\n</|invoke>\n</|tool_calls>",
     {"x{}"},
     false},
    {"two calls",
     OPEN COMMAND "a</|parameter>\n</|invoke>\n<|invoke name=\"y\">\n\n"
                  "</|invoke>\n</|tool_calls>",
     {R"(bash{"command": "a"})", "y{}"},
     false},
    {"two parameters",
     OPEN COMMAND "a</|parameter>\n" TIMEOUT "5</|parameter>" CLOSE,
     {R"(bash{"command": "a", "timeout": 5})"},
     false},
    {"a value that ends in 2>&1",
     OPEN COMMAND "make 2>&1</|parameter>" CLOSE,
     {R"(bash{"command": "make 2>&1"})"},
     false},
    {"a value of brackets",
     OPEN COMMAND "<<</</|parameter>" CLOSE,
     {R"(bash{"command": "<<</"})"},
     false},
    {"the closing tag as text in a value",
     OPEN COMMAND "echo '</｜DSML｜parameter>' </parameter>\n</invoke></|parameter>" CLOSE,
     {R"(bash{"command": "echo '</｜DSML｜parameter>' </parameter>\n</invoke>"})"},
     false},
    {"a value of lines and quotes",
     OPEN COMMAND "\n\"a\"\\\n\t\x01\n</|parameter>" CLOSE,
     {R"(bash{"command": "\n\"a\"\\\n\t\u0001\n"})"},
     false},
    {"a parameter named arguments",
     OPEN "<|parameter name=\"arguments\" string=\"true\">{\"a\": 1}</|parameter>" CLOSE,
     {R"(bash{"arguments": "{\"a\": 1}"})"},
     false},
    {"numbers are copied, not read",
     OPEN "<|parameter name=\"n\" string=\"false\">[12345678901234567890, 1e-07, "
          "-0.0]</|parameter>" CLOSE,
     {R"(bash{"n": [12345678901234567890, 1e-07, -0.0]})"},
     false},
    {"an empty value", OPEN COMMAND "</|parameter>" CLOSE, {R"(bash{"command": ""})"}, false},
    {"a name with >",
     OPEN "<|parameter name=\"a>b\" string=\"true\">v</|parameter>" CLOSE,
     {R"(bash{"a>b": "v"})"},
     false},
    {"three line ends before the block",
     "a\n" OPEN COMMAND "a</|parameter>" CLOSE,
     {R"(bash{"command": "a"})"},
     false,
     "a\n"},

    // Repaired.
    {"toolcalls", "\n\n<|toolcalls>\n<|invoke name=\"x\">\n\n</|invoke>\n</|toolcalls>", {"x{}"}},
    {"function_calls",
     "\n\n<|function_calls>\n<|invoke name=\"x\">\n\n</|invoke>\n</|function_calls>",
     {"x{}"}},
    {"no wrapper",
     "Hm.\n\n<|invoke name=\"bash\">\n" COMMAND "a</|parameter>\n</|invoke>",
     {R"(bash{"command": "a"})"},
     true,
     "Hm."},
    {"no wrapper opened, but closed",
     "\n\n<|invoke name=\"bash\">\n" COMMAND "a</|parameter>" CLOSE,
     {R"(bash{"command": "a"})"}},
    {"no line ends",
     "<|tool_calls><|invoke name=\"bash\">" COMMAND "a</|parameter></|invoke></|tool_calls>",
     {R"(bash{"command": "a"})"}},
    {"one line end before",
     "a\n<|tool_calls>\n<|invoke name=\"x\">\n\n</|invoke>\n</|tool_calls>",
     {"x{}"},
     true,
     "a"},
    {"parameter not closed before the next",
     OPEN COMMAND "a\n" TIMEOUT "5</|parameter>" CLOSE,
     {R"(bash{"command": "a", "timeout": 5})"}},
    {"parameter not closed before the call's end",
     OPEN COMMAND "a" CLOSE,
     {R"(bash{"command": "a"})"}},
    {"call not closed before the next",
     OPEN COMMAND "a</|parameter>\n<|invoke name=\"y\">\n\n</|invoke>\n</|tool_calls>",
     {R"(bash{"command": "a"})", "y{}"}},
    {"call not closed before the block's end",
     OPEN COMMAND "a</|parameter>\n</|tool_calls>",
     {R"(bash{"command": "a"})"}},
    {"nothing closed but the block", OPEN COMMAND "a\n</|tool_calls>", {R"(bash{"command": "a"})"}},
    {"block not closed", OPEN COMMAND "a</|parameter>\n</|invoke>", {R"(bash{"command": "a"})"}},
    {"closers without a slash",
     OPEN COMMAND "a<|parameter>\n<|invoke>\n</|tool_calls>",
     {R"(bash{"command": "a"})"}},
    {"closers without bracket and slash",
     OPEN COMMAND "2>&1|parameter>\n|invoke>\n|tool_calls>",
     {R"(bash{"command": "2>&1"})"}},
    {"a misspelt closer", OPEN COMMAND "a</|parmeter>" CLOSE, {R"(bash{"command": "a"})"}},
    {"no opening bracket",
     "\n\n|tool_calls>\n|invoke name=\"x\">\n\n</|invoke>\n</|tool_calls>",
     {"x{}"}},
    {"the special token twice",
     "\n\n<||tool_calls>\n<||invoke name=\"x\">\n\n</||invoke>\n</|tool_calls>",
     {"x{}"}},
    {"no > on the invoke",
     "\n\n<|tool_calls>\n<|invoke name=\"bash\"\n" COMMAND "a</|parameter>" CLOSE,
     {R"(bash{"command": "a"})"}},
    {"no > before the next tag",
     "\n\n<|tool_calls>\n<|invoke name=\"bash\"" COMMAND "a</|parameter>" CLOSE,
     {R"(bash{"command": "a"})"}},
    {"unquoted string",
     OPEN "<|parameter name=\"c\" string=true>a</|parameter>" CLOSE,
     {R"(bash{"c": "a"})"}},
    {"single quotes",
     OPEN "<|parameter name='c' string='false'>1</|parameter>" CLOSE,
     {R"(bash{"c": 1})"}},
    {"string first",
     OPEN "<|parameter string=\"true\" name=\"c\">a</|parameter>" CLOSE,
     {R"(bash{"c": "a"})"},
     false},
    {"string left out",
     OPEN "<|parameter name=\"c\">12</|parameter>" CLOSE,
     {R"(bash{"c": "12"})"}},
    {"string=\"True\"",
     OPEN "<|parameter name=\"c\" string=\"True\">a</|parameter>" CLOSE,
     {R"(bash{"c": "a"})"}},
    {"arguments as JSON", OPEN "{\"command\": \"ls\"}" CLOSE, {R"(bash{"command": "ls"})"}},
    {"the same parameter twice",
     OPEN COMMAND "a</|parameter>\n" COMMAND "a</|parameter>" CLOSE,
     {R"(bash{"command": "a"})"}},
    {"words between calls",
     OPEN COMMAND "a</|parameter>\n</|invoke>\nand then\n</|tool_calls>",
     {R"(bash{"command": "a"})"}},
    {"words after the block",
     OPEN COMMAND "a</|parameter>" CLOSE "\n\nDone.",
     {R"(bash{"command": "a"})"},
     true,
     "Done."},
    {"blocks twice",
     "a" OPEN COMMAND "a</|parameter>" CLOSE OPEN COMMAND "b</|parameter>" CLOSE,
     {R"(bash{"command": "a"})", R"(bash{"command": "b"})"},
     true,
     "a"},
    {"closers twice",
     OPEN COMMAND "a</|parameter></|parameter>\n</|invoke>\n</|invoke>\n"
                  "</|tool_calls>\n</|tool_calls></|parameter>",
     {R"(bash{"command": "a"})"}},
    {"calls inside the reasoning",
     "Hm." OPEN COMMAND "a</|parameter>" CLOSE,
     {R"(bash{"command": "a"})"},
     true,
     "",
     true},
    {"the token in prose",
     "A | and <|b> </|c>.",
     {},
     true,
     "A ｜DSML｜ and <｜DSML｜b> </｜DSML｜c>."},
    {"a foreign tag in a value",
     OPEN COMMAND "<|b>x|y</|parameter>" CLOSE,
     {R"(bash{"command": "<｜DSML｜b>x｜DSML｜y"})"}},
    {"an empty block", "a\n\n<|tool_calls>\n</|tool_calls>", {}, false, "a"},
    {"half a tag at the end", "a\n\n<|tool_ca", {}, true, "a"},
    {"stray thinking tokens", "a{/think}b{think}c", {}, true, "abc"},

    // Answered with an error.
    {"bad JSON",
     OPEN TIMEOUT "ten</|parameter>" CLOSE,
     {"bash!Error: bash: parameter timeout: string=\"false\" needs valid JSON, got: ten"},
     false},
    {"JSON that stops",
     OPEN TIMEOUT "[1, {\"a\": </|parameter>" CLOSE,
     {"bash!Error: bash: parameter timeout: string=\"false\" needs valid JSON, got: [1, {\"a\": "},
     false},
    {"a value of neither kind",
     OPEN "<|parameter name=\"c\" string=\"maybe\">a</|parameter>" CLOSE,
     {"bash!Error: bash: parameter c: string must be \"true\" or \"false\", not \"maybe\""}},
    {"a parameter twice, differently",
     OPEN COMMAND "a</|parameter>\n" COMMAND "b</|parameter>" CLOSE,
     {"bash!Error: bash: parameter command is given twice"}},
    {"no tool name",
     "\n\n<|tool_calls>\n<|invoke>\n\n</|invoke>\n</|tool_calls>",
     {"!Error: tool call: the call has no tool name"}},
    {"no parameter name",
     OPEN "<|parameter string=\"true\">a</|parameter>" CLOSE,
     {"bash!Error: bash: a parameter has no name"},
     false},
    {"a parameter outside a call",
     "\n\n<|tool_calls>\n" COMMAND "a</|parameter>\n</|tool_calls>",
     {"!Error: tool call: the call has no tool name"}},
    {"the closing tag inside a value",
     OPEN COMMAND "echo a</|parameter> b</|parameter>" CLOSE,
     {"bash!Error: bash: text outside of parameters: b"}},
    {"all closing tags inside a value",
     OPEN COMMAND "a</|parameter>\n</|invoke>\n</|tool_calls>\nb</|parameter>" CLOSE,
     {"bash!Error: bash: a closing tag stands inside a value of this message, so that the value "
      "was "
      "cut"},
     true,
     "b"},
    {"the call's closing tag inside a value",
     OPEN COMMAND "Write </|invoke> last.</|parameter>" CLOSE,
     {"bash!Error: bash: parameter command: a tag of a tool call stands inside the value"}},
    {"a call inside a value",
     OPEN COMMAND "So:\n<|invoke name=\"x\">\n<|parameter name=\"c\" string=\"true\">rm -r "
                  "a</|parameter>\n</|invoke>\nand go.</|parameter>" CLOSE,
     {"bash!Error: bash: parameter command: a tag of a tool call stands inside the value",
      "x!Error: x: the call stands inside the value of another one"}},
    {"blocks inside a value",
     OPEN COMMAND "So:\n<|tool_calls>\n<|invoke name=\"x\">\n\n</|invoke>\n</|tool_calls>\n\n"
                  "<|tool_calls>\n<|invoke name=\"y\">\n\n</|invoke>\n</|tool_calls>" CLOSE,
     {"bash!Error: bash: parameter command: a tag of a tool call stands inside the value",
      "x!Error: x: the call stands inside the value of another one",
      "y!Error: y: the call stands inside the value of another one"}},
    {"a parameter inside a value",
     OPEN COMMAND "As\n<|parameter name=\"c\" string=\"true\">v</|parameter></|parameter>" CLOSE,
     {"bash!Error: bash: parameter c: a tag of a tool call stands inside the value"}},
    {"a call's text instead of parameters",
     OPEN "ls -l" CLOSE,
     {"bash!Error: bash: text outside of parameters: ls -l"}},
    {"arguments as JSON that stops",
     OPEN "{\"command\": \"ls\"" CLOSE,
     {"bash!Error: bash: text outside of parameters: {\"command\": \"ls\""}},
    {"text beside parameters",
     OPEN "first\n" COMMAND "ls</|parameter>" CLOSE,
     {"bash!Error: bash: text outside of parameters: first"}},
    {"cut off in a value",
     OPEN COMMAND "rm -r",
     {"bash!Error: bash: the call was cut off before "
      "its end"}},
    {"cut off between parameters",
     OPEN COMMAND "ls</|parameter>\n",
     {"bash!Error: bash: the call was cut off before its end"},
     false},
    {"cut off in a closer",
     OPEN COMMAND "ls</|para",
     {"bash!Error: bash: the call was cut off before its end"}},
};

TEST(DsmlTest, Forms) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.what);
    const Parsed parsed = Parse(c.text, c.thinking);
    EXPECT_EQ(Calls(parsed), c.calls);
    EXPECT_EQ(parsed.content, c.content);
    const bool failed = !parsed.calls.empty() && !parsed.calls[0].error.empty();
    if (c.repaired && !failed) {
      EXPECT_GT(parsed.repairs, 0);
    }
    if (!c.repaired && !failed && std::string_view(c.what) != "an empty block") {
      EXPECT_EQ(parsed.repairs, 0);
    }
    for (const ParsedCall& call : parsed.calls)
      EXPECT_TRUE(nlohmann::json::accept(call.arguments)) << call.arguments;
  }
}

// A call that the model drafts while it thinks, and then goes on to think, must not run.
TEST(DsmlTest, CallsInsideTheReasoningAreTextIfItGoesOn) {
  const std::string draft = OPEN COMMAND "rm -r a</|parameter>" CLOSE;
  const std::string real = OPEN COMMAND "ls</|parameter>" CLOSE;
  const std::string text = "｜DSML｜parameter name=\"command\" string=\"true\">rm -r a<";
  for (const std::string& more : {std::string(""), std::string(" No."), draft}) {
    const Parsed parsed = Parse("Hm." + draft + more + "{/think}Done." + real, true);
    EXPECT_EQ(Calls(parsed), Strings{R"(bash{"command": "ls"})"});
    EXPECT_TRUE(parsed.reasoning.starts_with("Hm.")) << parsed.reasoning;
    EXPECT_NE(parsed.reasoning.find(text), std::string::npos) << parsed.reasoning;
    EXPECT_EQ(parsed.content, "Done.");
    EXPECT_GT(parsed.repairs, 0);
  }
  // Not even one that is begun.
  for (const char* begun :
       {"\n\n<|tool_calls", "\n\n<|tool_calls>\n", OPEN, OPEN COMMAND "a</|parameter>",
        OPEN COMMAND "a</|parameter>\n</|invoke>"}) {
    const Parsed parsed = Parse(std::string("Hm.") + begun + "{/think}Done." + real, true);
    EXPECT_EQ(Calls(parsed), Strings{R"(bash{"command": "ls"})"}) << begun;
    EXPECT_EQ(parsed.content, "Done.") << begun;
  }
  EXPECT_TRUE(Parse("Hm." + draft + "{/think}Done.", true).calls.empty());
}

TEST(DsmlTest, DeepNestingIsAnErrorNotACrash) {
  // One level is the arguments' own.
  for (size_t depth : {size_t{100}, size_t{127}, size_t{128}, size_t{1'000'000}}) {
    const std::string value = std::string(depth, '[') + std::string(depth, ']');
    const Parsed parsed = Parse(OPEN TIMEOUT + value + "</|parameter>" CLOSE);
    ASSERT_EQ(parsed.calls.size(), 1u);
    EXPECT_EQ(parsed.calls[0].error.empty(), depth < 128);
    EXPECT_TRUE(IsJsonObject(parsed.calls[0].arguments));
    EXPECT_LT(parsed.calls[0].error.size(), 1000u);
  }
}

TEST(DsmlTest, ClosersInALoopAreNoticed) {
  std::string text = kOne;
  for (int i = 0; i < 10; ++i) text += "\n</|invoke>\n</|tool_calls>";
  const Parsed parsed = Parse(text);
  EXPECT_TRUE(parsed.looping);
  EXPECT_EQ(Calls(parsed), Strings{R"(bash{"command": "ls"})"});
  EXPECT_EQ(parsed.content, "Look.");
  EXPECT_FALSE(Parse(std::string(kOne) + "\n</|invoke>").looping);
}

TEST(DsmlTest, OpenersInALoopAreNoticed) {
  for (const char* opener :
       {"\n\n<|tool_calls>", "\n<|invoke name=\"x\">", "\n\n<|tool_calls>\n</|tool_calls>",
        "\n\n<|tool_calls>\n<|invoke name=\"x\">"}) {
    std::string text = "Look.";
    for (int i = 0; i < 20; ++i) text += opener;
    EXPECT_TRUE(Parse(text).looping) << opener;
  }
  std::string calls = "\n\n<|tool_calls>\n";
  for (int i = 0; i < 40; ++i) calls += "<|invoke name=\"x\">\n\n</|invoke>\n";
  EXPECT_FALSE(Parse(calls + "</|tool_calls>").looping);
}

TEST(DsmlTest, BrokenUtf8IsReplaced) {
  const Parsed parsed =
      Parse("a\xff\xe2\x82" OPEN COMMAND "\xc3(\xf0\x9f\x98\x80</|parameter>" CLOSE);
  EXPECT_EQ(parsed.content, "a\uFFFD\uFFFD");
  EXPECT_EQ(Calls(parsed), Strings{"bash{\"command\": \"\uFFFD(\U0001F600\"}"});
}

// The same tokens in any split give the same events, joined.
TEST(DsmlTest, EverySplitGivesTheSame) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  std::vector<std::pair<std::string, bool>> texts = {
      {kOne, false}, {"日本{/think}日本語" + std::string(kOne), true}};
  for (const Case& c : kCases) texts.emplace_back(c.text, c.thinking);
  for (const auto& [text, thinking] : texts) {
    SCOPED_TRACE(text);
    const std::vector<Piece> pieces = Pieces(text);
    const Parsed whole = Parse(pieces, thinking);
    std::vector<Piece> bytes;
    for (const Piece& piece : pieces) {
      if (piece.special) {
        bytes.push_back(piece);
        continue;
      }
      for (char c : piece.text) bytes.push_back({std::string(1, c), false});
    }
    EXPECT_EQ(Parse(bytes, thinking).events, whole.events);
    for (int round = 0; round < 20; ++round) {
      std::vector<Piece> split;
      for (const Piece& byte : bytes) {
        const bool join = !split.empty() && !split.back().special && !byte.special && random() % 3;
        if (join) {
          split.back().text += byte.text;
        } else {
          split.push_back(byte);
        }
      }
      const Parsed parsed = Parse(split, thinking);
      ASSERT_EQ(parsed.events, whole.events);
      ASSERT_EQ(parsed.repairs, whole.repairs);
    }
  }
}

// Cut anywhere: no crash, valid arguments, and no call that is not the whole one's.
TEST(DsmlTest, EndsAnywhere) {
  for (const Case& c : kCases) {
    const Parsed whole = Parse(c.text, c.thinking);
    const std::vector<Piece> pieces = Pieces(c.text);
    for (size_t end = 0; end <= pieces.size(); ++end) {
      const Parsed parsed =
          Parse(std::vector<Piece>(pieces.begin(), pieces.begin() + static_cast<ptrdiff_t>(end)),
                c.thinking);
      ASSERT_LE(parsed.calls.size(), whole.calls.size());
      for (size_t i = 0; i < parsed.calls.size(); ++i) {
        EXPECT_TRUE(nlohmann::json::accept(parsed.calls[i].arguments));
        if (!parsed.calls[i].error.empty()) continue;
        EXPECT_EQ(parsed.calls[i].arguments, whole.calls[i].arguments);
      }
    }
  }
}

std::vector<Piece> FromTemplateText(std::string_view text) {
  std::vector<Piece> pieces;
  while (!text.empty()) {
    bool special = false;
    for (std::string_view token : {"｜DSML｜", "</think>", "<think>"}) {
      if (!text.starts_with(token)) continue;
      pieces.push_back({std::string(token), true});
      text.remove_prefix(token.size());
      special = true;
      break;
    }
    if (special) continue;
    if (pieces.empty() || pieces.back().special) pieces.push_back({"", false});
    pieces.back().text.push_back(text[0]);
    text.remove_prefix(1);
  }
  return pieces;
}

// Every message that the strict form accepts is read the same here, without repair.
TEST(DsmlTest, AgreesWithTheStrictForm) {
  std::ifstream in("tests/golden/chat/cases.json");
  ASSERT_TRUE(in.good());
  int checked = 0;
  for (const nlohmann::json& c : nlohmann::json::parse(in)) {
    if (c["kind"] != "parse" || c["expected"].is_null()) continue;
    std::string text = c["text"];
    const std::string eos = "<｜end▁of▁sentence｜>";
    ASSERT_TRUE(text.ends_with(eos));
    text.resize(text.size() - eos.size());
    SCOPED_TRACE(text);
    const Parsed parsed = Parse(FromTemplateText(text), c["thinking_mode"] == "thinking");
    const nlohmann::json& expected = c["expected"];
    EXPECT_EQ(parsed.content, expected["content"]);
    EXPECT_EQ(parsed.reasoning, expected["reasoning_content"]);
    ASSERT_EQ(parsed.calls.size(), expected["tool_calls"].size());
    for (size_t i = 0; i < parsed.calls.size(); ++i) {
      const nlohmann::json& function = expected["tool_calls"][i]["function"];
      EXPECT_EQ(parsed.calls[i].name, function["name"]);
      if (!nlohmann::json::accept(function["arguments"].get<std::string>())) continue;
      EXPECT_EQ(parsed.calls[i].arguments, function["arguments"]);
      EXPECT_EQ(parsed.calls[i].error, "");
    }
    // The published parser looks no further than `</｜DSML｜par`.
    if (text.find("</think>", 8) == std::string::npos || c["thinking_mode"] == "thinking") {
      EXPECT_EQ(parsed.repairs, 0);
    }
    ++checked;
  }
  EXPECT_GT(checked, 10);
}

}  // namespace
}  // namespace agentd::tools
