// What of a session's tools lives on between calls and turns: its sandbox, and in it a shell and
// MCP servers.
#ifndef AGENTD_AGENTD_TOOL_HOST_H_
#define AGENTD_AGENTD_TOOL_HOST_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "sandbox/sandbox.h"
#include "tools/shell.h"

namespace agentd::tools::mcp {
class Servers;
class Session;
}  // namespace agentd::tools::mcp

namespace agentd::daemon {

// One thread. The sandbox holds the lock of the workspace, so the host is stopped before the
// workspace is put back or cleared.
class ToolHost {
 public:
  ToolHost();
  ~ToolHost();  // as Stop
  ToolHost(const ToolHost&) = delete;
  ToolHost& operator=(const ToolHost&) = delete;

  // Starts the sandbox if it does not run. Errors are the sandbox's. `servers` may be null.
  absl::Status Start(const sandbox::Options& options, const tools::mcp::Servers* servers);
  void Stop();

  bool running() const { return sandbox_ != nullptr; }
  // Something was started in it that outlives a call.
  bool in_use();
  sandbox::Sandbox* sandbox() { return sandbox_.get(); }
  tools::Shell* shell() { return shell_.get(); }
  tools::mcp::Session* mcp() { return mcp_.get(); }

 private:
  std::unique_ptr<sandbox::Sandbox> sandbox_;  // first: the others live in it
  std::unique_ptr<tools::Shell> shell_;
  std::unique_ptr<tools::mcp::Session> mcp_;  // null: there are no servers
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TOOL_HOST_H_
