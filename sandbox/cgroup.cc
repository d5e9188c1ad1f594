#include "sandbox/cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::sandbox {
namespace {

namespace fs = std::filesystem;

constexpr char kDaemonCgroup[] = "daemon";
constexpr char kSandboxPrefix[] = "sandbox-";
constexpr char kControllers[] = "+memory +pids +cpu";
constexpr char kMend[] =
    "start the daemon in a cgroup of its own that it may divide: systemd-run --user --scope -p "
    "Delegate=yes agentd ..., or Delegate=yes in its unit";
constexpr int64_t kCpuPeriodUs = 100'000;
constexpr int kRemoveTries = 200;

std::string WholeFile(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// One write(2): the kernel takes each as a whole.
absl::Status WriteControl(const fs::path& path, std::string_view text) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid() || write(fd.get(), text.data(), text.size()) < 0)
    return ErrnoError(errno, fmt::format("write {} to {}", text, path.string()));
  return absl::OkStatus();
}

// Where cgroup v2 is mounted, or "".
std::string MountPoint(std::string_view mountinfo) {
  std::istringstream lines{std::string(mountinfo)};
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" - cgroup2 ") == std::string::npos) continue;
    std::istringstream fields(line);
    std::string field;
    for (int i = 0; i < 5; ++i) fields >> field;
    return field;
  }
  return "";
}

// rmdir(2) waits for nothing: a process may be dead and not yet gone from the cgroup.
void RemoveCgroup(const fs::path& directory) {
  for (int i = 0; i < kRemoveTries && rmdir(directory.c_str()) != 0 && errno == EBUSY; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

void KillAndRemove(const fs::path& directory) {
  // Linux 5.14 and newer; before, what a sandbox left is ended by the other ways alone.
  (void)WriteControl(directory / "cgroup.kill", "1");
  RemoveCgroup(directory);
}

absl::StatusOr<fs::path> TakeOwnCgroup() {
  ASSIGN_OR_RETURN(const fs::path own, FindOwnCgroup(WholeFile("/proc/self/mountinfo"),
                                                     WholeFile("/proc/self/cgroup")));
  const fs::path leaf = own / kDaemonCgroup;
  if (mkdir(leaf.c_str(), 0755) != 0 && errno != EEXIST)
    return FailedPrecondition("{}; {}", Text(ErrnoError(errno, "mkdir " + leaf.string())), kMend);
  absl::Status taken = WriteControl(leaf / "cgroup.procs", "0");
  if (taken.ok()) taken = WriteControl(own / "cgroup.subtree_control", kControllers);
  if (!taken.ok()) {
    const std::string others = WholeFile(own / "cgroup.procs");
    (void)WriteControl(own / "cgroup.procs", "0");
    RemoveCgroup(leaf);
    return FailedPrecondition("the cgroup {} cannot be divided ({}{}); {}", own.string(),
                              Text(taken), others.empty() ? "" : "; others are in it", kMend);
  }
  std::error_code error;
  std::vector<fs::path> left;
  for (const auto& entry : fs::directory_iterator(own, error))
    if (entry.path().filename().string().starts_with(kSandboxPrefix)) left.push_back(entry.path());
  for (const fs::path& directory : left) KillAndRemove(directory);
  return own;
}

}  // namespace

absl::StatusOr<fs::path> DelegatedCgroup() {
  static const auto* own = new absl::StatusOr<fs::path>(TakeOwnCgroup());
  return *own;
}

absl::StatusOr<fs::path> FindOwnCgroup(std::string_view mountinfo, std::string_view own) {
  const std::string mounted = MountPoint(mountinfo);
  const size_t at = own.starts_with("0::") ? 0 : own.find("\n0::");
  if (mounted.empty() || at == std::string_view::npos)
    return FailedPrecondition(
        "no cgroup v2 is mounted here: boot with systemd.unified_cgroup_hierarchy=1");
  std::string_view path = own.substr(own.find("0::", at) + 3);
  path = path.substr(0, path.find('\n'));
  const fs::path directory = mounted + (path == "/" ? "" : std::string(path));
  std::istringstream words(WholeFile(directory / "cgroup.controllers"));
  const std::set<std::string> offered{std::istream_iterator<std::string>(words), {}};
  for (const char* wanted : {"memory", "pids", "cpu"}) {
    if (offered.contains(wanted)) continue;
    return FailedPrecondition(
        "the cgroup {} does not have the controller {}: cgroup v1 may hold it "
        "(systemd.unified_cgroup_hierarchy=1), or it is not delegated; {}",
        directory.string(), wanted, kMend);
  }
  if (access((directory / "cgroup.subtree_control").c_str(), W_OK) != 0)
    return FailedPrecondition("the cgroup {} is not this user's to divide; {}", directory.string(),
                              kMend);
  return directory;
}

absl::StatusOr<std::unique_ptr<Cgroup>> Cgroup::Create(const fs::path& parent,
                                                       const TotalLimits& limits) {
  static std::atomic<int64_t> next{0};
  const fs::path directory = parent / fmt::format("{}{}", kSandboxPrefix, next++);
  if (mkdir(directory.c_str(), 0755) != 0) return ErrnoError(errno, "mkdir " + directory.string());
  std::unique_ptr<Cgroup> cgroup(new Cgroup(directory));
  if (limits.memory_bytes > 0) {
    RETURN_IF_ERROR(WriteControl(directory / "memory.max", std::to_string(limits.memory_bytes)));
    // What went to the swap space would be taken from everybody else after all.
    if (access((directory / "memory.swap.max").c_str(), F_OK) == 0)
      RETURN_IF_ERROR(WriteControl(directory / "memory.swap.max", "0"));
  }
  if (limits.max_processes > 0)
    RETURN_IF_ERROR(WriteControl(directory / "pids.max", std::to_string(limits.max_processes)));
  if (limits.cpus > 0)
    RETURN_IF_ERROR(WriteControl(
        directory / "cpu.max",
        fmt::format("{} {}", static_cast<int64_t>(limits.cpus * kCpuPeriodUs), kCpuPeriodUs)));
  return cgroup;
}

Cgroup::~Cgroup() { KillAndRemove(directory_); }

absl::Status Cgroup::Add(pid_t pid) {
  RETURN_IF_ERROR(WriteControl(directory_ / "cgroup.procs", std::to_string(pid)));
  // What it forks from here on is born inside; what it forked before is among its children now.
  std::istringstream children(WholeFile(fmt::format("/proc/{0}/task/{0}/children", pid)));
  for (pid_t child = 0; children >> child;) {
    const absl::Status moved = WriteControl(directory_ / "cgroup.procs", std::to_string(child));
    if (!moved.ok() && !absl::IsNotFound(moved) &&
        access(fmt::format("/proc/{}", child).c_str(), F_OK) == 0)
      return moved;
  }
  return absl::OkStatus();
}

int64_t Cgroup::out_of_memory_kills() const {
  std::istringstream events(WholeFile(directory_ / "memory.events"));
  std::string name;
  for (int64_t count = 0; events >> name >> count;)
    if (name == "oom_kill") return count;
  return 0;
}

}  // namespace agentd::sandbox
