// A process that dies at each named place, and at random: what the next one makes of it is what an
// uninterrupted one makes, token for token and file for file.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>

#include "agentd/testing_child.h"
#include "agentd/testing_daemon.h"
#include "base/sanitized.h"
#include "base/status.h"
#include "sessions/database.h"
#include "sessions/record.h"

namespace agentd::daemon {
namespace {

constexpr char kChildData[] = "AGENTD_TEST_CHILD_DATA";
constexpr char kChildAction[] = "AGENTD_TEST_CHILD_ACTION";  // "turn", "long", "fork"...
constexpr uint64_t kSeed = 4242;

// Writes, then appends (once: a second run of the call would show), reads in parallel, babbles.
const Script& TheScript() {
  static const auto* script = new Script{
      "I write." + CallsText({CallText("write_file", {{"path", "n.txt"}, {"content", "1\n"}})}),
      CallsText({CallText("bash", {{"command", "echo 2 >> n.txt; echo said"}})}),
      CallsText({CallText("read_file", {{"path", "n.txt"}}), CallText("list_dir", {})}),
  };
  return *script;
}

// All that the script takes, and some babble: that is the model's own, so it shows that state came
// back to the bit.
constexpr int64_t kScriptTokens = 157, kTurnTokens = kScriptTokens + 43;

// Long enough for several tail anchors.
constexpr int64_t kShortTail = 96;
const Script& LongScript() {
  static const auto* script = new Script{std::string(400, 'x') + " end"};
  return *script;
}
DaemonOptions LongOptions(const std::filesystem::path& data) {
  DaemonOptions options = TestOptions(data, LongScript());
  options.scheduler.tail_anchor_tokens = kShortTail;
  return options;
}

constexpr char kTitle[] = "the session";

v1::CreateSessionRequest TheSession(int64_t max_turn_tokens) {
  v1::CreateSessionRequest request;
  request.mutable_config()->set_title(kTitle);
  request.mutable_config()->set_seed(kSeed);
  request.mutable_config()->set_max_turn_tokens(max_turn_tokens);
  return request;
}

// Empty if the directory has none yet.
std::string FindTheSession(Daemon& daemon) {
  absl::StatusOr<v1::ListSessionsResponse> list = daemon.List({});
  EXPECT_TRUE(list.ok()) << list.status();
  for (const v1::Session& session : list->sessions()) {
    if (session.config().title() == kTitle && session.forked_from().empty()) return session.id();
  }
  return "";
}

// The call that appends is one that a person is asked about.
DaemonOptions AskingOptions(const std::filesystem::path& data) {
  DaemonOptions options = TestOptions(data, TheScript());
  absl::StatusOr<tools::Config> config = tools::ParseConfig(
      "[[rule]]\ntool = \"bash\"\nwhen = { command = \"echo 2*\" }\naction = \"ask\"\n",
      "test.toml");
  AGENTD_CHECK(config.ok());
  options.tools = *std::move(config);
  return options;
}

// Until no turn runs, with a person there who says yes.
void SayYesUntilIdle(Daemon& daemon, const std::string& id) {
  for (;;) {
    const absl::StatusOr<v1::Session> session = daemon.Get(id);
    ASSERT_TRUE(session.ok()) << session.status();
    const bool waiting = session->state() == v1::SESSION_STATE_WAITING;
    if (!waiting && session->state() != v1::SESSION_STATE_RUNNING) return;
    if (waiting) {
      v1::AnswerApprovalRequest yes;
      yes.set_session_id(id);
      yes.set_decision(v1::APPROVAL_DECISION_ALLOW_ONCE);
      daemon.AnswerApproval(yes, [](const absl::Status&) {});
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

// Whatever the directory holds becomes a session whose one turn is over.
std::string Complete(Daemon& daemon) {
  std::string id = FindTheSession(daemon);
  if (id.empty()) {
    absl::StatusOr<v1::Session> session = daemon.Create(TheSession(kTurnTokens));
    EXPECT_TRUE(session.ok()) << session.status();
    id = session->id();
  }
  SayYesUntilIdle(daemon, id);
  bool started = false;
  for (const v1::Event& event : AllEvents(daemon, id)) started |= event.has_user_message();
  if (!started) {
    const absl::StatusOr<Daemon::Started> run = daemon.Run(id, "Do it.");
    EXPECT_TRUE(run.ok()) << run.status();
    SayYesUntilIdle(daemon, id);
  }
  return id;
}

struct Outcome {
  std::vector<std::pair<TokenId, bool>> tokens;
  std::map<std::string, std::string> files;
  std::vector<v1::Event> events;
};

Outcome Finish(const std::filesystem::path& data) {
  Outcome outcome;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(AskingOptions(data));
  EXPECT_TRUE(daemon.ok()) << daemon.status();
  if (!daemon.ok()) return outcome;
  const std::string id = Complete(**daemon);
  outcome.events = AllEvents(**daemon, id);
  outcome.tokens = AllTokens(outcome.events);
  outcome.files = Files((*daemon)->runtime().WorkspaceOf(id));
  EXPECT_EQ((*daemon)->Get(id)->state(), v1::SESSION_STATE_IDLE);
  return outcome;
}

// Copies a directory that nobody works on.
std::filesystem::path CopyOf(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
  return to;
}

// A data directory in which another session has been through the system prompt: the tests' lives
// read its state instead of computing it, which under sanitizers is most of their time.
std::filesystem::path WarmCopy(const std::filesystem::path& to) {
  static const TemporaryDirectory* warm = [] {
    auto* directory = new TemporaryDirectory;
    auto daemon = Daemon::Start(TestOptions(directory->path() / "data", {"Ready."}));
    AGENTD_CHECK(daemon.ok());
    AGENTD_CHECK(RunTurn(**daemon, (*daemon)->Create({})->id(), "Hello.").ok());
    return directory;
  }();
  return CopyOf(warm->path() / "data", to);
}

const Outcome& Uninterrupted() {
  static const auto* outcome = [] {
    TemporaryDirectory directory;
    return new Outcome(Finish(WarmCopy(directory.path() / "data")));
  }();
  return *outcome;
}

// Runs this program again as a child that works on `data`.
pid_t StartChild(const std::filesystem::path& data, const std::string& crash_point,
                 const std::string& action = "turn") {
  std::map<std::string, std::string> environment = {{kChildData, data.string()},
                                                    {kChildAction, action}};
  if (!crash_point.empty()) environment["AGENTD_CRASH_POINT"] = crash_point;
  return StartSelf("CrashChild.DISABLED_Lives", environment);
}

void ExpectSame(const Outcome& outcome, const std::string& where) {
  EXPECT_EQ(outcome.tokens, Uninterrupted().tokens) << where;
  EXPECT_EQ(outcome.files, Uninterrupted().files) << where;
  EXPECT_TRUE(Gapless(outcome.events)) << where;
  for (const v1::Event& event : outcome.events) {
    if (!event.has_resumed()) continue;
    EXPECT_EQ(event.resumed().prefilled_again(), 0) << where;
    EXPECT_LE(event.resumed().replayed(), kTailAnchorTokens) << where;
  }
}

// The child's life; only StartChild runs it.
TEST(CrashChild, DISABLED_Lives) {
  const char* data = std::getenv(kChildData);
  ASSERT_NE(data, nullptr);
  const std::string action = std::getenv(kChildAction);
  if (action == "turn") {
    Finish(data);
    return;
  }
  auto daemon =
      Daemon::Start(action == "long" ? LongOptions(data) : TestOptions(data, TheScript()));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  if (action == "import") {
    v1::CreateSessionRequest request;
    request.set_import_directory(std::string(data) + ".import");
    ASSERT_TRUE((*daemon)->Create(request).ok());
    return;
  }
  std::string id = FindTheSession(**daemon);
  if (action == "long") {
    // The first life makes the session, later ones go on by themselves.
    if (id.empty()) {
      id = (*daemon)->Create(TheSession(/*max_turn_tokens=*/10'000))->id();
      ASSERT_TRUE((*daemon)->Run(id, "Go.").ok());
    }
    WaitIdle(**daemon, id);
    return;
  }
  const v1::Session session = *(*daemon)->Get(id);
  if (action == "fork") {
    v1::ForkSessionRequest fork;
    fork.set_session_id(session.id());
    fork.mutable_at()->set_position(session.tokens() - 30);
    fork.set_keep_seed(true);
    ASSERT_TRUE((*daemon)->Fork(fork).ok());
  } else {
    v1::RewindSessionRequest rewind;
    rewind.set_session_id(session.id());
    rewind.mutable_to()->set_position(session.tokens() - 30);
    rewind.set_keep_seed(true);
    ASSERT_TRUE((*daemon)->Rewind(rewind).ok());
  }
}

TEST(CrashTest, TheUninterruptedRunDoesWhatTheScriptSays) {
  EXPECT_EQ(Uninterrupted().files, (std::map<std::string, std::string>{{"n.txt", "1\n2\n"}}));
  int results = 0;
  for (const v1::Event& event : Uninterrupted().events) results += event.has_tool_finished();
  EXPECT_EQ(results, 4);
  EXPECT_GT(Uninterrupted().tokens.size(), 256u) << "no block was stored on the way";
  const auto& last = Uninterrupted().events.back().turn_finished();
  EXPECT_GT(last.sampled_tokens(), kScriptTokens + 20) << "no babble after the script";
}

// Nothing stored before: the same tokens.
TEST(CrashTest, AColdStartSaysTheSame) {
  TemporaryDirectory directory;
  ExpectSame(Finish(directory.path() / "data"), "cold");
}

class CrashPointTest : public testing::TestWithParam<const char*> {};

TEST_P(CrashPointTest, NothingIsLostOrDoneTwice) {
  TemporaryDirectory directory;
  const std::filesystem::path data = directory.path() / "data";
  WarmCopy(data);
  const int status = Wait(StartChild(data, GetParam()));
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 137)
      << "the child did not pass " << GetParam();
  ExpectSame(Finish(data), GetParam());
}

// `later`: the same places in a later call or commit.
std::vector<const char*> CrashPoints() {
  std::vector<const char*> points = {
      "agentd.turn_starting",    "agentd.turn_started",     "agentd.anchor",
      "agentd.tokens",           "agentd.dsml_closed",      "agentd.call_ready",
      "agentd.call_journaled",   "agentd.tool_running",     "agentd.tool_exited",
      "agentd.result_ready",     "agentd.result_committed", "agentd.prompt",
      "agentd.turn_finishing",   "agentd.turn_finished",    "batch_before:4",
      "batch_after:5",           "values_intents:2",        "values_written:2",
      "values_flushed:3",        "agentd.csa_read",         "agentd.approval_asked",
      "agentd.approval_answered"};
  const std::vector<const char*> later = {
      "agentd.anchor:2",         "agentd.tokens:3",           "agentd.dsml_closed:2",
      "agentd.call_journaled:2", "agentd.call_journaled:3",   "agentd.tool_exited:2",
      "agentd.result_ready:2",   "agentd.result_committed:2", "agentd.prompt:2"};
  if (!kSanitized) points.insert(points.end(), later.begin(), later.end());
  return points;
}

INSTANTIATE_TEST_SUITE_P(All, CrashPointTest, testing::ValuesIn(CrashPoints()),
                         [](const testing::TestParamInfo<const char*>& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (c == '.' || c == ':') c = '_';
                           }
                           return name;
                         });

// A data directory in which the session's turn is over.
std::filesystem::path FinishedCopy(const std::filesystem::path& to) {
  static const TemporaryDirectory* finished = [] {
    auto* directory = new TemporaryDirectory;
    Finish(WarmCopy(directory->path() / "data"));
    return directory;
  }();
  return CopyOf(finished->path() / "data", to);
}

class BranchCrashTest : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(BranchCrashTest, EverySessionIsWholeAndGoesOn) {
  const auto& [action, point] = GetParam();
  TemporaryDirectory directory;
  const std::filesystem::path data = FinishedCopy(directory.path() / "data");
  const int status = Wait(StartChild(data, point, action));
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 137) << point;
  auto daemon = Daemon::Start(TestOptions(data, TheScript()));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  absl::StatusOr<v1::ListSessionsResponse> list = (*daemon)->List({});
  ASSERT_TRUE(list.ok()) << list.status();
  for (const v1::Session& session : list->sessions()) {
    if (session.config().title() != kTitle) continue;
    absl::Status more = RunTurn(**daemon, session.id(), "");
    // A session that was left at its turn's end has nothing to go on with.
    EXPECT_TRUE(more.ok() || absl::IsFailedPrecondition(more)) << more;
    Outcome outcome;
    outcome.events = AllEvents(**daemon, session.id());
    outcome.tokens = AllTokens(outcome.events);
    outcome.files = Files(session.workspace());
    ExpectSame(outcome, point);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BranchCrashTest,
    testing::Values(std::pair("fork", "fork_before"), std::pair("fork", "fork_after"),
                    std::pair("fork", "agentd.forked"), std::pair("rewind", "agentd.rewinding"),
                    std::pair("rewind", "rewind_before"), std::pair("rewind", "rewind_after"),
                    std::pair("rewind", "agentd.rewound")),
    [](const testing::TestParamInfo<std::pair<const char*, const char*>>& info) {
      std::string name = info.param.second;
      std::replace(name.begin(), name.end(), '.', '_');
      return name;
    });

TEST(CrashTest, ALongAnswerReplaysAtMostATailAnchor) {
  TemporaryDirectory directory;
  const std::filesystem::path data = WarmCopy(directory.path() / "data");
  for (const char* point : {"agentd.anchor:3", "agentd.anchor:2"}) {
    const int status = Wait(StartChild(data, point, "long"));
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 137) << point;
  }
  auto daemon = Daemon::Start(LongOptions(data));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const std::string id = FindTheSession(**daemon);
  WaitIdle(**daemon, id);
  const std::vector<v1::Event> events = AllEvents(**daemon, id);
  int resumes = 0;
  for (const v1::Event& event : events) {
    if (!event.has_resumed()) continue;
    resumes += event.resumed().after_crash();
    EXPECT_GT(event.resumed().restored(), 0);
    EXPECT_EQ(event.resumed().prefilled_again(), 0);
    EXPECT_LE(event.resumed().replayed(), kShortTail);
  }
  EXPECT_GE(resumes, 1);  // the second life may have died before its own was durable
  ASSERT_TRUE(events.back().has_turn_finished());
  EXPECT_EQ(events.back().turn_finished().answer(), LongScript()[0]);
}

// Flips bytes all over the blob files: KV values of some size are there, no events. All of them,
// since a compaction may put old values into the newest file.
int DamageBlobs(const std::filesystem::path& store) {
  int damaged = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(store)) {
    if (entry.path().extension() != ".blob") continue;
    const uintmax_t size = entry.file_size();
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    for (uintmax_t at = 1000; at < size; at += 2000) {
      file.seekg(static_cast<std::streamoff>(at));
      const char byte = static_cast<char>(file.get() ^ 0x10);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(byte);
      ++damaged;
    }
  }
  return damaged;
}

// A second turn of the finished session: its tokens, and what it had to evaluate again.
std::pair<std::vector<std::pair<TokenId, bool>>, int64_t> OneMoreTurn(
    const std::filesystem::path& data, const Script& script) {
  auto daemon = Daemon::Start(TestOptions(data, script));
  EXPECT_TRUE(daemon.ok()) << daemon.status();
  if (!daemon.ok()) return {};
  const std::string id = FindTheSession(**daemon);
  const uint64_t before = AllEvents(**daemon, id).back().seq();
  absl::Status status = RunTurn(**daemon, id, "More.");
  EXPECT_TRUE(status.ok()) << status;
  const std::vector<v1::Event> events = AllEvents(**daemon, id);
  int64_t prefilled_again = 0;
  for (const v1::Event& event : events) {
    if (event.seq() > before) prefilled_again += event.resumed().prefilled_again();
  }
  return {AllTokens(events), prefilled_again};
}

TEST(CrashTest, DamagedKvCostsTimeAndNothingElse) {
  TemporaryDirectory directory;
  const std::filesystem::path whole = FinishedCopy(directory.path() / "whole");
  const std::filesystem::path damaged = FinishedCopy(directory.path() / "damaged");
  ASSERT_GT(DamageBlobs(damaged / "store"), 0);
  const auto expected = OneMoreTurn(whole, TheScript());
  const auto mended = OneMoreTurn(damaged, TheScript());
  EXPECT_EQ(mended.first, expected.first);
  EXPECT_EQ(expected.second, 0);
  EXPECT_GT(mended.second, 0);
  Script script = TheScript();
  script.resize(6, "Enough.");
  EXPECT_EQ(OneMoreTurn(damaged, script).second, 0) << "what was computed again was not stored";
}

constexpr char kOtherAnchor[] = "not an anchor of this engine";

// Puts something else under a right checksum into every anchor: whole, but of no use to the engine.
void ReplaceAnchors(const std::filesystem::path& store) {
  namespace internal = sessions::internal;
  constexpr internal::Column kColumn = internal::Column::kAnchors;
  auto database = internal::Database::Open(store, false, {});
  ASSERT_TRUE(database.ok()) << database.status();
  std::vector<internal::WriteEntry> writes;
  const absl::Status scanned =
      (*database)->Scan(kColumn, "", [&](std::string_view key, std::string_view value) {
        absl::StatusOr<internal::AnchorValue> anchor = internal::DecodeAnchor(key, value);
        if (!anchor.ok()) return anchor.status();
        anchor->data = kOtherAnchor;
        writes.push_back({kColumn, std::string(key), internal::EncodeAnchor(key, *anchor)});
        return absl::OkStatus();
      });
  ASSERT_TRUE(scanned.ok()) << scanned;
  ASSERT_GT(writes.size(), 1u);
  const absl::Status written = (*database)->Write(writes, /*sync=*/true);
  ASSERT_TRUE(written.ok()) << written;
}

TEST(CrashTest, KvThatDoesNotFitIsComputedAndStoredAgain) {
  TemporaryDirectory directory;
  const std::filesystem::path whole = FinishedCopy(directory.path() / "whole");
  const std::filesystem::path other = FinishedCopy(directory.path() / "other");
  ReplaceAnchors(other / "store");
  const auto expected = OneMoreTurn(whole, TheScript());
  const auto mended = OneMoreTurn(other, TheScript());
  EXPECT_EQ(mended.first, expected.first);
  EXPECT_GT(mended.second, 0);
  // What the turn met on its way back is offered to nobody any more.
  auto daemon = Daemon::Start(TestOptions(other, TheScript()));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const Runtime& runtime = (*daemon)->runtime();
  std::vector<TokenId> tokens;
  for (const auto& [token, sampled] : mended.first) tokens.push_back(token);
  int offered = 0;
  for (int64_t limit = static_cast<int64_t>(tokens.size()); limit > 0; ++offered) {
    const auto point = runtime.store->FindRestorePoint(runtime.owner, tokens, limit);
    ASSERT_TRUE(point.ok()) << point.status();
    if (point->position == 0) break;
    EXPECT_NE(runtime.store->ReadAnchor(point->anchor, point->position).value_or(""), kOtherAnchor);
    limit = point->position - 1;
  }
  EXPECT_GT(offered, 0);
}

TEST(CrashTest, AnImportThatWasCutOffLeavesNothing) {
  TemporaryDirectory directory;
  const std::filesystem::path data = directory.path() / "data";
  std::filesystem::create_directory(data.string() + ".import");
  std::ofstream(data.string() + ".import/file") << "text";
  const int status = Wait(StartChild(data, "agentd.imported", "import"));
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 137);
  EXPECT_FALSE(std::filesystem::is_empty(data / "workspaces"));
  DaemonOptions options = TestOptions(data, TheScript());
  options.resume = false;
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  EXPECT_EQ((*daemon)->List({})->sessions_size(), 0);
  EXPECT_EQ((*daemon)->Info()->sessions(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(data / "workspaces"));
}

TEST(CrashTest, DyingAgainWhileComingBack) {
  TemporaryDirectory directory;
  const std::filesystem::path data = WarmCopy(directory.path() / "data");
  for (const char* point : {"agentd.call_journaled:2", "agentd.resuming", "agentd.restored",
                            "agentd.call_journaled", "agentd.tool_exited"}) {
    const int status = Wait(StartChild(data, point));
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 137) << point;
  }
  ExpectSame(Finish(data), "after five lives");
}

TEST(CrashTest, KilledAtRandomMoments) {
  const uint64_t seed = std::random_device{}();
  std::mt19937_64 random(seed);
  const auto begun = std::chrono::steady_clock::now();
  {
    TemporaryDirectory directory;
    Wait(StartChild(WarmCopy(directory.path() / "data"), ""));
  }
  const auto normal = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - begun);
  for (int round = 0; round < (kSanitized ? 2 : 5); ++round) {
    TemporaryDirectory directory;
    const std::filesystem::path data = WarmCopy(directory.path() / "data");
    const int lives = 1 + static_cast<int>(random() % 3);
    for (int life = 0; life < lives; ++life) {
      const pid_t child = StartChild(data, "");
      std::this_thread::sleep_for(
          std::chrono::microseconds(random() % static_cast<uint64_t>(normal.count())));
      ::kill(child, SIGKILL);
      Wait(child);
    }
    ExpectSame(Finish(data), fmt::format("seed {}, round {}", seed, round));
  }
}

}  // namespace
}  // namespace agentd::daemon
