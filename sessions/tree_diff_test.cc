// Differences of random trees, against a model: what they say, applied to the one, gives the other.
#include "sessions/tree_diff.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <map>

#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using testing::Below;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Must;
using testing::Options;
using testing::Random;
using Type = TreeEntry::Type;

// A node as a test thinks of it; what is in a directory is in the paths.
struct Node {
  Type type = Type::kFile;
  uint32_t mode = 0;
  std::string text;  // contents, or a link's target
  friend bool operator==(const Node&, const Node&) = default;
};
using Tree = std::map<std::string, Node>;

Tree RandomTree(Random& random) {
  Tree tree;
  const auto add = [&](auto& self, const std::string& directory, int depth) -> void {
    for (int64_t i = Below(random, 5); i > 0; --i) {
      const std::string path = directory + std::string(1, "abc.- "[Below(random, 6)]) +
                               std::string(1, "xy"[Below(random, 2)]);
      Node node;
      const int64_t kind = Below(random, depth > 0 ? 6 : 4);
      node.type = kind > 3 ? Type::kDirectory : kind == 3 ? Type::kSymlink : Type::kFile;
      node.mode = node.type == Type::kSymlink ? 0
                  : Below(random, 2) == 0     ? 0700
                  : node.type == Type::kFile  ? 0644
                                              : 0755;
      if (node.type != Type::kDirectory) node.text = std::to_string(Below(random, 3) + 1);
      if (!tree.emplace(path, node).second || node.type != Type::kDirectory) continue;
      self(self, path + "/", depth - 1);
    }
  };
  add(add, "", 3);
  return tree;
}

void Materialise(const Tree& tree, const std::filesystem::path& root) {
  std::filesystem::remove_all(root);
  std::filesystem::create_directories(root);
  for (const auto& [path, node] : tree) {
    if (node.type == Type::kDirectory) {
      std::filesystem::create_directory(root / path);
    } else if (node.type == Type::kSymlink) {
      std::filesystem::create_symlink(node.text, root / path);
      continue;
    } else {
      std::ofstream(root / path) << node.text;
    }
    ASSERT_EQ(::chmod((root / path).c_str(), node.mode), 0);
  }
}

class TreeDiffTest : public ::testing::Test {
 protected:
  WorkspaceSnapshot Snapshot(const Tree& tree) {
    Materialise(tree, directory_.path() / "tree");
    return Must(store_->SnapshotWorkspace(directory_.path() / "tree"));
  }
  std::vector<TreeChange> Diff(const std::optional<TreeId>& before,
                               const std::optional<TreeId>& after, const PathFilter& filter = {}) {
    std::vector<TreeChange> changes;
    EXPECT_OK(DiffTrees(*store_, before, after, filter, [&](const TreeChange& change) {
      changes.push_back(change);
      return absl::OkStatus();
    }));
    return changes;
  }
  std::optional<Node> ToNode(const std::optional<TreeEntry>& entry) {
    if (!entry) return std::nullopt;
    Node node{entry->type, entry->mode, entry->target};
    if (entry->type == Type::kFile) {
      for (const Sha256Digest& part : entry->parts) node.text += Must(store_->ReadFilePart(part));
      EXPECT_EQ(node.text.size(), entry->size_bytes);
    }
    return node;
  }

  testing::TemporaryDirectory directory_;
  std::unique_ptr<Store> store_ = Must(Store::Open(directory_.path() / "store", Options()));
};

TEST_F(TreeDiffTest, AppliedToOneRandomTreeGivesTheOther) {
  Random random(testing::NewSeed());
  for (int round = 0; round < (kSanitized ? 20 : 150); ++round) {
    const Tree before = RandomTree(random);
    Tree after = RandomTree(random);
    // Mostly alike, as a workspace is before and after a call.
    if (round % 2 == 0) {
      for (const auto& [path, node] : before) {
        const size_t slash = path.rfind('/');
        const auto parent = after.find(path.substr(0, slash));
        const bool fits = slash == std::string::npos ||
                          (parent != after.end() && parent->second.type == Type::kDirectory);
        if (fits && Below(random, 4) != 0) after.emplace(path, node);
      }
    }
    const WorkspaceSnapshot old_tree = Snapshot(before);
    const WorkspaceSnapshot new_tree = Snapshot(after);
    Tree applied = before;
    for (const TreeChange& change : Diff(old_tree.tree, new_tree.tree)) {
      const auto found = applied.find(change.path);
      const std::optional<Node> was = ToNode(change.before);
      ASSERT_EQ(found != applied.end(), was.has_value()) << change.path;
      if (was) {
        ASSERT_EQ(found->second, *was) << change.path;
      }
      const std::optional<Node> now = ToNode(change.after);
      ASSERT_NE(was, now) << change.path;
      if (now) {
        // A directory comes before what is in it, and goes after that.
        const size_t slash = change.path.rfind('/');
        if (slash != std::string::npos) {
          ASSERT_EQ(applied.at(change.path.substr(0, slash)).type, Type::kDirectory);
        }
        applied[change.path] = *now;
      } else {
        applied.erase(change.path);
        const auto below = applied.lower_bound(change.path + "/");
        ASSERT_TRUE(below == applied.end() || !below->first.starts_with(change.path + "/"));
      }
    }
    ASSERT_EQ(applied, after) << "round " << round;
  }
}

TEST_F(TreeDiffTest, FiltersAndSingleEntries) {
  const Tree tree = {{"a", {Type::kDirectory, 0755, ""}},
                     {"a/b", {Type::kDirectory, 0755, ""}},
                     {"a/b/c", {Type::kFile, 0644, "1"}},
                     {"a/bc", {Type::kFile, 0644, "2"}},
                     {"d", {Type::kSymlink, 0, "a"}}};
  const WorkspaceSnapshot snapshot = Snapshot(tree);
  const auto paths = [&](const std::vector<std::string>& wanted) {
    std::vector<std::string> out;
    for (const TreeChange& change :
         Diff(std::nullopt, snapshot.tree, Must(PathFilter::Of(wanted)))) {
      out.push_back(change.path);
    }
    return out;
  };
  EXPECT_THAT(paths({}), ElementsAre("a", "a/b", "a/b/c", "a/bc", "d"));
  EXPECT_THAT(paths({"a/b/"}), ElementsAre("a/b", "a/b/c"));
  EXPECT_THAT(paths({"./a//b/c", "d"}), ElementsAre("a/b/c", "d"));
  EXPECT_THAT(paths({"."}), ElementsAre("a", "a/b", "a/b/c", "a/bc", "d"));
  EXPECT_THAT(paths({"nothing"}), ElementsAre());
  for (const char* bad : {"", "/a", "a/../..", ".."}) {
    EXPECT_TRUE(absl::IsInvalidArgument(PathFilter::Of({bad}).status())) << bad;
  }
  EXPECT_EQ(ToNode(Must(FindInTree(*store_, snapshot.tree, "a/b/c"))), tree.at("a/b/c"));
  EXPECT_EQ(ToNode(Must(FindInTree(*store_, snapshot.tree, "d"))), tree.at("d"));
  for (const char* nothing : {"x", "a/x", "d/b", "a/b/c/d", ""}) {
    EXPECT_EQ(Must(FindInTree(*store_, snapshot.tree, nothing)), std::nullopt) << nothing;
  }
}

TEST_F(TreeDiffTest, WhatIsNotStoredIsNamed) {
  TreeId unknown{};
  const absl::Status status = DiffTrees(*store_, std::nullopt, unknown, {},
                                        [](const TreeChange&) { return absl::OkStatus(); });
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("is missing"));
}

}  // namespace
}  // namespace agentd::sessions
