// Servers that run as programs, most of them hostile (tests/mcp/hostile_server.py).
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "tools/mcp/fixture.h"

namespace agentd::tools::mcp {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class StdioServerTest : public ServersFixture {
 protected:
  static bool Lives(const std::string& pid) { return kill(std::stoi(pid), 0) == 0; }
};

TEST_F(StdioServerTest, OlderServerIsSpokenToAfterAHandshake) {
  Start(Hostile({}));
  EXPECT_EQ(State().view()->info.era, Era::kHandshake);
  EXPECT_EQ(State().view()->info.revision, "2025-11-25");
  EXPECT_EQ(State().view()->info.name, "hostile");
  EXPECT_EQ(Problems(), "");
  EXPECT_EQ(Text("echo", R"({"text": "h\u00e9llo"})"), "héllo");
  EXPECT_EQ(registry_.Find("s__echo")->spec().schema,
            R"({"name": "s__echo", "description": "Does echo.", "parameters": {"type": "object", )"
            R"("properties": {"text": {"type": "string"}, "number": {"type": "number"}}, )"
            R"("required": []}})");
  EXPECT_EQ(Text("meta"), "null");
}

TEST_F(StdioServerTest, NewerServerGetsItsMetaWithEachRequest) {
  Start(Hostile({"stateless"}));
  EXPECT_EQ(State().view()->info.era, Era::kStateless);
  const Json meta = Json::parse(Text("meta"));
  EXPECT_EQ(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
  EXPECT_EQ(meta["io.modelcontextprotocol/clientInfo"]["name"], "agentd");
  EXPECT_TRUE(meta["io.modelcontextprotocol/clientCapabilities"].is_object());
}

TEST_F(StdioServerTest, OlderServerThatEndsAtAnUnknownQuestion) {
  Start(Hostile({"dies-at-unknown"}));
  EXPECT_EQ(State().view()->info.era, Era::kHandshake);
  EXPECT_EQ(Text("echo", R"({"text": "x"})"), "x");
}

TEST_F(StdioServerTest, OlderServerThatIsSilentAtAnUnknownQuestion) {
  ServerConfig config = Hostile({"silent-at-unknown"});
  config.timeouts.probe_ms = 300;
  Start(config);
  EXPECT_EQ(State().view()->info.era, Era::kHandshake);
  EXPECT_EQ(Text("echo", R"({"text": "x"})"), "x");
}

TEST_F(StdioServerTest, ArgumentsArriveAsTheyWereWritten) {
  Start(Hostile({}));
  EXPECT_THAT(
      Text("raw", "{\"number\": 1.10,\n \"other\": 123456789012345678901234567890}"),
      HasSubstr(R"("arguments":{"number": 1.10,  "other": 123456789012345678901234567890})"));
}

TEST_F(StdioServerTest, MessagesMayComeInAnyPieces) {
  Start(Hostile({"bytewise"}));
  EXPECT_EQ(Text("echo", R"({"text": "in pieces"})"), "in pieces");
}

TEST_F(StdioServerTest, ABannerIsPassedOver) {
  Start(Hostile({"banner"}));
  EXPECT_EQ(Text("echo", R"({"text": "x"})"), "x");
}

TEST_F(StdioServerTest, ServerThatPrintsNoJsonIsNamedWithWhatItPrints) {
  Start(Hostile({"noise"}));
  EXPECT_THAT(Problems(), AllOf(HasSubstr("no JSON-RPC message"),
                                HasSubstr("first: not json, line after line")));
  EXPECT_TRUE(registry_.tools().empty());
}

TEST_F(StdioServerTest, ServerThatPrintsAHugeLineAtItsStart) {
  Start(Hostile({"huge-line"}));
  EXPECT_THAT(Problems(), HasSubstr("a line of more than 8388608 bytes"));
}

TEST_F(StdioServerTest, ServerThatCrashesAtItsStartIsNamedWithItsLastWords) {
  Start(Hostile({"crashes"}));
  EXPECT_THAT(Problems(), AllOf(HasSubstr("exit code 2"), HasSubstr("no config file")));
}

TEST_F(StdioServerTest, ServerThatHangsAtItsStart) {
  ServerConfig config = Hostile({"hangs"});
  config.timeouts.probe_ms = config.timeouts.start_ms = 200;
  Start(config);
  EXPECT_THAT(Problems(), HasSubstr("no answer to initialize within 0.2 s"));
}

TEST_F(StdioServerTest, ServerOfAnUnknownRevision) {
  Start(Hostile({"bad-version"}));
  EXPECT_THAT(Problems(), HasSubstr("revision \"1999-01-01\""));
}

TEST_F(StdioServerTest, MissingProgramIsAProblemOfThatServerAlone) {
  ServerConfig missing = Hostile({});
  missing.name = "missing";
  missing.command = {"/no/such/program"};
  ASSERT_TRUE(TryStart({missing, Hostile({})}).ok());
  EXPECT_THAT(Problems(), HasSubstr("/no/such/program"));
  EXPECT_EQ(Text("echo", R"({"text": "x"})"), "x");
}

TEST_F(StdioServerTest, CrashInMidCallIsToldAndTheNextCallHasANewServer) {
  Start(Hostile({}));
  const std::string file = testing::TempDir() + "agentd-mcp-crash-" + std::to_string(getpid());
  const std::string first = Text("pid");
  const ToolResult lost = Call("crash", Json{{"file", file}}.dump());
  EXPECT_TRUE(lost.is_error);
  EXPECT_THAT(
      lost.text,
      AllOf(HasSubstr("Error: s__crash: the MCP server s was lost in the middle of the call"),
            HasSubstr("exit code 3"), HasSubstr("about to crash"),
            HasSubstr("Whether the call took effect is unknown")));
  const std::string second = Text("pid");
  EXPECT_NE(first, second);
  EXPECT_FALSE(Lives(first));
  EXPECT_TRUE(Lives(second));
  // The lost call is not made again.
  std::ifstream in(file);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), "called\n");
  std::filesystem::remove(file);
}

TEST_F(StdioServerTest, ServerThatFailsAgainAndAgainIsLeftAlone) {
  Start(Hostile({}));
  std::string text;
  for (int i = 0; i < 5; ++i) text = Text("crash");
  EXPECT_THAT(text, HasSubstr("was lost"));
  text = Text("crash");
  EXPECT_THAT(text, AllOf(HasSubstr("failed 5 times in a row"), HasSubstr("tried again in")));
}

TEST_F(StdioServerTest, AHugeLineInMidCallEndsTheServer) {
  Start(Hostile({}));
  EXPECT_THAT(Text("huge"), AllOf(HasSubstr("was lost"), HasSubstr("a line of more than")));
  EXPECT_EQ(Text("echo", R"({"text": "again"})"), "again");
}

TEST_F(StdioServerTest, CallThatHangsTimesOutAndAServerThatHangsIsStartedAgain) {
  ServerConfig config = Hostile({});
  Start(config);
  const std::string first = Text("pid");
  config.timeouts.call_ms = 300;
  config.timeouts.probe_ms = 300;
  Start(config);
  const ToolResult hung = Call("hang");
  EXPECT_TRUE(hung.is_error);
  EXPECT_THAT(hung.text, AllOf(HasSubstr("timed out"), HasSubstr("is unknown")));
  for (int i = 0; i < 20; ++i) {
    const ToolResult next = Call("echo", R"({"text": "alive"})");
    if (!next.is_error) break;  // a slow machine may need several tries
  }
  EXPECT_EQ(Text("echo", R"({"text": "alive"})"), "alive");
}

TEST_F(StdioServerTest, CancelEndsACallWhoseServerIgnoresIt) {
  ServerConfig config = Hostile({});
  config.timeouts.probe_ms = 500;
  Start(config);
  const std::string first = Text("pid");
  sandbox::CancelFlag cancel;
  context_.cancel = &cancel;
  std::thread canceller([&cancel] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    cancel.Cancel();
  });
  const ToolResult result = Call("hang");
  canceller.join();
  EXPECT_TRUE(result.cancelled);
  EXPECT_EQ(result.text, "Error: s__hang: cancelled");
  EXPECT_TRUE(Call("echo").cancelled);  // still
  context_.cancel = nullptr;
  std::string second;
  for (int i = 0; i < 20 && (second.empty() || second[0] == 'E'); ++i) second = Text("pid");
  EXPECT_NE(first, second);
  EXPECT_FALSE(Lives(first));
}

TEST_F(StdioServerTest, ProgressExtendsTheTimeAndIsPassedOn) {
  ServerConfig config = Hostile({});
  config.timeouts.call_ms = 1'500;
  Start(config);
  std::string seen;
  context_.on_output = [&seen](std::string_view text) { seen += text; };
  EXPECT_EQ(Text("progress", R"({"steps": 40})"), "done");  // two seconds
  EXPECT_THAT(seen, AllOf(HasSubstr("1/40 step\n"), HasSubstr("39/40 step\n")));
}

TEST_F(StdioServerTest, ProgressWithoutEndDoesNotExtendTheWholeTime) {
  ServerConfig config = Hostile({});
  config.timeouts.total_ms = 1'000;
  Start(config);
  context_.on_output = [](std::string_view) {};
  EXPECT_THAT(Text("progress", R"({"steps": 100000})"), HasSubstr("timed out"));
}

TEST_F(StdioServerTest, StopEndsAServerThatIgnoresTheEndOfItsInput) {
  Start(Hostile({"ignores-eof"}));
  const std::string pid = Text("pid");
  EXPECT_TRUE(Lives(pid));
  session_->Stop();
  EXPECT_FALSE(Lives(pid));
  EXPECT_NE(Text("pid"), pid);
}

TEST_F(StdioServerTest, StopEndsACallThatRuns) {
  Start(Hostile({}));
  EXPECT_EQ(Text("echo"), "(no output)");
  std::thread stopper([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    session_->Stop();
  });
  EXPECT_THAT(Text("hang"), HasSubstr("was lost"));
  stopper.join();
}

TEST_F(StdioServerTest, CallsAtTheSameTimeGetTheirOwnAnswers) {
  Start(Hostile({}));
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([this, i] {
      for (int j = 0; j < 20; ++j) {
        const std::string text = fmt::format("{}-{}", i, j);
        EXPECT_EQ(Text("echo", Json{{"text", text}}.dump()), text);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(StdioServerTest, PagesAreReadToTheLast) {
  Start(Hostile({}));
  const size_t all = registry_.tools().size();
  Start(Hostile({"pages"}));
  EXPECT_EQ(registry_.tools().size(), all);
  Start(Hostile({"same-page"}));
  EXPECT_THAT(Problems(), HasSubstr("the same page again"));
}

TEST_F(StdioServerTest, OnlyTheToolsThatAreWanted) {
  ServerConfig config = Hostile({});
  config.tools = {"echo", "nothing"};
  Start(config);
  EXPECT_EQ(registry_.tools().size(), 1U);
  EXPECT_THAT(Problems(), HasSubstr("no usable tool nothing"));
}

TEST_F(StdioServerTest, NameClashNamesBoth) {
  EXPECT_THAT(agentd::Text(TryStart({Hostile({"clash"})})),
              AllOf(HasSubstr("\"a.b\""), HasSubstr("\"a_b\""), HasSubstr("s__a_b")));
  const absl::Status ours = TryStart({Hostile({"resource-clash"})});
  EXPECT_THAT(agentd::Text(ours), AllOf(HasSubstr("s__read_resource"), HasSubstr("resources")));
  const absl::Status twice = TryStart({Hostile({}), Hostile({})});
  EXPECT_THAT(agentd::Text(twice), HasSubstr("two MCP servers named s"));
}

TEST_F(StdioServerTest, ToolsWithABadSchemaAreLeftOut) {
  Start(Hostile({"bad-schema"}));
  EXPECT_THAT(Problems(), AllOf(HasSubstr("no_schema"), HasSubstr("bad_schema")));
  EXPECT_EQ(registry_.Find("s__bad_schema"), nullptr);
  EXPECT_EQ(Text("echo", R"({"text": "x"})"), "x");
}

TEST_F(StdioServerTest, HintsCountForTrustedServersAlone) {
  ServerConfig config = Hostile({"resources"});
  Start(config);
  for (const Tool* tool : registry_.tools()) {
    EXPECT_FALSE(tool->spec().flags.read_only) << tool->spec().name;
    EXPECT_FALSE(tool->spec().flags.idempotent) << tool->spec().name;
  }
  config.trusted = true;
  Start(config);
  EXPECT_TRUE(registry_.Find("s__pid")->spec().flags.read_only);
  EXPECT_TRUE(registry_.Find("s__read_resource")->spec().flags.read_only);
  EXPECT_TRUE(registry_.Find("s__set")->spec().flags.idempotent);
  EXPECT_FALSE(registry_.Find("s__set")->spec().flags.read_only);
  EXPECT_FALSE(registry_.Find("s__echo")->spec().flags.idempotent);
}

TEST_F(StdioServerTest, WhatTheServerAsksIsAnswered) {
  Start(Hostile({}));
  const Json answers = Json::parse(Text("ask"));
  EXPECT_EQ(answers[0]["id"], "p1");
  EXPECT_TRUE(answers[0]["result"].is_object());
  EXPECT_EQ(answers[1]["id"], "s1");
  EXPECT_EQ(answers[1]["error"]["code"], kMethodNotFound);
}

TEST_F(StdioServerTest, FailuresAndContentBecomeText) {
  Start(Hostile({}));
  const ToolResult failed = Call("fail");
  EXPECT_TRUE(failed.is_error);
  EXPECT_EQ(failed.text, "Error: s__fail: it did not work");
  EXPECT_EQ(Text("refuse"), "Error: s__refuse: no such thing (code -32000)");
  EXPECT_EQ(Text("surrogate"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(Text("mixed"),
            "one\n[image image/png, 3 bytes, not included]\n[resource x://y - why]\n"
            "[resource x://z]\nzed\n{\"n\":1}");
}

TEST_F(StdioServerTest, LongAnswersAreCutInTheMiddle) {
  Start(Hostile({"big-output"}));
  const ToolResult result = Call("set");
  EXPECT_EQ(result.output_bytes, 50'000);
  EXPECT_LE(result.text.size(), 16'500U);
  EXPECT_THAT(result.text, HasSubstr("bytes left out"));
}

TEST_F(StdioServerTest, ResourcesAreListedAndRead) {
  Start(Hostile({"resources"}));
  EXPECT_EQ(Text("list_resources"), "x://one - One (text/plain)");
  EXPECT_EQ(Text("read_resource", R"({"uri": "x://one"})"), "the first");
  EXPECT_THAT(Text("read_resource", R"({"uri": "x://two"})"), HasSubstr("no such thing"));
  Start(Hostile({}));
  EXPECT_EQ(registry_.Find("s__list_resources"), nullptr);
}

TEST(McpToolTest, WithoutASessionThereIsAStatus) {
  signal(SIGPIPE, SIG_IGN);
  ServerConfig config;
  config.name = "s";
  config.command = {"/usr/bin/python3", "tests/mcp/hostile_server.py"};
  auto servers = Servers::Start({config}, {.scratch = ChildPeer::Start});
  ASSERT_TRUE(servers.ok()) << servers.status();
  Registry registry;
  ASSERT_TRUE((*servers)->AddTools(registry, {}).ok());
  EXPECT_EQ(registry.Find("s__echo")->Run("{}", {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace agentd::tools::mcp
