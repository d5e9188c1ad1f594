// Isolation of process trees: one init per active session behind bubblewrap's namespaces, calls
// forked inside it.
//
// A call sees a read-only system, one writable place (the workspace, mounted at /workspace), a
// private /tmp, /dev and /proc, no network, no capabilities, no way to gain privileges, and a
// seccomp filter. It fails closed: when a required wall cannot be put up, Start or Run returns
// FailedPrecondition that names the wall and how to mend it, and nothing runs.
#ifndef AGENTD_SANDBOX_SANDBOX_H_
#define AGENTD_SANDBOX_SANDBOX_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::sandbox {

struct Limits {
  int64_t wall_time_ms = 60'000;
  int64_t cpu_time_s = 600;
  int64_t memory_bytes = int64_t{4} << 30;  // address space of each process
  int64_t max_processes = 256;
  int64_t max_open_files = 1024;
  int64_t max_file_bytes = int64_t{1} << 30;    // of one file
  int64_t max_output_bytes = int64_t{1} << 20;  // kept; the rest is drained and counted
};

struct CallRequest {
  std::vector<std::string> argv;  // absolute path first
  std::string stdin_data;
  std::vector<std::pair<std::string, std::string>> env;  // added to a clean environment
  std::string cwd = "/workspace";
  Limits limits;
  // Called with each chunk of output (standard output and error, one pipe, in the order written)
  // while the call runs.
  std::function<void(std::string_view)> on_output;
};

enum class CallEnd { kExited, kSignaled, kTimedOut, kCancelled, kSandboxDied };

struct CallResult {
  CallEnd end = CallEnd::kExited;
  int exit_code = 0;  // kExited
  int signal = 0;     // kSignaled
  std::string
      output;  // at most max_output_bytes: the first half and the last half when there was more
  int64_t output_bytes = 0;  // all that was written
  int64_t dropped_at = -1;   // offset in `output` where bytes were left out, or -1
  int64_t wall_time_us = 0;
};

// Set from any thread to end a running call.
class CancelFlag {
 public:
  void Cancel() { cancelled_.store(true, std::memory_order_release); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> cancelled_{false};
};

struct Options {
  std::filesystem::path workspace;  // host directory, exists
  // Host directory for the lock file that the init holds for as long as any process of the tree
  // lives; outside the workspace.
  std::filesystem::path lock_file;
  // Directory that holds agentd-init and agentd-tool (default: beside the running binary); mounted
  // read-only at /agentd.
  std::filesystem::path helper_dir;
};

struct Wall {
  std::string name;  // "user namespace", "seccomp", ...
  bool required = false;
  bool available = false;
  std::string detail;  // what was found, and how to mend it when missing
};

// One session's sandbox. Run may be called from several threads at once; the destructor kills the
// whole tree.
class Sandbox {
 public:
  static absl::StatusOr<std::unique_ptr<Sandbox>> Start(const Options& options);
  virtual ~Sandbox() = default;

  // Runs one call to its end; every process it started is dead on return. Errors are the sandbox's
  // own (nothing ran, or the init died); what the program did is in the result.
  virtual absl::StatusOr<CallResult> Run(const CallRequest& request, const CancelFlag& cancel) = 0;
};

// What this machine can put up, tried for real. Takes tens of milliseconds.
std::vector<Wall> ProbeWalls(const std::filesystem::path& helper_dir);

// Waits until no process of the sandbox that held `lock_file` lives: the proof that an old tree is
// dead. DeadlineExceeded names the pid that still holds it.
absl::Status WaitUntilDead(const std::filesystem::path& lock_file, int64_t timeout_ms);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_SANDBOX_H_
