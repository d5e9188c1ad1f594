// agentd-init: the first process inside a session's sandbox. Started by the library through
// bubblewrap; holds the lock, starts and kills calls, and dies with the library's end of the
// control socket. It has CAP_SYS_ADMIN and CAP_SETFCAP in the sandbox's own user namespace, to make
// each call's namespaces; nothing that it runs has any.
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "sandbox/fd_passing.h"
#include "sandbox/init_call.h"
#include "sandbox/landlock.h"
#include "sandbox/protocol.h"
#include "sandbox/seccomp_filter.h"

namespace agentd::sandbox {
namespace {

int64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

// After so long without an event the init prepares the next call, so that the one that is beginning
// has begun. At once where calls follow each other so quickly that one found none prepared: what
// one is spared the next one waits for, and there may be another processor.
constexpr int kQuietMs = 5;
constexpr int64_t kFollowsMs = 20;  // after the beginning of the call before

struct RunningCall {
  pid_t pid = -1;
  UniqueFd channel;
  CallState* state = nullptr;
  int64_t deadline_ms = 0;  // 0: none
  Killed killed = Killed::kNo;
};

class Init {
 public:
  int Run();

 private:
  bool SayHello();
  bool Accept(int socket);
  bool NoteTaken();
  void Begin(PreparedCall prepared, const RunMessage& message, UniqueFd channel);
  void NoteRate(bool was_prepared);
  void Start(const RunMessage& message, const std::vector<UniqueFd>& fds, UniqueFd channel);
  void KillAsked(RunningCall& call);
  // Kills the calls whose time is over. Milliseconds until the next one's is, or -1.
  int KillLate();
  void ReapDead();
  void Finish(RunningCall& call, Report report);

  SeccompFilters filters_;
  Abilities abilities_;
  std::vector<RunningCall> calls_;
  // The next call's first process: putting up walls takes longer than what is left then. Made when
  // nothing happens, so that it takes nothing from a call that is beginning; one attempt a call.
  PreparedCall prepared_;
  bool prepare_ = false;  // until the library lets it
  bool hurry_ = false;    // calls follow each other
  int64_t began_ms_ = 0;  // the last one without network
};

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "agentd-init: %s: %s\n", what, std::strerror(errno));
  _exit(1);
}

void SendReport(int channel, const Report& report) {
  const CallMessage message{CallMessage::Kind::kReport, report};
  // The library may have gone away; then so will this process.
  (void)!send(channel, &message, sizeof(message), MSG_NOSIGNAL);
}

void Kill(RunningCall& call, Killed why) {
  if (call.killed != Killed::kNo) return;
  // Killing the first process of the call's namespace kills them all; ReapDead reports it.
  kill(call.pid, SIGKILL);
  call.killed = why;
}

bool Init::SayHello() {
  Hello hello;
  hello.pid_max_per_namespace = KernelHasPidMaxPerNamespace() && ProbeNamespaces(true);
  hello.nested = hello.pid_max_per_namespace || ProbeNamespaces(false);
  hello.seccomp = BuildSeccompFilters(filters_);
  // What building them took is a hundred pages, which each call's first process would copy.
  malloc_trim(0);
  abilities_.pid_max_per_namespace = hello.pid_max_per_namespace;
  abilities_.landlock_abi = LandlockAbi();
  hello.landlock_abi = static_cast<uint8_t>(abilities_.landlock_abi);
  return send(kControlFd, &hello, sizeof(hello), MSG_NOSIGNAL) == sizeof(hello);
}

void Init::Finish(RunningCall& call, Report report) {
  SendReport(call.channel.get(), report);
  call.channel.Reset();
  if (call.state != nullptr) munmap(call.state, sizeof(CallState));
}

void Init::NoteRate(bool was_prepared) {
  const int64_t now_ms = NowMs();
  const bool follows = now_ms - std::exchange(began_ms_, now_ms) < kFollowsMs;
  hurry_ = follows && (hurry_ || !was_prepared);
}

void Init::Begin(PreparedCall prepared, const RunMessage& message, UniqueFd channel) {
  RunningCall call;
  call.pid = prepared.pid;
  call.channel = std::move(channel);
  call.state = prepared.state;
  if (message.wall_time_ms > 0) call.deadline_ms = NowMs() + message.wall_time_ms;
  calls_.push_back(std::move(call));
}

// One that found no first process prepared, or is with network, for which none is prepared: it is
// rare, and slow anyway.
void Init::Start(const RunMessage& message, const std::vector<UniqueFd>& fds, UniqueFd channel) {
  if (message.network == 0) NoteRate(/*was_prepared=*/false);
  prepare_ = prepared_.pid < 0;
  PreparedCall prepared;
  if (!PrepareCall(CallSource::kInit, message.network != 0, filters_, abilities_, prepared)) {
    RunningCall call;
    call.channel = std::move(channel);
    Report report;
    report.failed = Stage::kClone;
    report.error_number = errno;
    return Finish(call, report);
  }
  // If that process fails at a wall, ReapDead finds it among the calls and reports at what.
  (void)SendWithFds(prepared.socket.get(), &message, sizeof(message),
                    {fds[0].get(), fds[1].get(), fds[2].get(), fds[3].get(), channel.get()});
  Begin(std::move(prepared), message, std::move(channel));
}

// Whether the prepared first process has taken a call.
bool Init::NoteTaken() {
  RunMessage message;
  std::vector<UniqueFd> fds;
  const ssize_t n =
      ReceiveWithFds(prepared_.socket.get(), &message, sizeof(message), fds, MSG_DONTWAIT);
  if (n != sizeof(message) || fds.size() != 1) {
    if (n == 0) prepared_.socket.Reset();  // it is dying
    return false;
  }
  NoteRate(/*was_prepared=*/true);
  Begin(std::exchange(prepared_, PreparedCall()), message, std::move(fds[0]));
  prepare_ = true;
  return true;
}

// False at the end of the socket.
bool Init::Accept(int socket) {
  RunMessage message;
  std::vector<UniqueFd> fds;
  const ssize_t n = ReceiveWithFds(socket, &message, sizeof(message), fds, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return true;
  if (n != sizeof(message) || message.magic != RunMessage::kMagic) return false;
  if (socket == kControlFd && fds.empty()) {
    prepare_ = true;
    return true;
  }
  if (fds.size() != kRunFds) return false;
  UniqueFd channel = std::move(fds[4]);
  Start(message, fds, std::move(channel));
  return true;
}

void Init::KillAsked(RunningCall& call) {
  // Read the word: a socket closed with unread bytes resets, and the report would be lost.
  char byte;
  (void)!recv(call.channel.get(), &byte, sizeof(byte), MSG_DONTWAIT);
  Kill(call, Killed::kAsked);
}

int Init::KillLate() {
  int64_t next_ms = -1;
  for (RunningCall& call : calls_) {
    if (call.deadline_ms == 0 || call.killed != Killed::kNo) continue;
    const int64_t left_ms = call.deadline_ms - NowMs();
    if (left_ms <= 0) {
      Kill(call, Killed::kTimedOut);
    } else if (next_ms < 0 || left_ms < next_ms) {
      next_ms = left_ms;
    }
  }
  return static_cast<int>(std::min(next_ms, int64_t{1} << 30));
}

void Init::ReapDead() {
  while (true) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    if (pid == prepared_.pid && !NoteTaken()) {
      munmap(prepared_.state, sizeof(CallState));
      prepared_ = PreparedCall();
    }
    for (size_t i = 0; i < calls_.size(); ++i) {
      RunningCall& call = calls_[i];
      if (call.pid != pid) continue;
      Report report;
      report.failed = call.state->failed;
      report.error_number = call.state->error_number;
      report.killed = call.killed;
      Finish(call, report);
      calls_.erase(calls_.begin() + static_cast<ptrdiff_t>(i));
      break;
    }
  }
}

int Init::Run() {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGCHLD);
  if (sigprocmask(SIG_BLOCK, &mask, nullptr) != 0) Die("sigprocmask");
  const int signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) Die("signalfd");
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) Die("prctl PR_SET_DUMPABLE");
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) Die("mount MS_PRIVATE");
  if (!ProtectDevices()) Die("mount /dev read-only");
  if (!SayHello()) Die("send hello");
  // The pipe to the library was for complaints up to here.
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || dup2(null, 2) < 0) Die("open /dev/null");

  std::vector<pollfd> polled;
  while (true) {
    // With a first process prepared, that takes the next call.
    polled.assign({{kControlFd, POLLIN, 0},
                   {signals, POLLIN, 0},
                   {prepared_.socket.get(), POLLIN, 0},
                   {prepared_.pid < 0 ? kCallsFd : -1, POLLIN, 0}});
    const size_t fixed = polled.size();
    for (const RunningCall& call : calls_)
      polled.push_back({call.killed == Killed::kNo ? call.channel.get() : -1, POLLIN, 0});
    int timeout_ms = KillLate();
    const int quiet_ms = hurry_ ? 0 : kQuietMs;
    if (prepare_ && (timeout_ms < 0 || timeout_ms > quiet_ms)) timeout_ms = quiet_ms;
    const int ready = poll(polled.data(), polled.size(), timeout_ms);
    if (ready < 0 && errno != EINTR) return 1;
    if (ready == 0 && prepare_) {
      prepare_ = false;
      (void)PrepareCall(CallSource::kCallsFd, false, filters_, abilities_, prepared_);
      continue;
    }
    for (size_t i = fixed; i < polled.size(); ++i)
      if (polled[i].revents != 0) KillAsked(calls_[i - fixed]);
    if (polled[2].revents != 0) NoteTaken();
    if (polled[1].revents != 0) {
      signalfd_siginfo info;
      while (read(signals, &info, sizeof(info)) == sizeof(info)) {
      }
      ReapDead();
    }
    // Returning ends the namespace's first process, and with it everything inside.
    if (polled[0].revents != 0 && !Accept(kControlFd)) return 0;
    if (polled[3].revents != 0 && !Accept(kCallsFd)) return 0;
  }
}

}  // namespace
}  // namespace agentd::sandbox

int main() { return agentd::sandbox::Init().Run(); }
