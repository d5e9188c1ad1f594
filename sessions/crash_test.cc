// SIGKILL at every named point and at random moments: a child works and reports what was
// acknowledged; the parent kills it, opens the store again and checks.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>

#include <chrono>
#include <fstream>
#include <map>
#include <thread>

#include "base/unique_fd.h"
#include "sessions/bytes.h"
#include "sessions/crash_point.h"
#include "sessions/inspect_util.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using testing::AtPosition;
using testing::Below;
using ::testing::IsEmpty;
using testing::Must;
using testing::Random;
using testing::RandomTokens;

constexpr int kMaxSessions = 5;
constexpr int kReportFd = 100;
constexpr int kRandomKills = kSanitized ? 15 : 100;
constexpr size_t kLargePart = 1 << 20;

// What is known about a session; reported after each acknowledgement.
struct Acknowledged {
  TimelineId timeline = 0;
  uint64_t last_seq = 0;
  std::vector<TokenId> tokens;
  int64_t anchor = 0;     // a permanent one that this timeline made
  std::string workspace;  // what its file says
  bool rewinding = false, deleting = false, deleted = false;
};
using Report = std::map<std::string, Acknowledged>;

std::string Encode(const std::string& id, const Acknowledged& state) {
  internal::ByteWriter body;
  body.Sized(id).Put(state.timeline).Put(state.last_seq).Put(state.anchor).Sized(state.workspace);
  body.Put(uint8_t{state.rewinding}).Put(uint8_t{state.deleting}).Put(uint8_t{state.deleted});
  body.Sized(
      {reinterpret_cast<const char*>(state.tokens.data()), state.tokens.size() * sizeof(TokenId)});
  return internal::ByteWriter().Sized(body.str()).str();
}

// A report cut by the kill says nothing.
void Apply(std::string_view bytes, Report& report) {
  internal::ByteReader reader(bytes);
  while (true) {
    internal::ByteReader body(reader.Sized());
    if (!reader.ok()) return;
    const std::string id(body.Sized());
    Acknowledged& state = report[id];
    state.timeline = body.Get<uint64_t>();
    state.last_seq = body.Get<uint64_t>();
    state.anchor = body.Get<int64_t>();
    state.workspace = std::string(body.Sized());
    state.rewinding = body.Get<uint8_t>() != 0;
    state.deleting = body.Get<uint8_t>() != 0;
    state.deleted = body.Get<uint8_t>() != 0;
    const std::string_view tokens = body.Sized();
    state.tokens.resize(tokens.size() / sizeof(TokenId));
    if (!tokens.empty()) std::memcpy(state.tokens.data(), tokens.data(), tokens.size());
  }
}

// The child's life. Never returns.
class Worker {
 public:
  Worker(const std::filesystem::path& directory, Report known, uint64_t seed, int pipe,
         int64_t budget)
      : directory_(directory),
        sessions_(std::move(known)),
        random_(seed),
        pipe_(pipe),
        budget_(budget) {}

  [[noreturn]] void Run(int steps) {
    StoreOptions options = testing::Options();
    options.group_commit_window_us = 200;
    options.budget_bytes = budget_;
    store_ = Must(Store::Open(directory_ / "store", options));
    for (int step = 0; step < steps; ++step) Step();
    store_.reset();
    _exit(0);
  }

 private:
  void Say(const std::string& id) {
    const std::string bytes = Encode(id, sessions_[id]);
    if (::write(pipe_, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) _exit(3);
  }

  void Step() {
    if (budget_ > 0 && Below(random_, 12) == 0) (void)store_->Reclaim();
    std::vector<std::string> live;
    for (const auto& [id, state] : sessions_) {
      if (!state.deleted) live.push_back(id);
    }
    if (live.size() < 2) return Create();
    const std::string id =
        live[static_cast<size_t>(Below(random_, static_cast<int64_t>(live.size())))];
    switch (Below(random_, 12)) {
      case 0:
        return live.size() < kMaxSessions ? Fork(id) : Delete(id);
      case 1:
        return Rewind(id);
      case 2:
        return Delete(id);
      default:
        return Commit(id);
    }
  }

  void Create() {
    const SessionInfo info = Must(store_->Create({"alice", 1, ""}));
    sessions_[info.id].timeline = info.timeline;
    Say(info.id);
  }

  void Reload(const std::string& id, const SessionInfo& info) {
    const LoadedTimeline loaded = Must(store_->Load(id));
    Acknowledged& state = sessions_[id];
    state = Acknowledged{info.timeline, info.last_seq, loaded.tokens};
    Say(id);
  }

  void Fork(const std::string& id) {
    const int64_t position = Below(random_, static_cast<int64_t>(sessions_[id].tokens.size()) + 1);
    const SessionInfo info = Must(store_->Fork(id, AtPosition(position), {"alice", 2, ""}));
    Reload(info.id, info);
  }

  void Rewind(const std::string& id) {
    Acknowledged& state = sessions_[id];
    state.rewinding = true;
    Say(id);
    const int64_t position = Below(random_, static_cast<int64_t>(state.tokens.size()) + 1);
    Reload(id, Must(store_->Rewind(id, AtPosition(position), 3)));
  }

  void Delete(const std::string& id) {
    sessions_[id].deleting = true;
    Say(id);
    const absl::Status status = store_->Delete(id);
    if (!status.ok()) _exit(4);
    sessions_[id].deleted = true;
    Say(id);
  }

  void Commit(const std::string& id) {
    Acknowledged& state = sessions_[id];
    sessions::Commit commit =
        testing::TokensCommit(state.timeline, RandomTokens(random_, 1 + Below(random_, 400)));
    std::vector<TokenId> tokens = state.tokens;
    tokens.insert(tokens.end(), commit.events[0].tokens.begin(), commit.events[0].tokens.end());
    const int64_t after = static_cast<int64_t>(tokens.size());
    const bool anchors = Below(random_, 2) == 0;
    if (anchors) {
      for (int64_t block = 0; block < after / kBlockTokens; ++block) {
        commit.blocks.push_back({block, {std::string(6000, 'i'), fmt::format("block {}", block)}});
        if (budget_ > 0) commit.blocks.back().parts.push_back(std::string(kLargePart, 'l'));
      }
      commit.anchor = KvAnchor{after, fmt::format("anchor {}", after), false};
    }
    std::string workspace = state.workspace;
    if (Below(random_, 3) == 0) {
      workspace = std::to_string(random_());
      std::filesystem::create_directories(directory_ / "files");
      std::ofstream(directory_ / "files" / "state") << workspace;
      commit.events.push_back(
          NewEvent::Workspace(Must(store_->SnapshotWorkspace(directory_ / "files"))));
    }
    const CommitResult result = Must(store_->CommitSync(std::move(commit)));
    state.last_seq = result.events.back().seq;
    state.tokens = std::move(tokens);
    state.workspace = std::move(workspace);
    if (anchors) state.anchor = after;
    Say(id);
  }

  const std::filesystem::path directory_;
  Report sessions_;
  Random random_;
  const int pipe_;
  const int64_t budget_;  // of the store; with one, blocks are large and passes frequent
  std::unique_ptr<Store> store_;
};

// The other process; only RunWorker below starts it.
TEST(CrashWorker, DISABLED_Run) {
  const char* directory = std::getenv("WORKER_DIRECTORY");
  if (directory == nullptr) GTEST_SKIP() << "not started by a crash test";
  std::ifstream file(std::filesystem::path(directory) / "known", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  Report known;
  Apply(bytes, known);
  Worker(directory, known, std::strtoull(std::getenv("WORKER_SEED"), nullptr, 10), kReportFd,
         std::strtoll(std::getenv("WORKER_BUDGET"), nullptr, 10))
      .Run(std::atoi(std::getenv("WORKER_STEPS")));
}

class CrashTest : public ::testing::Test {
 protected:
  // Runs a worker; returns its wait status. `kill_after_us` < 0: lets it run to its end or to
  // `crash_point`.
  int RunWorker(const std::string& crash_point, int64_t kill_after_us, int steps = 40) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    UniqueFd reading(ends[0]), writing(ends[1]);
    // A program of its own, not only a fork: RocksDB's threads here would be missing from a fork's
    // copy of their pool.
    {
      std::ofstream known(directory_.path() / "known", std::ios::binary);
      for (const auto& [id, state] : report_) known << Encode(id, state);
    }
    std::vector<std::string> environment = {
        "AGENTD_CRASH_POINT=" + crash_point, "WORKER_DIRECTORY=" + directory_.path().string(),
        fmt::format("WORKER_SEED={}", random_()), fmt::format("WORKER_STEPS={}", steps),
        fmt::format("WORKER_BUDGET={}", budget_)};
    if (const char* key = std::getenv("AGENTD_TEST_STORE_KEY"); key != nullptr)
      environment.push_back(fmt::format("AGENTD_TEST_STORE_KEY={}", key));
    std::vector<char*> variables;
    for (const std::string& variable : environment)
      variables.push_back(const_cast<char*>(variable.c_str()));
    variables.push_back(nullptr);
    char program[] = "/proc/self/exe", filter[] = "--gtest_filter=CrashWorker.*",
         disabled[] = "--gtest_also_run_disabled_tests";
    char* arguments[] = {program, filter, disabled, nullptr};
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(writing.get(), kReportFd);
      ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
      ::execve(program, arguments, variables.data());
      _exit(5);
    }
    writing.Reset();
    std::string said;
    if (kill_after_us < 0)
      kill_after_us = 600'000'000;  // a hang fails the test instead of holding it up
    const auto kill_at =
        std::chrono::steady_clock::now() + std::chrono::microseconds(kill_after_us);
    char buffer[65536];
    while (true) {
      struct pollfd poll = {reading.get(), POLLIN, 0};
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          kill_at - std::chrono::steady_clock::now());
      if (::poll(&poll, 1,
                 kill_after_us < 0 ? -1 : std::max<int>(0, static_cast<int>(left.count()))) == 0) {
        ::kill(child, SIGKILL);
        kill_after_us = -1;
        continue;
      }
      const ssize_t count = ::read(reading.get(), buffer, sizeof(buffer));
      if (count <= 0) break;
      said.append(buffer, static_cast<size_t>(count));
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    Apply(said, report_);
    return status;
  }

  // Everything acknowledged is there; what was in flight is whole or absent. Afterwards the report
  // is what is there.
  void Verify() {
    const std::unique_ptr<Store> store =
        Must(Store::Open(directory_.path() / "store", testing::Options()));
    Report now;
    for (const SessionInfo& info : Must(store->List("alice", "", 1000))) {
      const LoadedTimeline loaded = Must(store->Load(info.id));
      Acknowledged& state = now[info.id] = {info.timeline, info.last_seq, loaded.tokens};
      const std::vector<Event> events = Must(store->ReadEvents(info.timeline, 1, 1 << 30));
      ASSERT_EQ(events.size(), info.last_seq);
      const auto found = report_.find(info.id);
      if (found == report_.end()) continue;  // created or forked, not acknowledged
      const Acknowledged& known = found->second;
      EXPECT_FALSE(known.deleted);
      if (known.timeline != info.timeline) {
        EXPECT_TRUE(known.rewinding);
        continue;
      }
      EXPECT_GE(info.last_seq, known.last_seq);
      ASSERT_GE(loaded.tokens.size(), known.tokens.size());
      EXPECT_TRUE(std::equal(known.tokens.begin(), known.tokens.end(), loaded.tokens.begin()));
      CheckRestore(*store, known, loaded);
      state.anchor = known.anchor;
      CheckWorkspace(*store, known, loaded, state);
    }
    for (const auto& [id, known] : report_) {
      EXPECT_TRUE(known.deleted || known.deleting || now.contains(id)) << "lost session " << id;
    }
    report_ = std::move(now);
  }

  void CheckRestore(Store& store, const Acknowledged& known, const LoadedTimeline& loaded) {
    const RestorePoint point = Must(store.FindRestorePoint("alice", loaded.tokens, INT64_MAX));
    // What eviction took is computed again; what is left is whole.
    if (budget_ == 0) {
      EXPECT_GE(point.position, known.anchor);
    }
    ASSERT_EQ(point.blocks.size(), static_cast<size_t>(point.position / kBlockTokens));
    for (size_t block = 0; block < point.blocks.size(); ++block) {
      EXPECT_EQ(Must(store.ReadBlockPart(point.blocks[block], 0)).size(), 6000u);
      EXPECT_EQ(Must(store.ReadBlockPart(point.blocks[block], 1)), fmt::format("block {}", block));
    }
    if (point.position == 0) return;
    EXPECT_EQ(Must(store.ReadAnchor(point.anchor, point.position)),
              fmt::format("anchor {}", point.position));
  }

  void CheckWorkspace(Store& store, const Acknowledged& known, const LoadedTimeline& loaded,
                      Acknowledged& now) {
    if (!loaded.workspace.has_value()) {
      EXPECT_EQ(known.workspace, "");
      return;
    }
    const std::filesystem::path restored = directory_.path() / "restored";
    ASSERT_OK(store.RestoreWorkspace(*loaded.workspace, restored));
    std::ifstream file(restored / "state");
    std::getline(file, now.workspace);
    if (loaded.session.last_seq == known.last_seq && !known.workspace.empty()) {
      EXPECT_EQ(now.workspace, known.workspace);
    }
  }

  testing::TemporaryDirectory directory_;
  Random random_{testing::NewSeed()};
  int64_t budget_ = 0;
  Report report_;
};

TEST_F(CrashTest, AtEveryNamedPoint) {
  EXPECT_EQ(RunWorker("", -1), 0);
  Verify();
  for (const std::string_view name : internal::CrashPointNames()) {
    SCOPED_TRACE(name);
    if (name.starts_with("evict") || name.starts_with("collect")) budget_ = kLeastBudget;
    // A sweep has something to do only after a crash between values and their names.
    if (name.starts_with("sweep")) {
      ASSERT_EQ(WEXITSTATUS(RunWorker("values_flushed", -1, 400)), 137);
    }
    const bool in_open = name.starts_with("open") || name.starts_with("sweep");
    const std::string spec = fmt::format("{}:{}", name, in_open ? 1 : 1 + Below(random_, 2));
    const int status = RunWorker(spec, -1, 400);
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(WEXITSTATUS(status), 137) << "the point was not reached";
    Verify();
    if (HasFatalFailure()) return;
  }
  EXPECT_THAT(testing::FindOrphans(directory_.path() / "store"), IsEmpty());
}

TEST_F(CrashTest, AtRandomMoments) {
  const char* given = std::getenv("AGENTD_KILL_ROUNDS");
  const int rounds = given != nullptr ? std::atoi(given) : kRandomKills;
  int killed = 0;
  for (int round = 0; round < rounds; ++round) {
    const int status = RunWorker("", 5'000 + Below(random_, 120'000), 1 << 20);
    killed += WIFSIGNALED(status);
    Verify();
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(killed, rounds);
  std::cout << "[figure] store: " << killed << " SIGKILLs at random, nothing acknowledged lost"
            << std::endl;
  EXPECT_THAT(testing::FindOrphans(directory_.path() / "store"), IsEmpty());
}

}  // namespace
}  // namespace agentd::sessions
