#include "tools/mcp/config.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "base/status.h"
#include "tools/mcp/url.h"

namespace agentd::tools::mcp {
namespace {

bool IsServerName(std::string_view name) {
  return !name.empty() && name.size() <= 32 && name.front() != '_' && name.back() != '_' &&
         name.find("__") == std::string_view::npos &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '-' || c == '_';
         });
}

// Replaces each ${NAME} in `value`; true if there was one.
absl::StatusOr<bool> Expand(const Environment& environment, const std::string& where,
                            std::string& value) {
  std::string out;
  bool found = false;
  size_t from = 0;
  for (size_t begin = value.find("${"); begin != std::string::npos;
       begin = value.find("${", from)) {
    const size_t end = value.find('}', begin);
    if (end == std::string::npos) return InvalidArgument("{}: \"${{\" without \"}}\"", where);
    const std::string name = value.substr(begin + 2, end - begin - 2);
    const std::optional<std::string> text = environment(name);
    if (!text)
      return InvalidArgument("{}: the environment variable {} is not set for agentd", where, name);
    out += value.substr(from, begin - from) + *text;
    from = end + 1;
    found = true;
  }
  value = out + value.substr(from);
  return found;
}

absl::Status CheckHeader(const std::string& name, const std::string& value) {
  static const std::vector<std::string> kOurs = {
      "content-type", "accept",   "mcp-session-id", "last-event-id",
      "mcp-method",   "mcp-name", "host",           "mcp-protocol-version"};
  const bool token = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_';
  });
  if (!token) return InvalidArgument("\"{}\" is not a header's name", name);
  if (std::find(kOurs.begin(), kOurs.end(), absl::AsciiStrToLower(name)) != kOurs.end())
    return InvalidArgument("the header {} is set by agentd itself", name);
  if (std::any_of(value.begin(), value.end(), [](char c) { return c == '\r' || c == '\n'; }))
    return InvalidArgument("the header {} holds a line end", name);
  return absl::OkStatus();
}

absl::Status ResolveAuth(AuthConfig& auth, const Environment& environment) {
  RETURN_IF_ERROR(Expand(environment, "auth client_id", auth.client_id).status());
  RETURN_IF_ERROR(Expand(environment, "auth client_secret", auth.client_secret).status());
  using Grant = AuthConfig::Grant;
  const bool credentials = !auth.client_secret.empty() || !auth.private_key_file.empty();
  if (!auth.client_secret.empty() && !auth.private_key_file.empty())
    return InvalidArgument("auth: give client_secret or private_key_file, not both");
  if (credentials && auth.client_id.empty())
    return InvalidArgument("auth: client_secret and private_key_file are of a client_id");
  if (auth.grant == Grant::kClientCredentials && !credentials)
    return InvalidArgument(
        "auth: the grant client_credentials needs client_id and client_secret or "
        "private_key_file");
  const bool exchange = auth.grant == Grant::kTokenExchange;
  const bool assertion = exchange || auth.grant == Grant::kJwtBearer;
  if (assertion == auth.assertion_file.empty())
    return InvalidArgument(
        "auth: assertion_file is for the grants jwt_bearer and token_exchange, which need it");
  if (assertion && auth.client_id.empty())
    return InvalidArgument("auth: the grants jwt_bearer and token_exchange need a client_id");
  if (exchange == auth.idp_token_endpoint.empty() || exchange == auth.idp_client_id.empty())
    return InvalidArgument(
        "auth: idp_token_endpoint and idp_client_id are for the grant token_exchange, which needs "
        "both");
  if (exchange) RETURN_IF_ERROR(ParseUrl(auth.idp_token_endpoint).status());
  for (const std::string* file : {&auth.private_key_file, &auth.assertion_file})
    if (!file->empty() && !file->starts_with('/'))
      return InvalidArgument("auth: \"{}\" must be an absolute path", *file);
  for (const std::string& scope : auth.scopes)
    if (scope.empty() || scope.find_first_of(" \"\\") != std::string::npos)
      return InvalidArgument("auth: \"{}\" is no name of a scope", scope);
  return auth.issuer.empty() ? absl::OkStatus() : ParseUrl(auth.issuer).status();
}

absl::Status ResolveHttp(ServerConfig& config, const Environment& environment) {
  ASSIGN_OR_RETURN(const Url url, ParseUrl(config.url));
  if (config.auth) {
    if (HasAuthorization(config))
      return InvalidArgument("an Authorization header and auth exclude each other");
    if (!url.encrypted() && !url.loopback())
      return InvalidArgument("tokens would be sent unencrypted: use https");
    RETURN_IF_ERROR(ResolveAuth(*config.auth, environment));
  }
  for (auto& [name, value] : config.headers) {
    ASSIGN_OR_RETURN(const bool secret, Expand(environment, "header " + name, value));
    RETURN_IF_ERROR(CheckHeader(name, value));
    if (secret && !url.encrypted() && !url.loopback())
      return InvalidArgument("the header {} would be sent unencrypted: use https", name);
  }
  return absl::OkStatus();
}

absl::Status ResolveStdio(ServerConfig& config, const Environment& environment) {
  if (!config.command[0].starts_with('/'))
    return InvalidArgument("the command needs an absolute path, not \"{}\"", config.command[0]);
  if (!config.headers.empty()) return InvalidArgument("headers are for servers with a url");
  if (config.auth) return InvalidArgument("auth is for servers with a url");
  for (auto& [name, value] : config.env)
    RETURN_IF_ERROR(Expand(environment, "env " + name, value).status());
  return absl::OkStatus();
}

}  // namespace

std::optional<std::string> ProcessEnvironment(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

bool HasAuthorization(const ServerConfig& config) {
  return std::any_of(config.headers.begin(), config.headers.end(), [](const auto& header) {
    return absl::AsciiStrToLower(header.first) == "authorization";
  });
}

absl::StatusOr<ServerConfig> Resolve(ServerConfig config, const Environment& environment) {
  if (!IsServerName(config.name))
    return InvalidArgument(
        "\"{}\" is no name for an MCP server: 1 to 32 letters, digits, '-' and single '_' inside",
        config.name);
  const std::string context = "MCP server " + config.name;
  if (config.command.empty() == config.url.empty())
    return InvalidArgument("{}: it needs either a command or a url", context);
  const Timeouts& t = config.timeouts;
  if (std::min({t.start_ms, t.probe_ms, t.call_ms, t.total_ms}) <= 0)
    return InvalidArgument("{}: a time-out must be above 0", context);
  const absl::Status status =
      config.url.empty() ? ResolveStdio(config, environment) : ResolveHttp(config, environment);
  if (!status.ok()) return Annotate(status, context);
  return config;
}

}  // namespace agentd::tools::mcp
