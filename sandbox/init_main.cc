// agentd-init: the first process inside a session's sandbox. Started by the library through
// bubblewrap; holds the lock, starts and kills calls, and dies with the library's end of the
// control socket. It has CAP_SYS_ADMIN and CAP_SETFCAP in the sandbox's own user namespace, to make
// each call's namespaces; nothing that it runs has any.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "sandbox/init_call.h"
#include "sandbox/protocol.h"
#include "sandbox/seccomp_filter.h"

namespace agentd::sandbox {
namespace {

struct RunningCall {
  pid_t pid = -1;
  int channel = -1;
  CallState* state = nullptr;
  bool killed = false;
};

class Init {
 public:
  int Run();

 private:
  bool SayHello();
  bool AcceptCall();
  void StartReceived(const int fds[kRunFds]);
  void KillAsked(RunningCall& call);
  void ReapDead();
  void Finish(RunningCall& call, Report report);

  SeccompFilters filters_;
  Abilities abilities_;
  std::vector<RunningCall> calls_;
};

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "agentd-init: %s: %s\n", what, std::strerror(errno));
  _exit(1);
}

bool ReadAll(int fd, std::string& out) {
  struct stat info;
  if (fstat(fd, &info) != 0) return false;
  out.resize(static_cast<size_t>(info.st_size));
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

void SendReport(int channel, const Report& report) {
  // The library may have gone away; then so will this process.
  (void)!send(channel, &report, sizeof(report), MSG_NOSIGNAL);
}

bool Init::SayHello() {
  Hello hello;
  hello.pid_max_per_namespace = KernelHasPidMaxPerNamespace() && ProbeNamespaces(true);
  hello.nested = hello.pid_max_per_namespace || ProbeNamespaces(false);
  hello.seccomp = BuildSeccompFilters(filters_);
  abilities_.pid_max_per_namespace = hello.pid_max_per_namespace;
  return send(kControlFd, &hello, sizeof(hello), MSG_NOSIGNAL) == sizeof(hello);
}

void Init::Finish(RunningCall& call, Report report) {
  SendReport(call.channel, report);
  close(call.channel);
  call.channel = -1;
  if (call.state != nullptr) munmap(call.state, sizeof(CallState));
}

void Init::StartReceived(const int fds[kRunFds]) {
  RunningCall call;
  call.channel = fds[3];
  std::string bytes;
  Payload payload;
  Report report;
  if (!ReadAll(fds[0], bytes) || !Deserialize(bytes, payload) || payload.argv.empty()) {
    report.failed = Stage::kPayload;
    report.error_number = EINVAL;
    return Finish(call, report);
  }
  void* shared =
      mmap(nullptr, sizeof(CallState), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared != MAP_FAILED) {
    call.state = static_cast<CallState*>(shared);
    call.pid = StartCall(payload, CallFds{fds[1], fds[2]}, filters_, abilities_, call.state);
  }
  if (call.pid < 0) {
    report.failed = Stage::kClone;
    report.error_number = errno;
    return Finish(call, report);
  }
  calls_.push_back(call);
}

// False at the end of the control socket.
bool Init::AcceptCall() {
  RunMessage message;
  iovec io{&message, sizeof(message)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kRunFds)];
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  const ssize_t n = recvmsg(kControlFd, &header, MSG_CMSG_CLOEXEC);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (n <= 0) return false;
  const cmsghdr* part = CMSG_FIRSTHDR(&header);
  if (n != sizeof(message) || message.magic != RunMessage::kMagic || part == nullptr ||
      part->cmsg_type != SCM_RIGHTS || part->cmsg_len != CMSG_LEN(sizeof(int) * kRunFds))
    return false;
  int fds[kRunFds];
  std::memcpy(fds, CMSG_DATA(part), sizeof(fds));
  StartReceived(fds);
  for (int i = 0; i < 3; ++i) close(fds[i]);
  return true;
}

void Init::KillAsked(RunningCall& call) {
  // Read the word: a socket closed with unread bytes resets, and the report would be lost.
  char byte;
  (void)!recv(call.channel, &byte, sizeof(byte), MSG_DONTWAIT);
  // Killing the first process of the call's namespace kills them all; ReapDead reports it.
  if (!call.killed) kill(call.pid, SIGKILL);
  call.killed = true;
}

void Init::ReapDead() {
  while (true) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    for (size_t i = 0; i < calls_.size(); ++i) {
      RunningCall& call = calls_[i];
      if (call.pid != pid) continue;
      Report report;
      report.failed = call.state->failed;
      report.error_number = call.state->error_number;
      report.wait_status = call.state->wait_status;
      report.has_status = call.state->has_status;
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
  if (!SayHello()) Die("send hello");
  // The pipe to the library was for complaints up to here.
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || dup2(null, 2) < 0) Die("open /dev/null");

  std::vector<pollfd> polled;
  while (true) {
    polled.assign({{kControlFd, POLLIN, 0}, {signals, POLLIN, 0}});
    for (const RunningCall& call : calls_)
      polled.push_back({call.killed ? -1 : call.channel, POLLIN, 0});
    if (poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR) return 1;
    for (size_t i = 2; i < polled.size(); ++i)
      if (polled[i].revents != 0) KillAsked(calls_[i - 2]);
    if (polled[1].revents != 0) {
      signalfd_siginfo info;
      while (read(signals, &info, sizeof(info)) == sizeof(info)) {
      }
      ReapDead();
    }
    // Returning ends the namespace's first process, and with it everything inside.
    if (polled[0].revents != 0 && !AcceptCall()) return 0;
  }
}

}  // namespace
}  // namespace agentd::sandbox

int main() { return agentd::sandbox::Init().Run(); }
