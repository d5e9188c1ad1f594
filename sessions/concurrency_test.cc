// Sessions that share blocks, anchors and trees, while others commit, fork and delete: what was
// acknowledged is there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <thread>

#include "sessions/inspect_util.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using testing::AtSeq;
using testing::Below;
using ::testing::IsEmpty;
using testing::Must;
using testing::Options;
using testing::RandomTokens;
using testing::TokensCommit;

class ConcurrencyTest : public ::testing::Test {
 protected:
  std::filesystem::path path() const { return directory_.path() / "store"; }
  SessionInfo NewOne() { return Must(store_->Create({"alice", 1, ""})); }
  std::future<absl::Status> CommitLater(Commit commit) {
    auto promise = std::make_shared<std::promise<absl::Status>>();  // std::function is copied
    store_->CommitAsync(std::move(commit), [promise](absl::StatusOr<CommitResult> result) {
      promise->set_value(result.status());
    });
    return promise->get_future();
  }
  int64_t Furthest(const std::vector<TokenId>& tokens) {
    return Must(store_->FindRestorePoint("alice", tokens, INT64_MAX)).position;
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  std::unique_ptr<Store> store_ = Must(Store::Open(path(), Options()));
};

// Two commits in one flush bring the same block, and the first of them fails.
TEST_F(ConcurrencyTest, ABlockSharedWithAFailedCommitIsStored) {
  for (int round = 0; round < 20; ++round) {
    const SessionInfo busy = NewOne(), failing = NewOne(), good = NewOne();
    const std::vector<TokenId> tokens = RandomTokens(random_, 256);
    Commit first = TokensCommit(busy.timeline, RandomTokens(random_, 256));
    first.blocks = {{0, {std::string(1 << 20, 'z')}}};  // the next two wait for its flush together
    Commit second = TokensCommit(failing.timeline, tokens);
    second.blocks = {{0, {"part"}}};
    second.events.push_back(NewEvent::Workspace(TreeId{}));  // not stored
    Commit third = TokensCommit(good.timeline, tokens);
    third.blocks = {{0, {"part"}}};
    third.anchor = KvAnchor{256, "anchor", false};
    std::future<absl::Status> a = CommitLater(first), b = CommitLater(second),
                              c = CommitLater(third);
    ASSERT_OK(a.get());
    ASSERT_TRUE(absl::IsNotFound(b.get()));
    ASSERT_OK(c.get());
    ASSERT_EQ(Furthest(tokens), 256);
  }
}

// A deletion plans on what timelines list, while a commit of the same tokens is on its way.
TEST_F(ConcurrencyTest, DeletingASessionTakesNothingFromACommitOfTheSameTokens) {
  for (int i = 0; i < 10; ++i)  // so that planning takes a moment
    ASSERT_OK(store_->CommitSync(TokensCommit(NewOne().timeline, RandomTokens(random_, 256 * 60))));
  for (int round = 0; round < 80; ++round) {
    const std::vector<TokenId> tokens = RandomTokens(random_, 512);
    const SessionInfo a = NewOne(), b = NewOne();
    Commit commit = TokensCommit(a.timeline, tokens);
    commit.blocks = {{0, {"part"}}, {1, {"part"}}};
    commit.anchor = KvAnchor{512, "anchor", false};
    ASSERT_OK(store_->CommitSync(commit));
    commit.timeline = b.timeline;
    absl::Status committed;
    std::thread committing([&, pause = Below(random_, 2000)] {
      std::this_thread::sleep_for(std::chrono::microseconds(pause));
      committed = store_->CommitSync(commit).status();
    });
    EXPECT_OK(store_->Delete(a.id));
    committing.join();
    ASSERT_OK(committed);
    const RestorePoint point = Must(store_->FindRestorePoint("alice", tokens, 512));
    ASSERT_EQ(point.position, 512) << "round " << round;
    for (const BlockHash& block : point.blocks) ASSERT_OK(store_->ReadBlockPart(block, 0));
    ASSERT_OK(store_->ReadAnchor(point.anchor, 512));
  }
}

// One timeline replaces the tail anchor that another is about to list.
TEST_F(ConcurrencyTest, ATailThatAnotherIsAboutToListStays) {
  const auto tail = [&](const SessionInfo& session, const std::vector<TokenId>& tokens,
                        int64_t position) {
    Commit commit = TokensCommit(session.timeline, tokens);
    commit.anchor = KvAnchor{position, "tail", true};
    return commit;
  };
  for (int round = 0; round < 40; ++round) {
    const std::vector<TokenId> tokens = RandomTokens(random_, 100);
    const SessionInfo a = NewOne(), b = NewOne();
    ASSERT_OK(store_->CommitSync(tail(a, tokens, 100)));
    std::future<absl::Status> lists = CommitLater(tail(b, tokens, 100)),
                              replaces = CommitLater(tail(a, RandomTokens(random_, 100), 200));
    ASSERT_OK(lists.get());
    ASSERT_OK(replaces.get());
    ASSERT_EQ(Furthest(tokens), 100) << "round " << round;
  }
}

TEST_F(ConcurrencyTest, AForkKeepsTheTailThatItsParentReplacesMeanwhile) {
  for (int round = 0; round < 100; ++round) {
    const std::vector<TokenId> tokens = RandomTokens(random_, 100);
    const SessionInfo parent = NewOne();
    Commit commit = TokensCommit(parent.timeline, tokens);
    commit.anchor = KvAnchor{100, "tail", true};
    ASSERT_OK(store_->CommitSync(commit));
    commit = TokensCommit(parent.timeline, RandomTokens(random_, 100));
    commit.anchor = KvAnchor{200, "tail", true};
    std::future<absl::Status> replaces;
    std::thread running_on([&] { replaces = CommitLater(commit); });
    ASSERT_OK(store_->Fork(parent.id, AtSeq(1), {"alice", 2, ""}));
    running_on.join();
    ASSERT_OK(replaces.get());
  }
  // Whoever lists an anchor can have it, and none is left that nobody lists.
  store_.reset();
  const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
  std::set<std::string> listed, named;
  for (const std::string& key : testing::KeysOf(*database, internal::Column::kTimelines, "r"))
    listed.insert(key.substr(1, sizeof(Sha256Digest)));
  for (const std::string& key : testing::KeysOf(*database, internal::Column::kTimelines, "n"))
    named.insert(key.substr(1));
  EXPECT_EQ(listed, named);
}

// Deleted with its last session and stored again by the next: a reader in between sees one or the
// other, and takes nothing away.
TEST_F(ConcurrencyTest, AReaderTakesNoValueThatIsStoredAgainForDamaged) {
  const std::vector<TokenId> tokens = RandomTokens(random_, 256);
  BlockHash block{};
  std::atomic<bool> done = false;
  std::atomic<int> damaged = 0;
  std::thread reading;
  for (int round = 0; round < 40; ++round) {
    const SessionInfo session = NewOne();
    Commit commit = TokensCommit(session.timeline, tokens);
    commit.blocks = {{0, {std::string(6000, 'a'), std::string(6000, 'b')}}};
    commit.anchor = KvAnchor{256, std::string(6000, 'c'), false};
    ASSERT_OK(store_->CommitSync(commit));
    const RestorePoint point = Must(store_->FindRestorePoint("alice", tokens, 256));
    EXPECT_EQ(point.position, 256) << "round " << round;
    if (round == 0) {
      block = point.blocks.at(0);
      reading = std::thread([&, anchor = point.anchor] {
        while (!done) {
          for (int part = 0; part < 2; ++part) {
            const auto read = store_->ReadBlockPart(block, part);
            damaged += !read.ok() && Text(read.status()).find("is not stored") == std::string::npos;
          }
          const auto read = store_->ReadAnchor(anchor, 256);
          damaged += !read.ok() && Text(read.status()).find("is not stored") == std::string::npos;
        }
      });
    }
    EXPECT_OK(store_->Delete(session.id));
  }
  done = true;
  reading.join();
  EXPECT_EQ(damaged, 0);
}

TEST_F(ConcurrencyTest, ADeletedSessionIsNotBroughtBackByLoadingIt) {
  for (int i = 0; i < 10; ++i)  // so that planning takes a moment
    ASSERT_OK(store_->CommitSync(TokensCommit(NewOne().timeline, RandomTokens(random_, 256 * 60))));
  for (int round = 0; round < 60; ++round) {
    const SessionInfo session = NewOne();
    ASSERT_OK(store_->CommitSync(TokensCommit(session.timeline, {1})));
    std::atomic<bool> deleted = false;
    std::thread loading([&] {
      while (!deleted) {
        (void)store_->Load(session.id);
        (void)store_->CommitSync(TokensCommit(session.timeline, {2}));
      }
    });
    EXPECT_OK(store_->Delete(session.id));
    deleted = true;
    loading.join();
  }
  store_.reset();
  const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
  std::set<std::string> timelines, with_events;
  for (const std::string& key : testing::KeysOf(*database, internal::Column::kTimelines, "t"))
    timelines.insert(key.substr(1));
  for (const std::string& key : testing::KeysOf(*database, internal::Column::kEvents))
    with_events.insert(key.substr(0, 8));
  EXPECT_EQ(timelines, with_events);
}

// ---- workspaces

class SharedTreeTest : public ConcurrencyTest {
 protected:
  SharedTreeTest() {
    for (const char* name : {"a", "b"}) std::filesystem::create_directory(Files(name));
  }
  std::filesystem::path Files(const std::string& name) const { return directory_.path() / name; }
  WorkspaceSnapshot Snapshot(const std::string& name, const std::string& text) {
    std::ofstream(Files(name) / "file") << text;
    return Must(store_->SnapshotWorkspace(Files(name)));
  }
  template <typename Tree>
  Commit TreeCommit(const SessionInfo& session, const Tree& tree) {
    Commit commit;
    commit.timeline = session.timeline;
    commit.events = {NewEvent::Workspace(tree)};
    return commit;
  }
  std::vector<std::string> ObjectsOnDisk() {
    store_.reset();
    return testing::KeysOf(*Must(internal::Database::Open(path(), false, {}, testing::TestKeys())),
                           internal::Column::kFiles);
  }
};

TEST_F(SharedTreeTest, ASnapshotThatChangedNothingKeepsNoFiles) {
  const SessionInfo session = NewOne();
  ASSERT_OK(store_->CommitSync(TreeCommit(session, Snapshot("a", "secret"))));
  (void)Snapshot("a", "secret");  // no event names it
  ASSERT_OK(store_->Delete(session.id));
  EXPECT_THAT(ObjectsOnDisk(), IsEmpty());
}

TEST_F(SharedTreeTest, WhatOnlyAnUnnamedSnapshotKeptGoesAtTheNextOpen) {
  const SessionInfo session = NewOne();
  ASSERT_OK(store_->CommitSync(TreeCommit(session, Snapshot("a", "secret"))));
  {
    const WorkspaceSnapshot unnamed = Snapshot("b", "secret");
    ASSERT_OK(store_->Delete(session.id));
    EXPECT_OK(store_->RestoreWorkspace(unnamed.tree, directory_.path() / "restored"));
  }
  store_.reset();
  Must(Store::Open(path(), Options())).reset();
  EXPECT_THAT(ObjectsOnDisk(), IsEmpty());
}

TEST_F(SharedTreeTest, ACommitKeepsNoOtherSnapshotFromItsOwn) {
  const SessionInfo a = NewOne(), b = NewOne();
  const WorkspaceSnapshot of_b = Snapshot("b", "same");
  ASSERT_OK(store_->CommitSync(TreeCommit(a, Snapshot("a", "same"))));
  ASSERT_OK(store_->Delete(a.id));
  ASSERT_OK(store_->CommitSync(TreeCommit(b, of_b)));
  EXPECT_OK(store_->RestoreWorkspace(of_b.tree, directory_.path() / "restored"));
}

TEST_F(SharedTreeTest, ATreeNamedWhileItIsDeletedIsThereOrRefused) {
  for (int round = 0; round < 60; ++round) {
    const SessionInfo a = NewOne(), b = NewOne();
    TreeId tree;
    {
      const WorkspaceSnapshot snapshot = Snapshot("a", std::to_string(random_()));
      tree = snapshot.tree;
      ASSERT_OK(store_->CommitSync(TreeCommit(a, snapshot)));
    }
    WorkspaceSnapshot held;
    if (round % 2 == 0) held = Must(store_->SnapshotWorkspace(Files("a")));
    absl::Status named;
    std::thread naming([&, pause = Below(random_, 1500)] {
      std::this_thread::sleep_for(std::chrono::microseconds(pause));
      named =
          store_->CommitSync(round % 2 == 0 ? TreeCommit(b, held) : TreeCommit(b, tree)).status();
    });
    EXPECT_OK(store_->Delete(a.id));
    naming.join();
    if (round % 2 == 0) {
      ASSERT_OK(named);
    }
    if (named.ok()) {
      ASSERT_OK(store_->RestoreWorkspace(tree, directory_.path() / "restored"));
    } else {
      ASSERT_TRUE(absl::IsNotFound(named)) << named;
    }
  }
}

// ---- everything at once

// One thread's sessions. All threads take tokens and files from the same few, so that their
// sessions share blocks, anchors and trees.
class Inhabitant {
 public:
  Inhabitant(Store& store, const std::vector<std::vector<TokenId>>& scripts,
             const std::filesystem::path& directory, uint64_t seed)
      : store_(store),
        scripts_(scripts),
        files_(directory / "files"),
        restored_(directory / "back"),
        random_(seed) {
    std::filesystem::create_directories(files_);
  }

  void Live(int rounds) {
    for (int round = 0; round < rounds && !::testing::Test::HasFailure(); ++round) {
      const std::vector<TokenId>& script =
          scripts_[static_cast<size_t>(Below(random_, static_cast<int64_t>(scripts_.size())))];
      const SessionInfo session = Must(store_.Create({"alice", 1, ""}));
      std::string text;
      const int64_t blocks = 1 + Below(random_, static_cast<int64_t>(script.size()) / kBlockTokens);
      for (int64_t block = 0; block < blocks; ++block) text = Commit(session, script, block, text);
      Check(session, script, blocks * kBlockTokens, text);
      if (Below(random_, 2) == 0) {
        const SessionInfo child = Must(
            store_.Fork(session.id, testing::AtPosition(blocks * kBlockTokens), {"alice", 1, ""}));
        EXPECT_OK(store_.Delete(session.id));
        Check(child, script, blocks * kBlockTokens, text);
        EXPECT_OK(store_.Delete(child.id));
      } else {
        EXPECT_OK(store_.Delete(session.id));
      }
    }
  }

 private:
  // The next block of the script, an anchor after it and, now and then, a workspace. Returns what
  // the workspace's file says.
  std::string Commit(const SessionInfo& session, const std::vector<TokenId>& script, int64_t block,
                     std::string text) {
    const auto from = script.begin() + block * kBlockTokens;
    sessions::Commit commit = TokensCommit(session.timeline, {from, from + kBlockTokens});
    commit.blocks = {{block, {fmt::format("block {}", block), std::string(5000, 'b')}}};
    const int64_t position = (block + 1) * kBlockTokens;
    commit.anchor = KvAnchor{position, fmt::format("anchor {}", position), Below(random_, 2) == 0};
    if (Below(random_, 2) == 0) {
      text = fmt::format("contents {}", Below(random_, 3));
      std::ofstream(files_ / "file") << text;
      commit.events.push_back(NewEvent::Workspace(Must(store_.SnapshotWorkspace(files_))));
    }
    EXPECT_OK(store_.CommitSync(std::move(commit)));
    return text;
  }

  // What was acknowledged can be read.
  void Check(const SessionInfo& session, const std::vector<TokenId>& script, int64_t position,
             const std::string& text) {
    const RestorePoint point = Must(store_.FindRestorePoint("alice", script, position));
    EXPECT_EQ(point.position, position);
    if (point.position != position) return;
    for (size_t block = 0; block < point.blocks.size(); ++block) {
      EXPECT_EQ(Must(store_.ReadBlockPart(point.blocks[block], 0)), fmt::format("block {}", block));
      EXPECT_OK(store_.ReadBlockPart(point.blocks[block], 1));
    }
    EXPECT_EQ(Must(store_.ReadAnchor(point.anchor, position)), fmt::format("anchor {}", position));
    const LoadedTimeline loaded = Must(store_.Load(session.id));
    EXPECT_EQ(loaded.workspace.has_value(), !text.empty());
    if (!loaded.workspace.has_value()) return;
    EXPECT_OK(store_.RestoreWorkspace(*loaded.workspace, restored_));
    std::ifstream file(restored_ / "file");
    EXPECT_EQ(std::string((std::istreambuf_iterator<char>(file)), {}), text);
  }

  Store& store_;
  const std::vector<std::vector<TokenId>>& scripts_;
  const std::filesystem::path files_, restored_;
  testing::Random random_;
};

TEST_F(ConcurrencyTest, SessionsThatShareEverythingComeAndGo) {
  constexpr int kThreads = 4, kRounds = 25;
  std::vector<std::vector<TokenId>> scripts;
  for (int i = 0; i < 2; ++i) scripts.push_back(RandomTokens(random_, 3 * kBlockTokens));
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i, seed = random_()] {
      Inhabitant(*store_, scripts, directory_.path() / std::to_string(i), seed).Live(kRounds);
    });
  }
  for (std::thread& thread : threads) thread.join();
  store_.reset();
  Must(Store::Open(path(), Options())).reset();
  EXPECT_THAT(testing::FindOrphans(path()), IsEmpty());
  const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
  EXPECT_THAT(testing::KeysOf(*database, internal::Column::kEvents), IsEmpty());
  EXPECT_THAT(testing::KeysOf(*database, internal::Column::kFiles), IsEmpty());
}

}  // namespace
}  // namespace agentd::sessions
