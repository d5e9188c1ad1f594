// Workspace trees: from a directory to content-addressed objects and back.
//
// Walks by open directory handles and O_NOFOLLOW alone, so that whatever the directory holds,
// nothing outside is read, written or deleted. Kept: regular files, permission bits (not setuid and
// setgid of files), symlinks as text, empty directories. Hard links become separate files;
// holes are not read, and blocks of zeros come back as holes. Not kept: owners, times, extended
// attributes; fifos, sockets and devices are skipped and counted. Of a file that is written without
// a pause a snapshot holds what it read; of one that is removed meanwhile, nothing. A tree that is
// too large (record.h) is refused.
#ifndef AGENTD_SESSIONS_WORKSPACE_H_
#define AGENTD_SESSIONS_WORKSPACE_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/file_contents.h"
#include "sessions/file_objects.h"

namespace agentd::sessions::internal {

struct CachedFile {
  FileStamp stamp;
  std::vector<Sha256Digest> chunks;
};

// Path relative to the workspace -> contents; of files whose stamp can be believed.
using StatCache = std::map<std::string, CachedFile>;

class Workspaces {
 public:
  explicit Workspaces(FileObjects& objects) : objects_(objects) {}

  absl::StatusOr<WorkspaceSnapshot> Snapshot(const std::filesystem::path& directory);
  absl::Status Restore(const TreeId& tree, const std::filesystem::path& directory);
  // Leaves an empty directory, whatever the permissions inside.
  absl::Status Clear(const std::filesystem::path& directory);
  // After a sweep: cached chunks may be gone.
  void ForgetCaches();

  int64_t special_files_skipped() const { return special_files_skipped_; }
  int64_t files_read() const { return files_read_; }

 private:
  struct Slot {
    std::mutex mutex;  // one snapshot or restore of a directory at a time
    StatCache cache;   // guarded by mutex
  };
  std::shared_ptr<Slot> SlotOf(const std::filesystem::path& directory);

  FileObjects& objects_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Slot>>
      slots_;  // guarded by mutex_; shared with the calls in flight
  std::atomic<int64_t> special_files_skipped_ = 0;
  std::atomic<int64_t> files_read_ = 0;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_WORKSPACE_H_
