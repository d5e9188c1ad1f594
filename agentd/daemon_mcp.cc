// The daemon's MCP servers: their start, logins, and tools that change.
#include <spdlog/spdlog.h>

#include <system_error>
#include <utility>

#include "agentd/daemon.h"
#include "agentd/tool_host.h"
#include "base/status.h"
#include "tools/mcp/launcher.h"
#include "tools/mcp/servers.h"
#include "tools/shell.h"

namespace agentd::daemon {
namespace {

v1::McpServer DescribeServer(const tools::mcp::ServerState& server) {
  const std::shared_ptr<const tools::mcp::ServerView> view = server.view();
  v1::McpServer out;
  out.set_name(server.config.name);
  out.set_revision(view->info.revision);
  out.set_tools(static_cast<int32_t>(view->tools.size()));
  out.set_needs_login(server.oauth != nullptr && server.oauth->needs_login());
  for (const std::string& problem : view->problems) out.add_problems(problem);
  return out;
}

}  // namespace

// Asks the MCP servers for their tools: programs in a sandbox on an empty directory, which is
// closed then. One that does not work is told of, and is no reason not to start.
absl::Status Daemon::StartServers() {
  if (options_.tools.mcp_servers.empty()) return absl::OkStatus();
  const std::filesystem::path scratch = options_.data / "workspaces" / "mcp-start";
  std::error_code error;
  std::filesystem::create_directories(scratch, error);
  if (error) return ErrnoError(error.value(), "create directory " + scratch.string());
  sandbox::Options options;
  options.workspace = scratch;
  options.lock_file = options_.data / "locks" / "mcp-start.lock";
  options.helper_dir = options_.helper_dir;
  options.mounts = options_.tools.mounts;
  ToolHost host;
  absl::Status started = host.Start(options, nullptr);
  const tools::mcp::Launcher launcher = started.ok() ? tools::mcp::LaunchIn(*host.sandbox())
                                                     : [started](const tools::mcp::ServerConfig&)
      -> absl::StatusOr<std::unique_ptr<tools::mcp::StdioPeer>> { return started; };
  tools::mcp::ServersOptions how{.scratch = launcher};
  how.allow_private = options_.tools.allow_private;
  how.tokens = options_.data / "mcp-tokens";
  ASSIGN_OR_RETURN(mcp_servers_, tools::mcp::Servers::Start(options_.tools.mcp_servers, how));
  for (const auto& server : mcp_servers_->all()) {
    for (const std::string& problem : server->view()->problems)
      spdlog::warn("MCP server {}: {}", server->config.name, problem);
  }
  host.Stop();
  std::filesystem::remove_all(scratch, error);
  return absl::OkStatus();
}

// A set of all tools as the servers have them now.
absl::StatusOr<ToolSet> Daemon::MakeToolSet() const {
  ToolSet set;
  RETURN_IF_ERROR(tools::AddBuiltinTools(set.registry, options_.tools));
  RETURN_IF_ERROR(tools::AddShellTool(set.registry, options_.tools));
  if (mcp_servers_ != nullptr)
    RETURN_IF_ERROR(mcp_servers_->AddTools(set.registry, options_.tools));
  for (const tools::Tool* tool : set.registry.tools()) {
    set.names.push_back(tool->spec().name);
    if (tool->spec().by_default) set.by_default.push_back(tool->spec().name);
  }
  return set;
}

void Daemon::ToolsChanged() {
  absl::StatusOr<ToolSet> set = MakeToolSet();
  if (set.ok()) return tool_sets_.Replace(*std::move(set));
  spdlog::warn("the tools stay as they were: {}", Text(set.status()));
}

void Daemon::DescribeServers(v1::ServerInfo& info) const {
  if (mcp_servers_ == nullptr) return;
  for (const auto& server : mcp_servers_->all()) *info.add_mcp_servers() = DescribeServer(*server);
}

absl::StatusOr<const tools::mcp::ServerState*> Daemon::ServerWithLogin(
    const std::string& name) const {
  if (mcp_servers_ == nullptr) return NotFound("no MCP server is configured");
  ASSIGN_OR_RETURN(const tools::mcp::ServerState* server, mcp_servers_->Find(name));
  if (server->oauth == nullptr)
    return FailedPrecondition(
        "the MCP server {} takes no login: it is a program, or its configuration holds its "
        "credentials",
        name);
  return server;
}

std::function<bool()> Daemon::WhenStopping() {
  return [this] {
    std::lock_guard lock(mutex_);
    return stopping_;
  };
}

absl::StatusOr<v1::McpLogin> Daemon::BeginMcpLogin(const v1::BeginMcpLoginRequest& request) {
  ASSIGN_OR_RETURN(const tools::mcp::ServerState* server, ServerWithLogin(request.server()));
  v1::McpLogin login;
  ASSIGN_OR_RETURN(*login.mutable_url(),
                   server->oauth->BeginLogin(request.redirect_uri(), WhenStopping()));
  return login;
}

absl::StatusOr<v1::McpServer> Daemon::FinishMcpLogin(const v1::FinishMcpLoginRequest& request) {
  ASSIGN_OR_RETURN(const tools::mcp::ServerState* server, ServerWithLogin(request.server()));
  RETURN_IF_ERROR(server->oauth->FinishLogin(request.redirected(), WhenStopping()));
  mcp_servers_->AskAgain(*server);
  ToolsChanged();
  return DescribeServer(*server);
}

absl::StatusOr<v1::McpServer> Daemon::LogOutOfMcp(const v1::LogOutOfMcpRequest& request) {
  ASSIGN_OR_RETURN(const tools::mcp::ServerState* server, ServerWithLogin(request.server()));
  RETURN_IF_ERROR(server->oauth->Forget());
  return DescribeServer(*server);
}

}  // namespace agentd::daemon
