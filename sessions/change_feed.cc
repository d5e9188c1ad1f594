#include "sessions/change_feed.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/statfs.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace agentd::sessions::internal {
namespace {

// No IN_CLOSE_NOWRITE and no IN_ACCESS: who reads changes nothing. IN_CLOSE_WRITE comes when the
// last descriptor and the last mapping are gone.
constexpr uint32_t kChanged =
    IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE;
constexpr int kPauseMs = 20;  // the queue does not fill up in it
constexpr long kXfsMagic = 0x58465342;
constexpr size_t kQueueBufferBytes = 64 << 10;

// A file handle as a number, 0 never.
uint64_t IdOfHandle(int type, std::string_view bytes) {
  return (std::hash<std::string_view>()(bytes) ^ static_cast<unsigned>(type)) | 1;
}

// The file that an event is about; 0: it does not say. `event` holds its records, which are not
// aligned.
uint64_t FileOf(std::string_view event, size_t metadata_bytes) {
  size_t at = metadata_bytes;
  struct fanotify_event_info_header info;
  for (; at + sizeof(struct fanotify_event_info_fid) <= event.size(); at += info.len) {
    std::memcpy(&info, event.data() + at, sizeof(info));
    if (info.len < sizeof(struct fanotify_event_info_fid) || info.len > event.size() - at) return 0;
    if (info.info_type != FAN_EVENT_INFO_TYPE_FID) continue;
    const size_t from = at + offsetof(struct fanotify_event_info_fid, handle);
    struct file_handle handle;
    if (from + sizeof(handle) > event.size()) return 0;
    std::memcpy(&handle, event.data() + from, sizeof(handle));
    if (handle.handle_bytes > event.size() - from - sizeof(handle)) return 0;
    return IdOfHandle(handle.handle_type, event.substr(from + sizeof(handle), handle.handle_bytes));
  }
  return 0;
}

}  // namespace

uint64_t ChangeFeed::IdOf(int file) {
  alignas(struct file_handle) char buffer[sizeof(struct file_handle) + MAX_HANDLE_SZ];
  auto* const handle = reinterpret_cast<struct file_handle*>(buffer);
  handle->handle_bytes = MAX_HANDLE_SZ;
  int mount = 0;
  if (::name_to_handle_at(file, "", handle, &mount, AT_EMPTY_PATH) != 0) return 0;
  return IdOfHandle(handle->handle_type, {buffer + sizeof(*handle), handle->handle_bytes});
}

absl::StatusOr<std::unique_ptr<ChangeFeed>> ChangeFeed::Start(const ChangeFeedOptions& options) {
  std::unique_ptr<ChangeFeed> feed(new ChangeFeed(options));
  feed->queue_.Reset(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!feed->queue_.valid()) return ErrnoError(errno, "inotify_init1");
  feed->stop_.Reset(::eventfd(0, EFD_CLOEXEC));
  if (!feed->stop_.valid()) return ErrnoError(errno, "eventfd");
  if (options.tells_files) {
    feed->named_queue_.Reset(::fanotify_init(
        FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME_TARGET, 0));
    feed->changes_.named.emplace();
  }
  if (options.has_reader) feed->thread_ = std::thread([feed = feed.get()] { feed->Loop(); });
  return feed;
}

ChangeFeed::~ChangeFeed() {
  if (!thread_.joinable()) return;
  (void)::eventfd_write(stop_.get(), 1);
  thread_.join();
}

bool ChangeFeed::CanWatch(int directory) {
  struct statfs info;
  if (::fstatfs(directory, &info) != 0) return false;
  switch (static_cast<long>(info.f_type)) {
    case EXT4_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case kXfsMagic:
      return true;
    default:
      return false;
  }
}

absl::StatusOr<int> ChangeFeed::Watch(int directory) {
  const std::string path = fmt::format("/proc/self/fd/{}", directory);
  std::lock_guard lock(mutex_);
  const int watch =
      ::inotify_add_watch(queue_.get(), path.c_str(), kChanged | IN_OPEN | IN_ONLYDIR);
  if (watch < 0) return ErrnoError(errno, "inotify_add_watch");
  // Evictable: the other watch keeps the directory's inode, and with it this one.
  if (named_queue_.valid() &&
      ::fanotify_mark(named_queue_.get(), FAN_MARK_ADD | FAN_MARK_EVICTABLE | FAN_MARK_ONLYDIR,
                      FAN_CREATE, directory, nullptr) != 0)
    named_queue_.Reset();
  if (watch <= newest_watch_) return watch;  // it was watched already
  newest_watch_ = watch;
  if (++watches_ <= options_.max_watches) return watch;
  return absl::ResourceExhaustedError(
      fmt::format("more than {} directories", options_.max_watches));
}

void ChangeFeed::Unwatch(int watch) { (void)::inotify_rm_watch(queue_.get(), watch); }

void ChangeFeed::Loop() {
  struct pollfd fds[2] = {{queue_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
  while (true) {
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) break;
    if (fds[1].revents != 0) return;
    {
      std::lock_guard lock(mutex_);
      Drain();
    }
    // Programs make thousands of events a second: not a wake-up for each.
    if (::poll(&fds[1], 1, kPauseMs) != 0 && fds[1].revents != 0) return;
  }
  std::lock_guard lock(mutex_);
  changes_.lost = true;
}

// All that is in the queue at its beginning: others may fill it as fast as it is emptied.
void ChangeFeed::Drain() {
  int waiting = 0;
  if (::ioctl(queue_.get(), FIONREAD, &waiting) != 0) changes_.lost = true;
  alignas(struct inotify_event) char buffer[kQueueBufferBytes];
  while (waiting > 0) {
    const ssize_t size = ::read(queue_.get(), buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) {
      changes_.lost = true;
      return;
    }
    waiting -= static_cast<int>(size);
    for (ssize_t at = 0; at < size;) {
      const auto* event = reinterpret_cast<const struct inotify_event*>(buffer + at);
      Note(*event);
      at += static_cast<ssize_t>(sizeof(*event) + event->len);
    }
  }
  DrainNamed();
}

// After the notices: of a name that went, it was told before which file it was.
void ChangeFeed::DrainNamed() {
  int waiting = 0;  // FAN_EVENT_METADATA_LEN for each event; some kernels say more
  if (!named_queue_.valid() || ::ioctl(named_queue_.get(), FIONREAD, &waiting) != 0)
    changes_.named.reset();
  char buffer[kQueueBufferBytes];
  while (named_queue_.valid() && waiting > 0) {
    const ssize_t size = ::read(named_queue_.get(), buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) named_queue_.Reset();
    for (std::string_view left(buffer, size > 0 ? static_cast<size_t>(size) : 0); !left.empty();) {
      struct fanotify_event_metadata event;
      AGENTD_CHECK(left.size() >= sizeof(event));
      std::memcpy(&event, left.data(), sizeof(event));
      AGENTD_CHECK(event.event_len >= sizeof(event) && event.event_len <= left.size());
      const std::string_view whole = left.substr(0, event.event_len);
      left.remove_prefix(event.event_len);
      waiting -= static_cast<int>(FAN_EVENT_METADATA_LEN);
      const uint64_t file =
          (event.mask & FAN_Q_OVERFLOW) != 0 ? 0 : FileOf(whole, event.metadata_len);
      if (file == 0 || (changes_.named && changes_.named->size() >= options_.max_names))
        changes_.named.reset();
      if (changes_.named) changes_.named->insert(file);
    }
    if (!named_queue_.valid()) changes_.named.reset();
  }
}

bool ChangeFeed::tells_files() {
  std::lock_guard lock(mutex_);
  return named_queue_.valid();
}

void ChangeFeed::Note(const struct inotify_event& event) {
  if ((event.mask & (IN_Q_OVERFLOW | IN_UNMOUNT)) != 0) changes_.lost = true;
  if ((event.mask & IN_IGNORED) != 0) {
    changes_.ended.push_back(event.wd);
    --watches_;
  }
  const bool changed = (event.mask & kChanged) != 0;
  const bool opened = (event.mask & IN_OPEN) != 0 && (event.mask & IN_ISDIR) == 0;
  // A directory's own events come from the one above too, by name.
  if (event.len > 0 && (changed || opened) && !changes_.lost) {
    const auto [note, is_new] = changes_.names[event.wd].try_emplace(event.name);
    if (is_new) note->second.fresh = FreshBefore(event.wd, event.name);
    note->second.opened = note->second.opened || opened;
    note->second.changed = note->second.changed || changed;
    if ((event.mask & IN_ISDIR) == 0) NoteFresh(event, note->second);
    if (is_new && ++names_ > options_.max_names) changes_.lost = true;
  }
  if (changes_.lost) changes_.names.clear();
}

void ChangeFeed::NoteFresh(const struct inotify_event& event, NameChange& change) {
  using Fresh = NameChange::Fresh;
  const bool is_used = change.fresh == Fresh::kUsed;
  if ((event.mask & IN_CREATE) != 0) {
    change.fresh = Fresh::kMade;
  } else if ((event.mask & IN_DELETE) != 0) {
    changes_.others_may_have_changed = changes_.others_may_have_changed || is_used;
    change.fresh = Fresh::kNo;
  } else if ((event.mask & IN_MOVED_FROM) != 0) {
    // Stays marked itself: of two that are exchanged the second move tells the first one's mark.
    if (change.fresh != Fresh::kNo) moving_[event.cookie] = change.fresh;
  } else if ((event.mask & IN_MOVED_TO) != 0) {
    changes_.others_may_have_changed = changes_.others_may_have_changed || is_used;
    const auto from = moving_.find(event.cookie);
    change.fresh = from == moving_.end() ? Fresh::kNo : from->second;
    if (from != moving_.end()) moving_.erase(from);
  } else if (change.fresh == Fresh::kMade) {
    change.fresh = Fresh::kUsed;
  }
}

Changes ChangeFeed::Take() {
  std::lock_guard lock(mutex_);
  Drain();
  names_ = 0;
  // What has left the watched directories can be written elsewhere.
  changes_.others_may_have_changed = changes_.others_may_have_changed || !moving_.empty();
  moving_.clear();
  Changes taken = std::exchange(changes_, {});
  fresh_before_.clear();
  if (named_queue_.valid()) changes_.named.emplace();
  if (taken.named) return taken;
  for (const auto& [watch, names] : taken.names)
    for (const auto& [name, change] : names)
      if (change.fresh != NameChange::Fresh::kNo) fresh_before_[watch][name] = change.fresh;
  return taken;
}

NameChange::Fresh ChangeFeed::FreshBefore(int watch, const char* name) const {
  const auto names = fresh_before_.find(watch);
  if (names == fresh_before_.end()) return NameChange::Fresh::kNo;
  const auto fresh = names->second.find(name);
  return fresh == names->second.end() ? NameChange::Fresh::kNo : fresh->second;
}

void ChangeFeed::ForgetOpens(int watch, const std::vector<std::string>& names) {
  std::lock_guard lock(mutex_);
  Drain();
  const auto notes = changes_.names.find(watch);
  if (notes == changes_.names.end()) return;
  for (const std::string& name : names) {
    const auto note = notes->second.find(name);
    if (note == notes->second.end()) continue;
    note->second.opened = false;
    if (note->second.changed) continue;
    notes->second.erase(note);
    --names_;
  }
}

}  // namespace agentd::sessions::internal
