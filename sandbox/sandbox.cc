#include "sandbox/sandbox.h"

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
#include <chrono>
#include <cstring>
#include <iterator>
#include <optional>
#include <system_error>

#include "base/status.h"
#include "base/unique_fd.h"
#include "sandbox/lock.h"
#include "sandbox/output.h"
#include "sandbox/protocol.h"
#include "sandbox/spawn.h"

namespace agentd::sandbox {
namespace {

using Clock = std::chrono::steady_clock;

// How long bubblewrap and the init may take to come up on a loaded machine.
constexpr int kStartTimeoutMs = 30'000;
// How often a running call looks at its cancel flag.
constexpr int kCancelPollMs = 10;
// A killed call's processes die at once unless the kernel is stuck; then the whole tree goes.
constexpr auto kKillPatience = std::chrono::seconds(10);
// The kernel's limit for one argument (32 pages), less its end.
constexpr size_t kMaxArgumentBytes = 128 * 1024 - 1;

std::string ReadComplaints(int fd) {
  std::string text;
  char buffer[1024];
  pollfd polled{fd, POLLIN, 0};
  while (text.size() < 8192 && poll(&polled, 1, 200) > 0) {
    const ssize_t n = read(fd, buffer, sizeof(buffer));
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

constexpr char kUserNamespaceMend[] =
    "allow them: sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000; "
    "on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0; in a container start it "
    "with a seccomp profile that permits unshare and clone";
constexpr char kProcMend[] =
    "the host's /proc is masked (a container?): run with an unmasked /proc "
    "(docker run --security-opt systempaths=unconfined)";
constexpr char kOtherMend[] =
    "agentctl info, asked of a daemon that runs as the same user, shows what this machine lacks";

// What bubblewrap or the init says when a wall cannot be put up; the first that fits counts.
struct Complaint {
  const char* says;
  const char* wall;
  const char* mend;
};
constexpr Complaint kComplaints[] = {
    {"new namespace", "user namespace", kUserNamespaceMend},
    {"user namespace", "user namespace", kUserNamespaceMend},
    {"uid map", "user namespace", kUserNamespaceMend},
    {"gid map", "user namespace", kUserNamespaceMend},
    {"loopback", "network namespace", kOtherMend},
    {"RTM_NEW", "network namespace", kOtherMend},
    {"hostname", "UTS namespace", kOtherMend},
    {"capabilit", "no capabilities", kOtherMend},
    {"agentd-init: mount", "mount namespace", kOtherMend},
    {"agentd-init", "agentd-init", "build the target agentd-init for this machine"},
    {"proc", "proc", kProcMend},
    {"mount", "mount namespace", kOtherMend},
    {"pivot_root", "mount namespace", kOtherMend},
    {"tmpfs", "mount namespace", kOtherMend},
};

absl::Status StartFailure(const std::string& complaint) {
  const Complaint* known = std::find_if(
      std::begin(kComplaints), std::end(kComplaints),
      [&](const Complaint& one) { return complaint.find(one.says) != std::string::npos; });
  const bool found = known != std::end(kComplaints);
  return FailedPrecondition("sandbox: the wall '{}' cannot be put up: {}; {}",
                            found ? known->wall : "bubblewrap",
                            complaint.empty() ? "bwrap ended without a word" : complaint,
                            found ? known->mend : kOtherMend);
}

const char* WallOf(Stage stage) {
  switch (stage) {
    case Stage::kClone:
      return "PID, mount and IPC namespaces";
    case Stage::kDevices:
      return "read-only /dev";
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
    case Stage::kRlimits:
      return "resource limits";
    case Stage::kCapabilities:
      return "no capabilities";
    case Stage::kSeccomp:
      return "seccomp";
    default:
      return nullptr;
  }
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

absl::Status CheckRequest(const CallRequest& request) {
  if (request.argv.empty() || request.argv[0].empty() || request.argv[0][0] != '/')
    return InvalidArgument("a sandboxed call needs the absolute path of a program");
  for (const std::string& arg : request.argv) {
    if (arg.size() > kMaxArgumentBytes)
      return InvalidArgument("an argument of {} bytes is longer than a program can be given ({})",
                             arg.size(), kMaxArgumentBytes);
    if (arg.find('\0') != std::string::npos)
      return InvalidArgument("a program's argument cannot hold a NUL byte");
  }
  const Limits& limits = request.limits;
  if (limits.wall_time_ms <= 0 || limits.cpu_time_s <= 0 || limits.memory_bytes <= 0 ||
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

absl::Status SendRun(int control, const int (&fds)[kRunFds]) {
  RunMessage message;
  iovec io{&message, sizeof(message)};
  alignas(cmsghdr) char buffer[CMSG_SPACE(sizeof(fds))] = {};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  header.msg_control = buffer;
  header.msg_controllen = sizeof(buffer);
  cmsghdr* part = CMSG_FIRSTHDR(&header);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof(fds));
  std::memcpy(CMSG_DATA(part), fds, sizeof(fds));
  while (sendmsg(control, &header, MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET)
      return absl::UnavailableError("the session's sandbox has died; start it again");
    return ErrnoError(errno, "send a call to the sandbox");
  }
  return absl::OkStatus();
}

// What Run holds on to while a call runs.
struct CallIo {
  UniqueFd output;   // read end
  UniqueFd channel;  // call channel
};

class BubblewrapSandbox : public Sandbox {
 public:
  BubblewrapSandbox(Spawned spawned, UniqueFd init_pidfd)
      : spawned_(std::move(spawned)), init_pidfd_(std::move(init_pidfd)) {}
  ~BubblewrapSandbox() override {
    if (!KillTree()) return;  // its lock stays taken, so nothing else runs on the workspace
    int status = 0;
    while (waitpid(spawned_.bwrap, &status, 0) < 0 && errno == EINTR) {
    }
  }

  absl::StatusOr<CallResult> Run(const CallRequest& request, const CancelFlag& cancel) override;

 private:
  absl::StatusOr<CallIo> Send(const CallRequest& request);
  // Kills the init and with it everything inside. True when all are dead; false if the kernel does
  // not get there.
  bool KillTree();

  const Spawned spawned_;
  const UniqueFd init_pidfd_;
};

bool BubblewrapSandbox::KillTree() {
  syscall(SYS_pidfd_send_signal, init_pidfd_.get(), SIGKILL, nullptr, 0);
  // Readable when the init is a zombie, which its namespace's last process comes before.
  const Clock::time_point deadline = Clock::now() + kKillPatience;
  pollfd polled{init_pidfd_.get(), POLLIN, 0};
  while (Clock::now() < deadline)
    if (poll(&polled, 1, kCancelPollMs) > 0) return true;
  return false;
}

absl::StatusOr<CallIo> BubblewrapSandbox::Send(const CallRequest& request) {
  ASSIGN_OR_RETURN(UniqueFd payload, MemoryFile("call", Serialize(MakePayload(request))));
  ASSIGN_OR_RETURN(UniqueFd input, MemoryFile("stdin", request.stdin_data));
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoError(errno, "pipe2");
  UniqueFd output_inside(pipe_fds[1]);
  CallIo io;
  io.output.Reset(pipe_fds[0]);
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0)
    return ErrnoError(errno, "socketpair");
  io.channel.Reset(sockets[0]);
  UniqueFd channel_inside(sockets[1]);
  if (fcntl(io.output.get(), F_SETFL, O_NONBLOCK) != 0)
    return ErrnoError(errno, "fcntl O_NONBLOCK");
  RETURN_IF_ERROR(SendRun(spawned_.control.get(),
                          {payload.get(), input.get(), output_inside.get(), channel_inside.get()}));
  return io;
}

// Reads what is there. False at the end of the output.
bool Drain(int fd, const CallRequest& request, OutputBuffer& output) {
  char buffer[65536];
  const ssize_t n = read(fd, buffer, sizeof(buffer));
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  const std::string_view chunk(buffer, static_cast<size_t>(n));
  output.Append(chunk);
  if (request.on_output) request.on_output(chunk);
  return true;
}

// One call from sent to reported.
class CallWait {
 public:
  CallWait(const CallRequest& request, const CancelFlag& cancel, const CallIo& io)
      : request_(request), cancel_(cancel), io_(io), output_(request.limits.max_output_bytes) {}

  // Returns when the init has reported the end, or has died (no report), or does not manage to kill
  // the call (no report).
  std::optional<Report> Wait();
  CallResult Result(const std::optional<Report>& report);

 private:
  void KillIfDue();
  void DrainRest();

  const CallRequest& request_;
  const CancelFlag& cancel_;
  const CallIo& io_;
  OutputBuffer output_;
  const Clock::time_point start_ = Clock::now();
  std::optional<CallEnd> killed_as_;
  Clock::time_point killed_at_;
};

void CallWait::KillIfDue() {
  if (killed_as_) return;
  if (cancel_.cancelled()) {
    killed_as_ = CallEnd::kCancelled;
  } else if (Clock::now() - start_ >= std::chrono::milliseconds(request_.limits.wall_time_ms)) {
    killed_as_ = CallEnd::kTimedOut;
  } else {
    return;
  }
  killed_at_ = Clock::now();
  const char byte = 1;
  (void)!send(io_.channel.get(), &byte, 1, MSG_NOSIGNAL);
}

std::optional<Report> CallWait::Wait() {
  bool output_open = true;
  while (true) {
    KillIfDue();
    if (killed_as_ && Clock::now() - killed_at_ > kKillPatience) return std::nullopt;
    pollfd polled[2] = {{io_.channel.get(), POLLIN, 0},
                        {output_open ? io_.output.get() : -1, POLLIN, 0}};
    if (poll(polled, 2, kCancelPollMs) < 0) continue;
    if (polled[1].revents != 0) output_open = Drain(io_.output.get(), request_, output_);
    if (polled[0].revents == 0) continue;
    Report report;
    const ssize_t n = recv(io_.channel.get(), &report, sizeof(report), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n != sizeof(report)) return std::nullopt;
    DrainRest();
    return report;
  }
}

// All writers are dead: what is in the pipe is all there will be.
void CallWait::DrainRest() {
  pollfd polled{io_.output.get(), POLLIN, 0};
  while (poll(&polled, 1, 0) > 0 && Drain(io_.output.get(), request_, output_)) {
  }
}

CallResult CallWait::Result(const std::optional<Report>& report) {
  CallResult result;
  result.output_bytes = output_.total_bytes();
  result.output = output_.Take(result.dropped_at);
  result.wall_time_us =
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start_).count();
  if (!report || (!report->has_status && !report->killed)) {
    result.end = CallEnd::kSandboxDied;
  } else if (!report->has_status) {
    result.end = killed_as_.value_or(CallEnd::kCancelled);
  } else if (WIFSIGNALED(report->wait_status)) {
    result.end = CallEnd::kSignaled;
    result.signal = WTERMSIG(report->wait_status);
  } else {
    result.exit_code = WEXITSTATUS(report->wait_status);
  }
  return result;
}

absl::StatusOr<CallResult> BubblewrapSandbox::Run(const CallRequest& request,
                                                  const CancelFlag& cancel) {
  RETURN_IF_ERROR(CheckRequest(request));
  if (cancel.cancelled()) return CallResult{.end = CallEnd::kCancelled};
  ASSIGN_OR_RETURN(const CallIo io, Send(request));
  CallWait wait(request, cancel, io);
  const std::optional<Report> report = wait.Wait();
  if (report && report->failed != Stage::kNone) return CallFailure(*report, request);
  CallResult result = wait.Result(report);
  if (result.end == CallEnd::kSandboxDied) KillTree();  // so that nothing of the call lives on
  return result;
}

// Waits for the init's Hello and learns its pid from the kernel.
absl::StatusOr<Hello> ReceiveHello(const Spawned& spawned, pid_t& init) {
  pollfd polled{spawned.control.get(), POLLIN, 0};
  const int ready = poll(&polled, 1, kStartTimeoutMs);
  if (ready == 0)
    return absl::DeadlineExceededError(
        fmt::format("sandbox: bubblewrap did not come up in {} ms", kStartTimeoutMs));
  Hello hello;
  iovec io{&hello, sizeof(hello)};
  alignas(cmsghdr) char buffer[CMSG_SPACE(sizeof(ucred))];
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  header.msg_control = buffer;
  header.msg_controllen = sizeof(buffer);
  const ssize_t n = recvmsg(spawned.control.get(), &header, MSG_CMSG_CLOEXEC);
  const cmsghdr* part = n > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
  if (n != sizeof(hello) || hello.magic != Hello::kMagic || part == nullptr ||
      part->cmsg_type != SCM_CREDENTIALS)
    return StartFailure(ReadComplaints(spawned.complaints.get()));
  ucred credentials;
  std::memcpy(&credentials, CMSG_DATA(part), sizeof(credentials));
  init = credentials.pid;
  return hello;
}

absl::Status CheckHello(const Hello& hello) {
  if (!hello.nested)
    return FailedPrecondition(
        "sandbox: the wall 'PID, mount and IPC namespaces' cannot be put up for calls: the kernel "
        "refused to mount a private /proc; run on a host (or in a container with an unmasked "
        "/proc) that allows it");
  if (!hello.seccomp)
    return FailedPrecondition(
        "sandbox: the wall 'seccomp' cannot be put up: the system call filter cannot be built; "
        "use a kernel with CONFIG_SECCOMP_FILTER");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BubblewrapSandbox>> StartBubblewrap(const Options& options,
                                                                   Hello& hello) {
  std::error_code error;
  if (!std::filesystem::is_directory(options.workspace, error))
    return InvalidArgument("sandbox: the workspace {} is not a directory",
                           options.workspace.string());
  ASSIGN_OR_RETURN(const std::string bwrap, FindBubblewrap());
  ASSIGN_OR_RETURN(const std::filesystem::path helpers, FindHelpers(options.helper_dir));
  ASSIGN_OR_RETURN(const UniqueFd lock, TakeLock(options.lock_file));
  ASSIGN_OR_RETURN(Spawned spawned, SpawnInit(options, bwrap, helpers, lock.get()));
  pid_t init = -1;
  absl::Status status;
  absl::StatusOr<Hello> received = ReceiveHello(spawned, init);
  status = received.ok() ? CheckHello(*received) : received.status();
  UniqueFd pidfd;
  if (status.ok()) {
    pidfd.Reset(static_cast<int>(syscall(SYS_pidfd_open, init, 0)));
    status = pidfd.valid() ? RecordInit(lock.get(), init) : ErrnoError(errno, "pidfd_open");
  }
  if (!status.ok()) {
    // bwrap passes its own death on to what it started.
    kill(spawned.bwrap, SIGKILL);
    waitpid(spawned.bwrap, nullptr, 0);
    return status;
  }
  hello = *received;
  return std::make_unique<BubblewrapSandbox>(std::move(spawned), std::move(pidfd));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Sandbox>> Sandbox::Start(const Options& options) {
  Hello hello;
  ASSIGN_OR_RETURN(std::unique_ptr<BubblewrapSandbox> sandbox, StartBubblewrap(options, hello));
  return std::unique_ptr<Sandbox>(std::move(sandbox));
}

std::vector<Wall> ProbeWalls(const std::filesystem::path& helper_dir) {
  std::vector<Wall> walls;
  const absl::StatusOr<std::string> bwrap = FindBubblewrap();
  walls.push_back({"bubblewrap", true, bwrap.ok(), bwrap.ok() ? *bwrap : Text(bwrap.status())});
  char directory[] = "/tmp/agentd-probe-XXXXXX";
  if (mkdtemp(directory) == nullptr) {
    walls.push_back({"namespaces", true, false, "cannot make a directory in /tmp to try them in"});
    return walls;
  }
  const std::filesystem::path root = directory;
  std::filesystem::create_directory(root / "workspace");
  Hello hello;
  absl::Status status;
  {
    auto sandbox = StartBubblewrap({root / "workspace", root / "lock", helper_dir}, hello);
    status = sandbox.status();
    walls.push_back({"user, PID, mount, network, IPC and UTS namespaces", true, status.ok(),
                     status.ok() ? "a sandbox started" : Text(status)});
    if (sandbox.ok()) {
      const auto result = (*sandbox)->Run({.argv = {"/bin/true"}}, CancelFlag());
      const bool ran = result.ok() && result->end == CallEnd::kExited && result->exit_code == 0;
      status = result.status();
      walls.push_back({"seccomp, no capabilities, resource limits of a call", true, ran,
                       ran ? "a call ran behind them" : Text(status)});
    }
  }
  const bool limited = hello.pid_max_per_namespace || geteuid() != 0;
  walls.push_back({"process limit", false, limited,
                   hello.pid_max_per_namespace ? "pid_max of the call's own PID namespace"
                   : limited                   ? "RLIMIT_NPROC in the call's own user namespace"
                             : "the kernel does not count processes of uid 0: run the daemon as an "
                               "ordinary user or on Linux 6.14 or newer"});
  walls.push_back({"memory limit of a whole call", false, false,
                   "each process is limited by its address space; no cgroup limits their sum"});
  std::error_code ignored;
  std::filesystem::remove_all(root, ignored);
  return walls;
}

}  // namespace agentd::sandbox
