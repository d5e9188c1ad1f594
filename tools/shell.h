// A shell that lives on between the calls of one session: its directory, variables, functions and
// background jobs are there for the next command.
#ifndef AGENTD_TOOLS_SHELL_H_
#define AGENTD_TOOLS_SHELL_H_

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandbox/egress_proxy.h"
#include "sandbox/sandbox.h"

namespace agentd::tools {

struct Config;
class Registry;
class WayOut;

// Of one session; ends before its sandbox. Any thread; one command at a time.
class Shell {
 public:
  struct Command {
    std::string text;
    sandbox::Limits limits;  // of the shell and its jobs, if this command starts it; the wall time
                             // and the output kept are the command's own
    std::function<void(std::string_view)> on_output;  // may be empty
    // Completes the request that starts the shell; may be empty. The way out stays as long as the
    // shell.
    std::function<absl::Status(sandbox::CallRequest&, WayOut&)> on_start;
  };
  struct Result {
    sandbox::CallResult call;
    std::vector<sandbox::EgressDecision> network;  // what it and its jobs asked for since the last
    bool fresh = false;                            // no shell of an earlier command was there
    bool ended = false;  // the shell, with all its jobs: by the command, its time-out or the person
  };

  Shell();
  ~Shell();
  Shell(const Shell&) = delete;
  Shell& operator=(const Shell&) = delete;

  // Starts the shell if there is none. Errors are the sandbox's.
  absl::StatusOr<Result> Run(sandbox::Sandbox& sandbox, const Command& command,
                             const sandbox::CancelFlag& cancel);
  bool alive();
  // Ends the shell and its jobs.
  void Stop();

 private:
  void End();  // mutex_ is held

  std::mutex mutex_;
  std::unique_ptr<WayOut> way_out_;            // guarded by mutex_
  std::unique_ptr<sandbox::Process> process_;  // guarded by mutex_; null: none
};

// The tool `shell`, if the configuration has it.
absl::Status AddShellTool(Registry& registry, const Config& config);

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_SHELL_H_
