#include "sandbox/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "base/status.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {
namespace {

struct Record {
  pid_t pid = 0;
  unsigned long long start_time = 0;  // clock ticks since boot: tells a reused pid apart
  std::string boot_id;
};

std::string BootId() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string id;
  in >> id;
  return id;
}

// State letter and start time of a process. False if there is none.
bool ReadStat(pid_t pid, char& state, unsigned long long& start_time) {
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  std::string line;
  if (!std::getline(in, line)) return false;
  // The name, in parentheses, may hold anything.
  const size_t end = line.rfind(')');
  if (end == std::string::npos) return false;
  std::istringstream fields(line.substr(end + 1));
  std::string field;
  fields >> state;
  for (int i = 4; i <= 21; ++i) fields >> field;
  return static_cast<bool>(fields >> start_time);
}

Record ReadRecord(int fd) {
  char text[256] = {};
  Record record;
  const ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
  if (n <= 0) return record;
  std::istringstream in{std::string(text, static_cast<size_t>(n))};
  if (!(in >> record.pid >> record.start_time >> record.boot_id)) return Record();
  return record;
}

bool InitLives(const Record& record) {
  if (record.pid <= 0 || record.boot_id != BootId()) return false;
  char state = 0;
  unsigned long long start_time = 0;
  if (!ReadStat(record.pid, state, start_time) || start_time != record.start_time) return false;
  return state != 'Z' && state != 'X';
}

}  // namespace

absl::StatusOr<UniqueFd> TakeLock(const std::filesystem::path& path) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("open lock file {}", path.string()));
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoError(errno, fmt::format("flock {}", path.string()));
    return FailedPrecondition(
        "the workspace's sandbox is still running: {} is locked by process {}; wait for it to end",
        path.string(), ReadRecord(fd.get()).pid);
  }
  const Record record = ReadRecord(fd.get());
  if (InitLives(record))
    return FailedPrecondition("the workspace's sandbox is still ending: process {} of {}",
                              record.pid, path.string());
  return fd;
}

absl::Status RecordInit(int lock_fd, pid_t init) {
  char state = 0;
  unsigned long long start_time = 0;
  if (!ReadStat(init, state, start_time))
    return absl::UnavailableError(fmt::format("the sandbox's init, process {}, is gone", init));
  const std::string text = fmt::format("{} {} {}\n", init, start_time, BootId());
  if (ftruncate(lock_fd, 0) != 0 ||
      pwrite(lock_fd, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    return ErrnoError(errno, "write lock file");
  return absl::OkStatus();
}

absl::Status WaitUntilDead(const std::filesystem::path& lock_file, int64_t timeout_ms) {
  UniqueFd fd(open(lock_file.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    if (errno == ENOENT) return absl::OkStatus();  // nothing was ever started with it
    return ErrnoError(errno, fmt::format("open lock file {}", lock_file.string()));
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    const bool free = flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
    if (!free && errno != EWOULDBLOCK)
      return ErrnoError(errno, fmt::format("flock {}", lock_file.string()));
    const Record record = ReadRecord(fd.get());
    if (free && !InitLives(record)) return absl::OkStatus();
    if (std::chrono::steady_clock::now() >= deadline)
      return absl::DeadlineExceededError(
          fmt::format("process {} still holds {}: a sandbox of this workspace is alive; end it "
                      "with kill -9 {}",
                      record.pid, lock_file.string(), record.pid));
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace agentd::sandbox
