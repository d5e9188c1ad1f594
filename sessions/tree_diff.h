// What differs between two workspace trees, and single entries of one. Reads the store alone, and
// of it only the directories that differ: what two trees share is recognised by its digest.
#ifndef AGENTD_SESSIONS_TREE_DIFF_H_
#define AGENTD_SESSIONS_TREE_DIFF_H_

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/store.h"

namespace agentd::sessions {

// A path ("src/main.cc") whose entry is there in one tree only or differs. A directory is one if
// it is there in one tree only or its mode differs, not for what is in it.
struct TreeChange {
  std::string path;
  std::optional<TreeEntry> before, after;
};

// Paths to look at, and all below them; none: everything. A value.
class PathFilter {
 public:
  PathFilter() = default;
  // InvalidArgument: a path that is absolute, leaves the tree or is no path. "." and trailing
  // slashes are taken away.
  static absl::StatusOr<PathFilter> Of(const std::vector<std::string>& paths);
  bool Wants(std::string_view path) const;
  // `directory` is wanted or leads to what is.
  bool LeadsTo(std::string_view directory) const;

 private:
  std::vector<std::string> paths_;  // none: everything
};

// Calls `visit` for each change, by name within a directory: a new directory before what is in it,
// one that is gone after that. nullopt: an empty tree. An error of `visit` ends it. DataLoss names
// the damaged piece.
absl::Status DiffTrees(Store& store, const std::optional<TreeId>& before,
                       const std::optional<TreeId>& after, const PathFilter& filter,
                       const std::function<absl::Status(const TreeChange&)>& visit);

// nullopt: there is nothing at `path` ("src/main.cc").
absl::StatusOr<std::optional<TreeEntry>> FindInTree(Store& store, const TreeId& tree,
                                                    std::string_view path);

}  // namespace agentd::sessions

#endif  // AGENTD_SESSIONS_TREE_DIFF_H_
