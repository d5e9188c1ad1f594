// Programs of MCP servers in a sandbox.
#ifndef AGENTD_TOOLS_MCP_LAUNCHER_H_
#define AGENTD_TOOLS_MCP_LAUNCHER_H_

#include "sandbox/sandbox.h"
#include "tools/mcp/servers.h"

namespace agentd::tools::mcp {

// Starts servers behind the walls of `sandbox`, which lives longer than what it started is used.
Launcher LaunchIn(sandbox::Sandbox& sandbox);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_LAUNCHER_H_
