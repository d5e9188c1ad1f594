// How one MCP server is reached and what is believed of it.
#ifndef AGENTD_TOOLS_MCP_CONFIG_H_
#define AGENTD_TOOLS_MCP_CONFIG_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::tools::mcp {

struct Timeouts {
  int64_t start_ms = 30'000;   // until a server has told what it is
  int64_t probe_ms = 5'000;    // until it answers something easy: "server/discover" at its start,
                               // else it is taken for one of an older revision; "ping" after a call
                               // that had no answer, else it is started again
  int64_t call_ms = 60'000;    // without an answer or progress
  int64_t total_ms = 600'000;  // whatever the progress
};

struct ServerConfig {
  // Begins the names of its tools: NAME__TOOL. Letters, digits, '-' and single '_' inside.
  std::string name;

  // Either a program that runs in the sandbox and is spoken to over its standard input and output
  // (an absolute path first) ...
  std::vector<std::string> command;
  std::vector<std::pair<std::string, std::string>> env;
  std::string cwd = "/workspace";
  int64_t memory_bytes = int64_t{64} << 30;  // address space: what V8 reserves, not what it uses
  // ... or an address: https, or http on this machine or if no secret is sent.
  std::string url;
  std::vector<std::pair<std::string, std::string>> headers;

  Timeouts timeouts;
  // Whether what the server says of its tools (readOnlyHint, idempotentHint) is believed. If not,
  // a call without a result is `outcome unknown`, and none runs beside another.
  bool trusted = false;
  bool needs_approval = false;
  std::vector<std::string> tools;  // of these names alone; empty: all
  bool resources = true;           // offer its resources through two tools of ours
};

// The value of an environment variable of the daemon.
using Environment = std::function<std::optional<std::string>(const std::string&)>;
std::optional<std::string> ProcessEnvironment(const std::string& name);

// `config` with each ${NAME} in the values of `env` and `headers` replaced by that variable.
// InvalidArgument names what cannot be: a bad name, neither or both of command and url, a variable
// that is not set, secrets over plain http.
absl::StatusOr<ServerConfig> Resolve(ServerConfig config, const Environment& environment);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_CONFIG_H_
