#include "agentd/workspace_diff.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "agentd/content_hash.h"
#include "agentd/file_patch.h"
#include "agentd/quoted_path.h"
#include "agentd/rpc_status.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

using sessions::PathFilter;
using sessions::TreeChange;
using sessions::TreeEntry;
using sessions::TreeId;
using Type = TreeEntry::Type;

constexpr uint64_t kEventsPerPage = 256;
constexpr size_t kPatchPieceBytes = 1 << 20;

std::optional<TreeId> TreeOf(const sessions::Event& event) {
  if (event.kind != static_cast<uint8_t>(sessions::EventKind::kWorkspace) ||
      event.payload.size() != sizeof(TreeId)) {
    return std::nullopt;
  }
  TreeId tree;
  std::copy(event.payload.begin(), event.payload.end(), tree.begin());
  return tree;
}

// A path and what became of it; with another path it was renamed.
struct Change : TreeChange {
  std::string renamed_from;
};

v1::WorkspaceEntry ToMessage(const TreeEntry& entry) {
  v1::WorkspaceEntry out;
  out.set_type(static_cast<v1::WorkspaceEntryType>(entry.type));
  out.set_mode(entry.mode);
  if (entry.type == Type::kSymlink) out.set_target(entry.target);
  if (entry.type != Type::kFile) return out;
  out.set_size_bytes(static_cast<int64_t>(entry.size_bytes));
  ContentHash hash;
  for (const Sha256Digest& part : entry.parts) hash.AddPart(part);
  out.set_content_sha256(hash.Finish());
  return out;
}

bool IsDirectory(const std::optional<TreeEntry>& entry) {
  return entry.has_value() && entry->type == Type::kDirectory;
}

// Git's own files, of a repository in the workspace.
bool IsInGit(const std::string& path) {
  return ("/" + path + "/").find("/.git/") != std::string::npos;
}

bool SameContents(const TreeEntry& a, const TreeEntry& b) {
  return a.type == b.type && a.size_bytes == b.size_bytes && a.parts == b.parts &&
         a.target == b.target;
}

// ---- renames

// A file in the place of a directory or the other way round: what is below is no part of a rename.
std::set<std::string> ReplacedPaths(const std::vector<Change>& changes) {
  std::set<std::string> replaced;
  for (const Change& change : changes) {
    if (change.before && change.after && IsDirectory(change.before) != IsDirectory(change.after))
      replaced.insert(change.path);
  }
  return replaced;
}

bool IsBelowAny(const std::string& path, const std::set<std::string>& directories) {
  for (size_t at = path.find('/'); at != std::string::npos; at = path.find('/', at + 1)) {
    if (directories.contains(path.substr(0, at))) return true;
  }
  return false;
}

// A file that is gone and one that is new with the very contents are one that was renamed.
void FindRenames(std::vector<Change>& changes) {
  using Contents = std::vector<Sha256Digest>;
  const std::set<std::string> replaced = ReplacedPaths(changes);
  const auto is_candidate = [&](const Change& change, const std::optional<TreeEntry>& entry) {
    return change.before.has_value() != change.after.has_value() && entry.has_value() &&
           entry->type == Type::kFile && entry->size_bytes > 0 &&
           !IsBelowAny(change.path, replaced);
  };
  std::map<Contents, std::deque<Change*>> gone;
  for (Change& change : changes) {
    if (is_candidate(change, change.before)) gone[change.before->parts].push_back(&change);
  }
  for (Change& change : changes) {
    if (!is_candidate(change, change.after)) continue;
    const auto found = gone.find(change.after->parts);
    if (found == gone.end() || found->second.empty()) continue;
    Change& source = *found->second.front();
    found->second.pop_front();
    change.renamed_from = source.path;
    change.before = std::move(source.before);
    source.before.reset();
  }
  std::erase_if(changes, [](const Change& change) { return !change.before && !change.after; });
}

// ---- states in between

// The states that paths had at events between the two, for who has to know whether what he finds
// is the session's work. By path, each once.
using History = std::map<std::string, std::vector<TreeEntry>>;

absl::StatusOr<History> ReadHistory(sessions::Store& store, const sessions::SessionInfo& session,
                                    const TreePoint& from, const TreePoint& to,
                                    const PathFilter& filter) {
  History history;
  std::optional<TreeId> last = from.tree;
  const auto note = [&](const TreeChange& change) {
    if (!change.after) return absl::OkStatus();
    std::vector<TreeEntry>& states = history[change.path];
    if (std::find(states.begin(), states.end(), *change.after) == states.end())
      states.push_back(*change.after);
    return absl::OkStatus();
  };
  for (uint64_t next = from.seq + 1; next <= to.seq;) {
    ASSIGN_OR_RETURN(
        const std::vector<sessions::Event> events,
        store.ReadEvents(session.timeline, next,
                         static_cast<int>(std::min(kEventsPerPage, to.seq - next + 1))));
    if (events.empty()) return DataLoss("session {}: event {} is missing", session.id, next);
    for (const sessions::Event& event : events) {
      const std::optional<TreeId> tree = TreeOf(event);
      if (!tree.has_value()) continue;
      RETURN_IF_ERROR(sessions::DiffTrees(store, last, tree, filter, note));
      last = tree;
    }
    next = events.back().seq + 1;
  }
  return history;
}

// ---- text

absl::StatusOr<std::string> ReadContents(sessions::Store& store, const TreeEntry& file) {
  std::string contents;
  contents.reserve(file.size_bytes);
  for (const Sha256Digest& part : file.parts) {
    ASSIGN_OR_RETURN(const std::string bytes, store.ReadFilePart(part));
    contents += bytes;
  }
  return contents;
}

class Differ {
 public:
  Differ(sessions::Store& store, const v1::DiffWorkspaceRequest& request, const DiffSink& sink)
      : store_(store),
        lines_(request.detail() == v1::DIFF_DETAIL_LINES ||
               request.detail() == v1::DIFF_DETAIL_PATCH),
        options_{.text = request.detail() == v1::DIFF_DETAIL_PATCH, .binary = request.binary()},
        sink_(sink) {}

  absl::Status Send(const Change& change, const std::vector<TreeEntry>* between) {
    v1::DiffWorkspacePart part;
    v1::WorkspaceChange& out = *part.mutable_change();
    out.set_path(change.path);
    out.set_renamed_from(change.renamed_from);
    if (change.before) *out.mutable_before() = ToMessage(*change.before);
    if (change.after) *out.mutable_after() = ToMessage(*change.after);
    if (between != nullptr) {
      for (const TreeEntry& entry : *between) {
        if (entry != change.before && entry != change.after) *out.add_between() = ToMessage(entry);
      }
    }
    std::string text;
    if (lines_) {
      ASSIGN_OR_RETURN(text, Compare(change, out));
    }
    RETURN_IF_ERROR(sink_(part));
    for (size_t at = 0; at < text.size(); at += kPatchPieceBytes) {
      part.set_patch(text.substr(at, kPatchPieceBytes));
      RETURN_IF_ERROR(sink_(part));
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::string> Compare(const Change& change, v1::WorkspaceChange& out) {
    const bool old_file = change.before && !IsDirectory(change.before);
    const bool new_file = change.after && !IsDirectory(change.after);
    std::string text;
    // A patch knows files alone; these lines it passes over.
    if (options_.text && !old_file && !new_file) return DirectoryLine(change);
    if (old_file && new_file && change.before->type == change.after->type) {
      RETURN_IF_ERROR(Add(change, change.before, change.after, out, text));
      return text;
    }
    if (old_file) RETURN_IF_ERROR(Add(change, change.before, std::nullopt, out, text));
    if (new_file) RETURN_IF_ERROR(Add(change, std::nullopt, change.after, out, text));
    return text;
  }

  absl::Status Add(const Change& change, const std::optional<TreeEntry>& before,
                   const std::optional<TreeEntry>& after, v1::WorkspaceChange& out,
                   std::string& text) {
    const bool same = before && after && SameContents(*before, *after);
    std::optional<PatchSide> old_side, new_side;
    if (before) {
      const std::string& path = change.renamed_from.empty() ? change.path : change.renamed_from;
      ASSIGN_OR_RETURN(old_side, Side(path, *before, !same));
    }
    if (after) {
      ASSIGN_OR_RETURN(new_side, Side(change.path, *after, !same));
    }
    ASSIGN_OR_RETURN(const FilePatch patch, MakeFilePatch(old_side, new_side, same, options_));
    out.set_shown(static_cast<v1::DiffShown>(
        std::max(static_cast<int>(out.shown()), static_cast<int>(patch.shown))));
    out.set_added_lines(out.added_lines() + patch.added_lines);
    out.set_removed_lines(out.removed_lines() + patch.removed_lines);
    text += patch.text;
    return absl::OkStatus();
  }

  absl::StatusOr<PatchSide> Side(const std::string& path, const TreeEntry& entry,
                                 bool with_contents) {
    PatchSide side;
    side.path = path;
    if (entry.type == Type::kSymlink) {
      side.git_mode = 0120000;
      side.size_bytes = entry.target.size();
      side.contents = entry.target;
      return side;
    }
    side.git_mode = 0100000 | entry.mode;
    side.size_bytes = entry.size_bytes;
    if (with_contents && entry.size_bytes <= kMaxPatchBytes) {
      ASSIGN_OR_RETURN(side.contents, ReadContents(store_, entry));
    }
    return side;
  }

  absl::StatusOr<std::string> DirectoryLine(const Change& change) {
    const std::string name = QuotedPath(change.path);
    if (change.before && change.after) {
      return fmt::format("Mode of directory {}: {:o}, was {:o}\n", name, change.after->mode,
                         change.before->mode);
    }
    const TreeEntry& entry = change.before ? *change.before : *change.after;
    ASSIGN_OR_RETURN(const std::vector<TreeEntry> below,
                     store_.ReadTreeDirectory(entry.parts.at(0)));
    if (!below.empty()) return std::string();  // its files tell
    return fmt::format("{} empty directory: {}\n", change.before ? "Removed" : "New", name);
  }

  sessions::Store& store_;
  const bool lines_;
  const PatchOptions options_;
  const DiffSink& sink_;
};

}  // namespace

absl::StatusOr<TreePoint> TreeAfter(sessions::Store& store, const sessions::SessionInfo& session,
                                    uint64_t seq) {
  if (seq > session.last_seq) {
    return Error(absl::StatusCode::kOutOfRange, "session {} has no event {}; its last is {}",
                 session.id, seq, session.last_seq);
  }
  // Backwards: the tree is that of the last event that names one.
  for (uint64_t end = seq; end > 0;) {
    const uint64_t begin = end > kEventsPerPage ? end - kEventsPerPage + 1 : 1;
    ASSIGN_OR_RETURN(const std::vector<sessions::Event> events,
                     store.ReadEvents(session.timeline, begin, static_cast<int>(end - begin + 1)));
    for (auto event = events.rbegin(); event != events.rend(); ++event) {
      if (const std::optional<TreeId> tree = TreeOf(*event)) return TreePoint{seq, tree};
    }
    end = begin - 1;
  }
  return TreePoint{seq, std::nullopt};
}

// A session that was made with a folder has its tree as its first event.
absl::StatusOr<TreePoint> FirstTree(sessions::Store& store, const sessions::SessionInfo& session) {
  if (session.last_seq == 0) return TreePoint{};
  ASSIGN_OR_RETURN(TreePoint first, TreeAfter(store, session, 1));
  return first.tree.has_value() ? first : TreePoint{};
}

absl::Status DiffWorkspace(sessions::Store& store, const sessions::SessionInfo& session,
                           const v1::DiffWorkspaceRequest& request, const DiffSink& sink) {
  if (!v1::DiffDetail_IsValid(request.detail()))
    return InvalidArgument("detail: {} is none", static_cast<int>(request.detail()));
  ASSIGN_OR_RETURN(const PathFilter filter,
                   PathFilter::Of({request.paths().begin(), request.paths().end()}));
  TreePoint from;
  if (request.has_from_seq()) {
    ASSIGN_OR_RETURN(from, TreeAfter(store, session, request.from_seq()));
  } else {
    ASSIGN_OR_RETURN(from, FirstTree(store, session));
  }
  ASSIGN_OR_RETURN(
      const TreePoint to,
      TreeAfter(store, session, request.has_to_seq() ? request.to_seq() : session.last_seq));
  v1::DiffWorkspacePart part;
  v1::DiffBegin& begin = *part.mutable_begin();
  const bool with_git = std::any_of(request.paths().begin(), request.paths().end(), IsInGit);
  std::vector<Change> changes;
  RETURN_IF_ERROR(
      sessions::DiffTrees(store, from.tree, to.tree, filter, [&](const TreeChange& change) {
        if (with_git || !IsInGit(change.path)) {
          changes.push_back({change, ""});
        } else {
          begin.set_left_out(begin.left_out() + 1);
        }
        return absl::OkStatus();
      }));
  begin.set_from_seq(from.seq);
  begin.set_to_seq(to.seq);
  begin.set_timeline(session.timeline);
  RETURN_IF_ERROR(sink(part));
  History history;
  const bool with_history = request.detail() == v1::DIFF_DETAIL_HISTORY;
  if (with_history) {
    ASSIGN_OR_RETURN(history, ReadHistory(store, session, from, to, filter));
  } else {
    FindRenames(changes);
  }
  Differ differ(store, request, sink);
  for (const Change& change : changes) {
    const auto between = history.find(change.path);
    RETURN_IF_ERROR(differ.Send(change, between == history.end() ? nullptr : &between->second));
  }
  return absl::OkStatus();
}

absl::Status ReadWorkspaceFile(sessions::Store& store, const sessions::SessionInfo& session,
                               const v1::ReadWorkspaceFileRequest& request,
                               const std::function<absl::Status(std::string_view)>& sink) {
  if (request.timeline() != 0 && request.timeline() != session.timeline) {
    return WithReason(
        FailedPrecondition("session {}: it was rewound meanwhile; begin again", session.id),
        "REWOUND");
  }
  ASSIGN_OR_RETURN(const TreePoint point, TreeAfter(store, session, request.seq()));
  std::optional<TreeEntry> entry;
  if (point.tree.has_value()) {
    ASSIGN_OR_RETURN(entry, sessions::FindInTree(store, *point.tree, request.path()));
  }
  if (!entry.has_value() || entry->type != Type::kFile) {
    return NotFound("session {}: there is no file {} after event {}", session.id, request.path(),
                    request.seq());
  }
  for (const Sha256Digest& part : entry->parts) {
    ASSIGN_OR_RETURN(const std::string bytes, store.ReadFilePart(part));
    RETURN_IF_ERROR(sink(bytes));
  }
  return absl::OkStatus();
}

}  // namespace agentd::daemon
