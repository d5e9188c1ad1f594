// A flipped bit in every kind of record and in every file: what the store makes of it, what doctor
// says of it, and what heals it.
#include "sessions/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "sessions/inspect_util.h"
#include "sessions/log_file.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using internal::Column;
using internal::RecordKind;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::KeysOf;
using testing::Must;
using testing::Options;
using testing::RandomTokens;
using ::testing::SizeIs;
using testing::TokensCommit;

// How a store with the damage goes on.
enum class Outcome {
  kRefused,     // Load names the record
  kRecomputed,  // Load is as ever; the value is gone once, then stored again
  kUnharmed,    // Load and a commit are as ever
  kFiles,       // Load is as ever; the workspace is refused by name
};

struct Case {
  RecordKind kind;
  Column column;
  const char* prefix;
  Outcome outcome;
  Harm harm;
  const char* name;  // what doctor calls it has this
  bool mends;        // Mend makes doctor clean
};

constexpr Case kCases[] = {
    {RecordKind::kSession, Column::kTimelines, "s", Outcome::kRefused, Harm::kSession,
     "record of session", false},
    {RecordKind::kSessionMeta, Column::kTimelines, "m", Outcome::kRefused, Harm::kSession,
     "meta record of session", false},
    {RecordKind::kSummary, Column::kTimelines, "o", Outcome::kUnharmed, Harm::kNothing,
     "summary of session", true},
    {RecordKind::kTimeline, Column::kTimelines, "t", Outcome::kRefused, Harm::kSession,
     "record of timeline", false},
    {RecordKind::kHead, Column::kTimelines, "h", Outcome::kRefused, Harm::kSession,
     "head of timeline", false},
    {RecordKind::kTail, Column::kTimelines, "y", Outcome::kUnharmed, Harm::kNothing,
     "tail anchor of", true},
    {RecordKind::kBlockEntry, Column::kTimelines, "b", Outcome::kUnharmed, Harm::kTime,
     "listing of block", true},
    {RecordKind::kAnchorEntry, Column::kTimelines, "a", Outcome::kUnharmed, Harm::kTime,
     "listing of the anchor", true},
    {RecordKind::kWorkspaceEntry, Column::kTimelines, "w", Outcome::kUnharmed, Harm::kNothing,
     "listing of the workspace", true},
    {RecordKind::kBlockName, Column::kTimelines, "k", Outcome::kRecomputed, Harm::kTime,
     "name of block", true},
    {RecordKind::kAnchorName, Column::kTimelines, "n", Outcome::kRecomputed, Harm::kTime,
     "name of anchor", true},
    {RecordKind::kAnchorIndex, Column::kTimelines, "i", Outcome::kUnharmed, Harm::kNothing,
     "anchor index", true},
    {RecordKind::kAnchorReference, Column::kTimelines, "r", Outcome::kUnharmed, Harm::kNothing,
     "reference to anchor", true},
    {RecordKind::kEvent, Column::kEvents, "", Outcome::kRefused, Harm::kSession, "event ", false},
    {RecordKind::kKvPart, Column::kKv, "", Outcome::kRecomputed, Harm::kTime, "KV part", true},
    {RecordKind::kAnchor, Column::kAnchors, "", Outcome::kRecomputed, Harm::kTime, "anchor ", true},
    {RecordKind::kChunk, Column::kFiles, "c", Outcome::kFiles, Harm::kFiles,
     "file \"inner/file\" of the workspace at event 2 of session", false},
    {RecordKind::kDirectory, Column::kFiles, "d", Outcome::kFiles, Harm::kFiles,
     "of the workspace at event 2 of session", false},
    {RecordKind::kOwnerKey, Column::kMeta, "u", Outcome::kUnharmed, Harm::kTime, "key of owner",
     true},
    {RecordKind::kNextTimeline, Column::kMeta, "next", Outcome::kUnharmed, Harm::kNothing,
     "timeline counter", true},
    {RecordKind::kIntent, Column::kMeta, "p", Outcome::kUnharmed, Harm::kNothing, "intent", true},
    {RecordKind::kErasure, Column::kMeta, "erasure", Outcome::kUnharmed, Harm::kNothing, "erasure",
     true},
};

// Session "alice": 600 tokens in two blocks, anchors at 512 and, replaceable, at 600; a workspace
// with a folder; a caller's event. And one of bob's, that no damage to alice's may touch.
class DoctorTest : public ::testing::Test {
 protected:
  DoctorTest() {
    const std::unique_ptr<Store> store = Open();
    session_ = Must(store->Create({"alice", 1, "meta"}));
    tokens_ = RandomTokens(random_, 600);
    Commit commit = TokensCommit(session_.timeline, tokens_);
    commit.blocks = Blocks();
    commit.anchor = KvAnchor{512, std::string(5000, 'a'), false};
    EXPECT_OK(store->CommitSync(commit));
    std::filesystem::create_directories(files() / "inner");
    std::ofstream(files() / "inner" / "file") << "contents";
    Commit second;
    second.timeline = session_.timeline;
    second.events = {NewEvent::Workspace(Must(store->SnapshotWorkspace(files())))};
    second.anchor = KvAnchor{600, std::string(5000, 'a'), true};
    EXPECT_OK(store->CommitSync(second));
    Commit third;
    third.timeline = session_.timeline;
    third.events = {NewEvent::Caller(16, "payload")};
    EXPECT_OK(store->CommitSync(third));
    other_ = Must(store->Create({"bob", 1, ""}));
    EXPECT_OK(store->CommitSync(TokensCommit(other_.timeline, {1, 2, 3})));
  }

  static std::vector<KvBlock> Blocks() {
    return {{0, {std::string(5000, 'i'), "csa"}}, {1, {std::string(5000, 'i'), "csa"}}};
  }
  std::filesystem::path path() const { return directory_.path() / "store"; }
  std::filesystem::path files() const { return directory_.path() / "files"; }
  std::unique_ptr<Store> Open() { return Must(Store::Open(path(), Options())); }
  DoctorReport Doctor() { return Must(Examine(path(), testing::TestKeys())); }

  std::string KeyOf(const Case& damage) {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    if (damage.kind == RecordKind::kIntent) {
      const std::string key = internal::IntentKey('k', std::string(32, 'x'));
      EXPECT_OK(database->Write(
          {{Column::kMeta, key, internal::EncodeNumber(RecordKind::kIntent, key, 1)}}, true));
    }
    if (damage.kind == RecordKind::kErasure) {
      const std::string key = internal::kErasureKey;
      EXPECT_OK(database->Write(
          {{Column::kMeta, key, internal::Frame(RecordKind::kErasure, key, "")}}, true));
    }
    return KeysOf(*database, damage.column, damage.prefix)[0];  // alice's come first
  }
  void FlipRecord(const Case& damage) {
    const std::string key = key_ = KeyOf(damage);
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    std::string value = *Must(database->Get(damage.column, key));
    const size_t bit = random_() % (value.size() * 8);
    value[bit / 8] = static_cast<char>(value[bit / 8] ^ (1 << bit % 8));
    ASSERT_OK(database->Write({{damage.column, key, value}}, /*sync=*/true));
  }
  static void FlipFile(const std::filesystem::path& file, uint64_t bit) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(bit / 8));
    const char byte = static_cast<char>(stream.get() ^ (1 << bit % 8));
    stream.seekp(static_cast<std::streamoff>(bit / 8));
    stream.put(byte);
  }

  RestorePoint Find(Store& store) { return Must(store.FindRestorePoint("alice", tokens_, 600)); }
  // Reads all that is cached, as a turn that goes on would; what is of no use is computed and
  // stored again.
  void Turn(Store& store) {
    for (const int64_t limit : {600, 599}) {
      const RestorePoint point = Must(store.FindRestorePoint("alice", tokens_, limit));
      for (const BlockHash& block : point.blocks) {
        for (int part = 0; part < 2; ++part) (void)store.ReadBlockPart(block, part);
      }
      if (point.position > 0) (void)store.ReadAnchor(point.anchor, point.position);
    }
    for (const int64_t position : {512, 600}) {
      Commit commit;
      commit.timeline = session_.timeline;
      commit.blocks = Blocks();
      commit.anchor = KvAnchor{position, std::string(5000, 'a'), position == 600};
      ASSERT_OK(store.CommitSync(std::move(commit)));
    }
    EXPECT_EQ(Find(store).position, 600);
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  SessionInfo session_, other_;
  std::string key_;  // of the record that was damaged
  std::vector<TokenId> tokens_;
};

TEST_F(DoctorTest, AHealthyStoreIsCleanAndUnchanged) {
  Open().reset();
  std::map<std::string, std::string> before, after;
  const auto list = [&](std::map<std::string, std::string>& contents) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path())) {
      if (entry.is_regular_file() && entry.path().filename() != "LOCK")
        contents[entry.path().string()] = Must(internal::ReadWholeFile(entry.path()));
    }
  };
  list(before);
  const DoctorReport report = Doctor();
  EXPECT_THAT(report.findings, IsEmpty());
  EXPECT_EQ(report.sessions, 2);
  EXPECT_EQ(report.leftovers, 0);
  EXPECT_GT(report.records, 30);
  EXPECT_GT(report.bytes, 20'000);
  list(after);
  EXPECT_EQ(before, after);
}

TEST_F(DoctorTest, EveryKindOfRecordIsInTheTable) {
  std::set<RecordKind> kinds;
  for (const Case& damage : kCases) kinds.insert(damage.kind);
  // Kind 22 is the file EPOCH's, 3 is no more written.
  for (int kind = 1; kind < 22; ++kind) {
    if (kind == 3) continue;
    EXPECT_THAT(kinds, Contains(static_cast<RecordKind>(kind)));
  }
  const std::string unknown = internal::Describe(static_cast<RecordKind>(23), "");
  EXPECT_THAT(unknown, HasSubstr("unknown")) << "a new kind of record: add its row";
}

class DamagedRecordTest : public DoctorTest, public ::testing::WithParamInterface<Case> {};

TEST_P(DamagedRecordTest, IsNamedAndCostsWhatItShould) {
  const Case& damage = GetParam();
  ASSERT_NO_FATAL_FAILURE(FlipRecord(damage));
  const DoctorReport report = Doctor();
  ASSERT_THAT(report.findings, SizeIs(1));
  const Finding& finding = report.findings[0];
  EXPECT_EQ(finding.harm, damage.harm);
  EXPECT_THAT(finding.what, HasSubstr(damage.name));
  EXPECT_THAT(finding.reason, HasSubstr("damaged"));
  EXPECT_FALSE(finding.costs.empty() || finding.mend.empty());
  if (damage.harm == Harm::kSession || damage.harm == Harm::kFiles) {
    EXPECT_THAT(finding.sessions, ::testing::ElementsAre(session_.id)) << finding.what;
  }
  {
    const std::unique_ptr<Store> store = Open();
    EXPECT_EQ(Must(store->Load(other_.id)).tokens, (std::vector<TokenId>{1, 2, 3}));
    const absl::StatusOr<LoadedTimeline> loaded = store->Load(session_.id);
    if (damage.outcome == Outcome::kRefused) {
      EXPECT_TRUE(absl::IsDataLoss(loaded.status())) << loaded.status();
      EXPECT_THAT(Text(loaded.status()), HasSubstr(internal::Describe(damage.kind, key_)));
    } else {
      ASSERT_OK(loaded);
      EXPECT_EQ(loaded->tokens, tokens_);
      const absl::Status restored =
          store->RestoreWorkspace(*loaded->workspace, directory_.path() / "restored");
      EXPECT_EQ(restored.ok(), damage.outcome != Outcome::kFiles) << restored;
      EXPECT_TRUE(restored.ok() || absl::IsDataLoss(restored)) << restored;
      ASSERT_NO_FATAL_FAILURE(Turn(*store));
      ASSERT_OK(store->CommitSync(TokensCommit(session_.timeline, {1})));
    }
  }
  // Computed and stored again: nothing is left of the damage.
  if (damage.outcome == Outcome::kRecomputed) {
    EXPECT_THAT(Doctor().findings, IsEmpty());
  }
}

TEST_P(DamagedRecordTest, IsMendedWhereOtherRecordsTellIt) {
  const Case& damage = GetParam();
  ASSERT_NO_FATAL_FAILURE(FlipRecord(damage));
  EXPECT_EQ(Must(Mend(path(), testing::TestKeys())), damage.mends ? 1 : 0);
  EXPECT_EQ(Doctor().findings.empty(), damage.mends);
  const std::unique_ptr<Store> store = Open();
  if (damage.mends) {
    EXPECT_EQ(Must(store->Load(session_.id)).tokens, tokens_);
    ASSERT_NO_FATAL_FAILURE(Turn(*store));
    EXPECT_EQ(Must(store->List("alice", "", 10)).size(), 1u);
    ASSERT_OK(store->Delete(session_.id));
  }
  EXPECT_EQ(Must(store->Load(other_.id)).tokens, (std::vector<TokenId>{1, 2, 3}));
}

INSTANTIATE_TEST_SUITE_P(All, DamagedRecordTest, ::testing::ValuesIn(kCases),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           std::string name;
                           for (const char c : std::string(info.param.name))
                             if (std::isalnum(static_cast<unsigned char>(c)) != 0) name += c;
                           return fmt::format("Kind{}{}", static_cast<int>(info.param.kind), name);
                         });

// ---- what is gone

TEST_F(DoctorTest, MissingRecordsAreNamed) {
  for (const auto& [column, prefix, name] :
       std::vector<std::tuple<Column, std::string, std::string>>{
           {Column::kKv, "", "KV part 0 of block"},
           {Column::kAnchors, "", "anchor "},
           {Column::kFiles, "c", "file \"inner/file\""},
           {Column::kTimelines, "h", "head of timeline"},
           {Column::kTimelines, "m", "meta record of session"}}) {
    std::string key, value;
    {
      const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
      key = KeysOf(*database, column, prefix)[0];
      value = *Must(database->Get(column, key));
      ASSERT_OK(database->Write({{column, key, std::nullopt}}, true));
    }
    const DoctorReport report = Doctor();
    ASSERT_THAT(report.findings, SizeIs(1)) << name;
    EXPECT_THAT(report.findings[0].what, HasSubstr(name));
    EXPECT_THAT(report.findings[0].reason, HasSubstr("missing"));
    testing::Overwrite(path(), column, key, value);
  }
  EXPECT_THAT(Doctor().findings, IsEmpty());
}

TEST_F(DoctorTest, AMissingEventIsNamedWithTheForkThatGoesOn) {
  {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    ASSERT_OK(database->Write(
        {{Column::kEvents, internal::EventKey(session_.timeline, 2), std::nullopt}}, true));
  }
  const DoctorReport report = Doctor();
  ASSERT_FALSE(report.findings.empty());
  EXPECT_EQ(report.findings[0].what, fmt::format("event 2 of session {}", session_.id));
  EXPECT_THAT(report.findings[0].mend, HasSubstr(fmt::format("fork {} --at 1", session_.id)));
  const std::unique_ptr<Store> store = Open();
  const SessionInfo fork = Must(store->Fork(session_.id, testing::AtSeq(1), {"alice", 1, ""}));
  EXPECT_EQ(Must(store->Load(fork.id)).tokens, tokens_);
}

// ---- files

// Flushed, so that all lies in tables.
class DamagedFileTest : public DoctorTest {
 protected:
  void FlushAll() {
    ASSERT_OK(Must(internal::Database::Open(path(), false, {}, testing::TestKeys()))
                  ->Flush({Column::kTimelines, Column::kEvents, Column::kKv, Column::kAnchors,
                           Column::kFiles, Column::kMeta}));
  }
  std::vector<std::filesystem::path> FilesOf(const std::string& ending) const {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(path() / "db")) {
      if (entry.path().filename().string().find(ending) != std::string::npos &&
          entry.file_size() > 0)
        found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
  }
  // `end`: so many bytes at the file's end are left out.
  uint64_t RandomBit(const std::filesystem::path& file, uint64_t end = 0) {
    return random_() % ((std::filesystem::file_size(file) - end) * 8);
  }
};

// RocksDB's footer has bytes that nothing reads, nor a checksum covers.
constexpr uint64_t kTableFooterBytes = 53;

TEST_F(DamagedFileTest, AnyBitOfAnyTableIsFound) {
  ASSERT_NO_FATAL_FAILURE(FlushAll());
  for (const std::filesystem::path& table : FilesOf(".sst")) {
    for (int i = 0; i < 6; ++i) {
      const uint64_t bit = RandomBit(table, kTableFooterBytes);
      FlipFile(table, bit);
      const DoctorReport report = Doctor();
      EXPECT_FALSE(report.findings.empty()) << table << " bit " << bit;
      bool named = false;
      for (const Finding& finding : report.findings)
        named = named || (finding.what + finding.reason).find(table.filename().string()) !=
                             std::string::npos;
      EXPECT_TRUE(named) << table << " bit " << bit << ": "
                         << (report.findings.empty() ? "" : report.findings[0].reason);
      FlipFile(table, bit);
    }
  }
  EXPECT_THAT(Doctor().findings, IsEmpty());
}

TEST_F(DamagedFileTest, AnyBitOfAValueInABlobFileIsFound) {
  size_t found = 0, flips = 0;
  for (const std::filesystem::path& blob : FilesOf(".blob")) {
    // Each value fills most of its file; between them lie RocksDB's headers.
    for (uint64_t byte = 200; byte < std::filesystem::file_size(blob) - 200; byte += 900) {
      const uint64_t bit = byte * 8 + random_() % 8;
      FlipFile(blob, bit);
      const DoctorReport report = Doctor();
      found += !report.findings.empty();
      for (const Finding& finding : report.findings) EXPECT_EQ(finding.harm, Harm::kTime);
      ++flips;
      FlipFile(blob, bit);
    }
  }
  EXPECT_GT(flips, 8u);
  EXPECT_EQ(found, flips);
}

TEST_F(DamagedFileTest, AFlippedBitOfTheLogIsRefusedAndGivenUpByConsent) {
  const std::vector<std::filesystem::path> logs = FilesOf(".log");
  ASSERT_FALSE(logs.empty());
  const std::filesystem::path& log = logs.back();
  FlipFile(log, RandomBit(log));
  const absl::Status opened = Store::Open(path(), Options()).status();
  EXPECT_TRUE(absl::IsDataLoss(opened)) << opened;
  EXPECT_THAT(Text(opened), HasSubstr(log.filename().string()));
  const DoctorReport report = Doctor();
  ASSERT_THAT(report.findings, SizeIs(1));
  EXPECT_EQ(report.findings[0].harm, Harm::kStore);
  EXPECT_EQ(report.findings[0].what, "log " + log.string());
  EXPECT_THAT(report.findings[0].mend, HasSubstr("--cut-log"));
  const std::filesystem::path kept = Must(CutLog(path()));
  EXPECT_GT(std::filesystem::file_size(kept), 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(CutLog(path()).status()));
  EXPECT_THAT(Doctor().findings, IsEmpty());
  EXPECT_OK(Must(Store::Open(path(), Options()))->Create({"carol", 1, ""}));
}

TEST_F(DamagedFileTest, SmallFilesAndTheManifest) {
  const std::vector<std::filesystem::path> manifests = FilesOf("MANIFEST");
  ASSERT_FALSE(manifests.empty());
  for (const std::filesystem::path& file :
       {path() / "EPOCH", path() / "FORMAT", manifests.back(), path() / "db" / "CURRENT"}) {
    const std::string before = Must(internal::ReadWholeFile(file));
    const uint64_t bit = random_() % (before.size() * 8);
    FlipFile(file, bit);
    const absl::Status opened = Store::Open(path(), Options()).status();
    EXPECT_FALSE(opened.ok()) << file << " bit " << bit;
    const absl::StatusOr<DoctorReport> report = Examine(path(), testing::TestKeys());
    // A flipped digit of FORMAT is a newer program's.
    if (report.ok()) {
      ASSERT_FALSE(report->findings.empty()) << file << " bit " << bit;
      EXPECT_EQ(report->findings[0].harm, Harm::kStore);
      EXPECT_THAT(report->findings[0].what + report->findings[0].reason,
                  HasSubstr(file.filename().string()));
    } else {
      EXPECT_TRUE(absl::IsFailedPrecondition(report.status())) << report.status();
    }
    std::ofstream(file, std::ios::binary | std::ios::trunc) << before;
  }
  EXPECT_THAT(Doctor().findings, IsEmpty());
  std::filesystem::remove(path() / "FORMAT");
  EXPECT_EQ(Doctor().findings.at(0).kind, "format");
}

TEST_F(DoctorTest, AStoreInUseIsLeftAlone) {
  const std::unique_ptr<Store> store = Open();
  for (const absl::Status& status :
       {Examine(path(), testing::TestKeys()).status(), Mend(path(), testing::TestKeys()).status(),
        CutLog(path()).status()}) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr("in use by process"));
  }
  EXPECT_TRUE(absl::IsNotFound(Examine(directory_.path() / "nowhere").status()));
}

// ---- the log's own format

// What RocksDB takes for the end of a log, and drops all that follows.
TEST_F(DamagedFileTest, NoFlippedBitOfTheLogsTailPassesForItsEnd) {
  {
    const std::unique_ptr<Store> store = Open();
    for (TokenId token = 0; token < 5; ++token)
      ASSERT_OK(store->CommitSync(TokensCommit(other_.timeline, {token})));
  }
  const std::string log = Must(internal::ReadWholeFile(FilesOf(".log").back()));
  ASSERT_FALSE(internal::FindLogDamage(log).has_value());
  for (size_t bit = 0; bit < log.size() * 8; ++bit) {
    std::string flipped = log;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    ASSERT_TRUE(internal::FindLogDamage(flipped).has_value()) << "bit " << bit;
  }
  // A tail that a crash cut is none.
  for (size_t size = 0; size < log.size(); ++size) {
    ASSERT_FALSE(internal::FindLogDamage(std::string_view(log).substr(0, size)).has_value())
        << size;
  }
  // Nor zeros at the end; in between they are.
  EXPECT_FALSE(internal::FindLogDamage(log + std::string(5000, '\0')).has_value());
  std::string hole = log;
  hole.replace(0, 64, 64, '\0');
  EXPECT_TRUE(internal::FindLogDamage(hole).has_value());
}

}  // namespace
}  // namespace agentd::sessions
