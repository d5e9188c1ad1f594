// What a session changed in its workspace, from the trees that its events name: never from a
// directory in which a call may be at work.
#ifndef AGENTD_AGENTD_WORKSPACE_DIFF_H_
#define AGENTD_AGENTD_WORKSPACE_DIFF_H_

#include <functional>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "agentd/v1/agentd.pb.h"
#include "sessions/store.h"
#include "sessions/tree_diff.h"

namespace agentd::daemon {

// A workspace as it was after an event. No tree: empty.
struct TreePoint {
  uint64_t seq = 0;
  std::optional<sessions::TreeId> tree;
};

// OutOfRange: the session has no such event.
absl::StatusOr<TreePoint> TreeAfter(sessions::Store& store, const sessions::SessionInfo& session,
                                    uint64_t seq);
// As the session was made: with the files of a folder, or empty.
absl::StatusOr<TreePoint> FirstTree(sessions::Store& store, const sessions::SessionInfo& session);

using DiffSink = std::function<absl::Status(const v1::DiffWorkspacePart&)>;

// Answers the request, `begin` first; `sink` may wait. Holds every changed path in memory, and of
// the contents one file's at a time, up to kMaxPatchBytes a side.
absl::Status DiffWorkspace(sessions::Store& store, const sessions::SessionInfo& session,
                           const v1::DiffWorkspaceRequest& request, const DiffSink& sink);

// The file's bytes, in pieces of a MiB at most. NotFound: there is no file of that name.
absl::Status ReadWorkspaceFile(sessions::Store& store, const sessions::SessionInfo& session,
                               const v1::ReadWorkspaceFileRequest& request,
                               const std::function<absl::Status(std::string_view)>& sink);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_WORKSPACE_DIFF_H_
