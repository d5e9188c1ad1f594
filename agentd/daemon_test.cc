// Sessions of a daemon without its socket: made, forked, rewound, deleted, refused.
#include "agentd/daemon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "agentd/event_kinds.h"
#include "agentd/testing_daemon.h"
#include "agentd/workspace_import.h"
#include "sessions/database.h"

namespace agentd::daemon {
namespace {

using testing::HasSubstr;

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
  EXPECT_TRUE(absl::IsResourceExhausted(daemon_->Run(id, std::string(40'000, 'x')).status()));
  v1::ForkSessionRequest fork;
  fork.set_session_id(id);
  fork.mutable_at()->set_seq(1'000'000);
  EXPECT_TRUE(absl::IsOutOfRange(daemon_->Fork(fork).status()));
  EXPECT_EQ(daemon_->List({})->sessions_size(), 1) << "a refused session stayed";
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
