// What is kept of a server's authorization between two lives of the daemon. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_OAUTH_STORE_H_
#define AGENTD_TOOLS_MCP_OAUTH_STORE_H_

#include <cstdint>
#include <filesystem>
#include <string>

#include "absl/status/statusor.h"

namespace agentd::tools::mcp {

// Everything in it belongs together: tokens and a registered client are of this issuer, for this
// resource, and are sent nowhere else.
struct OAuthRecord {
  std::string url;     // the MCP server's, as configured
  std::string issuer;  // "": nothing is known yet
  std::string resource;
  std::string token_endpoint;

  std::string client_id;
  std::string client_secret;      // of a client that registered itself
  std::string token_auth_method;  // at the token endpoint
  std::string redirect_uri;      // that a client registered itself with; "" for one of another kind
  int64_t secret_expires_s = 0;  // since 1970; 0 never

  std::string scope;  // asked for
  std::string access_token;
  int64_t expires_s = 0;  // since 1970; 0: not known
  std::string refresh_token;
};

// One file; one thread at a time.
class OAuthStore {
 public:
  // In `directory`, which exists; "": nothing is kept.
  OAuthStore(const std::filesystem::path& directory, const std::string& server);

  // An empty record if there is no file. DataLoss names one that cannot be understood.
  absl::StatusOr<OAuthRecord> Load() const;
  // Readable for this user alone; a crash leaves the old record or the new one.
  absl::Status Save(const OAuthRecord& record) const;

 private:
  const std::filesystem::path file_;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_OAUTH_STORE_H_
