// A session's workspace, and the folder that it came from or is.
#include <spdlog/spdlog.h>

#include <system_error>
#include <utility>
#include <vector>

#include "agentd/daemon.h"
#include "agentd/event_kinds.h"
#include "agentd/hold.h"
#include "agentd/quoted_path.h"
#include "agentd/rpc_status.h"
#include "agentd/utf8.h"
#include "agentd/workspace_diff.h"
#include "agentd/workspace_import.h"
#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/tree_diff.h"

namespace agentd::daemon {
namespace {

using sessions::NewEvent;
using sessions::internal::CrashPoint;

constexpr size_t kNamedPaths = 5;

// "3 paths: a, b, ..."
absl::StatusOr<std::string> WhatChanged(sessions::Store& store,
                                        const std::optional<sessions::TreeId>& before,
                                        const sessions::TreeId& after) {
  size_t count = 0;
  std::string names;
  RETURN_IF_ERROR(
      sessions::DiffTrees(store, before, after, {}, [&](const sessions::TreeChange& change) {
        if (++count <= kNamedPaths) names += (names.empty() ? "" : ", ") + QuotedPath(change.path);
        return absl::OkStatus();
      }));
  if (count > kNamedPaths) names += ", ...";
  return fmt::format("{} {}: {}", count, count == 1 ? "path" : "paths", names);
}

}  // namespace

// ---- what changed

// What the store says of a session that clients may know.
absl::StatusOr<sessions::SessionInfo> Daemon::Stored(const std::string& session_id) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Session> session, Find(session_id));
  {
    std::lock_guard lock(session->mutex);
    if (session->meta.phase() == v1::SessionMeta::IMPORTING)
      return NotFound("session {} does not exist", session_id);
  }
  return store_->Get(session_id);
}

absl::Status Daemon::DiffWorkspace(
    const v1::DiffWorkspaceRequest& request,
    const std::function<absl::Status(const v1::DiffWorkspacePart&)>& sink) {
  ASSIGN_OR_RETURN(const sessions::SessionInfo session, Stored(request.session_id()));
  return daemon::DiffWorkspace(*store_, session, request, sink);
}

absl::Status Daemon::ReadWorkspaceFile(const v1::ReadWorkspaceFileRequest& request,
                                       const std::function<absl::Status(std::string_view)>& sink) {
  ASSIGN_OR_RETURN(const sessions::SessionInfo session, Stored(request.session_id()));
  return daemon::ReadWorkspaceFile(*store_, session, request, sink);
}

// ---- new sessions

absl::Status Daemon::FillWorkspace(Session& session, const v1::CreateSessionRequest& request) {
  if (request.in_place()) {
    RETURN_IF_ERROR(places_->Claim(session.id, session.meta.import_directory()));
    CrashPoint("agentd.claimed");
  }
  const std::filesystem::path workspace = runtime_.WorkspaceOf(session.id);
  if (!request.in_place()) {
    std::error_code error;
    std::filesystem::create_directories(workspace, error);
    if (error) return ErrnoError(error.value(), "create directory " + workspace.string());
    // No tree means an empty workspace.
    if (request.import_directory().empty()) return absl::OkStatus();
    RETURN_IF_ERROR(ImportDirectory(request.import_directory(), workspace, options_.data));
  }
  CrashPoint("agentd.imported");
  ASSIGN_OR_RETURN(sessions::WorkspaceSnapshot snapshot, store_->SnapshotWorkspace(workspace));
  ASSIGN_OR_RETURN(Hold hold, Acquire(session.id));
  RETURN_IF_ERROR(Commit(hold, {NewEvent::Workspace(snapshot)}, v1::SessionMeta::IDLE));
  hold.hot->workspace_ready = true;
  hold.hot->workspace_size = {snapshot.allocated_bytes, snapshot.entries};
  return absl::OkStatus();
}

// ---- folders that sessions work in

// Of sessions that are no more: a crash came between the two.
absl::Status Daemon::ReleasePlaces() {
  for (const std::string& id : places_->sessions()) {
    if (absl::IsNotFound(store_->Get(id).status())) RETURN_IF_ERROR(places_->Release(id));
  }
  return absl::OkStatus();
}

// What others changed in the folder since the session's last event is part of its work from here
// on. Where a call was cut off, what is found may be its half: that goes into the log too, and then
// the tree from before it is the newest again, from which it runs anew.
absl::Status Daemon::TakeInChanges(Hold& hold) {
  const std::string& id = hold.session->id;
  HotState& hot = *hold.hot;
  if (!places_->Of(id)) return absl::OkStatus();
  RETURN_IF_ERROR(places_->Lock(id));
  if (!hot.workspace_ready) RETURN_IF_ERROR(WaitForEarlierLife(runtime_, id));
  const std::filesystem::path folder = runtime_.WorkspaceOf(id);
  ASSIGN_OR_RETURN(const sessions::WorkspaceSnapshot found,
                   Noted(store_->SnapshotWorkspace(folder)));
  const std::optional<sessions::TreeId> known = hot.transcript.workspace();
  const bool half_done = hot.transcript.call_cut_off();
  hot.workspace_size = {found.allocated_bytes, found.entries};
  if (found.tree != known) {
    ASSIGN_OR_RETURN(const std::string what, WhatChanged(*store_, known, found.tree));
    v1::Note note;
    note.set_text(ValidUtf8(fmt::format(
        "{} was changed outside the session since its last event ({}){}", folder.string(), what,
        half_done ? ", or by a call that was cut off: it is put back for that to run again" : "")));
    std::vector<NewEvent> events = {MakeEvent(note), NewEvent::Workspace(found)};
    if (half_done && known) events.push_back(NewEvent::Workspace(*known));
    v1::SessionMeta::Phase phase;
    {
      std::lock_guard lock(hold.session->mutex);
      phase = hold.session->meta.phase();
    }
    RETURN_IF_ERROR(Commit(hold, std::move(events), phase));
    CrashPoint("agentd.changes_taken_in");
  }
  if (hot.workspace_ready || (half_done && found.tree != known)) return absl::OkStatus();
  RETURN_IF_ERROR(ForgetOutputs(runtime_, id, hot));
  hot.workspace_ready = true;
  return absl::OkStatus();
}

// A fork of a session as it is now has the folder as it is now, unless a turn is at work in it.
absl::Status Daemon::TakeInBeforeFork(const std::string& session_id) {
  absl::StatusOr<Hold> hold = Acquire(session_id);
  if (!hold.ok())
    return absl::IsFailedPrecondition(hold.status()) ? absl::OkStatus() : hold.status();
  if (!places_->Lock(session_id).ok()) return absl::OkStatus();  // the fork is the way out
  return TakeInChanges(*hold);
}

// In place a rewind writes over the user's own files: not over those that no event has, and not to
// before there were any.
absl::Status Daemon::CheckRewind(Hold& hold, const sessions::Point& point, bool discard_changes) {
  const std::string& id = hold.session->id;
  if (!places_->Of(id)) return absl::OkStatus();
  if (point.seq && *point.seq == 0) {
    return InvalidArgument(
        "to: session {} works in {}, whose files are its event 1: rewind to that at the earliest",
        id, runtime_.WorkspaceOf(id).string());
  }
  // What goes is in the log first, though of a past that is left.
  if (discard_changes || hold.hot->transcript.call_cut_off()) return TakeInChanges(hold);
  RETURN_IF_ERROR(places_->Lock(id));
  const std::filesystem::path folder = runtime_.WorkspaceOf(id);
  ASSIGN_OR_RETURN(const sessions::WorkspaceSnapshot found,
                   Noted(store_->SnapshotWorkspace(folder)));
  const std::optional<sessions::TreeId> known = hold.hot->transcript.workspace();
  if (found.tree == known) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string what, WhatChanged(*store_, known, found.tree));
  return WithReason(
      FailedPrecondition("session {}: {} was changed outside the session since its last event "
                         "({}), and a rewind would undo that too",
                         id, folder.string(), what),
      "FOLDER_CHANGED");
}

}  // namespace agentd::daemon
