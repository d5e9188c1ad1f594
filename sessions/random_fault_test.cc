// Disks that fail at random, for a while: each round opens the store, works on it while one kind of
// fault is about, closes it as a crash does, and opens it again on a disk that is well. Then what
// was acknowledged is there, and what was not is absent or whole.
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>

#include "sessions/doctor.h"
#include "sessions/fault_env.h"
#include "sessions/inspect_util.h"
#include "sessions/internal_options.h"
#include "sessions/log_file.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

// RocksDB's own: a flush that fails while it changes log files forgets the memtable it had made.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:rocksdb::DBImpl::SwitchMemtable";
}

namespace agentd::sessions {
namespace {

using testing::Below;
using testing::FaultEnv;
using testing::FaultRule;
using testing::FileOperation;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Must;
using testing::Options;
using testing::RandomTokens;
using testing::Tear;

constexpr int kRounds = kSanitized ? 12 : 60;
constexpr size_t kSessions = 3;
constexpr size_t kIndexBytes = 9000;
constexpr size_t kAnchorBytes = 5000;
constexpr int kCommitsPerRound = 14;
constexpr size_t kLongSession = 4000;  // tokens; then it is deleted for a new one

enum class Trouble {
  kNone,
  kStopPrefix,   // the machine stops: of what was not synced, a prefix stays
  kStopSectors,  // or any of its sectors
  kReadErrors,
  kWriteErrors,
  kSyncErrors,
  kNoSpace,     // and space again
  kFlippedBit,  // of the log, while the store is closed
  kCount,
};

const char* NameOf(Trouble trouble) {
  constexpr const char* kNames[] = {"none",         "stop, prefix", "stop, sectors", "EIO on read",
                                    "EIO on write", "EIO on sync",  "no space",      "flipped bit"};
  return kNames[static_cast<int>(trouble)];
}

// What is known of a session.
struct Known {
  std::string id;
  std::vector<TokenId> tokens;      // acknowledged
  std::vector<TokenId> in_doubt;    // of a commit that failed: there as a whole, or not at all
  int64_t anchored = 0;             // newest acknowledged anchor
  std::optional<TreeId> workspace;  // newest acknowledged tree
};

class RandomFaultTest : public ::testing::Test {
 protected:
  std::filesystem::path path() const { return directory_.path() / "store"; }
  std::filesystem::path files() const { return directory_.path() / "files"; }

  absl::StatusOr<std::unique_ptr<Store>> TryOpen() {
    return internal::OpenStore(path(), Options(), {env_.env(), false});
  }

  // On a disk that is well. Where sectors arrived out of order the log may look damaged: then its
  // end is given up, which nobody was told of.
  std::unique_ptr<Store> Open(Trouble before) {
    absl::StatusOr<std::unique_ptr<Store>> store = TryOpen();
    while (before == Trouble::kStopSectors && absl::IsDataLoss(store.status())) {
      EXPECT_THAT(Text(store.status()), HasSubstr(" is damaged at byte"));
      Must(CutLog(path()));
      ++cuts_;
      store = TryOpen();
    }
    return Must(std::move(store));
  }

  void Check(Store& store, Known& known) {
    LoadedTimeline loaded = Must(store.Load(known.id));
    std::vector<TokenId> with = known.tokens;
    with.insert(with.end(), known.in_doubt.begin(), known.in_doubt.end());
    ASSERT_TRUE(loaded.tokens == known.tokens || loaded.tokens == with)
        << loaded.tokens.size() << " tokens, where " << known.tokens.size() << " or " << with.size()
        << " belong";
    known.tokens = loaded.tokens;
    known.in_doubt.clear();
    const RestorePoint point = Must(store.FindRestorePoint("alice", known.tokens, INT64_MAX));
    ASSERT_GE(point.position, known.anchored);
    for (const BlockHash& block : point.blocks)
      ASSERT_EQ(Must(store.ReadBlockPart(block, 0)).size(), kIndexBytes);
    if (point.position > 0) {
      ASSERT_EQ(Must(store.ReadAnchor(point.anchor, point.position)).size(), kAnchorBytes);
    }
    ASSERT_TRUE(loaded.workspace.has_value() || !known.workspace.has_value());
    known.workspace = loaded.workspace;
    if (known.workspace.has_value()) {
      ASSERT_OK(store.RestoreWorkspace(*known.workspace, directory_.path() / "restored"));
    }
  }

  // The status of a random commit; what is known changes with it.
  absl::Status CommitTo(Store& store, Known& known) {
    ASSIGN_OR_RETURN(const LoadedTimeline loaded, store.Load(known.id));
    Commit commit;
    commit.timeline = loaded.session.timeline;
    const std::vector<TokenId> run = RandomTokens(random_, 1 + Below(random_, 300));
    commit.events.push_back(NewEvent::Tokens(run, true));
    const int64_t after = static_cast<int64_t>(known.tokens.size() + run.size());
    if (Below(random_, 2) == 0) {
      for (int64_t block = 0; block < after / kBlockTokens; ++block)
        commit.blocks.push_back({block, {std::string(kIndexBytes, 'b')}});
      commit.anchor = KvAnchor{after, std::string(kAnchorBytes, 'a'), false};
    }
    std::optional<TreeId> tree;
    if (Below(random_, 3) == 0) {
      std::filesystem::create_directories(files());
      std::ofstream(files() / "file") << random_();
      ASSIGN_OR_RETURN(const WorkspaceSnapshot snapshot, store.SnapshotWorkspace(files()));
      commit.events.push_back(NewEvent::Workspace(snapshot));
      tree = snapshot.tree;
    }
    const bool anchors = commit.anchor.has_value();
    const absl::Status status = store.CommitSync(std::move(commit)).status();
    if (!status.ok()) {
      known.in_doubt = run;
      return status;
    }
    known.tokens.insert(known.tokens.end(), run.begin(), run.end());
    if (anchors) known.anchored = after;
    if (tree.has_value()) known.workspace = tree;
    return status;
  }

  void Begin(Trouble trouble) {
    constexpr const char* kParts[] = {"", ".log", ".sst", ".blob", "MANIFEST"};
    const std::string part = kParts[random_() % std::size(kParts)];
    const double chance = 0.02 + 0.3 * static_cast<double>(Below(random_, 100)) / 100;
    switch (trouble) {
      case Trouble::kReadErrors:
        return env_.fs().SetRules({{FileOperation::kRead, part, chance}}, random_());
      case Trouble::kWriteErrors:
        return env_.fs().SetRules({{FileOperation::kWrite, part, chance}}, random_());
      case Trouble::kSyncErrors:
        return env_.fs().SetRules({{FileOperation::kSync, part, chance}}, random_());
      case Trouble::kNoSpace:
        return env_.fs().LimitSpace(Below(random_, 200'000));
      default:
        return;
    }
  }

  // Errors are the documented ones: a full disk says so and goes on when there is space, all else
  // asks for the store to be opened again.
  // After a full disk in the same life, or in the next one.
  void Work(Store& store, std::vector<Known>& sessions, Trouble trouble) {
    const bool goes_on = Below(random_, 2) == 0;
    const bool stops = trouble == Trouble::kStopPrefix || trouble == Trouble::kStopSectors;
    const int64_t stop_after = stops ? Below(random_, kCommitsPerRound) : -1;
    for (int i = 0; i < kCommitsPerRound; ++i) {
      Known& known = sessions[random_() % sessions.size()];
      if (i == stop_after && Below(random_, 2) == 0) env_.fs().Stop();
      const absl::Status status = CommitTo(store, known);
      if (i == stop_after) return env_.fs().Stop();
      if (status.ok()) continue;
      ++errors_[{NameOf(trouble), absl::StatusCodeToString(status.code())}];
      if (trouble == Trouble::kNoSpace && absl::IsResourceExhausted(status)) {
        if (!goes_on) return;
        env_.fs().LimitSpace(-1);
        ASSERT_NO_FATAL_FAILURE(Check(store, known));
        const absl::Status again = CommitTo(store, known);
        ASSERT_TRUE(again.ok()) << again;
        env_.fs().LimitSpace(Below(random_, 200'000));
        continue;
      }
      ASSERT_TRUE(absl::IsUnavailable(status)) << NameOf(trouble) << ": " << status;
      // A read that failed changes nothing; a write, and the store takes no more.
      if (trouble == Trouble::kReadErrors && known.in_doubt.empty()) continue;
      const absl::Status next = CommitTo(store, sessions[0]);
      ASSERT_TRUE(absl::IsUnavailable(next)) << NameOf(trouble) << ": " << next;
      return;
    }
  }

  // Whichever bit of the log it is, opening refuses with the file's name.
  void FlipAndTry() {
    const std::vector<std::filesystem::path> logs = internal::LogFiles(path() / "db");
    for (const std::filesystem::path& log : logs) {
      const uint64_t size = std::filesystem::file_size(log);
      if (size == 0) continue;
      // The newest commits are where recovery is most forgiving.
      const uint64_t byte = Below(random_, 2) == 0
                                ? size - 1 - random_() % std::min<uint64_t>(size, 400)
                                : random_() % size;
      const char mask = static_cast<char>(1 << Below(random_, 8));
      Flip(log, byte, mask);
      const absl::Status status = TryOpen().status();
      EXPECT_TRUE(absl::IsDataLoss(status)) << "byte " << byte << " of " << size << ": " << status;
      EXPECT_THAT(Text(status), HasSubstr(log.filename().string()));
      Flip(log, byte, mask);
      ++flips_;
    }
  }

  static void Flip(const std::filesystem::path& file, uint64_t offset, char mask) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(stream.get() ^ mask);
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(byte);
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  FaultEnv env_;
  int cuts_ = 0, flips_ = 0;
  std::map<std::pair<std::string, std::string>, int> errors_;
};

TEST_F(RandomFaultTest, WhatWasAcknowledgedIsThereAndNothingIsHalf) {
  const char* given = std::getenv("AGENTD_FAULT_ROUNDS");
  const int rounds = given != nullptr ? std::atoi(given) : kRounds;
  std::vector<Known> sessions(kSessions);
  {
    const std::unique_ptr<Store> store = Open(Trouble::kNone);
    for (Known& known : sessions) known.id = Must(store->Create({"alice", 1, ""})).id;
  }
  Trouble before = Trouble::kNone;
  size_t faults = 0;
  std::string faults_before;
  size_t tokens = 0;
  for (int round = 0; round < rounds; ++round) {
    const Trouble trouble =
        static_cast<Trouble>(1 + Below(random_, static_cast<int64_t>(Trouble::kCount) - 1));
    SCOPED_TRACE(fmt::format("round {}: {}, after {}, in which failed:\n{}", round, NameOf(trouble),
                             NameOf(before), faults_before));
    std::unique_ptr<Store> store = Open(before);
    for (Known& known : sessions) {
      ASSERT_NO_FATAL_FAILURE(Check(*store, known));
      tokens += known.tokens.size();
      if (known.tokens.size() < kLongSession) continue;
      ASSERT_OK(store->Delete(known.id));
      known = {};
      known.id = Must(store->Create({"alice", 1, ""})).id;
    }
    Begin(trouble);
    ASSERT_NO_FATAL_FAILURE(Work(*store, sessions, trouble));
    const std::vector<std::string> failed = env_.fs().TakeFaults();
    faults += failed.size();
    faults_before = fmt::format("{}", fmt::join(failed, "\n"));
    // Closed on the bad disk, or with the machine stopped.
    store.reset();
    env_.fs().Forget(random_, trouble == Trouble::kStopSectors ? Tear::kSectors : Tear::kPrefix);
    if (trouble == Trouble::kFlippedBit) FlipAndTry();
    before = trouble;
  }
  Open(before).reset();
  EXPECT_THAT(testing::FindOrphans(path()), IsEmpty());
  std::cout << "[figure] random faults: " << rounds << " rounds, " << faults
            << " failed operations, " << flips_ << " flipped bits of the log refused by name, "
            << cuts_ << " logs cut after sectors came out of order; " << tokens
            << " tokens read again as acknowledged";
  for (const auto& [error, count] : errors_)
    std::cout << "; " << error.first << ": " << count << " times " << error.second;
  std::cout << std::endl;
}

}  // namespace
}  // namespace agentd::sessions
