// Patches of random trees, given to git apply and patch: they make the other tree, exactly.
#include "agentd/workspace_diff.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <map>

#include "agentd/file_patch.h"
#include "sessions/test_util.h"

namespace agentd::daemon {
namespace {

namespace fs = std::filesystem;
using sessions::testing::Below;
using sessions::testing::Must;
using sessions::testing::Random;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;

// {path: "mode contents" or "-> target"}; of directories those with nothing in them if asked for.
using Tree = std::map<std::string, std::string>;

std::string ReadAll(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

Tree TreeIn(const fs::path& root) {
  Tree tree;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const std::string path = entry.path().lexically_relative(root).string();
    if (entry.is_symlink()) {
      tree[path] = "-> " + fs::read_symlink(entry.path()).string();
    } else if (entry.is_regular_file()) {
      struct stat status;
      EXPECT_EQ(::stat(entry.path().c_str(), &status), 0);
      tree[path] = fmt::format("{:o} {}", status.st_mode & 0777, ReadAll(entry.path()));
    }
  }
  return tree;
}

void WriteTree(const Tree& tree, const fs::path& root) {
  fs::remove_all(root);
  fs::create_directories(root);
  for (const auto& [path, what] : tree) {
    fs::create_directories((root / path).parent_path());
    if (what.starts_with("-> ")) {
      fs::create_symlink(what.substr(3), root / path);
      continue;
    }
    std::ofstream(root / path, std::ios::binary) << what.substr(4);
    ASSERT_EQ(::chmod((root / path).c_str(),
                      static_cast<mode_t>(std::stoi(what.substr(0, 3), nullptr, 8))),
              0);
  }
}

std::string RandomLines(Random& random) {
  std::string text;
  for (int64_t i = Below(random, 30); i > 0; --i) {
    constexpr const char* kLines[] = {"{",
                                      "}",
                                      "",
                                      "return 0;",
                                      "-- a",
                                      "++ b",
                                      "diff --git a b",
                                      "Ende \xc3\xa4",
                                      "tab\there",
                                      "cr\r",
                                      "\xff\xfe",
                                      "@@ -1 +1 @@"};
    text += kLines[Below(random, 12)];
    text += '\n';
  }
  if (!text.empty() && Below(random, 4) == 0) text.pop_back();
  return text;
}

std::string Edited(Random& random, std::string text) {
  for (int64_t i = Below(random, 4); i >= 0; --i) {
    const auto at = static_cast<size_t>(Below(random, static_cast<int64_t>(text.size()) + 1));
    const size_t line = text.rfind('\n', at) == std::string::npos ? 0 : text.rfind('\n', at) + 1;
    if (line > text.size()) continue;
    if (Below(random, 2) == 0) {
      text.insert(line, "new line " + std::to_string(Below(random, 100)) + "\n");
    } else {
      text.erase(line, text.find('\n', line) == std::string::npos
                           ? std::string::npos
                           : text.find('\n', line) - line + 1);
    }
  }
  return text;
}

class RandomTrees {
 public:
  // `plain`: only what GNU patch takes too: no binary files, no links that were there before, no
  // file where a directory was or the other way round.
  RandomTrees(Random& random, bool plain) : random_(random), plain_(plain) {}

  std::string Node() {
    switch (Below(random_, 8)) {
      case 0:
        if (!plain_) return "-> none/" + std::string(1, "abc"[Below(random_, 3)]);
        [[fallthrough]];
      case 1:
        if (!plain_)
          return Mode() + sessions::testing::RandomBytes(random_, Below(random_, 300)) + '\0';
        [[fallthrough]];
      default:
        if (!plain_) return Mode() + RandomLines(random_);
        // Nothing that looks renamed but what is.
        if (Below(random_, 8) == 0) return Mode();
        return Mode() + fmt::format("{}\n", ++nodes_) + RandomLines(random_);
    }
  }
  std::string Path() {
    constexpr const char* kNames[] = {"a",    "b.txt", "\"q\"", "\xc3\xbc",
                                      "t\tb", "-x",    "a.b",   "c d"};
    // Names with spaces git writes without quotes, and patch takes them for two where there are no
    // lines that changed.
    const int64_t names = plain_ ? 7 : 8;
    std::string path = kNames[Below(random_, names)];
    for (int64_t depth = Below(random_, 3); depth > 0; --depth)
      path += std::string(plain_ ? "_d/" : "/") + kNames[Below(random_, names)];
    return path;
  }
  void AddTo(Tree& tree, const std::string& path, const std::string& node) {
    for (size_t at = path.find('/'); at != std::string::npos; at = path.find('/', at + 1))
      tree.erase(path.substr(0, at));
    for (auto below = tree.lower_bound(path + "/");
         below != tree.end() && below->first.starts_with(path + "/");)
      below = tree.erase(below);
    tree[path] = node;
  }
  Tree Draw() {
    Tree tree;
    for (int64_t i = Below(random_, 12); i > 0; --i) AddTo(tree, Path(), Node());
    return tree;
  }
  Tree Change(Tree tree) {
    const Tree before = tree;
    for (const auto& [path, node] : before) {
      if (!tree.contains(path)) continue;
      switch (Below(random_, 7)) {
        case 0:
          tree.erase(path);
          break;
        case 1:
          tree.erase(path);
          AddTo(tree, Path(), node);  // renamed
          break;
        case 2:
          tree[path] = Node();
          break;
        case 3:
          if (!node.starts_with("-> ")) tree[path] = Mode() + node.substr(4);
          break;
        case 4:
          if (!node.starts_with("-> ")) tree[path] = Mode() + Edited(random_, node.substr(4));
          break;
        default:
          break;
      }
    }
    for (int64_t i = Below(random_, 3); i > 0; --i) AddTo(tree, Path(), Node());
    return tree;
  }

 private:
  std::string Mode() { return Below(random_, 3) == 0 ? "755 " : "644 "; }

  Random& random_;
  const bool plain_;
  int nodes_ = 0;
};

class WorkspaceDiffTest : public testing::Test {
 protected:
  void SetUp() override {
    ::umask(022);
    session_ = Must(store_->Create({.owner = "me", .seed = 1, .meta = ""}));
  }
  // An event with this tree.
  uint64_t Save(const Tree& tree) {
    WriteTree(tree, Work());
    return SaveWork();
  }
  uint64_t SaveWork() {
    sessions::Commit commit;
    commit.timeline = session_.timeline;
    commit.events.push_back(sessions::NewEvent::Workspace(Must(store_->SnapshotWorkspace(Work()))));
    const auto committed = Must(store_->CommitSync(std::move(commit)));
    session_ = Must(store_->Get(session_.id));
    return committed.events[0].seq;
  }
  void Say() {
    EXPECT_OK(store_->CommitSync(
        sessions::testing::TokensCommit(session_.timeline, std::vector<sessions::TokenId>(3, 7))));
    session_ = Must(store_->Get(session_.id));
  }

  struct Answer {
    v1::DiffBegin begin;
    std::vector<v1::WorkspaceChange> changes;
    std::string patch;
  };
  absl::StatusOr<Answer> Ask(const v1::DiffWorkspaceRequest& request) {
    Answer answer;
    RETURN_IF_ERROR(
        DiffWorkspace(*store_, session_, request, [&](const v1::DiffWorkspacePart& part) {
          if (part.has_begin()) answer.begin = part.begin();
          if (part.has_change()) answer.changes.push_back(part.change());
          answer.patch += part.patch();
          return absl::OkStatus();
        }));
    return answer;
  }
  Answer Diff(uint64_t from, uint64_t to, v1::DiffDetail detail, bool binary = false) {
    v1::DiffWorkspaceRequest request;
    request.set_from_seq(from);
    request.set_to_seq(to);
    request.set_detail(detail);
    request.set_binary(binary);
    return Must(Ask(request));
  }
  static std::vector<std::string> Paths(const Answer& answer) {
    std::vector<std::string> paths;
    for (const v1::WorkspaceChange& change : answer.changes) paths.push_back(change.path());
    return paths;
  }

  // `command` applies the patch in a copy of `before`.
  void ExpectApplied(const Tree& before, const Tree& after, const std::string& patch,
                     const std::string& command) {
    const fs::path copy = directory_.path() / "copy";
    const fs::path file = directory_.path() / "patch";
    WriteTree(before, copy);
    std::ofstream(file, std::ios::binary) << patch;
    const std::string line = fmt::format("cd {} && {} < {} > {}.out 2>&1", copy.string(), command,
                                         file.string(), file.string());
    ASSERT_EQ(std::system(line.c_str()), 0) << command << "\n"
                                            << ReadAll(file.string() + ".out") << "\n"
                                            << patch;
    ASSERT_EQ(TreeIn(copy), after) << command << "\n" << patch;
  }

  fs::path Work() const { return directory_.path() / "work"; }

  sessions::testing::TemporaryDirectory directory_;
  std::unique_ptr<sessions::Store> store_ =
      Must(sessions::Store::Open(directory_.path() / "store", sessions::testing::Options()));
  sessions::SessionInfo session_;
};

TEST_F(WorkspaceDiffTest, GitAndPatchMakeTheOtherTreeOfIt) {
  Random random(sessions::testing::NewSeed());
  for (int round = 0; round < (kSanitized ? 10 : 60); ++round) {
    const bool plain = round % 2 == 0;
    RandomTrees trees(random, plain);
    const Tree before = trees.Draw();
    const Tree after = round % 5 == 0 ? trees.Draw() : trees.Change(before);
    const uint64_t from = Save(before);
    Say();
    const uint64_t to = Save(after);
    const Answer answer = Diff(from, to, v1::DIFF_DETAIL_PATCH, !plain);
    ASSERT_EQ(before == after, answer.patch.empty());
    if (answer.patch.empty()) continue;
    ExpectApplied(before, after, answer.patch, "git apply");
    if (HasFatalFailure()) return;
    if (plain) ExpectApplied(before, after, answer.patch, "patch -p1 -s -f");
    if (HasFatalFailure()) return;
    const Answer back = Diff(to, from, v1::DIFF_DETAIL_PATCH, !plain);
    ExpectApplied(after, before, back.patch, "git apply");
    if (HasFatalFailure()) return;
  }
}

TEST_F(WorkspaceDiffTest, NamesWithSpacesGoThroughBoth) {
  const Tree before = {{"c d/e f", "644 1\n"}, {"g h", "644 1\n"}};
  const Tree after = {{"c d/e f", "644 2\n"}, {"i j k", "644 1\n3\n"}};
  const uint64_t from = Save(before);
  const uint64_t to = Save(after);
  const std::string patch = Diff(from, to, v1::DIFF_DETAIL_PATCH).patch;
  ExpectApplied(before, after, patch, "git apply");
  ExpectApplied(before, after, patch, "patch -p1 -s -f");
}

TEST_F(WorkspaceDiffTest, ThePatchOfEveryKindOfChange) {
  const uint64_t from = Save({{"bin", std::string("644 \0\1", 6)},
                              {"changed", "644 a\nb\nc"},
                              {"gone", "644 x\n"},
                              {"kind", "644 x\n"},
                              {"link", "-> old"},
                              {"mode", "644 x\n"},
                              {"old name", "644 same\n"},
                              {"void/x", "644 1\n"}});
  const uint64_t to = Save({{"bin", std::string("644 \0\1\2", 7)},
                            {"changed", "644 a\nB\nc\n"},
                            {"empty", "644 "},
                            {"kind", "-> x"},
                            {"link", "-> new"},
                            {"mode", "755 x\n"},
                            {"t\tab", "644 t\n"},
                            {"zz/new name", "644 same\n"}});
  EXPECT_EQ(Diff(from, to, v1::DIFF_DETAIL_PATCH).patch,
            "diff --git a/bin b/bin\n"
            "Binary files a/bin (2 bytes) and b/bin (3 bytes) differ\n"
            "diff --git a/changed b/changed\n"
            "--- a/changed\n"
            "+++ b/changed\n"
            "@@ -1,3 +1,3 @@\n"
            " a\n"
            "-b\n"
            "-c\n"
            "\\ No newline at end of file\n"
            "+B\n"
            "+c\n"
            "diff --git a/empty b/empty\n"
            "new file mode 100644\n"
            "diff --git a/gone b/gone\n"
            "deleted file mode 100644\n"
            "--- a/gone\n"
            "+++ /dev/null\n"
            "@@ -1 +0,0 @@\n"
            "-x\n"
            "diff --git a/kind b/kind\n"
            "deleted file mode 100644\n"
            "--- a/kind\n"
            "+++ /dev/null\n"
            "@@ -1 +0,0 @@\n"
            "-x\n"
            "diff --git a/kind b/kind\n"
            "new file mode 120000\n"
            "--- /dev/null\n"
            "+++ b/kind\n"
            "@@ -0,0 +1 @@\n"
            "+x\n"
            "\\ No newline at end of file\n"
            "diff --git a/link b/link\n"
            "--- a/link\n"
            "+++ b/link\n"
            "@@ -1 +1 @@\n"
            "-old\n"
            "\\ No newline at end of file\n"
            "+new\n"
            "\\ No newline at end of file\n"
            "diff --git a/mode b/mode\n"
            "old mode 100644\n"
            "new mode 100755\n"
            "diff --git \"a/t\\tab\" \"b/t\\tab\"\n"
            "new file mode 100644\n"
            "--- /dev/null\n"
            "+++ \"b/t\\tab\"\n"
            "@@ -0,0 +1 @@\n"
            "+t\n"
            "diff --git a/void/x b/void/x\n"
            "deleted file mode 100644\n"
            "--- a/void/x\n"
            "+++ /dev/null\n"
            "@@ -1 +0,0 @@\n"
            "-1\n"
            "diff --git a/old name b/zz/new name\n"
            "similarity index 100%\n"
            "rename from old name\n"
            "rename to zz/new name\n");
}

TEST_F(WorkspaceDiffTest, DirectoriesAreNamedWhereNoFileTellsOfThem) {
  fs::create_directories(Work() / "a/b");
  fs::create_directories(Work() / "m");
  const uint64_t from = SaveWork();
  fs::remove_all(Work() / "a");
  fs::permissions(Work() / "m", fs::perms(0700));
  fs::create_directories(Work() / "new/empty");
  const uint64_t to = SaveWork();
  EXPECT_EQ(Diff(from, to, v1::DIFF_DETAIL_PATCH).patch,
            "Removed empty directory: a/b\n"
            "Mode of directory m: 700, was 755\n"
            "New empty directory: new/empty\n");
}

TEST_F(WorkspaceDiffTest, CountsAndRenamesAndWhatIsTooLarge) {
  const std::string large(kMaxPatchBytes + 1, 'x');
  const std::string long_one(static_cast<size_t>(kMaxPatchLines) + 1, '\n');
  const uint64_t from = Save({{"a", "644 1\n2\n3\n"}, {"b", "644 " + large}, {"c", "644 x\n"}});
  const uint64_t to =
      Save({{"a", "644 1\nzwei\n3\n4\n"}, {"b2", "600 " + large}, {"c", "644 " + long_one}});
  const Answer counted = Diff(from, to, v1::DIFF_DETAIL_LINES);
  EXPECT_EQ(counted.patch, "");
  ASSERT_THAT(Paths(counted), ElementsAre("a", "b2", "c"));
  EXPECT_EQ(counted.changes[0].shown(), v1::DIFF_SHOWN_TEXT);
  EXPECT_EQ(counted.changes[0].added_lines(), 2);
  EXPECT_EQ(counted.changes[0].removed_lines(), 1);
  EXPECT_EQ(counted.changes[1].renamed_from(), "b");
  EXPECT_EQ(counted.changes[1].shown(), v1::DIFF_SHOWN_UNSPECIFIED) << "nothing to compare";
  EXPECT_EQ(counted.changes[2].shown(), v1::DIFF_SHOWN_TOO_LARGE);
  const std::string patch = Diff(from, to, v1::DIFF_DETAIL_PATCH).patch;
  EXPECT_THAT(patch, HasSubstr("old mode 100644\nnew mode 100600\nsimilarity index 100%\n"));
  EXPECT_THAT(patch, EndsWith(fmt::format("Files a/c (2 bytes) and b/c ({} bytes), too large to "
                                          "show, differ\n",
                                          long_one.size())));
  // Named to git too: it refuses rather than leave it out.
  const fs::path file = directory_.path() / "patch";
  std::ofstream(file) << patch;
  EXPECT_NE(
      std::system(fmt::format("cd {} && git apply < {} 2>/dev/null", Work().string(), file.string())
                      .c_str()),
      0);
}

TEST_F(WorkspaceDiffTest, FromAndToAndHistory) {
  const uint64_t first = Save({{"a", "644 1"}, {"b", "644 1"}});
  Say();
  const uint64_t second = Save({{"a", "644 2"}, {"b", "644 1"}, {"c", "644 1"}});
  Say();
  const uint64_t third = Save({{"a", "644 3"}, {"b", "644 1"}});
  Say();
  Answer answer = Must(Ask({}));
  EXPECT_EQ(answer.begin.from_seq(), first);
  EXPECT_EQ(answer.begin.to_seq(), session_.last_seq);
  EXPECT_EQ(answer.begin.timeline(), session_.timeline);
  EXPECT_THAT(Paths(answer), ElementsAre("a"));
  EXPECT_EQ(answer.changes[0].between_size(), 0);
  v1::DiffWorkspaceRequest request;
  request.set_detail(v1::DIFF_DETAIL_HISTORY);
  answer = Must(Ask(request));
  ASSERT_THAT(Paths(answer), ElementsAre("a"));
  ASSERT_EQ(answer.changes[0].between_size(), 1);
  EXPECT_NE(answer.changes[0].between(0).content_sha256(),
            answer.changes[0].before().content_sha256());
  EXPECT_NE(answer.changes[0].between(0).content_sha256(),
            answer.changes[0].after().content_sha256());
  EXPECT_THAT(Paths(Diff(second + 1, third - 1, v1::DIFF_DETAIL_UNSPECIFIED)), ElementsAre());
  EXPECT_THAT(Paths(Diff(first, second, v1::DIFF_DETAIL_UNSPECIFIED)), ElementsAre("a", "c"));
  EXPECT_THAT(Paths(Diff(0, first, v1::DIFF_DETAIL_UNSPECIFIED)), ElementsAre("a", "b"));
  request.Clear();
  request.set_to_seq(session_.last_seq + 1);
  EXPECT_EQ(Ask(request).status().code(), absl::StatusCode::kOutOfRange);
  request.Clear();
  request.add_paths("../etc");
  EXPECT_TRUE(absl::IsInvalidArgument(Ask(request).status()));
  request.Clear();
  request.set_from_seq(0);
  request.add_paths("b");
  EXPECT_THAT(Paths(Must(Ask(request))), ElementsAre("b"));
}

TEST_F(WorkspaceDiffTest, GitsOwnFilesAreLeftOutUnlessNamed) {
  const uint64_t from = Save({{"a", "644 1"}, {"sub/.git/config", "644 1"}});
  const uint64_t to =
      Save({{".git/hooks/post-checkout", "755 2"}, {"a", "644 2"}, {"sub/.git/config", "644 2"}});
  const Answer answer = Diff(from, to, v1::DIFF_DETAIL_PATCH);
  EXPECT_THAT(Paths(answer), ElementsAre("a"));
  EXPECT_EQ(answer.begin.left_out(), 4u);  // with two directories
  v1::DiffWorkspaceRequest request;
  request.add_paths("sub/.git");
  EXPECT_THAT(Paths(Must(Ask(request))), ElementsAre("sub/.git/config"));
}

// Made without a folder: everything is the session's.
TEST_F(WorkspaceDiffTest, WithoutAFolderItBeginsEmpty) {
  EXPECT_THAT(Paths(Must(Ask({}))), ElementsAre());
  for (int i = 0; i < 300; ++i) Say();  // more than one reading of the log
  Save({{"a", "644 1"}});
  for (int i = 0; i < 300; ++i) Say();
  const Answer answer = Must(Ask({}));
  EXPECT_EQ(answer.begin.from_seq(), 0u);
  EXPECT_THAT(Paths(answer), ElementsAre("a"));
}

TEST_F(WorkspaceDiffTest, FilesAreReadAsOfAnEvent) {
  Random random(sessions::testing::NewSeed());
  const std::string large = sessions::testing::RandomBytes(random, (3 << 20) + 17);
  const uint64_t first = Save({{"d/f", "644 " + large}, {"l", "-> d/f"}});
  Save({{"d/f", "644 2"}});
  const auto read = [&](const std::string& path, uint64_t seq,
                        uint64_t timeline = 0) -> absl::StatusOr<std::string> {
    v1::ReadWorkspaceFileRequest request;
    request.set_path(path);
    request.set_seq(seq);
    request.set_timeline(timeline);
    std::string bytes;
    RETURN_IF_ERROR(ReadWorkspaceFile(*store_, session_, request, [&](std::string_view piece) {
      EXPECT_LE(piece.size(), size_t{1} << 20);
      bytes += piece;
      return absl::OkStatus();
    }));
    return bytes;
  };
  EXPECT_EQ(Must(read("d/f", first)), large);
  EXPECT_EQ(Must(read("d/f", session_.last_seq, session_.timeline)), "2");
  EXPECT_TRUE(absl::IsNotFound(read("d", first).status()));
  EXPECT_TRUE(absl::IsNotFound(read("l", first).status()));
  EXPECT_TRUE(absl::IsNotFound(read("x", first).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(read("d/f", first, session_.timeline + 1).status()));
}

}  // namespace
}  // namespace agentd::daemon
