// OAuth 2.1 towards one MCP server over HTTP, as MCP's authorization specification has it: finds
// the authorization server, gets tokens, renews them, asks for more rights when the server wants
// them. Private to tools/mcp/; servers.h is what the daemon uses.
//
// A token goes to the server that it is for (the resource) and nowhere else, and a client's secret
// and refresh tokens to the token endpoint of the issuer that they are from. The first issuer that
// a server names is believed, the configuration not naming one, and kept: credentials of the
// configuration go to no other after that. No message holds a token, a code or a secret.
#ifndef AGENTD_TOOLS_MCP_OAUTH_CLIENT_H_
#define AGENTD_TOOLS_MCP_OAUTH_CLIENT_H_

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/mcp/config.h"
#include "tools/mcp/oauth_discovery.h"
#include "tools/mcp/oauth_store.h"

namespace agentd::tools::mcp {

// A person who can be asked at once. Called by the thread whose request was refused.
class Authorizer {
 public:
  virtual ~Authorizer() = default;
  // Where the browser is sent back to.
  virtual std::string redirect_uri() const = 0;
  // Shows `url` to the person: the address that the browser was sent back to, or why there is none.
  virtual absl::StatusOr<std::string> Authorize(const std::string& url) = 0;
};

struct OAuthOptions {
  std::string name;  // of the server
  std::string url;
  AuthConfig auth;
  std::vector<std::string> allow_private;  // see FetchPolicy
  std::filesystem::path directory;         // of the records; "": they are not kept
  Authorizer* authorizer = nullptr;        // null: nobody; a login is then wanted (BeginLogin)
};

// Any thread; network exchanges happen one at a time, in the thread that asks. `stop` ends one
// early with Cancelled; it may be empty.
class OAuthClient {
 public:
  using Stop = std::function<bool()>;

  // InvalidArgument for a URL that is none; DataLoss for a record that cannot be read.
  static absl::StatusOr<std::unique_ptr<OAuthClient>> Create(OAuthOptions options);
  ~OAuthClient();
  OAuthClient(const OAuthClient&) = delete;
  OAuthClient& operator=(const OAuthClient&) = delete;

  // The token to send, "" if there is none. One that runs out is renewed first, if that needs
  // nobody.
  absl::StatusOr<std::string> AccessToken(const Stop& stop);

  // The server refused a request that bore `used` ("" none) with HTTP `status`, 401 or 403. OK:
  // there is another token now, try again. Unauthenticated: a person must log in, and the message
  // says how; PermissionDenied: more rights are wanted than can be had; else why it failed.
  absl::Status Refused(long status, const Challenge& challenge, const std::string& used,
                       const Stop& stop);

  // A login in two steps. The first returns the address to open in a browser; it ends with a
  // redirect to `redirect_uri`, on this machine, whose address is what the second needs. The second
  // works once, and for kLoginTime after the first; a newer first step voids an older one.
  // FailedPrecondition: what the servers say is not as it must be, or nothing was begun;
  // InvalidArgument: the address is not the end of this login.
  absl::StatusOr<std::string> BeginLogin(const std::string& redirect_uri, const Stop& stop);
  absl::Status FinishLogin(const std::string& redirected, const Stop& stop);

  // Forgets tokens and a client that registered itself.
  absl::Status Forget();

  // Whether the server has refused what we had and only a person can change that.
  bool needs_login() const;

  static constexpr std::chrono::minutes kLoginTime{10};

 private:
  struct Login;
  class Busy;

  OAuthClient(OAuthOptions options, Url url, OAuthRecord record);

  absl::StatusOr<std::string> Begin(const std::string& redirect_uri, const Stop& stop);
  absl::Status Finish(const std::string& redirected, const Stop& stop);
  absl::StatusOr<Discovered> Find(const Stop& stop) const;
  std::vector<std::string> ScopesFor(const Discovered& found) const;
  absl::Status TakeClient(const Discovered& found, const std::string& redirect_uri,
                          const Stop& stop);
  absl::Status Register(const Discovered& found, const std::string& redirect_uri,
                        const std::vector<std::string>& scopes, const Stop& stop);
  absl::Status Renew(const Stop& stop);
  absl::Status GrantWithoutPerson(const Stop& stop);
  absl::StatusOr<std::string> Assertion(const Stop& stop) const;
  absl::Status AskForToken(FormFields fields, const Stop& stop);
  absl::Status AddClientTo(FormFields& fields, std::vector<std::string>& headers) const;
  absl::Status TakeToken(const std::string& body);
  absl::Status LoginWanted(const std::string& why);
  std::string Redacted(std::string text, const FormFields& fields) const;
  OAuthRecord Snapshot() const;
  void Put(OAuthRecord record);

  const OAuthOptions options_;
  const FetchPolicy policy_;
  const OAuthStore store_;

  // Of the thread that is busy alone.
  Challenge challenge_;                   // the last
  std::vector<std::string> more_scopes_;  // that the server wanted besides
  std::unique_ptr<Login> login_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_. Written by the busy thread alone, which may read them without.
  bool busy_ = false;
  OAuthRecord record_;
  bool needs_login_ = false;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_OAUTH_CLIENT_H_
