// Sessions that work in a folder of the user's: whose it is, what comes back, what is never lost.
#include <fcntl.h>
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <fstream>
#include <thread>

#include "agentd/places.h"
#include "agentd/testing_child.h"
#include "agentd/testing_daemon.h"
#include "base/unique_fd.h"

namespace agentd::daemon {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

const std::string kWriteOne = CallsText({CallText("bash", {{"command", "echo one > f"}})});
const std::string kWriteTwo = CallsText({CallText("bash", {{"command", "echo two > f"}})});

class InPlaceTest : public DaemonTest {
 protected:
  void SetUp() override {
    fs::create_directories(folder_ / "src");
    Write("src/main", "text");
  }
  void Write(const std::string& path, const std::string& text) {
    std::ofstream(folder_ / path) << text;
  }
  absl::StatusOr<v1::Session> Create(const fs::path& folder) {
    v1::CreateSessionRequest request;
    request.mutable_config()->set_seed(7);
    request.mutable_config()->set_max_turn_tokens(2000);
    request.set_import_directory(folder.string());
    request.set_in_place(true);
    return daemon_->Create(request);
  }
  std::string InPlace() {
    const absl::StatusOr<v1::Session> session = Create(folder_);
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? session->id() : "";
  }
  absl::Status Rewind(const std::string& id, uint64_t seq, bool discard = false) {
    v1::RewindSessionRequest request;
    request.set_session_id(id);
    request.mutable_to()->set_seq(seq);
    request.set_discard_changes(discard);
    return daemon_->Rewind(request).status();
  }
  absl::StatusOr<v1::Session> Fork(const std::string& id) {
    v1::ForkSessionRequest request;
    request.set_session_id(id);
    return daemon_->Fork(request);
  }
  std::vector<std::string> Notes(const std::string& id) {
    std::vector<std::string> notes;
    for (const v1::Event& event : AllEvents(*daemon_, id)) {
      if (event.has_note()) notes.push_back(event.note().text());
    }
    return notes;
  }
  uint64_t LastSeq(const std::string& id) { return AllEvents(*daemon_, id).back().seq(); }

  const fs::path folder_ = fs::canonical(directory_.path()) / "project";
};

TEST_F(InPlaceTest, CallsWorkInTheFolderAndRewindsRestoreIt) {
  Start({kWriteOne, "Done.", kWriteTwo, "Done."});
  const std::string id = InPlace();
  const v1::Session session = *daemon_->Get(id);
  EXPECT_TRUE(session.in_place());
  EXPECT_EQ(session.workspace(), folder_.string());
  EXPECT_EQ(session.import_directory(), folder_.string());
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const uint64_t first = LastSeq(id);
  const auto after_first = Files(folder_);
  EXPECT_THAT(after_first, ElementsAre(Pair("f", "one\n"), Pair("src/main", "text")));
  Start({kWriteOne, "Done.", kWriteTwo, "Done."});  // the claim is durable
  EXPECT_TRUE(daemon_->Get(id)->in_place());
  ASSERT_TRUE(RunTurn(*daemon_, id, "Again.").ok());
  EXPECT_THAT(Files(folder_), ElementsAre(Pair("f", "two\n"), Pair("src/main", "text")));
  EXPECT_THAT(Notes(id), IsEmpty());
  ASSERT_TRUE(Rewind(id, first).ok());
  EXPECT_EQ(Files(folder_), after_first);
  ASSERT_TRUE(Rewind(id, 1).ok());
  EXPECT_THAT(Files(folder_), ElementsAre(Pair("src/main", "text")));
  // To before there was anything: not over the user's files.
  const absl::Status empty = Rewind(id, 0);
  EXPECT_TRUE(absl::IsInvalidArgument(empty)) << empty;
  EXPECT_THAT(Files(folder_), ElementsAre(Pair("src/main", "text")));
  EXPECT_FALSE(fs::exists(directory_.path() / "data/workspaces" / id));
}

TEST_F(InPlaceTest, WhatOthersChangeBetweenTurnsIsTakenIntoTheLog) {
  const Script script = {kWriteOne, "Done.", kWriteTwo, "Done.", "Nothing to do."};
  Start(script);
  const std::string id = InPlace();
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const uint64_t first = LastSeq(id);
  Write("src/main", "mine");
  Write("new", "mine");
  // A rewind does not undo what no event has.
  absl::Status refused = Rewind(id, 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2 paths: new, src/main"));
  EXPECT_EQ(Files(folder_).at("new"), "mine");
  for (const bool restart : {false, true}) {
    if (restart) Start(script);
    ASSERT_TRUE(RunTurn(*daemon_, id, "Again.").ok());
    EXPECT_EQ(Files(folder_).at("src/main"), "mine");
    EXPECT_EQ(Files(folder_).at("new"), restart ? "more" : "mine");
    const std::vector<std::string> notes = Notes(id);
    ASSERT_EQ(notes.size(), restart ? 2u : 1u);
    EXPECT_THAT(notes.back(), HasSubstr(restart ? "(1 path: new)" : "(2 paths: new, src/main)"));
    Write("new", "more");
  }
  // It came before the turn that it was found at.
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  ASSERT_TRUE(events[first].has_note());
  EXPECT_TRUE(events[first + 1].has_workspace());
  EXPECT_TRUE(events[first + 2].has_turn_started());
  // The files as they were found are there to go back to; what no event has goes only on demand.
  Write("src/main", "lost");
  EXPECT_TRUE(absl::IsFailedPrecondition(Rewind(id, first + 2)));
  ASSERT_TRUE(Rewind(id, first + 2, /*discard=*/true).ok());
  EXPECT_THAT(Files(folder_),
              ElementsAre(Pair("f", "one\n"), Pair("new", "mine"), Pair("src/main", "mine")));
}

TEST_F(InPlaceTest, AForkIsACopyAndHasWhatOthersChanged) {
  Start({kWriteOne, "Done.", kWriteTwo, "Done."});
  const std::string id = InPlace();
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  Write("new", "mine");
  const absl::StatusOr<v1::Session> fork = Fork(id);
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_FALSE(fork->in_place());
  EXPECT_EQ(fork->import_directory(), folder_.string());
  EXPECT_NE(fork->workspace(), folder_.string());
  EXPECT_EQ(Files(fork->workspace()), Files(folder_));
  EXPECT_EQ(Files(folder_).at("new"), "mine");
  ASSERT_TRUE(RunTurn(*daemon_, fork->id(), "Again.").ok());
  EXPECT_EQ(Files(folder_).at("f"), "one\n");
  EXPECT_TRUE(Rewind(id, 1).ok()) << "the fork took it in";
}

TEST_F(InPlaceTest, DeletingLeavesTheFolderAndFreesIt) {
  Start({kWriteOne, "Done."});
  const std::string id = InPlace();
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const auto files = Files(folder_);
  const absl::Status second = Create(folder_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(second)) << second;
  EXPECT_THAT(std::string(second.message()), AllOf(HasSubstr(id), HasSubstr(folder_.string())));
  EXPECT_TRUE(absl::IsFailedPrecondition(Create(folder_ / "src").status()));
  EXPECT_EQ(daemon_->List({})->sessions_size(), 1) << "a refused session stayed";
  EXPECT_EQ(Files(folder_), files) << "a refused session took files with it";
  ASSERT_TRUE(daemon_->Delete(id).ok());
  EXPECT_EQ(Files(folder_), files);
  EXPECT_TRUE(Create(folder_ / "src").ok());
}

TEST_F(InPlaceTest, AFolderThatIsGoneIsNamedWithTheMend) {
  Start({kWriteOne, "Done.", kWriteTwo, "Done."});
  const std::string id = InPlace();
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const auto files = Files(folder_);
  const fs::path elsewhere = folder_.parent_path() / "elsewhere";
  for (const bool restart : {false, true}) {
    fs::rename(folder_, elsewhere);
    if (restart) Start({kWriteOne, "Done.", kWriteTwo, "Done."});
    for (const absl::Status& status :
         {daemon_->Run(id, "Again.").status(), Rewind(id, 1), Rewind(id, 1, true)}) {
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr(folder_.string()), HasSubstr("put the folder back"),
                        HasSubstr("agentctl fork")));
    }
    EXPECT_FALSE(fs::exists(folder_)) << "somebody made an empty one";
    const absl::StatusOr<v1::Session> fork = Fork(id);
    ASSERT_TRUE(fork.ok()) << fork.status();
    EXPECT_EQ(Files(fork->workspace()), files);
    fs::rename(elsewhere, folder_);
  }
  ASSERT_TRUE(RunTurn(*daemon_, id, "Again.").ok());
  EXPECT_EQ(Files(folder_).at("f"), "two\n");
}

TEST_F(InPlaceTest, FoldersThatNoSessionMayHave) {
  Start();
  const auto refusal = [&](const fs::path& folder) {
    const absl::Status status = Create(folder).status();
    EXPECT_FALSE(status.ok()) << folder;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal("relative"), HasSubstr("not an absolute path"));
  EXPECT_THAT(refusal(folder_ / "none"), HasSubstr("is not a directory"));
  EXPECT_THAT(refusal("/"), HasSubstr("does not work in /"));
  ::setenv("HOME", folder_.c_str(), 1);
  EXPECT_THAT(refusal(folder_), HasSubstr("home directory"));
  EXPECT_THAT(refusal(folder_.parent_path()), HasSubstr("home directory"));
  ::setenv("HOME", "/nonexistent", 1);
  EXPECT_THAT(refusal(directory_.path()), HasSubstr("overlap"));
  EXPECT_THAT(refusal(directory_.path() / "data"), HasSubstr("overlap"));
  EXPECT_THAT(refusal(directory_.path() / "data/store"), HasSubstr("overlap"));
  EXPECT_THAT(refusal(TestModel()), HasSubstr("overlap"));
  EXPECT_THAT(refusal(AGENTD_HELPER_DIR_FOR_TEST), HasSubstr("overlap"));
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown((folder_ / "src").c_str(), 65534, 65534), 0);
    EXPECT_THAT(refusal(folder_ / "src"), HasSubstr("belongs to another user"));
  }
  ASSERT_EQ(::mkfifo((folder_ / "src/fifo").c_str(), 0600), 0);
  EXPECT_THAT(refusal(folder_), HasSubstr("src/fifo is neither a file"));
  fs::remove(folder_ / "src/fifo");
  EXPECT_EQ(daemon_->List({})->sessions_size(), 0);
  EXPECT_TRUE(Create(folder_).ok());
}

TEST_F(InPlaceTest, WhatTheDaemonIsRunWithIsKeptApart) {
  Write("src/agentd.toml", "");
  DaemonOptions options = Options({});
  options.kept_apart = {folder_ / "src/agentd.toml"};
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = *std::move(daemon);
  fs::create_directories(folder_ / "other");
  for (const fs::path& folder : {folder_, folder_ / "src"}) {
    EXPECT_THAT(std::string(Create(folder).status().message()), HasSubstr("src/agentd.toml"));
  }
  EXPECT_TRUE(Create(folder_ / "other").ok());
}

TEST_F(InPlaceTest, TheConfigurationMayForbidOrNarrowIt) {
  Configure("[in_place]\nallowed = false\n");
  Start();
  EXPECT_THAT(std::string(Create(folder_).status().message()),
              HasSubstr("no session work in place"));
  Configure("[in_place]\nroots = [\"" + (folder_ / "src").string() + "\"]\n");
  Start();
  EXPECT_THAT(std::string(Create(folder_).status().message()), HasSubstr("below none of"));
  EXPECT_TRUE(Create(folder_ / "src").ok());
  EXPECT_THAT(
      std::string(tools::ParseConfig("[in_place]\nroots = [\"x\"]\n", "t").status().message()),
      HasSubstr("t, line 2: [in_place] roots: x is not an absolute path"));
}

TEST_F(InPlaceTest, AnotherDaemonIsKeptOut) {
  Start({kWriteOne, "Done."});
  const std::string id = InPlace();
  absl::StatusOr<std::unique_ptr<Daemon>> other =
      Daemon::Start(TestOptions(directory_.path() / "other", {}));
  ASSERT_TRUE(other.ok()) << other.status();
  v1::CreateSessionRequest request;
  request.set_import_directory(folder_.string());
  request.set_in_place(true);
  EXPECT_THAT(std::string((*other)->Create(request).status().message()), HasSubstr("is in use"));
  daemon_.reset();
  // It is free while no daemon holds it; then the first one finds it taken.
  ASSERT_TRUE((*other)->Create(request).ok());
  Start({kWriteOne, "Done."});
  const absl::Status taken = daemon_->Run(id, "Go.").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(taken)) << taken;
  EXPECT_THAT(std::string(taken.message()), HasSubstr("is in use"));
}

// As after a restore from a backup: the store alone comes along.
TEST_F(InPlaceTest, ARestoredStoreGoesOnInACopy) {
  Start({kWriteOne, "Done.", kWriteTwo, "Done."});
  const std::string id = InPlace();
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const auto files = Files(folder_);
  daemon_.reset();
  const fs::path other = directory_.path() / "other";
  fs::create_directories(other);
  fs::copy(directory_.path() / "data/store", other / "store", fs::copy_options::recursive);
  DaemonOptions options = Options({kWriteOne, "Done.", kWriteTwo, "Done."});
  options.data = other;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  EXPECT_FALSE((*daemon)->Get(id)->in_place());
  EXPECT_EQ((*daemon)->Get(id)->import_directory(), folder_.string());
  ASSERT_TRUE(RunTurn(**daemon, id, "Again.").ok());
  EXPECT_EQ(Files((*daemon)->Get(id)->workspace()).at("f"), "two\n");
  EXPECT_EQ(Files(folder_), files);
}

TEST_F(InPlaceTest, AClaimWithoutASessionIsReleased) {
  {
    const auto places = Places::Open(directory_.path() / "data/places");
    ASSERT_TRUE(places.ok()) << places.status();
    ASSERT_TRUE((*places)->Claim("01ARZ3NDEKTSV4RRFFQ69G5FAV", folder_).ok());
  }
  Start();
  EXPECT_TRUE(Create(folder_).ok());
}

// A daemon that is stopped in the middle of a call: the call runs again from the files as they
// were, and what was found is in the log.
TEST_F(InPlaceTest, ACallThatWasCutOffRunsAgainFromTheFilesBeforeIt) {
  const Script script = {
      CallsText({CallText("bash", {{"command", "echo x >> f; touch started; sleep 600"}})}),
      "Done."};
  Start(script);
  Write("f", "");
  const std::string id = InPlace();
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  while (!fs::exists(folder_ / "started"))
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  daemon_.reset();  // parks
  EXPECT_EQ(Files(folder_).at("f"), "x\n");
  Write("mine", "kept");
  DaemonOptions options = Options(script);
  options.resume = false;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = *std::move(daemon);
  // What the first run left is no sign of the second: held, so that its inode is not used again.
  const UniqueFd first(::open((folder_ / "started").c_str(), O_RDONLY | O_CLOEXEC));
  struct stat before, now;
  ASSERT_EQ(::fstat(first.get(), &before), 0);
  ASSERT_TRUE(daemon_->Run(id, "").ok());
  while (::stat((folder_ / "started").c_str(), &now) != 0 || now.st_ino == before.st_ino)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(Files(folder_).at("f"), "x\n") << "it ran on its own half";
  ASSERT_THAT(Notes(id), testing::SizeIs(1));
  EXPECT_THAT(Notes(id)[0], HasSubstr("3 paths: f, mine, started"));
  // What was found is in a workspace event right after the note.
  const std::vector<v1::Event> events = AllEvents(*daemon_, id);
  const auto note = std::find_if(events.begin(), events.end(),
                                 [](const v1::Event& event) { return event.has_note(); });
  v1::DiffWorkspaceRequest request;
  request.set_session_id(id);
  request.set_to_seq(note->seq() + 1);
  std::vector<std::string> found;
  ASSERT_TRUE(daemon_
                  ->DiffWorkspace(request,
                                  [&](const v1::DiffWorkspacePart& part) {
                                    if (part.has_change()) found.push_back(part.change().path());
                                    return absl::OkStatus();
                                  })
                  .ok());
  EXPECT_THAT(found, ElementsAre("f", "mine", "started"));
}

// ---- a daemon that is killed

constexpr char kChildRoot[] = "AGENTD_TEST_IN_PLACE";

Script TwoTurns() {
  return {CallsText({CallText("bash", {{"command", "echo x >> f"}})}), "Done.",
          CallsText({CallText("bash", {{"command", "echo y >> f"}})}), "Done."};
}

// Two turns in `root`/project, with a change from outside between them.
void LiveInPlace(Daemon& daemon, const fs::path& root) {
  v1::CreateSessionRequest request;
  request.mutable_config()->set_seed(7);
  request.mutable_config()->set_max_turn_tokens(2000);
  request.set_import_directory((root / "project").string());
  request.set_in_place(true);
  const absl::StatusOr<v1::Session> session = daemon.Create(request);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(RunTurn(daemon, session->id(), "Go.").ok());
  std::ofstream(root / "project/mine") << "kept";
  ASSERT_TRUE(RunTurn(daemon, session->id(), "Again.").ok());
}

// Run in a process of its own, with AGENTD_CRASH_POINT.
TEST(InPlaceChild, DISABLED_Lives) {
  const fs::path root = std::getenv(kChildRoot);
  const auto daemon = Daemon::Start(TestOptions(root / "data", TwoTurns()));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  LiveInPlace(**daemon, root);
}

// The folder ends up the same wherever it happens: nothing is done twice or lost, and nobody stays
// in it who is gone.
TEST_F(InPlaceTest, KilledAnywhereItGoesOnInTheFolder) {
  const fs::path root = folder_.parent_path();
  for (const char* point :
       {"agentd.claimed", "agentd.imported", "agentd.call_journaled", "agentd.tool_exited:2",
        "agentd.result_ready", "agentd.result_committed:2", "agentd.changes_taken_in",
        "agentd.turn_started:2"}) {
    SCOPED_TRACE(point);
    fs::remove_all(root / "data");
    fs::remove_all(folder_);
    SetUp();
    const int status = Wait(StartSelf("InPlaceChild.DISABLED_Lives",
                                      {{kChildRoot, root}, {"AGENTD_CRASH_POINT", point}}));
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 137) << "not passed";
    Start(TwoTurns());
    if (daemon_->List({})->sessions_size() == 0) {
      EXPECT_THAT(Files(folder_), ElementsAre(Pair("src/main", "text")));
      LiveInPlace(*daemon_, root);
    }
    ASSERT_EQ(daemon_->List({})->sessions_size(), 1);
    const std::string id = daemon_->List({})->sessions(0).id();
    WaitIdle(*daemon_, id);
    int turns = 0;
    for (const v1::Event& event : AllEvents(*daemon_, id)) turns += event.has_turn_finished();
    if (turns < 2) {
      Write("mine", "kept");
      ASSERT_TRUE(RunTurn(*daemon_, id, "Again.").ok());
    }
    EXPECT_THAT(Files(folder_),
                ElementsAre(Pair("f", "x\ny\n"), Pair("mine", "kept"), Pair("src/main", "text")));
    EXPECT_TRUE(daemon_->Get(id)->in_place());
    daemon_.reset();
  }
}

}  // namespace
}  // namespace agentd::daemon
