// Budget, eviction, collection, erasing, sharing and the accounts of space.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <thread>

#include "sessions/inspect_util.h"
#include "sessions/internal_options.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using internal::InternalOptions;
using testing::AtPosition;
using testing::Below;
using testing::Must;
using testing::Random;
using testing::RandomBytes;
using testing::RandomTokens;

constexpr int64_t kBudget = int64_t{24} << 20;
constexpr size_t kPartBytes = 40 << 10;
constexpr size_t kAnchorBytes = 30 << 10;

int64_t FilesWith(const std::filesystem::path& directory, std::string_view needle) {
  int64_t count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    count += bytes.find(needle) != std::string::npos;
  }
  return count;
}

int64_t MeasuredBytes(Store& store) { return Must(store.Stats()).directory_bytes; }

class SpaceTest : public ::testing::Test {
 protected:
  void Open(int64_t budget_bytes = 0, bool compress = true) {
    store_.reset();
    StoreOptions options = testing::Options();
    options.budget_bytes = budget_bytes;
    InternalOptions internal_options;
    internal_options.compress = compress;
    store_ = Must(internal::OpenStore(path(), options, internal_options));
  }
  std::filesystem::path path() const { return directory_.path() / "store"; }

  struct Session {
    SessionInfo info;
    std::vector<TokenId> tokens;
    std::vector<std::string> parts;  // one of each block
    std::string anchor;
  };

  // `blocks` more blocks in one commit, and a permanent anchor at their end.
  void Grow(Session& session, int64_t blocks, bool tail = false) {
    const int64_t before = static_cast<int64_t>(session.parts.size());
    Commit commit;
    commit.timeline = session.info.timeline;
    std::vector<TokenId> tokens = RandomTokens(random_, blocks * kBlockTokens);
    session.tokens.insert(session.tokens.end(), tokens.begin(), tokens.end());
    commit.events.push_back(NewEvent::Tokens(std::move(tokens), true));
    for (int64_t block = before; block < before + blocks; ++block) {
      session.parts.push_back(RandomBytes(random_, kPartBytes));
      commit.blocks.push_back({block, {"index", session.parts.back()}});
    }
    session.anchor = RandomBytes(random_, kAnchorBytes);
    commit.anchor = KvAnchor{static_cast<int64_t>(session.tokens.size()), session.anchor, tail};
    ASSERT_OK(store_->CommitSync(std::move(commit)));
  }

  Session NewSession(int64_t blocks, const std::string& owner = "alice") {
    Session session;
    session.info = Must(store_->Create({owner, 1, ""}));
    if (blocks > 0) Grow(session, blocks);
    return session;
  }

  RestorePoint Find(const Session& session) {
    return Must(store_->FindRestorePoint(session.info.owner, session.tokens, INT64_MAX));
  }

  // All that a restore point names is there, and is what was stored.
  void CheckValues(const Session& session, const RestorePoint& point) {
    for (size_t block = 0; block < point.blocks.size(); ++block)
      EXPECT_EQ(Must(store_->ReadBlockPart(point.blocks[block], 1)), session.parts[block]);
    if (point.position == static_cast<int64_t>(session.tokens.size())) {
      EXPECT_EQ(Must(store_->ReadAnchor(point.anchor, point.position)), session.anchor);
    }
  }

  testing::TemporaryDirectory directory_;
  Random random_{testing::NewSeed()};
  std::unique_ptr<Store> store_;
};

// ---- budget and eviction

TEST_F(SpaceTest, TheDirectoryStaysNearItsBudgetAndNoLogIsLost) {
  Open(kBudget);
  std::vector<Session> sessions;
  for (int i = 0; i < 40; ++i) {
    sessions.push_back(NewSession(8));
    Grow(sessions.back(), 8);
  }
  const int64_t churned = Must(store_->Stats()).written_bytes;
  ASSERT_OK(store_->Reclaim());
  const StoreStats stats = Must(store_->Stats());
  std::cout << "written " << churned << ", budget " << kBudget << ", directory "
            << stats.directory_bytes << ", evicted " << stats.evicted_bytes << " in "
            << stats.evicted_blocks << " blocks and " << stats.evicted_anchors
            << " anchors, collection wrote " << stats.collected_bytes_written << "\n";
  EXPECT_LE(stats.directory_bytes, kBudget / 10 * 11);
  EXPECT_GE(stats.directory_bytes, kBudget / 10 * 8);
  EXPECT_GT(stats.evicted_blocks, 0);

  int64_t whole = 0;
  for (Session& session : sessions) {
    EXPECT_EQ(Must(store_->Load(session.info.id)).tokens, session.tokens);
    const RestorePoint point = Find(session);
    whole += point.position == static_cast<int64_t>(session.tokens.size());
    CheckValues(session, point);
  }
  EXPECT_GT(whole, 0);
  EXPECT_LT(whole, 40);
  // The last one written is the last to go.
  EXPECT_EQ(Find(sessions.back()).position, static_cast<int64_t>(sessions.back().tokens.size()));

  // What was evicted is stored again when it is computed again, and served.
  Session& evicted = sessions.front();
  ASSERT_LT(Find(evicted).position, static_cast<int64_t>(evicted.tokens.size()));
  Commit again;
  again.timeline = evicted.info.timeline;
  for (size_t block = 0; block < evicted.parts.size(); ++block)
    again.blocks.push_back({static_cast<int64_t>(block), {"index", evicted.parts[block]}});
  again.anchor = KvAnchor{static_cast<int64_t>(evicted.tokens.size()), evicted.anchor, false};
  ASSERT_OK(store_->CommitSync(std::move(again)));
  const RestorePoint point = Find(evicted);
  EXPECT_EQ(point.position, static_cast<int64_t>(evicted.tokens.size()));
  CheckValues(evicted, point);
  store_.reset();
  EXPECT_THAT(testing::FindOrphans(path()), ::testing::IsEmpty());
}

TEST_F(SpaceTest, NoBlockStaysWithoutItsParents) {
  Open();
  std::vector<Session> sessions;
  for (int i = 0; i < 12; ++i) sessions.push_back(NewSession(4));
  int64_t bytes = 0;  // of blocks: more than there is room for
  while (bytes < kBudget + kBudget / 4) {
    const int64_t blocks = 1 + Below(random_, 8);
    Grow(sessions[static_cast<size_t>(Below(random_, 12))], blocks);
    bytes += blocks * static_cast<int64_t>(kPartBytes);
  }
  Open(kBudget);
  ASSERT_OK(store_->Reclaim());
  ASSERT_GT(Must(store_->Stats()).evicted_blocks, 0);
  store_.reset();
  const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
  std::map<BlockHash, internal::BlockName> names;
  for (const std::string& key : testing::KeysOf(*database, internal::Column::kTimelines, "k")) {
    const auto value = Must(database->Get(internal::Column::kTimelines, key));
    names[internal::DigestAt(key, 1)] = Must(internal::DecodeBlockName(key, *value));
  }
  ASSERT_FALSE(names.empty());
  for (const auto& [hash, name] : names)
    EXPECT_TRUE(name.block == 0 || names.contains(name.parent)) << "block " << name.block;
  for (const std::string& key : testing::KeysOf(*database, internal::Column::kTimelines, "n")) {
    const auto value = Must(database->Get(internal::Column::kTimelines, key));
    const internal::AnchorName name = Must(internal::DecodeAnchorName(key, *value));
    EXPECT_TRUE(name.position < kBlockTokens || names.contains(name.parent));
  }
}

TEST_F(SpaceTest, AReadersValuesAreNotEvicted) {
  Open(kBudget);
  const Session held = NewSession(8), free = NewSession(8);
  RestorePoint point = Find(held);
  for (int i = 0; i < 60; ++i) NewSession(16);
  ASSERT_OK(store_->Reclaim());
  ASSERT_LT(Find(free).position, static_cast<int64_t>(free.tokens.size()));
  EXPECT_EQ(Find(held).position, static_cast<int64_t>(held.tokens.size()));
  CheckValues(held, point);
}

TEST_F(SpaceTest, WhatManySessionsShareOutlivesWhatOneUses) {
  Open(kBudget);
  const Session shared = NewSession(16);
  std::vector<SessionInfo> forks;
  for (int i = 0; i < 50; ++i)
    forks.push_back(
        Must(store_->Fork(shared.info.id, AtPosition(16 * kBlockTokens), {"alice", 2, ""})));
  const Session alone = NewSession(16);
  for (int i = 0; i < 50; ++i) NewSession(16);
  ASSERT_OK(store_->Reclaim());
  EXPECT_LT(Find(alone).position, static_cast<int64_t>(alone.tokens.size()));
  const RestorePoint point = Find(shared);
  EXPECT_EQ(point.position, static_cast<int64_t>(shared.tokens.size()));
  CheckValues(shared, point);
}

// What lies behind a hole serves nobody: it goes first, however new it is.
TEST_F(SpaceTest, OrphansAreEvictedFirst) {
  Open();
  const Session old = NewSession(64);
  Session torn = NewSession(kBudget / 2 / static_cast<int64_t>(kPartBytes));
  const int64_t hole = Below(random_, 4);
  const RestorePoint before = Find(torn);
  store_->DropBlock(before.blocks[static_cast<size_t>(hole)]);
  // As much again, and newer, so that about the torn one's share has to go.
  const Session last = NewSession(kBudget / 2 / static_cast<int64_t>(kPartBytes));
  Open(kBudget);
  ASSERT_OK(store_->Reclaim());
  const StoreStats stats = Must(store_->Stats());
  ASSERT_GT(stats.evicted_blocks, 0);
  for (const Session* whole : {&old, &last}) {
    const RestorePoint point = Find(*whole);
    EXPECT_EQ(point.position, static_cast<int64_t>(whole->tokens.size()));
    CheckValues(*whole, point);
  }
  // All that went is of the torn one, from its end on, and its beginning is still of use.
  EXPECT_FALSE(store_->CountBlockParts(before.blocks.back()).ok());
  Commit anchor;
  anchor.timeline = torn.info.timeline;
  anchor.anchor = KvAnchor{hole * kBlockTokens + 1, "anchor", false};
  ASSERT_OK(store_->CommitSync(std::move(anchor)));
  EXPECT_EQ(Find(torn).position, hole * kBlockTokens + 1);
}

TEST_F(SpaceTest, ABudgetTooSmallIsRefused) {
  StoreOptions options = testing::Options();
  options.budget_bytes = kLeastBudget - 1;
  EXPECT_EQ(Store::Open(path(), options).status().code(), absl::StatusCode::kInvalidArgument);
}

// ---- collection

// Half of a file is dead once the session that shares its first half is the only one left.
class CollectionTest : public SpaceTest {
 protected:
  void MakeHalfDeadFile(bool compress) {
    Open(0, compress);
    parent_ = NewSession(8);
    child_ = parent_;
    child_.info =
        Must(store_->Fork(parent_.info.id, AtPosition(4 * kBlockTokens), {"alice", 2, ""}));
    child_.tokens.resize(4 * kBlockTokens);
    child_.parts.resize(4);
    child_.anchor = RandomBytes(random_, kAnchorBytes);
    Commit commit;
    commit.timeline = child_.info.timeline;
    commit.anchor = KvAnchor{4 * kBlockTokens, child_.anchor, false};
    ASSERT_OK(store_->CommitSync(std::move(commit)));
    ASSERT_OK(store_->Delete(parent_.info.id));
  }
  Session parent_, child_;
};

TEST_F(CollectionTest, KeepsWhatAForkSharesAndErasesTheRest) {
  MakeHalfDeadFile(/*compress=*/true);
  EXPECT_GT(FilesWith(path(), parent_.parts[6]), 0);
  EXPECT_TRUE(Must(store_->Stats()).erasing);
  ASSERT_OK(store_->Reclaim());
  EXPECT_FALSE(Must(store_->Stats()).erasing);
  EXPECT_GT(Must(store_->Stats()).collected_bytes_written, 4 * static_cast<int64_t>(kPartBytes));
  for (size_t block = 4; block < 8; ++block) EXPECT_EQ(FilesWith(path(), parent_.parts[block]), 0);
  EXPECT_EQ(FilesWith(path(), child_.parts[1]), 1);
  const RestorePoint point = Find(child_);
  EXPECT_EQ(point.position, 4 * kBlockTokens);
  CheckValues(child_, point);
  store_.reset();
  EXPECT_THAT(testing::FindOrphans(path()), ::testing::IsEmpty());
}

// Damage in a value that is moved stops neither the collection nor the rest of its file.
TEST_F(CollectionTest, DropsADamagedValueAndMovesTheOthers) {
  MakeHalfDeadFile(/*compress=*/true);
  bool damaged = false;
  for (const auto& entry : std::filesystem::directory_iterator(path() / "db")) {
    if (entry.path().extension() != ".blob") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    const size_t at = bytes.find(child_.parts[2]);
    if (at == std::string::npos) continue;
    file.clear();
    file.seekp(static_cast<std::streamoff>(at) + Below(random_, kPartBytes));
    file.put(static_cast<char>(~bytes[static_cast<size_t>(file.tellp())]));
    damaged = true;
  }
  ASSERT_TRUE(damaged);
  ASSERT_OK(store_->Reclaim());
  EXPECT_EQ(Must(store_->Stats()).damaged_values_dropped, 1);
  EXPECT_EQ(FilesWith(path(), parent_.parts[6]), 0);
  EXPECT_EQ(Must(store_->Load(child_.info.id)).tokens, child_.tokens);
  // Blocks 0 and 1 are offered as far as an anchor is there; 2 is computed again.
  Commit again;
  again.timeline = child_.info.timeline;
  again.blocks.push_back({2, {"index", child_.parts[2]}});
  ASSERT_OK(store_->CommitSync(std::move(again)));
  const RestorePoint point = Find(child_);
  EXPECT_EQ(point.position, 4 * kBlockTokens);
  CheckValues(child_, point);
}

TEST_F(SpaceTest, PassesBesideCommitsReadsForksAndDeletions) {
  Open(kLeastBudget);
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (uint64_t worker = 0; worker < 3; ++worker) {
    threads.emplace_back([&, seed = random_()] {
      Random random(seed);
      std::vector<TokenId> tokens;
      SessionInfo info = Must(store_->Create({"alice", 1, ""}));
      while (!stop) {
        if (tokens.size() > 24 * kBlockTokens || (Below(random, 8) == 0 && !tokens.empty())) {
          const int64_t at = Below(random, static_cast<int64_t>(tokens.size()));
          const SessionInfo fork = Must(store_->Fork(info.id, AtPosition(at), {"alice", 1, ""}));
          EXPECT_OK(store_->Delete(info.id));
          info = fork;
          tokens.resize(static_cast<size_t>(at));
        }
        Commit commit = testing::TokensCommit(info.timeline, RandomTokens(random, 700));
        tokens.insert(tokens.end(), commit.events[0].tokens.begin(), commit.events[0].tokens.end());
        const int64_t whole = static_cast<int64_t>(tokens.size()) / kBlockTokens;
        for (int64_t block = std::max<int64_t>(0, whole - 3); block < whole; ++block)
          commit.blocks.push_back({block,
                                   {fmt::format("{}", tokens[static_cast<size_t>(block)]),
                                    std::string(kPartBytes, 'p')}});
        commit.anchor = KvAnchor{static_cast<int64_t>(tokens.size()),
                                 std::string(kAnchorBytes, 'a'), Below(random, 2) == 0};
        EXPECT_OK(store_->CommitSync(std::move(commit)));
        const RestorePoint point = Must(store_->FindRestorePoint("alice", tokens, INT64_MAX));
        for (size_t block = 0; block < point.blocks.size(); ++block)
          EXPECT_OK(store_->ReadBlockPart(point.blocks[block], 1));
      }
      EXPECT_EQ(Must(store_->Load(info.id)).tokens, tokens);
    });
  }
  for (int pass = 0; pass < 6; ++pass) {
    const absl::Status status = store_->Reclaim();
    EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status.ToString();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  ASSERT_OK(store_->Reclaim());
  EXPECT_EQ(Must(store_->Stats()).damaged_values_dropped, 0);
  EXPECT_LE(MeasuredBytes(*store_), kLeastBudget / 10 * 11);
  store_.reset();
  EXPECT_THAT(testing::FindOrphans(path()), ::testing::IsEmpty());
}

// ---- erasing

std::string BytesOf(const std::vector<TokenId>& tokens, size_t first, size_t count) {
  return {reinterpret_cast<const char*>(tokens.data() + first), count * sizeof(TokenId)};
}

class EraseTest : public SpaceTest {
 protected:
  // A session that has one of everything; adds a needle for each.
  Session Fill(std::vector<std::pair<std::string, std::string>>& needles) {
    Session session = NewSession(2);
    needles.emplace_back("tokens", BytesOf(session.tokens, 100, 16));
    needles.emplace_back("anchor", session.anchor.substr(500, 64));
    Grow(session, 1, /*tail=*/true);
    needles.emplace_back("replaced anchor", session.anchor.substr(500, 64));
    Grow(session, 2);
    for (const std::string& part : session.parts)
      needles.emplace_back("block", part.substr(777, 64));
    const std::string old_meta = RandomBytes(random_, 64), meta = RandomBytes(random_, 64);
    const std::string said = RandomBytes(random_, 64), file = RandomBytes(random_, 200000);
    std::filesystem::create_directories(directory_.path() / "files" / "sub");
    std::ofstream(directory_.path() / "files" / "sub" / "data") << file;
    Commit commit;
    commit.timeline = session.info.timeline;
    commit.events.push_back(NewEvent::Caller(kFirstCallerKind, said));
    commit.events.push_back(
        NewEvent::Workspace(Must(store_->SnapshotWorkspace(directory_.path() / "files"))));
    commit.session_meta = old_meta;
    EXPECT_OK(store_->CommitSync(std::move(commit)));
    commit = testing::TokensCommit(session.info.timeline, RandomTokens(random_, 50));
    needles.emplace_back("last tokens", BytesOf(commit.events[0].tokens, 10, 16));
    commit.session_meta = meta;
    EXPECT_OK(store_->CommitSync(std::move(commit)));
    needles.emplace_back("payload", said);
    needles.emplace_back("old meta", old_meta);
    needles.emplace_back("meta", meta);
    needles.emplace_back("file", file.substr(150000, 64));
    return session;
  }
  using Needles = std::vector<std::pair<std::string, std::string>>;
  void ExpectAll(const Needles& needles, bool there) {
    for (const auto& [what, needle] : needles) {
      if (there) {
        EXPECT_GT(FilesWith(path(), needle), 0) << what;
      } else {
        EXPECT_EQ(FilesWith(path(), needle), 0) << what;
      }
    }
  }
};

TEST_F(EraseTest, NoByteOfADeletedSessionIsInAnyFile) {
  Open(0, /*compress=*/false);
  Needles kept, erased;
  const Session keep = Fill(kept);
  const Session gone = Fill(erased);
  const Session after = NewSession(3);
  // The control: it is all there. (What a tail replaced may be gone already.)
  for (const auto& needle : erased) {
    if (needle.first != "replaced anchor") ExpectAll({needle}, true);
  }
  ASSERT_OK(store_->Delete(gone.info.id));
  ASSERT_OK(store_->Reclaim());
  ExpectAll(erased, false);
  std::erase_if(kept, [](const auto& needle) {
    return needle.first == "replaced anchor" || needle.first == "old meta";
  });
  ExpectAll(kept, true);
  CheckValues(keep, Find(keep));
  CheckValues(after, Find(after));
  EXPECT_EQ(Must(store_->ReadEvents(keep.info.timeline, 1, 100)).size(), 6u);
}

TEST_F(EraseTest, AStoreThatWasClosedInBetweenErasesLater) {
  Open(0, /*compress=*/false);
  Needles erased;
  const Session gone = Fill(erased);
  const Session keep = NewSession(2);
  ASSERT_OK(store_->Delete(gone.info.id));
  Open(0, /*compress=*/false);
  EXPECT_TRUE(Must(store_->Stats()).erasing);
  for (int i = 0; i < 200 && Must(store_->Stats()).erasing; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(Must(store_->Stats()).erasing) << Must(store_->Stats()).space_error;
  ExpectAll(erased, false);
  CheckValues(keep, Find(keep));
  Open(0, /*compress=*/false);
  EXPECT_FALSE(Must(store_->Stats()).erasing);
}

// ---- sharing

TEST_F(SpaceTest, AThousandForksOfALongSessionAddLessThanAMebibyte) {
  Open();
  Session session;
  session.info = Must(store_->Create({"alice", 1, ""}));
  while (session.tokens.size() < 100'000) {
    Commit commit = testing::TokensCommit(session.info.timeline, RandomTokens(random_, 2048));
    const int64_t first = static_cast<int64_t>(session.tokens.size()) / kBlockTokens;
    session.tokens.insert(session.tokens.end(), commit.events[0].tokens.begin(),
                          commit.events[0].tokens.end());
    for (int64_t block = first; block < first + 8; ++block)
      commit.blocks.push_back({block, {"index", RandomBytes(random_, 5000)}});
    commit.anchor = KvAnchor{static_cast<int64_t>(session.tokens.size()), "anchor", false};
    ASSERT_OK(store_->CommitSync(std::move(commit)));
  }
  ASSERT_OK(store_->Reclaim());
  const int64_t before = MeasuredBytes(*store_);
  for (int i = 0; i < 1000; ++i) {
    ASSERT_OK(store_->Fork(session.info.id, AtPosition(100'000 - Below(random_, 2000)),
                           {"alice", random_(), ""}));
  }
  ASSERT_OK(store_->Reclaim());
  const int64_t added = MeasuredBytes(*store_) - before;
  std::cout << "1,000 forks added " << added << " bytes to " << before << "\n";
  EXPECT_LT(added, int64_t{1} << 20);
}

TEST_F(SpaceTest, AnotherOwnerNeitherReadsNorProbes) {
  Open();
  const Session hers = NewSession(4, "alice");
  const RestorePoint point = Find(hers);
  ASSERT_EQ(point.position, 4 * kBlockTokens);
  // He knows her tokens to the last one, and has a session of his own.
  Session his = NewSession(0, "bob");
  his.tokens = hers.tokens;
  EXPECT_EQ(Find(his).position, 0);
  ASSERT_OK(store_->CommitSync(testing::TokensCommit(his.info.timeline, his.tokens)));
  EXPECT_EQ(Find(his).position, 0);
  // What he stores for these tokens is his, written in full, and hers stays as it is.
  const int64_t written = Must(store_->Stats()).blocks_written;
  Commit commit;
  commit.timeline = his.info.timeline;
  commit.blocks.push_back({0, {"his", "own"}});
  commit.anchor = KvAnchor{kBlockTokens, "his anchor", false};
  ASSERT_OK(store_->CommitSync(std::move(commit)));
  EXPECT_EQ(Must(store_->Stats()).blocks_written, written + 1);
  EXPECT_EQ(Must(store_->Stats()).blocks_deduplicated, 0);
  const RestorePoint found = Find(his);
  EXPECT_EQ(found.position, kBlockTokens);
  EXPECT_NE(found.blocks[0], point.blocks[0]);
  EXPECT_NE(found.anchor, point.anchor);
  EXPECT_EQ(Must(store_->ReadBlockPart(found.blocks[0], 1)), "own");
  EXPECT_EQ(Must(store_->Usage("bob")).sessions.size(), 1u);
  CheckValues(hers, Find(hers));
}

// ---- accounts

TEST_F(SpaceTest, UsageCountsOwnAndSharedBytes) {
  Open();
  Session parent = NewSession(4);
  const auto only = [&](const std::string& id) {
    for (const SessionUsage& usage : Must(store_->Usage("alice")).sessions)
      if (usage.id == id) return usage;
    ADD_FAILURE() << "no session " << id;
    return SessionUsage();
  };
  const SessionUsage alone = only(parent.info.id);
  EXPECT_GE(alone.kv_bytes, 4 * static_cast<int64_t>(kPartBytes));
  EXPECT_LT(alone.kv_bytes, 4 * static_cast<int64_t>(kPartBytes + 1024));
  EXPECT_EQ(alone.shared_kv_bytes, 0);
  EXPECT_GE(alone.anchor_bytes, static_cast<int64_t>(kAnchorBytes));
  EXPECT_GE(alone.log_bytes, 4 * kBlockTokens * 4);

  Session child = parent;
  child.info = Must(store_->Fork(parent.info.id, AtPosition(2 * kBlockTokens), {"alice", 2, ""}));
  child.tokens.resize(2 * kBlockTokens);
  child.parts.resize(2);
  Grow(child, 3);
  std::filesystem::create_directories(directory_.path() / "files");
  std::ofstream(directory_.path() / "files" / "data") << RandomBytes(random_, 100'000);
  Commit commit;
  commit.timeline = child.info.timeline;
  commit.events.push_back(
      NewEvent::Workspace(Must(store_->SnapshotWorkspace(directory_.path() / "files"))));
  ASSERT_OK(store_->CommitSync(std::move(commit)));

  const SessionUsage of_parent = only(parent.info.id), of_child = only(child.info.id);
  EXPECT_EQ(of_parent.kv_bytes + of_parent.shared_kv_bytes, alone.kv_bytes);
  EXPECT_EQ(of_parent.shared_kv_bytes, of_child.shared_kv_bytes);
  EXPECT_EQ(of_parent.kv_bytes, of_parent.shared_kv_bytes);
  EXPECT_EQ(of_child.kv_bytes, of_child.shared_kv_bytes / 2 * 3);
  EXPECT_EQ(of_parent.workspace_bytes, 0);
  EXPECT_GE(of_child.workspace_bytes, 100'000);
  EXPECT_LT(of_child.log_bytes, of_parent.log_bytes);

  ASSERT_OK(store_->Delete(parent.info.id));
  const StoreUsage left = Must(store_->Usage("alice"));
  ASSERT_EQ(left.sessions.size(), 1u);
  EXPECT_EQ(left.sessions[0].kv_bytes, left.kv_bytes);
  EXPECT_EQ(left.sessions[0].kv_bytes, of_child.kv_bytes + of_child.shared_kv_bytes);
  EXPECT_EQ(left.sessions[0].shared_kv_bytes, 0);
  EXPECT_EQ(left.anchor_bytes, left.sessions[0].anchor_bytes);
  EXPECT_GT(left.directory_bytes, left.kv_bytes);
}

}  // namespace
}  // namespace agentd::sessions
