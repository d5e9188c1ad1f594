// The half of Folder that writes.
#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "agentd/content_hash.h"
#include "agentd/ctl/folder.h"
#include "agentd/ctl/folder_internal.h"
#include "agentd/quoted_path.h"
#include "base/status.h"
#include "sessions/crash_point.h"

namespace agentd::ctl {
namespace {

using sessions::internal::CrashPoint;

constexpr int kNewFileFlags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;

absl::Status WriteBytes(int file, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(file, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoError(errno, "write " + path);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status RemoveOld(int directory, const std::string& name, const std::string& path, int flags) {
  if (::unlinkat(directory, name.c_str(), flags) == 0 || errno == ENOENT) return absl::OkStatus();
  return ErrnoError(errno, "remove " + path);
}

// What the temporary name stands for takes the place of what was there.
absl::Status TakeName(int directory, const std::string& name, const std::string& path) {
  CrashPoint("ctl.apply_written");
  if (::renameat(directory, kTemporary, directory, name.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  (void)::unlinkat(directory, kTemporary, 0);
  return ErrnoError(error, "rename to " + path);
}

// Of a file with no other name, which its contents need not be written anew for.
bool SetModeAlone(int directory, const std::string& name, const struct stat& status,
                  uint32_t mode) {
  if (status.st_nlink != 1) return false;
  const UniqueFd file(
      ::openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat opened;
  return file.valid() && ::fstat(file.get(), &opened) == 0 && opened.st_ino == status.st_ino &&
         opened.st_dev == status.st_dev && opened.st_nlink == 1 && ::fchmod(file.get(), mode) == 0;
}

}  // namespace

// Directories that lead to the path and are not there are made: who asks for some paths alone has
// not named them.
absl::StatusOr<Folder::Place> Folder::OpenPlace(const std::string& path) {
  Place place;
  place.name = NameIn(path);
  const std::string parent = ParentOf(path);
  for (size_t at = parent.find('/');; at = parent.find('/', at + 1)) {
    const std::string directory = parent.substr(0, at);
    std::string blocked_by;
    ASSIGN_OR_RETURN(UniqueFd opened, OpenDirectory(directory, &blocked_by));
    if (!opened.valid() && blocked_by.empty()) {
      ASSIGN_OR_RETURN(const UniqueFd above, OpenDirectory(ParentOf(directory), &blocked_by));
      if (::mkdirat(above.get(), NameIn(directory).c_str(), 0777) != 0 && errno != EEXIST)
        return ErrnoError(errno, "create directory " + QuotedPath(directory));
      touched_.insert(ParentOf(directory));
      ASSIGN_OR_RETURN(opened, OpenDirectory(directory, &blocked_by));
    }
    if (!opened.valid())
      return absl::AbortedError(QuotedPath(blocked_by) + " is no directory any more");
    place.directory = std::move(opened);
    if (at == std::string::npos) break;
  }
  struct stat status;
  if (::fstat(place.directory.get(), &status) != 0)
    return ErrnoError(errno, "stat " + QuotedPath(parent));
  // A closed directory of ours is opened for as long as it takes.
  if ((status.st_mode & 0300) != 0300 && status.st_uid == ::geteuid() &&
      ::fchmod(place.directory.get(), (status.st_mode & 07777) | 0300) == 0) {
    modes_.try_emplace(parent, status.st_mode & 07777);
  }
  touched_.insert(parent);
  return place;
}

absl::StatusOr<std::string> Folder::Remove(const Place& place, const api::WorkspaceChange& change) {
  const std::string shown = QuotedPath(change.path());
  if (!IsDirectory(change.before())) {
    RETURN_IF_ERROR(RemoveOld(place.directory.get(), place.name, shown, 0));
    return std::string();
  }
  (void)RemoveOld(place.directory.get(), place.name + "/" + kTemporary, shown, 0);
  if (::unlinkat(place.directory.get(), place.name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT)
    return std::string();
  if (errno == ENOTEMPTY || errno == EEXIST)
    return std::string("stays: there are files in it that are not the session's");
  return ErrnoError(errno, "remove " + shown);
}

absl::Status Folder::MakeDirectory(const Place& place, const api::WorkspaceChange& change,
                                   const State& state) {
  const std::string shown = QuotedPath(change.path());
  if (state.exists && !IsDirectory(state.entry))
    RETURN_IF_ERROR(RemoveOld(place.directory.get(), place.name, shown, 0));
  // Ours alone until its contents stand.
  if (::mkdirat(place.directory.get(), place.name.c_str(), 0700) != 0 && errno != EEXIST)
    return ErrnoError(errno, "create directory " + shown);
  modes_[change.path()] = change.after().mode();
  return absl::OkStatus();
}

absl::Status Folder::WriteFile(const Place& place, const api::WorkspaceChange& change,
                               const State& state, const ContentsReader& contents) {
  const std::string shown = QuotedPath(change.path());
  const api::WorkspaceEntry& after = change.after();
  const int directory = place.directory.get();
  // A mode that the session left alone is the folder's.
  const bool keeps_mode = state.exists && IsFile(state.entry) && change.has_before() &&
                          IsFile(change.before()) && !ModeMatters(change);
  const uint32_t mode = keeps_mode ? state.entry.mode() : after.mode();
  if (state.exists && SameContents(state.entry, after) &&
      SetModeAlone(directory, place.name, state.status, mode)) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(RemoveOld(directory, kTemporary, shown, 0));
  const UniqueFd file(::openat(directory, kTemporary, kNewFileFlags, 0600));
  if (!file.valid()) return ErrnoError(errno, "create " + shown);
  ContentHash hash;
  absl::Status status = contents(change, [&](std::string_view bytes) {
    hash.Update(bytes);
    return WriteBytes(file.get(), bytes, shown);
  });
  if (status.ok() && hash.Finish() != after.content_sha256())
    status = DataLoss("what came for {} is not what the session has", shown);
  if (status.ok() && (::fchmod(file.get(), mode) != 0 || ::fsync(file.get()) != 0))
    status = ErrnoError(errno, "sync " + shown);
  if (status.ok() && state.exists && IsDirectory(state.entry))
    status = RemoveOld(directory, place.name, shown, AT_REMOVEDIR);
  if (status.ok()) return TakeName(directory, place.name, shown);
  (void)::unlinkat(directory, kTemporary, 0);
  return status;
}

absl::Status Folder::WriteLink(const Place& place, const api::WorkspaceChange& change,
                               const State& state) {
  const std::string shown = QuotedPath(change.path());
  const int directory = place.directory.get();
  RETURN_IF_ERROR(RemoveOld(directory, kTemporary, shown, 0));
  if (::symlinkat(change.after().target().c_str(), directory, kTemporary) != 0)
    return ErrnoError(errno, "create the link " + shown);
  if (state.exists && IsDirectory(state.entry))
    RETURN_IF_ERROR(RemoveOld(directory, place.name, shown, AT_REMOVEDIR));
  return TakeName(directory, place.name, shown);
}

// Judged once more: people work in the folder too.
absl::StatusOr<std::string> Folder::Make(const api::WorkspaceChange& change, bool force,
                                         const ContentsReader& contents) {
  ASSIGN_OR_RETURN(const State state, StateOf(change));
  const Verdict verdict = Judge(change, state);
  if (verdict.kind == Verdict::Kind::kDone) return std::string();
  if (verdict.kind == Verdict::Kind::kConflict && !(force && verdict.can_force)) {
    return absl::AbortedError(
        fmt::format("{}: {} meanwhile", QuotedPath(change.path()), verdict.why));
  }
  ASSIGN_OR_RETURN(const Place place, OpenPlace(change.path()));
  if (!change.has_after()) return Remove(place, change);
  if (IsDirectory(change.after())) {
    RETURN_IF_ERROR(MakeDirectory(place, change, state));
  } else if (IsFile(change.after())) {
    RETURN_IF_ERROR(WriteFile(place, change, state, contents));
  } else {
    RETURN_IF_ERROR(WriteLink(place, change, state));
  }
  return std::string();
}

// What is in a directory comes before the directory's own mode.
absl::Status Folder::Settle() {
  absl::Status status;
  const auto each = [&](const std::string& path, auto use) {
    std::string blocked_by;
    const absl::StatusOr<UniqueFd> directory = OpenDirectory(path, &blocked_by);
    if (status.ok()) status = directory.status();
    if (directory.ok() && directory->valid() && use(directory->get()) != 0 && status.ok())
      status = ErrnoError(errno, "sync directory " + QuotedPath(path));
  };
  for (const std::string& path : touched_)
    each(path, [](int directory) { return ::fsync(directory); });
  for (auto mode = modes_.rbegin(); mode != modes_.rend(); ++mode)
    each(mode->first, [&](int directory) { return ::fchmod(directory, mode->second); });
  touched_.clear();
  modes_.clear();
  return status;
}

absl::Status Folder::Apply(
    const std::vector<const api::WorkspaceChange*>& to_do, bool force,
    const ContentsReader& contents,
    const std::function<void(const api::WorkspaceChange&, const std::string&)>& told) {
  absl::Status status;
  for (const api::WorkspaceChange* change : to_do) {
    const absl::StatusOr<std::string> made = Make(*change, force, contents);
    status = made.status();
    if (!status.ok()) break;
    CrashPoint("ctl.apply_made");
    told(*change, *made);
  }
  const absl::Status settled = Settle();
  return status.ok() ? settled : status;
}

}  // namespace agentd::ctl
