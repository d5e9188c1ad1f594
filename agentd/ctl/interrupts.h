// Ctrl-C as an event that a thread waits for, rather than a signal handler.
#ifndef AGENTD_CTL_INTERRUPTS_H_
#define AGENTD_CTL_INTERRUPTS_H_

#include <functional>
#include <thread>

#include "base/unique_fd.h"

namespace agentd::ctl {

// While one lives, SIGINT runs its callback instead of ending the process. At most one at a time.
class Interrupts {
 public:
  // Ends the process by SIGINT's default action.
  [[noreturn]] static void Die();

  // Blocks the signal in this thread and those that it starts later: so to be made before them.
  // `callback(n)` runs on the waiting thread for the n-th SIGINT, n = 1, 2, ...
  explicit Interrupts(std::function<void(int)> callback);
  // Returns once the callback runs no more.
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

 private:
  void Wait();

  const std::function<void(int)> callback_;
  UniqueFd signals_;
  UniqueFd stop_;
  std::thread thread_;
};

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_INTERRUPTS_H_
