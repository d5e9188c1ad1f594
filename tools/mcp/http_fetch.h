// One bounded HTTP exchange with an address that a server named: metadata, registrations and tokens
// of OAuth. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_HTTP_FETCH_H_
#define AGENTD_TOOLS_MCP_HTTP_FETCH_H_

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/mcp/url.h"

namespace agentd::tools::mcp {

// Which addresses may be fetched from on behalf of one server: https anywhere public; plain http
// only on this machine, and this machine, as private networks, only for a server that is there
// itself or whose networks the configuration allows. So a server on the Internet can point nobody
// at what only this machine reaches. Where the environment names a proxy, that resolves and decides
// about https.
struct FetchPolicy {
  Url server;
  std::vector<std::string> allow_private;  // [network] allow_private
};

// PermissionDenied or InvalidArgument says why `url` may not be fetched whatever its name stands
// for.
absl::Status CheckFetchUrl(const FetchPolicy& policy, const std::string& url);

struct FetchRequest {
  std::string url;
  bool post = false;
  std::vector<std::string> headers;  // "Name: value"
  std::string body;                  // of a POST
};

struct FetchResponse {
  long status = 0;
  std::string content_type;  // in lower case, without parameters
  std::string location;      // of a redirect, which is never followed
  std::string body;
};

inline constexpr size_t kMaxFetchBytes = 256 << 10;
inline constexpr long kFetchMs = 15'000;

// Whatever the HTTP status. Unavailable: no connection, more than kMaxFetchBytes, longer than
// kFetchMs; Cancelled as soon as `stop` says so; PermissionDenied: an address that the policy
// refuses. No cookies, no redirects. Messages name the URL without its query.
absl::StatusOr<FetchResponse> Fetch(const FetchPolicy& policy, const FetchRequest& request,
                                    const std::function<bool()>& stop);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_HTTP_FETCH_H_
