// One short test for each kind of damage to a store: in its records, its log and its files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "sessions/inspect_util.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using internal::Column;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::KeysOf;
using testing::Must;
using ::testing::Not;
using testing::Options;
using testing::RandomTokens;
using testing::TokensCommit;

// A closed store with one session: three commits, two blocks, an anchor at 600 and a workspace.
class DamageTest : public ::testing::Test {
 protected:
  DamageTest() {
    const std::unique_ptr<Store> store = Open();
    session_ = Must(store->Create({"alice", 1, "meta"}));
    tokens_ = RandomTokens(random_, 600);
    Commit commit = TokensCommit(session_.timeline, tokens_);
    commit.blocks = {{0, {std::string(5000, 'i'), "csa"}}, {1, {std::string(5000, 'i'), "csa"}}};
    commit.anchor = KvAnchor{600, std::string(5000, 'a'), false};
    EXPECT_OK(store->CommitSync(commit));
    std::filesystem::create_directory(files());
    std::ofstream(files() / "file") << "contents";
    Commit second;
    second.timeline = session_.timeline;
    second.events = {NewEvent::Workspace(Must(store->SnapshotWorkspace(files())))};
    EXPECT_OK(store->CommitSync(second));
    Commit third;
    third.timeline = session_.timeline;
    third.events = {NewEvent::Caller(16, "payload")};
    EXPECT_OK(store->CommitSync(third));
  }

  std::filesystem::path path() const { return directory_.path() / "store"; }
  std::filesystem::path files() const { return directory_.path() / "files"; }
  std::unique_ptr<Store> Open() { return Must(Store::Open(path(), Options())); }
  RestorePoint Find(Store& store) { return Must(store.FindRestorePoint("alice", tokens_, 600)); }

  // Flips one random bit of the `index`-th record with this prefix.
  void FlipBit(Column column, const std::string& prefix = "", size_t index = 0) {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    const std::vector<std::string> keys = KeysOf(*database, column, prefix);
    ASSERT_LT(index, keys.size());
    std::string value = *Must(database->Get(column, keys[index]));
    const size_t bit = random_() % (value.size() * 8);
    value[bit / 8] = static_cast<char>(value[bit / 8] ^ (1 << bit % 8));
    ASSERT_OK(database->Write({{column, keys[index], value}}, /*sync=*/true));
  }
  void Remove(Column column, const std::string& prefix, size_t index = 0) {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    const std::vector<std::string> keys = KeysOf(*database, column, prefix);
    ASSERT_LT(index, keys.size());
    ASSERT_OK(database->Write({{column, keys[index], std::nullopt}}, /*sync=*/true));
  }
  // Files of RocksDB with this ending, largest first.
  std::vector<std::filesystem::path> FilesOf(const std::string& ending) const {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(path() / "db")) {
      if (entry.path().string().ends_with(ending)) found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
      return std::filesystem::file_size(a) > std::filesystem::file_size(b);
    });
    return found;
  }
  static void FlipByte(const std::filesystem::path& file, uint64_t offset) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(stream.get() ^ 0x10);
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(byte);
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  SessionInfo session_;
  std::vector<TokenId> tokens_;
};

TEST_F(DamageTest, TheUndamagedStoreIsWhole) {
  const std::unique_ptr<Store> store = Open();
  EXPECT_EQ(Must(store->Load(session_.id)).tokens, tokens_);
  EXPECT_EQ(Find(*store).position, 600);
}

TEST_F(DamageTest, AnEventIsNamed) {
  FlipBit(Column::kEvents, "", 1);
  const std::unique_ptr<Store> store = Open();
  const absl::Status status = store->Load(session_.id).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(Text(status), HasSubstr(fmt::format("event 2 of timeline {}", session_.timeline)));
  EXPECT_TRUE(absl::IsDataLoss(store->ReadEvents(session_.timeline, 1, 9).status()));
  EXPECT_TRUE(absl::IsDataLoss(store->CommitSync(TokensCommit(session_.timeline, {1})).status()));
}

TEST_F(DamageTest, AMissingEventIsNamed) {
  Remove(Column::kEvents, "", 1);
  const absl::Status status = Open()->Load(session_.id).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(Text(status), HasSubstr("event 2 of timeline"));
}

// Of many parts that are read at once each has its own answer, and only the damaged block goes.
TEST_F(DamageTest, ADamagedPartAmongManyCostsItsBlockAlone) {
  const RestorePoint point = Find(*Open());
  ASSERT_EQ(point.blocks.size(), 2u);
  // Part 1 of the block whose key is first.
  const size_t first = point.blocks[0] < point.blocks[1] ? 0 : 1;
  FlipBit(Column::kKv, "", 1);
  const std::unique_ptr<Store> store = Open();
  std::vector<BlockPart> parts;
  for (const BlockHash& block : point.blocks) {
    for (int part = 0; part < 3; ++part) parts.push_back({block, part});
  }
  const auto read = store->ReadBlockParts(parts);
  ASSERT_EQ(read.size(), parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    const bool damaged = i == 3 * first + 1;
    EXPECT_EQ(read[i].ok(), i % 3 < 2 && !damaged) << i;
    if (i % 3 == 2) {
      EXPECT_TRUE(absl::IsNotFound(read[i].status())) << i;
    }
    if (damaged) {
      EXPECT_TRUE(absl::IsDataLoss(read[i].status())) << i;
    }
  }
  EXPECT_TRUE(store->ReadBlockParts({}).empty());
  const auto again = store->ReadBlockParts(parts);
  for (size_t i = 0; i < parts.size(); ++i) EXPECT_EQ(again[i].ok(), i / 3 != first && i % 3 < 2);
}

TEST_F(DamageTest, AMissingLastEventIsNamed) {
  Remove(Column::kEvents, "", 2);
  EXPECT_THAT(Text(Open()->Load(session_.id).status()), HasSubstr("event 3 of timeline"));
}

TEST_F(DamageTest, SessionTimelineAndHeadAreNamed) {
  for (const auto& [prefix, name] :
       std::vector<std::pair<std::string, std::string>>{{"m", "meta record of session"},
                                                        {"h", "head of timeline"},
                                                        {"t", "record of timeline"},
                                                        {"s", "record of session"}}) {
    FlipBit(Column::kTimelines, prefix);
    const absl::Status status = Open()->Load(session_.id).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << prefix;
    EXPECT_THAT(Text(status), HasSubstr(name));
  }
}

TEST_F(DamageTest, AKvPartIsDroppedAndStoredAgain) {
  FlipBit(Column::kKv);
  const std::unique_ptr<Store> store = Open();
  const RestorePoint point = Find(*store);
  ASSERT_EQ(point.blocks.size(), 2u);
  int damaged = 0;
  for (int i = 0; i < 4; ++i) {
    const absl::Status status =
        store->ReadBlockPart(point.blocks[static_cast<size_t>(i / 2)], i % 2).status();
    if (absl::IsDataLoss(status)) {
      ++damaged;
      EXPECT_THAT(Text(status), HasSubstr("KV part"));
    }
  }
  EXPECT_EQ(damaged, 1);
  EXPECT_LT(Find(*store).blocks.size(), 2u);  // not offered again
  EXPECT_EQ(Must(store->Load(session_.id)).tokens, tokens_);
  Commit again;
  again.timeline = session_.timeline;
  again.blocks = {{0, {"i", "c"}}, {1, {"i", "c"}}};
  ASSERT_OK(store->CommitSync(again));
  EXPECT_EQ(Find(*store).position, 600);
}

TEST_F(DamageTest, AMissingKvPartIsDropped) {
  Remove(Column::kKv, "");
  const std::unique_ptr<Store> store = Open();
  const RestorePoint point = Find(*store);
  int missing = 0;
  for (const BlockHash& block : point.blocks)
    missing += absl::IsNotFound(store->ReadBlockPart(block, 0).status());
  EXPECT_EQ(missing, 1);
  EXPECT_LT(Find(*store).blocks.size(), 2u);
}

TEST_F(DamageTest, AnAnchorIsDropped) {
  FlipBit(Column::kAnchors);
  const std::unique_ptr<Store> store = Open();
  const RestorePoint point = Find(*store);
  EXPECT_TRUE(absl::IsDataLoss(store->ReadAnchor(point.anchor, 600).status()));
  EXPECT_TRUE(absl::IsNotFound(store->ReadAnchor(point.anchor, 600).status()));
  EXPECT_EQ(Find(*store).position, 0);
}

TEST_F(DamageTest, NamesOfValuesAreDropped) {
  FlipBit(Column::kTimelines, "k");
  FlipBit(Column::kTimelines, "n");
  const std::unique_ptr<Store> store = Open();
  const RestorePoint point = Find(*store);
  int damaged = 0;
  for (const BlockHash& block : point.blocks)
    damaged += absl::IsDataLoss(store->ReadBlockPart(block, 0).status());
  EXPECT_EQ(damaged, 1);
  EXPECT_TRUE(absl::IsDataLoss(store->ReadAnchor(point.anchor, 600).status()));
  EXPECT_EQ(Find(*store).position, 0);
}

TEST_F(DamageTest, ADamagedListingCostsNoSession) {
  for (const char* prefix : {"b", "a", "r", "i"}) FlipBit(Column::kTimelines, prefix);
  const std::unique_ptr<Store> store = Open();
  EXPECT_EQ(Must(store->Load(session_.id)).tokens, tokens_);
  ASSERT_OK(store->CommitSync(TokensCommit(session_.timeline, {1})));
  ASSERT_OK(store->Delete(session_.id));
}

TEST_F(DamageTest, ADamagedSessionHidesNoOther) {
  const SessionInfo other = Must(Open()->Create({"alice", 1, "meta"}));
  FlipBit(Column::kTimelines, "h", 0);  // the first timeline's head
  FlipBit(Column::kTimelines, "o", 0);  // else a list has no need of it
  const std::unique_ptr<Store> store = Open();
  const std::vector<SessionInfo> all = Must(store->List("alice", "", 10));
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].id, other.id);
  EXPECT_EQ(all[0].damage, "");
  EXPECT_EQ(all[0].meta, "meta");
  EXPECT_EQ(all[1].id, session_.id);
  EXPECT_THAT(all[1].damage, HasSubstr("head of timeline"));
}

TEST_F(DamageTest, ADamagedSessionCanBeDeleted) {
  const std::string bob =
      Must(internal::Database::Open(path(), false, {}, testing::TestKeys()))->OwnerTag("bob");
  for (const char* prefix : {"s", "t", "h", "m", "o"}) {
    const SessionInfo other = Must(Open()->Create({"bob", 1, ""}));
    testing::Overwrite(path(), Column::kTimelines,
                       prefix == std::string("t")   ? internal::TimelineKey(other.timeline)
                       : prefix == std::string("h") ? internal::HeadKey(other.timeline)
                       : prefix == std::string("s") ? internal::SessionKey(other.id)
                       : prefix == std::string("m") ? internal::SessionMetaKey(other.id)
                                                    : internal::OwnerIndexPrefix(bob) + other.id,
                       "nonsense");
    const std::unique_ptr<Store> store = Open();
    EXPECT_OK(store->Delete(other.id)) << prefix;
    EXPECT_THAT(Must(store->List("bob", "", 10)), IsEmpty()) << prefix;
    EXPECT_TRUE(absl::IsNotFound(store->Delete(other.id))) << prefix;
  }
  EXPECT_OK(Open()->Delete(session_.id));
}

// Nobody can tell what a damaged timeline shares: all that is older than it stays, until it goes.
TEST_F(DamageTest, ADamagedTimelineStopsNoDeletion) {
  SessionInfo fork, last;
  {
    const std::unique_ptr<Store> store = Open();
    fork = Must(store->Fork(session_.id, testing::AtSeq(1), {"alice", 1, ""}));
    last = Must(store->Create({"alice", 1, ""}));
  }
  testing::Overwrite(path(), Column::kTimelines, internal::TimelineKey(fork.timeline), "nonsense");
  {
    const std::unique_ptr<Store> store = Open();
    EXPECT_OK(store->Delete(last.id));  // is newer
    const absl::Status deleted = store->Delete(session_.id);
    EXPECT_TRUE(absl::IsDataLoss(deleted));
    EXPECT_THAT(Text(deleted), HasSubstr("is deleted, but its events"));
    EXPECT_THAT(Text(deleted), HasSubstr(fmt::format("record of timeline {}", fork.timeline)));
    EXPECT_TRUE(absl::IsNotFound(store->Get(session_.id).status()));
    EXPECT_EQ(Find(*store).position, 600);
    ASSERT_OK(store->Delete(fork.id));
  }
  const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
  for (const Column column :
       {Column::kTimelines, Column::kEvents, Column::kKv, Column::kAnchors, Column::kFiles})
    EXPECT_THAT(KeysOf(*database, column), IsEmpty());
}

// What the counter says is behind where two timelines were made at once, and nothing if damaged.
TEST_F(DamageTest, NoLiveTimelinesNumberIsGivenAway) {
  const SessionInfo other = Must(Open()->Create({"alice", 1, ""}));
  const std::string key = internal::kNextTimelineKey;
  for (const std::string& value :
       {internal::EncodeNumber(internal::RecordKind::kNextTimeline, key, other.timeline),
        std::string("nonsense")}) {
    testing::Overwrite(path(), Column::kMeta, key, value);
    const std::unique_ptr<Store> store = Open();
    EXPECT_GT(Must(store->Create({"alice", 1, ""})).timeline, other.timeline);
    EXPECT_EQ(Must(store->Load(other.id)).session.timeline, other.timeline);
  }
}

TEST_F(DamageTest, ADamagedIntentOrWorkspaceListingStopsNothing) {
  const std::string key = internal::IntentKey('k', std::string(32, 'x'));
  testing::Overwrite(path(), Column::kMeta, key, "nonsense");
  testing::Overwrite(path(), Column::kMeta, internal::IntentKey('f', "c" + std::string(32, 'x')),
                     "nonsense");
  FlipBit(Column::kTimelines, "w");
  const std::unique_ptr<Store> store = Open();
  const SessionInfo other = Must(store->Create({"alice", 1, ""}));
  Commit commit;
  commit.timeline = other.timeline;
  commit.events = {NewEvent::Workspace(Must(store->SnapshotWorkspace(files())))};
  ASSERT_OK(store->CommitSync(commit));
  ASSERT_OK(store->Delete(other.id));
  // The listing is lost, the event is not: its files are still there.
  const TreeId tree = *Must(store->Load(session_.id)).workspace;
  EXPECT_OK(store->RestoreWorkspace(tree, directory_.path() / "restored"));
}

TEST_F(DamageTest, AnOwnersKeyCostsItsCacheAlone) {
  FlipBit(Column::kMeta, "u");
  const std::unique_ptr<Store> store = Open();
  EXPECT_EQ(Must(store->Load(session_.id)).tokens, tokens_);
  EXPECT_EQ(Find(*store).position, 0);
  ASSERT_OK(store->CommitSync(TokensCommit(session_.timeline, {1})));
}

TEST_F(DamageTest, FileObjectsAreNamed) {
  for (const auto& [prefix, name] :
       std::vector<std::pair<std::string, std::string>>{{"c", "file chunk"}, {"d", "directory"}}) {
    FlipBit(Column::kFiles, prefix);
    const std::unique_ptr<Store> store = Open();
    const TreeId tree = *Must(store->Load(session_.id)).workspace;
    const absl::Status status = store->RestoreWorkspace(tree, directory_.path() / "restored");
    EXPECT_FALSE(status.ok());
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr(name));
    EXPECT_EQ(Must(store->SnapshotWorkspace(files())).tree, tree);  // writes a good one again
    Commit commit;
    commit.timeline = session_.timeline;
    commit.events = {NewEvent::Workspace(tree)};
    ASSERT_OK(store->CommitSync(commit));
    ASSERT_OK(store->RestoreWorkspace(tree, directory_.path() / "restored"));
  }
}

TEST_F(DamageTest, ATornLogTailIsForgiven) {
  {
    const std::unique_ptr<Store> store = Open();
    ASSERT_OK(store->CommitSync(TokensCommit(session_.timeline, {1, 2, 3})));
  }
  const std::vector<std::filesystem::path> logs = FilesOf(".log");
  ASSERT_THAT(logs, Not(IsEmpty()));
  std::filesystem::resize_file(logs[0], std::filesystem::file_size(logs[0]) - 5);
  const std::unique_ptr<Store> store = Open();
  EXPECT_GE(Must(store->Load(session_.id)).tokens.size(), tokens_.size());
  ASSERT_OK(store->CommitSync(TokensCommit(session_.timeline, {4})));
}

TEST_F(DamageTest, AFlippedBitInTheMiddleOfTheLogIsRefused) {
  {
    const std::unique_ptr<Store> store = Open();
    for (int i = 0; i < 50; ++i)
      ASSERT_OK(store->CommitSync(TokensCommit(session_.timeline, RandomTokens(random_, 50))));
  }
  const std::vector<std::filesystem::path> logs = FilesOf(".log");
  ASSERT_THAT(logs, Not(IsEmpty()));
  FlipByte(logs[0], std::filesystem::file_size(logs[0]) / 2);
  const absl::Status status = Store::Open(path(), Options()).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
}

TEST_F(DamageTest, ADatabaseThatIsGoneIsNoEmptyStore) {
  for (const char* gone : {"db/CURRENT", "db"}) {
    std::filesystem::remove_all(path() / gone);
    const absl::Status status = Store::Open(path(), Options()).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr(path().string()));
    EXPECT_THAT(Text(status), HasSubstr("from a copy"));
  }
}

// As older programs left it.
TEST_F(DamageTest, FileObjectsThatNothingNamesAreSweptOnce) {
  const std::string key = internal::ChunkKey(Sha256Of("leaked"));
  testing::Overwrite(path(), Column::kFiles, key,
                     internal::Frame(internal::RecordKind::kChunk, key, "leaked"));
  const auto stored = [&] {
    return KeysOf(*Must(internal::Database::Open(path(), false, {}, testing::TestKeys())),
                  Column::kFiles);
  };
  const size_t all = stored().size();
  std::filesystem::remove(path() / "OPENED");
  const TreeId tree = *Must(Open()->Load(session_.id)).workspace;
  EXPECT_EQ(stored().size(), all - 1);
  EXPECT_OK(Open()->RestoreWorkspace(tree, directory_.path() / "restored"));
  EXPECT_TRUE(std::filesystem::exists(path() / "OPENED"));
}

TEST_F(DamageTest, AFlippedBitInABlobFileCostsOneBlock) {
  const std::vector<std::filesystem::path> blobs = FilesOf(".blob");
  ASSERT_THAT(blobs, Not(IsEmpty()));
  FlipByte(blobs[0], 3000);
  const std::unique_ptr<Store> store = Open();
  const RestorePoint point = Find(*store);
  ASSERT_EQ(point.position, 600);
  int damaged = 0;
  for (const BlockHash& block : point.blocks)
    damaged += absl::IsDataLoss(store->ReadBlockPart(block, 0).status());
  damaged += absl::IsDataLoss(store->ReadAnchor(point.anchor, 600).status());
  EXPECT_EQ(damaged, 1);
  EXPECT_LT(Find(*store).position, 600);
  EXPECT_EQ(Must(store->Load(session_.id)).tokens, tokens_);
}

// RocksDB's compactions meet a damaged block of a table sooner or later.
TEST_F(DamageTest, ADamagedTableStopsNoOtherSession) {
  {
    const std::unique_ptr<Store> store = Open();
    for (int i = 0; i < 200; ++i)
      ASSERT_OK(store->CommitSync(TokensCommit(session_.timeline, RandomTokens(random_, 50))));
  }
  ASSERT_OK(Must(internal::Database::Open(path(), false, {}, testing::TestKeys()))
                ->Flush({Column::kTimelines, Column::kEvents, Column::kMeta}));
  const std::vector<std::filesystem::path> tables = FilesOf(".sst");
  ASSERT_THAT(tables, Not(IsEmpty()));
  FlipByte(tables[0], 5000);
  std::unique_ptr<Store> store = Open();
  EXPECT_TRUE(absl::IsDataLoss(store->Load(session_.id).status()));
  const SessionInfo other = Must(store->Create({"alice", 1, ""}));
  int64_t blocks = 0;
  for (int life = 0; life < 2; ++life) {
    // Values are flushed each time, events every 32nd: enough for several compactions.
    for (int i = 0; i < 200; ++i) {
      Commit commit = TokensCommit(other.timeline, RandomTokens(random_, 256));
      commit.blocks = {{blocks++, {"part"}}};
      ASSERT_OK(store->CommitSync(std::move(commit))) << "life " << life << ", commit " << i;
    }
    store.reset();
    store = Open();
    ASSERT_EQ(Must(store->Load(other.id)).tokens.size(), static_cast<size_t>(blocks * 256));
  }
  // A deletion compacts what it erased; where that meets the damage it says so.
  const absl::Status deleted = store->Delete(other.id);
  EXPECT_TRUE(deleted.ok() || Text(deleted).find("is deleted, but") != std::string::npos)
      << deleted;
  EXPECT_TRUE(absl::IsNotFound(store->Get(other.id).status()));
  const SessionInfo last = Must(store->Create({"alice", 1, ""}));
  EXPECT_OK(store->CommitSync(TokensCommit(last.timeline, {1, 2, 3})));
}

TEST_F(DamageTest, ANewerRecordIsRefusedByName) {
  const std::string key = internal::EventKey(session_.timeline, 2);
  testing::Overwrite(path(), Column::kEvents, key,
                     internal::FrameWithVersion(internal::RecordKind::kEvent, key, "?",
                                                internal::kRecordVersion + 1));
  const absl::Status status = Open()->Load(session_.id).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("version 2"));
}

}  // namespace
}  // namespace agentd::sessions
