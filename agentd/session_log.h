// Writes one session's events to the store in order and publishes them once they are durable.
#ifndef AGENTD_AGENTD_SESSION_LOG_H_
#define AGENTD_AGENTD_SESSION_LOG_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "agentd/event_hub.h"
#include "agentd/scheduler.h"
#include "sessions/store.h"

namespace agentd::daemon {

// Of one session's KV on the way to the disk. A prefill makes it faster than a disk takes it.
inline constexpr int64_t kMaxPendingBytes = int64_t{256} << 20;

// Used by one thread (the running turn's); the store calls back on its own.
class SessionLog {
 public:
  // `max_pending_bytes` of KV may wait for the disk, or one commit's that has more.
  SessionLog(sessions::Store* store, std::shared_ptr<EventHub> hub, sessions::TimelineId timeline,
             int64_t max_pending_bytes = kMaxPendingBytes);
  // Waits for what is under way.
  ~SessionLog();

  // Queues a commit; waits only when the store is far behind. After the first error nothing more is
  // written and every later call returns that error.
  absl::Status Append(std::vector<sessions::NewEvent> events);
  absl::Status AppendKv(KvExport kv);
  absl::Status AppendWithMeta(std::vector<sessions::NewEvent> events, std::string meta);
  // Returns when everything queued is durable, or with the first error.
  absl::Status Flush();

 private:
  struct State;
  absl::Status Submit(sessions::Commit commit);

  sessions::Store* const store_;
  const sessions::TimelineId timeline_;
  const int64_t max_pending_bytes_;
  const std::shared_ptr<State> state_;  // shared with callbacks under way
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SESSION_LOG_H_
