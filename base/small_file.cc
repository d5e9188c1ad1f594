#include "base/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd {
namespace {

absl::Status WriteNewFile(const std::string& path, std::string_view bytes) {
  const UniqueFd fd(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoError(errno, "open " + path);
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoError(errno, "write " + path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  if (::fsync(fd.get()) != 0) return ErrnoError(errno, "fsync " + path);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::optional<std::string>> ReadSmallFile(const std::filesystem::path& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT) return std::optional<std::string>();
    return ErrnoError(errno, "open " + path.string());
  }
  std::string bytes(kSmallFileBytes, '\0');
  const ssize_t size = ::read(fd.get(), bytes.data(), bytes.size());
  if (size < 0) return ErrnoError(errno, "read " + path.string());
  bytes.resize(static_cast<size_t>(size));
  return std::optional<std::string>(std::move(bytes));
}

absl::Status SyncDirectory(const std::filesystem::path& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, "open " + path.string());
  if (::fsync(fd.get()) != 0) return ErrnoError(errno, "fsync " + path.string());
  return absl::OkStatus();
}

absl::Status ReplaceFile(const std::filesystem::path& path, std::string_view bytes) {
  const std::string temporary = path.string() + ".new";
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT)
    return ErrnoError(errno, "remove " + temporary);
  absl::Status status = WriteNewFile(temporary, bytes);
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0)
    status = ErrnoError(errno, "rename " + temporary);
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  return SyncDirectory(path.parent_path());
}

}  // namespace agentd
