// Changes carried into a folder: random trees, conflicts, kills in the middle, folders that try to
// lead elsewhere.
#include "agentd/ctl/folder.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <fstream>

#include "agentd/content_hash.h"
#include "sessions/crash_point.h"
#include "sessions/test_util.h"
#include "sessions/tree_diff.h"

namespace agentd::ctl {
namespace {

namespace fs = std::filesystem;
using sessions::TreeEntry;
using sessions::testing::Below;
using sessions::testing::Must;
using sessions::testing::Random;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// {path: "644 contents", "dir 755" or "-> target"}.
using Tree = std::map<std::string, std::string>;

std::string ReadAll(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

uint32_t ModeOf(const fs::path& path) {
  struct stat status {};
  EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
  return status.st_mode & 07777;
}

Tree TreeIn(const fs::path& root) {
  Tree tree;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    std::string& what = tree[entry.path().lexically_relative(root).string()];
    if (entry.is_symlink()) {
      what = "-> " + fs::read_symlink(entry.path()).string();
    } else if (entry.is_directory()) {
      what = fmt::format("dir {:o}", ModeOf(entry.path()));
    } else {
      what = fmt::format("{:o} {}", ModeOf(entry.path()), ReadAll(entry.path()));
    }
  }
  return tree;
}

void WriteTree(const Tree& tree, const fs::path& root) {
  fs::remove_all(root);
  fs::create_directories(root);
  for (const auto& [path, what] : tree) {
    if (what.starts_with("-> ")) {
      fs::create_symlink(what.substr(3), root / path);
    } else if (what.starts_with("dir ")) {
      fs::create_directory(root / path);
      ASSERT_EQ(::chmod((root / path).c_str(), std::stoul(what.substr(4), nullptr, 8)), 0);
    } else {
      std::ofstream(root / path, std::ios::binary) << what.substr(4);
      ASSERT_EQ(::chmod((root / path).c_str(), std::stoul(what, nullptr, 8)), 0);
    }
  }
}

class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override { ::umask(022); }

  sessions::WorkspaceSnapshot Snapshot(const Tree& tree) {
    WriteTree(tree, directory_.path() / "scratch");
    return Must(store_->SnapshotWorkspace(directory_.path() / "scratch"));
  }
  api::WorkspaceEntry ToMessage(const TreeEntry& entry) {
    api::WorkspaceEntry out;
    out.set_type(static_cast<api::WorkspaceEntryType>(entry.type));
    out.set_mode(entry.mode);
    out.set_target(entry.target);
    if (entry.type != TreeEntry::Type::kFile) return out;
    out.set_size_bytes(static_cast<int64_t>(entry.size_bytes));
    ContentHash hash;
    for (const Sha256Digest& part : entry.parts) hash.AddPart(part);
    out.set_content_sha256(hash.Finish());
    return out;
  }
  // What the daemon would say, and what it would send.
  Changes Diff(const Tree& before, const Tree& after) {
    const auto from = Snapshot(before);
    const auto to = Snapshot(after);
    Changes changes;
    EXPECT_OK(sessions::DiffTrees(*store_, from.tree, to.tree, {},
                                  [&](const sessions::TreeChange& change) {
                                    api::WorkspaceChange& out = changes.emplace_back();
                                    out.set_path(change.path);
                                    if (change.before)
                                      *out.mutable_before() = ToMessage(*change.before);
                                    if (change.after)
                                      *out.mutable_after() = ToMessage(*change.after);
                                    return absl::OkStatus();
                                  }));
    return changes;
  }
  ContentsReader From(const Tree& tree) {
    return [&tree](const api::WorkspaceChange& change, const auto& sink) {
      const std::string bytes = tree.at(change.path()).substr(4);
      RETURN_IF_ERROR(sink(bytes.substr(0, bytes.size() / 2)));
      return sink(bytes.substr(bytes.size() / 2));
    };
  }
  // All of it; conflicts are an error.
  absl::Status Carry(const Changes& changes, const Tree& after) {
    ASSIGN_OR_RETURN(const auto folder, Folder::Open(Place()));
    ASSIGN_OR_RETURN(const Comparison comparison, folder->Compare(changes));
    if (!comparison.conflicts.empty()) {
      const Conflict& first = comparison.conflicts[0];
      return absl::AbortedError(first.change->path() + " " + first.why);
    }
    return folder->Apply(comparison.to_do, /*force=*/false, From(after),
                         [](const api::WorkspaceChange&, const std::string&) {});
  }
  std::vector<std::string> Conflicts(const Changes& changes) {
    const auto folder = Must(Folder::Open(Place()));
    std::vector<std::string> out;
    for (const Conflict& conflict : Must(folder->Compare(changes)).conflicts)
      out.push_back(conflict.change->path() + ": " + conflict.why);
    return out;
  }
  std::string Place() const { return directory_.path() / "folder"; }

  sessions::testing::TemporaryDirectory directory_;
  std::unique_ptr<sessions::Store> store_ =
      Must(sessions::Store::Open(directory_.path() / "store", sessions::testing::Options()));
};

class RandomTrees {
 public:
  explicit RandomTrees(Random& random) : random_(random) {}

  Tree Draw(Tree tree) {
    for (auto it = tree.begin(); it != tree.end();) {
      const std::string path = it->first;
      switch (Below(random_, 8)) {
        case 0:
          it = EraseWith(tree, path);
          continue;
        case 1:
          EraseWith(tree, path);
          it = tree.emplace(path, Node()).first;
          break;
        case 2:
          if (!it->second.starts_with("-> ")) {
            const size_t digits = it->second.starts_with("dir ") ? 4 : 0;
            it->second.replace(digits, 3, it->second.starts_with("dir ") ? "750" : "600");
          }
          break;
        default:
          break;
      }
      ++it;
    }
    for (int64_t i = Below(random_, 6); i >= 0; --i) Add(tree);
    return tree;
  }

 private:
  static Tree::iterator EraseWith(Tree& tree, const std::string& path) {
    for (auto below = tree.lower_bound(path + "/");
         below != tree.end() && below->first.starts_with(path + "/");)
      below = tree.erase(below);
    return tree.erase(tree.find(path));
  }
  void Add(Tree& tree) {
    std::string path;
    for (int64_t depth = Below(random_, 4);; --depth) {
      path += "abcd"[Below(random_, 4)];
      if (depth == 0) break;
      const auto [at, fresh] = tree.emplace(path, "dir 755");
      if (!at->second.starts_with("dir ")) return;
      path += "/";
    }
    tree.emplace(path, Node());
  }
  std::string Node() {
    switch (Below(random_, 5)) {
      case 0:
        return "dir 755";
      case 1:
        return "-> " + std::string(1, "abc"[Below(random_, 3)]);
      default:
        return (Below(random_, 3) == 0 ? "755 " : "644 ") +
               sessions::testing::RandomBytes(random_, Below(random_, 50));
    }
  }

  Random& random_;
};

TEST_F(FolderTest, ARandomTreeBecomesTheOtherWhereverItIsKilled) {
  Random random(sessions::testing::NewSeed());
  RandomTrees trees(random);
  int kills = 0;
  for (int round = 0; round < (kSanitized ? 4 : 25); ++round) {
    const Tree before = trees.Draw({});
    const Tree after = trees.Draw(before);
    const Changes changes = Diff(before, after);
    for (const char* point : {"ctl.apply_written", "ctl.apply_made"}) {
      for (int count = 1;; ++count) {
        WriteTree(before, Place());
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
          sessions::internal::ArmCrashPoint(fmt::format("{}:{}", point, count));
          ::_exit(Carry(changes, after).ok() ? 0 : 1);
        }
        int status = 0;
        ASSERT_EQ(::waitpid(child, &status, 0), child);
        ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 1);
        const bool killed = WEXITSTATUS(status) == 137;
        kills += killed ? 1 : 0;
        ASSERT_OK(Carry(changes, after)) << ::testing::PrintToString(before) << "\n"
                                         << ::testing::PrintToString(after) << "\nround " << round
                                         << " " << point << " " << count;
        ASSERT_EQ(TreeIn(Place()), after) << "round " << round << " " << point << " " << count;
        if (!killed) break;
      }
    }
    const auto folder = Must(Folder::Open(Place()));
    const Comparison again = Must(folder->Compare(changes));
    EXPECT_EQ(again.done, changes.size());
    EXPECT_THAT(again.to_do, IsEmpty());
  }
  EXPECT_GT(kills, 20);
}

TEST_F(FolderTest, ConflictsAreFoundBeforeAnythingIsWritten) {
  const Tree before = {{"changed", "644 old"}, {"gone", "644 old"}, {"mode", "644 m"},
                       {"d", "dir 755"},       {"d/x", "644 x"},    {"fine", "644 f"},
                       {"deleted", "644 d"}};
  Tree after = {{"changed", "644 new"}, {"gone", "644 new"}, {"mode", "755 m"},
                {"d", "644 a file"},    {"fine", "644 F"},   {"added", "644 a"}};
  const Changes changes = Diff(before, after);
  Tree folder = {{"changed", "644 mine"}, {"mode", "600 m"},   {"d", "dir 755"},
                 {"d/x", "644 x"},        {"d/y", "644 mine"}, {"fine", "644 f"},
                 {"deleted", "644 mine"}, {"added", "644 b"}};
  WriteTree(folder, Place());
  EXPECT_THAT(
      Conflicts(changes),
      ElementsAre("added: is in the folder already, and another one",
                  "changed: was changed in the folder",
                  "d: is a directory with d/y, which is not the session's",
                  "deleted: was changed in the folder", "gone: is not in the folder any more",
                  "mode: has another mode in the folder"));
  EXPECT_EQ(TreeIn(Place()), folder);
  // Without them.
  {
    const auto open = Must(Folder::Open(Place()));
    const Comparison comparison = Must(open->Compare(changes));
    ASSERT_OK(open->Apply(comparison.to_do, false, From(after), [](const auto&, const auto&) {}));
  }
  folder["fine"] = "644 F";
  folder.erase("d/x");
  EXPECT_EQ(TreeIn(Place()), folder);
  // With force, but for the directory.
  {
    const auto open = Must(Folder::Open(Place()));
    const Comparison comparison = Must(open->Compare(changes));
    std::vector<const api::WorkspaceChange*> forced;
    for (const Conflict& conflict : comparison.conflicts) {
      EXPECT_EQ(conflict.can_force, conflict.change->path() != "d");
      if (conflict.can_force) forced.push_back(conflict.change);
    }
    ASSERT_OK(open->Apply(forced, true, From(after), [](const auto&, const auto&) {}));
  }
  after["d"] = "dir 755";
  after["d/y"] = "644 mine";
  EXPECT_EQ(TreeIn(Place()), after);
}

TEST_F(FolderTest, WhatTheSessionHadMeanwhileIsNoConflict) {
  const Tree first = {{"a", "644 1"}, {"b", "755 1"}};
  const Tree second = {{"a", "644 2"}, {"b", "755 2"}};
  const Tree third = {{"a", "644 3"}, {"b", "755 3"}};
  Changes changes = Diff(first, third);
  const Changes earlier = Diff(first, second);
  ASSERT_EQ(changes.size(), 2u);
  for (size_t i = 0; i < changes.size(); ++i) *changes[i].add_between() = earlier[i].after();
  // Carried over before; and a mode that only the folder changed stays.
  WriteTree({{"a", "644 2"}, {"b", "700 1"}}, Place());
  EXPECT_OK(Carry(changes, third));
  EXPECT_EQ(TreeIn(Place()), (Tree{{"a", "644 3"}, {"b", "700 3"}}));
}

TEST_F(FolderTest, NothingLeadsOutOfTheFolder) {
  const fs::path outside = directory_.path() / "outside";
  const Tree kept = {{"x", "644 theirs"}, {"y", "644 theirs"}};
  const Tree before = {{"d", "dir 755"}, {"d/x", "644 old"}, {"d/y", "644 old"}, {"f", "644 old"}};
  const Tree after = {{"d", "dir 755"}, {"d/new", "644 n"}, {"d/x", "644 new"}, {"f", "644 new"}};
  const Changes changes = Diff(before, after);
  WriteTree(kept, outside);
  // A directory of the session's is a link in the folder.
  WriteTree({{"d", "-> " + outside.string()}, {"f", "644 old"}}, Place());
  EXPECT_THAT(Conflicts(changes),
              ElementsAre("d/new: d is no directory in the folder (a link is not followed)",
                          "d/x: d is no directory in the folder (a link is not followed)"));
  EXPECT_EQ(TreeIn(outside), kept);
  // A file is one, and so is the name that files are first written to.
  WriteTree(before, Place());
  fs::remove(Place() + "/f");
  fs::create_symlink(outside / "x", Place() + "/f");
  fs::create_symlink(outside / "y", Place() + "/.agentd-apply-unfinished");
  fs::create_symlink(outside / "y", Place() + "/d/.agentd-apply-unfinished");
  EXPECT_THAT(Conflicts(changes), ElementsAre("f: was changed in the folder"));
  fs::remove(Place() + "/f");
  std::ofstream(Place() + "/f") << "old";
  EXPECT_OK(Carry(changes, after));
  EXPECT_EQ(TreeIn(Place()), after);
  EXPECT_EQ(TreeIn(outside), kept);
  // A link takes the directory's place after the comparison.
  WriteTree(before, Place());
  const auto folder = Must(Folder::Open(Place()));
  const Comparison comparison = Must(folder->Compare(changes));
  fs::rename(Place() + "/d", Place() + "/e");
  fs::create_symlink(outside, Place() + "/d");
  EXPECT_TRUE(absl::IsAborted(
      folder->Apply(comparison.to_do, true, From(after), [](const auto&, const auto&) {})));
  EXPECT_EQ(TreeIn(outside), kept);
  // Another name of a file outside keeps its contents and mode.
  WriteTree({{"f", "644 old"}}, Place());
  fs::remove(Place() + "/f");
  std::ofstream(outside / "linked") << "old";
  fs::create_hard_link(outside / "linked", Place() + "/f");
  const Tree executable = {{"f", "755 old"}};
  EXPECT_OK(Carry(Diff({{"f", "644 old"}}, executable), executable));
  EXPECT_EQ(TreeIn(Place()), executable);
  EXPECT_EQ(ModeOf(outside / "linked"), 0644u);
}

TEST_F(FolderTest, PathsOfADaemonThatLiesAreRefused) {
  fs::create_directories(Place());
  for (const char* path : {"", "/etc/x", "../x", "a/../../x", "a//b", ".", "a/."}) {
    api::WorkspaceChange change;
    change.set_path(path);
    change.mutable_after()->set_type(api::WORKSPACE_ENTRY_TYPE_FILE);
    const auto folder = Must(Folder::Open(Place()));
    EXPECT_TRUE(absl::IsDataLoss(folder->Compare({change}).status())) << path;
  }
}

TEST_F(FolderTest, OtherContentsThanNamedAreNotTaken) {
  const Tree before = {{"a", "644 old"}, {"b", "644 old"}};
  const Tree after = {{"a", "644 new"}, {"b", "644 new"}};
  WriteTree(before, Place());
  const absl::Status status = Carry(Diff(before, after), {{"a", "644 new"}, {"b", "644 bad"}});
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(TreeIn(Place()), (Tree{{"a", "644 new"}, {"b", "644 old"}}));
}

TEST_F(FolderTest, PathsAloneMakeTheirDirectoriesAndClosedOnesOpenForAWhile) {
  const Tree before = {{"closed", "dir 755"}, {"closed/old", "644 o"}};
  const Tree after = {{"closed", "dir 555"},
                      {"closed/new", "444 n"},
                      {"p", "dir 755"},
                      {"p/q", "dir 755"},
                      {"p/q/r", "644 r"}};
  Changes changes = Diff(before, after);
  WriteTree(before, Place());
  EXPECT_OK(Carry(changes, after));
  EXPECT_EQ(TreeIn(Place()), after);
  ASSERT_EQ(::chmod((Place() + "/closed").c_str(), 0755), 0);
  // As a diff of that path alone names it.
  std::erase_if(changes, [](const auto& change) { return change.path() != "p/q/r"; });
  WriteTree({}, Place());
  EXPECT_OK(Carry(changes, after));
  EXPECT_EQ(TreeIn(Place()), (Tree{{"p", "dir 755"}, {"p/q", "dir 755"}, {"p/q/r", "644 r"}}));
}

TEST_F(FolderTest, OneCarriesAtATime) {
  fs::create_directories(Place());
  const UniqueFd other(::open(Place().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  const absl::Status status = Folder::Open(Place()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Text(status), AllOf(HasSubstr(Place()), HasSubstr("is in use")));
  EXPECT_TRUE(absl::IsNotFound(Folder::Open(Place() + "/none").status()));
}

}  // namespace
}  // namespace agentd::ctl
