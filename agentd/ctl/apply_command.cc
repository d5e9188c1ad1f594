// apply: carries what a session changed into the folder that it came from, or another one.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "agentd/ctl/changes.h"
#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/folder.h"
#include "agentd/ctl/json.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

struct SessionChanges {
  api::DiffBegin begin;
  Changes changes;
};

absl::StatusOr<SessionChanges> ReadChanges(Client* client, const ApplyOptions& options,
                                           const std::string& session_id) {
  api::DiffWorkspaceRequest request;
  request.set_session_id(session_id);
  if (options.at_seq) request.set_to_seq(*options.at_seq);
  for (const std::string& path : options.paths) request.add_paths(path);
  request.set_detail(api::DIFF_DETAIL_HISTORY);
  grpc::ClientContext context;
  const auto stream = client->stub().DiffWorkspace(&context, request);
  SessionChanges read;
  api::DiffWorkspacePart part;
  while (stream->Read(&part)) {
    if (part.has_begin()) read.begin = part.begin();
    if (part.has_change()) read.changes.push_back(std::move(*part.mutable_change()));
  }
  const absl::Status status = client->ToStatus(stream->Finish());
  if (!status.ok()) return status;
  return read;
}

ContentsReader ReaderOf(Client* client, const std::string& session_id,
                        const api::DiffBegin& begin) {
  return [client, session_id, begin](
             const api::WorkspaceChange& change,
             const std::function<absl::Status(std::string_view)>& sink) -> absl::Status {
    api::ReadWorkspaceFileRequest request;
    request.set_session_id(session_id);
    request.set_timeline(begin.timeline());
    request.set_seq(begin.to_seq());
    request.set_path(change.path());
    grpc::ClientContext context;
    const auto stream = client->stub().ReadWorkspaceFile(&context, request);
    api::FileData piece;
    absl::Status written;
    while (written.ok() && stream->Read(&piece)) written = sink(piece.data());
    if (!written.ok()) context.TryCancel();
    const absl::Status read = client->ToStatus(stream->Finish());
    return written.ok() ? read : written;
  };
}

// Where the changes go.
absl::StatusOr<std::string> TargetOf(const ApplyOptions& options, const api::Session& session) {
  std::string target = options.to;
  if (target.empty()) target = session.import_directory();
  if (target.empty()) {
    return InvalidArgument(
        "session {} was not made with a folder of this machine: say where its changes go with "
        "--to DIR",
        session.id());
  }
  std::error_code error;
  const auto path = std::filesystem::canonical(target, error);
  if (error) {
    return InvalidArgument("{}{}: {}", options.to.empty() ? "the session's folder " : "--to ",
                           target, error.message());
  }
  if (session.in_place() && path == session.workspace()) {
    return InvalidArgument("session {} works in {} itself: its changes are there already",
                           session.id(), path.string());
  }
  return path.string();
}

std::string ActionOf(const api::WorkspaceChange& change) {
  if (!change.has_before()) return "new";
  if (!change.has_after()) return "delete";
  return SameContents(change.before(), change.after()) ? "mode" : "change";
}

class Report {
 public:
  explicit Report(const ApplyOptions& options) : options_(options) {}

  void Made(const api::WorkspaceChange& change, const std::string& remark) {
    ++made_;
    Line(options_.dry_run ? "would_apply" : "applied", change, remark);
  }
  void InTheWay(const Conflict& conflict) { Line("conflict", *conflict.change, conflict.why); }

  int End(const Comparison& comparison, const std::string& target, bool refused) {
    const int exit_code = comparison.conflicts.empty() || options_.force ? kAnswer : kConflict;
    if (options_.json) {
      Json line = Json::object();
      line["type"] = "summary";
      line["folder"] = target;
      line["applied"] = options_.dry_run || refused ? 0 : made_;
      line["to_apply"] = comparison.to_do.size();
      line["done_before"] = comparison.done;
      line["conflicts"] = comparison.conflicts.size();
      line["exit_code"] = exit_code;
      fmt::print("{}\n", Dump(line));
    } else if (refused) {
      fmt::print(
          stderr, "{}\n",
          Style::For(stderr).Red(fmt::format(
              "agentctl: {} conflict{} in {}: nothing was written. --skip-conflicts carries "
              "over the rest, --force writes over what is there",
              comparison.conflicts.size(), comparison.conflicts.size() == 1 ? "" : "s", target)));
    } else {
      Aside(fmt::format("{}: {} {}, {} there already, {} conflict{}", target, made_,
                        options_.dry_run ? "to carry over" : "carried over", comparison.done,
                        comparison.conflicts.size(), comparison.conflicts.size() == 1 ? "" : "s"));
    }
    return exit_code;
  }

 private:
  void Line(const std::string& type, const api::WorkspaceChange& change,
            const std::string& remark) {
    if (!options_.json) {
      fmt::print("{:<8} {}{}\n", type == "conflict" ? type : ActionOf(change), ChangedName(change),
                 remark.empty() ? "" : ": " + remark);
      return;
    }
    Json line = Json::object();
    line["type"] = type;
    line["path"] = change.path();
    line["action"] = ActionOf(change);
    line["remark"] = remark;
    fmt::print("{}\n", Dump(line));
  }

  const ApplyOptions& options_;
  size_t made_ = 0;
};

// What is to be made, with the conflicts that --force takes along, in the order of the changes.
std::vector<const api::WorkspaceChange*> Wanted(const Changes& changes,
                                                const Comparison& comparison, bool force) {
  std::set<const api::WorkspaceChange*> wanted(comparison.to_do.begin(), comparison.to_do.end());
  if (force) {
    for (const Conflict& conflict : comparison.conflicts) wanted.insert(conflict.change);
  }
  std::vector<const api::WorkspaceChange*> ordered;
  for (const api::WorkspaceChange& change : changes) {
    if (wanted.contains(&change)) ordered.push_back(&change);
  }
  return ordered;
}

absl::StatusOr<int> Carry(Client* client, const ApplyOptions& options,
                          const api::Session& session) {
  ASSIGN_OR_RETURN(const std::string target, TargetOf(options, session));
  ASSIGN_OR_RETURN(const std::unique_ptr<Folder> folder, Folder::Open(target));
  ASSIGN_OR_RETURN(const SessionChanges read, ReadChanges(client, options, session.id()));
  ASSIGN_OR_RETURN(const Comparison comparison, folder->Compare(read.changes));
  Report report(options);
  if (read.begin.left_out() > 0 && !options.json)
    fmt::print(stderr, "{}\n", LeftOut(read.begin.left_out()));
  bool beyond_force = false;
  for (const Conflict& conflict : comparison.conflicts) {
    report.InTheWay(conflict);
    beyond_force = beyond_force || !conflict.can_force;
  }
  if (options.force && beyond_force) {
    return FailedPrecondition(
        "--force writes over files and links alone, and of the conflicts above some are "
        "directories or lie behind links: nothing was written. Move them away, or carry over the "
        "rest with --skip-conflicts");
  }
  const bool refused = !comparison.conflicts.empty() && !options.force && !options.skip_conflicts &&
                       !options.dry_run;
  if (refused) return report.End(comparison, target, /*refused=*/true);
  const auto wanted = Wanted(read.changes, comparison, options.force);
  const auto told = [&](const api::WorkspaceChange& change, const std::string& remark) {
    report.Made(change, remark);
  };
  if (options.dry_run) {
    for (const api::WorkspaceChange* change : wanted) told(*change, "");
  } else {
    const absl::Status applied =
        folder->Apply(wanted, options.force, ReaderOf(client, session.id(), read.begin), told);
    if (!applied.ok()) {
      std::fflush(stdout);
      return Annotate(applied,
                      "not all was carried over; the same command goes on where it stopped");
    }
  }
  return report.End(comparison, target, /*refused=*/false);
}

}  // namespace

int ApplyCommand(const GlobalOptions& global, const ApplyOptions& options) {
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Refuse(options.json, client.status(), ExitCodeOf(client.status()));
  const auto id = (*client)->Resolve(options.session_id);
  if (!id.ok()) return Refuse(options.json, id.status(), ExitCodeOf(id.status()));
  const auto session = (*client)->GetSession(*id);
  if (!session.ok()) return Refuse(options.json, session.status(), ExitCodeOf(session.status()));
  const absl::StatusOr<int> carried = Carry(client->get(), options, *session);
  if (!carried.ok()) return Refuse(options.json, carried.status(), ExitCodeOf(carried.status()));
  return *carried;
}

}  // namespace agentd::ctl
