#include "sandbox/call.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "base/status.h"
#include "sandbox/fd_passing.h"

namespace agentd::sandbox {
namespace {

// The kernel's limit for one argument (32 pages), less its end.
constexpr size_t kMaxArgumentBytes = 128 * 1024 - 1;

const char* WallOf(Stage stage) {
  switch (stage) {
    case Stage::kClone:
      return "PID, mount and IPC namespaces";
    case Stage::kProc:
      return "private /proc";
    case Stage::kProcessLimit:
      return "process limit";
    case Stage::kTmp:
      return "private /tmp";
    case Stage::kUserNamespace:
      return "user namespace of the call";
    case Stage::kNestedNamespaces:
      return "no nested user namespaces";
    case Stage::kNetwork:
      return "network namespace of the call";
    case Stage::kRlimits:
      return "resource limits";
    case Stage::kCapabilities:
      return "no capabilities";
    case Stage::kLandlock:
      return "Landlock";
    case Stage::kSeccomp:
      return "seccomp";
    default:
      return nullptr;
  }
}

absl::Status CheckRequest(const CallRequest& request, Streams streams) {
  if (request.argv.empty() || request.argv[0].empty() || request.argv[0][0] != '/')
    return InvalidArgument("a sandboxed call needs the absolute path of a program");
  for (const std::string& arg : request.argv) {
    if (arg.size() > kMaxArgumentBytes)
      return InvalidArgument("an argument of {} bytes is longer than a program can be given ({})",
                             arg.size(), kMaxArgumentBytes);
    if (arg.find('\0') != std::string::npos)
      return InvalidArgument("a program's argument cannot hold a NUL byte");
  }
  if (request.network != static_cast<bool>(request.on_proxy_listener))
    return InvalidArgument(
        "a sandboxed call with network needs on_proxy_listener, and one without must not have it");
  const Limits& limits = request.limits;
  const int64_t least_ms = streams == Streams::kOwn ? 0 : 1;
  if (limits.wall_time_ms < least_ms || limits.cpu_time_s <= 0 || limits.memory_bytes <= 0 ||
      limits.max_processes <= 0 || limits.max_open_files <= 0 || limits.max_file_bytes < 0 ||
      limits.max_output_bytes <= 0)
    return InvalidArgument("a sandboxed call's limits must be positive");
  return absl::OkStatus();
}

Payload MakePayload(const CallRequest& request) {
  Payload payload;
  payload.cpu_time_s = request.limits.cpu_time_s;
  payload.memory_bytes = request.limits.memory_bytes;
  payload.max_processes = request.limits.max_processes;
  payload.max_open_files = request.limits.max_open_files;
  payload.max_file_bytes = request.limits.max_file_bytes;
  payload.cwd = request.cwd;
  payload.argv = request.argv;
  // HOME is not the workspace, so that programs' settings and caches stay out of it.
  payload.env = {"PATH=/usr/local/bin:/usr/bin:/bin",
                 "HOME=/tmp",
                 "USER=nobody",
                 "LANG=C.UTF-8",
                 "TERM=dumb",
                 "SHELL=/bin/bash",
                 "PWD=" + request.cwd,
                 "TMPDIR=/tmp"};
  if (request.network) {
    const std::string proxy = fmt::format("http://127.0.0.1:{}", kProxyPort);
    for (const char* name :
         {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"})
      payload.env.push_back(fmt::format("{}={}", name, proxy));
    for (const char* name : {"NO_PROXY", "no_proxy"})
      payload.env.push_back(fmt::format("{}=localhost,127.0.0.1,::1", name));
  }
  for (const auto& [name, value] : request.env) {
    const std::string prefix = name + "=";
    std::erase_if(payload.env, [&](const std::string& old) { return old.rfind(prefix, 0) == 0; });
    payload.env.push_back(prefix + value);
  }
  return payload;
}

// A sealed file in memory, opened for reading only.
absl::StatusOr<UniqueFd> MemoryFile(const char* name, std::string_view data) {
  UniqueFd writer(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!writer.valid()) return ErrnoError(errno, "memfd_create");
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t n =
        pwrite(writer.get(), data.data() + done, data.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoError(errno, "write to a memory file");
    done += static_cast<size_t>(n);
  }
  if (fcntl(writer.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) !=
      0)
    return ErrnoError(errno, "seal a memory file");
  UniqueFd reader(
      open(fmt::format("/proc/self/fd/{}", writer.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!reader.valid()) return ErrnoError(errno, "reopen a memory file");
  return reader;
}

// Both ends of a pipe; the library's does not block.
struct Pipe {
  UniqueFd ours;
  UniqueFd inside;
};
enum class Direction { kIn, kOut };

absl::StatusOr<Pipe> MakePipe(Direction direction) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return ErrnoError(errno, "pipe2");
  if (direction == Direction::kIn) std::swap(fds[0], fds[1]);
  Pipe pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
  if (fcntl(pipe.ours.get(), F_SETFL, O_NONBLOCK) != 0)
    return ErrnoError(errno, "fcntl O_NONBLOCK");
  return pipe;
}

}  // namespace

absl::StatusOr<SentCall> SendCall(const InitSockets& init, const CallRequest& request,
                                  Streams streams) {
  RETURN_IF_ERROR(CheckRequest(request, streams));
  const bool own = streams == Streams::kOwn;
  ASSIGN_OR_RETURN(const UniqueFd payload, MemoryFile("call", Serialize(MakePayload(request))));
  ASSIGN_OR_RETURN(Pipe output, MakePipe(Direction::kOut));
  Pipe input;
  Pipe error;
  if (own) {
    ASSIGN_OR_RETURN(input, MakePipe(Direction::kIn));
    ASSIGN_OR_RETURN(error, MakePipe(Direction::kOut));
  } else {
    ASSIGN_OR_RETURN(input.inside, MemoryFile("stdin", request.stdin_data));
  }
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0)
    return ErrnoError(errno, "socketpair");
  const UniqueFd channel_inside(sockets[1]);
  SentCall call{std::move(input.ours), std::move(output.ours), std::move(error.ours),
                UniqueFd(sockets[0])};
  RunMessage message;
  message.network = request.network ? 1 : 0;
  message.wall_time_ms = request.limits.wall_time_ms;
  if (!SendWithFds(request.network ? init.control : init.calls, &message, sizeof(message),
                   {payload.get(), input.inside.get(), output.inside.get(),
                    own ? error.inside.get() : output.inside.get(), channel_inside.get()})) {
    if (errno == EPIPE || errno == ECONNRESET)
      return absl::UnavailableError("the session's sandbox has died; start it again");
    return ErrnoError(errno, "send a call to the sandbox");
  }
  return call;
}

std::optional<CallMessage> ReceiveFromCall(int channel, const CallRequest& request) {
  CallMessage message;
  std::vector<UniqueFd> fds;
  if (ReceiveWithFds(channel, &message, sizeof(message), fds) != sizeof(message))
    return std::nullopt;
  if (message.kind == CallMessage::Kind::kListener && fds.size() == 1)
    request.on_proxy_listener(std::move(fds[0]));
  return message;
}

void AskToKill(int channel) {
  const char byte = 1;
  (void)!send(channel, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

bool KillTree(int init_pidfd) {
  syscall(SYS_pidfd_send_signal, init_pidfd, SIGKILL, nullptr, 0);
  // Readable when the init is a zombie, which its namespace's last process comes before.
  const auto deadline = std::chrono::steady_clock::now() + kKillPatience;
  pollfd polled{init_pidfd, POLLIN, 0};
  while (std::chrono::steady_clock::now() < deadline)
    if (poll(&polled, 1, 10) > 0) return true;
  return false;
}

absl::Status CallFailure(const Report& report, const CallRequest& request) {
  const int error = report.error_number;
  if (report.failed == Stage::kExec)
    return ErrnoError(error, fmt::format("run {} in the sandbox", request.argv[0]));
  if (report.failed == Stage::kCwd)
    return ErrnoError(error, fmt::format("change to {} in the sandbox", request.cwd));
  if (const char* wall = WallOf(report.failed))
    return FailedPrecondition(
        "sandbox: the wall '{}' cannot be put up: {}; the call did not run; agentctl info shows "
        "what this machine lacks",
        wall, std::system_category().message(error));
  return ErrnoError(error, "start a call in the sandbox");
}

void SetEnd(const std::optional<Report>& report, const std::string& full, CallResult& result) {
  if (report && report->failed != Stage::kNone) {
    result.end = CallEnd::kExited;  // it did not run: as a shell says it
    result.exit_code = 127;
  } else if (!report || (!report->has_status && report->killed == Killed::kNo)) {
    result.end = CallEnd::kSandboxDied;
  } else if (!report->has_status && !full.empty()) {
    result.end = CallEnd::kWorkspaceFull;
    result.detail = full;
  } else if (!report->has_status) {
    result.end = report->killed == Killed::kTimedOut ? CallEnd::kTimedOut : CallEnd::kCancelled;
  } else if (WIFSIGNALED(report->wait_status)) {
    result.end = CallEnd::kSignaled;
    result.signal = WTERMSIG(report->wait_status);
  } else {
    result.end = CallEnd::kExited;
    result.exit_code = WEXITSTATUS(report->wait_status);
  }
}

}  // namespace agentd::sandbox
