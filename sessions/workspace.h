// Workspace trees: from a directory to content-addressed objects and back.
//
// Walks by open directory handles and O_NOFOLLOW alone, so that whatever the directory holds,
// nothing outside is read, written or deleted. Kept: regular files, permission bits (not setuid and
// setgid of files), symlinks as text, empty directories. Hard links become separate files; holes
// are not read, and blocks of zeros come back as holes. Not kept: owners, times, extended
// attributes; fifos, sockets and devices are skipped and counted. Of a file that is written without
// a pause a snapshot holds what it read; of one that is removed meanwhile, nothing. A tree that is
// too large (record.h) is refused.
//
// What a snapshot looks at. The first one walks over everything and has the kernel watch every
// directory (change_feed.h); later ones look at what it has noticed, and at these, each time: files
// that somebody has open for writing or mapped, files with several names, other users' files. All
// is looked at (an lstat each) when notices were lost, where the kernel does not tell which file
// gets a new name (before Linux 5.19, or where fanotify is forbidden) when a new file has gone
// after it was written or was moved over (it may have been a hard link to a file that was not
// noticed), and every 64th time anyway. Where there are no notices (another file system than ext4,
// xfs, btrfs, f2fs or tmpfs; more directories than the user may watch) that is each time. What is
// read then are files whose stamp is another, or cannot be believed (file_contents.h).
//
// So what was written when Snapshot begins is in it, whoever wrote it, whatever times were set.
// Missed until the next look at all is only what comes without a notice: a write through a name
// outside of the directory (a hard link made there), or through a hard link that came and went in a
// directory which was made since the last snapshot; one through /proc/PID/fd of a name that is
// gone; and what is mounted over a directory.
#ifndef AGENTD_SESSIONS_WORKSPACE_H_
#define AGENTD_SESSIONS_WORKSPACE_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "sessions/change_feed.h"
#include "sessions/file_objects.h"
#include "sessions/known_tree.h"

namespace agentd::sessions::internal {

struct WorkspaceOptions {
  bool watch = true;  // false: each snapshot walks
  ChangeFeedOptions feed;
};

class Workspaces {
 public:
  explicit Workspaces(FileObjects& objects, const WorkspaceOptions& options = {})
      : objects_(objects), options_(options) {}

  absl::StatusOr<WorkspaceSnapshot> Snapshot(const std::filesystem::path& directory);
  absl::Status Restore(const TreeId& tree, const std::filesystem::path& directory);
  // Leaves an empty directory, whatever the permissions inside.
  absl::Status Clear(const std::filesystem::path& directory);
  // These objects (keys in `files`) may be gone. No snapshot or restore is under way.
  void Forget(const std::set<std::string>& keys);

  int64_t special_files_skipped() const { return special_files_skipped_; }
  int64_t files_read() const { return files_read_; }
  int64_t snapshots() const { return snapshots_; }
  // Of them, those that looked at everything; and of those, such for which there were no notices.
  int64_t walks() const { return walks_; }
  int64_t unwatched_walks() const { return unwatched_walks_; }

 private:
  struct Slot {
    std::mutex mutex;      // one snapshot or restore of a directory at a time
    KnownTree known;       // guarded by mutex
    uint64_t used_at = 0;  // guarded by Workspaces::mutex_
  };
  std::shared_ptr<Slot> SlotOf(const std::filesystem::path& directory);
  void FollowChanges(KnownTree& known, int root);
  void StartFeed(KnownTree& known, int root);

  FileObjects& objects_;
  const WorkspaceOptions options_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Slot>>
      slots_;          // guarded by mutex_; shared with the calls in flight
  uint64_t uses_ = 0;  // guarded by mutex_
  std::atomic<int64_t> special_files_skipped_ = 0;
  std::atomic<int64_t> files_read_ = 0;
  std::atomic<int64_t> snapshots_ = 0, walks_ = 0, unwatched_walks_ = 0;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_WORKSPACE_H_
