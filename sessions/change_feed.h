// Notices of the kernel (inotify) about what changes in a set of directories: by whomever, under
// whatever path, from the moment a directory is watched.
//
// A thread empties the kernel's queue (16,384 events) before it is full, and keeps one note per
// name. A second queue (fanotify, Linux 5.19 and newer) tells which file has got each new name, so
// that another name of a known one is told from a new file. What is not noticed: see workspace.h.
#ifndef AGENTD_SESSIONS_CHANGE_FEED_H_
#define AGENTD_SESSIONS_CHANGE_FEED_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

struct inotify_event;

namespace agentd::sessions::internal {

struct ChangeFeedOptions {
  // Of the user's allowance (fs.inotify.max_user_watches, 8,192 at least) for one workspace.
  size_t max_watches = size_t{1} << 17;
  size_t max_names = size_t{1} << 20;  // with notes, until they are taken
  bool has_reader = true;              // false: the queue fills up until Take
  bool tells_files = true;             // false: as where the kernel has no second queue
};

// What happened to a name in a directory.
struct NameChange {
  bool opened = false;   // perhaps for writing, perhaps to be mapped: more may follow unnoticed
  bool changed = false;  // all else: it is there, gone, another, or its contents or mode differ
  // It was made, and then opened or written. If it is a hard link, so was the file's other name.
  enum class Fresh : uint8_t { kNo, kMade, kUsed } fresh = Fresh::kNo;
};

struct Changes {
  bool lost = false;  // some are missing: nothing that was known may be believed
  // Files that got a name, new ones too, as IdOf numbers them. nullopt: that was not told.
  std::optional<std::unordered_set<uint64_t>> named;
  // Where it was not: a fresh name has gone after its use, and it cannot be told any more whether
  // the same file has another name, where nothing was noticed.
  bool others_may_have_changed = false;
  std::unordered_map<int, std::map<std::string, NameChange>> names;  // by watch
  std::vector<int> ended;  // watches whose directory is gone or unmounted
};

// Thread-safe.
class ChangeFeed {
 public:
  // ResourceExhausted: the user has too many of them (fs.inotify.max_user_instances).
  static absl::StatusOr<std::unique_ptr<ChangeFeed>> Start(const ChangeFeedOptions& options);
  ~ChangeFeed();
  ChangeFeed(const ChangeFeed&) = delete;
  ChangeFeed& operator=(const ChangeFeed&) = delete;

  // Whether what changes in this directory's file system goes through this kernel's own, where it
  // is noticed: not on a network or in an overlay.
  static bool CanWatch(int directory);

  // The same for all names of a file, as long as it has one; another file's may be equal by chance,
  // but not often. 0: it cannot be told. Needs no feed.
  static uint64_t IdOf(int file);
  // False: `named` is told no more. Then IdOf is of no use.
  bool tells_files();

  // From the return on, changes of entries of this open directory have notices. The same directory
  // gives the same number for as long as it is watched; no number is given twice.
  absl::StatusOr<int> Watch(int directory);
  void Unwatch(int watch);

  // All since the call before, up to now.
  Changes Take();
  // Forgets that these names were opened so far (and nothing else about them), up to now.
  void ForgetOpens(int watch, const std::vector<std::string>& names);

 private:
  explicit ChangeFeed(const ChangeFeedOptions& options) : options_(options) {}
  void Loop();
  void Drain();  // under mutex_
  void Note(const struct inotify_event& event);
  void NoteFresh(const struct inotify_event& event, NameChange& change);
  NameChange::Fresh FreshBefore(int watch, const char* name) const;
  void DrainNamed();

  using FreshNames = std::unordered_map<int, std::map<std::string, NameChange::Fresh>>;

  const ChangeFeedOptions options_;
  UniqueFd queue_;
  UniqueFd stop_;  // an eventfd

  std::mutex mutex_;
  UniqueFd named_queue_;  // guarded by mutex_; -1: none
  Changes changes_;       // guarded by mutex_
  // Of before the last Take, where what got names was not told: guarded by mutex_. Such a name may
  // have been used and gone between that Take and the look that followed it.
  FreshNames fresh_before_;
  std::map<uint32_t, NameChange::Fresh> moving_;  // guarded by mutex_: by the move's cookie
  size_t names_ = 0;                              // guarded by mutex_: in changes_
  size_t watches_ = 0;                            // guarded by mutex_
  int newest_watch_ = 0;                          // guarded by mutex_

  std::thread thread_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_CHANGE_FEED_H_
