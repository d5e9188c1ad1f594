// The daemon without its socket: turns, tools, forks, rewinds, cancellation, refusals.
#include "agentd/daemon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "agentd/event_feed.h"
#include "agentd/event_kinds.h"
#include "agentd/testing_daemon.h"
#include "agentd/workspace_import.h"
#include "sessions/database.h"

namespace agentd::daemon {
namespace {

using testing::HasSubstr;

class DaemonTest : public testing::Test {
 protected:
  void Start(const Script& script = {}) {
    daemon_.reset();
    absl::StatusOr<std::unique_ptr<Daemon>> daemon =
        Daemon::Start(TestOptions(directory_.path() / "data", script));
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = std::move(daemon).value();
  }
  std::string NewSession(uint64_t seed, int64_t max_tokens = 120) {
    v1::CreateSessionRequest request;
    request.mutable_config()->set_seed(seed);
    request.mutable_config()->set_max_turn_tokens(max_tokens);
    absl::StatusOr<v1::Session> session = daemon_->Create(request);
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? session->id() : "";
  }
  const v1::TurnFinished& LastTurn(const std::vector<v1::Event>& events) {
    for (auto event = events.rbegin(); event != events.rend(); ++event) {
      if (event->has_turn_finished()) return event->turn_finished();
    }
    ADD_FAILURE() << "no turn finished";
    return v1::TurnFinished::default_instance();
  }
  // Starts a session inside a tool call that takes long.
  std::string InsideLongCall() {
    Start({CallsText({CallText("bash", {{"command", "sleep 600"}})}), "Done."});
    const std::string id = NewSession(5, 2000);
    EXPECT_TRUE(daemon_->Run(id, "Sleep.").ok());
    for (bool started = false; !started;) {
      for (const v1::Event& event : AllEvents(*daemon_, id)) started |= event.has_tool_started();
    }
    return id;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Daemon> daemon_;
};

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

TEST_F(DaemonTest, RefusesWhatCannotBe) {
  Start();
  const std::string id = NewSession(1);
  EXPECT_TRUE(absl::IsNotFound(daemon_->Get("01234567890123456789012345").status()));
  EXPECT_TRUE(absl::IsNotFound(daemon_->Run("nobody", "Hi").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon_->Run(id, "").status()));
  v1::CreateSessionRequest request;
  request.mutable_config()->mutable_sampling()->set_top_p(7);
  EXPECT_TRUE(absl::IsInvalidArgument(daemon_->Create(request).status()));
  request.Clear();
  request.mutable_config()->add_tools("teleport");
  EXPECT_THAT(std::string(daemon_->Create(request).status().message()), HasSubstr("teleport"));
  request.Clear();
  request.set_import_directory("relative");
  EXPECT_TRUE(absl::IsInvalidArgument(daemon_->Create(request).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(daemon_->Run(id, std::string(20'000, 'x')).status()));
  v1::ForkSessionRequest fork;
  fork.set_session_id(id);
  fork.mutable_at()->set_seq(1'000'000);
  EXPECT_TRUE(absl::IsOutOfRange(daemon_->Fork(fork).status()));
  EXPECT_EQ(daemon_->List({})->sessions_size(), 1) << "a refused session stayed";
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

TEST_F(DaemonTest, TheFirstLineIsTheTitleOfASessionWithout) {
  Start({"One.", "Two."});
  const std::string id = NewSession(5);
  EXPECT_EQ(daemon_->Get(id)->config().title(), "");
  ASSERT_TRUE(RunTurn(*daemon_, id, "\n  Count the files\nand then go").ok());
  ASSERT_TRUE(RunTurn(*daemon_, id, "Something else").ok());
  v1::CreateSessionRequest request;
  request.mutable_config()->set_title("given");
  request.mutable_config()->set_max_turn_tokens(20);
  const std::string named = daemon_->Create(request)->id();
  ASSERT_TRUE(RunTurn(*daemon_, named, "Hello").ok());
  const std::string long_one = NewSession(5, 20);
  std::string text;
  for (int i = 0; i < 100; ++i) text += "ä";
  ASSERT_TRUE(RunTurn(*daemon_, long_one, text).ok());
  Start();  // it is stored
  EXPECT_EQ(daemon_->Get(id)->config().title(), "Count the files");
  EXPECT_EQ(daemon_->Get(named)->config().title(), "given");
  EXPECT_EQ(daemon_->Get(long_one)->config().title(), text.substr(0, 80) + "…");
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

struct OutputListener : EventListener {
  void OnNews() override {}
  void OnEphemeral(const std::shared_ptr<const v1::Event>& event) override {
    std::lock_guard lock(mutex);
    text += event->tool_output().chunk();
  }
  std::mutex mutex;
  std::string text;
};

// A program may write half a character at a time.
TEST_F(DaemonTest, OutputIsShownInWholeCharacters) {
  Start({CallsText(
             {CallText("bash", {{"command", "printf 'a\\303'; sleep 0.3; printf '\\251b\\303'"}})}),
         "Ok."});
  const std::string id = NewSession(1, 2000);
  auto listener = std::make_shared<OutputListener>();
  (*daemon_->Find(id))->hub->Add(listener);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  std::lock_guard lock(listener->mutex);
  EXPECT_EQ(listener->text, "a\u00e9b\ufffd");
}

TEST_F(DaemonTest, ForkAndRewindGoOnFromAnyPosition) {
  const Script script = {CallsText({CallText("bash", {{"command", "echo one > f"}})}),
                         CallsText({CallText("bash", {{"command", "echo two > f"}})}), "Finished."};
  Start(script);
  const std::string id = NewSession(9, 2000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  const auto tokens = AllTokens(events);
  std::mt19937_64 random(std::random_device{}());
  const auto seed = random();
  RecordProperty("seed", std::to_string(seed));
  random.seed(seed);
  for (int round = 0; round < 6; ++round) {
    v1::ForkSessionRequest fork;
    fork.set_session_id(id);
    fork.set_keep_seed(true);
    const auto position = static_cast<int64_t>(1 + random() % (tokens.size() - 1));
    fork.mutable_at()->set_position(position);
    absl::StatusOr<v1::Session> forked = daemon_->Fork(fork);
    ASSERT_TRUE(forked.ok()) << forked.status() << " position " << position;
    EXPECT_EQ(forked->state(), v1::SESSION_STATE_INTERRUPTED) << position;
    EXPECT_EQ(forked->tokens(), position);
    // The workspace is the point's.
    std::string expected;
    for (const v1::Event& event : events) {
      if (event.position() > position || !event.has_tool_finished()) continue;
      expected = expected.empty() ? "one\n" : "two\n";
    }
    const auto files = Files(forked->workspace());
    EXPECT_EQ(files.contains("f") ? files.at("f") : "", expected) << position;
    ASSERT_TRUE(RunTurn(*daemon_, forked->id(), "").ok());
    EXPECT_EQ(AllTokens(AllEvents(*daemon_, forked->id())), tokens)
        << position << " of seed " << seed;
    EXPECT_EQ(Files(forked->workspace()).at("f"), "two\n");
  }
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.set_keep_seed(true);
  rewind.mutable_to()->set_position(static_cast<int64_t>(tokens.size()) - 4);
  absl::StatusOr<v1::Session> rewound = daemon_->Rewind(rewind);
  ASSERT_TRUE(rewound.ok()) << rewound.status();
  EXPECT_EQ(rewound->state(), v1::SESSION_STATE_INTERRUPTED);
  ASSERT_TRUE(RunTurn(*daemon_, id, "").ok());
  const std::vector<v1::Event> after = AllEvents(*daemon_, id);
  EXPECT_EQ(AllTokens(after), tokens);
  EXPECT_TRUE(Gapless(after));
}

TEST_F(DaemonTest, ARewindThatCannotRestoreTheFilesSaysThatItTookEffect) {
  Start({"One.", "Two."});
  const std::string id = NewSession(7, 100);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
  // What waits for the tools of an earlier life finds no lock that it can open.
  const std::filesystem::path lock = daemon_->runtime().LockOf(id);
  std::filesystem::remove(lock);
  std::filesystem::create_directory(lock);
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_seq(3);
  const absl::Status status = daemon_->Rewind(rewind).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("is rewound to event 3, but: "));
  bool rewound = false;
  for (const v1::Event& event : AllEvents(*daemon_, id)) rewound |= event.has_rewound();
  EXPECT_TRUE(rewound);
  std::filesystem::remove(lock);
}

// Looks at the session at the very moment that events are shown, on the thread that shows them.
class Witness final : public EventListener {
 public:
  explicit Witness(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  void OnNews() override {
    const EventHub::View view = session_->hub->view();
    // After a rewind: what it wrote, two events.
    if (timeline_ != 0 && view.timeline != timeline_) next_ = view.last_seq - 1;
    timeline_ = view.timeline;
    bool busy = false;
    {
      std::lock_guard lock(session_->mutex);
      busy = session_->busy;
    }
    for (const sessions::Event& event : session_->hub->Recent(timeline_, next_, 1000)) {
      next_ = event.seq + 1;
      seen.insert(event.kind);
      if (event.kind == KindOf<v1::TurnStarted>::value) {
        EXPECT_TRUE(view.running);
      }
      if (event.kind == KindOf<v1::TurnFinished>::value ||
          event.kind == KindOf<v1::Rewound>::value) {
        EXPECT_FALSE(busy || view.running) << "kind " << static_cast<int>(event.kind);
      }
    }
  }
  void OnEphemeral(const std::shared_ptr<const v1::Event>&) override {}

  std::set<int> seen;

 private:
  const std::shared_ptr<Session> session_;
  sessions::TimelineId timeline_ = 0;
  uint64_t next_ = 1;
};

TEST_F(DaemonTest, AFeedBeginsAtTheMessageThatItIsAskedFor) {
  Start(Script(60, "Said and done."));
  const std::string id = NewSession(7, 100);
  uint64_t last = 0;
  while (last < 300) {
    ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
    last = daemon_->Get(id)->last_seq();
  }
  const std::vector<v1::Event> all = AllEvents(*daemon_, id);
  const auto session = *daemon_->Find(id);
  for (uint64_t from = last - 30; from <= last; ++from) {
    EventFeed feed(daemon_->runtime(), session, from, 0);
    std::vector<v1::Event> events;
    bool caught_up = false;
    // One reading does: it does not begin with the first event.
    ASSERT_TRUE(feed.Next(events, caught_up).ok());
    ASSERT_EQ(events.size(), last - from + 1);
    for (const v1::Event& event : events) {
      EXPECT_EQ(event.SerializeAsString(), all[event.seq() - 1].SerializeAsString());
    }
  }
}

TEST_F(DaemonTest, WhatIsSeenIsSo) {
  Start({"One.", "Two."});
  const std::string id = NewSession(7, 100);
  const auto session = *daemon_->Find(id);
  const auto witness = std::make_shared<Witness>(session);
  session->hub->Add(witness);
  EventFeed watcher(daemon_->runtime(), session, 1, 0);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
  std::vector<v1::Event> before;
  for (bool caught_up = false; !caught_up;) ASSERT_TRUE(watcher.Next(before, caught_up).ok());
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_seq(3);
  ASSERT_TRUE(daemon_->Rewind(rewind).ok());
  EXPECT_TRUE(witness->seen.contains(KindOf<v1::TurnStarted>::value));
  EXPECT_TRUE(witness->seen.contains(KindOf<v1::TurnFinished>::value));
  EXPECT_TRUE(witness->seen.contains(KindOf<v1::Rewound>::value));
  // A second rewind, back behind the first one's event: the watcher has seen neither.
  rewind.mutable_to()->set_seq(2);
  const absl::StatusOr<v1::Session> rewound = daemon_->Rewind(rewind);
  ASSERT_TRUE(rewound.ok()) << rewound.status();
  std::vector<v1::Event> after;
  for (bool caught_up = false; !caught_up;) ASSERT_TRUE(watcher.Next(after, caught_up).ok());
  ASSERT_GE(after.size(), 2u);
  EXPECT_EQ(after[0].rewound().timeline(), rewound->timeline());
  EXPECT_EQ(after[0].rewound().from_timeline(), before.back().timeline());
  EXPECT_EQ(after[0].rewound().to_seq(), 2u);
  EXPECT_EQ(after[1].seq(), 3u) << "the first event that is not shared";
}

TEST_F(DaemonTest, AnotherModelIsRefusedByName) {
  Start();
  const std::string id = NewSession(7, 40);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
  daemon_.reset();
  DaemonOptions options = TestOptions(directory_.path() / "data", {});
  const std::filesystem::path other = directory_.path() / "other-model";
  std::filesystem::copy(options.model, other, std::filesystem::copy_options::recursive);
  std::fstream weights(other / "model.safetensors", std::ios::in | std::ios::out);
  weights.seekp(-1, std::ios::end);
  weights.put('\x11');
  weights.close();
  options.model = other;
  daemon_ = Daemon::Start(std::move(options)).value();
  const absl::Status status = RunTurn(*daemon_, id, "And now?");
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("made with the model"));
  v1::ForkSessionRequest fork;
  fork.set_session_id(id);
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon_->Fork(fork).status()));
  EXPECT_EQ(daemon_->List({})->sessions_size(), 1);
  Start();
  EXPECT_TRUE(RunTurn(*daemon_, id, "And now?").ok()) << "its own model";
}

TEST_F(DaemonTest, ForkDrawsANewSeedAndSaysSo) {
  Start();
  const std::string id = NewSession(77, 60);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
  v1::ForkSessionRequest fork;
  fork.set_session_id(id);
  absl::StatusOr<v1::Session> forked = daemon_->Fork(fork);
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_NE(forked->seed(), 77u);
  EXPECT_EQ(forked->forked_from(), id);
  EXPECT_EQ(forked->state(), v1::SESSION_STATE_IDLE);
  const std::vector<v1::Event> events = AllEvents(*daemon_, forked->id());
  EXPECT_EQ(events.back().seed_changed().seed(), forked->seed());
}

TEST_F(DaemonTest, NewSessionsShareTheSystemPrompt) {
  Start();
  ASSERT_TRUE(RunTurn(*daemon_, NewSession(1, 20), "Hello").ok());
  const std::string second = NewSession(2, 20);
  ASSERT_TRUE(RunTurn(*daemon_, second, "Something else").ok());
  int64_t restored = 0;
  for (const v1::Event& event : AllEvents(*daemon_, second)) {
    if (!event.has_resumed()) continue;
    restored = event.resumed().restored();
    EXPECT_EQ(event.resumed().prefilled_again(), 0);
    EXPECT_EQ(event.resumed().replayed(), 0);
  }
  EXPECT_GT(restored, 256);
}

// A crash in the middle of a long prefill costs what lies after the last of these.
TEST_F(DaemonTest, ALongPrefillLeavesAnchorsOnItsWay) {
  EXPECT_EQ(SchedulerOptions().prefill_anchor_tokens, 8192);
  constexpr int64_t kEvery = 96;  // not a multiple of a block, nor of a step
  DaemonOptions options = TestOptions(directory_.path() / "data", {"Yes."});
  options.scheduler.prefill_anchor_tokens = kEvery;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(std::move(options));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = std::move(daemon).value();
  const std::string id = NewSession(1);
  ASSERT_TRUE(RunTurn(*daemon_, id, std::string(500, 'x')).ok());
  std::vector<TokenId> prompt;
  for (const auto& [token, sampled] : AllTokens(AllEvents(*daemon_, id))) {
    if (sampled) break;
    prompt.push_back(token);
  }
  const int64_t evaluated = static_cast<int64_t>(prompt.size()) - 1;
  ASSERT_GT(evaluated, 4 * kEvery);
  for (int64_t position = kEvery; position <= evaluated; position += kEvery) {
    const auto point =
        daemon_->runtime().store->FindRestorePoint(daemon_->runtime().owner, prompt, position);
    ASSERT_TRUE(point.ok()) << point.status();
    EXPECT_EQ(point->position, position);
  }
}

TEST_F(DaemonTest, ReadOnlyDirectoriesAreImportedByAnOrdinaryUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  namespace fs = std::filesystem;
  const fs::path from = directory_.path() / "from", to = directory_.path() / "to";
  fs::create_directories(from / "cache/module");
  fs::create_directories(to);
  std::ofstream(from / "cache/module/file") << "x";
  fs::permissions(from / "cache/module", fs::perms{0555});
  fs::permissions(from / "cache", fs::perms{0555});
  for (fs::path open = to; open != open.root_path(); open = open.parent_path())
    if (open.string().starts_with(directory_.path().string()))
      fs::permissions(open, fs::perms{0777});
  fs::permissions(from, fs::perms{0755});
  ASSERT_EQ(::seteuid(65534), 0);
  const absl::Status imported = ImportDirectory(from.string(), to, from);
  const absl::Status copied = ImportDirectory(from.string(), to, "/usr");
  ASSERT_EQ(::seteuid(0), 0);
  EXPECT_FALSE(imported.ok());  // the control: it overlaps with the data
  EXPECT_TRUE(copied.ok()) << copied;
  EXPECT_TRUE(fs::exists(to / "cache/module/file"));
  EXPECT_EQ(fs::status(to / "cache/module").permissions(), fs::perms{0555});
  EXPECT_EQ(fs::status(to / "cache").permissions(), fs::perms{0555});
}

TEST_F(DaemonTest, DeletedSessionIsGone) {
  Start();
  const std::string id = NewSession(1, 20);
  const std::filesystem::path workspace = daemon_->runtime().WorkspaceOf(id);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
  ASSERT_TRUE(daemon_->Delete(id).ok());
  EXPECT_TRUE(absl::IsNotFound(daemon_->Get(id).status()));
  EXPECT_FALSE(std::filesystem::exists(workspace));
}

TEST(NotTheStores, AFailedForkEndsNoDaemon) {
  const absl::Status failed = NotTheStores(absl::UnavailableError("run bwrap: try again"));
  EXPECT_EQ(failed.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(failed.message()), HasSubstr("run bwrap: try again"));
  EXPECT_EQ(NotTheStores(absl::ResourceExhaustedError("pipe2")).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(NotTheStores(absl::FailedPreconditionError("a wall")).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(NotTheStores(absl::OkStatus()).ok());
}

// A call that changed nothing took a snapshot too, which no event names.
TEST_F(DaemonTest, DeletingASessionLeavesNoFileOfItInTheStore) {
  Start({CallsText({CallText("bash", {{"command", "echo 1 > kept"}})}),
         CallsText({CallText("bash", {{"command", "cat kept"}})}), "Ok."});
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Ok.");
  ASSERT_TRUE(daemon_->Delete(id).ok());
  EXPECT_FALSE(std::filesystem::exists(daemon_->runtime().WorkspaceOf(id)));
  daemon_.reset();
  auto database = sessions::internal::Database::Open(directory_.path() / "data/store", false, {});
  ASSERT_TRUE(database.ok()) << database.status();
  int objects = 0;
  const absl::Status scanned = (*database)->Scan(sessions::internal::Column::kFiles, "",
                                                 [&](std::string_view, std::string_view) {
                                                   ++objects;
                                                   return absl::OkStatus();
                                                 });
  EXPECT_TRUE(scanned.ok()) << scanned;
  EXPECT_EQ(objects, 0);
}

TEST_F(DaemonTest, SecondDaemonIsRefused) {
  Start();
  absl::StatusOr<std::unique_ptr<Daemon>> second =
      Daemon::Start(TestOptions(directory_.path() / "data", {}));
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
}

}  // namespace
}  // namespace agentd::daemon
