#include "sessions/workspace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/status.h"
#include "base/unique_fd.h"
#include "sessions/directory_walk.h"
#include "sessions/restorer.h"
#include "sessions/snapshotter.h"

namespace agentd::sessions::internal {
namespace {

// Directories that are remembered; a user has 128 inotify queues by default.
constexpr size_t kMaxSlots = 64;
// What the header calls missing is found after so many snapshots: a walk takes longer than all of
// them together, and is still not felt.
constexpr int kSnapshotsPerWalk = 64;

absl::StatusOr<UniqueFd> OpenRoot(const std::filesystem::path& directory) {
  // A program inside may have taken away the permissions of the root, which no tree records.
  struct stat status;
  if (::stat(directory.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
      status.st_uid == ::geteuid() && (status.st_mode & 0700) != 0700) {
    (void)::chmod(directory.c_str(), (status.st_mode & 07777) | 0700);
  }
  UniqueFd root(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return ErrnoError(errno, "open workspace " + directory.string());
  return root;
}

}  // namespace

std::shared_ptr<Workspaces::Slot> Workspaces::SlotOf(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::path canonical = std::filesystem::weakly_canonical(directory, error);
  if (error) canonical = directory;
  std::shared_ptr<Slot> slot, dropped;  // the latter destroyed without the lock
  std::lock_guard lock(mutex_);
  std::shared_ptr<Slot>& here = slots_[canonical.string()];
  if (here == nullptr) here = std::make_shared<Slot>();
  here->used_at = ++uses_;
  slot = here;
  if (slots_.size() <= kMaxSlots) return slot;
  auto oldest = slots_.end();
  for (auto it = slots_.begin(); it != slots_.end(); ++it) {
    const bool idle = it->second.use_count() == 1;
    if (idle && (oldest == slots_.end() || it->second->used_at < oldest->second->used_at))
      oldest = it;
  }
  if (oldest == slots_.end()) return slot;
  dropped = std::move(oldest->second);
  slots_.erase(oldest);
  return slot;
}

void Workspaces::Forget(const std::set<std::string>& keys) {
  if (keys.empty()) return;
  std::lock_guard lock(mutex_);
  for (const auto& [directory, slot] : slots_) {
    std::lock_guard slot_lock(slot->mutex);
    slot->known.Forget(keys, [this](const Sha256Digest& id, bool is_directory) {
      return is_directory ? objects_.DirectoryKeyOf(id) : objects_.ChunkKeyOf(id);
    });
  }
}

void Workspaces::StartFeed(KnownTree& known, int root) {
  known.DropFeed();
  if (!options_.watch || !ChangeFeed::CanWatch(root)) return;
  absl::StatusOr<std::unique_ptr<ChangeFeed>> feed = ChangeFeed::Start(options_.feed);
  if (!feed.ok()) return;
  const absl::StatusOr<int> watch = (*feed)->Watch(root);
  if (!watch.ok()) return;
  known.feed = *std::move(feed);
  known.root.watch = *watch;
  known.by_watch[*watch] = &known.root;
  known.snapshots_to_walk = kSnapshotsPerWalk;
}

// Puts what may have changed on the lists of what is to be looked at.
void Workspaces::FollowChanges(KnownTree& known, int root) {
  if (known.feed == nullptr) {
    if (--known.snapshots_to_feed < 0) StartFeed(known, root);
  } else if (const absl::StatusOr<int> watch = known.feed->Watch(root);
             !watch.ok() || *watch != known.root.watch) {
    StartFeed(known, root);  // another directory has taken the place of the one that we know
  } else if (known.TakeNotices() && --known.snapshots_to_walk < 0) {
    SuspectAll(known.root, /*believe_notices=*/true);
    known.snapshots_to_walk = kSnapshotsPerWalk;
  }
  if (known.feed == nullptr) SuspectAll(known.root, /*believe_notices=*/false);
}

absl::StatusOr<WorkspaceSnapshot> Workspaces::Snapshot(const std::filesystem::path& directory) {
  const std::shared_ptr<Slot> slot = SlotOf(directory);
  std::lock_guard lock(slot->mutex);
  KnownTree& known = slot->known;
  ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(directory));
  FollowChanges(known, root.get());
  ++snapshots_;
  if (!known.root.listed) ++walks_;
  if (known.feed == nullptr) ++unwatched_walks_;
  Snapshotter snapshotter(objects_, known);
  absl::StatusOr<WorkspaceSnapshot> snapshot = snapshotter.Run(root.get());
  files_read_ += snapshotter.counts().files_read;
  special_files_skipped_ += snapshotter.counts().special_files;
  if (!snapshot.ok()) return Annotate(snapshot.status(), "snapshot of " + directory.string());
  return snapshot;
}

absl::Status Workspaces::Restore(const TreeId& tree, const std::filesystem::path& directory) {
  const std::shared_ptr<Slot> slot = SlotOf(directory);
  std::lock_guard lock(slot->mutex);
  RETURN_IF_ERROR(objects_.CheckTree(tree));
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoError(errno, "create workspace " + directory.string());
  }
  ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(directory));
  if (slot->known.feed != nullptr) slot->known.TakeNotices();
  Restorer restorer(objects_, slot->known, root.get());
  const absl::Status status = restorer.Run(tree);
  files_read_ += restorer.files_read();
  return Annotate(status, "restore to " + directory.string());
}

absl::Status Workspaces::Clear(const std::filesystem::path& directory) {
  const std::shared_ptr<Slot> slot = SlotOf(directory);
  std::lock_guard lock(slot->mutex);
  slot->known = KnownTree();  // it goes, or another tree comes
  ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(directory));
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListDirectory(root.get(), directory.string()));
  for (const std::string& name : names)
    RETURN_IF_ERROR(RemoveEntry(root.get(), root.get(), name, (directory / name).string()));
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
