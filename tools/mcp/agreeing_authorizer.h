// A person who agrees to whatever an authorization server on this machine asks: for tests.
#ifndef AGENTD_TOOLS_MCP_AGREEING_AUTHORIZER_H_
#define AGENTD_TOOLS_MCP_AGREEING_AUTHORIZER_H_

#include <string>
#include <utility>

#include "base/status.h"
#include "tools/mcp/http_fetch.h"
#include "tools/mcp/oauth_client.h"

namespace agentd::tools::mcp {

class AgreeingAuthorizer : public Authorizer {
 public:
  std::string redirect_uri() const override { return "http://127.0.0.1:9/callback"; }
  // The server is asked, and sends the browser back at once.
  absl::StatusOr<std::string> Authorize(const std::string& url) override {
    ASSIGN_OR_RETURN(Url parsed, ParseUrl(url));
    const FetchPolicy policy{std::move(parsed), {}};
    ASSIGN_OR_RETURN(const FetchResponse page, Fetch(policy, {.url = url}, nullptr));
    if (page.location.empty()) return FailedPrecondition("no redirect, but HTTP {}", page.status);
    return page.location;
  }
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_AGREEING_AUTHORIZER_H_
