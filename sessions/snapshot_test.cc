// Snapshots that look only at what the kernel has noticed: whatever happens to a workspace, they
// are those of somebody who looks at everything.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <optional>
#include <thread>

#include "base/unique_fd.h"
#include "sessions/database.h"
#include "sessions/test_util.h"
#include "sessions/workspace.h"

namespace agentd::sessions::internal {
namespace {

using testing::Below;
using testing::Must;
namespace fs = std::filesystem;

void Put(const fs::path& path, std::string_view text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

class SnapshotTest : public ::testing::Test {
 protected:
  SnapshotTest() { fs::create_directory(work()); }
  fs::path work() const { return directory_.path() / "work"; }
  fs::path outside() const { return directory_.path() / "outside"; }
  void Use(const WorkspaceOptions& options) {
    workspaces_ = std::make_unique<Workspaces>(objects_, options);
  }
  TreeId Snapshot() { return Must(workspaces_->Snapshot(work())).tree; }
  // Of one who knows nothing. Opens every file, which is noticed.
  TreeId TrueTree() {
    Workspaces fresh(objects_, {.watch = false, .feed = {}});
    return Must(fresh.Snapshot(work())).tree;
  }

  void ExpectTrueSnapshot() {
    const TreeId tree = Snapshot();  // before all is opened
    EXPECT_EQ(Differences(tree, TrueTree()), "");
  }

  // Where two trees differ.
  std::string Differences(const TreeId& a, const TreeId& b, const std::string& path = "") {
    if (a == b) return "";
    std::map<std::string, std::vector<DirectoryEntry>> entries;
    for (const TreeId& tree : {a, b})
      for (const DirectoryEntry& entry : Must(objects_.ReadDirectory(tree)))
        entries[entry.name].push_back(entry);
    std::string differences;
    for (const auto& [name, both] : entries) {
      if (both.size() == 2 && both[0] == both[1]) continue;
      differences += fmt::format("{}/{}:", path, name);
      for (const DirectoryEntry& entry : both) {
        differences += fmt::format(" type {} mode {:o} size {} {}", int(entry.type), entry.mode,
                                   entry.size_bytes, entry.target);
      }
      differences += "\n";
      if (both.size() == 2 && both[0].type == EntryType::kDirectory && both[1].type == both[0].type)
        differences += Differences(both[0].chunks[0], both[1].chunks[0], path + "/" + name);
    }
    return differences;
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  std::unique_ptr<Database> database_ =
      Must(Database::Open(directory_.path() / "store", true, {}, testing::TestKeys()));
  FileObjects objects_{*database_};
  std::unique_ptr<Workspaces> workspaces_ = std::make_unique<Workspaces>(objects_);
};

// Does to a tree what programs do, at random; some keep descriptors and mappings.
class Vandal {
 public:
  Vandal(const fs::path& work, const fs::path& outside, testing::Random& random)
      : work_(work), outside_(outside), random_(random) {
    fs::create_directory(outside_);
  }
  ~Vandal() {
    while (!mappings_.empty()) Unmap();
  }

  void Act() {
    static constexpr void (Vandal::*kActs[])() = {
        &Vandal::Write,         &Vandal::Write,        &Vandal::Append,
        &Vandal::Truncate,      &Vandal::WriteKept,    &Vandal::RenameOver,
        &Vandal::Chmod,         &Vandal::Symlink,      &Vandal::HardLink,
        &Vandal::MakeDirectory, &Vandal::Remove,       &Vandal::RemoveTree,
        &Vandal::RenameTree,    &Vandal::Exchange,     &Vandal::LeaveAndComeBack,
        &Vandal::Map,           &Vandal::WriteMapped,  &Vandal::WriteMapped,
        &Vandal::Unmap,         &Vandal::Keep,         &Vandal::WriteOpened,
        &Vandal::WriteOpened,   &Vandal::CloseOpened,  &Vandal::Nameless,
        &Vandal::Punch,         &Vandal::Fifo,         &Vandal::Temporary,
        &Vandal::Temporary,     &Vandal::LinkForAWhile};
    (this->*kActs[Below(random_, std::size(kActs))])();
  }
  int64_t acts() const { return acts_; }  // that did something

 private:
  struct Mapping {
    char* bytes;
    size_t size;
  };

  fs::path Directory() { return AtDepth(Below(random_, 3)); }
  fs::path Subdirectory() { return AtDepth(1 + Below(random_, 2)); }
  fs::path AtDepth(int64_t depth) {
    fs::path path = work_;
    for (int64_t i = 0; i < depth; ++i) path /= fmt::format("d{}", Below(random_, 2));
    return path;
  }
  fs::path Name() {
    return Directory() / fmt::format("{}{}", Below(random_, 6) == 0 ? "d" : "f", Below(random_, 2));
  }
  UniqueFd Open(const fs::path& path, int flags) {
    return UniqueFd(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  }
  std::string Bytes() {
    return testing::RandomBytes(random_, static_cast<size_t>(Below(random_, 9000)));
  }
  static bool IsFile(const UniqueFd& fd, struct stat& status) {
    return fd.valid() && ::fstat(fd.get(), &status) == 0 && S_ISREG(status.st_mode);
  }
  void Do(ssize_t result) { acts_ += result >= 0; }
  void WriteTo(int fd, off_t offset) {
    const std::string bytes = Bytes();
    Do(::pwrite(fd, bytes.data(), bytes.size(), offset));
  }

  void Write() {
    const UniqueFd fd = Open(Name(), O_WRONLY | O_CREAT | O_TRUNC);
    if (fd.valid()) WriteTo(fd.get(), 0);
  }
  void Append() {
    const UniqueFd fd = Open(Name(), O_WRONLY | O_APPEND);
    if (fd.valid()) WriteTo(fd.get(), 0);
  }
  void Truncate() {
    const fs::path path = Name();
    if (!fs::is_symlink(path)) Do(::truncate(path.c_str(), Below(random_, 5000)));
  }
  // Keeps size and time, in place or by another file.
  void WriteKept() {
    const fs::path path = Name();
    struct stat before;
    UniqueFd fd = Open(path, O_RDWR);
    if (!IsFile(fd, before)) return;
    const fs::path other = path.parent_path() / "other";
    if (Below(random_, 2) == 0) fd = Open(other, O_RDWR | O_CREAT | O_TRUNC);
    const std::string bytes = testing::RandomBytes(random_, static_cast<size_t>(before.st_size));
    Do(::pwrite(fd.get(), bytes.data(), bytes.size(), 0));
    const struct timespec times[2] = {before.st_atim, before.st_mtim};
    Do(::futimens(fd.get(), times));
    Do(::rename(other.c_str(), path.c_str()));
  }
  void RenameOver() { Do(::rename(Name().c_str(), Name().c_str())); }
  void Chmod() {
    const fs::path path = Below(random_, 3) == 0 ? Subdirectory() : Name();
    if (!fs::is_symlink(path)) Do(::chmod(path.c_str(), Below(random_, 2) == 0 ? 0700 : 0755));
  }
  void Symlink() {
    const fs::path path = Name();
    if (Below(random_, 2) == 0) Do(::unlink(path.c_str()));
    Do(::symlink(fmt::format("../{}", Below(random_, 9)).c_str(), path.c_str()));
  }
  void HardLink() { Do(::link(Name().c_str(), Name().c_str())); }
  void MakeDirectory() {
    std::error_code error;
    fs::create_directories(Directory(), error);
  }
  void Remove() { Do(::unlink(Name().c_str())); }
  void RemoveTree() {
    std::error_code error;
    const fs::path path = Subdirectory();
    if (Below(random_, 2) == 0) fs::remove_all(path, error);
  }
  void RenameTree() { Do(::rename(Subdirectory().c_str(), Subdirectory().c_str())); }
  void Exchange() {
    const fs::path a = Below(random_, 2) == 0 ? Subdirectory() : Name();
    const fs::path b = Below(random_, 2) == 0 ? Subdirectory() : Name();
    Do(::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE));
  }
  void LeaveAndComeBack() {
    const fs::path away = outside_ / fmt::format("{}", Below(random_, 2));
    Do(::rename(Subdirectory().c_str(), away.c_str()));
    if (Below(random_, 2) == 0) {
      const UniqueFd fd = Open(away / "f0", O_WRONLY | O_CREAT);
      if (fd.valid()) WriteTo(fd.get(), 0);
    }
    if (Below(random_, 2) == 0) Do(::rename(away.c_str(), Subdirectory().c_str()));
  }
  void Map() {
    struct stat status;
    const UniqueFd fd = Open(Name(), O_RDWR);
    if (!IsFile(fd, status)) return;
    // A file that is cut below the mapping would end us; the last page of one never is.
    if (::ftruncate(fd.get(), 16384) != 0) return;
    void* const bytes = ::mmap(nullptr, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (bytes != MAP_FAILED) mappings_.push_back({static_cast<char*>(bytes), 16384});
  }
  void WriteMapped() {
    if (mappings_.empty()) return;
    const Mapping& mapping =
        mappings_[static_cast<size_t>(Below(random_, int64_t(mappings_.size())))];
    ::madvise(mapping.bytes, mapping.size, MADV_POPULATE_WRITE);
    // Pages behind the end of a file that was cut cannot be had.
    if (::madvise(mapping.bytes, 4096, MADV_POPULATE_WRITE) == 0)
      mapping.bytes[Below(random_, 4096)] = static_cast<char>(random_());
  }
  void Unmap() {
    if (mappings_.empty()) return;
    ::munmap(mappings_.back().bytes, mappings_.back().size);
    mappings_.pop_back();
  }
  void Keep() {
    UniqueFd fd = Open(Name(), O_RDWR | (Below(random_, 2) == 0 ? O_CREAT : 0));
    if (fd.valid()) opened_.push_back(std::move(fd));
  }
  void WriteOpened() {
    if (!opened_.empty())
      WriteTo(opened_[static_cast<size_t>(Below(random_, int64_t(opened_.size())))].get(),
              Below(random_, 5000));
  }
  void CloseOpened() {
    if (opened_.empty()) return;
    std::swap(opened_[static_cast<size_t>(Below(random_, int64_t(opened_.size())))],
              opened_.back());
    opened_.pop_back();
  }
  // A file that gets its name last.
  void Nameless() {
    UniqueFd fd = Open(Directory(), O_TMPFILE | O_RDWR);
    if (!fd.valid()) return;
    WriteTo(fd.get(), 0);
    Do(::linkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd.get()).c_str(), AT_FDCWD,
                Name().c_str(), AT_SYMLINK_FOLLOW));
    if (Below(random_, 2) == 0) opened_.push_back(std::move(fd));
  }
  void Punch() {
    const UniqueFd fd = Open(Name(), O_WRONLY);
    if (fd.valid()) Do(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
  }
  // A file that comes, is written and goes.
  void Temporary() {
    const fs::path path = Directory() / "temporary";
    {
      const UniqueFd fd = Open(path, O_WRONLY | O_CREAT | O_TRUNC);
      if (!fd.valid()) return;
      WriteTo(fd.get(), 0);
    }
    Do(Below(random_, 3) == 0 ? ::rename(path.c_str(), Name().c_str()) : ::unlink(path.c_str()));
  }
  // The same, but what is written is another file.
  void LinkForAWhile() {
    const fs::path path = Directory() / "temporary";
    if (::link(Name().c_str(), path.c_str()) != 0) return;
    UniqueFd fd = Open(path, O_RDWR);
    if (fd.valid()) WriteTo(fd.get(), Below(random_, 5000));
    if (fd.valid() && Below(random_, 3) == 0) opened_.push_back(std::move(fd));
    switch (Below(random_, 4)) {
      case 0:
        return Do(::rename(path.c_str(), Name().c_str()));
      case 1:
        return Do(::rename(path.c_str(), (outside_ / "temporary").c_str()));
      case 2:
        return;  // the next one's
      default:
        return Do(::unlink(path.c_str()));
    }
  }
  void Fifo() { Do(::mkfifo(Name().c_str(), 0600)); }

  const fs::path work_, outside_;
  testing::Random& random_;
  std::vector<Mapping> mappings_;
  std::vector<UniqueFd> opened_;
  int64_t acts_ = 0;
};

struct Setting {
  const char* name;
  WorkspaceOptions options;
};

class RandomSnapshotTest : public SnapshotTest, public ::testing::WithParamInterface<Setting> {};

TEST_P(RandomSnapshotTest, IsWhatAFullLookFinds) {
  Use(GetParam().options);
  Vandal vandal(work(), outside(), random_);
  const int rounds = kSanitized ? 60 : 600;
  for (int round = 0; round < rounds; ++round) {
    // What one snapshot misses no later one finds, until all is opened by the full look.
    for (int64_t snapshots = Below(random_, 6); snapshots >= 0; --snapshots) {
      for (int64_t acts = Below(random_, 12); acts > 0; --acts) vandal.Act();
      Snapshot();
    }
    const TreeId tree = Snapshot();
    ASSERT_EQ(Differences(tree, TrueTree()), "") << "round " << round;
    if (Below(random_, 20) == 0) {
      ASSERT_OK(workspaces_->Restore(tree, work()));
      ASSERT_EQ(Snapshot(), tree);
    }
  }
  EXPECT_GT(vandal.acts(), rounds);
}

INSTANTIATE_TEST_SUITE_P(
    Settings, RandomSnapshotTest,
    ::testing::Values(
        Setting{"Notices", {}},
        Setting{"NoticesWithoutReader", {.watch = true, .feed = {.has_reader = false}}},
        Setting{"NoticesWithoutFiles", {.watch = true, .feed = {.tells_files = false}}},
        Setting{"FewWatches", {.watch = true, .feed = {.max_watches = 5}}},
        Setting{"FewNames", {.watch = true, .feed = {.max_names = 6}}},
        Setting{"Walks", {.watch = false, .feed = {}}}),
    [](const auto& setting) { return setting.param.name; });

TEST_F(SnapshotTest, OnlyWhatChangedIsLookedAt) {
  for (int i = 0; i < 100; ++i)
    Put(work() / fmt::format("d{}/e{}/f{}", i % 3, i % 10, i), fmt::format("{}", i));
  const TreeId first = Snapshot();
  EXPECT_EQ(workspaces_->files_read(), 100);
  EXPECT_EQ(Snapshot(), first);
  Put(work() / "d1/e1/f1", "changed");
  const TreeId second = Snapshot();
  EXPECT_EQ(workspaces_->files_read(), 101);
  // Directories that have moved are known.
  fs::rename(work() / "d1/e1", work() / "d1/e11");
  fs::rename(work() / "d1", work() / "d2/inner");
  EXPECT_NE(Snapshot(), second);
  fs::rename(work() / "d2/inner", work() / "d1");
  fs::rename(work() / "d1/e11", work() / "d1/e1");
  EXPECT_EQ(Snapshot(), second);
  EXPECT_EQ(workspaces_->files_read(), 101);
  EXPECT_EQ(workspaces_->walks(), 1);
  EXPECT_EQ(TrueTree(), second);
}

// An open file may be mapped and written without a notice: it is read each time, until it is
// closed.
TEST_F(SnapshotTest, AMappingIsFollowedWithoutAWalk) {
  Put(work() / "d/mapped", std::string(5000, 'x'));
  Snapshot();
  std::vector<TreeId> trees;
  {
    const UniqueFd file(::open((work() / "d/mapped").c_str(), O_RDWR));
    char* const bytes = static_cast<char*>(
        ::mmap(nullptr, 5000, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
    ASSERT_NE(bytes, MAP_FAILED);
    for (int i = 0; i < 10; ++i) {
      bytes[Below(random_, 5000)] = static_cast<char>(i);
      trees.push_back(Snapshot());
    }
    ::munmap(bytes, 5000);
  }
  for (size_t i = 1; i < trees.size(); ++i) EXPECT_NE(trees[i], trees[i - 1]);
  EXPECT_EQ(Snapshot(), trees.back());
  const int64_t read = workspaces_->files_read();
  EXPECT_EQ(Snapshot(), trees.back());
  EXPECT_EQ(workspaces_->files_read(), read);
  EXPECT_EQ(workspaces_->walks(), 1);
}

TEST_F(SnapshotTest, AWriteThroughAnotherNameIsSeen) {
  Put(work() / "a/first", "before");
  Put(work() / "b/other", "x");
  const TreeId before = Snapshot();
  fs::create_hard_link(work() / "a/first", work() / "b/second");
  Put(work() / "b/second", "after!");
  ExpectTrueSnapshot();
  fs::remove(work() / "b/second");
  EXPECT_NE(Snapshot(), before);
  EXPECT_EQ(workspaces_->walks(), 1);
}

// Under its own name nothing was noticed.
class NameThatCameAndWentTest : public SnapshotTest, public ::testing::WithParamInterface<bool> {};

TEST_P(NameThatCameAndWentTest, AWriteThroughItIsSeen) {
  const bool tells_files = GetParam();
  Use({.watch = true, .feed = {.tells_files = tells_files}});
  const fs::path file = work() / "a/file", name = work() / "b/name";
  Put(file, "before");
  Put(work() / "b/other", "x");
  Snapshot();
  fs::create_hard_link(file, name);
  Put(name, "after!");
  fs::remove(name);
  ExpectTrueSnapshot();
  fs::create_hard_link(file, name);
  Put(name, "moved.");
  fs::rename(name, outside());
  ExpectTrueSnapshot();
  Put(outside(), "there");  // without a notice
  ExpectTrueSnapshot();
  fs::remove(outside());
  Snapshot();
  Snapshot();  // at rest again
  fs::create_hard_link(file, work() / "b/first");
  fs::rename(work() / "b/first", name);
  Put(name, "renamed");
  fs::rename(work() / "b/other", name);
  ExpectTrueSnapshot();
  // It cannot be told from a new file without being told what got the name: all is looked at.
  EXPECT_EQ(workspaces_->walks(), tells_files ? 1 : 4);
  // What is moved to another name does not count.
  Put(work() / "b/new", "new");
  fs::rename(work() / "b/new", file);
  ExpectTrueSnapshot();
  EXPECT_EQ(workspaces_->walks(), tells_files ? 1 : 4);
}

// In a directory that nobody watches yet no name is noticed: the next look at all finds it.
TEST_P(NameThatCameAndWentTest, AWriteThroughOneInANewDirectoryIsFound) {
  Use({.watch = true, .feed = {.tells_files = GetParam()}});
  const fs::path file = work() / "a/file", name = work() / "new/name";
  Put(file, "before");
  Snapshot();
  fs::create_directory(name.parent_path());
  fs::create_hard_link(file, name);
  Put(name, "after!");
  fs::remove_all(name.parent_path());
  for (int i = 0; i < 65; ++i) Snapshot();
  EXPECT_EQ(Snapshot(), TrueTree());
}

TEST_P(NameThatCameAndWentTest, ANewFileCostsNoWalk) {
  const bool tells_files = GetParam();
  Use({.watch = true, .feed = {.tells_files = tells_files}});
  for (int i = 0; i < 100; ++i) Put(work() / fmt::format("d{}/f{}", i % 3, i), "x");
  const TreeId tree = Snapshot();
  for (int i = 0; i < 5; ++i) {
    Put(work() / "d1/temporary", "y");
    fs::remove(work() / "d1/temporary");
    EXPECT_EQ(Snapshot(), tree);
  }
  EXPECT_EQ(workspaces_->walks(), tells_files ? 1 : 6);
  if (tells_files) {
    EXPECT_EQ(workspaces_->files_read(), 100);
  }
}

INSTANTIATE_TEST_SUITE_P(Queues, NameThatCameAndWentTest, ::testing::Bool(), [](const auto& told) {
  return told.param ? "FilesAreTold" : "FilesAreNotTold";
});

TEST_F(SnapshotTest, AnOverflowOfTheQueueCostsAWalk) {
  Use({.watch = true, .feed = {.has_reader = false}});
  Put(work() / "d/file", "before");
  Put(work() / "d/other", "x");
  Snapshot();
  for (int i = 0; i < 20'000; ++i) {
    const UniqueFd file(
        ::open((work() / "d" / (i % 2 == 0 ? "other" : "more")).c_str(), O_RDONLY | O_CREAT, 0600));
    ASSERT_TRUE(file.valid());
  }
  Put(work() / "d/file", "after!");  // no place for this one
  ExpectTrueSnapshot();
  EXPECT_EQ(workspaces_->walks(), 2);
  Put(work() / "d/file", "third");
  ExpectTrueSnapshot();
  EXPECT_EQ(workspaces_->walks(), 2);
  EXPECT_EQ(workspaces_->unwatched_walks(), 0);
}

TEST_F(SnapshotTest, WithoutWatchesEverySnapshotWalks) {
  Use({.watch = true, .feed = {.max_watches = 3}});
  for (int i = 0; i < 5; ++i) Put(work() / fmt::format("d{}/file", i), "before");
  Snapshot();
  EXPECT_EQ(workspaces_->unwatched_walks(), 0);  // it found out in the middle
  for (int i = 0; i < 5; ++i) {
    Put(work() / fmt::format("d{}/file", i), "after!");
    ExpectTrueSnapshot();
  }
  EXPECT_EQ(workspaces_->walks(), 6);
  EXPECT_EQ(workspaces_->unwatched_walks(), 5);
  // They are asked for again, in the end.
  fs::remove_all(work() / "d3");
  fs::remove_all(work() / "d4");
  fs::remove_all(work() / "d2");
  for (int i = 0; i < 80; ++i) Snapshot();
  const int64_t walks = workspaces_->walks();
  Snapshot();
  EXPECT_EQ(workspaces_->walks(), walks);
}

TEST_F(SnapshotTest, AFileSystemWithoutNoticesIsNotWatched) {
  const UniqueFd proc(::open("/proc", O_RDONLY | O_DIRECTORY)),
      here(::open(work().c_str(), O_RDONLY | O_DIRECTORY));
  EXPECT_FALSE(ChangeFeed::CanWatch(proc.get()));
  EXPECT_TRUE(ChangeFeed::CanWatch(here.get()));
}

TEST_F(SnapshotTest, AnotherDirectoryInItsPlaceIsSeen) {
  Put(work() / "file", "one");
  const TreeId one = Snapshot();
  fs::rename(work(), directory_.path() / "old");
  Put(work() / "file", "two");
  ExpectTrueSnapshot();
  EXPECT_NE(Snapshot(), one);
  Put(directory_.path() / "old/file", "three");
  fs::remove_all(work());
  fs::rename(directory_.path() / "old", work());
  ExpectTrueSnapshot();
}

// What a deletion of another session took from the store is stored again, and nothing else read.
TEST_F(SnapshotTest, ForgottenObjectsAreStoredAgain) {
  for (int i = 0; i < 10; ++i) Put(work() / fmt::format("d{}/file", i), fmt::format("{}", i));
  const TreeId tree = Snapshot();
  std::set<std::string> keys;
  std::vector<WriteEntry> writes;
  for (int i = 3; i < 5; ++i) keys.insert(objects_.ChunkKeyOf(Sha256Of(fmt::format("{}", i))));
  keys.insert(objects_.DirectoryKeyOf(tree));
  for (const std::string& key : keys) writes.push_back({Column::kFiles, key, std::nullopt});
  ASSERT_OK(database_->Write(writes, false));
  EXPECT_TRUE(absl::IsNotFound(workspaces_->Restore(tree, outside())));
  workspaces_->Forget(keys);
  EXPECT_EQ(Snapshot(), tree);
  EXPECT_EQ(workspaces_->files_read(), 12);
  EXPECT_OK(workspaces_->Restore(tree, outside()));
}

// A directory becomes a link to one outside, and back, while snapshots are taken.
TEST_F(SnapshotTest, ADirectoryThatBecomesALinkLeadsNowhere) {
  Put(outside() / "inner", "secret");
  Put(work() / "d/inner", "mine");
  fs::create_symlink(outside(), work() / "link");
  std::atomic<bool> stop{false};
  std::thread swapper([&] {
    while (!stop) {
      ::renameat2(AT_FDCWD, (work() / "d").c_str(), AT_FDCWD, (work() / "link").c_str(),
                  RENAME_EXCHANGE);
    }
  });
  int taken = 0;
  const fs::path restored = directory_.path() / "restored";
  for (int i = 0; i < (kSanitized ? 50 : 300); ++i) {
    if (i % 2 == 0) Use({});  // a walk
    const auto snapshot = workspaces_->Snapshot(work());
    if (!snapshot.ok()) continue;  // it was another thing at each look
    ++taken;
    ASSERT_OK(workspaces_->Restore(snapshot->tree, restored));
    for (const char* name : {"d", "link"}) {
      if (fs::is_symlink(restored / name) || !fs::exists(restored / name)) continue;
      std::ifstream file(restored / name / "inner");
      EXPECT_EQ(std::string((std::istreambuf_iterator<char>(file)), {}), "mine");
    }
  }
  stop = true;
  swapper.join();
  EXPECT_GT(taken, 0);
  ExpectTrueSnapshot();
}

}  // namespace
}  // namespace agentd::sessions::internal
