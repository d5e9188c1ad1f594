// Directory handles for walking untrusted trees: every step is openat with O_NOFOLLOW from an open
// parent.
#ifndef AGENTD_SESSIONS_DIRECTORY_WALK_H_
#define AGENTD_SESSIONS_DIRECTORY_WALK_H_

#include <sys/stat.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace agentd::sessions::internal {

// Sorted, without "." and "..". `path` is for messages, here and below.
absl::StatusOr<std::vector<std::string>> ListDirectory(int directory, const std::string& path);

// lstat of `name` in `directory`.
absl::StatusOr<struct stat> StatAt(int directory, const std::string& name, const std::string& path);

// The text of the symlink `name` in `directory`.
absl::StatusOr<std::string> ReadLinkAt(int directory, const std::string& name,
                                       const std::string& path);

// An opened entry. One of ours without the needed permission bits gets them for as long as this
// lives.
class OpenedEntry {
 public:
  OpenedEntry() = default;
  OpenedEntry(OpenedEntry&& other) noexcept = default;
  OpenedEntry& operator=(OpenedEntry&&) = delete;
  ~OpenedEntry();
  int fd() const { return fd_.get(); }
  // The caller sets the mode itself: nothing is taken back.
  void KeepMode() { lent_.Reset(); }

 private:
  friend absl::StatusOr<OpenedEntry> OpenEntry(int directory, const std::string& name,
                                               bool as_directory, const std::string& path);
  UniqueFd fd_;
  UniqueFd lent_;  // O_PATH handle of the entry whose mode goes back to lent_mode_
  mode_t lent_mode_ = 0;
};

// Opens a regular file or a directory for reading; PermissionDenied names the path.
absl::StatusOr<OpenedEntry> OpenEntry(int directory, const std::string& name, bool as_directory,
                                      const std::string& path);

// Removes `name` of `directory`, whatever it is, however deep. A directory's subdirectories are
// first moved up into `root` under names that are taken by nothing, so that no depth exhausts
// handles.
absl::Status RemoveEntry(int root, int directory, const std::string& name, const std::string& path);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_DIRECTORY_WALK_H_
