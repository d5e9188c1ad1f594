// MCP servers as tools: what the daemon asks of them once. Each session then has its own instances
// of them (session.h).
//
//   daemon:   auto servers = Servers::Start(configs, {.scratch = launcher for a scratch sandbox});
//             servers->AddTools(registry);  // next to the built-in tools
//   session:  Session session(*servers, launcher for the session's sandbox);
//             context.mcp = &session;       // of each call
//             session.Stop();               // before its sandbox ends
#ifndef AGENTD_TOOLS_MCP_SERVERS_H_
#define AGENTD_TOOLS_MCP_SERVERS_H_

#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/config.h"
#include "tools/mcp/client.h"
#include "tools/mcp/config.h"
#include "tools/mcp/header_params.h"
#include "tools/mcp/oauth_client.h"
#include "tools/mcp/stdio_transport.h"
#include "tools/tool.h"

namespace agentd::tools::mcp {

// Starts a server's program. Any thread. An Unavailable Status means that the sandbox died: calls
// then return it; any other one is the model's to read.
using Launcher = std::function<absl::StatusOr<std::unique_ptr<StdioPeer>>(const ServerConfig&)>;

// A tool of a server.
struct RemoteTool {
  ToolSpec spec;     // named SERVER__TOOL
  std::string name;  // the server's own
  enum class Kind { kTool, kListResources, kReadResource };
  Kind kind = Kind::kTool;
  std::vector<HeaderParam> header_params;
};

// What a server said of itself when it was last asked.
struct ServerView {
  ServerInfo info;
  std::vector<RemoteTool> tools;
  // What a person should know: why there are no tools, which of them were left out and why.
  std::vector<std::string> problems;
};

// A configured server. Any thread.
class ServerState {
 public:
  explicit ServerState(ServerConfig server_config) : config(std::move(server_config)) {}

  const ServerConfig config;
  std::unique_ptr<OAuthClient> oauth;  // null: it is a program, or has credentials in its headers

  // Never null.
  std::shared_ptr<const ServerView> view() const;
  void Show(ServerView view) const;
  // Asks for the tools through `client` and shows them. If that fails, or two of them would have
  // one name, what was shown before stays, with one more problem.
  void ReadAgain(Client& client) const;

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const ServerView> view_ = std::make_shared<ServerView>();
};

// Opens connections to a server, which `launcher` starts if it is a program. `launch_status`, if
// not null, gets what the launcher said.
Client::Open OpenerFor(const ServerState& server, const Launcher& launcher,
                       absl::Status* launch_status = nullptr);

struct ServersOptions {
  Launcher scratch;  // for programs, while they are asked
  Environment environment = ProcessEnvironment;
  InputHandler input;
  Authorizer* authorizer = nullptr;        // see OAuthOptions, as the next two
  std::vector<std::string> allow_private;  // [network] allow_private
  std::filesystem::path tokens;            // a directory; "": tokens are not kept
};

// The servers of a daemon; shared by all sessions, which must end before. Which there are never
// changes; what each has may (ServerState).
class Servers {
 public:
  // Asks each server for its tools, all at once; each has Timeouts::start_ms. InvalidArgument for a
  // configuration that cannot be; a server that does not work is a problem of its own.
  static absl::StatusOr<std::unique_ptr<Servers>> Start(const std::vector<ServerConfig>& configs,
                                                        const ServersOptions& options);
  ~Servers();

  // AlreadyExists names both when two tools would have one name, and how to mend that. A tool whose
  // schema is of no use is left out, and its server has one more problem.
  // InvalidArgument names what `config` cannot set of one.
  absl::Status AddTools(Registry& registry, const Config& config) const;

  const std::vector<std::unique_ptr<ServerState>>& all() const { return servers_; }
  // NotFound names those that there are.
  absl::StatusOr<const ServerState*> Find(const std::string& name) const;
  // Asks a server over HTTP anew for all that it has, as after a login, and shows what came of it.
  void AskAgain(const ServerState& server) const;
  const InputHandler& input() const { return input_; }

 private:
  explicit Servers(InputHandler input);

  std::vector<std::unique_ptr<ServerState>> servers_;
  const InputHandler input_;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_SERVERS_H_
