// What agentctl diff --stat and --name-only print.
#include <gtest/gtest.h>

#include "agentd/ctl/commands.h"

namespace agentd::ctl {
namespace {

using Changes = std::vector<api::WorkspaceChange>;

api::WorkspaceEntry Entry(api::WorkspaceEntryType type, uint32_t mode, int64_t size = 0) {
  api::WorkspaceEntry entry;
  entry.set_type(type);
  entry.set_mode(mode);
  entry.set_size_bytes(size);
  return entry;
}
const api::WorkspaceEntry kFile = Entry(api::WORKSPACE_ENTRY_TYPE_FILE, 0644, 12);
const api::WorkspaceEntry kDirectory = Entry(api::WORKSPACE_ENTRY_TYPE_DIRECTORY, 0755);

api::WorkspaceChange& Add(Changes& changes, const std::string& path,
                          const api::WorkspaceEntry* before, const api::WorkspaceEntry* after) {
  api::WorkspaceChange& change = changes.emplace_back();
  change.set_path(path);
  if (before != nullptr) *change.mutable_before() = *before;
  if (after != nullptr) *change.mutable_after() = *after;
  return change;
}

Changes Examples() {
  Changes changes;
  api::WorkspaceChange* change = &Add(changes, "a file", &kFile, &kFile);
  change->set_added_lines(30);
  change->set_removed_lines(10);
  Add(changes, "bin", &kFile, &kFile).set_shown(api::DIFF_SHOWN_BINARY);
  Add(changes, "empty", nullptr, &kDirectory);
  const api::WorkspaceEntry executable = Entry(api::WORKSPACE_ENTRY_TYPE_FILE, 0755, 12);
  Add(changes, "mode", &kFile, &executable);
  Add(changes, "new", nullptr, &kDirectory);
  change = &Add(changes, "new/\xc3\xa4", nullptr, &kFile);
  change->set_added_lines(1);
  Add(changes, "old/x", &kFile, nullptr).set_removed_lines(1);
  Add(changes, "old", &kDirectory, nullptr);
  Add(changes, "to", &kFile, &kFile).set_renamed_from("from");
  Add(changes, "void", &kDirectory, nullptr);
  return changes;
}

TEST(DiffTest, StatNamesEveryFileAndFoldersThatNoFileTellsOf) {
  EXPECT_EQ(DiffStat({}, 80), "");
  EXPECT_EQ(DiffStat(Examples(), 36),
            " a file         | 40 ++++++++++---\n"
            " bin            | Bin 12 -> 12 bytes\n"
            " empty/         | new directory\n"
            " mode           | mode 644 -> 755\n"
            " \"new/\\303\\244\" |  1 +\n"
            " old/x          |  1 -\n"
            " from => to     | 0\n"
            " void/          | directory removed\n"
            " 8 files changed, 31 insertions(+), 11 deletions(-)\n");
}

TEST(DiffTest, NamesAreQuotedAsGitDoes) {
  EXPECT_EQ(ChangedNames(Examples()),
            "a file\nbin\nempty/\nmode\n\"new/\\303\\244\"\nold/x\nto\nvoid/\n");
}

}  // namespace
}  // namespace agentd::ctl
