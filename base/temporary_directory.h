// A directory for a test or a benchmark, gone with the object.
#ifndef AGENTD_BASE_TEMPORARY_DIRECTORY_H_
#define AGENTD_BASE_TEMPORARY_DIRECTORY_H_

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd {

// Held by a lock for as long as a process has it, so that those of killed processes can be told:
// the first of a later process removes them.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    // In memory where it can be: what an fsync costs is not what the tests are about, and what it
    // keeps is tested with a file system that forgets.
    const std::filesystem::path shm = "/dev/shm";
    const std::filesystem::path parent =
        ::access(shm.c_str(), W_OK) == 0 ? shm : std::filesystem::temp_directory_path();
    static const bool removed = (RemoveLeft(parent), true);
    (void)removed;
    while (!Make(parent)) {
    }
  }
  ~TemporaryDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  static constexpr char kPrefix[] = "agentd-test.";

  static UniqueFd Open(const std::filesystem::path& path) {
    return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  }
  // False if another process took it for one that was left, before it was locked.
  bool Make(const std::filesystem::path& parent) {
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

  UniqueFd lock_;
  std::filesystem::path path_;
};

}  // namespace agentd

#endif  // AGENTD_BASE_TEMPORARY_DIRECTORY_H_
