#include "sessions/restorer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "base/status.h"
#include "base/unique_fd.h"
#include "sessions/directory_walk.h"

namespace agentd::sessions::internal {
namespace {

std::string PathBelow(const std::string& directory, const std::string& name) {
  return directory.empty() ? name : directory + "/" + name;
}

const KnownEntry* Find(const KnownDirectory* directory, const std::string& name) {
  if (directory == nullptr) return nullptr;
  const auto found = directory->entries.find(name);
  return found == directory->entries.end() ? nullptr : &found->second;
}

}  // namespace

absl::Status Restorer::Run(const TreeId& tree) {
  return Directory(root_, tree, "", 0, &known_.root);
}

absl::Status Restorer::Directory(int fd, const Sha256Digest& id, const std::string& path, int depth,
                                 const KnownDirectory* known) {
  if (depth > kMaxTreeDepth)
    return FailedPrecondition("{} is nested deeper than {} directories", path, kMaxTreeDepth);
  ASSIGN_OR_RETURN(const std::vector<DirectoryEntry> entries, objects_.ReadDirectory(id));
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListDirectory(fd, path.empty() ? "workspace" : path));
  std::set<std::string> extra(names.begin(), names.end());
  for (const DirectoryEntry& entry : entries) extra.erase(entry.name);
  for (const std::string& name : extra)
    RETURN_IF_ERROR(RemoveEntry(root_, fd, name, PathBelow(path, name)));
  for (const DirectoryEntry& entry : entries) {
    const std::string relative = PathBelow(path, entry.name);
    switch (entry.type) {
      case EntryType::kFile:
        RETURN_IF_ERROR(File(fd, entry, relative, known));
        break;
      case EntryType::kSymlink:
        RETURN_IF_ERROR(Symlink(fd, entry, relative));
        break;
      case EntryType::kDirectory:
        RETURN_IF_ERROR(Subdirectory(fd, entry, relative, depth, known));
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status Restorer::Subdirectory(int fd, const DirectoryEntry& entry, const std::string& path,
                                    int depth, const KnownDirectory* above) {
  struct stat status;
  const bool exists = ::fstatat(fd, entry.name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
  if (exists && !S_ISDIR(status.st_mode)) RETURN_IF_ERROR(RemoveEntry(root_, fd, entry.name, path));
  if ((!exists || !S_ISDIR(status.st_mode)) && ::mkdirat(fd, entry.name.c_str(), 0700) != 0) {
    return ErrnoError(errno, "mkdir " + path);
  }
  ASSIGN_OR_RETURN(OpenedEntry child, OpenEntry(fd, entry.name, /*as_directory=*/true, path));
  child.KeepMode();
  const KnownEntry* const found = Find(above, entry.name);
  const KnownDirectory* const known = found == nullptr ? nullptr : found->directory.get();
  if (::fstat(child.fd(), &status) != 0) return ErrnoError(errno, "stat " + path);
  // Ours to write in until its contents stand; then the mode of the tree.
  if (status.st_uid == ::geteuid() && (status.st_mode & 0700) != 0700 &&
      ::fchmod(child.fd(), (status.st_mode & 07777) | 0700) != 0) {
    return ErrnoError(errno, "chmod " + path);
  }
  RETURN_IF_ERROR(Directory(child.fd(), entry.chunks[0], path, depth + 1, known));
  if (::fstat(child.fd(), &status) != 0) return ErrnoError(errno, "stat " + path);
  if ((status.st_mode & 07777) != entry.mode && ::fchmod(child.fd(), entry.mode) != 0) {
    return ErrnoError(errno, "chmod " + path);
  }
  return absl::OkStatus();
}

absl::Status Restorer::Symlink(int fd, const DirectoryEntry& entry, const std::string& path) {
  struct stat status;
  if (::fstatat(fd, entry.name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) {
    if (S_ISLNK(status.st_mode)) {
      ASSIGN_OR_RETURN(const std::string target, ReadLinkAt(fd, entry.name, path));
      if (target == entry.target) return absl::OkStatus();
    }
    RETURN_IF_ERROR(RemoveEntry(root_, fd, entry.name, path));
  }
  if (::symlinkat(entry.target.c_str(), fd, entry.name.c_str()) != 0)
    return ErrnoError(errno, "symlink " + path);
  return absl::OkStatus();
}

absl::Status Restorer::File(int fd, const DirectoryEntry& entry, const std::string& path,
                            const KnownDirectory* known) {
  struct stat status;
  if (::fstatat(fd, entry.name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) {
    ASSIGN_OR_RETURN(const bool same, IsSame(fd, entry, path, status, Find(known, entry.name)));
    if (same) return absl::OkStatus();
    if (S_ISDIR(status.st_mode)) RETURN_IF_ERROR(RemoveEntry(root_, fd, entry.name, path));
  }
  return WriteFile(fd, entry, path);
}

// Whether nothing has to be written; mends the mode alone where that is safe.
absl::StatusOr<bool> Restorer::IsSame(int fd, const DirectoryEntry& entry, const std::string& path,
                                      const struct stat& status, const KnownEntry* known) {
  if (!S_ISREG(status.st_mode) || static_cast<uint64_t>(status.st_size) != entry.size_bytes)
    return false;
  const bool mode_differs = (status.st_mode & 07777) != entry.mode;
  // Another name of this inode may lie outside: leave it and write a file of our own.
  if (mode_differs && status.st_nlink > 1) return false;
  if (ChunksOf(fd, entry.name, path, status, known) != entry.chunks) return false;
  if (!mode_differs) return true;
  UniqueFd file(::openat(fd, entry.name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat opened;
  return file.valid() && ::fstat(file.get(), &opened) == 0 && opened.st_ino == status.st_ino &&
         opened.st_nlink == 1 && ::fchmod(file.get(), entry.mode) == 0;
}

// What a file's chunks are; nullopt: that cannot be told.
std::optional<std::vector<Sha256Digest>> Restorer::ChunksOf(int fd, const std::string& name,
                                                            const std::string& path,
                                                            const struct stat& status,
                                                            const KnownEntry* known) {
  const FileStamp stamp = StampOf(status);
  if (known != nullptr && known->stamp == stamp && (known->believed || known->rests))
    return known->entry.chunks;
  const absl::StatusOr<OpenedEntry> file = OpenEntry(fd, name, /*as_directory=*/false, path);
  if (!file.ok()) return std::nullopt;
  ++files_read_;
  DirectoryEntry now;
  struct stat after;
  const absl::Status read =
      ReadContents(file->fd(), path, stamp.size_bytes, now,
                   [](size_t, std::string_view chunk) -> absl::StatusOr<Sha256Digest> {
                     return Sha256Of(chunk);
                   });
  if (!read.ok() || ::fstat(file->fd(), &after) != 0 || StampOf(after) != stamp)
    return std::nullopt;
  return now.chunks;
}

// To a new inode that takes the name at the end: never through a link, never half a file under
// the name.
absl::Status Restorer::WriteFile(int fd, const DirectoryEntry& entry, const std::string& path) {
  std::string temporary;
  UniqueFd file;
  do {
    temporary = fmt::format(".agentd-restored-{}", ++temporaries_);
    file.Reset(::openat(fd, temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                        0600));
  } while (!file.valid() && errno == EEXIST);
  if (!file.valid()) return ErrnoError(errno, "create " + path);
  const absl::Status status = Fill(file.get(), entry, path);
  if (!status.ok() || ::renameat(fd, temporary.c_str(), fd, entry.name.c_str()) != 0) {
    const int error = errno;
    (void)::unlinkat(fd, temporary.c_str(), 0);
    return status.ok() ? ErrnoError(error, "rename " + path) : status;
  }
  return absl::OkStatus();
}

absl::Status Restorer::Fill(int file, const DirectoryEntry& entry, const std::string& path) {
  RETURN_IF_ERROR(WriteContents(file, path, entry,
                                [this](const Sha256Digest& id) { return objects_.ReadChunk(id); }));
  if (::fchmod(file, entry.mode) != 0) return ErrnoError(errno, "chmod " + path);
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
