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

// How tokens are had for a server over HTTP (OAuth 2.1).
struct AuthConfig {
  enum class Grant {
    kAuthorizationCode,  // a person logs in, once
    kClientCredentials,  // agentd's own, with client_secret or private_key_file
    kJwtBearer,          // for an assertion that something else keeps up to date in a file
    kTokenExchange,      // as kJwtBearer, for what an identity provider gives for that assertion
  };
  Grant grant = Grant::kAuthorizationCode;
  // As the authorization server knows agentd. An https URL without a secret is that of a client
  // metadata document. "": agentd registers itself.
  std::string client_id;
  std::string client_secret;
  std::string private_key_file;  // PEM, of a P-256 or RSA key: the client signs instead
  std::string assertion_file;    // a JWT; for kTokenExchange the provider's ID token of a person
  // The identity provider's, as whose client agentd exchanges the ID token.
  std::string idp_token_endpoint;
  std::string idp_client_id;
  std::vector<std::string> scopes;  // where the server does not say which it wants
  std::string issuer;  // the one that tokens may come from; "": the first that is named
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
  // What differs from AuthConfig's defaults, which are used when a server wants a token and
  // `headers` holds no Authorization.
  std::optional<AuthConfig> auth;

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

// `config` with each ${NAME} in the values of `env`, `headers` and the client's id and secret
// replaced by that variable.
// InvalidArgument names what cannot be: a bad name, neither or both of command and url, a variable
// that is not set, secrets over plain http.
absl::StatusOr<ServerConfig> Resolve(ServerConfig config, const Environment& environment);

// Its headers hold credentials of their own.
bool HasAuthorization(const ServerConfig& config);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_CONFIG_H_
