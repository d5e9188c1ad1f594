#include "sessions/directory_walk.h"

#include <dirent.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/status.h"

namespace agentd::sessions::internal {
namespace {

std::string DescriptorPath(int fd) { return fmt::format("/proc/self/fd/{}", fd); }

// Read, write and search for us, so that the entries can be listed and removed.
absl::Status AllowAll(int directory, const std::string& name, const std::string& path) {
  UniqueFd handle(::openat(directory, name.c_str(), O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC));
  if (!handle.valid()) return ErrnoError(errno, "open " + path);
  if (::chmod(DescriptorPath(handle.get()).c_str(), 0700) != 0)
    return ErrnoError(errno, "chmod " + path);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListDirectory(int directory, const std::string& path) {
  // A handle of its own: a directory stream moves the shared offset and closes its descriptor.
  UniqueFd copy(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!copy.valid()) return ErrnoError(errno, "open " + path);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(copy.get()), &::closedir);
  if (stream == nullptr) return ErrnoError(errno, "list " + path);
  copy.Release();
  std::vector<std::string> names;
  errno = 0;
  while (const struct dirent* entry = ::readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  if (errno != 0) return ErrnoError(errno, "list " + path);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<struct stat> StatAt(int directory, const std::string& name,
                                   const std::string& path) {
  struct stat status;
  if (::fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
    return ErrnoError(errno, "stat " + path);
  return status;
}

absl::StatusOr<std::string> ReadLinkAt(int directory, const std::string& name,
                                       const std::string& path) {
  std::string target(4096, '\0');  // PATH_MAX: no longer one can be made
  const ssize_t size = ::readlinkat(directory, name.c_str(), target.data(), target.size());
  if (size < 0) return ErrnoError(errno, "readlink " + path);
  target.resize(static_cast<size_t>(size));
  return target;
}

OpenedEntry::~OpenedEntry() {
  if (lent_.valid()) (void)::chmod(DescriptorPath(lent_.get()).c_str(), lent_mode_);
}

absl::StatusOr<OpenedEntry> OpenEntry(int directory, const std::string& name, bool as_directory,
                                      const std::string& path) {
  // O_NONBLOCK: a fifo that took the file's place must not hang us.
  const int flags =
      O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | (as_directory ? O_DIRECTORY : 0);
  OpenedEntry entry;
  entry.fd_.Reset(::openat(directory, name.c_str(), flags));
  struct stat status;
  bool searchable = true;
  if (entry.fd_.valid() && as_directory) {
    // Readable, but without x for us its entries cannot be reached.
    searchable = ::faccessat(entry.fd_.get(), ".", X_OK, AT_EACCESS) == 0;
  }
  if (entry.fd_.valid() && searchable) return entry;
  const int error = entry.fd_.valid() ? EACCES : errno;
  if (error != EACCES) return ErrnoError(error, "open " + path);
  UniqueFd handle(::openat(directory, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!handle.valid() || ::fstat(handle.get(), &status) != 0 || status.st_uid != ::geteuid() ||
      S_ISLNK(status.st_mode) ||
      ::chmod(DescriptorPath(handle.get()).c_str(), (status.st_mode & 07777) | 0700) != 0) {
    return ErrnoError(EACCES, "open " + path);
  }
  entry.lent_ = std::move(handle);
  entry.lent_mode_ = status.st_mode & 07777;
  entry.fd_.Reset(::openat(directory, name.c_str(), flags));
  if (!entry.fd_.valid()) return ErrnoError(errno, "open " + path);
  return entry;
}

absl::Status RemoveEntry(int root, int directory, const std::string& name,
                         const std::string& path) {
  if (::unlinkat(directory, name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
  if (errno != EISDIR && errno != EPERM) return ErrnoError(errno, "remove " + path);
  if (::unlinkat(directory, name.c_str(), AT_REMOVEDIR) == 0) return absl::OkStatus();
  if (errno != ENOTEMPTY && errno != EEXIST) return ErrnoError(errno, "remove " + path);

  struct Pending {
    int parent;
    std::string name;
  };
  std::vector<Pending> pending = {{directory, name}};
  int moved = 0;
  while (!pending.empty()) {
    const Pending top = pending.back();
    pending.pop_back();
    RETURN_IF_ERROR(AllowAll(top.parent, top.name, path));
    ASSIGN_OR_RETURN(const OpenedEntry opened,
                     OpenEntry(top.parent, top.name, /*as_directory=*/true, path));
    ASSIGN_OR_RETURN(const std::vector<std::string> children, ListDirectory(opened.fd(), path));
    for (const std::string& child : children) {
      ASSIGN_OR_RETURN(const struct stat status, StatAt(opened.fd(), child, path + "/" + child));
      if (!S_ISDIR(status.st_mode)) {
        if (::unlinkat(opened.fd(), child.c_str(), 0) != 0)
          return ErrnoError(errno, "remove " + path + "/" + child);
        continue;
      }
      if (::unlinkat(opened.fd(), child.c_str(), AT_REMOVEDIR) == 0) continue;
      RETURN_IF_ERROR(AllowAll(opened.fd(), child, path + "/" + child));  // moving one writes to it
      std::string target;
      struct stat taken;
      do {
        target = fmt::format(".agentd-removed-{}", moved++);
      } while (::fstatat(root, target.c_str(), &taken, AT_SYMLINK_NOFOLLOW) == 0);
      if (::renameat(opened.fd(), child.c_str(), root, target.c_str()) != 0) {
        return ErrnoError(errno, "remove " + path + "/" + child);
      }
      pending.push_back({root, target});
    }
    if (::unlinkat(top.parent, top.name.c_str(), AT_REMOVEDIR) != 0)
      return ErrnoError(errno, "remove " + path);
  }
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
