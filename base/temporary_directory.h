// A directory that is gone with the object.
#ifndef AGENTD_BASE_TEMPORARY_DIRECTORY_H_
#define AGENTD_BASE_TEMPORARY_DIRECTORY_H_

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd {

class TemporaryDirectory {
 public:
  enum class Place { kMemory, kDisk };

  // For tests: in memory where it can be, unless they ask for the disk. What an fsync costs is not
  // what they are about, and what it keeps is tested with a file system that forgets. Held by a
  // lock for as long as a process has it, so that those of killed processes can be told: the first
  // of a later process removes them.
  explicit TemporaryDirectory(Place place = Place::kMemory) {
    const std::filesystem::path memory = "/dev/shm", disk = std::filesystem::temp_directory_path();
    static const bool removed = (RemoveLeft(memory), RemoveLeft(disk), true);
    (void)removed;
    const bool in_memory = place == Place::kMemory && ::access(memory.c_str(), W_OK) == 0;
    while (!MakeLocked(in_memory ? memory : disk)) {
    }
  }
  // The error names `parent`.
  static absl::StatusOr<TemporaryDirectory> In(const std::filesystem::path& parent) {
    std::string name = (parent / "agentd-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      return ErrnoError(errno, "make a directory in " + parent.string());
    return TemporaryDirectory(std::move(name));
  }
  ~TemporaryDirectory() { Remove(); }
  TemporaryDirectory(TemporaryDirectory&& other) noexcept
      : lock_(std::move(other.lock_)), path_(std::exchange(other.path_, {})) {}
  TemporaryDirectory& operator=(TemporaryDirectory&& other) noexcept {
    Remove();
    lock_ = std::move(other.lock_);
    path_ = std::exchange(other.path_, {});
    return *this;
  }
  const std::filesystem::path& path() const { return path_; }
  // It stays, for somebody to look at, under a name that no later process removes.
  std::filesystem::path Keep() && {
    const std::filesystem::path path = std::exchange(path_, {});
    const std::string name = path.filename().string();
    if (!name.starts_with(kPrefix)) return path;
    const std::filesystem::path kept =
        path.parent_path() / ("agentd-kept." + name.substr(std::string_view(kPrefix).size()));
    std::error_code error;
    std::filesystem::rename(path, kept, error);
    return error ? path : kept;
  }

 private:
  static constexpr char kPrefix[] = "agentd-test.";

  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}
  static UniqueFd Open(const std::filesystem::path& path) {
    return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  }
  // False if another process took it for one that was left, before it was locked.
  bool MakeLocked(const std::filesystem::path& parent) {
    std::string name = (parent / (std::string(kPrefix) + "XXXXXX")).string();
    AGENTD_CHECK(::mkdtemp(name.data()) != nullptr);
    lock_ = Open(name);
    path_ = name;
    struct stat status;
    return lock_.valid() && ::flock(lock_.get(), LOCK_EX) == 0 &&
           ::fstat(lock_.get(), &status) == 0 && status.st_nlink > 0 &&
           ::access(path_.c_str(), F_OK) == 0;
  }
  static void RemoveLeft(const std::filesystem::path& parent) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(parent, error)) {
      if (!entry.path().filename().string().starts_with(kPrefix)) continue;
      const UniqueFd left = Open(entry.path());
      struct stat status;
      if (!left.valid() || ::fstat(left.get(), &status) != 0 || status.st_uid != ::geteuid() ||
          ::flock(left.get(), LOCK_EX | LOCK_NB) != 0)
        continue;
      std::filesystem::remove_all(entry.path(), error);
    }
  }
  void Remove() {
    std::error_code error;
    if (!path_.empty()) std::filesystem::remove_all(path_, error);
  }

  UniqueFd lock_;               // of none of In()'s
  std::filesystem::path path_;  // empty: moved from, or kept
};

}  // namespace agentd

#endif  // AGENTD_BASE_TEMPORARY_DIRECTORY_H_
