// Turns of a daemon without its socket: what the model samples, tools, limits, cancellation, going
// on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <thread>

#include "agentd/daemon.h"
#include "agentd/testing_daemon.h"

namespace agentd::daemon {
namespace {

using testing::HasSubstr;

TEST_F(DaemonTest, BabblesTheSameForTheSameSeed) {
  Start();
  const uint64_t seed = std::random_device{}();
  RecordProperty("seed", static_cast<int64_t>(seed));
  const std::string a = NewSession(seed), b = NewSession(seed), c = NewSession(seed + 1);
  // Together, so that their rows share steps.
  for (const std::string& id : {a, b, c}) ASSERT_TRUE(daemon_->Run(id, "Hello").ok());
  for (const std::string& id : {a, b, c}) WaitIdle(*daemon_, id);
  const std::vector<v1::Event> events = AllEvents(*daemon_, a);
  EXPECT_TRUE(Gapless(events));
  EXPECT_EQ(AllTokens(events), AllTokens(AllEvents(*daemon_, b))) << "seed " << seed;
  EXPECT_NE(AllTokens(events), AllTokens(AllEvents(*daemon_, c))) << "seed " << seed;
  EXPECT_NE(LastTurn(events).end(), v1::TURN_END_ERROR) << LastTurn(events).error();
  EXPECT_GT(LastTurn(events).sampled_tokens(), 0);
}

TEST_F(DaemonTest, RunsToolsAndGivesTheirResultsToTheModel) {
  Start({"Let me write." +
             CallsText({CallText("write_file", {{"path", "a.txt"}, {"content", "7\n"}})}),
         CallsText({CallText("read_file", {{"path", "a.txt"}}), CallText("list_dir", {})}),
         "It says 7."});
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Write 7 to a.txt.").ok());
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  EXPECT_TRUE(Gapless(events));
  const v1::TurnFinished& finished = LastTurn(events);
  EXPECT_EQ(finished.end(), v1::TURN_END_ANSWER) << finished.error();
  EXPECT_EQ(finished.answer(), "It says 7.");
  EXPECT_EQ(finished.tool_calls(), 3);
  std::vector<std::string> results;
  std::string context;
  for (const v1::Event& event : events) {
    if (event.has_tool_finished()) results.push_back(event.tool_finished().text());
    context += event.tokens().text();
  }
  EXPECT_THAT(results, testing::UnorderedElementsAre("Wrote 2 bytes to a.txt", "7", "a.txt"));
  EXPECT_THAT(context, HasSubstr("<tool_result>7</tool_result>"));
  EXPECT_EQ(Files(daemon_->runtime().WorkspaceOf(id)),
            (std::map<std::string, std::string>{{"a.txt", "7\n"}}));
}

TEST_F(DaemonTest, AnswersCallsThatCannotRun) {
  Start({CallsText({CallText("no_such_tool", {}), CallText("read_file", {{"file", "x"}})}), "Oh."});
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  std::vector<v1::ToolFinished> results;
  for (const v1::Event& event : AllEvents(*daemon_, id)) {
    EXPECT_FALSE(event.has_tool_started());
    if (event.has_tool_finished()) results.push_back(event.tool_finished());
  }
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].text(), "Error: unknown tool no_such_tool");
  EXPECT_EQ(results[1].outcome(), v1::TOOL_OUTCOME_REFUSED);
  EXPECT_THAT(results[1].text(), HasSubstr("Error: read_file: "));
}

// A plain slip in the arguments is mended; the journal and the tool see what the schema accepts.
TEST_F(DaemonTest, RunsCallsWhoseArgumentsCanBeMended) {
  Start({CallsText({CallText("bash", {{"command", "echo mended"}, {"timeout", "30"}})}), "Ok."});
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  std::string arguments, result;
  for (const v1::Event& event : events) {
    if (event.has_tool_started()) arguments = event.tool_started().arguments_json();
    if (event.has_tool_finished()) result = event.tool_finished().text();
  }
  EXPECT_EQ(arguments, R"({"command": "echo mended", "timeout": 30})");
  EXPECT_EQ(result, "mended");
  EXPECT_EQ(LastTurn(events).repaired_calls(), 1);
}

// A model that repeats closing tags does not get out of it: its message ends at the token that made
// it plain, whatever else was sampled with it, and the calls in it run.
TEST_F(DaemonTest, AMessageThatLoopsIsEnded) {
  std::string loop;
  for (int i = 0; i < 200; ++i) loop += "\n</｜DSML｜invoke>";
  Start({CallsText({CallText("bash", {{"command", "echo looped"}})}) + loop, "Ok."});
  std::vector<std::pair<TokenId, bool>> tokens;
  for (int round = 0; round < 2; ++round) {
    const std::string id = NewSession(1, 4000);
    ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
    const std::vector<v1::Event> events = AllEvents(*daemon_, id);
    EXPECT_TRUE(Gapless(events));
    EXPECT_EQ(LastTurn(events).end(), v1::TURN_END_ANSWER) << LastTurn(events).error();
    EXPECT_EQ(LastTurn(events).answer(), "Ok.");
    std::string result, said;
    for (const v1::Event& event : events) {
      if (event.has_tool_finished()) result = event.tool_finished().text();
      if (event.tokens().sampled()) said += event.tokens().text();
    }
    EXPECT_EQ(result, "looped");
    // The call's own closer, and as many as it takes to be sure.
    size_t closers = 0;
    const std::string closer = "</｜DSML｜invoke>";
    for (size_t at = said.find(closer); at != std::string::npos; at = said.find(closer, at + 1))
      ++closers;
    EXPECT_EQ(closers, 1u + tools::DsmlParser::kMaxStrayTags);
    if (round == 0) tokens = AllTokens(events);
    EXPECT_EQ(AllTokens(events), tokens);
  }
}

// The same tokens for whoever goes on from the log, from wherever in the loop.
TEST_F(DaemonTest, AMessageThatLoopsIsEndedTheSameFromItsLog) {
  std::string loop;
  for (int i = 0; i < 200; ++i) loop += "\n</｜DSML｜invoke>";
  Start({CallsText({CallText("bash", {{"command", "echo looped"}})}) + loop, "Ok."});
  const std::string whole = NewSession(7, 4000);
  ASSERT_TRUE(RunTurn(*daemon_, whole, "Go.").ok());
  const std::vector<std::pair<TokenId, bool>> tokens = AllTokens(AllEvents(*daemon_, whole));
  size_t end = 1;  // of the first message's sampled tokens
  while (end < tokens.size() && (!tokens[end - 1].second || tokens[end].second)) ++end;
  ASSERT_LT(end, tokens.size());
  // Cut inside the loop and right behind it, before the message was ended.
  for (const size_t position : {end - 20, end - 1, end}) {
    v1::ForkSessionRequest fork;
    fork.set_session_id(whole);
    fork.mutable_at()->set_position(static_cast<int64_t>(position));
    fork.set_keep_seed(true);
    const auto forked = daemon_->Fork(fork);
    ASSERT_TRUE(forked.ok()) << forked.status();
    ASSERT_TRUE(RunTurn(*daemon_, forked->id(), "").ok());
    EXPECT_EQ(AllTokens(AllEvents(*daemon_, forked->id())), tokens) << position;
  }
}

TEST_F(DaemonTest, UndoesACallWhoseWorkspaceCannotBeStored) {
  Start({CallsText({CallText("bash", {{"command", "echo 1 > kept"}})}),
         CallsText({CallText(
             "bash", {{"command", "echo 2 > kept; for i in $(seq 300); do mkdir d; cd d; done"}})}),
         CallsText({CallText("bash", {{"command", "cat kept; ls"}})}), "Ok."});
  const std::string id = NewSession(1, 4000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Dig.").ok());
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  EXPECT_EQ(LastTurn(events).answer(), "Ok.");
  std::vector<v1::ToolFinished> results;
  for (const v1::Event& event : events) {
    if (event.has_tool_finished()) results.push_back(event.tool_finished());
  }
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[1].outcome(), v1::TOOL_OUTCOME_ERROR);
  EXPECT_THAT(results[1].text(), HasSubstr("undone"));
  EXPECT_EQ(results[2].text(), "1\nkept");
}

TEST_F(DaemonTest, CallLimitEndsTheTurnAndTheNextOneWorks) {
  Start({CallsText({CallText("list_dir", {}), CallText("list_dir", {}), CallText("list_dir", {})}),
         "Fine."});
  v1::CreateSessionRequest request;
  request.mutable_config()->set_max_turn_calls(2);
  request.mutable_config()->set_max_turn_tokens(2000);
  const std::string id = daemon_->Create(request)->id();
  ASSERT_TRUE(RunTurn(*daemon_, id, "Look three times.").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).end(), v1::TURN_END_CALL_LIMIT);
  ASSERT_TRUE(RunTurn(*daemon_, id, "And now?").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Fine.");
}

TEST_F(DaemonTest, TokenLimitClosesTheMessage) {
  Start({std::string(500, 'x'), "Short."});
  const std::string id = NewSession(1, 50);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Talk.").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).end(), v1::TURN_END_TOKEN_LIMIT);
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), std::string(50, 'x'));
  ASSERT_TRUE(RunTurn(*daemon_, id, "Again.").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Short.");
}

TEST_F(DaemonTest, OneTurnAtATimeAndCancelInMidTool) {
  const std::string id = InsideLongCall();
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon_->Run(id, "Hi").status()));
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_seq(1);
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon_->Rewind(rewind).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon_->Delete(id)));
  EXPECT_EQ(daemon_->Get(id)->state(), v1::SESSION_STATE_RUNNING);
  absl::Status outcome = absl::UnknownError("never called");
  daemon_->Cancel(id, [&](absl::Status status) { outcome = std::move(status); });
  WaitIdle(*daemon_, id);
  daemon_->Shutdown();
  EXPECT_TRUE(outcome.ok()) << outcome;
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  EXPECT_EQ(LastTurn(events).end(), v1::TURN_END_CANCELLED);
  EXPECT_EQ(daemon_->Get(id)->state(), v1::SESSION_STATE_IDLE);
}

TEST_F(DaemonTest, CancelledBeforeItBeganLeavesNothing) {
  Start({"Done."});
  const std::string id = NewSession(5);
  // The moment between the tokens of the prompt and the turn's beginning.
  absl::Status cancelled = absl::UnknownError("never called");
  const auto by_another = [&] {
    daemon_->Cancel(id, [&](absl::Status status) { cancelled = std::move(status); });
    return false;
  };
  EXPECT_TRUE(absl::IsCancelled(daemon_->Run(id, "Hi", by_another).status()));
  EXPECT_TRUE(cancelled.ok()) << cancelled;
  EXPECT_TRUE(absl::IsCancelled(daemon_->Run(id, "Hi", [] { return true; }).status()));
  EXPECT_TRUE(AllEvents(*daemon_, id).empty());
  EXPECT_EQ(daemon_->Get(id)->state(), v1::SESSION_STATE_IDLE);
  // No cancellation is left over for the next turn.
  ASSERT_TRUE(RunTurn(*daemon_, id, "Hi").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Done.");
}

TEST_F(DaemonTest, CancelledTurnIsFollowedByAnother) {
  const std::string id = InsideLongCall();
  daemon_->Cancel(id, [](const absl::Status&) {});
  WaitIdle(*daemon_, id);
  ASSERT_TRUE(RunTurn(*daemon_, id, "And now?").ok());
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  EXPECT_EQ(LastTurn(events).answer(), "Done.");
  EXPECT_TRUE(Gapless(events));
}

TEST_F(DaemonTest, StoppedInGoodOrderGoesOnByItself) {
  const Script script = {
      CallsText({CallText("bash", {{"command", "echo x >> log; sleep $(cat pause)"}})}), "Done."};
  Start(script);
  std::filesystem::create_directories(directory_.path() / "in");
  std::ofstream(directory_.path() / "in/pause") << "600";
  v1::CreateSessionRequest request;
  request.set_import_directory((directory_.path() / "in").string());
  request.mutable_config()->set_max_turn_tokens(2000);
  const std::string id = daemon_->Create(request)->id();
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  for (bool started = false; !started;) {
    for (const v1::Event& event : AllEvents(*daemon_, id)) started |= event.has_tool_started();
  }
  daemon_->Shutdown();
  EXPECT_EQ(daemon_->Get(id)->state(), v1::SESSION_STATE_INTERRUPTED);
  EXPECT_TRUE(absl::IsUnavailable(daemon_->Run(id, "").status()));
  // The second attempt starts from the files before the call: one line of log, and the long pause
  // again; so it is cancelled.
  Start(script);
  ASSERT_EQ(daemon_->Get(id)->state(), v1::SESSION_STATE_RUNNING);
  for (int attempt = 0; attempt < 2;) {
    for (const v1::Event& event : AllEvents(*daemon_, id)) {
      if (event.has_tool_started()) attempt = event.tool_started().attempt();
    }
  }
  daemon_->Cancel(id, [](const absl::Status&) {});
  WaitIdle(*daemon_, id);
  const std::map<std::string, std::string> files = Files(daemon_->runtime().WorkspaceOf(id));
  EXPECT_TRUE(!files.contains("log") || files.at("log") == "x\n") << files.at("log");
}

// It may be what ends the daemon each time.
TEST_F(DaemonTest, ACallThatWasStartedManyTimesIsGivenUp) {
  const Script script = {CallsText({CallText("bash", {{"command", "sleep 600"}})}), "Done."};
  Start(script);
  const std::string id = NewSession(5, 2000);
  ASSERT_TRUE(daemon_->Run(id, "Sleep.").ok());
  for (int attempt = 0; attempt < 5; Start(script)) {
    for (const int before = attempt; attempt == before;) {
      for (const v1::Event& event : AllEvents(*daemon_, id)) {
        if (event.has_tool_started()) attempt = event.tool_started().attempt();
      }
    }
  }
  WaitIdle(*daemon_, id);
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  EXPECT_EQ(LastTurn(events).answer(), "Done.");
  for (const v1::Event& event : events) {
    if (!event.has_tool_finished()) continue;
    EXPECT_EQ(event.tool_finished().outcome(), v1::TOOL_OUTCOME_UNKNOWN);
    EXPECT_THAT(event.tool_finished().text(), HasSubstr("outcome unknown"));
  }
}

}  // namespace
}  // namespace agentd::daemon
