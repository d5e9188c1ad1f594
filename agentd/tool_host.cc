#include "agentd/tool_host.h"

#include <utility>

#include "base/status.h"
#include "tools/mcp/launcher.h"
#include "tools/mcp/session.h"

namespace agentd::daemon {

ToolHost::ToolHost() = default;
ToolHost::~ToolHost() { Stop(); }

absl::Status ToolHost::Start(const sandbox::Options& options, const tools::mcp::Servers* servers) {
  if (running()) return absl::OkStatus();
  ASSIGN_OR_RETURN(sandbox_, sandbox::Sandbox::Start(options));
  shell_ = std::make_unique<tools::Shell>();
  if (servers != nullptr)
    mcp_ = std::make_unique<tools::mcp::Session>(*servers, tools::mcp::LaunchIn(*sandbox_));
  return absl::OkStatus();
}

void ToolHost::Stop() {
  mcp_.reset();
  shell_.reset();
  sandbox_.reset();
}

bool ToolHost::in_use() {
  return (shell_ != nullptr && shell_->alive()) || (mcp_ != nullptr && mcp_->any_running());
}

}  // namespace agentd::daemon
