#include "tools/mcp/launcher.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "base/status.h"

namespace agentd::tools::mcp {
namespace {

constexpr int64_t kEndMs = 200;  // for a server whose pipes have closed to be dead
constexpr int64_t kServerCpuSeconds = 24 * 3600;

class SandboxedPeer : public StdioPeer {
 public:
  explicit SandboxedPeer(std::unique_ptr<sandbox::Process> process)
      : process_(std::move(process)) {}
  int input() const override { return process_->input(); }
  int output() const override { return process_->output(); }
  int error() const override { return process_->error(); }
  void CloseInput() override { process_->CloseInput(); }
  void Kill() override { process_->Kill(); }
  std::string HowItEnded() override {
    const std::optional<sandbox::CallResult> end = process_->Wait(kEndMs);
    if (!end) return "";
    if (end->end == sandbox::CallEnd::kSignaled)
      return fmt::format("killed by signal {}", end->signal);
    if (end->end == sandbox::CallEnd::kExited) return fmt::format("exit code {}", end->exit_code);
    return "ended by the sandbox";
  }

 private:
  const std::unique_ptr<sandbox::Process> process_;
};

}  // namespace

Launcher LaunchIn(sandbox::Sandbox& sandbox) {
  return [&sandbox](const ServerConfig& config) -> absl::StatusOr<std::unique_ptr<StdioPeer>> {
    sandbox::CallRequest request;
    request.argv = config.command;
    request.env = config.env;
    request.cwd = config.cwd;
    request.limits.wall_time_ms = 0;  // it lives as long as its session's sandbox
    request.limits.cpu_time_s = kServerCpuSeconds;
    request.limits.memory_bytes = config.memory_bytes;
    ASSIGN_OR_RETURN(std::unique_ptr<sandbox::Process> process, sandbox.StartProcess(request));
    return std::make_unique<SandboxedPeer>(std::move(process));
  };
}

}  // namespace agentd::tools::mcp
