#include "agentd/ctl/folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "agentd/content_hash.h"
#include "agentd/ctl/folder_internal.h"
#include "agentd/quoted_path.h"
#include "base/status.h"
#include "sessions/directory_walk.h"

namespace agentd::ctl {
namespace {

constexpr int kDirectoryFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

// All states that the session knows the path in.
std::vector<const api::WorkspaceEntry*> KnownStates(const api::WorkspaceChange& change) {
  std::vector<const api::WorkspaceEntry*> states;
  if (change.has_before()) states.push_back(&change.before());
  if (change.has_after()) states.push_back(&change.after());
  for (const api::WorkspaceEntry& entry : change.between()) states.push_back(&entry);
  return states;
}

bool Matches(const api::WorkspaceEntry& now, const api::WorkspaceEntry& state, bool with_mode) {
  return SameContents(now, state) && (!with_mode || now.mode() == state.mode());
}

absl::StatusOr<std::string> HashOf(int directory, const std::string& name,
                                   const std::string& path) {
  // O_NONBLOCK: a fifo that took the file's place must not hang us.
  const UniqueFd file(
      ::openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file.valid()) return ErrnoError(errno, "open " + path);
  ContentHash hash;
  std::string buffer(1 << 20, '\0');
  for (;;) {
    const ssize_t count = ::read(file.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoError(errno, "read " + path);
    if (count == 0) return hash.Finish();
    hash.Update(std::string_view(buffer.data(), static_cast<size_t>(count)));
  }
}

}  // namespace

bool ModeMatters(const api::WorkspaceChange& change) {
  std::set<uint32_t> modes;
  for (const api::WorkspaceEntry* state : KnownStates(change)) {
    if (state->type() != api::WORKSPACE_ENTRY_TYPE_SYMLINK) modes.insert(state->mode());
  }
  return modes.size() > 1;
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

std::string NameIn(const std::string& path) { return path.substr(path.rfind('/') + 1); }

absl::StatusOr<std::unique_ptr<Folder>> Folder::Open(const std::string& path) {
  UniqueFd root(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return ErrnoError(errno, "open the folder " + path);
  if (::flock(root.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoError(errno, "lock the folder " + path);
    return FailedPrecondition(
        "{} is in use: another agentctl carries changes into it, or a session works in it", path);
  }
  return std::unique_ptr<Folder>(new Folder(path, std::move(root)));
}

// Of a path's directories. An invalid one: there is none; `blocked_by` says which part is
// something else.
absl::StatusOr<UniqueFd> Folder::OpenDirectory(std::string_view path,
                                               std::string* blocked_by) const {
  UniqueFd directory(::openat(root_.get(), ".", kDirectoryFlags));
  if (!directory.valid()) return ErrnoError(errno, "open " + path_);
  for (size_t at = 0; at < path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string name(path.substr(at, end - at));
    at = end + 1;
    UniqueFd next(::openat(directory.get(), name.c_str(), kDirectoryFlags));
    if (!next.valid() && errno == ENOENT) return UniqueFd();
    if (!next.valid() && (errno == ENOTDIR || errno == ELOOP)) {
      *blocked_by = std::string(path.substr(0, end));
      return UniqueFd();
    }
    if (!next.valid()) return ErrnoError(errno, "open " + QuotedPath(path.substr(0, end)));
    directory = std::move(next);
  }
  return directory;
}

absl::StatusOr<Folder::State> Folder::StateOf(const api::WorkspaceChange& change) const {
  const std::string& path = change.path();
  const std::string shown = QuotedPath(path);
  State state;
  ASSIGN_OR_RETURN(const UniqueFd directory, OpenDirectory(ParentOf(path), &state.blocked_by));
  if (!directory.valid()) return state;
  const std::string name = NameIn(path);
  if (::fstatat(directory.get(), name.c_str(), &state.status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return state;
    return ErrnoError(errno, "stat " + shown);
  }
  state.exists = true;
  api::WorkspaceEntry& entry = state.entry;
  const mode_t mode = state.status.st_mode;
  if (S_ISDIR(mode)) {
    entry.set_type(api::WORKSPACE_ENTRY_TYPE_DIRECTORY);
    entry.set_mode(mode & 07777);
  } else if (S_ISLNK(mode)) {
    entry.set_type(api::WORKSPACE_ENTRY_TYPE_SYMLINK);
    ASSIGN_OR_RETURN(*entry.mutable_target(),
                     sessions::internal::ReadLinkAt(directory.get(), name, shown));
  } else if (S_ISREG(mode)) {
    entry.set_type(api::WORKSPACE_ENTRY_TYPE_FILE);
    entry.set_mode(mode & 0777);
    entry.set_size_bytes(state.status.st_size);
    const auto states = KnownStates(change);
    if (std::any_of(states.begin(), states.end(), [&](const api::WorkspaceEntry* known) {
          return IsFile(*known) && known->size_bytes() == entry.size_bytes();
        })) {
      ASSIGN_OR_RETURN(*entry.mutable_content_sha256(), HashOf(directory.get(), name, shown));
    }
  }
  return state;
}

// Something that is no directory lies where the path leads through.
Folder::Verdict Folder::JudgeBlocked(const api::WorkspaceChange& change,
                                     const std::string& blocked_by) const {
  if (!change.has_after()) return {Verdict::Kind::kDone, "", false};
  // The session put a directory in its place: that comes first, or is a conflict itself.
  const auto replaced = by_path_.find(blocked_by);
  if (replaced != by_path_.end() && IsDirectory(replaced->second->after())) return {};
  return {Verdict::Kind::kConflict,
          QuotedPath(blocked_by) + " is no directory in the folder (a link is not followed)",
          false};
}

Folder::Verdict Folder::Judge(const api::WorkspaceChange& change, const State& state) const {
  using Kind = Verdict::Kind;
  if (!state.blocked_by.empty()) return JudgeBlocked(change, state.blocked_by);
  const bool becomes_directory = change.has_after() && IsDirectory(change.after());
  const bool was_directory = change.has_before() && IsDirectory(change.before());
  if (!state.exists) {
    if (!change.has_after()) return Verdict{Kind::kDone, "", false};
    // Between a directory and something else there is a moment with nothing.
    if (!change.has_before() || becomes_directory != was_directory) return Verdict{};
    return Verdict{Kind::kConflict, "is not in the folder any more", true};
  }
  const api::WorkspaceEntry& now = state.entry;
  const bool with_mode = ModeMatters(change) || (becomes_directory && !was_directory);
  if (change.has_after() && Matches(now, change.after(), with_mode))
    return Verdict{Kind::kDone, "", false};
  if (IsDirectory(now)) {
    if (was_directory && change.has_after() && !becomes_directory) {
      const std::string foreign = ForeignEntry(change.path());
      if (foreign.empty()) return Verdict{};
      return Verdict{Kind::kConflict,
                     "is a directory with " + QuotedPath(foreign) + ", which is not the session's",
                     false};
    }
    // One that was just made, by us before a kill or by the folder too, gets the session's mode.
    if (becomes_directory && !was_directory) return Verdict{};
  }
  const auto states = KnownStates(change);
  if (std::any_of(states.begin(), states.end(), [&](const api::WorkspaceEntry* known) {
        return Matches(now, *known, with_mode);
      })) {
    return Verdict{};
  }
  const bool plain = IsFile(now) || now.type() == api::WORKSPACE_ENTRY_TYPE_SYMLINK;
  const bool mode_alone = with_mode && change.has_before() && SameContents(now, change.before());
  return Verdict{Kind::kConflict,
                 mode_alone            ? "has another mode in the folder"
                 : change.has_before() ? "was changed in the folder"
                                       : "is in the folder already, and another one",
                 plain || mode_alone};
}

// Something in `directory` that would be lost with it; empty: nothing.
std::string Folder::ForeignEntry(const std::string& directory) const {
  std::string blocked_by;
  absl::StatusOr<UniqueFd> opened = OpenDirectory(directory, &blocked_by);
  if (!opened.ok() || !opened->valid()) return directory;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(opened->get()), &::closedir);
  if (stream == nullptr) return directory;
  opened->Release();
  while (const struct dirent* entry = ::readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." || name == kTemporary) continue;
    const std::string path = directory + "/" + name;
    const auto change = by_path_.find(path);
    if (change == by_path_.end() || change->second->has_after()) return path;
    if (!IsDirectory(change->second->before())) continue;  // judged itself
    std::string foreign = ForeignEntry(path);
    if (!foreign.empty()) return foreign;
  }
  return "";
}

absl::StatusOr<Comparison> Folder::Compare(const Changes& changes) {
  by_path_.clear();
  for (const api::WorkspaceChange& change : changes) {
    const std::string& path = change.path();
    // Whoever answers for the daemon must not lead us elsewhere.
    const std::string around = "/" + path + "/";
    if (path.empty() || around.find("//") != std::string::npos ||
        around.find("/../") != std::string::npos || around.find("/./") != std::string::npos ||
        path.find('\0') != std::string::npos) {
      return DataLoss("the daemon named a path that is none: {}", QuotedPath(path));
    }
    by_path_[path] = &change;
  }
  Comparison comparison;
  for (const api::WorkspaceChange& change : changes) {
    const absl::StatusOr<State> state = StateOf(change);
    if (absl::IsPermissionDenied(state.status())) {
      comparison.conflicts.push_back({&change, "cannot be read: " + Text(state.status()), false});
      continue;
    }
    RETURN_IF_ERROR(state.status());
    const Verdict verdict = Judge(change, *state);
    switch (verdict.kind) {
      case Verdict::Kind::kToDo:
        comparison.to_do.push_back(&change);
        break;
      case Verdict::Kind::kDone:
        ++comparison.done;
        break;
      case Verdict::Kind::kConflict:
        comparison.conflicts.push_back({&change, verdict.why, verdict.can_force});
        break;
    }
  }
  // What needs that something in the way goes first stays as it is with that.
  std::erase_if(comparison.to_do, [&](const api::WorkspaceChange* change) {
    const bool ends_directory =
        IsDirectory(change->before()) && change->has_after() && !IsDirectory(change->after());
    for (size_t i = 0; i < comparison.conflicts.size(); ++i) {
      const api::WorkspaceChange& other = *comparison.conflicts[i].change;
      const bool needs = (IsDirectory(other.after()) && IsBelow(change->path(), other.path())) ||
                         (ends_directory && IsBelow(other.path(), change->path()));
      if (!needs) continue;
      comparison.conflicts.push_back(
          {change, QuotedPath(other.path()) + " is in the way", comparison.conflicts[i].can_force});
      return true;
    }
    return false;
  });
  return comparison;
}

}  // namespace agentd::ctl
