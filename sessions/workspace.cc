#include "sessions/workspace.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "base/status.h"
#include "sessions/directory_walk.h"

namespace agentd::sessions::internal {
namespace {

constexpr int kReadAttempts = 3;
constexpr size_t kMaxSlots = 256;  // directories whose files are remembered

std::string Join(const std::string& directory, const std::string& name) {
  return directory.empty() ? name : directory + "/" + name;
}

absl::Status TooDeep(const std::string& path) {
  return FailedPrecondition("{} is nested deeper than {} directories", path, kMaxTreeDepth);
}

// `path` is the file or directory with which it is too much.
absl::Status CheckSize(const std::string& path, uint64_t entries, uint64_t bytes) {
  if (bytes > kMaxTreeBytes) {
    return FailedPrecondition(
        "with {} there are {} bytes (holes counted), and a workspace holds {}", path, bytes,
        kMaxTreeBytes);
  }
  if (entries > kMaxTreeEntries) {
    return FailedPrecondition(
        "with {} there are {} files and directories, and a workspace holds {}", path, entries,
        kMaxTreeEntries);
  }
  return absl::OkStatus();
}

absl::Status CheckRecord(const std::string& path, size_t bytes) {
  if (bytes <= kMaxDirectoryBytes) return absl::OkStatus();
  return FailedPrecondition(
      "the list of what is in {} takes {} bytes, and may take {}: use several directories",
      path.empty() ? "the workspace" : path, bytes, kMaxDirectoryBytes);
}

absl::StatusOr<std::string> ReadLink(int directory, const std::string& name,
                                     const std::string& path) {
  std::string target(4096, '\0');  // PATH_MAX: no longer one can be made
  const ssize_t size = ::readlinkat(directory, name.c_str(), target.data(), target.size());
  if (size < 0) return ErrnoError(errno, "readlink " + path);
  target.resize(static_cast<size_t>(size));
  return target;
}

// Computes the chunks of a file, from the cache when its stamp is known.
class FileHasher {
 public:
  FileHasher(const StatCache& known, StatCache& fresh, std::atomic<int64_t>& files_read)
      : known_(known), fresh_(fresh), files_read_(files_read) {}

  absl::Status Hash(int directory, const std::string& name, const std::string& relative,
                    const struct stat& status, DirectoryEntry& entry, const ChunkSink& sink) {
    const FileStamp stamp = StampOf(status);
    if (const auto found = known_.find(relative);
        found != known_.end() && found->second.stamp == stamp) {
      entry.size_bytes = stamp.size_bytes;
      entry.chunks = found->second.chunks;
      fresh_[relative] = found->second;
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const OpenedEntry file,
                     OpenEntry(directory, name, /*as_directory=*/false, relative));
    ++files_read_;
    for (int attempt = 1;; ++attempt) {
      const Writers writers = WritersOf(file.fd());
      struct stat before, after;
      if (::fstat(file.fd(), &before) != 0) return ErrnoError(errno, "stat " + relative);
      if (!S_ISREG(before.st_mode)) break;  // swapped under us
      const int64_t now_ns = WallClockNs();
      RETURN_IF_ERROR(
          ReadContents(file.fd(), relative, static_cast<uint64_t>(before.st_size), entry, sink));
      if (::fstat(file.fd(), &after) != 0) return ErrnoError(errno, "stat " + relative);
      const FileStamp read = StampOf(before);
      const bool quiet = StampOf(after) == read && entry.size_bytes == read.size_bytes;
      if (!quiet && attempt < kReadAttempts) continue;
      if (quiet && writers != Writers::kSome && IsSettled(read, now_ns))
        fresh_[relative] = {read, entry.chunks};
      return absl::OkStatus();
    }
    return absl::AbortedError(relative + " is replaced while it is read");
  }

 private:
  const StatCache& known_;
  StatCache& fresh_;
  std::atomic<int64_t>& files_read_;
};

class Snapshotter {
 public:
  Snapshotter(FileObjects& objects, const StatCache& known, std::atomic<int64_t>& skipped,
              std::atomic<int64_t>& files_read)
      : writer_(objects), hasher_(known, fresh_, files_read), skipped_(skipped) {}

  absl::StatusOr<WorkspaceSnapshot> Run(int root) {
    WorkspaceSnapshot snapshot;
    ASSIGN_OR_RETURN(const Below whole, Directory(root, "", 0));
    snapshot.tree = whole.id;
    ASSIGN_OR_RETURN(snapshot.hold, writer_.Finish(snapshot.tree));
    return snapshot;
  }
  StatCache TakeCache() { return std::move(fresh_); }

 private:
  // What is in a directory and below it.
  struct Below {
    Sha256Digest id{};
    uint64_t entries = 0, bytes = 0;
  };

  absl::StatusOr<Below> Directory(int fd, const std::string& path, int depth) {
    if (depth > kMaxTreeDepth) return TooDeep(path);
    ASSIGN_OR_RETURN(const std::vector<std::string> names,
                     ListDirectory(fd, path.empty() ? "workspace" : path));
    std::vector<DirectoryEntry> entries;
    Below below;
    for (const std::string& name : names) {
      const std::string relative = Join(path, name);
      DirectoryEntry entry;
      entry.name = name;
      ASSIGN_OR_RETURN(const bool kept, Entry(fd, relative, depth, entry, below));
      if (!kept) continue;
      ++below.entries;
      below.bytes += entry.size_bytes;
      RETURN_IF_ERROR(CheckSize(relative, below.entries, below.bytes));
      entries.push_back(std::move(entry));
    }
    const std::string payload = DirectoryPayload(entries);
    RETURN_IF_ERROR(CheckRecord(path, payload.size()));
    ASSIGN_OR_RETURN(below.id, writer_.PutDirectory(payload));
    return below;
  }

  // False: nothing to keep. What a process of the session removes while we look was not there.
  absl::StatusOr<bool> Entry(int fd, const std::string& relative, int depth, DirectoryEntry& entry,
                             Below& below) {
    const std::string& name = entry.name;
    const absl::StatusOr<struct stat> found = StatAt(fd, name, relative);
    if (absl::IsNotFound(found.status())) return false;
    if (!found.ok()) return found.status();
    const struct stat& status = *found;
    absl::Status read;
    if (S_ISREG(status.st_mode)) {
      RETURN_IF_ERROR(CheckSize(relative, 1, static_cast<uint64_t>(status.st_size)));
      entry.type = EntryType::kFile;
      entry.mode = status.st_mode & 0777;  // a restored file is ours: setuid would lend our rights
      read =
          hasher_.Hash(fd, name, relative, status, entry,
                       [this](size_t, std::string_view chunk) { return writer_.PutChunk(chunk); });
    } else if (S_ISDIR(status.st_mode)) {
      entry.type = EntryType::kDirectory;
      entry.mode = status.st_mode & 07777;
      absl::StatusOr<OpenedEntry> child = OpenEntry(fd, name, /*as_directory=*/true, relative);
      read = child.status();
      if (read.ok()) {
        ASSIGN_OR_RETURN(const Below inside, Directory(child->fd(), relative, depth + 1));
        entry.chunks.push_back(inside.id);
        below.entries += inside.entries;
        below.bytes += inside.bytes;
      }
    } else if (S_ISLNK(status.st_mode)) {
      entry.type = EntryType::kSymlink;
      absl::StatusOr<std::string> target = ReadLink(fd, name, relative);
      read = target.status();
      if (read.ok()) entry.target = *std::move(target);
    } else {
      ++skipped_;
      return false;
    }
    if (absl::IsNotFound(read)) return false;
    return read.ok() ? absl::StatusOr<bool>(true) : read;
  }

  StatCache fresh_;
  FileObjects::Writer writer_;
  FileHasher hasher_;
  std::atomic<int64_t>& skipped_;
};

class Restorer {
 public:
  Restorer(FileObjects& objects, int root, const StatCache& known, std::atomic<int64_t>& files_read)
      : objects_(objects), root_(root), hasher_(known, fresh_, files_read) {}

  absl::Status Directory(int fd, const Sha256Digest& id, const std::string& path, int depth) {
    if (depth > kMaxTreeDepth) return TooDeep(path);
    ASSIGN_OR_RETURN(const std::vector<DirectoryEntry> entries, objects_.ReadDirectory(id));
    ASSIGN_OR_RETURN(const std::vector<std::string> names,
                     ListDirectory(fd, path.empty() ? "workspace" : path));
    std::set<std::string> extra(names.begin(), names.end());
    for (const DirectoryEntry& entry : entries) extra.erase(entry.name);
    for (const std::string& name : extra)
      RETURN_IF_ERROR(RemoveEntry(root_, fd, name, Join(path, name)));
    for (const DirectoryEntry& entry : entries) {
      const std::string relative = Join(path, entry.name);
      switch (entry.type) {
        case EntryType::kFile:
          RETURN_IF_ERROR(File(fd, entry, relative));
          break;
        case EntryType::kSymlink:
          RETURN_IF_ERROR(Symlink(fd, entry, relative));
          break;
        case EntryType::kDirectory:
          RETURN_IF_ERROR(Subdirectory(fd, entry, relative, depth));
          break;
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Subdirectory(int fd, const DirectoryEntry& entry, const std::string& path,
                            int depth) {
    struct stat status;
    const bool exists = ::fstatat(fd, entry.name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
    if (exists && !S_ISDIR(status.st_mode))
      RETURN_IF_ERROR(RemoveEntry(root_, fd, entry.name, path));
    if ((!exists || !S_ISDIR(status.st_mode)) && ::mkdirat(fd, entry.name.c_str(), 0700) != 0) {
      return ErrnoError(errno, "mkdir " + path);
    }
    ASSIGN_OR_RETURN(OpenedEntry child, OpenEntry(fd, entry.name, /*as_directory=*/true, path));
    child.KeepMode();
    if (::fstat(child.fd(), &status) != 0) return ErrnoError(errno, "stat " + path);
    // Ours to write in until its contents stand; then the mode of the tree.
    if (status.st_uid == ::geteuid() && (status.st_mode & 0700) != 0700 &&
        ::fchmod(child.fd(), (status.st_mode & 07777) | 0700) != 0) {
      return ErrnoError(errno, "chmod " + path);
    }
    RETURN_IF_ERROR(Directory(child.fd(), entry.chunks[0], path, depth + 1));
    if (::fstat(child.fd(), &status) != 0) return ErrnoError(errno, "stat " + path);
    if ((status.st_mode & 07777) != entry.mode && ::fchmod(child.fd(), entry.mode) != 0) {
      return ErrnoError(errno, "chmod " + path);
    }
    return absl::OkStatus();
  }

  absl::Status Symlink(int fd, const DirectoryEntry& entry, const std::string& path) {
    struct stat status;
    if (::fstatat(fd, entry.name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) {
      if (S_ISLNK(status.st_mode)) {
        ASSIGN_OR_RETURN(const std::string target, ReadLink(fd, entry.name, path));
        if (target == entry.target) return absl::OkStatus();
      }
      RETURN_IF_ERROR(RemoveEntry(root_, fd, entry.name, path));
    }
    if (::symlinkat(entry.target.c_str(), fd, entry.name.c_str()) != 0)
      return ErrnoError(errno, "symlink " + path);
    return absl::OkStatus();
  }

  absl::Status File(int fd, const DirectoryEntry& entry, const std::string& path) {
    struct stat status;
    if (::fstatat(fd, entry.name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) {
      ASSIGN_OR_RETURN(const bool same, IsSame(fd, entry, path, status));
      if (same) return absl::OkStatus();
      if (S_ISDIR(status.st_mode)) RETURN_IF_ERROR(RemoveEntry(root_, fd, entry.name, path));
    }
    return WriteFile(fd, entry, path);
  }

  // Whether nothing has to be written; mends the mode alone where that is safe.
  absl::StatusOr<bool> IsSame(int fd, const DirectoryEntry& entry, const std::string& path,
                              const struct stat& status) {
    if (!S_ISREG(status.st_mode) || static_cast<uint64_t>(status.st_size) != entry.size_bytes)
      return false;
    const bool mode_differs = (status.st_mode & 07777) != entry.mode;
    // Another name of this inode may lie outside: leave it and write a file of our own.
    if (mode_differs && status.st_nlink > 1) return false;
    DirectoryEntry now;
    const absl::Status hashed =
        hasher_.Hash(fd, entry.name, path, status, now,
                     [](size_t, std::string_view chunk) -> absl::StatusOr<Sha256Digest> {
                       return Sha256Of(chunk);
                     });
    if (!hashed.ok() || now.chunks != entry.chunks) return false;
    if (!mode_differs) return true;
    UniqueFd file(::openat(fd, entry.name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    struct stat opened;
    return file.valid() && ::fstat(file.get(), &opened) == 0 && opened.st_ino == status.st_ino &&
           opened.st_nlink == 1 && ::fchmod(file.get(), entry.mode) == 0;
  }

  // To a new inode that takes the name at the end: never through a link, never half a file under
  // the name.
  absl::Status WriteFile(int fd, const DirectoryEntry& entry, const std::string& path) {
    std::string temporary;
    UniqueFd file;
    do {
      temporary = fmt::format(".agentd-restored-{}", ++temporaries_);
      file.Reset(::openat(fd, temporary.c_str(),
                          O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    } while (!file.valid() && errno == EEXIST);
    if (!file.valid()) return ErrnoError(errno, "create " + path);
    const absl::Status status = Fill(file.get(), entry, path);
    if (!status.ok() || ::renameat(fd, temporary.c_str(), fd, entry.name.c_str()) != 0) {
      const int error = errno;
      (void)::unlinkat(fd, temporary.c_str(), 0);
      return status.ok() ? ErrnoError(error, "rename " + path) : status;
    }
    return absl::OkStatus();
  }

  absl::Status Fill(int file, const DirectoryEntry& entry, const std::string& path) {
    RETURN_IF_ERROR(WriteContents(
        file, path, entry, [this](const Sha256Digest& id) { return objects_.ReadChunk(id); }));
    if (::fchmod(file, entry.mode) != 0) return ErrnoError(errno, "chmod " + path);
    return absl::OkStatus();
  }

  FileObjects& objects_;
  const int root_;
  StatCache fresh_;
  FileHasher hasher_;
  int temporaries_ = 0;
};

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
  std::lock_guard lock(mutex_);
  if (slots_.size() >= kMaxSlots)
    std::erase_if(slots_, [](const auto& entry) { return entry.second.use_count() == 1; });
  std::shared_ptr<Slot>& slot = slots_[canonical.string()];
  if (slot == nullptr) slot = std::make_shared<Slot>();
  return slot;
}

void Workspaces::ForgetCaches() {
  std::lock_guard lock(mutex_);
  slots_.clear();
}

absl::StatusOr<WorkspaceSnapshot> Workspaces::Snapshot(const std::filesystem::path& directory) {
  const std::shared_ptr<Slot> slot = SlotOf(directory);
  std::lock_guard lock(slot->mutex);
  ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(directory));
  Snapshotter snapshotter(objects_, slot->cache, special_files_skipped_, files_read_);
  absl::StatusOr<WorkspaceSnapshot> snapshot = snapshotter.Run(root.get());
  if (!snapshot.ok()) return Annotate(snapshot.status(), "snapshot of " + directory.string());
  slot->cache = snapshotter.TakeCache();
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
  Restorer restorer(objects_, root.get(), slot->cache, files_read_);
  return Annotate(restorer.Directory(root.get(), tree, "", 0), "restore to " + directory.string());
}

absl::Status Workspaces::Clear(const std::filesystem::path& directory) {
  const std::shared_ptr<Slot> slot = SlotOf(directory);
  std::lock_guard lock(slot->mutex);
  ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(directory));
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListDirectory(root.get(), directory.string()));
  for (const std::string& name : names)
    RETURN_IF_ERROR(RemoveEntry(root.get(), root.get(), name, (directory / name).string()));
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
