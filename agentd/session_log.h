// Writes one session's events to the store in order and publishes them once they are durable.
#ifndef AGENTD_AGENTD_SESSION_LOG_H_
#define AGENTD_AGENTD_SESSION_LOG_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "agentd/event_hub.h"
#include "agentd/scheduler.h"
#include "sessions/store.h"

namespace agentd::daemon {

// Used by one thread (the running turn's); the store calls back on its own.
class SessionLog {
 public:
  SessionLog(sessions::Store* store, std::shared_ptr<EventHub> hub, sessions::TimelineId timeline);
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
  const std::shared_ptr<State> state_;  // shared with callbacks under way
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SESSION_LOG_H_
