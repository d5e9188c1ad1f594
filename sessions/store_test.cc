// What the API promises, one short test each.
#include "sessions/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <thread>

#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using testing::AtPosition;
using testing::AtSeq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Must;
using testing::Options;
using testing::RandomTokens;
using testing::TokensCommit;

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() { Open(); }

  void Open(const StoreOptions& options = Options()) {
    store_.reset();
    store_ = Must(Store::Open(directory_.path() / "store", options));
  }
  SessionInfo NewOne(const std::string& owner = "alice") {
    return Must(store_->Create({owner, 7, "meta"}));
  }
  // Commits `tokens` with all their whole blocks and an anchor at the end.
  void CommitWithKv(const SessionInfo& session, const std::vector<TokenId>& tokens,
                    bool tail = false) {
    const int64_t before = Must(store_->Get(session.id)).tokens;
    Commit commit = TokensCommit(session.timeline, tokens);
    const int64_t after = before + static_cast<int64_t>(tokens.size());
    for (int64_t block = before / kBlockTokens; (block + 1) * kBlockTokens <= after; ++block) {
      commit.blocks.push_back({block, {fmt::format("index {}", block), std::string(100'000, 'k')}});
    }
    commit.anchor = KvAnchor{after, fmt::format("anchor at {}", after), tail};
    ASSERT_OK(store_->CommitSync(std::move(commit)));
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, ASessionSurvivesReopening) {
  const SessionInfo created = NewOne();
  EXPECT_EQ(created.id.size(), 26u);
  const std::vector<TokenId> tokens = RandomTokens(random_, 300);
  Commit commit = TokensCommit(created.timeline, tokens, /*sampled=*/false);
  commit.events.push_back(NewEvent::Caller(20, "called"));
  commit.session_meta = "new meta";
  const CommitResult result = Must(store_->CommitSync(commit));
  ASSERT_EQ(result.events.size(), 2u);
  EXPECT_EQ(result.events[0].seq, 1u);
  EXPECT_EQ(result.events[1].position, 300);

  Open();
  const LoadedTimeline loaded = Must(store_->Load(created.id));
  EXPECT_EQ(loaded.tokens, tokens);
  EXPECT_EQ(loaded.session.meta, "new meta");
  EXPECT_EQ(loaded.session.seed, 7u);
  EXPECT_EQ(loaded.session.last_seq, 2u);
  EXPECT_FALSE(loaded.workspace.has_value());
  const std::vector<Event> events = Must(store_->ReadEvents(created.timeline, 1, 10));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_FALSE(events[0].sampled);
  EXPECT_EQ(events[1].payload, "called");
  EXPECT_GT(events[1].time_us, 0);
  EXPECT_EQ(Must(store_->ReadEvents(created.timeline, 2, 10)).size(), 1u);
  EXPECT_TRUE(Must(store_->ReadEvents(created.timeline, 3, 10)).empty());
}

TEST_F(StoreTest, ListsAnOwnersSessionsNewestFirstInPages) {
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(NewOne("a").id);
  NewOne("ab");
  const auto first = Must(store_->List("a", "", 3));
  ASSERT_EQ(first.size(), 3u);
  EXPECT_EQ(first[0].id, ids[4]);
  const auto second = Must(store_->List("a", first[2].id, 3));
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(second[1].id, ids[0]);
  EXPECT_TRUE(Must(store_->List("nobody", "", 3)).empty());
}

TEST_F(StoreTest, ErrorsNameWhatIsMissingOrWrong) {
  EXPECT_THAT(Text(store_->Get("nope").status()), HasSubstr("session nope"));
  EXPECT_TRUE(absl::IsNotFound(store_->Load("nope").status()));
  EXPECT_TRUE(absl::IsNotFound(store_->Delete("nope")));
  EXPECT_TRUE(absl::IsNotFound(store_->CommitSync(TokensCommit(99, {1})).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Create({"", 0, ""}).status()));
  const SessionInfo session = NewOne();
  EXPECT_TRUE(absl::IsOutOfRange(store_->Fork(session.id, AtSeq(1), {"a", 0, ""}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Rewind(session.id, Point{}, 0).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(Store::Open(directory_.path() / "x", StoreOptions{}).status()));
}

TEST_F(StoreTest, AfterAnErrorCommitsFailUntilLoad) {
  const SessionInfo session = NewOne();
  Commit bad = TokensCommit(session.timeline, {1, 2});
  bad.blocks.push_back({0, {"not whole"}});
  EXPECT_TRUE(absl::IsInvalidArgument(store_->CommitSync(bad).status()));
  EXPECT_FALSE(store_->CommitSync(TokensCommit(session.timeline, {1})).ok());
  ASSERT_OK(store_->Load(session.id));
  EXPECT_EQ(Must(store_->CommitSync(TokensCommit(session.timeline, {1}))).events[0].seq, 1u);
}

TEST_F(StoreTest, UnknownTimelinesLeaveNothingInMemory) {
  const SessionInfo session = NewOne();
  for (TimelineId timeline = 100; timeline < 120; ++timeline)
    EXPECT_TRUE(absl::IsNotFound(store_->CommitSync(TokensCommit(timeline, {1})).status()));
  EXPECT_EQ(Must(store_->Stats()).timelines_in_memory, 0);
  ASSERT_OK(store_->CommitSync(TokensCommit(session.timeline, {1})));
  EXPECT_EQ(Must(store_->Stats()).timelines_in_memory, 1);
}

TEST_F(StoreTest, DroppedValuesAreNotOfferedAndStoredAgain) {
  const SessionInfo session = NewOne();
  const std::vector<TokenId> tokens = RandomTokens(random_, 600);
  CommitWithKv(session, tokens);
  const RestorePoint point = Must(store_->FindRestorePoint("alice", tokens, 600));
  store_->DropBlock(point.blocks[1]);
  store_->DropAnchor(point.anchor);
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 600)).position, 0);
  Commit again;
  again.timeline = session.timeline;
  again.blocks = {{0, {"not stored again"}}, {1, {"again"}}};
  again.anchor = KvAnchor{600, "anchor again", false};
  ASSERT_OK(store_->CommitSync(again));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 600)).position, 600);
  EXPECT_EQ(Must(store_->ReadBlockPart(point.blocks[0], 0)), "index 0");
  EXPECT_EQ(Must(store_->ReadBlockPart(point.blocks[1], 0)), "again");
  EXPECT_EQ(Must(store_->ReadAnchor(point.anchor, 600)), "anchor again");
}

TEST_F(StoreTest, RestorePointsSurviveReopeningAndReadBack) {
  const SessionInfo session = NewOne();
  std::vector<TokenId> tokens = RandomTokens(random_, 1000);
  CommitWithKv(session, tokens);
  Open();
  const RestorePoint point = Must(store_->FindRestorePoint("alice", tokens, 1000));
  ASSERT_EQ(point.position, 1000);
  ASSERT_EQ(point.blocks.size(), 3u);
  EXPECT_EQ(Must(store_->ReadBlockPart(point.blocks[2], 0)), "index 2");
  EXPECT_EQ(Must(store_->ReadBlockPart(point.blocks[1], 1)).size(), 100'000u);
  EXPECT_TRUE(absl::IsNotFound(store_->ReadBlockPart(point.blocks[1], 2).status()));
  EXPECT_EQ(Must(store_->ReadAnchor(point.anchor, 1000)), "anchor at 1000");
  EXPECT_TRUE(absl::IsNotFound(store_->ReadAnchor(point.anchor, 999).status()));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 999)).position, 0);
  EXPECT_EQ(Must(store_->FindRestorePoint("bob", tokens, 1000)).position, 0);
  tokens[500] ^= 1;
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 1000)).position, 0);
}

TEST_F(StoreTest, TheFurthestAnchorWithAllItsBlocksWins) {
  const SessionInfo session = NewOne();
  const std::vector<TokenId> tokens = RandomTokens(random_, 2000);
  ASSERT_OK(store_->CommitSync(TokensCommit(session.timeline, tokens)));
  const auto add = [&](const std::vector<int64_t>& blocks, int64_t anchor) {
    Commit commit;
    commit.timeline = session.timeline;
    for (int64_t block : blocks) commit.blocks.push_back({block, {"b"}});
    if (anchor > 0) commit.anchor = KvAnchor{anchor, "a", false};
    ASSERT_OK(store_->CommitSync(commit));
  };
  const auto find = [&](int64_t max) {
    return Must(store_->FindRestorePoint("alice", tokens, max)).position;
  };
  add({}, 10);
  EXPECT_EQ(find(2000), 10);
  add({0, 2}, 512);  // block 1 is missing
  EXPECT_EQ(find(2000), 10);
  add({1}, 0);
  EXPECT_EQ(find(2000), 512);
  EXPECT_EQ(find(511), 10);
  add({}, 600);
  EXPECT_EQ(find(2000), 600);
  EXPECT_EQ(find(599), 512);
}

TEST_F(StoreTest, EqualPrefixesShareBlocks) {
  const std::vector<TokenId> tokens = RandomTokens(random_, 600);
  CommitWithKv(NewOne(), tokens);
  EXPECT_EQ(Must(store_->Stats()).blocks_written, 2);
  CommitWithKv(NewOne(), tokens);
  EXPECT_EQ(Must(store_->Stats()).blocks_written, 2);
  EXPECT_EQ(Must(store_->Stats()).blocks_deduplicated, 2);
  CommitWithKv(NewOne("bob"), tokens);  // keyed by owner: nothing shared
  EXPECT_EQ(Must(store_->Stats()).blocks_written, 4);
}

TEST_F(StoreTest, AnotherKvIdentityIsNeverServed) {
  const std::vector<TokenId> tokens = RandomTokens(random_, 300);
  const SessionInfo session = NewOne();
  CommitWithKv(session, tokens);
  const RestorePoint point = Must(store_->FindRestorePoint("alice", tokens, 300));
  Open(Options("model/other numerics"));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 300)).position, 0);
  EXPECT_TRUE(absl::IsNotFound(store_->ReadBlockPart(point.blocks[0], 0).status()));
  EXPECT_TRUE(absl::IsNotFound(store_->ReadAnchor(point.anchor, 300).status()));
  Open();  // and was not dropped
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 300)).position, 300);
}

TEST_F(StoreTest, ATailAnchorIsReplacedByTheNext) {
  const SessionInfo session = NewOne();
  std::vector<TokenId> tokens = RandomTokens(random_, 100);
  CommitWithKv(session, tokens, /*tail=*/true);
  const RestorePoint first = Must(store_->FindRestorePoint("alice", tokens, 100));
  Open();  // the mark is durable
  const std::vector<TokenId> more = RandomTokens(random_, 50);
  CommitWithKv(session, more, /*tail=*/false);
  tokens.insert(tokens.end(), more.begin(), more.end());
  EXPECT_TRUE(absl::IsNotFound(store_->ReadAnchor(first.anchor, 100).status()));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 149)).position, 0);
  CommitWithKv(session, RandomTokens(random_, 50), /*tail=*/true);
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 150)).position, 150);  // was none
}

TEST_F(StoreTest, AForkKeepsItsParentsTailAnchor) {
  const SessionInfo parent = NewOne();
  const std::vector<TokenId> tokens = RandomTokens(random_, 100);
  CommitWithKv(parent, tokens, /*tail=*/true);
  const SessionInfo child = Must(store_->Fork(parent.id, AtPosition(100), {"alice", 1, ""}));
  CommitWithKv(parent, RandomTokens(random_, 50), /*tail=*/true);
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 100)).position, 100);
  ASSERT_OK(store_->Delete(parent.id));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 100)).position, 100);
  ASSERT_OK(store_->Delete(child.id));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 100)).position, 0);
}

TEST_F(StoreTest, AForkKeepsTheAnchorThatAForkListedWhereItBegan) {
  const SessionInfo parent = NewOne();
  const std::vector<TokenId> tokens = RandomTokens(random_, 100);
  ASSERT_OK(store_->CommitSync(TokensCommit(parent.timeline, tokens)));
  const SessionInfo child = Must(store_->Fork(parent.id, AtPosition(100), {"alice", 1, ""}));
  Commit commit;  // no event: a fork of the child shares none of its timeline
  commit.timeline = child.timeline;
  commit.anchor = KvAnchor{100, "anchor", false};
  ASSERT_OK(store_->CommitSync(std::move(commit)));
  const SessionInfo grandchild = Must(store_->Fork(child.id, AtPosition(100), {"alice", 1, ""}));
  ASSERT_OK(store_->Delete(child.id));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 100)).position, 100);
  ASSERT_OK(store_->Delete(grandchild.id));
  EXPECT_EQ(Must(store_->FindRestorePoint("alice", tokens, 100)).position, 0);
}

TEST_F(StoreTest, AForkCutsARunWithoutCopyingIt) {
  const SessionInfo parent = NewOne();
  const std::vector<TokenId> tokens = RandomTokens(random_, 10);
  ASSERT_OK(store_->CommitSync(TokensCommit(parent.timeline, tokens)));
  const SessionInfo child = Must(store_->Fork(parent.id, AtPosition(4), {"alice", 9, "child"}));
  EXPECT_EQ(child.forked_from, parent.id);
  EXPECT_EQ(child.forked_at_seq, 1u);
  EXPECT_EQ(child.tokens, 4);
  EXPECT_EQ(child.seed, 9u);
  EXPECT_EQ(Must(store_->CommitSync(TokensCommit(child.timeline, {77}))).events[0].seq, 2u);
  EXPECT_THAT(Must(store_->Load(child.id)).tokens,
              ElementsAre(tokens[0], tokens[1], tokens[2], tokens[3], 77));
  EXPECT_EQ(Must(store_->Load(parent.id)).tokens, tokens);
}

TEST_F(StoreTest, ARewindMovesThePointer) {
  const SessionInfo session = NewOne();
  ASSERT_OK(store_->CommitSync(TokensCommit(session.timeline, {1, 2, 3})));
  ASSERT_OK(store_->CommitSync(TokensCommit(session.timeline, {4, 5})));
  const SessionInfo rewound = Must(store_->Rewind(session.id, AtSeq(1), 99));
  EXPECT_EQ(rewound.id, session.id);
  EXPECT_NE(rewound.timeline, session.timeline);
  EXPECT_EQ(rewound.seed, 99u);
  EXPECT_EQ(Must(store_->CommitSync(TokensCommit(rewound.timeline, {9}))).events[0].seq, 2u);
  EXPECT_THAT(Must(store_->Load(session.id)).tokens, ElementsAre(1, 2, 3, 9));
  EXPECT_EQ(Must(store_->ReadEvents(session.timeline, 1, 9)).size(),
            2u);  // the old one can still be read
  const SessionInfo start = Must(store_->Rewind(session.id, AtSeq(0), 1));
  EXPECT_EQ(start.last_seq, 0u);
  EXPECT_TRUE(Must(store_->Load(session.id)).tokens.empty());
}

TEST_F(StoreTest, PositionPointsTakeAllEventsUpToThem) {
  const SessionInfo session = NewOne();
  Commit commit = TokensCommit(session.timeline, {1, 2});
  commit.events.insert(commit.events.begin(), NewEvent::Caller(16, "before"));
  commit.events.push_back(NewEvent::Caller(17, "after"));
  commit.events.push_back(NewEvent::Tokens({3}, true));
  ASSERT_OK(store_->CommitSync(commit));
  EXPECT_EQ(Must(store_->Fork(session.id, AtPosition(0), {"a", 0, ""})).last_seq, 1u);
  EXPECT_EQ(Must(store_->Fork(session.id, AtPosition(1), {"a", 0, ""})).last_seq, 2u);
  EXPECT_EQ(Must(store_->Fork(session.id, AtPosition(2), {"a", 0, ""})).last_seq, 3u);
  EXPECT_EQ(Must(store_->Fork(session.id, AtPosition(3), {"a", 0, ""})).last_seq, 4u);
}

TEST_F(StoreTest, DeleteErasesTheEventsFromTheDisk) {
  if (testing::TestKeys().current.has_value()) GTEST_SKIP() << "they are never seen there";
  const SessionInfo session = NewOne();
  const std::string secret = "secret-" + std::to_string(random_());
  Commit commit;
  commit.timeline = session.timeline;
  commit.events.push_back(NewEvent::Caller(16, secret));
  commit.session_meta = secret;
  ASSERT_OK(store_->CommitSync(commit));
  const auto on_disk = [&] {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_.path())) {
      if (!entry.is_regular_file()) continue;
      std::ifstream file(entry.path(), std::ios::binary);
      const std::string bytes((std::istreambuf_iterator<char>(file)), {});
      if (bytes.find(secret) != std::string::npos) return true;
    }
    return false;
  };
  EXPECT_TRUE(on_disk());
  ASSERT_OK(store_->Delete(session.id));
  EXPECT_FALSE(on_disk());
  EXPECT_TRUE(absl::IsNotFound(store_->Get(session.id).status()));
  EXPECT_TRUE(absl::IsNotFound(store_->CommitSync(TokensCommit(session.timeline, {1})).status()));
  EXPECT_EQ(Must(store_->Stats()).live_sessions, 0);
  EXPECT_TRUE(Must(store_->List("alice", "", 9)).empty());
}

TEST_F(StoreTest, WhatForksShareOutlivesTheParent) {
  const SessionInfo parent = NewOne();
  std::vector<TokenId> tokens = RandomTokens(random_, 1000);
  CommitWithKv(parent, tokens);
  CommitWithKv(parent, RandomTokens(random_, 100));
  const SessionInfo child = Must(store_->Fork(parent.id, AtPosition(600), {"alice", 1, ""}));
  const SessionInfo grandchild = Must(store_->Fork(child.id, AtPosition(520), {"alice", 1, ""}));
  const auto readable_blocks = [&] {
    Commit commit;  // a permanent anchor at the end of the grandchild's context
    commit.timeline = grandchild.timeline;
    commit.anchor = KvAnchor{520, "grandchild", false};
    EXPECT_OK(store_->CommitSync(commit));
    return Must(store_->FindRestorePoint("alice", tokens, 520)).blocks.size();
  };
  ASSERT_OK(store_->Delete(parent.id));
  EXPECT_EQ(Must(store_->Load(child.id)).tokens,
            std::vector<TokenId>(tokens.begin(), tokens.begin() + 600));
  EXPECT_TRUE(absl::IsNotFound(store_->ReadEvents(parent.timeline, 1, 9).status()));
  ASSERT_OK(store_->Delete(child.id));
  EXPECT_EQ(Must(store_->Load(grandchild.id)).tokens,
            std::vector<TokenId>(tokens.begin(), tokens.begin() + 520));
  EXPECT_EQ(readable_blocks(), 2u);
  Open();
  EXPECT_EQ(readable_blocks(), 2u);
  const RestorePoint point = Must(store_->FindRestorePoint("alice", tokens, 520));
  ASSERT_OK(store_->Delete(grandchild.id));
  EXPECT_TRUE(absl::IsNotFound(store_->ReadBlockPart(point.blocks[0], 0).status()));
  EXPECT_TRUE(absl::IsNotFound(store_->ReadAnchor(point.anchor, 520).status()));
}

TEST_F(StoreTest, CommitsOfManyTimelinesShareASync) {
  StoreOptions options = Options();
  options.group_commit_window_us = 20'000;
  Open(options);
  std::vector<SessionInfo> sessions;
  for (int i = 0; i < 8; ++i) sessions.push_back(NewOne());
  const StoreStats before = Must(store_->Stats());
  std::mutex mutex;
  std::map<TimelineId, std::vector<uint64_t>> acknowledged;
  for (int round = 0; round < 20; ++round) {
    for (const SessionInfo& session : sessions) {
      Commit commit = TokensCommit(session.timeline, RandomTokens(random_, 60));
      if (round % 5 == 4) commit.blocks.push_back({0, {"part"}});
      store_->CommitAsync(std::move(commit),
                          [&, timeline = session.timeline](absl::StatusOr<CommitResult> result) {
                            std::lock_guard lock(mutex);
                            if (result.ok())
                              acknowledged[timeline].push_back(result->events[0].seq);
                          });
    }
  }
  for (const SessionInfo& session : sessions)
    ASSERT_OK(store_->CommitSync(TokensCommit(session.timeline, {1})));
  const StoreStats after = Must(store_->Stats());
  EXPECT_EQ(after.commits - before.commits, 8 * 21);
  EXPECT_LT(after.group_syncs - before.group_syncs, 8 * 21 / 2);
  for (const SessionInfo& session : sessions) {
    ASSERT_EQ(acknowledged[session.timeline].size(), 20u);
    for (uint64_t i = 0; i < 20; ++i)
      EXPECT_EQ(acknowledged[session.timeline][i], i + 1);  // call order
    EXPECT_EQ(Must(store_->Load(session.id)).tokens.size(), 1201u);
  }
}

TEST_F(StoreTest, ClosingFinishesQueuedCommits) {
  const SessionInfo session = NewOne();
  std::atomic<int> acknowledged = 0;
  for (int i = 0; i < 50; ++i) {
    Commit commit = TokensCommit(session.timeline, RandomTokens(random_, 256));
    if (i % 7 == 0) commit.blocks.push_back({i, {"part"}});
    store_->CommitAsync(std::move(commit),
                        [&](absl::StatusOr<CommitResult> result) { acknowledged += result.ok(); });
  }
  Open();
  EXPECT_EQ(acknowledged, 50);
  EXPECT_EQ(Must(store_->Load(session.id)).session.last_seq, 50u);
}

TEST_F(StoreTest, ASecondOpenerIsRefusedWithThePid) {
  const auto second = Store::Open(directory_.path() / "store", Options());
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
  EXPECT_THAT(Text(second.status()), HasSubstr(fmt::format("process {}", ::getpid())));
}

TEST_F(StoreTest, ANewerFormatIsRefusedByName) {
  store_.reset();
  std::ofstream(directory_.path() / "store" / "FORMAT") << "agentd-sessions 999\n";
  const auto opened = Store::Open(directory_.path() / "store", Options());
  EXPECT_TRUE(absl::IsFailedPrecondition(opened.status()));
  EXPECT_THAT(Text(opened.status()), HasSubstr("version 999"));
}

TEST_F(StoreTest, OpeningNothingWithoutCreateIsNotFound) {
  StoreOptions options = Options();
  options.create_if_missing = false;
  EXPECT_TRUE(absl::IsNotFound(Store::Open(directory_.path() / "none", options).status()));
  EXPECT_FALSE(std::filesystem::exists(directory_.path() / "none"));
}

}  // namespace
}  // namespace agentd::sessions
