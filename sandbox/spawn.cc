#include "sandbox/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <future>
#include <iterator>
#include <mutex>
#include <queue>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "base/status.h"
#include "sandbox/protocol.h"

namespace agentd::sandbox {
namespace {

namespace fs = std::filesystem;

// bwrap asks the kernel to be killed when its parent dies, and to the kernel the parent is the
// thread that forked it. So all are forked by one thread that lives as long as the process.
class SpawnThread {
 public:
  static SpawnThread& Get() {
    static SpawnThread* const instance = new SpawnThread();  // never destroyed, like its thread
    return *instance;
  }

  // Runs `work` on the thread and returns its value.
  int Call(std::function<int()> work) {
    std::packaged_task<int()> task(std::move(work));
    std::future<int> result = task.get_future();
    {
      std::lock_guard lock(mutex_);
      tasks_.push(std::move(task));
    }
    wake_.notify_one();
    return result.get();
  }

 private:
  SpawnThread() {
    std::thread([this] { Loop(); }).detach();
  }

  void Loop() {
    while (true) {
      std::packaged_task<int()> task;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return !tasks_.empty(); });
        task = std::move(tasks_.front());
        tasks_.pop();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::queue<std::packaged_task<int()>> tasks_;  // guarded by mutex_
};

// Descriptors that the child gets, in order, from kControlFd on.
class InheritedFds {
 public:
  absl::Status Add(int fd) {
    // High enough that no target number below is also a source.
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 64);
    if (copy < 0) return ErrnoError(errno, "fcntl F_DUPFD_CLOEXEC");
    fds_.emplace_back(copy);
    return absl::OkStatus();
  }
  // Adds a file with `text` and returns its number in the child.
  absl::StatusOr<int> AddText(std::string_view text) {
    UniqueFd fd(memfd_create("etc", MFD_CLOEXEC));
    if (!fd.valid() ||
        pwrite(fd.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
      return ErrnoError(errno, "memfd_create");
    RETURN_IF_ERROR(Add(fd.get()));
    return kControlFd + static_cast<int>(fds_.size()) - 1;
  }
  const std::vector<UniqueFd>& fds() const { return fds_; }

 private:
  std::vector<UniqueFd> fds_;
};

constexpr char kOutputs[] = "/outputs";
// What a sandbox has already, or makes for each call.
constexpr const char* kTaken[] = {"/usr",   "/bin",    "/sbin",      "/lib",    "/lib32",
                                  "/lib64", "/libx32", "/etc",       "/proc",   "/sys",
                                  "/dev",   "/tmp",    "/workspace", "/agentd", kOutputs};

constexpr const char* kHelpers[] = {"agentd-init", "agentd-tool"};

// The whole of /etc but for the linker's cache and Debian's alternatives.
struct EtcFile {
  const char* name;
  const char* text;
};
constexpr EtcFile kEtc[] = {
    {"/etc/passwd", "nobody:x:65534:65534:nobody:/tmp:/bin/bash\n"},
    {"/etc/group", "nogroup:x:65534:\n"},
    {"/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
    {"/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"},
};

void AddSystem(std::vector<std::string>& args) {
  auto add = [&args](std::initializer_list<std::string> more) { args.insert(args.end(), more); };
  add({"--ro-bind", "/usr", "/usr"});
  for (const char* path : {"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}) {
    std::error_code error;
    if (fs::is_symlink(path, error)) {
      add({"--symlink", fs::read_symlink(path, error).string(), path});
    } else if (fs::is_directory(path, error)) {
      add({"--ro-bind", path, path});
    }
  }
  for (const char* path : {"/etc/ld.so.cache", "/etc/alternatives"})
    add({"--ro-bind-try", path, path});
  add({"--proc", "/proc", "--dev", "/dev", "--dir", "/tmp"});
}

absl::StatusOr<std::vector<std::string>> Arguments(const Options& options, const std::string& bwrap,
                                                   const fs::path& helpers,
                                                   InheritedFds& inherited) {
  // Every namespace by name: the -try forms and --unshare-all go on without.
  std::vector<std::string> args = {
      bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
      // uid 0 of this namespace is the daemon's own uid outside. Only the init is it: calls are
      // moved to a namespace of their own, as nobody.
      "--uid", "0", "--gid", "0", "--hostname", "agentd",
      // Dying with the parent is the second of two ways: the control socket's end is the first.
      "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv",
      // What making a call's namespaces takes.
      "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETFCAP"};
  if (access("/proc/self/ns/cgroup", F_OK) == 0) args.push_back("--unshare-cgroup");
  AddSystem(args);
  for (const EtcFile& file : kEtc) {
    ASSIGN_OR_RETURN(const int fd, inherited.AddText(file.text));
    args.insert(args.end(), {"--ro-bind-data", std::to_string(fd), file.name});
  }
  args.insert(args.end(), {"--bind", fs::absolute(options.workspace).string(), "/workspace"});
  for (const Mount& mount : options.mounts)
    args.insert(args.end(), {"--ro-bind", fs::absolute(mount.host).string(), mount.inside});
  if (!options.outputs.empty())
    args.insert(args.end(), {"--ro-bind", fs::absolute(options.outputs).string(), kOutputs});
  for (const char* name : kHelpers)
    args.insert(args.end(), {"--ro-bind", helpers / name, std::string("/agentd/") + name});
  args.insert(args.end(), {"--dir", kEmptyDirectory, "--remount-ro", "/dev", "--remount-ro", "/",
                           "--chdir", "/", "--", "/agentd/agentd-init"});
  return args;
}

// Runs on the spawn thread. Returns 0 or an errno.
int Spawn(const std::vector<std::string>& args, const InheritedFds& inherited, int complaints,
          pid_t* pid) {
  std::vector<char*> argv;
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  char* environment[] = {nullptr};

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, complaints, 2);
  int target = kControlFd;
  for (const UniqueFd& fd : inherited.fds())
    posix_spawn_file_actions_adddup2(&actions, fd.get(), target++);
  // Whatever else this process has open without close-on-exec stays here.
  posix_spawn_file_actions_addclosefrom_np(&actions, target);
  sigset_t all;
  sigset_t none;
  sigfillset(&all);
  sigemptyset(&none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  const int error = posix_spawn(pid, argv[0], &actions, &attributes, argv.data(), environment);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  return error;
}

}  // namespace

absl::StatusOr<std::string> FindBubblewrap() {
  const char* path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "";
  while (!rest.empty()) {
    const size_t end = rest.find(':');
    const std::string directory(rest.substr(0, end));
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    const std::string candidate = directory + "/bwrap";
    if (!directory.empty() && access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return FailedPrecondition(
      "sandbox: the wall 'bubblewrap' is missing: no bwrap in PATH; install it (Debian: apt-get "
      "install bubblewrap)");
}

absl::StatusOr<fs::path> FindHelpers(const fs::path& wanted) {
  std::vector<fs::path> places = {wanted};
  if (wanted.empty()) {
    std::error_code error;
    const fs::path self = fs::read_symlink("/proc/self/exe", error).parent_path();
    places = {self, self.parent_path() / "bin"};
  }
  const char* missing = nullptr;
  for (const fs::path& place : places) {
    missing = nullptr;
    for (const char* name : kHelpers)
      if (missing == nullptr && access((place / name).c_str(), X_OK) != 0) missing = name;
    if (missing == nullptr) return fs::absolute(place);
  }
  return FailedPrecondition(
      "sandbox: the helper {0} is not in {1}; build the target {0} or set the helper directory",
      missing, places.back().string());
}

absl::Status CheckMounts(const std::vector<Mount>& mounts) {
  std::error_code error;
  std::vector<std::string> taken(std::begin(kTaken), std::end(kTaken));
  for (const Mount& mount : mounts) {
    const std::string& inside = mount.inside;
    if (!fs::exists(mount.host, error))
      return InvalidArgument("sandbox: {}, to be mounted at {}, does not exist",
                             mount.host.string(), inside);
    if (!inside.starts_with('/') || inside.find('\0') != std::string::npos ||
        fs::path(inside).lexically_normal().string() != inside || inside.ends_with('/'))
      return InvalidArgument(
          "sandbox: '{}' is no place for a mount: give an absolute path without '.', '..', "
          "doubled or trailing slashes",
          inside);
    const auto other = std::find_if(taken.begin(), taken.end(), [&](const std::string& place) {
      return place == inside || place.starts_with(inside + "/") || inside.starts_with(place + "/");
    });
    if (other != taken.end())
      return InvalidArgument(
          "sandbox: a mount at {} would cover or lie in {}; choose another place, such as "
          "/opt/NAME",
          inside, *other);
    taken.push_back(inside);
  }
  return absl::OkStatus();
}

absl::StatusOr<Spawned> SpawnInit(const Options& options, const std::string& bwrap,
                                  const fs::path& helpers, int lock_fd) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0)
    return ErrnoError(errno, "socketpair");
  Spawned spawned;
  spawned.control.Reset(sockets[0]);
  UniqueFd control_inside(sockets[1]);
  int calls[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, calls) != 0)
    return ErrnoError(errno, "socketpair");
  spawned.calls.Reset(calls[0]);
  const UniqueFd calls_inside(calls[1]);
  const int on = 1;
  // The kernel then tells with the Hello which process sent it.
  if (setsockopt(sockets[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0)
    return ErrnoError(errno, "setsockopt SO_PASSCRED");
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoError(errno, "pipe2");
  spawned.complaints.Reset(pipe_fds[0]);
  // High, so that the child's redirections of 0 to 2 cannot hit it.
  UniqueFd complaints_inside(fcntl(pipe_fds[1], F_DUPFD_CLOEXEC, 64));
  close(pipe_fds[1]);
  if (!complaints_inside.valid()) return ErrnoError(errno, "fcntl F_DUPFD_CLOEXEC");

  InheritedFds inherited;  // in the order of kControlFd, kLockFd, kCallsFd
  RETURN_IF_ERROR(inherited.Add(control_inside.get()));
  RETURN_IF_ERROR(inherited.Add(lock_fd));
  RETURN_IF_ERROR(inherited.Add(calls_inside.get()));
  ASSIGN_OR_RETURN(const std::vector<std::string> args,
                   Arguments(options, bwrap, helpers, inherited));
  const int error = SpawnThread::Get().Call(
      [&] { return Spawn(args, inherited, complaints_inside.get(), &spawned.bwrap); });
  if (error != 0) return ErrnoError(error, fmt::format("run {}", bwrap));
  return spawned;
}

}  // namespace agentd::sandbox
