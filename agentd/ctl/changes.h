// Words that diff and apply share about api::WorkspaceChange.
#ifndef AGENTD_CTL_CHANGES_H_
#define AGENTD_CTL_CHANGES_H_

#include <string>
#include <string_view>

#include "agentd/ctl/api.h"
#include "agentd/quoted_path.h"

namespace agentd::ctl {

inline bool IsDirectory(const api::WorkspaceEntry& entry) {
  return entry.type() == api::WORKSPACE_ENTRY_TYPE_DIRECTORY;
}
inline bool IsFile(const api::WorkspaceEntry& entry) {
  return entry.type() == api::WORKSPACE_ENTRY_TYPE_FILE;
}
// The same contents, whatever the mode.
inline bool SameContents(const api::WorkspaceEntry& a, const api::WorkspaceEntry& b) {
  return a.type() == b.type() && a.size_bytes() == b.size_bytes() &&
         a.content_sha256() == b.content_sha256() && a.target() == b.target();
}
inline bool IsBelow(std::string_view path, std::string_view directory) {
  return path.size() > directory.size() && path.starts_with(directory) &&
         path[directory.size()] == '/';
}
// Quoted, a directory's with a slash.
inline std::string ChangedName(const api::WorkspaceChange& change) {
  const api::WorkspaceEntry& entry = change.has_after() ? change.after() : change.before();
  return QuotedPath(IsDirectory(entry) ? change.path() + "/" : change.path());
}

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_CHANGES_H_
