#include "sessions/snapshotter.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <span>

#include "base/status.h"

namespace agentd::sessions::internal {
namespace {

constexpr int kLooks = 5;  // at a name that is another thing each time
constexpr int kReadAttempts = 3;
constexpr size_t kFilesOpen = 64;
// Files of a snapshot that are opened only to see that nobody writes to them (some 6 us each):
// after something has read the whole workspace, the next snapshots share the work.
constexpr int kProofs = 16384;

// `path` is the file or directory with which it is too much.
absl::Status CheckTreeSize(const std::string& path, uint64_t entries, uint64_t bytes) {
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

absl::Status CheckRecordSize(const std::string& path, size_t bytes) {
  if (bytes <= kMaxDirectoryBytes) return absl::OkStatus();
  return FailedPrecondition(
      "the list of what is in {} takes {} bytes, and may take {}: use several directories",
      path.empty() ? "the workspace" : path, bytes, kMaxDirectoryBytes);
}

}  // namespace

absl::StatusOr<WorkspaceSnapshot> Snapshotter::Run(int root) {
  proofs_left_ = kProofs;
  const absl::Status status = RunPasses(root);
  ForgetOrphans();
  WorkspaceSnapshot snapshot;
  if (status.ok()) {
    snapshot.tree = *known_.root.id;
    snapshot.entries = static_cast<int64_t>(known_.root.entries_below);
    snapshot.allocated_bytes = static_cast<int64_t>(known_.root.allocated_below);
    absl::StatusOr<FileObjects::Hold> hold = writer_.Finish(snapshot.tree);
    if (hold.ok()) {
      snapshot.hold = *std::move(hold);
      return snapshot;
    }
    known_ = KnownTree();  // what it calls stored may not be
    return hold.status();
  }
  if (writer_.Flush().ok()) {
    SuspectAll(known_.root, /*believe_notices=*/false);
  } else {
    known_ = KnownTree();
  }
  return status;
}

absl::Status Snapshotter::RunPasses(int root) {
  struct stat status;
  if (::fstat(root, &status) != 0) return ErrnoError(errno, "stat");
  device_ = status.st_dev;
  do {
    RETURN_IF_ERROR(Refresh(known_.root, root, "", 0));
  } while (SuspectOtherNames() || SuspectWhatLeft());
  return absl::OkStatus();
}

// What was linked into a directory that has left the workspace can be written there. Whether all is
// to be looked at again.
bool Snapshotter::SuspectWhatLeft() {
  const bool left = std::any_of(orphans_.begin(), orphans_.end(),
                                [](const auto& orphan) { return orphan.second->watch >= 0; });
  ForgetOrphans();
  if (!left || left_) return false;
  left_ = true;
  SuspectAll(known_.root, /*believe_notices=*/true);
  return true;
}

void Snapshotter::ForgetOrphans() {
  for (auto& [directory, orphan] : orphans_) known_.Unwatch(*orphan);
  orphans_.clear();
}

// Another name of an inode does not hear of what is written under the first. Whether there is
// something to look at again.
bool Snapshotter::SuspectOtherNames() {
  if (linked_.empty()) return false;
  bool found = false;
  ForEachDirectory(known_.root, [&](KnownDirectory& directory) {
    for (auto& [name, known] : directory.entries) {
      if (!known.rests || !linked_.contains({known.stamp.device, known.stamp.inode})) continue;
      known.rests = false;
      Suspect(directory, name);
      found = true;
    }
  });
  linked_.clear();
  return found;
}

absl::Status Snapshotter::Refresh(KnownDirectory& directory, int fd, const std::string& path,
                                  int depth) {
  if (depth > kMaxTreeDepth)
    return FailedPrecondition("{} is nested deeper than {} directories", path, kMaxTreeDepth);
  if (directory.listed && directory.suspects.empty() && directory.id.has_value())
    return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto names, NamesToLookAt(directory, fd, path));
  directory.open = true;
  Place place{directory, fd, path, depth, names};
  absl::Status status;
  for (int look = 1; status.ok() && !place.again.empty(); ++look) {
    if (look > kLooks) {
      status = place.error;
      break;
    }
    std::vector<File> files;
    for (const std::string& name : std::exchange(place.again, {})) {
      status = Look(place, name, files);
      if (!status.ok()) break;
    }
    if (status.ok()) status = OpenFiles(place, std::move(files));
  }
  directory.open = false;
  RETURN_IF_ERROR(status);
  directory.allocated_below = 0;
  for (const auto& [name, known] : directory.entries)
    directory.allocated_below +=
        known.directory != nullptr ? known.directory->allocated_below : known.allocated_bytes;
  return directory.id.has_value() ? absl::OkStatus() : Store(place);
}

absl::StatusOr<std::set<std::string, std::less<>>> Snapshotter::NamesToLookAt(
    KnownDirectory& directory, int fd, const std::string& path) {
  std::set<std::string, std::less<>> names = std::exchange(directory.suspects, {});
  if (directory.listed) return names;
  ASSIGN_OR_RETURN(const std::vector<std::string> listed,
                   ListDirectory(fd, path.empty() ? "workspace" : path));
  names = {listed.begin(), listed.end()};
  std::vector<std::string> gone;
  for (const auto& [name, known] : directory.entries)
    if (!names.contains(name)) gone.push_back(name);
  for (const std::string& name : gone) Drop(directory, name);
  directory.listed = true;
  return names;
}

absl::Status Snapshotter::Look(Place& place, const std::string& name, std::vector<File>& files) {
  const absl::StatusOr<struct stat> found = StatAt(place.fd, name, place.PathOf(name));
  // What a process of the session removes while we look was not there.
  if (absl::IsNotFound(found.status())) {
    Drop(place.known, name);
    return absl::OkStatus();
  }
  if (!found.ok()) return found.status();
  const struct stat& status = *found;
  const auto known = place.known.entries.find(name);
  const auto was =
      known == place.known.entries.end() ? std::optional<EntryType>() : known->second.entry.type;
  const auto only = [&](EntryType type) {
    if (was.has_value() && was != type) Drop(place.known, name);
  };
  switch (status.st_mode & S_IFMT) {
    case S_IFREG:
      only(EntryType::kFile);
      RETURN_IF_ERROR(CheckTreeSize(place.PathOf(name), 1, static_cast<uint64_t>(status.st_size)));
      LookAtFile(place, name, status, files);
      return absl::OkStatus();
    case S_IFLNK:
      only(EntryType::kSymlink);
      return LookAtLink(place, name);
    case S_IFDIR:
      only(EntryType::kDirectory);
      return LookAtDirectory(place, name, status);
    default:
      ++counts_.special_files;
      Drop(place.known, name);
      return absl::OkStatus();
  }
}

// What was of one type could not be reached as that: it is gone, or another thing by now, or else
// that is an error.
absl::Status Snapshotter::LookAgain(Place& place, const std::string& name,
                                    const absl::Status& error) {
  place.again.insert(name);
  place.error = error.ok() || absl::IsNotFound(error)
                    ? absl::AbortedError(place.PathOf(name) + " is replaced whenever it is read")
                    : error;
  return absl::OkStatus();
}

void Snapshotter::LookAtFile(Place& place, const std::string& name, const struct stat& status,
                             std::vector<File>& files) {
  const auto found = place.known.entries.find(name);
  if (found == place.known.entries.end() || found->second.stamp != StampOf(status) ||
      !(found->second.believed || found->second.rests)) {
    files.push_back({name, status});
    return;
  }
  KnownEntry& known = found->second;
  if (known.rests || status.st_nlink > 1 || known_.feed == nullptr || proofs_left_ == 0) {
    SetRests(place, name, known, known.rests, status);
    return;
  }
  --proofs_left_;
  files.push_back({name, status, /*read=*/false});
}

// A file that does not rest is looked at in each snapshot.
void Snapshotter::SetRests(Place& place, const std::string& name, KnownEntry& known, bool rests,
                           const struct stat& status) {
  const bool linked = status.st_nlink > 1;
  known.allocated_bytes =
      static_cast<uint64_t>(status.st_blocks) * 512 / std::max<uint64_t>(status.st_nlink, 1);
  known.rests = rests && !linked && place.known.watch >= 0;
  if (known_.feed == nullptr) return;
  if (linked && !known.linked) linked_.emplace(status.st_dev, status.st_ino);
  known.linked = linked;
  if (!known.rests) Suspect(place.known, name);
}

absl::Status Snapshotter::LookAtLink(Place& place, const std::string& name) {
  absl::StatusOr<std::string> target = ReadLinkAt(place.fd, name, place.PathOf(name));
  if (!target.ok()) return LookAgain(place, name, target.status());
  DirectoryEntry entry;
  entry.name = name;
  entry.type = EntryType::kSymlink;
  entry.target = *std::move(target);
  SetEntry(place.known, place.known.entries[name], std::move(entry));
  return absl::OkStatus();
}

absl::Status Snapshotter::LookAtDirectory(Place& place, const std::string& name,
                                          const struct stat& status) {
  const std::string path = place.PathOf(name);
  const absl::StatusOr<OpenedEntry> child = OpenEntry(place.fd, name, /*as_directory=*/true, path);
  if (!child.ok()) return LookAgain(place, name, child.status());
  KnownDirectory* const directory = Attach(place.known, name, Watch(child->fd(), status));
  // Moved here from above us while we look: the next snapshot finds out.
  if (directory == nullptr) {
    Drop(place.known, name);
    Suspect(place.known, name);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Refresh(*directory, child->fd(), path, place.depth + 1));
  DirectoryEntry entry;
  entry.name = name;
  entry.type = EntryType::kDirectory;
  entry.mode = status.st_mode & 07777;
  entry.chunks = {*directory->id};
  SetEntry(place.known, place.known.entries[name], std::move(entry));
  return absl::OkStatus();
}

absl::Status Snapshotter::OpenFiles(Place& place, std::vector<File> files) {
  for (size_t begin = 0; begin < files.size(); begin += kFilesOpen) {
    const std::span<const File> batch =
        std::span(files).subspan(begin, std::min(kFilesOpen, files.size() - begin));
    std::vector<absl::StatusOr<OpenedEntry>> opened;
    std::vector<std::string> names;
    for (const File& file : batch) {
      opened.push_back(
          OpenEntry(place.fd, file.name, /*as_directory=*/false, place.PathOf(file.name)));
      names.push_back(file.name);
    }
    // That we have opened them is noticed too. Who else has, and may still write, is asked after
    // this; who opens one after this is noticed.
    if (known_.feed != nullptr) known_.feed->ForgetOpens(place.known.watch, names);
    for (size_t i = 0; i < batch.size(); ++i) {
      RETURN_IF_ERROR(opened[i].ok() ? ReadFile(place, batch[i], opened[i]->fd())
                                     : LookAgain(place, names[i], opened[i].status()));
    }
  }
  return absl::OkStatus();
}

absl::Status Snapshotter::ReadFile(Place& place, const File& file, int fd) {
  const std::string path = place.PathOf(file.name);
  const auto found = place.known.entries.find(file.name);
  const std::vector<Sha256Digest> stored =
      found == place.known.entries.end() ? std::vector<Sha256Digest>() : found->second.entry.chunks;
  const ChunkSink sink = [&](size_t index, std::string_view chunk) -> absl::StatusOr<Sha256Digest> {
    const Sha256Digest id = Sha256Of(chunk);
    if (index < stored.size() && stored[index] == id) return id;
    RETURN_IF_ERROR(writer_.PutChunk(id, chunk));
    return id;
  };
  DirectoryEntry entry;
  entry.name = file.name;
  entry.mode = file.status.st_mode & 0777;  // a restored file is ours: setuid would lend our rights
  for (int attempt = 1;; ++attempt) {
    const Writers writers = WritersOf(fd);
    // Who has opened another name since, which is gone by now, has not been noticed under this one.
    const bool nobody_writes = writers == Writers::kNone && file.status.st_nlink == 1;
    struct stat before, after;
    if (::fstat(fd, &before) != 0) return ErrnoError(errno, "stat " + path);
    if (!S_ISREG(before.st_mode)) return LookAgain(place, file.name, absl::OkStatus());
    const FileStamp stamp = StampOf(before);
    if (!file.read && found != place.known.entries.end() && found->second.stamp == stamp) {
      const bool rests = nobody_writes && Number(found->second, fd);
      SetRests(place, file.name, found->second, rests, before);
      return absl::OkStatus();
    }
    if (attempt == 1) ++counts_.files_read;
    const int64_t now_ns = WallClockNs();
    RETURN_IF_ERROR(ReadContents(fd, path, stamp.size_bytes, entry, sink));
    if (::fstat(fd, &after) != 0) return ErrnoError(errno, "stat " + path);
    const bool quiet = StampOf(after) == stamp && entry.size_bytes == stamp.size_bytes;
    if (!quiet && attempt < kReadAttempts) continue;
    KnownEntry& known = place.known.entries[file.name];
    SetEntry(place.known, known, std::move(entry));
    known.stamp = stamp;
    known.believed = quiet && writers != Writers::kSome && IsSettled(stamp, now_ns);
    const bool rests = quiet && nobody_writes && Number(known, fd);
    SetRests(place, file.name, known, rests, before);
    return absl::OkStatus();
  }
}

// False: if it gets another name, that is not told.
bool Snapshotter::Number(KnownEntry& known, int fd) {
  known.id = 0;
  if (known_.feed == nullptr || !known_.feed->tells_files()) return true;
  known.id = ChangeFeed::IdOf(fd);
  if (known.id != 0) known_.rested.insert(known.id);
  return known.id != 0;
}

absl::Status Snapshotter::Store(Place& place) {
  KnownDirectory& directory = place.known;
  directory.entries_below = directory.bytes_below = 0;
  std::vector<const DirectoryEntry*> entries;
  for (const auto& [name, known] : directory.entries) {
    entries.push_back(&known.entry);
    directory.entries_below += 1;
    directory.bytes_below += known.entry.size_bytes;
    if (known.directory != nullptr) {
      directory.entries_below += known.directory->entries_below;
      directory.bytes_below += known.directory->bytes_below;
    }
    RETURN_IF_ERROR(
        CheckTreeSize(place.PathOf(name), directory.entries_below, directory.bytes_below));
  }
  const std::string payload = DirectoryPayload(entries);
  RETURN_IF_ERROR(CheckRecordSize(place.path, payload.size()));
  ASSIGN_OR_RETURN(directory.id, writer_.PutDirectory(payload));
  return absl::OkStatus();
}

// ---- what is known

void Snapshotter::SetEntry(KnownDirectory& directory, KnownEntry& known, DirectoryEntry entry) {
  if (known.entry == entry) return;
  known.entry = std::move(entry);
  directory.id.reset();
}

void Snapshotter::Drop(KnownDirectory& directory, const std::string& name) {
  const auto found = directory.entries.find(name);
  if (found == directory.entries.end()) return;
  if (found->second.directory != nullptr) {
    std::unique_ptr<KnownDirectory> orphan = std::move(found->second.directory);
    orphan->above = nullptr;
    KnownDirectory* const key = orphan.get();
    orphans_[key] = std::move(orphan);
  }
  directory.entries.erase(found);
  directory.id.reset();
}

// The number of an open directory's watch. If it cannot be watched, none is any more.
int Snapshotter::Watch(int fd, const struct stat& status) {
  if (known_.feed == nullptr) return -1;
  if (status.st_dev == device_ || ChangeFeed::CanWatch(fd)) {
    const absl::StatusOr<int> watch = known_.feed->Watch(fd);
    if (watch.ok()) return *watch;
  }
  known_.DropFeed();
  return -1;
}

// What is known of the directory that has this name and this watch (-1: none); null if it is one
// that is open, so above us.
KnownDirectory* Snapshotter::Attach(KnownDirectory& directory, const std::string& name, int watch) {
  const auto here = directory.entries.find(name);
  KnownDirectory* const present =
      here == directory.entries.end() ? nullptr : here->second.directory.get();
  std::unique_ptr<KnownDirectory> found;
  if (const auto known = known_.by_watch.find(watch); known != known_.by_watch.end()) {
    if (known->second == present) return present;
    if (known->second->open) return nullptr;
    found = Detach(*known->second);
  } else if (present != nullptr && present->watch < 0) {
    // By its stamps alone what is known of a directory of this name can be told to be true.
    present->watch = watch;
    if (watch >= 0) known_.by_watch[watch] = present;
    return present;
  } else {
    found = std::make_unique<KnownDirectory>();
    found->watch = watch;
    if (watch >= 0) known_.by_watch[watch] = found.get();
  }
  Drop(directory, name);
  found->above = &directory;
  found->name = name;
  KnownEntry& known = directory.entries[name];
  known.entry.name = name;
  known.entry.type = EntryType::kDirectory;
  known.directory = std::move(found);
  return known.directory.get();
}

// Takes a directory from where it was.
std::unique_ptr<KnownDirectory> Snapshotter::Detach(KnownDirectory& directory) {
  if (directory.above == nullptr) {
    const auto orphan = orphans_.extract(&directory);
    return std::move(orphan.mapped());
  }
  KnownDirectory& above = *directory.above;
  const auto entry = above.entries.find(directory.name);
  std::unique_ptr<KnownDirectory> taken = std::move(entry->second.directory);
  above.entries.erase(entry);
  above.id.reset();
  Suspect(above, taken->name);
  return taken;
}

}  // namespace agentd::sessions::internal
