// Where a server's tokens come from: what its refusal says (RFC 6750), its protected resource
// metadata (RFC 9728) and its authorization server's metadata (RFC 8414, OpenID Connect Discovery).
// All of it is written by others: checked before it is used. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_OAUTH_DISCOVERY_H_
#define AGENTD_TOOLS_MCP_OAUTH_DISCOVERY_H_

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/mcp/http_fetch.h"

namespace agentd::tools::mcp {

// What the Bearer challenge of a 401 or 403 says; "" for what it does not.
struct Challenge {
  std::string resource_metadata;  // a URL
  std::string scope;              // names with blanks between
  std::string error;              // "invalid_token", "insufficient_scope", ...
};
// `header`: the values of all WWW-Authenticate headers with ", " between them. Never fails: what is
// no challenge is left out.
Challenge ParseChallenge(std::string_view header);

bool HasName(const std::vector<std::string>& names, std::string_view name);
// Blank-separated names as a list without repetitions, in their order, and back.
std::vector<std::string> ScopesOf(std::string_view text);
std::string ScopeText(const std::vector<std::string>& scopes);
// `scopes` and those of `more` that are not among them.
std::vector<std::string> ScopeUnion(std::vector<std::string> scopes,
                                    const std::vector<std::string>& more);

// An authorization server, as its metadata says.
struct AuthorizationServer {
  std::string issuer;
  std::string authorization_endpoint;
  std::string token_endpoint;
  std::string registration_endpoint;  // "": clients cannot register themselves
  std::vector<std::string> scopes;    // that it knows; empty if it does not say
  std::vector<std::string> token_auth_methods;
  bool says_issuer = false;            // in its redirects (RFC 9207)
  bool takes_metadata_client = false;  // client ids that are URLs of a document
};

struct Discovered {
  std::string resource;  // what tokens are for (RFC 8707): as the server publishes it, else its URL
  std::vector<std::string> scopes;  // that the resource knows; empty if it does not say
  AuthorizationServer server;
};

// Asks `policy.server`'s origin and whom it names. `url` is the MCP server's. If `issuer` is not
// empty, that one must be among the authorization servers named. Without protected resource
// metadata the origin itself is the authorization server, as until revision 2025-03-26, and without
// metadata of that its endpoints are the ones of that revision. `grants_code`: an authorization
// endpoint and PKCE with S256 are needed.
// FailedPrecondition says which document is not as it must be: another issuer, another resource, an
// address that may not be used, no S256. Other codes are Fetch's.
absl::StatusOr<Discovered> Discover(const FetchPolicy& policy, const std::string& url,
                                    const Challenge& challenge, const std::string& issuer,
                                    bool grants_code, const std::function<bool()>& stop);

// A text of somebody else's as it may stand in a message: quoted, without control characters, cut.
std::string Shown(const std::string& text);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_OAUTH_DISCOVERY_H_
