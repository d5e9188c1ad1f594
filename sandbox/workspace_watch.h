// Ends calls that make the workspace larger than it may be. Soft: it looks, so a call gets past the
// limit by what it writes between two looks. Private to sandbox/.
//
// A walk over the workspace tells its size. Walks are due when the file system has lost as much
// free space, or as many free inodes, as were left to the limit (asked every kLookMs, which costs
// microseconds), and else now and then, such that they take at most a hundredth of a core.
#ifndef AGENTD_SANDBOX_WORKSPACE_WATCH_H_
#define AGENTD_SANDBOX_WORKSPACE_WATCH_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {

// Follows no links and stays on the file system. ResourceExhausted if directories are nested too
// deeply to be walked. What comes and goes during the walk may be missed.
absl::StatusOr<TreeSize> MeasureTree(const std::filesystem::path& root);

// Any thread; calls are added and removed by WatchedCall.
class WorkspaceWatch {
 public:
  // Limits of 0: none of that kind.
  WorkspaceWatch(std::filesystem::path workspace, const TreeSize& max);
  ~WorkspaceWatch();

  static constexpr int kLookMs = 50;

 private:
  friend class WatchedCall;
  using Clock = std::chrono::steady_clock;

  struct Call {
    int channel = -1;
    // When it began, the workspace was this large; empty until a walk tells, where that was not
    // known. It may be above the limit already: then a call that makes it no larger, such as one
    // that deletes, goes on.
    std::optional<TreeSize> at_start;
    std::string full;  // why it was ended, or ""
  };

  void Loop();
  bool WalkIsDue(const TreeSize& free) const;
  void Walk(std::unique_lock<std::mutex>& lock);
  bool IsAbove(const TreeSize& size) const;
  // Whether the file system has lost, since the last walk, what was left to a limit.
  bool MayBeAbove(const TreeSize& free) const;
  void EndCallsAbove(const absl::StatusOr<TreeSize>& size);
  std::string Above(const absl::StatusOr<TreeSize>& size, const TreeSize& at_start) const;

  const std::filesystem::path workspace_;
  const TreeSize max_;

  std::mutex mutex_;
  std::condition_variable wake_;
  // All below are guarded by mutex_.
  bool stop_ = false;
  bool changed_ = true;  // a call has run since the last walk began
  int64_t next_id_ = 0;
  std::map<int64_t, Call> calls_;
  std::optional<TreeSize> size_;  // of the last walk
  TreeSize free_at_walk_;         // of the file system
  Clock::time_point walked_;
  Clock::duration walk_took_{};

  std::thread thread_;
};

// A running call, as long as it lives. With no watch it does nothing.
class WatchedCall {
 public:
  // The call is ended through `channel`, which stays open for as long as this lives.
  WatchedCall(std::shared_ptr<WorkspaceWatch> watch, int channel);
  ~WatchedCall();
  WatchedCall(const WatchedCall&) = delete;
  WatchedCall& operator=(const WatchedCall&) = delete;

  // Why the watch ended the call; "" if it did not.
  std::string full() const;

 private:
  const std::shared_ptr<WorkspaceWatch> watch_;
  int64_t id_ = 0;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_WORKSPACE_WATCH_H_
