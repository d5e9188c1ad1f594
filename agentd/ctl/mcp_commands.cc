// agentctl mcp: logins at MCP servers.
#include <fmt/format.h>

#include <cstdio>

#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/login_listener.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

constexpr int kLoginSeconds = 600;  // as long as the daemon keeps a login open

// At once: somebody waits for it.
void SayAtOnce(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

absl::StatusOr<api::McpServer> LogIn(const GlobalOptions& global, const McpOptions& options) {
  ASSIGN_OR_RETURN(const auto client, Client::Connect(global.socket, global.wait_seconds));
  ASSIGN_OR_RETURN(LoginListener listener, LoginListener::Open(options.port));
  api::BeginMcpLoginRequest begin;
  begin.set_server(options.server);
  begin.set_redirect_uri(listener.redirect_uri());
  // The daemon bounds each thing that it asks for.
  ASSIGN_OR_RETURN(const api::McpLogin login, client->Call(&api::Agentd::Stub::BeginMcpLogin, begin,
                                                           Client::Patience::kEndless));
  SayAtOnce(
      fmt::format("Open this in a browser:\n\n  {}\n\nWaiting for its answer at {}. If the "
                  "browser is on another machine, paste the address here that it ends at.\n",
                  Printable(login.url()), listener.redirect_uri()));
  api::FinishMcpLoginRequest finish;
  finish.set_server(options.server);
  ASSIGN_OR_RETURN(*finish.mutable_redirected(),
                   listener.Wait(QueryValue(login.url(), "state"), kLoginSeconds));
  return client->Call(&api::Agentd::Stub::FinishMcpLogin, finish, Client::Patience::kEndless);
}

absl::StatusOr<api::McpServer> LogOut(const GlobalOptions& global, const McpOptions& options) {
  ASSIGN_OR_RETURN(const auto client, Client::Connect(global.socket, global.wait_seconds));
  api::LogOutOfMcpRequest request;
  request.set_server(options.server);
  return client->Call(&api::Agentd::Stub::LogOutOfMcp, request);
}

}  // namespace

std::string McpServerLine(const api::McpServer& server) {
  std::string line = server.needs_login()
                         ? "needs a login: agentctl mcp login " + Printable(server.name())
                         : fmt::format("{} tool{}", server.tools(), server.tools() == 1 ? "" : "s");
  for (const std::string& problem : server.problems())
    if (!server.needs_login()) line += "; " + OneLine(problem, 300);
  return line;
}

int McpLoginCommand(const GlobalOptions& global, const McpOptions& options) {
  const auto server = LogIn(global, options);
  if (!server.ok()) return Refuse(/*json=*/false, server.status(), ExitCodeOf(server.status()));
  SayAtOnce(fmt::format("{}: {}\n", Printable(server->name()), McpServerLine(*server)));
  return server->problems().empty() ? kAnswer : kError;
}

int McpLogoutCommand(const GlobalOptions& global, const McpOptions& options) {
  const auto server = LogOut(global, options);
  if (!server.ok()) return Refuse(/*json=*/false, server.status(), ExitCodeOf(server.status()));
  return kAnswer;
}

}  // namespace agentd::ctl
