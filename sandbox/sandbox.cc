#include "sandbox/sandbox.h"

#include <poll.h>
#include <signal.h>
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
#include "sandbox/call.h"
#include "sandbox/cgroup.h"
#include "sandbox/fd_passing.h"
#include "sandbox/landlock.h"
#include "sandbox/lock.h"
#include "sandbox/output.h"
#include "sandbox/process.h"
#include "sandbox/protocol.h"
#include "sandbox/spawn.h"
#include "sandbox/workspace_watch.h"

namespace agentd::sandbox {
namespace {

using Clock = std::chrono::steady_clock;

// How long bubblewrap and the init may take to come up on a loaded machine.
constexpr int kStartTimeoutMs = 30'000;
// How often a running call looks at its cancel flag.
constexpr int kCancelPollMs = 10;

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

class BubblewrapSandbox : public Sandbox {
 public:
  BubblewrapSandbox(const Options& options, Spawned spawned, UniqueFd init_pidfd,
                    std::unique_ptr<Cgroup> cgroup, std::vector<std::string> missing_walls)
      : cgroup_(std::move(cgroup)),
        max_memory_bytes_(options.total.memory_bytes),
        spawned_(std::move(spawned)),
        init_pidfd_(std::move(init_pidfd)),
        missing_walls_(std::move(missing_walls)) {
    if (options.max_workspace_bytes > 0 || options.max_workspace_files > 0)
      watch_ = std::make_shared<WorkspaceWatch>(
          options.workspace, TreeSize{options.max_workspace_bytes, options.max_workspace_files});
  }
  ~BubblewrapSandbox() override {
    // If not, its lock stays taken, so nothing else runs on the workspace.
    if (!KillTree(init_pidfd_.get())) return;
    int status = 0;
    while (waitpid(spawned_.bwrap, &status, 0) < 0 && errno == EINTR) {
    }
  }

  absl::StatusOr<CallResult> Run(const CallRequest& request, const CancelFlag& cancel) override;
  absl::StatusOr<std::unique_ptr<Process>> StartProcess(const CallRequest& request) override {
    return StartProcessThrough(spawned_.sockets(), init_pidfd_.get(), watch_, request);
  }
  const std::vector<std::string>& missing_walls() const override { return missing_walls_; }

 private:
  int64_t OutOfMemoryKills() const { return cgroup_ ? cgroup_->out_of_memory_kills() : 0; }

  const std::unique_ptr<Cgroup> cgroup_;  // null where there is none
  const int64_t max_memory_bytes_;
  const Spawned spawned_;
  const UniqueFd init_pidfd_;
  const std::vector<std::string> missing_walls_;
  // Null when the workspace is not limited. Shared with processes, which may live longer.
  std::shared_ptr<WorkspaceWatch> watch_;
};

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
  CallWait(const CallRequest& request, const CancelFlag& cancel, const SentCall& call)
      : request_(request), cancel_(cancel), call_(call), output_(request.limits.max_output_bytes) {}

  // Returns when the init has reported the end, or has died (no report), or does not manage to kill
  // the call (no report).
  std::optional<Report> Wait();
  CallResult Result(const std::optional<Report>& report, const std::string& full);

 private:
  void KillIfCancelled();
  void DrainRest();

  const CallRequest& request_;
  const CancelFlag& cancel_;
  const SentCall& call_;
  OutputBuffer output_;
  const Clock::time_point start_ = Clock::now();
  bool killed_ = false;
  // When even the slowest kill is over. The init ends a call whose time is over.
  Clock::time_point give_up_ =
      start_ + std::chrono::milliseconds(request_.limits.wall_time_ms) + kKillPatience;
};

void CallWait::KillIfCancelled() {
  if (killed_ || !cancel_.cancelled()) return;
  killed_ = true;
  give_up_ = std::min(give_up_, Clock::now() + kKillPatience);
  AskToKill(call_.channel.get());
}

std::optional<Report> CallWait::Wait() {
  bool output_open = true;
  while (Clock::now() < give_up_) {
    KillIfCancelled();
    pollfd polled[2] = {{call_.channel.get(), POLLIN, 0},
                        {output_open ? call_.output.get() : -1, POLLIN, 0}};
    if (poll(polled, 2, kCancelPollMs) < 0) continue;
    if (polled[1].revents != 0) output_open = Drain(call_.output.get(), request_, output_);
    if (polled[0].revents == 0) continue;
    const std::optional<CallMessage> message = ReceiveFromCall(call_.channel.get(), request_);
    if (!message) return std::nullopt;
    if (message->kind != CallMessage::Kind::kReport) continue;
    DrainRest();
    return message->report;
  }
  return std::nullopt;
}

// All writers are dead: what is in the pipe is all there will be.
void CallWait::DrainRest() {
  pollfd polled{call_.output.get(), POLLIN, 0};
  while (poll(&polled, 1, 0) > 0 && Drain(call_.output.get(), request_, output_)) {
  }
}

CallResult CallWait::Result(const std::optional<Report>& report, const std::string& full) {
  CallResult result;
  result.output_bytes = output_.total_bytes();
  result.output = output_.Take(result.dropped_at);
  result.wall_time_us =
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start_).count();
  SetEnd(report, full, result);
  return result;
}

absl::StatusOr<CallResult> BubblewrapSandbox::Run(const CallRequest& request,
                                                  const CancelFlag& cancel) {
  if (cancel.cancelled()) return CallResult{.end = CallEnd::kCancelled};
  const int64_t kills_before = OutOfMemoryKills();
  ASSIGN_OR_RETURN(const SentCall call, SendCall(spawned_.sockets(), request, Streams::kData));
  const WatchedCall watched(watch_, call.channel.get());
  CallWait wait(request, cancel, call);
  const std::optional<Report> report = wait.Wait();
  if (report && report->failed != Stage::kNone) return CallFailure(*report, request);
  CallResult result = wait.Result(report, watched.full());
  if (result.end == CallEnd::kSandboxDied)
    KillTree(init_pidfd_.get());  // so that nothing of the call lives on
  if (result.detail.empty() && OutOfMemoryKills() > kills_before)
    result.detail = fmt::format(
        "all processes of the session together reached their memory limit of {} MiB, and the "
        "kernel ended one",
        max_memory_bytes_ >> 20);
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

// The cgroup of a sandbox whose init is `init`, or why there is none.
absl::StatusOr<std::unique_ptr<Cgroup>> PutIntoCgroup(
    const absl::StatusOr<std::filesystem::path>& parent, const TotalLimits& limits, pid_t init) {
  RETURN_IF_ERROR(parent.status());
  ASSIGN_OR_RETURN(std::unique_ptr<Cgroup> cgroup, Cgroup::Create(*parent, limits));
  RETURN_IF_ERROR(cgroup->Add(init));
  return cgroup;
}

std::vector<Wall> OptionalWalls(const Hello& hello,
                                const absl::StatusOr<std::unique_ptr<Cgroup>>& cgroup) {
  const bool limited = hello.pid_max_per_namespace || geteuid() != 0;
  const int abi = hello.landlock_abi;
  return {
      {"Landlock", false, abi >= kLeastLandlockAbi,
       abi == 0
           ? "the kernel has none: boot it with landlock in lsm="
           : fmt::format("version {}{}", abi,
                         abi < kLeastLandlockAbi    ? " forbids moving files: use Linux 5.19 or "
                                                      "newer"
                         : abi < kScopedLandlockAbi ? ", files only (Linux 6.12 and newer: "
                                                      "abstract sockets and signals too)"
                                                    : ", files, abstract sockets and signals")},
      {"process limit", false, limited,
       hello.pid_max_per_namespace ? "pid_max of the call's own PID namespace"
       : limited                   ? "RLIMIT_NPROC in the call's own user namespace"
                 : "the kernel does not count processes of uid 0: run the daemon as an "
                   "ordinary user or on Linux 6.14 or newer"},
      {"limits of a whole session", false, cgroup.ok(),
       cgroup.ok()
           ? fmt::format("memory, processes and processor time by a cgroup in {}",
                         (*cgroup)->directory().parent_path().string())
           : "each process is limited, but nothing limits their sum: " + Text(cgroup.status())},
      // No quota of a file system's stands behind it.
      {"hard limit of the workspace's size", false, false,
       "a soft one stands in: sizes are looked at while calls run and after them, so that a call "
       "can write more before it is ended"},
  };
}

// `walls` gets the optional ones.
absl::StatusOr<std::unique_ptr<BubblewrapSandbox>> StartBubblewrap(const Options& options,
                                                                   std::vector<Wall>& walls) {
  std::error_code error;
  if (!std::filesystem::is_directory(options.workspace, error))
    return InvalidArgument("sandbox: the workspace {} is not a directory",
                           options.workspace.string());
  if (options.max_workspace_bytes < 0 || options.max_workspace_files < 0)
    return InvalidArgument("sandbox: the workspace's limits must not be negative");
  if (!options.outputs.empty() && !std::filesystem::is_directory(options.outputs, error))
    return InvalidArgument("sandbox: {} is not a directory", options.outputs.string());
  RETURN_IF_ERROR(CheckMounts(options.mounts));
  ASSIGN_OR_RETURN(const std::string bwrap, FindBubblewrap());
  ASSIGN_OR_RETURN(const std::filesystem::path helpers, FindHelpers(options.helper_dir));
  ASSIGN_OR_RETURN(const UniqueFd lock, TakeLock(options.lock_file));
  // First, since a cgroup with a process in it cannot be divided.
  const absl::StatusOr<std::filesystem::path> cgroups = DelegatedCgroup();
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
  absl::StatusOr<std::unique_ptr<Cgroup>> cgroup = PutIntoCgroup(cgroups, options.total, init);
  // Not before: what it forks is where it is itself. (If it has died, the first call finds out.)
  const RunMessage may_prepare;
  (void)SendWithFds(spawned.control.get(), &may_prepare, sizeof(may_prepare), {});
  walls = OptionalWalls(*received, cgroup);
  std::vector<std::string> missing;
  for (const Wall& wall : walls)
    if (!wall.available) missing.push_back(wall.name);
  return std::make_unique<BubblewrapSandbox>(options, std::move(spawned), std::move(pidfd),
                                             cgroup.ok() ? *std::move(cgroup) : nullptr,
                                             std::move(missing));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Sandbox>> Sandbox::Start(const Options& options) {
  std::vector<Wall> walls;
  ASSIGN_OR_RETURN(std::unique_ptr<BubblewrapSandbox> sandbox, StartBubblewrap(options, walls));
  return std::unique_ptr<Sandbox>(std::move(sandbox));
}

std::vector<Wall> ProbeWalls(const std::filesystem::path& helper_dir,
                             const std::filesystem::path& scratch) {
  std::vector<Wall> walls;
  const absl::StatusOr<std::string> bwrap = FindBubblewrap();
  walls.push_back({"bubblewrap", true, bwrap.ok(), bwrap.ok() ? *bwrap : Text(bwrap.status())});
  std::error_code error;
  std::filesystem::remove_all(scratch, error);  // what a process that was killed left
  std::filesystem::create_directories(scratch / "workspace", error);
  if (error) {
    walls.push_back({"namespaces", true, false,
                     fmt::format("cannot make the directory {} to try them in: {}",
                                 scratch.string(), error.message())});
    return walls;
  }
  std::vector<Wall> optional;
  absl::Status status;
  {
    auto sandbox = StartBubblewrap({scratch / "workspace", scratch / "lock", helper_dir}, optional);
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
  for (Wall& wall : optional) walls.push_back(std::move(wall));
  std::filesystem::remove_all(scratch, error);
  return walls;
}

}  // namespace agentd::sandbox
