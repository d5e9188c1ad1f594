#include "sandbox/workspace_watch.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "sandbox/call.h"

namespace agentd::sandbox {
namespace {

// Each level of a walk holds a descriptor.
constexpr int kMaxDepth = 200;
// Less lost space than this is no reason to walk again at once.
constexpr int64_t kLeastLostBytes = 1 << 20;
constexpr int64_t kLeastLostFiles = 100;
constexpr auto kLeastPause = std::chrono::seconds(1);

TreeSize FreeSpace(const std::filesystem::path& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return {};
  return {static_cast<int64_t>(info.f_bfree) * static_cast<int64_t>(info.f_frsize),
          static_cast<int64_t>(info.f_ffree)};
}

class TreeWalk {
 public:
  // False if the tree is too deep.
  bool Directory(int parent, const char* name, int depth);
  const TreeSize& size() const { return size_; }

 private:
  bool Entry(int directory, const char* name, int depth);

  TreeSize size_;
  dev_t device_ = 0;
  std::set<ino_t> linked_;  // files with several names that were counted
};

bool TreeWalk::Entry(int directory, const char* name, int depth) {
  struct stat info;
  if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) != 0) return true;  // gone
  ++size_.files;
  const bool is_directory = S_ISDIR(info.st_mode);
  if (is_directory || info.st_nlink == 1 || linked_.insert(info.st_ino).second)
    size_.bytes += static_cast<int64_t>(info.st_blocks) * 512;
  if (!is_directory || info.st_dev != device_) return true;
  return Directory(directory, name, depth + 1);
}

bool TreeWalk::Directory(int parent, const char* name, int depth) {
  if (depth > kMaxDepth) return false;
  UniqueFd fd(openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat info;
  if (!fd.valid() || fstat(fd.get(), &info) != 0) return true;  // gone, or not to be read
  if (depth == 0) device_ = info.st_dev;
  const auto close = [](DIR* stream) { closedir(stream); };
  const std::unique_ptr<DIR, decltype(close)> stream(fdopendir(fd.get()), close);
  if (!stream) return true;
  const int directory = fd.Release();  // the stream's
  while (const dirent* entry = readdir(stream.get())) {
    const std::string_view entry_name = entry->d_name;
    if (entry_name == "." || entry_name == "..") continue;
    if (!Entry(directory, entry->d_name, depth)) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<TreeSize> MeasureTree(const std::filesystem::path& root) {
  TreeWalk walk;
  if (!walk.Directory(AT_FDCWD, root.c_str(), 0))
    return absl::ResourceExhaustedError(
        fmt::format("directories are nested deeper than {}", kMaxDepth));
  return walk.size();
}

std::string WorkspaceFull(const TreeSize& size, const TreeSize& before, const TreeSize& max) {
  if (max.bytes > 0 && size.bytes > std::max(max.bytes, before.bytes))
    return fmt::format("the workspace holds {} bytes, and may hold {}", size.bytes, max.bytes);
  if (max.files > 0 && size.files > std::max(max.files, before.files))
    return fmt::format("the workspace holds {} files and directories, and may hold {}", size.files,
                       max.files);
  return "";
}

WorkspaceWatch::WorkspaceWatch(std::filesystem::path workspace, const TreeSize& max)
    : workspace_(std::move(workspace)), max_(max) {
  thread_ = std::thread([this] { Loop(); });
}

WorkspaceWatch::~WorkspaceWatch() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void WorkspaceWatch::Loop() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (!calls_.empty()) changed_ = true;
    if (!changed_) {
      wake_.wait(lock);
    } else if (WalkIsDue(FreeSpace(workspace_))) {
      Walk(lock);
    } else {
      wake_.wait_for(lock, std::chrono::milliseconds(kLookMs));
    }
  }
}

bool WorkspaceWatch::WalkIsDue(const TreeSize& free) const {
  if (!size_) return true;
  const Clock::duration since = Clock::now() - walked_;
  if (since >= std::max<Clock::duration>(kLeastPause, 100 * walk_took_)) return true;
  if (since < 5 * walk_took_) return false;
  for (const auto& [id, call] : calls_)
    if (!call.at_start) return true;
  return MayBeAbove(free);
}

bool WorkspaceWatch::MayBeAbove(const TreeSize& free) const {
  const auto may_be = [](int64_t max, int64_t used, int64_t least, int64_t lost) {
    return max > 0 && lost >= std::max(max - used, least);
  };
  return may_be(max_.bytes, size_->bytes, kLeastLostBytes, free_at_walk_.bytes - free.bytes) ||
         may_be(max_.files, size_->files, kLeastLostFiles, free_at_walk_.files - free.files);
}

void WorkspaceWatch::Walk(std::unique_lock<std::mutex>& lock) {
  changed_ = false;
  lock.unlock();
  const TreeSize free = FreeSpace(workspace_);
  const Clock::time_point begin = Clock::now();
  const absl::StatusOr<TreeSize> size = MeasureTree(workspace_);
  lock.lock();
  walked_ = Clock::now();
  walk_took_ = walked_ - begin;
  free_at_walk_ = free;
  EndCallsAbove(size);
  size_ = size.ok() ? *size : TreeSize();
}

void WorkspaceWatch::EndCallsAbove(const absl::StatusOr<TreeSize>& size) {
  for (auto& [id, call] : calls_) {
    if (!call.at_start) {
      call.at_start = size.ok() ? *size : TreeSize();
      continue;
    }
    if (!call.full.empty()) continue;
    call.full = Above(size, *call.at_start);
    if (!call.full.empty()) AskToKill(call.channel);
  }
}

bool WorkspaceWatch::IsAbove(const TreeSize& size) const {
  return !WorkspaceFull(size, {}, max_).empty();
}

std::string WorkspaceWatch::Above(const absl::StatusOr<TreeSize>& size,
                                  const TreeSize& at_start) const {
  if (!size.ok()) return "the workspace cannot be measured: " + Text(size.status());
  return WorkspaceFull(*size, at_start, max_);
}

WatchedCall::WatchedCall(std::shared_ptr<WorkspaceWatch> watch, int channel)
    : watch_(std::move(watch)) {
  if (!watch_) return;
  std::lock_guard lock(watch_->mutex_);
  id_ = watch_->next_id_++;
  // Of what was added since the last walk, this call has done nothing.
  const std::optional<TreeSize>& size = watch_->size_;
  const bool known =
      size && !(watch_->changed_ &&
                (watch_->IsAbove(*size) || watch_->MayBeAbove(FreeSpace(watch_->workspace_))));
  watch_->calls_[id_] = {channel, known ? size : std::nullopt, ""};
  watch_->wake_.notify_all();
}

WatchedCall::~WatchedCall() {
  if (!watch_) return;
  std::lock_guard lock(watch_->mutex_);
  watch_->calls_.erase(id_);
  watch_->changed_ = true;
  watch_->wake_.notify_all();
}

std::string WatchedCall::full() const {
  if (!watch_) return "";
  std::lock_guard lock(watch_->mutex_);
  return watch_->calls_.at(id_).full;
}

}  // namespace agentd::sandbox
