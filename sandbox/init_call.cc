#include "sandbox/init_call.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "sandbox/fd_passing.h"
#include "sandbox/landlock.h"

namespace agentd::sandbox {
namespace {

constexpr unsigned long kProcFlags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
constexpr unsigned long kTmpFlags = MS_NOSUID | MS_NODEV;
// In the call's first process the call channel, and before there is one the socket to the init.
constexpr int kChannelFd = 3;
// There, as long as it waits.
constexpr int kWaitFd = 4;
// The kernel keeps the pids below this for a namespace's first processes: once it has passed them,
// it gives out no more of them (RESERVED_PIDS in kernel/pid.c).
constexpr int64_t kReservedPids = 300;

// For root only (which the daemon may be), or of the host's keys and buses: nobody's business. Each
// costs a call a mount, so what is merely curious is left.
constexpr const char* kHiddenFiles[] = {
    "kallsyms",    "kcore",      "key-users",   "keys",         "kmsg",
    "kpagecgroup", "kpagecount", "kpageflags",  "pagetypeinfo", "sched_debug",
    "slabinfo",    "timer_list", "timer_stats", "vmallocinfo",
};
constexpr const char* kHiddenDirectories[] = {"acpi", "bus", "scsi"};

// The mount flags that a remount must repeat, or they are lost (or, where a mount was made by
// someone with more privileges, the remount is refused).
unsigned long FlagsOf(const struct statvfs& info) {
  unsigned long flags = 0;
  for (const auto& [had, flag] : std::initializer_list<std::pair<unsigned long, unsigned long>>{
           {ST_NOSUID, MS_NOSUID},
           {ST_NODEV, MS_NODEV},
           {ST_NOEXEC, MS_NOEXEC},
           {ST_NOATIME, MS_NOATIME},
           {ST_NODIRATIME, MS_NODIRATIME},
           {ST_RELATIME, MS_RELATIME}})
    if (info.f_flag & had) flags |= flag;
  return flags;
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

// As execve takes them.
std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& text : strings) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// The steps below run in the call's first process, which nothing can return to: they report
// through the shared state and end it.
class CallChild {
 public:
  CallChild(CallSource source, bool network, const SeccompFilters& filters,
            const Abilities& abilities, CallState* state)
      : source_(source),
        network_(network),
        filters_(filters),
        abilities_(abilities),
        state_(state) {}

  [[noreturn]] void Run(int socket);

 private:
  void Check(bool ok, Stage stage) {
    if (ok) return;
    state_->error_number = errno;
    state_->failed = stage;
    _exit(1);
  }
  bool WriteProc(const char* path, const std::string& text) {
    const int fd = openat(proc_.get(), path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool ok = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    const int error = errno;
    close(fd);
    errno = error;
    return ok;
  }
  void PutUpWalls();
  void LimitProcesses();
  std::vector<UniqueFd> ReceiveCall();
  void SetUpFds(const std::vector<UniqueFd>& fds);
  [[noreturn]] void RunProgram();
  void MountProc();
  void HideProc();
  void MountTmp();
  void EnterUserNamespace();
  void EnterNetworkNamespace();
  void SetRlimits();
  void DropPrivileges();
  [[noreturn]] void Exec(char* const argv[], char* const env[]);
  [[noreturn]] void Reap(pid_t program);
  void EndTheRest();

  const CallSource source_;
  const bool network_;
  const SeccompFilters& filters_;
  const Abilities& abilities_;
  CallState* state_;
  UniqueFd proc_;      // the writable proc mount, under the read-only one
  UniqueFd pid_max_;   // of its PID namespace, where there is such a thing
  UniqueFd listener_;  // with network
  Payload payload_;    // once it has come
};

void CallChild::SetUpFds(const std::vector<UniqueFd>& fds) {
  // Above the numbers they get first, so that no dup2 overwrites a source.
  int copies[kChannelFd + 1];
  for (int i = 0; i <= kChannelFd; ++i) {
    copies[i] = fcntl(fds[static_cast<size_t>(i) + 1].get(), F_DUPFD_CLOEXEC, 16);
    Check(copies[i] >= 0, Stage::kPayload);
  }
  for (int i = 0; i < kChannelFd; ++i) Check(dup2(copies[i], i) == i, Stage::kPayload);
  // Until the program runs.
  Check(dup3(copies[kChannelFd], kChannelFd, O_CLOEXEC) == kChannelFd, Stage::kPayload);
  Check(syscall(SYS_close_range, kChannelFd + 1, ~0u, 0u) == 0, Stage::kPayload);
}

// A fresh proc shows this call's processes only. It is made read-only: the daemon's uid may be 0,
// and /proc/sys and others trust a bare uid 0 without asking for capabilities.
void CallChild::MountProc() {
  Check(mount("proc", "/proc", "proc", kProcFlags, nullptr) == 0, Stage::kProc);
  proc_.Reset(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  Check(proc_.valid(), Stage::kProc);
  if (abilities_.pid_max_per_namespace) {
    pid_max_.Reset(openat(proc_.get(), "sys/kernel/pid_max", O_WRONLY | O_CLOEXEC));
    Check(pid_max_.valid(), Stage::kProcessLimit);
    // Pids are used again from kReservedPids on only. Where the kernel lets us, they begin there
    // too, which makes the limit the same for a call's first processes.
    if (!WriteProc("sys/kernel/ns_last_pid", std::to_string(kReservedPids)))
      Check(errno == ENOENT, Stage::kProcessLimit);
  }
  // The kernel's first victims when memory runs out: a call, not the daemon.
  Check(WriteProc("self/oom_score_adj", "1000"), Stage::kProc);
  Check(mount("/proc", "/proc", nullptr, MS_BIND, nullptr) == 0, Stage::kProc);
  Check(
      mount(nullptr, "/proc", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY | kProcFlags, nullptr) == 0,
      Stage::kProc);
  HideProc();
}

void CallChild::HideProc() {
  for (const char* name : kHiddenFiles) {
    const std::string path = std::string("/proc/") + name;
    if (mount("/dev/null", path.c_str(), nullptr, MS_BIND, nullptr) != 0)
      Check(errno == ENOENT, Stage::kProc);
  }
  for (const char* name : kHiddenDirectories) {
    const std::string path = std::string("/proc/") + name;
    if (mount(kEmptyDirectory, path.c_str(), nullptr, MS_BIND, nullptr) != 0)
      Check(errno == ENOENT, Stage::kProc);
  }
}

// Private to the call, so that the workspace is all that a call leaves behind: that is what lets
// it be run again from the workspace's snapshot.
void CallChild::MountTmp() {
  Check(mount("tmp", "/tmp", "tmpfs", kTmpFlags, "mode=1777,size=512m,nr_inodes=65536") == 0,
        Stage::kTmp);
  Check(mount("shm", "/dev/shm", "tmpfs", kTmpFlags, "mode=1777,size=256m,nr_inodes=4096") == 0,
        Stage::kTmp);
}

void CallChild::EnterUserNamespace() {
  // Also what RLIMIT_NPROC counts in: the call alone, not the daemon's other processes.
  const uid_t uid = geteuid();
  const gid_t gid = getegid();
  Check(unshare(CLONE_NEWUSER) == 0, Stage::kUserNamespace);
  Check(WriteProc("self/setgroups", "deny"), Stage::kUserNamespace);
  auto map = [](unsigned inside, unsigned outside) {
    return std::to_string(inside) + " " + std::to_string(outside) + " 1\n";
  };
  Check(WriteProc("self/uid_map", map(kCallUid, uid)), Stage::kUserNamespace);
  Check(WriteProc("self/gid_map", map(kCallUid, gid)), Stage::kUserNamespace);
  // No user namespace below this one, whatever the system call filter lets through.
  Check(WriteProc("sys/user/max_user_namespaces", "0"), Stage::kNestedNamespaces);
  proc_.Reset();
}

// Made in the call's user namespace, whose first process has in it what bringing up a loopback
// takes, until it drops that.
void CallChild::EnterNetworkNamespace() {
  Check(unshare(CLONE_NEWNET) == 0, Stage::kNetwork);
  listener_.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  Check(listener_.valid(), Stage::kNetwork);
  ifreq loopback{};
  std::strcpy(loopback.ifr_name, "lo");
  loopback.ifr_flags = IFF_UP;
  Check(ioctl(listener_.get(), SIOCSIFFLAGS, &loopback) == 0, Stage::kNetwork);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(kProxyPort);
  Check(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
            listen(listener_.get(), SOMAXCONN) == 0,
        Stage::kNetwork);
}

void CallChild::LimitProcesses() {
  const rlim_t processes = static_cast<rlim_t>(payload_.max_processes);
  const rlimit limit{processes, processes};
  Check(setrlimit(RLIMIT_NPROC, &limit) == 0, Stage::kRlimits);
  if (!pid_max_.valid()) return;
  // Above the pids that are not used again.
  const std::string pid_max = std::to_string(kReservedPids + payload_.max_processes);
  Check(
      write(pid_max_.get(), pid_max.data(), pid_max.size()) == static_cast<ssize_t>(pid_max.size()),
      Stage::kProcessLimit);
}

void CallChild::SetRlimits() {
  auto set = [this](__rlimit_resource which, int64_t value) {
    const rlimit limit{static_cast<rlim_t>(value), static_cast<rlim_t>(value)};
    rlimit old;
    Check(getrlimit(which, &old) == 0, Stage::kRlimits);
    // A limit that is lower already stays.
    if (old.rlim_max <= limit.rlim_max) return Check(true, Stage::kRlimits);
    Check(setrlimit(which, &limit) == 0, Stage::kRlimits);
  };
  set(RLIMIT_CPU, payload_.cpu_time_s);
  set(RLIMIT_AS, payload_.memory_bytes);
  set(RLIMIT_NOFILE, payload_.max_open_files);
  set(RLIMIT_FSIZE, payload_.max_file_bytes);
  set(RLIMIT_CORE, 0);
  set(RLIMIT_MEMLOCK, int64_t{8} << 20);
  set(RLIMIT_MSGQUEUE, int64_t{1} << 20);
  set(RLIMIT_SIGPENDING, 4096);
  set(RLIMIT_RTPRIO, 0);
}

void CallChild::DropPrivileges() {
  Check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, Stage::kCapabilities);
  for (int capability = 0; capability <= 63; ++capability) {
    if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0) continue;
    Check(errno == EINVAL && capability > 0, Stage::kCapabilities);  // past the kernel's last
    break;
  }
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2] = {};
  Check(syscall(SYS_capset, &header, none) == 0, Stage::kCapabilities);
  // What stays behind as the call's first process cannot be opened or traced by its children.
  Check(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, Stage::kCapabilities);
  // After the last mount: who is restricted cannot mount.
  if (abilities_.landlock_abi >= kLeastLandlockAbi)
    Check(RestrictByLandlock(abilities_.landlock_abi, kCallFileRules), Stage::kLandlock);
  Check(LoadSeccompFilters(filters_), Stage::kSeccomp);
}

// Shares its memory with the call's first process, which waits.
void CallChild::Exec(char* const argv[], char* const env[]) {
  setsid();
  Check(chdir(payload_.cwd.c_str()) == 0, Stage::kCwd);
  execve(argv[0], argv, env);
  Check(false, Stage::kExec);
  _exit(1);
}

// The first process of a PID namespace gets no signal it does not handle, so the program is its
// child: one that kills itself must die.
void CallChild::Reap(pid_t program) {
  for (int fd : {0, 1, 2}) close(fd);
  Report report;
  pid_t pid;
  while ((pid = waitpid(-1, &report.wait_status, 0)) != program)
    if (pid < 0 && errno != EINTR) _exit(1);
  // Not run: the init reports why.
  if (state_->failed != Stage::kNone) _exit(1);
  report.has_status = 1;
  EndTheRest();
  // All of the call is dead but this process, which does nothing more. Taking its namespaces down
  // is a millisecond that the caller need not wait for.
  const CallMessage message{CallMessage::Kind::kReport, report};
  (void)!send(kChannelFd, &message, sizeof(message), MSG_NOSIGNAL);
  _exit(0);
}

// A killed process forks no more, so once is enough; all orphans are this process's children.
void CallChild::EndTheRest() {
  kill(-1, SIGKILL);
  while (waitpid(-1, nullptr, 0) >= 0 || errno == EINTR) {
  }
}

void CallChild::PutUpWalls() {
  MountProc();
  MountTmp();
  EnterUserNamespace();
  if (network_) EnterNetworkNamespace();
  DropPrivileges();
}

std::vector<UniqueFd> CallChild::ReceiveCall() {
  RunMessage message;
  std::vector<UniqueFd> fds;
  const bool waits = source_ == CallSource::kCallsFd;
  const ssize_t n = ReceiveWithFds(waits ? kWaitFd : kChannelFd, &message, sizeof(message), fds);
  if (n == 0) _exit(0);  // nobody is there any more
  Check(n == sizeof(message) && message.magic == RunMessage::kMagic && fds.size() == kRunFds,
        Stage::kPayload);
  // First of all: from here on the init ends it when it is asked to.
  if (waits)
    Check(SendWithFds(kChannelFd, &message, sizeof(message), {fds[4].get()}), Stage::kPayload);
  std::string bytes;
  Check(ReadAll(fds[0].get(), bytes), Stage::kPayload);
  errno = EINVAL;
  Check(Deserialize(bytes, payload_) && !payload_.argv.empty(), Stage::kPayload);
  return fds;
}

void CallChild::RunProgram() {
  const std::vector<char*> argv = Pointers(payload_.argv);
  const std::vector<char*> env = Pointers(payload_.env);
  // Copying the page tables of a process that goes on to execute another is half a millisecond on
  // some virtual machines. Goes on here when the program runs or could not.
  const pid_t program = vfork();
  Check(program >= 0, Stage::kFork);
  if (program == 0) Exec(argv.data(), env.data());
  if (state_->failed == Stage::kNone) {
    const CallMessage started{CallMessage::Kind::kStarted, {}};
    (void)!send(kChannelFd, &started, sizeof(started), MSG_NOSIGNAL);
  }
  Reap(program);
}

void CallChild::Run(int socket) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  umask(022);
  // Nothing else may be left: control socket, lock, other calls' channels.
  Check(dup3(socket, kChannelFd, O_CLOEXEC) == kChannelFd, Stage::kPayload);
  const bool waits = source_ == CallSource::kCallsFd;
  if (waits) Check(dup3(kCallsFd, kWaitFd, O_CLOEXEC) == kWaitFd, Stage::kPayload);
  Check(syscall(SYS_close_range, waits ? kWaitFd + 1 : kWaitFd, ~0u, 0u) == 0, Stage::kPayload);
  PutUpWalls();
  const std::vector<UniqueFd> fds = ReceiveCall();
  if (network_) {
    const CallMessage message{CallMessage::Kind::kListener, {}};
    Check(SendWithFds(fds[4].get(), &message, sizeof(message), {listener_.get()}), Stage::kNetwork);
  }
  LimitProcesses();
  SetUpFds(fds);
  SetRlimits();
  RunProgram();
}

pid_t CloneNamespaces() {
  return static_cast<pid_t>(syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | SIGCHLD,
                                    nullptr, nullptr, nullptr, nullptr));
}

}  // namespace

bool PrepareCall(CallSource source, bool network, const SeccompFilters& filters,
                 const Abilities& abilities, PreparedCall& prepared) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) return false;
  prepared.socket.Reset(sockets[0]);
  const UniqueFd inside(sockets[1]);
  void* shared =
      mmap(nullptr, sizeof(CallState), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return false;
  prepared.state = static_cast<CallState*>(shared);
  prepared.pid = CloneNamespaces();
  if (prepared.pid == 0)
    CallChild(source, network, filters, abilities, prepared.state).Run(inside.get());
  if (prepared.pid > 0) return true;
  munmap(shared, sizeof(CallState));
  prepared.state = nullptr;
  return false;
}

bool ProtectDevices() {
  DIR* directory = opendir("/dev");
  if (directory == nullptr) return false;
  bool ok = true;
  while (const dirent* entry = ok ? readdir(directory) : nullptr) {
    struct stat info;
    ok = fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0;
    if (!ok || (!S_ISCHR(info.st_mode) && !S_ISBLK(info.st_mode))) continue;
    const std::string path = std::string("/dev/") + entry->d_name;
    struct statvfs mounted;
    ok = statvfs(path.c_str(), &mounted) == 0 &&
         mount(nullptr, path.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY | FlagsOf(mounted),
               nullptr) == 0;
  }
  closedir(directory);
  return ok;
}

bool KernelHasPidMaxPerNamespace() {
  utsname name;
  int major = 0;
  int minor = 0;
  if (uname(&name) != 0 || std::sscanf(name.release, "%d.%d", &major, &minor) != 2) return false;
  return major > 6 || (major == 6 && minor >= 14);
}

bool ProbeNamespaces(bool write_pid_max) {
  const pid_t pid = CloneNamespaces();
  if (pid < 0) return false;
  if (pid == 0) {
    if (mount("proc", "/proc", "proc", kProcFlags, nullptr) != 0) _exit(1);
    if (!write_pid_max) _exit(0);
    const int fd = open("/proc/sys/kernel/pid_max", O_WRONLY | O_CLOEXEC);
    _exit(fd >= 0 && write(fd, "400", 3) == 3 ? 0 : 1);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace agentd::sandbox
