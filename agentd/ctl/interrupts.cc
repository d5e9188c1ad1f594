#include "agentd/ctl/interrupts.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "base/status.h"

namespace agentd::ctl {
namespace {

sigset_t OnlyInterrupt() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

void Interrupts::Die() {
  const sigset_t set = OnlyInterrupt();
  signal(SIGINT, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  kill(getpid(), SIGINT);
  _exit(128 + SIGINT);
}

Interrupts::Interrupts(std::function<void(int)> callback)
    : callback_(std::move(callback)), stop_(eventfd(0, EFD_CLOEXEC)) {
  const sigset_t set = OnlyInterrupt();
  AGENTD_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  signals_ = UniqueFd(signalfd(-1, &set, SFD_CLOEXEC));
  AGENTD_CHECK(signals_.valid() && stop_.valid());
  thread_ = std::thread([this] { Wait(); });
}

Interrupts::~Interrupts() {
  const uint64_t one = 1;
  AGENTD_CHECK(write(stop_.get(), &one, sizeof(one)) == sizeof(one));
  thread_.join();
}

void Interrupts::Wait() {
  int count = 0;
  while (true) {
    pollfd fds[2] = {{stop_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) {
      AGENTD_CHECK(errno == EINTR);
      continue;
    }
    if (fds[0].revents != 0) return;
    signalfd_siginfo info;
    if (read(signals_.get(), &info, sizeof(info)) == sizeof(info)) callback_(++count);
  }
}

}  // namespace agentd::ctl
