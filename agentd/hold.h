// The right to work on one session: taken by whoever changes it, one at a time.
#ifndef AGENTD_AGENTD_HOLD_H_
#define AGENTD_AGENTD_HOLD_H_

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "agentd/daemon.h"
#include "agentd/session.h"

namespace agentd::daemon {

// Gives the session back when destroyed, and only then shows what happened to it. After a failed
// commit `hot` must be null: then the next holder reads the state from the store.
class Daemon::Hold {
 public:
  Hold(std::shared_ptr<Session> s, std::unique_ptr<HotState> h)
      : session(std::move(s)), hot(std::move(h)) {}
  Hold(Hold&&) = default;
  Hold& operator=(Hold&&) = delete;
  ~Hold() {
    if (!session) return;
    std::vector<std::function<void(absl::Status)>> cancels;
    {
      std::lock_guard lock(session->mutex);
      session->hot = std::move(hot);
      session->busy = false;
      session->starting = false;
      cancels.swap(session->cancels);
      session->hub->ShowNews(/*running=*/false);
    }
    session->hub->Wake();
    for (const auto& done : cancels) done(absl::OkStatus());  // the turn did not begin
  }
  // Somebody else gives it back.
  void Release() { session.reset(); }

  std::shared_ptr<Session> session;
  std::unique_ptr<HotState> hot;
  bool another_model = false;  // made it; whoever started this consents to go on with ours
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_HOLD_H_
