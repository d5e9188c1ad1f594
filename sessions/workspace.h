// Workspace trees: from a directory to content-addressed objects and back.
//
// Walks by open directory handles and O_NOFOLLOW alone, so that whatever the directory holds,
// nothing outside is read, written or deleted. Kept: regular files, permission bits (not setuid and
// setgid of files), symlinks as text, empty directories. Hard links become separate files. Not
// kept: owners, times, extended attributes; fifos, sockets and devices are skipped and counted.
// Of a file that is written without a pause a snapshot holds what it read; of one that is removed
// meanwhile, nothing.
#ifndef AGENTD_SESSIONS_WORKSPACE_H_
#define AGENTD_SESSIONS_WORKSPACE_H_

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/file_objects.h"

namespace agentd::sessions::internal {

// What a file looked like when its chunks were computed.
struct FileStamp {
  uint64_t device = 0, inode = 0, size_bytes = 0;
  int64_t mtime_ns = 0, ctime_ns = 0;
  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};
FileStamp StampOf(const struct stat& status);

struct CachedFile {
  FileStamp stamp;
  std::vector<Sha256Digest> chunks;
};

// Path relative to the workspace -> contents. Holds only files that were quiet for a while before
// they were read: one that changed within its time stamp's granularity of the reading could change
// again unseen.
using StatCache = std::map<std::string, CachedFile>;

// Whether a file with this stamp, read at `now_ns` (wall clock), may be cached.
bool IsSettled(const FileStamp& stamp, int64_t now_ns);

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
