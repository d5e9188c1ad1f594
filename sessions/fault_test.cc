// Disks that forget, fail and fill up, and owners that lost the store.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <fstream>
#include <future>
#include <map>
#include <thread>

#include "sessions/fault_env.h"
#include "sessions/inspect_util.h"
#include "sessions/internal_options.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

// RocksDB's own: a flush that fails while it changes log files forgets the memtable it had made.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:rocksdb::DBImpl::SwitchMemtable";
}

namespace agentd::sessions {
namespace {

using testing::FaultEnv;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Must;
using testing::Options;
using testing::RandomTokens;
using testing::TokensCommit;

class FaultTest : public ::testing::Test {
 protected:
  std::unique_ptr<Store> OpenWith(FaultEnv& env) {
    return Must(internal::OpenStore(path(), Options(), {env.env(), env.fs().ignore_locks}));
  }
  std::filesystem::path path() const { return directory_.path() / "store"; }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
};

TEST_F(FaultTest, WhatWasAcknowledgedSurvivesADiskThatForgets) {
  FaultEnv env;
  std::vector<TokenId> tokens;      // acknowledged
  int64_t anchored = 0;             // newest acknowledged anchor
  std::optional<TreeId> workspace;  // newest acknowledged tree
  std::string session_id;
  const std::filesystem::path files = directory_.path() / "files";
  std::filesystem::create_directory(files);
  for (int round = 0; round < 12; ++round) {
    std::unique_ptr<Store> store = OpenWith(env);
    if (session_id.empty()) session_id = Must(store->Create({"alice", 1, ""})).id;
    LoadedTimeline loaded = Must(store->Load(session_id));
    ASSERT_GE(loaded.tokens.size(), tokens.size());
    ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), loaded.tokens.begin()));
    tokens = loaded.tokens;  // what was in flight may be there
    const RestorePoint point = Must(store->FindRestorePoint("alice", tokens, INT64_MAX));
    ASSERT_GE(point.position, anchored);
    for (const BlockHash& block : point.blocks)
      ASSERT_EQ(Must(store->ReadBlockPart(block, 0)).size(), 9000u);
    if (point.position > 0) {
      ASSERT_OK(store->ReadAnchor(point.anchor, point.position));
    }
    if (workspace.has_value()) {
      ASSERT_TRUE(loaded.workspace.has_value());
      ASSERT_OK(store->RestoreWorkspace(*loaded.workspace, directory_.path() / "restored"));
    }
    // A random number of good commits, then one or more in flight when the machine stops.
    const int64_t commits = testing::Below(random_, 12);
    for (int64_t i = 0; i <= commits; ++i) {
      const std::vector<TokenId> run = RandomTokens(random_, 1 + testing::Below(random_, 300));
      Commit commit = TokensCommit(loaded.session.timeline, run);
      const int64_t before = static_cast<int64_t>(tokens.size()),
                    after = before + static_cast<int64_t>(run.size());
      if (testing::Below(random_, 2) == 0) {
        for (int64_t block = 0; block < after / kBlockTokens; ++block) {
          commit.blocks.push_back({block, {std::string(9000, 'b')}});
        }
        commit.anchor = KvAnchor{after, std::string(5000, 'a'), false};
      }
      std::optional<TreeId> tree;
      if (testing::Below(random_, 3) == 0) {
        std::ofstream(files / "file") << random_();
        const WorkspaceSnapshot snapshot = Must(store->SnapshotWorkspace(files));
        commit.events.push_back(NewEvent::Workspace(snapshot));
        tree = snapshot.tree;
      }
      const bool anchors = commit.anchor.has_value();
      if (i == commits) {
        const bool before_commit = testing::Below(random_, 2) == 0;
        std::promise<void> done;
        if (before_commit) env.fs().Stop();
        store->CommitAsync(std::move(commit), [&](absl::StatusOr<CommitResult> result) {
          if (result.ok()) {
            tokens.insert(tokens.end(), run.begin(), run.end());
            if (anchors) anchored = after;
            if (tree.has_value()) workspace = tree;
          }
          done.set_value();
        });
        env.fs().Stop();
        done.get_future().wait();
        break;
      }
      ASSERT_OK(store->CommitSync(std::move(commit)));
      tokens.insert(tokens.end(), run.begin(), run.end());
      if (anchors) anchored = after;
      if (tree.has_value()) workspace = tree;
    }
    store.reset();
    env.fs().Forget(random_);
  }
  OpenWith(env).reset();
  EXPECT_THAT(testing::FindOrphans(path()), IsEmpty());
}

// The control of the test above: without a sync in between, the file system does forget.
TEST_F(FaultTest, TheForgettingFileSystemForgets) {
  FaultEnv env;
  const std::string name = (directory_.path() / "f").string();
  std::unique_ptr<rocksdb::FSWritableFile> file;
  ASSERT_TRUE(env.fs().NewWritableFile(name, {}, &file, nullptr).ok());
  ASSERT_TRUE(file->Append("synced", {}, nullptr).ok());
  ASSERT_TRUE(file->Sync({}, nullptr).ok());
  ASSERT_TRUE(file->Append(std::string(100'000, 'x'), {}, nullptr).ok());
  ASSERT_TRUE(file->Close({}, nullptr).ok());
  env.fs().Forget(random_);
  EXPECT_GE(std::filesystem::file_size(name), 6u);
  EXPECT_LT(std::filesystem::file_size(name), 100'006u);
}

TEST_F(FaultTest, AFailedFsyncIsNotTriedAgain) {
  FaultEnv env;
  std::unique_ptr<Store> store = OpenWith(env);
  const SessionInfo a = Must(store->Create({"alice", 1, ""})),
                    b = Must(store->Create({"alice", 1, ""}));
  ASSERT_OK(store->CommitSync(TokensCommit(a.timeline, {1})));
  env.fs().fail_syncs = true;
  EXPECT_TRUE(absl::IsUnavailable(store->CommitSync(TokensCommit(a.timeline, {2})).status()));
  env.fs().fail_syncs = false;  // the next fsync would say all is well
  const int64_t syncs = env.fs().syncs;
  const absl::Status after = store->CommitSync(TokensCommit(b.timeline, {3})).status();
  EXPECT_TRUE(absl::IsUnavailable(after));
  EXPECT_THAT(Text(after), HasSubstr("reopen"));
  EXPECT_TRUE(absl::IsUnavailable(store->Create({"alice", 1, ""}).status()));
  EXPECT_EQ(env.fs().syncs, syncs);
  store.reset();
  store = OpenWith(env);
  EXPECT_GE(Must(store->Load(a.id)).tokens.size(), 1u);
  ASSERT_OK(store->CommitSync(TokensCommit(b.timeline, {3})));
}

TEST_F(FaultTest, AFailedFsyncOfValuesStopsAcknowledging) {
  FaultEnv env;
  std::unique_ptr<Store> store = OpenWith(env);
  const SessionInfo session = Must(store->Create({"alice", 1, ""}));
  Commit commit = TokensCommit(session.timeline, RandomTokens(random_, 256));
  commit.blocks.push_back({0, {"part"}});
  env.fs().fail_syncs = true;
  EXPECT_TRUE(absl::IsUnavailable(store->CommitSync(commit).status()));
  env.fs().fail_syncs = false;
  EXPECT_TRUE(absl::IsUnavailable(store->CommitSync(TokensCommit(session.timeline, {1})).status()));
  store.reset();
  EXPECT_TRUE(Must(OpenWith(env)->Load(session.id)).tokens.empty());
}

TEST_F(FaultTest, AFullDiskPausesAndGoesOn) {
  FaultEnv env;
  std::unique_ptr<Store> store = OpenWith(env);
  const SessionInfo a = Must(store->Create({"alice", 1, ""})),
                    b = Must(store->Create({"alice", 1, ""}));
  ASSERT_OK(store->CommitSync(TokensCommit(a.timeline, {1})));
  env.fs().no_space = true;
  EXPECT_TRUE(absl::IsResourceExhausted(store->CommitSync(TokensCommit(a.timeline, {2})).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(store->CommitSync(TokensCommit(b.timeline, {2})).status()));
  EXPECT_EQ(Must(store->Load(a.id)).tokens.size(), 1u);  // reading goes on
  env.fs().no_space = false;
  ASSERT_OK(store->Load(a.id));
  ASSERT_OK(store->CommitSync(TokensCommit(a.timeline, {3})));
  Commit commit = TokensCommit(a.timeline, RandomTokens(random_, 300));
  commit.blocks.push_back({0, {"part"}});
  env.fs().no_space = true;  // now while values are written
  EXPECT_TRUE(absl::IsResourceExhausted(store->CommitSync(commit).status()));
  env.fs().no_space = false;
  // A snapshot looks for space as well: it may come before the next commit.
  const std::filesystem::path files = directory_.path() / "files";
  std::filesystem::create_directory(files);
  std::ofstream(files / "file") << "contents";
  EXPECT_OK(store->SnapshotWorkspace(files));
  ASSERT_OK(store->Load(a.id));
  ASSERT_OK(store->CommitSync(commit));
  store.reset();
  store = OpenWith(env);
  EXPECT_EQ(Must(store->Load(a.id)).tokens.size(), 302u);
  EXPECT_EQ(Must(store->Load(a.id)).tokens[1], 3);
}

// Takes RocksDB's flush threads while it lives.
class HeldFlushes {
 public:
  HeldFlushes() {
    rocksdb::Env& env = *rocksdb::Env::Default();
    for (int i = 0; i < env.GetBackgroundThreads(rocksdb::Env::Priority::HIGH); ++i)
      env.Schedule(&Hold, this, rocksdb::Env::Priority::HIGH);
    while (Queued() > 0) std::this_thread::yield();
  }
  ~HeldFlushes() { release_.set_value(); }
  static unsigned int Queued() {
    return rocksdb::Env::Default()->GetThreadPoolQueueLen(rocksdb::Env::Priority::HIGH);
  }

 private:
  static void Hold(void* self) {
    const std::shared_future<void> released = static_cast<HeldFlushes*>(self)->released_;
    released.wait();
  }

  std::promise<void> release_;
  const std::shared_future<void> released_ = release_.get_future().share();
};

// One that begins after a write has failed returns without its work and is not counted: there is a
// job too few from then on, and RocksDB's Resume() waits for ever.
TEST_F(FaultTest, AFlushThatAFullDiskOvertookIsNotWaitedFor) {
  FaultEnv env;
  std::unique_ptr<Store> store = OpenWith(env);
  const SessionInfo a = Must(store->Create({"alice", 1, ""})),
                    b = Must(store->Create({"alice", 1, ""}));
  Commit values = TokensCommit(a.timeline, RandomTokens(random_, 256));
  values.blocks.push_back({0, {testing::RandomBytes(random_, 9000)}});
  std::promise<absl::Status> refused;
  {
    const HeldFlushes held;
    store->CommitAsync(values, [&refused](absl::StatusOr<CommitResult> result) {
      refused.set_value(result.status());
    });
    while (HeldFlushes::Queued() == 0) std::this_thread::yield();
    env.fs().no_space = true;
    const absl::Status full = store->CommitSync(TokensCommit(b.timeline, {1})).status();
    EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  }
  const absl::Status status = refused.get_future().get();
  EXPECT_FALSE(status.ok());
  env.fs().no_space = false;
  (void)store->Load(b.id);
  const absl::Status after = store->CommitSync(TokensCommit(b.timeline, {2})).status();
  EXPECT_TRUE(absl::IsUnavailable(after)) << after;
  EXPECT_THAT(Text(after), HasSubstr("reopen"));
  store.reset();
  store = OpenWith(env);
  EXPECT_THAT(Must(store->Load(a.id)).tokens, IsEmpty());
  EXPECT_OK(store->CommitSync(values));
  EXPECT_OK(store->CommitSync(TokensCommit(b.timeline, {2})));
}

// A file system that really is full, where this process may mount one.
TEST_F(FaultTest, ASmallFileSystemFillsUpAndGoesOn) {
  const std::filesystem::path mount = directory_.path() / "small";
  std::filesystem::create_directory(mount);
  if (::mount("tmpfs", mount.c_str(), "tmpfs", 0, "size=40m") != 0)
    GTEST_SKIP() << "needs root to mount a tmpfs";
  {
    const std::unique_ptr<Store> store = Must(Store::Open(mount / "store", Options()));
    const SessionInfo session = Must(store->Create({"alice", 1, ""}));
    std::ofstream(mount / "ballast") << std::string(12 << 20, 'x');
    int64_t acknowledged = 0;
    absl::Status status;
    for (int i = 0; i < 64 && status.ok(); ++i) {
      Commit commit = TokensCommit(session.timeline, RandomTokens(random_, 256));
      commit.blocks.push_back({acknowledged, {testing::RandomBytes(random_, 1 << 20)}});
      status = store->CommitSync(std::move(commit)).status();
      acknowledged += status.ok();
    }
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_GT(acknowledged, 3);
    std::filesystem::remove(mount / "ballast");
    EXPECT_EQ(Must(store->Load(session.id)).tokens.size(), static_cast<size_t>(acknowledged * 256));
    EXPECT_OK(store->CommitSync(TokensCommit(session.timeline, {1, 2, 3})));
    EXPECT_EQ(Must(store->Load(session.id)).tokens.size(),
              static_cast<size_t>(acknowledged * 256 + 3));
  }
  EXPECT_EQ(::umount(mount.c_str()), 0);
}

TEST_F(FaultTest, AStaleOwnerIsFencedByTheEpoch) {
  FaultEnv env;
  env.fs().ignore_locks = true;
  std::unique_ptr<Store> stale = OpenWith(env);
  const SessionInfo session = Must(stale->Create({"alice", 1, ""}));
  ASSERT_OK(stale->CommitSync(TokensCommit(session.timeline, {1})));
  std::unique_ptr<Store> owner = OpenWith(env);
  const absl::Status fenced = stale->CommitSync(TokensCommit(session.timeline, {2})).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(fenced)) << fenced;
  EXPECT_TRUE(absl::IsFailedPrecondition(stale->Create({"alice", 1, ""}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(stale->Delete(session.id)));
  ASSERT_OK(owner->CommitSync(TokensCommit(session.timeline, {3})));
  stale.reset();  // finishing late harms nothing
  ASSERT_OK(owner->CommitSync(TokensCommit(session.timeline, {4})));
  owner.reset();
  EXPECT_THAT(Must(OpenWith(env)->Load(session.id)).tokens, ::testing::ElementsAre(1, 3, 4));
}

// What the name EPOCH leads to counts, not whether the file that we wrote is still there.
TEST_F(FaultTest, ALinkToTheOldEpochHidesNoNewOwner) {
  FaultEnv env;
  env.fs().ignore_locks = true;
  std::unique_ptr<Store> stale = OpenWith(env);
  const SessionInfo session = Must(stale->Create({"alice", 1, ""}));
  std::filesystem::create_hard_link(path() / "EPOCH", directory_.path() / "copy of EPOCH");
  ASSERT_OK(stale->CommitSync(TokensCommit(session.timeline, {1})));
  const std::unique_ptr<Store> owner = OpenWith(env);
  const absl::Status fenced = stale->CommitSync(TokensCommit(session.timeline, {2})).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(fenced)) << fenced;
  stale.reset();
  EXPECT_OK(owner->CommitSync(TokensCommit(session.timeline, {3})));
}

TEST_F(FaultTest, AnotherFileThatSaysTheSameEpochFencesNobody) {
  FaultEnv env;
  const std::unique_ptr<Store> store = OpenWith(env);
  const SessionInfo session = Must(store->Create({"alice", 1, ""}));
  std::filesystem::copy(path() / "EPOCH", path() / "EPOCH.copy");
  std::filesystem::rename(path() / "EPOCH.copy", path() / "EPOCH");
  EXPECT_OK(store->CommitSync(TokensCommit(session.timeline, {1})));
  std::filesystem::remove(path() / "EPOCH");
  EXPECT_TRUE(
      absl::IsFailedPrecondition(store->CommitSync(TokensCommit(session.timeline, {2})).status()));
}

// Values too: their flush would make files under names that the new owner's have.
TEST_F(FaultTest, AStaleOwnersValuesLeaveTheNewOwnersFilesAlone) {
  FaultEnv env;
  env.fs().ignore_locks = true;
  const std::filesystem::path files = directory_.path() / "files";
  std::filesystem::create_directory(files);
  std::ofstream(files / "file") << "contents";
  std::unique_ptr<Store> stale = OpenWith(env);
  const SessionInfo session = Must(stale->Create({"alice", 1, ""})),
                    other = Must(stale->Create({"alice", 1, ""}));
  ASSERT_OK(stale->CommitSync(TokensCommit(session.timeline, {0})));
  std::unique_ptr<Store> owner = OpenWith(env);
  std::map<std::string, uintmax_t> before, after;
  const auto list = [&](std::map<std::string, uintmax_t>& names) {
    for (const auto& entry : std::filesystem::directory_iterator(path() / "db"))
      if (!entry.path().filename().string().starts_with("LOG"))
        names[entry.path().filename().string()] = entry.file_size();
  };
  list(before);
  Commit values = TokensCommit(other.timeline, RandomTokens(random_, 256));
  values.blocks.push_back({0, {std::string(9000, 's')}});
  values.anchor = KvAnchor{256, std::string(9000, 'a'), false};
  const absl::Status fenced = stale->CommitSync(values).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(fenced)) << fenced;
  EXPECT_TRUE(absl::IsFailedPrecondition(stale->SnapshotWorkspace(files).status()));
  list(after);
  EXPECT_EQ(before, after);
  for (TokenId token = 1; token <= 100; ++token)
    ASSERT_OK(owner->CommitSync(TokensCommit(session.timeline, {token})));
  ASSERT_OK(owner->CommitSync(values));
  stale.reset();
  owner.reset();
  owner = OpenWith(env);
  EXPECT_EQ(Must(owner->Load(session.id)).tokens.size(), 101u);
  EXPECT_EQ(Must(owner->FindRestorePoint("alice", values.events[0].tokens, 256)).position, 256);
}

TEST_F(FaultTest, ADurableBatchIsAcknowledgedWithoutAFreeDescriptor) {
  FaultEnv env;
  const std::unique_ptr<Store> store = OpenWith(env);
  const SessionInfo session = Must(store->Create({"alice", 1, ""}));
  ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {1})));
  struct rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const struct rlimit none = {3, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool none_left = ::open("/dev/null", O_RDONLY | O_CLOEXEC) < 0;
  const absl::Status committed = store->CommitSync(TokensCommit(session.timeline, {2})).status();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(none_left);
  EXPECT_OK(committed);
  EXPECT_EQ(Must(store->Load(session.id)).tokens.size(), 2u);
}

TEST_F(FaultTest, WhatACrashLeftOfLookingForSpaceGoes) {
  FaultEnv env;
  OpenWith(env).reset();
  std::ofstream(path() / "PROBE") << std::string(1 << 20, '\0');
  OpenWith(env).reset();
  EXPECT_FALSE(std::filesystem::exists(path() / "PROBE"));
}

TEST_F(FaultTest, ADamagedEpochIsRefused) {
  FaultEnv env;
  OpenWith(env).reset();
  std::ofstream(path() / "EPOCH") << "nonsense";
  const absl::Status status = internal::OpenStore(path(), Options(), {env.env(), false}).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(Text(status), HasSubstr("EPOCH"));
}

}  // namespace
}  // namespace agentd::sessions
