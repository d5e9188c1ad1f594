// Encrypted stores: what is on the disk, which keys open them, what is refused, how a key is
// replaced, and that a rewriting can be killed anywhere.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <sys/wait.h>

#include <fstream>

#include "sessions/checksum.h"
#include "sessions/crash_point.h"
#include "sessions/doctor.h"
#include "sessions/envelope.h"
#include "sessions/inspect_util.h"
#include "sessions/rewrite.h"
#include "sessions/sample_store.h"
#include "sessions/store.h"
#include "sessions/store_files.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using internal::Column;
using internal::kChunkBytes;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::KeysOf;
using testing::Must;
using ::testing::Not;
using testing::TokensCommit;

StoreKey KeyOf(char digit) { return Must(StoreKey::FromHex(std::string(64, digit), "a test")); }
const StoreKeys kNone;
const StoreKeys kOld = {KeyOf('1'), {}};
const StoreKeys kNew = {KeyOf('2'), {}};
const StoreKeys kBoth = {KeyOf('2'), {KeyOf('1')}};

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class EncryptionTest : public ::testing::Test {
 protected:
  EncryptionTest() { std::filesystem::create_directory(scratch()); }

  std::filesystem::path path() const { return directory_.path() / "store"; }
  std::filesystem::path scratch() const { return directory_.path() / "scratch"; }
  absl::StatusOr<std::unique_ptr<Store>> TryOpen(const StoreKeys& keys) {
    StoreOptions options = testing::Options(testing::kSampleIdentity);
    options.keys = keys;
    return Store::Open(path(), options);
  }
  std::unique_ptr<Store> Open(const StoreKeys& keys) { return Must(TryOpen(keys)); }
  // Makes a store with a sample in it; what can be read from it.
  std::string MakeSample(const StoreKeys& keys) {
    const std::unique_ptr<Store> store = Open(keys);
    EXPECT_OK(testing::FillSample(*store, scratch(), kChunkBytes + 9));
    return Must(testing::DescribeSample(*store, scratch()));
  }
  std::string Describe(const StoreKeys& keys) {
    return Must(testing::DescribeSample(*Open(keys), scratch()));
  }
  // Every byte of every file of the store. The log and the tables are whole there: no compression
  // of what is encrypted.
  std::string AllBytes() const {
    std::string bytes;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path())) {
      if (entry.is_regular_file()) bytes += ReadFile(entry.path());
    }
    return bytes;
  }
  absl::Status Rewrite(const StoreKeys& keys) { return RewriteStore(path(), keys, {}).status(); }
  // The database below the encryption.
  template <typename Use>
  void WithStoredBytes(Use use) {
    testing::WithStoredBytes(path(), use);
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
};

// What the disk must not show, as it would be found in a store that is not encrypted. (Tables are
// compressed there, so what is in the log is looked for in both.)
class ClearText {
 public:
  static void Write(Store& store, const std::filesystem::path& files) {
    const SessionInfo session = Must(store.Create({kOwner, 1, kMeta}));
    Commit commit = TokensCommit(session.timeline, std::vector<TokenId>(kTokens, kTokens + 4));
    commit.events.push_back(NewEvent::Caller(16, kPayload));
    std::filesystem::create_directories(files / kFileName);
    std::ofstream(files / kFileName / "f") << kContents;
    commit.events.push_back(NewEvent::Workspace(Must(store.SnapshotWorkspace(files))));
    commit.anchor = KvAnchor{4, std::string(5000, '#') + kAnchor, false};
    ASSERT_OK(store.CommitSync(std::move(commit)));
    std::vector<TokenId> block(252, 7);
    Commit more = TokensCommit(session.timeline, block);
    more.blocks = {{0, {std::string(5000, '#') + kPart, "small"}}};
    ASSERT_OK(store.CommitSync(std::move(more)));
  }
  // What is to be seen of it in `bytes`.
  static std::vector<std::string> Seen(const std::string& bytes) {
    std::vector<std::string> seen;
    const Sha256Digest digest = Sha256Of(kContents);
    const std::string_view tokens(reinterpret_cast<const char*>(kTokens), sizeof(kTokens));
    for (const std::string_view text :
         {std::string_view(kOwner), std::string_view(kMeta), std::string_view(kPayload),
          std::string_view(kAnchor), std::string_view(kPart), tokens, internal::View(digest)}) {
      if (bytes.find(text) != std::string::npos) seen.emplace_back(text);
    }
    return seen;
  }
  static constexpr size_t kPieces = 7;

 private:
  static constexpr char kOwner[] = "an-owner@example.org", kMeta[] = "some-session-meta";
  static constexpr char kPayload[] = "a-message-of-the-user", kFileName[] = "a-name-of-a-file";
  static constexpr char kContents[] = "contents-of-a-file", kAnchor[] = "the-anchor's-payload";
  static constexpr char kPart[] = "the-part's-payload";
  static constexpr TokenId kTokens[] = {11111, 22222, 33333, 44444};
};

TEST_F(EncryptionTest, NothingOfASessionIsOnTheDiskInClear) {
  ClearText::Write(*Open(kNone), scratch() / "a");
  EXPECT_EQ(ClearText::Seen(AllBytes()).size(), ClearText::kPieces)
      << "the control sees too little";
  std::filesystem::remove_all(path());
  {
    const std::unique_ptr<Store> store = Open(kOld);
    ClearText::Write(*store, scratch() / "b");
    EXPECT_THAT(ClearText::Seen(AllBytes()), IsEmpty());
  }
  Open(kOld).reset();  // what was in the log is in tables now
  EXPECT_THAT(ClearText::Seen(AllBytes()), IsEmpty());
}

TEST_F(EncryptionTest, WhatWasWrittenIsReadAgain) {
  const std::string sample = MakeSample(kOld);
  EXPECT_EQ(Describe(kOld), sample);
  EXPECT_EQ(Must(Open(kOld)->Stats()).live_sessions, 4);
}

TEST_F(EncryptionTest, AWrongOrMissingKeyIsNamed) {
  const std::string sample = MakeSample(kOld);
  for (const StoreKeys& keys : {kNone, kNew, StoreKeys{KeyOf('2'), {KeyOf('3')}}}) {
    const absl::Status status = TryOpen(keys).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr(path().string()));
    EXPECT_THAT(Text(status), HasSubstr(KeyIdText(KeyOf('1').id())));
  }
  EXPECT_EQ(Describe(kOld), sample);
}

TEST_F(EncryptionTest, AKeyForAStoreThatIsNotEncryptedIsAnError) {
  const std::string sample = MakeSample(kNone);
  const absl::Status status = TryOpen(kOld).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("is not encrypted"));
  EXPECT_THAT(Text(status), HasSubstr("--rewrite-store"));
  EXPECT_EQ(Describe(kNone), sample);
}

TEST_F(EncryptionTest, OneDamagedListOfKeysIsMendedFromItsCopy) {
  const std::string sample = MakeSample(kOld);
  const std::string good = ReadFile(path() / "KEYS");
  for (const char* name : {"KEYS", "KEYS.copy"}) {
    std::ofstream(path() / name) << "nonsense";
    EXPECT_EQ(Describe(kOld), sample);
    EXPECT_EQ(ReadFile(path() / "KEYS"), ReadFile(path() / "KEYS.copy"));
    std::filesystem::remove(path() / name);
    EXPECT_EQ(Describe(kOld), sample);
  }
  std::ofstream(path() / "KEYS") << "nonsense";
  std::filesystem::remove(path() / "KEYS.copy");
  const absl::Status status = TryOpen(kOld).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("from a backup"));
  std::ofstream(path() / "KEYS.copy") << good;
  EXPECT_EQ(Describe(kOld), sample);
}

// An attacker who can write the files but has no key.
TEST_F(EncryptionTest, AValueThatIsMovedOrReplacedIsRefused) {
  std::string id;
  {
    const std::unique_ptr<Store> store = Open(kOld);
    const SessionInfo session = Must(store->Create({"alice", 1, ""}));
    id = session.id;
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {1})));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {2})));
  }
  const std::string first = internal::EventKey(1, 1), second = internal::EventKey(1, 2);
  Event event;
  event.seq = 1, event.kind = 1, event.position = 1, event.tokens = {3};
  std::string good;
  const auto refused = [&](const std::string& value) {
    WithStoredBytes([&](rocksdb::DB& db, auto& columns) {
      if (good.empty()) {
        ASSERT_TRUE(db.Get({}, columns["events"], first, &good).ok());
      }
      std::string bytes = value;
      if (bytes.empty()) {
        ASSERT_TRUE(db.Get({}, columns["events"], second, &bytes).ok());
      }
      ASSERT_TRUE(db.Put({}, columns["events"], first, bytes).ok());
    });
    const absl::Status status = Open(kOld)->Load(id).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr("event 1 of timeline 1"));
    return Text(status);
  };
  EXPECT_THAT(refused(""), HasSubstr("damaged"));  // the second event's
  EXPECT_THAT(refused(internal::EncodeEvent(first, event)), HasSubstr("not encrypted"));
  EXPECT_THAT(
      refused(
          internal::EnvelopeKey(KeyOf('3')).Seal({1, first}, internal::EncodeEvent(first, event))),
      HasSubstr(KeyIdText(KeyOf('3').id())));
  EXPECT_THAT(
      refused(
          internal::EnvelopeKey(KeyOf('1')).Seal({0, first}, internal::EncodeEvent(first, event))),
      HasSubstr("changed or moved"));
  WithStoredBytes([&](rocksdb::DB& db, auto& columns) {
    ASSERT_TRUE(db.Put({}, columns["events"], first, good).ok());
  });
  EXPECT_EQ(Must(Open(kOld)->Load(id)).tokens, (std::vector<TokenId>{1, 2}));
}

// ---- another key

TEST_F(EncryptionTest, ANewKeyEncryptsWhatIsNewAndTheOldOneReadsTheRest) {
  const std::string sample = MakeSample(kOld);
  std::string id;
  {
    const std::unique_ptr<Store> store = Open(kBoth);
    EXPECT_EQ(Must(testing::DescribeSample(*store, scratch())), sample);
    id = Must(store->Create({"carol", 1, "under the new key"})).id;
  }
  // Either is needed, whichever seals.
  EXPECT_TRUE(absl::IsInvalidArgument(TryOpen(kOld).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(TryOpen(kNew).status()));
  EXPECT_EQ(Must(Open({KeyOf('1'), {KeyOf('2')}})->Get(id)).meta, "under the new key");
  WithStoredBytes([&](rocksdb::DB& db, auto& columns) {
    std::string bytes;
    const std::string key = internal::SessionKey(id);
    ASSERT_TRUE(db.Get({}, columns["timelines"], key, &bytes).ok());
    EXPECT_EQ(Must(internal::EnvelopeKeyId({0, key}, bytes)), KeyOf('2').id());
  });
}

TEST_F(EncryptionTest, AfterARewritingTheOldKeyCanBeThrownAway) {
  const std::string sample = MakeSample(kOld);
  ASSERT_OK(Rewrite(kBoth));
  EXPECT_EQ(Describe(kNew), sample);
  EXPECT_TRUE(absl::IsInvalidArgument(TryOpen(kOld).status()));
  const uint64_t old_id = KeyOf('1').id();
  EXPECT_EQ(AllBytes().find(std::string(reinterpret_cast<const char*>(&old_id), 8)),
            std::string::npos)
      << "something is still encrypted with the old key";
  EXPECT_THAT(testing::FindOrphans(path(), kNew), IsEmpty());
  // Again, under the same key: nothing changes.
  ASSERT_OK(Rewrite(kNew));
  EXPECT_EQ(Describe(kNew), sample);
}

TEST_F(EncryptionTest, AStoreThatIsNotEncryptedBecomesSo) {
  ClearText::Write(*Open(kNone), scratch() / "a");
  const std::string sample = MakeSample(kNone);
  ASSERT_OK(Rewrite(kNew));
  EXPECT_EQ(Describe(kNew), sample);
  EXPECT_THAT(ClearText::Seen(AllBytes()), IsEmpty());
  EXPECT_TRUE(absl::IsInvalidArgument(TryOpen(kNone).status()));
  EXPECT_THAT(testing::FindOrphans(path(), kNew), IsEmpty());
  // It is one like any other.
  const std::unique_ptr<Store> store = Open(kNew);
  for (const char* owner : testing::kSampleOwners) {
    for (const SessionInfo& session : Must(store->List(owner, "", 10)))
      EXPECT_OK(store->Delete(session.id));
  }
}

TEST_F(EncryptionTest, ARewritingThatCannotBeginChangesNothing) {
  EXPECT_TRUE(absl::IsNotFound(Rewrite(kNew)));
  const std::string sample = MakeSample(kOld);
  EXPECT_TRUE(absl::IsInvalidArgument(Rewrite(kNone)));
  EXPECT_TRUE(absl::IsInvalidArgument(Rewrite(kNew)));  // the old key is missing
  {
    const std::unique_ptr<Store> store = Open(kOld);
    EXPECT_TRUE(absl::IsFailedPrecondition(Rewrite(kBoth)));  // in use
  }
  EXPECT_EQ(Describe(kOld), sample);
}

TEST_F(EncryptionTest, ARewritingKeepsDamageInItsPlace) {
  MakeSample(kOld);
  std::string id;
  {
    const std::unique_ptr<Store> store = Open(kOld);
    const SessionInfo session = Must(store->Create({"carol", 1, ""}));
    id = session.id;
    Commit commit = TokensCommit(session.timeline, testing::RandomTokens(random_, 256));
    commit.blocks = {{0, {"one", "two"}}};
    ASSERT_OK(store->CommitSync(std::move(commit)));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {2})));
  }
  WithStoredBytes([&](rocksdb::DB& db, auto& columns) {
    const std::unique_ptr<rocksdb::Iterator> event(db.NewIterator({}, columns["events"]));
    event->SeekToLast();
    std::string bytes = event->value().ToString();
    bytes[60] ^= 1;
    ASSERT_TRUE(db.Put({}, columns["events"], event->key(), bytes).ok());
  });
  ASSERT_OK(Rewrite(kBoth));
  const absl::Status status = Open(kNew)->Load(id).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("event 2 of timeline"));
  EXPECT_OK(Open(kNew)->Delete(id));
}

// An error, not a crash: the old store goes on at once.
TEST_F(EncryptionTest, ARewritingThatFailsLeavesNothing) {
  const std::string sample = MakeSample(kOld);
  const std::filesystem::path kept = directory_.path() / "kept";
  std::filesystem::copy(path(), kept, std::filesystem::copy_options::recursive);
  for (const auto& entry : std::filesystem::directory_iterator(path() / "db")) {
    if (entry.path().extension() != ".sst") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(20);
    file.put(static_cast<char>(~file.get()));
  }
  EXPECT_FALSE(Rewrite(kBoth).ok());
  EXPECT_FALSE(std::filesystem::exists(path() / "rewrite"));
  std::filesystem::remove_all(path());
  std::filesystem::rename(kept, path());
  EXPECT_EQ(Describe(kOld), sample);
}

// The backups made before still restore with the old key, those after with the new one.
TEST_F(EncryptionTest, BackupsGoOnInTheSameDirectoryAfterARewriting) {
  const std::string sample = MakeSample(kOld);
  const std::filesystem::path backups = directory_.path() / "backups";
  EXPECT_EQ(Must(Open(kOld)->Backup(backups, 0)).id, 1u);
  ASSERT_OK(Rewrite(kBoth));
  std::string id;
  {
    const std::unique_ptr<Store> store = Open(kNew);
    id = Must(store->Create({"carol", 1, "after"})).id;
    const BackupInfo second = Must(store->Backup(backups, 0));
    EXPECT_EQ(second.id, 2u);
    EXPECT_EQ(second.shared_bytes, 0);
    EXPECT_OK(store->Backup(backups, 0));
  }
  for (const uint32_t backup : {1u, 2u, 3u}) {
    SCOPED_TRACE(backup);
    EXPECT_OK(VerifyBackup(backups, backup));
    std::filesystem::remove_all(path());
    ASSERT_OK(RestoreBackup(backups, backup, path()));
    EXPECT_TRUE(absl::IsInvalidArgument(TryOpen(backup == 1 ? kNew : kOld).status()));
    EXPECT_EQ(Open(backup == 1 ? kOld : kNew)->Get(id).ok(), backup > 1);
    EXPECT_THAT(Must(Examine(path(), backup == 1 ? kOld : kNew)).findings, IsEmpty());
    if (backup == 1) {
      EXPECT_EQ(Describe(kOld), sample);
    }
  }
}

// A newer program's envelope says nothing to us: the value stays where it is, as it is.
TEST_F(EncryptionTest, TheCollectionLeavesANewerEnvelopeAlone) {
  const std::vector<TokenId> tokens = testing::RandomTokens(random_, 4 * kBlockTokens);
  std::string fork;
  {
    const std::unique_ptr<Store> store = Open(kOld);
    const SessionInfo session = Must(store->Create({"carol", 1, ""}));
    Commit commit = TokensCommit(session.timeline, tokens);
    for (int64_t block = 0; block < 4; ++block)
      commit.blocks.push_back({block, {testing::RandomBytes(random_, 200'000)}});
    ASSERT_OK(store->CommitSync(std::move(commit)));
    fork =
        Must(store->Fork(session.id, testing::AtPosition(2 * kBlockTokens), {"carol", 1, ""})).id;
    ASSERT_OK(store->Delete(session.id));
  }
  std::string key, newer;
  WithStoredBytes([&](rocksdb::DB& db, auto& columns) {
    const std::unique_ptr<rocksdb::Iterator> value(db.NewIterator({}, columns["kv"]));
    value->SeekToFirst();
    ASSERT_TRUE(value->Valid());
    key = value->key().ToString();
    newer = value->value().ToString();
    newer[4] = internal::kEnvelopeVersion + 1;
    const uint64_t checksum = internal::Xxh3({std::string_view(newer).substr(0, 40), key});
    std::memcpy(newer.data() + 40, &checksum, sizeof(checksum));
    ASSERT_TRUE(db.Put({}, columns["kv"], key, newer).ok());
    ASSERT_TRUE(db.Flush({}, columns["kv"]).ok());
  });
  {
    const std::unique_ptr<Store> store = Open(kOld);
    (void)store->Reclaim();  // what lies beside it may stay as well
    const StoreStats stats = Must(store->Stats());
    EXPECT_EQ(stats.damaged_values_dropped, 0);
    EXPECT_GT(stats.collected_bytes_written, 150'000) << "the other value was not moved";
    EXPECT_OK(store->Load(fork));
  }
  WithStoredBytes([&](rocksdb::DB& db, auto& columns) {
    std::string stored;
    ASSERT_TRUE(db.Get({}, columns["kv"], key, &stored).ok());
    EXPECT_EQ(stored, newer);
  });
}

// The other process; only the test below starts it.
TEST(EncryptionWorker, DISABLED_Rewrite) {
  const char* directory = std::getenv("WORKER_DIRECTORY");
  if (directory == nullptr) GTEST_SKIP() << "not started by a test";
  _exit(RewriteStore(directory, kBoth, {}).ok() ? 0 : 1);
}

class RewriteCrashTest : public EncryptionTest, public ::testing::WithParamInterface<bool> {
 protected:
  int RunWorker(const std::string& crash_point, int64_t kill_after_us) {
    const std::string crash = "AGENTD_CRASH_POINT=" + crash_point,
                      where = "WORKER_DIRECTORY=" + path().string();
    char program[] = "/proc/self/exe", filter[] = "--gtest_filter=EncryptionWorker.*",
         disabled[] = "--gtest_also_run_disabled_tests";
    char* arguments[] = {program, filter, disabled, nullptr};
    char* environment[] = {const_cast<char*>(crash.c_str()), const_cast<char*>(where.c_str()),
                           nullptr};
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
      ::execve(program, arguments, environment);
      _exit(5);
    }
    if (kill_after_us >= 0) {
      ::usleep(static_cast<useconds_t>(kill_after_us));
      ::kill(child, SIGKILL);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return status;
  }
  // Opens as what it was, or as what it becomes, and shows the same; whether it was rewritten. One
  // that was cut off is refused until it is given up.
  bool Verify(const StoreKeys& before, const std::string& sample) {
    if (internal::IsRewriteCutOff(path())) {
      for (const StoreKeys& keys : {before, kBoth}) {
        const absl::Status status = TryOpen(keys).status();
        EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
        EXPECT_THAT(Text(status), HasSubstr("--rewrite-store"));
      }
      const DoctorReport report = Must(Examine(path(), kBoth));
      EXPECT_EQ(report.findings.size(), 1u);
      EXPECT_EQ(report.findings[0].kind, "rewrite");
      std::filesystem::remove_all(path() / "rewrite");
    }
    const bool rewritten = !TryOpen(before).ok();
    EXPECT_EQ(Describe(rewritten ? kBoth : before), sample);
    EXPECT_FALSE(std::filesystem::exists(path() / "rewrite"));
    return rewritten;
  }
};

TEST_P(RewriteCrashTest, AtEveryNamedPointAndAtRandomMoments) {
  const StoreKeys before = GetParam() ? StoreKeys{KeyOf('1'), {KeyOf('2')}} : kNone;
  const std::string sample = MakeSample(GetParam() ? kOld : kNone);
  const std::filesystem::path kept = directory_.path() / "kept";
  std::filesystem::copy(path(), kept, std::filesystem::copy_options::recursive);
  const auto begin = [&] {
    std::filesystem::remove_all(path());
    std::filesystem::copy(kept, path(), std::filesystem::copy_options::recursive);
  };
  bool complete = false;
  for (const std::string_view name : internal::RewriteCrashPointNames()) {
    SCOPED_TRACE(name);
    begin();
    const int status = RunWorker(std::string(name), -1);
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(WEXITSTATUS(status), 137) << "the point was not reached";
    complete = complete || name == "rewrite_complete";
    // Either an opening finishes it or another rewriting.
    if (testing::Below(random_, 2) == 0) {
      const bool rewritten = Verify(before, sample);
      if (!GetParam()) {
        EXPECT_EQ(rewritten, complete);
      }
    }
    ASSERT_OK(Rewrite(kBoth));
    EXPECT_TRUE(TryOpen(kNew).ok());
  }
  for (int round = 0; round < (kSanitized ? 1 : 3); ++round) {
    begin();
    RunWorker("", testing::Below(random_, 150'000));
    Verify(before, sample);
    ASSERT_OK(Rewrite(kBoth));
    EXPECT_EQ(Describe(kNew), sample);
  }
}

INSTANTIATE_TEST_SUITE_P(FromAnotherKeyAndFromNone, RewriteCrashTest, ::testing::Bool());

}  // namespace
}  // namespace agentd::sessions
