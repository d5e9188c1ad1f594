// Trees of workspaces: what is kept, what is not read again, and that nothing outside is ever
// touched.
#include "sessions/workspace.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <map>
#include <thread>

#include "base/unique_fd.h"
#include "sessions/database.h"
#include "sessions/test_util.h"

namespace agentd::sessions::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Must;
namespace fs = std::filesystem;

void Write(const fs::path& path, std::string_view text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string Read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

// One line per entry: path, type, mode, contents.
std::vector<std::string> Describe(const fs::path& root) {
  std::vector<std::string> lines;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    struct stat status;
    EXPECT_EQ(::lstat(entry.path().c_str(), &status), 0);
    std::string line =
        fmt::format("{} {:o}", entry.path().lexically_relative(root).string(), status.st_mode);
    if (S_ISREG(status.st_mode)) line += " " + Hex(Sha256Of(Read(entry.path())));
    if (S_ISLNK(status.st_mode)) line += " -> " + fs::read_symlink(entry.path()).string();
    lines.push_back(line);
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

class WorkspaceTest : public ::testing::Test {
 protected:
  WorkspaceTest() { fs::create_directory(work()); }
  fs::path work() const { return directory_.path() / "work"; }
  fs::path other() const { return directory_.path() / "other"; }
  TreeId Snapshot() { return Must(workspaces_.Snapshot(work())).tree; }

  // Makes what lies in `work` look as if it had been there for a while.
  void Settle() { std::this_thread::sleep_for(std::chrono::milliseconds(2200)); }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  std::unique_ptr<Database> database_ =
      Must(Database::Open(directory_.path() / "store", true, {}, testing::TestKeys()));
  FileObjects objects_{*database_};
  Workspaces workspaces_{objects_};
};

TEST_F(WorkspaceTest, KeepsFilesModesLinksAndEmptyDirectories) {
  Write(work() / "a.txt", "hello");
  Write(work() / "empty", "");
  Write(work() / "deep/er/b.bin", testing::RandomBytes(random_, 3 * kChunkBytes + 17));
  Write(work() / "exact", std::string(2 * kChunkBytes, 'x'));
  Write(work() / ".git/hooks/pre-commit", "#!/bin/sh");
  Write(work() / "nested/.git/HEAD", "ref");
  Write(work() / "name with \n newline \xff", "odd");
  fs::create_directories(work() / "empty dir/inner");
  fs::create_symlink("../../etc/passwd", work() / "outside");
  fs::create_symlink("nowhere", work() / "dangling");
  fs::create_symlink("/", work() / "root link");
  ::chmod((work() / ".git/hooks/pre-commit").c_str(), 0755);
  ::chmod((work() / "a.txt").c_str(), 0400);
  ::chmod((work() / "empty dir").c_str(), 0555);
  const TreeId tree = Snapshot();
  ASSERT_OK(workspaces_.Restore(tree, other()));
  EXPECT_EQ(Describe(other()), Describe(work()));
  EXPECT_EQ(Must(workspaces_.Snapshot(other())).tree, tree);
}

TEST_F(WorkspaceTest, RestoreRemovesExtrasAndMendsChanges) {
  Write(work() / "keep", "kept");
  Write(work() / "change", "before");
  Write(work() / "becomes dir", "file");
  Write(work() / "becomes file/x", "1");
  Write(work() / "becomes link", "file");
  fs::create_symlink("keep", work() / "link");
  const TreeId tree = Snapshot();
  const std::vector<std::string> before = Describe(work());
  Write(work() / "change", "after!");
  Write(work() / "extra/deep/er", "x");
  Write(work() / "extra file", "x");
  ::mkfifo((work() / "extra fifo").c_str(), 0600);
  fs::remove(work() / "becomes dir");
  Write(work() / "becomes dir/y", "2");
  fs::remove_all(work() / "becomes file");
  Write(work() / "becomes file", "z");
  fs::remove(work() / "becomes link");
  fs::create_symlink("/etc", work() / "becomes link");
  fs::remove(work() / "link");
  fs::create_symlink("/", work() / "link");
  ::chmod((work() / "keep").c_str(), 0700);
  ASSERT_OK(workspaces_.Restore(tree, work()));
  EXPECT_EQ(Describe(work()), before);
  EXPECT_EQ(Snapshot(), tree);
}

TEST_F(WorkspaceTest, NothingOutsideIsTouched) {
  const fs::path outside = directory_.path() / "outside";
  Write(outside / "secret", "secret");
  Write(outside / "dir/inner", "inner");
  const std::vector<std::string> before = Describe(outside);
  Write(work() / "file", "data");
  Write(work() / "dir/inner", "mine");
  const TreeId tree = Snapshot();
  // A directory and a file of the tree become links to the outside; extras are links and hard links
  // to it.
  fs::remove_all(work() / "dir");
  fs::create_symlink(outside / "dir", work() / "dir");
  fs::remove(work() / "file");
  fs::create_symlink(outside / "secret", work() / "file");
  fs::create_symlink(outside, work() / "extra");
  const TreeId with_links = Snapshot();  // and a snapshot stores the links, not what they lead to
  ASSERT_OK(workspaces_.Restore(with_links, other()));
  EXPECT_TRUE(fs::is_symlink(other() / "dir"));
  ASSERT_OK(workspaces_.Restore(tree, work()));
  EXPECT_EQ(Describe(outside), before);
  EXPECT_EQ(Read(work() / "file"), "data");
  // A hard link: the other name keeps its contents and its mode.
  for (const char* text : {"other", "data"}) {
    Write(outside / "hard", text);
    ::chmod((outside / "hard").c_str(), 0640);
    fs::remove(work() / "file");
    fs::create_hard_link(outside / "hard", work() / "file");
    const std::vector<std::string> linked = Describe(outside);
    ASSERT_OK(workspaces_.Restore(tree, work()));
    EXPECT_EQ(Describe(outside), linked);
    EXPECT_EQ(Read(work() / "file"), "data");
  }
}

TEST_F(WorkspaceTest, SetuidIsNotLent) {
  Write(work() / "program", "x");
  ::chmod((work() / "program").c_str(), 04755);
  ASSERT_OK(workspaces_.Restore(Snapshot(), other()));
  struct stat status;
  ASSERT_EQ(::stat((other() / "program").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0755u);
}

TEST_F(WorkspaceTest, SpecialFilesAreSkippedAndCounted) {
  Write(work() / "file", "x");
  ::mkfifo((work() / "fifo").c_str(), 0600);
  ASSERT_OK(workspaces_.Restore(Snapshot(), other()));
  EXPECT_EQ(workspaces_.special_files_skipped(), 1);
  EXPECT_THAT(Describe(other()), ::testing::SizeIs(1));
}

TEST_F(WorkspaceTest, UnchangedFilesAreNotReadAgain) {
  for (int i = 0; i < 20; ++i)
    Write(work() / fmt::format("d{}/f{}", i % 3, i), fmt::format("{}", i));
  Settle();
  const TreeId tree = Snapshot();
  EXPECT_EQ(workspaces_.files_read(), 20);
  EXPECT_EQ(Snapshot(), tree);
  EXPECT_EQ(workspaces_.files_read(), 20);
  Write(work() / "d1/f1", "changed");
  EXPECT_NE(Snapshot(), tree);
  EXPECT_EQ(workspaces_.files_read(), 21);
}

// Same size, same times as far as the clock's tick can tell: only reading again sees it.
TEST_F(WorkspaceTest, AChangeWithinTheClocksTickIsSeen) {
  for (int i = 0; i < 50; ++i) {
    Write(work() / "file", fmt::format("{:04}", i));
    ASSERT_OK(workspaces_.Restore(Snapshot(), other()));
    ASSERT_EQ(Read(other() / "file"), fmt::format("{:04}", i));
  }
}

TEST_F(WorkspaceTest, AChangeWithTimesSetBackIsSeen) {
  Write(work() / "file", "before");
  Settle();
  const TreeId tree = Snapshot();
  struct stat status;
  ASSERT_EQ(::stat((work() / "file").c_str(), &status), 0);
  Write(work() / "file", "after!");
  const struct timespec times[2] = {status.st_atim, status.st_mtim};
  ASSERT_EQ(::utimensat(AT_FDCWD, (work() / "file").c_str(), times, 0), 0);
  EXPECT_NE(Snapshot(), tree);
}

TEST_F(WorkspaceTest, EqualContentsAreStoredOnce) {
  const std::string contents = testing::RandomBytes(random_, kChunkBytes);
  for (int i = 0; i < 5; ++i) Write(work() / fmt::format("copy{}", i), contents);
  Snapshot();
  int chunks = 0;
  ASSERT_OK(database_->Scan(Column::kFiles, "c", [&](std::string_view, std::string_view) {
    ++chunks;
    return absl::OkStatus();
  }));
  EXPECT_EQ(chunks, 1);
}

// Deeper than there are handles: refused by name, and still removed by a restore.
TEST_F(WorkspaceTest, ABottomlessDirectoryIsRefusedAndRemoved) {
  const TreeId empty = Snapshot();
  int directory = ::open(work().c_str(), O_RDONLY | O_DIRECTORY);
  for (int i = 0; i < 3000; ++i) {
    ASSERT_EQ(::mkdirat(directory, "d", 0700), 0);
    const int next = ::openat(directory, "d", O_RDONLY | O_DIRECTORY);
    ::close(directory);
    directory = next;
  }
  ::close(directory);
  const auto refused = workspaces_.Snapshot(work());
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status()));
  EXPECT_THAT(Text(refused.status()), HasSubstr("nested deeper"));
  ASSERT_OK(workspaces_.Restore(empty, work()));
  EXPECT_TRUE(fs::is_empty(work()));
}

// Reading the holes of this one would take minutes, and writing them more than the disk has.
TEST_F(WorkspaceTest, HolesCostNothing) {
  constexpr off_t kSize = (off_t{256} << 30) + 12345;
  const fs::path path = work() / "sparse";
  std::map<off_t, std::string> data = {{0, "first"}, {kSize - 7, "the end"}};
  for (int i = 0; i < 20; ++i)
    data[testing::Below(random_, kSize - 10'000)] = testing::RandomBytes(random_, 5000);
  {
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT, 0600));
    ASSERT_EQ(::ftruncate(file.get(), kSize), 0);
    for (const auto& [offset, bytes] : data)
      ASSERT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), offset), ssize_t(bytes.size()));
  }
  Write(work() / "zeros", std::string(3 * kChunkBytes + 1, '\0'));
  const TreeId tree = Snapshot();
  ASSERT_OK(workspaces_.Restore(tree, other()));
  struct stat status;
  ASSERT_EQ(::stat((other() / "sparse").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, kSize);
  EXPECT_LE(status.st_blocks * 512, off_t(data.size()) * (16 << 10));
  const UniqueFd file(::open((other() / "sparse").c_str(), O_RDONLY));
  for (const auto& [offset, bytes] : data) {
    std::string read(bytes.size(), '\0');
    ASSERT_EQ(::pread(file.get(), read.data(), read.size(), offset), ssize_t(read.size()));
    EXPECT_EQ(read, bytes) << offset;
  }
  EXPECT_EQ(Read(other() / "zeros"), Read(work() / "zeros"));
  EXPECT_EQ(Must(workspaces_.Snapshot(other())).tree, tree);
  // What is in a hole by now is read.
  const UniqueFd changed(::open(path.c_str(), O_WRONLY));
  ASSERT_EQ(::pwrite(changed.get(), "x", 1, testing::Below(random_, kSize)), 1);
  EXPECT_NE(Snapshot(), tree);
}

TEST_F(WorkspaceTest, ATreeThatIsTooLargeIsRefusedByName) {
  const auto make = [&](const char* name, uint64_t size) {
    const fs::path path = work() / name;
    fs::create_directories(path.parent_path());
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT, 0600));
    return ::ftruncate(file.get(), static_cast<off_t>(size)) == 0;
  };
  const auto refusal = [&] {
    const absl::Status refused = workspaces_.Snapshot(work()).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    return Text(refused);
  };
  Write(work() / "small", "x");
  if (!make("a/big", kMaxTreeBytes + 1)) GTEST_SKIP() << "no files of 4 TiB here";
  EXPECT_THAT(refusal(), HasSubstr("with a/big there are 4398046511105 bytes"));
  ASSERT_TRUE(make("a/big", kMaxTreeBytes / 2));
  ASSERT_TRUE(make("b", kMaxTreeBytes / 2 - 1));  // with "small" just what is allowed
  EXPECT_OK(workspaces_.Snapshot(work()).status());
  ASSERT_TRUE(make("b", kMaxTreeBytes / 2));
  EXPECT_THAT(refusal(), HasSubstr("with small there are 4398046511105 bytes"));
  // In a directory's record each MiB of its files takes 32 bytes.
  fs::remove_all(work());
  ASSERT_TRUE(make("d/e/big", kMaxTreeBytes));
  EXPECT_THAT(refusal(), HasSubstr("the list of what is in d/e takes"));
}

TEST_F(WorkspaceTest, LongAndOddNamesAndPathsRoundTrip) {
  std::vector<std::string> names = {
      std::string(255, 'n'), "\xff\xfe not UTF-8", " ", "-rf", "a\nb", "\x01\x7f"};
  std::string random = testing::RandomBytes(random_, 255);
  for (char& byte : random)
    if (byte == '/' || byte == '\0') byte = '\x80';
  names.push_back(random);
  for (const std::string& name : names) Write(work() / name, name);
  // Longer than a path may be.
  UniqueFd directory(::open(work().c_str(), O_RDONLY | O_DIRECTORY));
  for (int i = 0; i < 190; ++i) {
    const std::string name(static_cast<size_t>(100 + i % 156), 'd');
    ASSERT_EQ(::mkdirat(directory.get(), name.c_str(), 0700), 0);
    directory.Reset(::openat(directory.get(), name.c_str(), O_RDONLY | O_DIRECTORY));
    const UniqueFd file(::openat(directory.get(), "file", O_WRONLY | O_CREAT, 0600));
    ASSERT_EQ(::write(file.get(), &i, sizeof(i)), ssize_t(sizeof(i)));
  }
  const TreeId tree = Snapshot();
  ASSERT_OK(workspaces_.Restore(tree, other()));
  for (const std::string& name : names) EXPECT_EQ(Read(other() / name), name);
  EXPECT_EQ(Must(workspaces_.Snapshot(other())).tree, tree);
  const UniqueFd last(::openat(directory.get(), "file", O_WRONLY));
  EXPECT_EQ(::ftruncate(last.get(), 1), 0);
  EXPECT_NE(Snapshot(), tree);
  EXPECT_OK(workspaces_.Clear(work()));
  EXPECT_OK(workspaces_.Clear(other()));
}

// Who maps a file changes it again under the time stamp of the first change.
TEST_F(WorkspaceTest, AMappedFileIsReadAgain) {
  Write(work() / "mapped", std::string(10, 'a'));
  const UniqueFd file(::open((work() / "mapped").c_str(), O_RDWR));
  char* const bytes =
      static_cast<char*>(::mmap(nullptr, 10, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
  ASSERT_NE(bytes, MAP_FAILED);
  bytes[0] = 'b';
  Settle();
  const TreeId before = Snapshot();
  bytes[1] = 'c';
  EXPECT_NE(Snapshot(), before);
  ::munmap(bytes, 10);
}

// As an ordinary user: one's own entries without permission bits are read all the same, a
// stranger's are named.
TEST_F(WorkspaceTest, UnreadableEntriesAsAnOrdinaryUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  ::chmod(directory_.path().c_str(), 0777);
  Write(work() / "own/hidden", "mine");
  for (const char* name : {"own/hidden", "own", ""})
    ASSERT_EQ(::chown((work() / name).c_str(), 65534, 65534), 0);
  ::chmod((work() / "own/hidden").c_str(), 0);
  ::chmod((work() / "own").c_str(), 0);
  ASSERT_EQ(::seteuid(65534), 0);
  const auto own = workspaces_.Snapshot(work());
  absl::Status restored = own.status();
  if (own.ok()) restored = workspaces_.Restore(own->tree, other());
  ASSERT_EQ(::seteuid(0), 0);
  EXPECT_OK(restored);
  EXPECT_EQ(Describe(other()), Describe(work()));
  // One that lost its permissions since the snapshot gets them back, and so does the root.
  ::chmod((work() / "own").c_str(), 0750);
  ASSERT_EQ(::seteuid(65534), 0);
  const auto open_own = workspaces_.Snapshot(work());
  ::chmod((work() / "own").c_str(), 0);
  ::chmod(work().c_str(), 0);
  restored = open_own.ok() ? workspaces_.Restore(open_own->tree, work()) : open_own.status();
  ASSERT_EQ(::seteuid(0), 0);
  EXPECT_OK(restored);
  struct stat own_status;
  ASSERT_EQ(::stat((work() / "own").c_str(), &own_status), 0);
  EXPECT_EQ(own_status.st_mode & 07777, 0750u);
  Write(work() / "stranger", "x");
  ::chmod((work() / "stranger").c_str(), 0);
  ASSERT_EQ(::seteuid(65534), 0);
  const auto refused = workspaces_.Snapshot(work());
  ASSERT_EQ(::seteuid(0), 0);
  EXPECT_TRUE(absl::IsPermissionDenied(refused.status())) << refused.status();
  EXPECT_THAT(Text(refused.status()), HasSubstr("stranger"));
}

TEST_F(WorkspaceTest, ReadOnlyDirectoriesAreClearedByAnOrdinaryUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  ::chmod(directory_.path().c_str(), 0777);
  Write(work() / "cache/module/file", "x");
  for (const char* name : {"cache/module/file", "cache/module", "cache", ""})
    ASSERT_EQ(::chown((work() / name).c_str(), 65534, 65534), 0);
  for (const char* name : {"cache/module", "cache", ""})
    ASSERT_EQ(::chmod((work() / name).c_str(), 0500), 0);
  ASSERT_EQ(::seteuid(65534), 0);
  std::error_code error;
  fs::remove_all(work(), error);  // the control: this is what cannot do it
  const absl::Status cleared = workspaces_.Clear(work());
  ASSERT_EQ(::seteuid(0), 0);
  EXPECT_TRUE(error);
  EXPECT_OK(cleared);
  EXPECT_TRUE(fs::is_empty(work()));
  EXPECT_TRUE(absl::IsNotFound(workspaces_.Clear(directory_.path() / "none")));
}

TEST_F(WorkspaceTest, RandomTreesRoundTrip) {
  std::map<int, std::pair<TreeId, std::vector<std::string>>> taken;
  for (int round = 0; round < 25; ++round) {
    for (int change = 0; change < 8; ++change) {
      const fs::path path = work() / fmt::format("d{}", random_() % 4) /
                            fmt::format("e{}", random_() % 4) / fmt::format("f{}", random_() % 4);
      std::error_code error;
      switch (random_() % 5) {
        case 0:
          fs::remove_all(random_() % 2 != 0 ? path : path.parent_path());
          break;
        case 1:
          fs::create_directories(path.parent_path());
          fs::remove_all(path);
          fs::create_symlink("../f0", path);
          break;
        case 2:
          if (!fs::is_symlink(path) && fs::exists(path))
            ::chmod(path.c_str(), random_() % 2 != 0 ? 0755 : 0600);
          break;
        default:
          fs::create_directories(path.parent_path());
          fs::remove_all(path);
          Write(path, testing::RandomBytes(random_, random_() % 3000));
      }
    }
    taken[round] = {Snapshot(), Describe(work())};
    const int back = static_cast<int>(random_() % static_cast<uint64_t>(round + 1));
    const fs::path target = random_() % 2 != 0 ? work() : other();
    ASSERT_OK(workspaces_.Restore(taken[back].first, target));
    ASSERT_EQ(Describe(target), taken[back].second);
  }
}

// Names that a restore uses for its own moments are a workspace's like any other.
TEST_F(WorkspaceTest, TemporaryNamesAreNotSpecial) {
  for (int i = 0; i < 4; ++i)
    Write(work() / fmt::format(".agentd-restored-{}", i), fmt::format("{}", i));
  fs::create_directories(work() / ".agentd-removed-0/deep/er");
  const TreeId tree = Snapshot();
  const std::vector<std::string> before = Describe(work());
  for (int i = 0; i < 4; ++i) Write(work() / fmt::format(".agentd-restored-{}", i), "changed");
  fs::create_directories(work() / "extra/deep/er/still");
  ASSERT_OK(workspaces_.Restore(tree, work()));
  EXPECT_EQ(Describe(work()), before);
}

TEST_F(WorkspaceTest, MissingThingsAreNamed) {
  EXPECT_TRUE(absl::IsNotFound(workspaces_.Snapshot(directory_.path() / "none").status()));
  EXPECT_TRUE(absl::IsNotFound(workspaces_.Restore(TreeId{}, work())));
}

// Background jobs of a session write, replace and remove files while a snapshot is taken.
TEST_F(WorkspaceTest, ASnapshotOfFilesThatNeverRestSucceeds) {
  Write(work() / "quiet", "quiet");
  std::atomic<bool> stop{false};
  std::vector<std::thread> jobs;
  jobs.emplace_back([&] {
    std::ofstream log(work() / "log");
    for (int i = 0; !stop; ++i) {
      log << "line\n" << std::flush;
      if (i % 10'000 == 0) log.seekp(0);
    }
  });
  jobs.emplace_back([&] {
    std::error_code gone;
    for (int i = 0; !stop; ++i) {
      std::ofstream(work() / std::to_string(i % 50)) << i;
      fs::create_directory(work() / ("d" + std::to_string(i % 7)), gone);
      fs::remove(work() / std::to_string((i + 25) % 50), gone);
      fs::remove(work() / ("d" + std::to_string((i + 3) % 7)), gone);
    }
  });
  for (int i = 0; i < 20; ++i) {
    const auto snapshot = workspaces_.Snapshot(work());
    EXPECT_OK(snapshot.status());
    if (!snapshot.ok()) break;
    EXPECT_OK(workspaces_.Restore(snapshot->tree, other()));
    EXPECT_EQ(Read(other() / "quiet"), "quiet");
  }
  stop = true;
  for (std::thread& job : jobs) job.join();
}

}  // namespace
}  // namespace agentd::sessions::internal
