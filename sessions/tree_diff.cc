#include "sessions/tree_diff.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace agentd::sessions {
namespace {

using Type = TreeEntry::Type;

bool IsDirectory(const std::optional<TreeEntry>& entry) {
  return entry.has_value() && entry->type == Type::kDirectory;
}

// Of a directory what is in it does not count.
bool SameEntry(const TreeEntry& a, const TreeEntry& b) {
  if (a.type != Type::kDirectory || b.type != Type::kDirectory) return a == b;
  return a.mode == b.mode;
}

bool IsBelow(std::string_view path, std::string_view directory) {
  return path.size() > directory.size() && path.starts_with(directory) &&
         path[directory.size()] == '/';
}

class TreeWalk {
 public:
  TreeWalk(Store& store, const PathFilter& filter,
           const std::function<absl::Status(const TreeChange&)>& visit)
      : store_(store), filter_(filter), visit_(visit) {}

  absl::Status Directories(const std::optional<TreeId>& before, const std::optional<TreeId>& after,
                           const std::string& path) {
    if (before == after) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::vector<TreeEntry> old_entries, Read(before));
    ASSIGN_OR_RETURN(std::vector<TreeEntry> new_entries, Read(after));
    auto old_one = old_entries.begin();
    auto new_one = new_entries.begin();
    while (old_one != old_entries.end() || new_one != new_entries.end()) {
      const bool old_first = new_one == new_entries.end() ||
                             (old_one != old_entries.end() && old_one->name <= new_one->name);
      const bool new_first = old_one == old_entries.end() ||
                             (new_one != new_entries.end() && new_one->name <= old_one->name);
      TreeChange change;
      if (old_first) change.before = std::move(*old_one++);
      if (new_first) change.after = std::move(*new_one++);
      const std::string& name = change.before ? change.before->name : change.after->name;
      change.path = path.empty() ? name : path + "/" + name;
      RETURN_IF_ERROR(Entry(change));
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::vector<TreeEntry>> Read(const std::optional<TreeId>& directory) {
    if (!directory.has_value()) return std::vector<TreeEntry>();
    return store_.ReadTreeDirectory(*directory);
  }

  absl::Status Entry(const TreeChange& change) {
    if (change.before == change.after || !filter_.LeadsTo(change.path)) return absl::OkStatus();
    const bool differs = !change.before.has_value() || !change.after.has_value() ||
                         !SameEntry(*change.before, *change.after);
    const bool report = differs && filter_.Wants(change.path);
    const bool stays = IsDirectory(change.after);
    if (report && stays) RETURN_IF_ERROR(visit_(change));
    if (IsDirectory(change.before) || IsDirectory(change.after))
      RETURN_IF_ERROR(Directories(IdOf(change.before), IdOf(change.after), change.path));
    return report && !stays ? visit_(change) : absl::OkStatus();
  }

  static std::optional<TreeId> IdOf(const std::optional<TreeEntry>& entry) {
    return IsDirectory(entry) ? std::optional<TreeId>(entry->parts.at(0)) : std::nullopt;
  }

  Store& store_;
  const PathFilter& filter_;
  const std::function<absl::Status(const TreeChange&)>& visit_;
};

}  // namespace

absl::StatusOr<PathFilter> PathFilter::Of(const std::vector<std::string>& paths) {
  PathFilter filter;
  for (const std::string& path : paths) {
    std::string kept;
    if (path.empty() || path.front() == '/' || path.find('\0') != std::string::npos) {
      return InvalidArgument("paths: \"{}\" is no path in the workspace; give one like src/main.cc",
                             path);
    }
    for (size_t at = 0; at < path.size();) {
      const size_t end = std::min(path.find('/', at), path.size());
      const std::string name = path.substr(at, end - at);
      at = end + 1;
      if (name == "..") return InvalidArgument("paths: \"{}\" leads out of the workspace", path);
      if (!name.empty() && name != ".") kept += (kept.empty() ? "" : "/") + name;
    }
    if (kept.empty()) return PathFilter();  // the whole tree
    filter.paths_.push_back(std::move(kept));
  }
  return filter;
}

bool PathFilter::Wants(std::string_view path) const {
  return paths_.empty() || std::any_of(paths_.begin(), paths_.end(), [&](const std::string& one) {
           return path == one || IsBelow(path, one);
         });
}

bool PathFilter::LeadsTo(std::string_view directory) const {
  return Wants(directory) || std::any_of(paths_.begin(), paths_.end(), [&](const std::string& one) {
           return IsBelow(one, directory);
         });
}

absl::Status DiffTrees(Store& store, const std::optional<TreeId>& before,
                       const std::optional<TreeId>& after, const PathFilter& filter,
                       const std::function<absl::Status(const TreeChange&)>& visit) {
  return TreeWalk(store, filter, visit).Directories(before, after, "");
}

absl::StatusOr<std::optional<TreeEntry>> FindInTree(Store& store, const TreeId& tree,
                                                    std::string_view path) {
  TreeId directory = tree;
  for (;;) {
    const size_t slash = path.find('/');
    const std::string_view name = path.substr(0, slash);
    ASSIGN_OR_RETURN(std::vector<TreeEntry> entries, store.ReadTreeDirectory(directory));
    const auto found = std::find_if(entries.begin(), entries.end(),
                                    [&](const TreeEntry& entry) { return entry.name == name; });
    if (found == entries.end()) return std::optional<TreeEntry>();
    if (slash == std::string_view::npos) return std::optional<TreeEntry>(std::move(*found));
    if (found->type != Type::kDirectory) return std::optional<TreeEntry>();
    directory = found->parts.at(0);
    path.remove_prefix(slash + 1);
  }
}

}  // namespace agentd::sessions
