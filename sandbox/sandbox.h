// Isolation of process trees: one init per active session behind bubblewrap's namespaces, calls
// forked inside it.
//
// A call sees a read-only system, one writable place (the workspace, mounted at /workspace), a
// private /tmp, /dev and /proc, no network (or one way out, which the caller holds), no
// capabilities, no way to gain privileges, a seccomp filter, and Landlock where the kernel has it.
// It fails closed: when a required wall cannot be put up, Start or Run returns
// FailedPrecondition that names the wall and how to mend it, and nothing runs.
#ifndef AGENTD_SANDBOX_SANDBOX_H_
#define AGENTD_SANDBOX_SANDBOX_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace agentd::sandbox {

struct Limits {
  int64_t wall_time_ms = 60'000;  // of a process also 0: none
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
  // Gives the call a network namespace of its own, in which there is a loopback and on it one
  // listening TCP socket, which the usual environment variables name as an HTTP proxy. What that
  // socket accepts is all the way out there is. Without, the call is in the session's network
  // namespace, which leads nowhere.
  bool network = false;
  // Needed with `network`: called once, by the thread in Run or StartProcess, before the program
  // runs. The socket is to be closed when the call has ended.
  std::function<void(UniqueFd)> on_proxy_listener;
};

enum class CallEnd { kExited, kSignaled, kTimedOut, kCancelled, kWorkspaceFull, kSandboxDied };

struct CallResult {
  CallEnd end = CallEnd::kExited;
  int exit_code = 0;  // kExited
  int signal = 0;     // kSignaled
  std::string
      output;  // at most max_output_bytes: the first half and the last half when there was more
  int64_t output_bytes = 0;  // all that was written
  int64_t dropped_at = -1;   // offset in `output` where bytes were left out, or -1
  int64_t wall_time_us = 0;
  // kWorkspaceFull: what it holds and may hold. Else: that the kernel ended a process of the
  // sandbox meanwhile because all together reached their memory limit; or empty.
  std::string detail;
};

// Set from any thread to end a running call.
class CancelFlag {
 public:
  void Cancel() { cancelled_.store(true, std::memory_order_release); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> cancelled_{false};
};

// A program that goes on while its caller talks to it (a server on its standard streams, a shell),
// behind the same walls as a call. It lives at the longest as long as the sandbox that started it,
// but the object may live longer. The descriptors are the object's, used by one thread at a time;
// Kill and Wait may be called from any.
class Process {
 public:
  // Kills what still runs of it, and returns when all of that is dead.
  virtual ~Process() = default;

  // Ends of pipes, which do not block: EAGAIN when there is nothing to read or no room to write.
  // Writing when the program has closed its input raises SIGPIPE, which the caller must ignore.
  virtual int input() const = 0;   // to its standard input; -1 after CloseInput
  virtual int output() const = 0;  // from its standard output
  virtual int error() const = 0;   // from its standard error
  virtual void CloseInput() = 0;   // the program reads the end of its input

  // Kills all its processes. Returns at once; Wait tells when they are dead.
  virtual void Kill() = 0;
  // How it ended, once all its processes are dead (what they wrote may still be read); empty if
  // some live after `timeout_ms`. `output` of the result is empty. After Kill: kCancelled, unless
  // the program had ended by itself.
  virtual std::optional<CallResult> Wait(int64_t timeout_ms) = 0;
};

// A file or directory of the host that calls see, read-only.
struct Mount {
  std::filesystem::path host;
  std::string inside;
};
// InvalidArgument, with the reason, for mounts that Start refuses: those that do not exist, that
// overlap, or that would cover or lie in what a sandbox has already (/usr, /etc, /workspace, ...).
absl::Status CheckMounts(const std::vector<Mount>& mounts);

// Of all processes of a sandbox together; 0: not limited. They hold where the daemon has a cgroup
// (version 2) that it may divide; elsewhere the sandbox goes without and names the wall.
struct TotalLimits {
  int64_t memory_bytes = 0;  // with the files in /tmp and /dev/shm; page cache gives way first
  int64_t max_processes = 0;
  double cpus = 0;  // processor time a second, in processors
};

struct Options {
  std::filesystem::path workspace;  // host directory, exists
  // Host directory for the lock file that the init holds for as long as any process of the tree
  // lives; outside the workspace.
  std::filesystem::path lock_file;
  // Directory that holds agentd-init and agentd-tool (default: beside the running binary); mounted
  // read-only at /agentd.
  std::filesystem::path helper_dir;
  std::vector<Mount> mounts;  // a socket in one can be connected to
  // Host directory seen read-only at /outputs: long outputs of earlier calls. Empty: none.
  std::filesystem::path outputs;
  // What the workspace may hold, in bytes on disk and in files and directories; 0: not limited. A
  // call or process that makes it larger is ended (kWorkspaceFull). A soft wall: the size is looked
  // at while calls run, so that more may be written before one is ended or ends by itself
  // (WorkspaceFull is for whoever looks then). When a workspace is too large already, only calls
  // that enlarge it further are.
  int64_t max_workspace_bytes = 0;
  int64_t max_workspace_files = 0;
  TotalLimits total;
};

// What a workspace holds, or may hold.
struct TreeSize {
  int64_t bytes = 0;  // allocated on disk; of a file with several names in the tree once
  int64_t files = 0;  // everything that has a name, directories too
};
// That a workspace of `size`, which was of `before`, holds more than it may, in words; "" if it
// holds no more than `max` (where that is not 0) or than before.
std::string WorkspaceFull(const TreeSize& size, const TreeSize& before, const TreeSize& max);

struct Wall {
  std::string name;  // "user namespace", "seccomp", ...
  bool required = false;
  bool available = false;
  std::string detail;  // what was found, and how to mend it when missing
};

// One session's sandbox. Run and StartProcess may be called from several threads at once; the
// destructor kills the whole tree.
class Sandbox {
 public:
  static absl::StatusOr<std::unique_ptr<Sandbox>> Start(const Options& options);
  virtual ~Sandbox() = default;

  // Runs one call to its end; every process it started is dead on return. Errors are the sandbox's
  // own (nothing ran, or the init died); what the program did is in the result.
  virtual absl::StatusOr<CallResult> Run(const CallRequest& request, const CancelFlag& cancel) = 0;

  // Returns when the program runs (or has ended already); the errors are Run's. `stdin_data`,
  // `on_output` and `limits.max_output_bytes` have no use here: the caller reads and writes.
  virtual absl::StatusOr<std::unique_ptr<Process>> StartProcess(const CallRequest& request) = 0;

  // Names of the optional walls (as in ProbeWalls) that its calls go without.
  virtual const std::vector<std::string>& missing_walls() const = 0;
};

// What this machine can put up, tried for real. Takes tens of milliseconds. `scratch` is a
// directory of this alone, made for it and removed; what is there, as after a SIGKILL, goes first.
// One call at a time for one `scratch`.
std::vector<Wall> ProbeWalls(const std::filesystem::path& helper_dir,
                             const std::filesystem::path& scratch);

// Waits until no process of the sandbox that held `lock_file` lives: the proof that an old tree is
// dead. DeadlineExceeded names the pid that still holds it.
absl::Status WaitUntilDead(const std::filesystem::path& lock_file, int64_t timeout_ms);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_SANDBOX_H_
