// Backups of a store that is in use, and stores made from them.
#include "sessions/backup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "base/small_file.h"
#include "sessions/crash_point.h"
#include "sessions/database.h"
#include "sessions/internal_options.h"
#include "sessions/record.h"
#include "sessions/test_util.h"

namespace agentd::sessions::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr char kOwner[] = "owner";

std::unique_ptr<Store> OpenAt(const fs::path& directory) {
  return Must(Store::Open(directory, Options()));
}

// What somebody was told is durable.
struct Acknowledged {
  uint64_t last_seq = 0;
  std::vector<TokenId> tokens;
  int64_t anchor = 0;
  std::string file;  // contents of the workspace's file
};

// One session that grows by a block, an anchor and a changed file with each step.
class Growing {
 public:
  Growing(Store& store, uint64_t seed, const fs::path& workspace)
      : store_(&store), random_(seed), workspace_(workspace) {
    info_ = Must(store.Create({kOwner, seed, "meta"}));
    fs::create_directories(workspace);
  }
  const std::string& id() const { return info_.id; }

  void Step() {
    const std::string file = RandomBytes(random_, 5000);
    std::ofstream(workspace_ / "file", std::ios::binary) << file;
    Commit commit;
    commit.timeline = info_.timeline;
    const std::vector<TokenId> tokens = RandomTokens(random_, kBlockTokens + 3);
    commit.events.push_back(NewEvent::Tokens(tokens, /*sampled=*/true));
    commit.events.push_back(NewEvent::Workspace(Must(store_->SnapshotWorkspace(workspace_))));
    Acknowledged next = now_;
    next.tokens.insert(next.tokens.end(), tokens.begin(), tokens.end());
    next.file = file;
    next.anchor = static_cast<int64_t>(next.tokens.size());
    const int64_t first = static_cast<int64_t>(now_.tokens.size()) / kBlockTokens;
    for (int64_t block = first; block < next.anchor / kBlockTokens; ++block)
      commit.blocks.push_back({block, {RandomBytes(random_, 300), RandomBytes(random_, 40000)}});
    commit.anchor = KvAnchor{next.anchor, RandomBytes(random_, 9000), /*tail=*/false};
    next.last_seq = Must(store_->CommitSync(std::move(commit))).events.back().seq;
    std::lock_guard lock(mutex_);
    now_ = std::move(next);
  }
  Acknowledged now() const {
    std::lock_guard lock(mutex_);
    return now_;
  }

 private:
  Store* store_;
  Random random_;
  const fs::path workspace_;
  SessionInfo info_;
  mutable std::mutex mutex_;
  Acknowledged now_;
};

// The session has at least what was acknowledged, and all of what it has agrees.
void ExpectWhole(Store& store, const std::string& id, const Acknowledged& acknowledged,
                 const fs::path& scratch) {
  const LoadedTimeline loaded = Must(store.Load(id));
  ASSERT_GE(loaded.tokens.size(), acknowledged.tokens.size());
  EXPECT_TRUE(
      std::equal(acknowledged.tokens.begin(), acknowledged.tokens.end(), loaded.tokens.begin()));
  EXPECT_GE(loaded.session.last_seq, acknowledged.last_seq);
  // Each step is one commit: its anchor is there exactly if its tokens are.
  const RestorePoint point = Must(
      store.FindRestorePoint(kOwner, loaded.tokens, static_cast<int64_t>(loaded.tokens.size())));
  EXPECT_EQ(point.position, static_cast<int64_t>(loaded.tokens.size()));
  for (const BlockHash& block : point.blocks) {
    for (int part = 0; part < 2; ++part) EXPECT_OK(store.ReadBlockPart(block, part));
  }
  if (point.position > 0) {
    EXPECT_OK(store.ReadAnchor(point.anchor, point.position));
  }
  std::set<TreeId> trees;
  for (const Event& event : Must(store.ReadEvents(loaded.session.timeline, 1, 1 << 20))) {
    if (event.kind != static_cast<uint8_t>(EventKind::kWorkspace)) continue;
    TreeId tree;
    std::copy(event.payload.begin(), event.payload.end(), tree.begin());
    trees.insert(tree);
  }
  for (const TreeId& tree : trees) EXPECT_OK(store.RestoreWorkspace(tree, scratch));
  if (loaded.session.last_seq != acknowledged.last_seq || !loaded.workspace.has_value()) return;
  ASSERT_OK(store.RestoreWorkspace(*loaded.workspace, scratch));
  std::ifstream file(scratch / "file", std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), acknowledged.file);
}

// Nothing in the database names a value that is not there.
void ExpectNoDanglingName(const fs::path& store) {
  namespace in = internal;
  auto database = Must(in::Database::Open(store, false, {}, testing::TestKeys()));
  int64_t blocks = 0;
  ASSERT_OK(database->Scan(
      in::Column::kTimelines, "k", [&](std::string_view key, std::string_view value) {
        const in::BlockName name = Must(in::DecodeBlockName(key, value));
        for (uint32_t part = 0; part < name.parts; ++part) {
          std::string part_key(key.substr(1));
          for (int shift = 24; shift >= 0; shift -= 8)
            part_key.push_back(static_cast<char>(part >> shift));
          EXPECT_TRUE(Must(database->Get(in::Column::kKv, part_key)).has_value());
        }
        ++blocks;
        return absl::OkStatus();
      }));
  std::cout << "names of " << blocks << " blocks have their values" << std::endl;
}

class BackupTest : public ::testing::Test {
 protected:
  fs::path store() const { return directory_.path() / "store"; }
  fs::path backups() const { return directory_.path() / "backups"; }
  fs::path At(const std::string& name) const { return directory_.path() / name; }
  // A store with a session of a few steps.
  std::unique_ptr<Store> Fill(int steps = 3) {
    std::unique_ptr<Store> opened = OpenAt(store());
    growing_ = std::make_unique<Growing>(*opened, NewSeed(), At("workspace"));
    for (int i = 0; i < steps; ++i) growing_->Step();
    return opened;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Growing> growing_;
};

// Three sessions write while the backups are made; each backup has what was acknowledged before it.
TEST_F(BackupTest, HoldsWhatWasAcknowledgedBeforeItBegan) {
  const uint64_t seed = NewSeed();
  std::unique_ptr<Store> store_now = OpenAt(store());
  std::vector<std::unique_ptr<Growing>> sessions;
  for (uint64_t i = 0; i < 3; ++i) {
    sessions.push_back(
        std::make_unique<Growing>(*store_now, seed + i, At("workspace" + std::to_string(i))));
  }
  std::atomic<bool> stop = false;
  // Events that a session has room for now: so that there is no more to look at where all is slow.
  std::atomic<uint64_t> room = 0;
  std::vector<std::thread> writers;
  for (const auto& session : sessions) {
    writers.emplace_back([&stop, &room, &session] {
      while (!stop) {
        if (session->now().last_seq < room) {
          session->Step();
        } else {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      }
    });
  }
  constexpr uint32_t kBackups = 8;
  std::map<uint32_t, std::vector<Acknowledged>> acknowledged;
  for (uint32_t id = 1; id <= kBackups; ++id) {
    std::vector<Acknowledged> before;
    room = 4 * id + 20;
    for (const auto& session : sessions) {
      while (session->now().last_seq < 4 * id) std::this_thread::yield();
    }
    for (const auto& session : sessions) before.push_back(session->now());
    const BackupInfo info = Must(store_now->Backup(backups(), 0));
    EXPECT_EQ(info.id, id);
    acknowledged[id] = std::move(before);
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
  EXPECT_GT(acknowledged[kBackups].front().last_seq, acknowledged[1].front().last_seq);
  for (const auto& [id, before] : acknowledged) {
    const fs::path restored = At("restored" + std::to_string(id));
    ASSERT_OK(RestoreBackup(backups(), id, restored));
    {
      std::unique_ptr<Store> copy = OpenAt(restored);
      for (size_t i = 0; i < sessions.size(); ++i)
        ExpectWhole(*copy, sessions[i]->id(), before[i], At("scratch"));
    }
    ExpectNoDanglingName(restored);
  }
  // The source never noticed.
  for (const auto& session : sessions)
    ExpectWhole(*store_now, session->id(), session->now(), At("scratch"));
}

// Runs `between` when the database's files are listed, which a backup does between its tables and
// its logs.
class ListingFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  ListingFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "ListingFileSystem"; }
  rocksdb::IOStatus GetChildren(const std::string& directory, const rocksdb::IOOptions& options,
                                std::vector<std::string>* children,
                                rocksdb::IODebugContext* debug) override {
    if (const auto now = std::exchange(between, nullptr)) now();
    return target()->GetChildren(directory, options, children, debug);
  }
  std::function<void()> between;
};

// A commit with values that comes just there must not get its names into the backup without them.
TEST_F(BackupTest, NoNameWithoutItsValue) {
  const auto listing = std::make_shared<ListingFileSystem>();
  const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(listing);
  internal::InternalOptions with_env;
  with_env.env = env.get();
  Acknowledged before;
  {
    const std::unique_ptr<Store> opened = Must(internal::OpenStore(store(), Options(), with_env));
    growing_ = std::make_unique<Growing>(*opened, NewSeed(), At("workspace"));
    growing_->Step();
    before = growing_->now();
    std::atomic<bool> committed = false;
    std::thread commit;
    bool met = false;
    listing->between = [&] {
      met = true;
      commit = std::thread([&] {
        growing_->Step();
        committed = true;
      });
      // Long enough for a commit that nothing holds up; one that is held up goes on afterwards.
      for (int i = 0; i < 300 && !committed; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
    ASSERT_OK(opened->Backup(backups(), 0));
    ASSERT_TRUE(met);
    commit.join();
    EXPECT_EQ(growing_->now().last_seq, before.last_seq + 2);
  }
  ASSERT_OK(RestoreBackup(backups(), 0, At("restored")));
  ExpectWhole(*OpenAt(At("restored")), growing_->id(), before, At("scratch"));
  ExpectNoDanglingName(At("restored"));
}

TEST_F(BackupTest, OnlyWhatIsNewIsCopied) {
  const std::unique_ptr<Store> opened = Fill(20);
  const BackupInfo first = Must(opened->Backup(backups(), 0));
  EXPECT_EQ(first.shared_bytes, 0);
  growing_->Step();
  const BackupInfo second = Must(opened->Backup(backups(), 0));
  EXPECT_GT(second.bytes, first.bytes);
  // The log and the manifest are copied each time; 20 steps' values are not.
  EXPECT_GT(second.shared_bytes, 20 * 40000);
  std::cout << "[figure] second backup: " << second.shared_bytes << " of " << second.bytes
            << " bytes were there already" << std::endl;
  const BackupInfo third = Must(opened->Backup(backups(), 2));
  const std::vector<BackupInfo> listed = Must(ListBackups(backups()));
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].id, second.id);
  EXPECT_EQ(listed[1].id, third.id);
  for (const BackupInfo& info : listed) EXPECT_OK(VerifyBackup(backups(), info.id));
  EXPECT_GT(listed[0].created_us, 1'600'000'000'000'000);
}

TEST_F(BackupTest, CopiesOfOneStoreDoNotClash) {
  {
    const std::unique_ptr<Store> opened = Fill();
    ASSERT_OK(opened->Backup(backups(), 0));
  }
  ASSERT_OK(RestoreBackup(backups(), 0, At("a")));
  ASSERT_OK(RestoreBackup(backups(), 1, At("b/")));
  std::set<std::string> epochs;
  for (const fs::path& path : {store(), At("a"), At("b")})
    epochs.insert(Must(ReadSmallFile(path / "EPOCH")).value());
  EXPECT_EQ(epochs.size(), 3u);
  const std::unique_ptr<Store> source = OpenAt(store()), a = OpenAt(At("a")), b = OpenAt(At("b"));
  std::set<std::string> ids;
  for (Store* each : {source.get(), a.get(), b.get()}) {
    ExpectWhole(*each, growing_->id(), growing_->now(), At("scratch"));
    ids.insert(Must(each->Create({kOwner, 1, ""})).id);
    // Each goes on by itself.
    const SessionInfo info = Must(each->Get(growing_->id()));
    EXPECT_OK(each->CommitSync(TokensCommit(info.timeline, {1, 2, 3})));
  }
  EXPECT_EQ(ids.size(), 3u);
  // A copy's backups among the source's would be taken for the source's.
  const auto mixed = a->Backup(backups(), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(mixed.status()));
  EXPECT_THAT(Text(mixed.status()), HasSubstr("another store"));
  EXPECT_OK(a->Backup(At("backups of a"), 0));
}

TEST_F(BackupTest, NothingIsWrittenOver) {
  const std::unique_ptr<Store> opened = Fill(1);
  ASSERT_OK(opened->Backup(backups(), 0));
  EXPECT_TRUE(absl::IsFailedPrecondition(RestoreBackup(backups(), 0, store()).status()));
  fs::create_directories(At("full"));
  std::ofstream(At("full") / "x") << "x";
  const auto refused = RestoreBackup(backups(), 0, At("full"));
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status()));
  EXPECT_THAT(Text(refused.status()), HasSubstr((At("full")).string()));
  EXPECT_TRUE(absl::IsFailedPrecondition(opened->Backup(At("full"), 0).status()));
  EXPECT_TRUE(fs::exists(At("full") / "x"));
  fs::create_directories(At("empty"));
  EXPECT_OK(RestoreBackup(backups(), 0, At("empty")));
  EXPECT_TRUE(absl::IsNotFound(RestoreBackup(At("nowhere"), 0, At("new")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(RestoreBackup(At("full"), 0, At("new")).status()));
  EXPECT_TRUE(absl::IsNotFound(RestoreBackup(backups(), 7, At("new")).status()));
  EXPECT_FALSE(fs::exists(At("new")));
}

// Each file of a backup in turn: flipped, cut, gone. Found by its name before anything is written.
TEST_F(BackupTest, DamageIsFoundByName) {
  Random random(NewSeed());
  {
    const std::unique_ptr<Store> opened = Fill(2);
    ASSERT_OK(opened->Backup(backups(), 0));
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(backups())) {
    if (entry.is_regular_file() && entry.file_size() > 0 && entry.path().filename() != "LOCK")
      files.push_back(entry.path());
  }
  std::set<std::string> kinds;
  for (const fs::path& file : files) {
    const std::string whole = [&] {
      std::ifstream in(file, std::ios::binary);
      return std::string(std::istreambuf_iterator<char>(in), {});
    }();
    const std::string name = file.filename().string();
    const bool meta = file.parent_path().filename() == "meta";
    kinds.insert(meta ? "meta" : file.has_extension() ? file.extension().string() : name);
    for (const char* damage : {"flip", "cut", "gone"}) {
      std::string bytes = whole;
      if (*damage == 'f') bytes[static_cast<size_t>(Below(random, whole.size()))] ^= 0x55;
      if (*damage == 'c') bytes.resize(bytes.size() - 1);
      if (*damage == 'g') {
        fs::remove(file);
      } else {
        std::ofstream(file, std::ios::binary) << bytes;
      }
      const auto verified = VerifyBackup(backups(), 0);
      const auto restored = RestoreBackup(backups(), 0, At("new"));
      // A backup's list of files is text; what stands in it beside names and checksums, such as the
      // time, may change unseen.
      if (meta && verified.ok()) {
        EXPECT_NE(*damage, 'g');
        EXPECT_OK(restored);
        fs::remove_all(At("new"));
      } else {
        EXPECT_FALSE(verified.ok()) << damage << " " << file;
        if (!meta) {
          EXPECT_THAT(Text(verified.status()), HasSubstr(name)) << damage;
        }
        EXPECT_FALSE(restored.ok()) << damage << " " << file;
      }
      EXPECT_FALSE(fs::exists(At("new"))) << damage << " " << file;
      EXPECT_FALSE(fs::exists(At("new.restoring"))) << damage << " " << file;
      std::ofstream(file, std::ios::binary) << whole;
    }
  }
  EXPECT_OK(VerifyBackup(backups(), 0));
  for (const char* kind : {".blob", ".sst", ".log", "meta", "CURRENT", "BACKUPS"})
    EXPECT_TRUE(kinds.contains(kind)) << kind;
}

// A child process that does `work` and may be killed. `after_us` 0: it comes to its end, or to its
// crash point.
template <typename Work>
void InChild(Work work, int64_t after_us) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    work();
    ::_exit(0);
  }
  if (after_us > 0) {
    ::usleep(static_cast<useconds_t>(after_us));
    ::kill(child, SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
}

TEST_F(BackupTest, AKillLeavesSourceAndBackupsUsable) {
  Random random(NewSeed());
  {
    const std::unique_ptr<Store> opened = Fill(30);
    ASSERT_OK(opened->Backup(backups(), 0));
    for (int i = 0; i < 30; ++i) growing_->Step();
  }
  const Acknowledged expected = growing_->now();
  int cut = 0;
  constexpr int kKills = kSanitized ? 5 : 12;
  for (int round = 0; round < kKills; ++round) {
    const bool named = round < 2;
    const std::string point = round == 0 ? "backup_before" : "backup_after";
    const size_t before = Must(ListBackups(backups())).size();
    InChild(
        [&] {
          if (named) internal::ArmCrashPoint(point);
          const std::unique_ptr<Store> opened = OpenAt(store());
          (void)opened->Backup(backups(), 0);
        },
        named ? 0 : 1 + Below(random, 120'000));
    const std::vector<BackupInfo> after = Must(ListBackups(backups()));
    cut += after.size() == before ? 1 : 0;
    for (const BackupInfo& info : after) {
      EXPECT_EQ(info.damage, "");
      EXPECT_OK(VerifyBackup(backups(), info.id));
    }
    const std::unique_ptr<Store> opened = OpenAt(store());
    ExpectWhole(*opened, growing_->id(), expected, At("scratch"));
  }
  std::cout << cut << " of " << kKills << " backups cut off" << std::endl;
  EXPECT_GT(cut, 0);
  {
    const std::unique_ptr<Store> opened = OpenAt(store());
    ASSERT_OK(opened->Backup(backups(), 1));
  }
  ASSERT_OK(RestoreBackup(backups(), 0, At("restored")));
  ExpectWhole(*OpenAt(At("restored")), growing_->id(), expected, At("scratch"));
}

TEST_F(BackupTest, AKillInARestoreLeavesNothingHalf) {
  Random random(NewSeed());
  {
    const std::unique_ptr<Store> opened = Fill(30);
    ASSERT_OK(opened->Backup(backups(), 0));
  }
  for (int round = 0; round < (kSanitized ? 4 : 10); ++round) {
    const bool named = round < 2;
    const std::string point = round == 0 ? "restore_copied" : "restore_renamed";
    InChild(
        [&] {
          if (named) internal::ArmCrashPoint(point);
          (void)RestoreBackup(backups(), 0, At("restored"));
        },
        named ? 0 : 1 + Below(random, 60'000));
    if (!fs::exists(At("restored"))) continue;
    ExpectWhole(*OpenAt(At("restored")), growing_->id(), growing_->now(), At("scratch"));
    fs::remove_all(At("restored"));
  }
  ASSERT_OK(RestoreBackup(backups(), 0, At("restored")));
  EXPECT_FALSE(fs::exists(At("restored.restoring")));
  ExpectWhole(*OpenAt(At("restored")), growing_->id(), growing_->now(), At("scratch"));
}

// A stale owner has no say about the store any more, and must not hand out copies of it.
TEST_F(BackupTest, OneAtATimeAndOnlyTheOwner) {
  const std::unique_ptr<Store> opened = Fill(1);
  ASSERT_OK(opened->Backup(backups(), 0));
  std::atomic<int> made = 0, refused = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const auto info = opened->Backup(backups(), 0);
      if (info.ok()) ++made;
      if (absl::IsFailedPrecondition(info.status())) ++refused;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made + refused, 4);
  EXPECT_GE(made, 1);
  EXPECT_EQ(Must(ListBackups(backups())).size(), 1u + static_cast<size_t>(made));
  const std::string epoch = Must(ReadSmallFile(store() / "EPOCH")).value();
  ASSERT_OK(ReplaceFile(store() / "EPOCH",
                        internal::EncodeNumber(internal::RecordKind::kEpoch, "EPOCH", 1'000'000)));
  EXPECT_TRUE(absl::IsFailedPrecondition(opened->Backup(backups(), 0).status()));
}

}  // namespace
}  // namespace agentd::sessions::testing
