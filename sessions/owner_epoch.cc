#include "sessions/owner_epoch.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>

#include "base/small_file.h"
#include "base/status.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {
namespace {

// Whether all that happens to its file system goes through this machine's kernel.
bool IsLocal(int fd) {
  struct statfs where;
  if (::fstatfs(fd, &where) != 0) return false;
  constexpr uint64_t kZfsMagic = 0x2fc12fc1;
  switch (static_cast<uint64_t>(where.f_type)) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case OVERLAYFS_SUPER_MAGIC:
    case kZfsMagic:
      return true;
    default:
      return false;
  }
}

bool IsSameFile(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size &&
         a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

}  // namespace

absl::Status OwnerEpoch::Raise(const std::filesystem::path& directory) {
  path_ = directory / "EPOCH";
  ASSIGN_OR_RETURN(const std::optional<std::string> old, ReadSmallFile(path_));
  uint64_t epoch = 0;
  if (old.has_value()) {
    absl::StatusOr<uint64_t> number = DecodeNumber(RecordKind::kEpoch, "EPOCH", *old);
    if (!number.ok()) {
      return Annotate(
          number.status(),
          path_.string() + " (no process may have the store open; then delete this file)");
    }
    epoch = *number;
  }
  bytes_ = EncodeNumber(RecordKind::kEpoch, "EPOCH", epoch + 1);
  RETURN_IF_ERROR(ReplaceFile(path_, bytes_));
  file_.Reset(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file_.valid() || ::fstat(file_.get(), &stat_) != 0)
    return ErrnoError(errno, "open " + path_.string());
  // A newer owner may be there already.
  std::string held(bytes_.size(), '\0');
  const ssize_t size = ::pread(file_.get(), held.data(), held.size(), 0);
  is_local_ = size == static_cast<ssize_t>(held.size()) && held == bytes_ && IsLocal(file_.get());
  return absl::OkStatus();
}

// A new owner's file takes the name of ours, which stays open, so that its inode's number is given
// to no other: as long as the name leads there, it holds what we wrote. Else its bytes tell, and
// they alone on a network file system, which opening it asks for its newest state. Where no
// descriptor is to be had, the one that is open tells too: a durable batch must not be called
// failed for want of one.
absl::StatusOr<bool> OwnerEpoch::IsOurs() const {
  struct stat named;
  if (is_local_ && ::stat(path_.c_str(), &named) == 0 && IsSameFile(named, stat_)) return true;
  const absl::StatusOr<std::optional<std::string>> now = ReadSmallFile(path_);
  if (now.ok()) return now->has_value() && **now == bytes_;
  struct stat held;
  if (::fstat(file_.get(), &held) != 0) return now.status();
  return held.st_nlink > 0;
}

}  // namespace agentd::sessions::internal
