// A session's instances of the MCP servers.
#ifndef AGENTD_TOOLS_MCP_SESSION_H_
#define AGENTD_TOOLS_MCP_SESSION_H_

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/mcp/servers.h"

namespace agentd::tools::mcp {

// A session's own instance of each server, started when it is first called. One that died is
// started again for the next call, with a growing pause, and not again for a while when that
// failed several times. Any thread.
class Session {
 public:
  // `launcher` starts them in the session's sandbox.
  Session(const Servers& servers, Launcher launcher);
  // As Stop.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // One call of a tool. Always an answer for the model, also when the server died in the middle of
  // it; a Status is the sandbox's.
  absl::StatusOr<ToolResult> Call(const ServerState& server, const RemoteTool& tool,
                                  std::string_view arguments, const ToolContext& context);

  // Asks those servers for their tools again that have said since the last time that they are
  // others now; whether there was one. Each has Timeouts::start_ms.
  bool TakeToolChanges();

  // Some instance was started and not stopped. It may have died meanwhile.
  bool any_running() const;

  // Ends all instances: those that run get an end of file and a moment, then are killed. Calls that
  // are running end with an error. The next call starts them anew.
  void Stop();

 private:
  struct Instance;

  absl::StatusOr<std::shared_ptr<Client>> ClientOf(const ServerState& server, Instance& instance,
                                                   const sandbox::CancelFlag* cancel);
  absl::Status Open(const ServerState& server, Instance& instance,
                    const sandbox::CancelFlag* cancel);

  const Servers& servers_;
  const Launcher launcher_;
  std::vector<std::pair<const ServerState*, std::unique_ptr<Instance>>> instances_;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_SESSION_H_
