#include "tools/mcp/oauth_client.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "base/sha256.h"
#include "base/status.h"
#include "tools/mcp/json_rpc.h"
#include "tools/mcp/jwt.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kOAuthLookMs = 20;
// Before a token runs out it is renewed.
constexpr int64_t kRenewEarlyS = 30;
constexpr size_t kMaxTokenBytes = 16 << 10;
constexpr size_t kMinSecretBytes = 6;  // what is shorter may stand in any message
constexpr char kOfflineAccess[] = "offline_access";
constexpr char kBasic[] = "client_secret_basic";
constexpr char kPost[] = "client_secret_post";
constexpr char kPrivateKey[] = "private_key_jwt";
constexpr char kNone[] = "none";

bool SameSecret(const std::string& a, const std::string& b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string FieldOf(const FormFields& fields, std::string_view name) {
  for (const auto& [key, value] : fields)
    if (key == name) return value;
  return "";
}

std::string S256(const std::string& verifier) {
  const Sha256Digest digest = Sha256Of(verifier);
  return absl::WebSafeBase64Escape(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

// What may stand in an Authorization header (RFC 6750: b64token) and in our store.
bool IsToken(const std::string& text) {
  return !text.empty() && text.size() <= kMaxTokenBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7F; });
}

absl::StatusOr<std::string> ReadSecretFile(const std::string& path, const char* what) {
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!in || text.empty()) return FailedPrecondition("{} {} cannot be read", what, path);
  return text;
}

// How the client of the configuration says at the token endpoint who it is.
std::string ConfiguredMethod(const AuthConfig& auth, const std::vector<std::string>& methods) {
  if (!auth.private_key_file.empty()) return kPrivateKey;
  if (auth.client_secret.empty()) return kNone;
  // Who says nothing takes Basic (RFC 8414).
  return methods.empty() || HasName(methods, kBasic) || !HasName(methods, kPost) ? kBasic : kPost;
}

bool IsMetadataClient(const AuthConfig& auth) {
  return auth.client_id.starts_with("https://") && auth.client_secret.empty() &&
         auth.private_key_file.empty();
}

}  // namespace

// A login that was begun.
struct OAuthClient::Login {
  std::string state;
  std::string verifier;
  std::string redirect_uri;
  std::string scope;
  Discovered found;
  OAuthRecord record;  // with the client that it is for
  Clock::time_point end = Clock::now() + kLoginTime;
};

// Exchanges happen one at a time: of two threads whose token has run out one renews it, and the
// other one then has it.
class OAuthClient::Busy {
 public:
  Busy(OAuthClient& client, const Stop& stop) : client_(client) {
    std::unique_lock lock(client_.mutex_);
    while (client_.busy_ && !(stop && stop()))
      client_.changed_.wait_for(lock, std::chrono::milliseconds(kOAuthLookMs));
    if (client_.busy_) return;
    client_.busy_ = mine_ = true;
  }
  ~Busy() {
    if (!mine_) return;
    const std::lock_guard lock(client_.mutex_);
    client_.busy_ = false;
    client_.changed_.notify_all();
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
  absl::Status status() const {
    return mine_ ? absl::OkStatus() : absl::CancelledError("cancelled");
  }

 private:
  OAuthClient& client_;
  bool mine_ = false;
};

OAuthClient::OAuthClient(OAuthOptions options, Url url, OAuthRecord record)
    : options_(std::move(options)),
      policy_{std::move(url), options_.allow_private},
      store_(options_.directory, options_.name),
      record_(std::move(record)) {}

absl::StatusOr<std::unique_ptr<OAuthClient>> OAuthClient::Create(OAuthOptions options) {
  ASSIGN_OR_RETURN(Url url, ParseUrl(options.url));
  ASSIGN_OR_RETURN(OAuthRecord record, OAuthStore(options.directory, options.name).Load());
  const AuthConfig& auth = options.auth;
  const bool configured = !auth.client_id.empty() && !IsMetadataClient(auth);
  // What was kept for another server, issuer or client than the configuration has now.
  if (record.url != options.url || (!auth.issuer.empty() && record.issuer != auth.issuer) ||
      (configured && record.client_id != auth.client_id))
    record = {.url = options.url};
  return std::unique_ptr<OAuthClient>(
      new OAuthClient(std::move(options), std::move(url), std::move(record)));
}

OAuthClient::~OAuthClient() = default;

OAuthRecord OAuthClient::Snapshot() const {
  const std::lock_guard lock(mutex_);
  return record_;
}

void OAuthClient::Put(OAuthRecord record) {
  const std::lock_guard lock(mutex_);
  record_ = std::move(record);
}

bool OAuthClient::needs_login() const {
  const std::lock_guard lock(mutex_);
  return needs_login_;
}

absl::StatusOr<std::string> OAuthClient::AccessToken(const Stop& stop) {
  const auto runs_out = [](const OAuthRecord& record) {
    return record.expires_s > 0 && record.expires_s - kRenewEarlyS <= std::time(nullptr) &&
           !record.refresh_token.empty();
  };
  OAuthRecord record = Snapshot();
  if (!runs_out(record)) return record.access_token;
  const Busy busy(*this, stop);
  RETURN_IF_ERROR(busy.status());
  record = Snapshot();
  if (!runs_out(record)) return record.access_token;
  const absl::Status status = Renew(stop);
  // A refusal ends what we had: the server will say what it wants now.
  if (!status.ok() && status.code() != absl::StatusCode::kUnauthenticated) return status;
  return Snapshot().access_token;
}

absl::Status OAuthClient::Refused(long status, const Challenge& challenge, const std::string& used,
                                  const Stop& stop) {
  const Busy busy(*this, stop);
  RETURN_IF_ERROR(busy.status());
  const OAuthRecord record = Snapshot();
  if (record.access_token != used && !record.access_token.empty()) return absl::OkStatus();
  challenge_ = challenge;
  const std::vector<std::string> wanted = ScopesOf(challenge.scope);
  if (status == 403) {
    const std::vector<std::string> had = ScopesOf(record.scope);
    if (ScopeUnion(had, wanted).size() == had.size())
      return Error(absl::StatusCode::kPermissionDenied,
                   "it wants the scope {}, which was asked for and is not enough",
                   Shown(challenge.scope));
    more_scopes_ = ScopeUnion(had, wanted);
  } else if (!used.empty()) {
    if (!record.refresh_token.empty()) {
      const absl::Status renewed = Renew(stop);
      if (renewed.code() != absl::StatusCode::kUnauthenticated) return renewed;
    }
    OAuthRecord without = Snapshot();
    without.access_token.clear();
    Put(std::move(without));
  }
  if (options_.auth.grant != AuthConfig::Grant::kAuthorizationCode) return GrantWithoutPerson(stop);
  if (options_.authorizer == nullptr)
    return LoginWanted(status == 403  ? "it wants more rights than the login gave"
                       : used.empty() ? "it wants a login, or credentials in its headers"
                                      : "its login has run out");
  ASSIGN_OR_RETURN(const std::string url, Begin(options_.authorizer->redirect_uri(), stop));
  ASSIGN_OR_RETURN(const std::string redirected, options_.authorizer->Authorize(url));
  return Finish(redirected, stop);
}

absl::Status OAuthClient::LoginWanted(const std::string& why) {
  const std::lock_guard lock(mutex_);
  needs_login_ = true;
  return Error(absl::StatusCode::kUnauthenticated, "{}: agentctl mcp login {}", why, options_.name);
}

absl::StatusOr<std::string> OAuthClient::BeginLogin(const std::string& redirect_uri,
                                                    const Stop& stop) {
  if (options_.auth.grant != AuthConfig::Grant::kAuthorizationCode)
    return FailedPrecondition("the MCP server {} is configured with a grant that needs no login",
                              options_.name);
  ASSIGN_OR_RETURN(const Url back, ParseUrl(redirect_uri));
  if (!back.loopback())
    return InvalidArgument("redirect_uri: {} is not on this machine", Shown(redirect_uri));
  const Busy busy(*this, stop);
  RETURN_IF_ERROR(busy.status());
  return Begin(redirect_uri, stop);
}

absl::Status OAuthClient::FinishLogin(const std::string& redirected, const Stop& stop) {
  const Busy busy(*this, stop);
  RETURN_IF_ERROR(busy.status());
  return Finish(redirected, stop);
}

absl::Status OAuthClient::Forget() {
  const Busy busy(*this, nullptr);
  OAuthRecord record{.url = options_.url};
  RETURN_IF_ERROR(store_.Save(record));
  Put(std::move(record));
  more_scopes_.clear();
  login_.reset();
  return absl::OkStatus();
}

absl::StatusOr<Discovered> OAuthClient::Find(const Stop& stop) const {
  // Credentials of the configuration are for one issuer; a client that registered itself registers
  // with the new one.
  const AuthConfig& auth = options_.auth;
  std::string issuer = auth.issuer;
  if (issuer.empty() && !auth.client_id.empty() && !IsMetadataClient(auth)) issuer = record_.issuer;
  return Discover(policy_, options_.url, challenge_, issuer,
                  auth.grant == AuthConfig::Grant::kAuthorizationCode, stop);
}

// What the server says that it wants, else what the configuration says, else all that the resource
// knows; and what was asked for before.
std::vector<std::string> OAuthClient::ScopesFor(const Discovered& found) const {
  std::vector<std::string> scopes = ScopesOf(challenge_.scope);
  if (scopes.empty()) scopes = options_.auth.scopes;
  if (scopes.empty()) scopes = found.scopes;
  if (record_.issuer == found.server.issuer) scopes = ScopeUnion(scopes, ScopesOf(record_.scope));
  scopes = ScopeUnion(std::move(scopes), more_scopes_);
  // With it a provider of the OpenID kind gives a refresh token.
  if (!scopes.empty() && options_.auth.grant == AuthConfig::Grant::kAuthorizationCode &&
      HasName(found.server.scopes, kOfflineAccess))
    scopes = ScopeUnion(std::move(scopes), {kOfflineAccess});
  return scopes;
}

// Sets who we are towards the authorization server, in the record.
absl::Status OAuthClient::TakeClient(const Discovered& found, const std::string& redirect_uri,
                                     const Stop& stop) {
  const AuthConfig& auth = options_.auth;
  OAuthRecord record = record_;
  if (record.issuer != found.server.issuer) record = {.url = options_.url};
  record.issuer = found.server.issuer;
  record.resource = found.resource;
  record.token_endpoint = found.server.token_endpoint;
  const bool metadata_client = IsMetadataClient(auth);
  if (!auth.client_id.empty() && (!metadata_client || found.server.takes_metadata_client)) {
    record.client_id = auth.client_id;
    record.client_secret.clear();
    record.token_auth_method = ConfiguredMethod(auth, found.server.token_auth_methods);
    record.redirect_uri.clear();
    Put(std::move(record));
    return absl::OkStatus();
  }
  const bool kept = !record.redirect_uri.empty() && record.redirect_uri == redirect_uri &&
                    !record.client_id.empty() &&
                    (record.secret_expires_s == 0 || record.secret_expires_s > std::time(nullptr));
  Put(record);
  if (kept) return absl::OkStatus();
  if (found.server.registration_endpoint.empty())
    return FailedPrecondition(
        "the authorization server {} lets clients not register themselves: register agentd there "
        "and put its client_id into [mcp.auth]",
        Shown(found.server.issuer));
  return Register(found, redirect_uri, ScopesFor(found), stop);
}

absl::Status OAuthClient::Register(const Discovered& found, const std::string& redirect_uri,
                                   const std::vector<std::string>& scopes, const Stop& stop) {
  const std::vector<std::string>& methods = found.server.token_auth_methods;
  // A program on somebody's machine keeps no secret from that person: none is wanted if none will
  // do.
  std::string method = kNone;
  if (!methods.empty() && !HasName(methods, kNone))
    method = HasName(methods, kBasic) ? kBasic : kPost;
  Json client = {{"client_name", "agentd"},
                 {"application_type", "native"},
                 {"redirect_uris", Json::array({redirect_uri})},
                 {"grant_types", Json::array({"authorization_code", "refresh_token"})},
                 {"response_types", Json::array({"code"})},
                 {"token_endpoint_auth_method", method}};
  if (!scopes.empty()) client["scope"] = ScopeText(scopes);
  FetchRequest request{.url = found.server.registration_endpoint, .post = true};
  request.headers = {"Content-Type: application/json"};
  request.body = Dump(client);
  ASSIGN_OR_RETURN(const FetchResponse response, Fetch(policy_, request, stop));
  const Json answer = Json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  if (response.status / 100 != 2)
    return FailedPrecondition("{} does not register agentd: HTTP {} {} {}", request.url,
                              response.status, Shown(StringAt(answer, "error")),
                              Shown(StringAt(answer, "error_description")));
  OAuthRecord record = record_;
  record.client_id = StringAt(answer, "client_id");
  record.client_secret = StringAt(answer, "client_secret");
  record.token_auth_method = StringAt(answer, "token_endpoint_auth_method");
  if (record.token_auth_method.empty()) record.token_auth_method = method;
  record.redirect_uri = redirect_uri;
  const Json& expires = At(answer, "client_secret_expires_at");
  record.secret_expires_s = expires.is_number_integer() ? expires.get<int64_t>() : 0;
  // Tokens of another client are of no more use with this one.
  record.access_token.clear();
  record.refresh_token.clear();
  const bool secret = record.token_auth_method == kBasic || record.token_auth_method == kPost;
  if (record.client_id.empty() || (!secret && record.token_auth_method != kNone) ||
      (secret && record.client_secret.empty()))
    return FailedPrecondition("{} registers agentd as a client that cannot be used", request.url);
  Put(std::move(record));
  return absl::OkStatus();
}

absl::StatusOr<std::string> OAuthClient::Begin(const std::string& redirect_uri, const Stop& stop) {
  login_.reset();
  const OAuthRecord before = record_;
  auto login = std::make_unique<Login>();
  ASSIGN_OR_RETURN(login->found, Find(stop));
  const std::vector<std::string> scopes = ScopesFor(login->found);
  const absl::Status client = TakeClient(login->found, redirect_uri, stop);
  login->record = record_;
  Put(before);  // until the login is done what there was stays in use
  RETURN_IF_ERROR(client);
  login->state = RandomText();
  login->verifier = RandomText();
  login->redirect_uri = redirect_uri;
  login->scope = ScopeText(scopes);
  FormFields fields = {
      {"response_type", "code"},          {"client_id", login->record.client_id},
      {"redirect_uri", redirect_uri},     {"code_challenge", S256(login->verifier)},
      {"code_challenge_method", "S256"},  {"state", login->state},
      {"resource", login->found.resource}};
  if (!scopes.empty()) fields.emplace_back("scope", login->scope);
  if (HasName(scopes, kOfflineAccess)) fields.emplace_back("prompt", "consent");
  login_ = std::move(login);
  return WithQuery(login_->found.server.authorization_endpoint, fields);
}

absl::Status OAuthClient::Finish(const std::string& redirected, const Stop& stop) {
  if (login_ == nullptr || Clock::now() >= login_->end)
    return FailedPrecondition("no login is open: begin a new one");
  const size_t question = redirected.find('?');
  const FormFields answer = ParseForm(
      question == std::string::npos
          ? ""
          : std::string_view(redirected).substr(question + 1, redirected.find('#') - question - 1));
  // One that is not of this login does not end it: anybody can make such an address.
  if (!SameSecret(FieldOf(answer, "state"), login_->state))
    return InvalidArgument("the answer is of another login (its state differs)");
  const std::unique_ptr<Login> login = std::move(login_);
  const AuthorizationServer& server = login->found.server;
  // RFC 9207: said by the issuer that was asked, or the code is for somebody else to take.
  const bool says = std::any_of(answer.begin(), answer.end(),
                                [](const auto& field) { return field.first == "iss"; });
  if (says ? FieldOf(answer, "iss") != server.issuer : server.says_issuer)
    return InvalidArgument("the answer {} the authorization server {}: it is not used",
                           says ? "is of another one than" : "does not say that it is of",
                           Shown(server.issuer));
  if (const std::string error = FieldOf(answer, "error"); !error.empty())
    return FailedPrecondition("the authorization server refuses: {} {}", Shown(error),
                              Shown(FieldOf(answer, "error_description")));
  const std::string code = FieldOf(answer, "code");
  if (code.empty()) return InvalidArgument("the answer holds no code");
  const OAuthRecord before = record_;
  OAuthRecord record = login->record;
  record.scope = login->scope;
  record.access_token.clear();
  record.refresh_token.clear();
  Put(std::move(record));
  const absl::Status status = AskForToken({{"grant_type", "authorization_code"},
                                           {"code", code},
                                           {"redirect_uri", login->redirect_uri},
                                           {"code_verifier", login->verifier}},
                                          stop);
  if (!status.ok()) {
    Put(before);
    return status;
  }
  more_scopes_.clear();
  const std::lock_guard lock(mutex_);
  needs_login_ = false;
  return absl::OkStatus();
}

// With the refresh token. Unauthenticated: it is of no more use, and gone.
absl::Status OAuthClient::Renew(const Stop& stop) {
  const absl::Status status = AskForToken(
      {{"grant_type", "refresh_token"}, {"refresh_token", record_.refresh_token}}, stop);
  if (status.code() != absl::StatusCode::kUnauthenticated) return status;
  OAuthRecord record = record_;
  record.access_token.clear();
  record.refresh_token.clear();
  RETURN_IF_ERROR(store_.Save(record));
  Put(std::move(record));
  return status;
}

// The file's, or what the identity provider gives for it: a grant for this authorization server and
// resource alone (RFC 8693 with an ID-JAG). The ID token itself goes to nobody else.
absl::StatusOr<std::string> OAuthClient::Assertion(const Stop& stop) const {
  const AuthConfig& auth = options_.auth;
  ASSIGN_OR_RETURN(const std::string text,
                   ReadSecretFile(auth.assertion_file, "the assertion file"));
  const std::string assertion(Trimmed(text));
  if (auth.grant == AuthConfig::Grant::kJwtBearer) return assertion;
  constexpr char kIdJag[] = "urn:ietf:params:oauth:token-type:id-jag";
  FormFields fields = {{"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"},
                       {"requested_token_type", kIdJag},
                       {"audience", record_.issuer},
                       {"resource", record_.resource},
                       {"subject_token", assertion},
                       {"subject_token_type", "urn:ietf:params:oauth:token-type:id_token"},
                       {"client_id", auth.idp_client_id}};
  if (!record_.scope.empty()) fields.emplace_back("scope", record_.scope);
  FetchRequest request{.url = auth.idp_token_endpoint, .post = true};
  request.headers = {"Content-Type: application/x-www-form-urlencoded"};
  request.body = FormText(fields);
  ASSIGN_OR_RETURN(const FetchResponse response, Fetch(policy_, request, stop));
  const Json answer = Json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  if (response.status / 100 != 2)
    return FailedPrecondition(
        "{}", Redacted(fmt::format("{} exchanges no token: HTTP {} {} {}", request.url,
                                   response.status, Shown(StringAt(answer, "error")),
                                   Shown(StringAt(answer, "error_description"))),
                       fields));
  const std::string grant = StringAt(answer, "access_token");
  if (StringAt(answer, "issued_token_type") != kIdJag || !IsToken(grant))
    return FailedPrecondition("{} gives no ID-JAG for the ID token", request.url);
  return grant;
}

absl::Status OAuthClient::GrantWithoutPerson(const Stop& stop) {
  ASSIGN_OR_RETURN(const Discovered found, Find(stop));
  const std::vector<std::string> scopes = ScopesFor(found);
  RETURN_IF_ERROR(TakeClient(found, "", stop));
  OAuthRecord record = record_;
  record.scope = ScopeText(scopes);
  Put(record);
  FormFields fields;
  if (options_.auth.grant == AuthConfig::Grant::kClientCredentials) {
    fields = {{"grant_type", "client_credentials"}};
  } else {
    ASSIGN_OR_RETURN(const std::string assertion, Assertion(stop));
    fields = {{"grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"},
              {"assertion", assertion}};
  }
  if (!scopes.empty()) fields.emplace_back("scope", record.scope);
  RETURN_IF_ERROR(AskForToken(std::move(fields), stop));
  more_scopes_.clear();
  return absl::OkStatus();
}

absl::Status OAuthClient::AddClientTo(FormFields& fields, std::vector<std::string>& headers) const {
  const AuthConfig& auth = options_.auth;
  const std::string& method = record_.token_auth_method;
  const std::string& secret =
      record_.redirect_uri.empty() ? auth.client_secret : record_.client_secret;
  if (method == kBasic) {
    // Each part encoded as in a form (RFC 6749, 2.3.1).
    const std::string both = PercentEncoded(record_.client_id) + ":" + PercentEncoded(secret);
    headers.push_back("Authorization: Basic " + absl::Base64Escape(both));
    return absl::OkStatus();
  }
  fields.emplace_back("client_id", record_.client_id);
  if (method == kPost) fields.emplace_back("client_secret", secret);
  if (method != kPrivateKey) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string key, ReadSecretFile(auth.private_key_file, "the private key"));
  ASSIGN_OR_RETURN(const std::string assertion,
                   ClientAssertion(record_.client_id, record_.issuer, key));
  fields.emplace_back("client_assertion_type",
                      "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
  fields.emplace_back("client_assertion", assertion);
  return absl::OkStatus();
}

// Asks the token endpoint and takes what it gives into the record and the store. Unauthenticated:
// it refuses the grant (invalid_grant) or the client.
absl::Status OAuthClient::AskForToken(FormFields fields, const Stop& stop) {
  fields.emplace_back("resource", record_.resource);
  FetchRequest request{.url = record_.token_endpoint, .post = true};
  request.headers = {"Content-Type: application/x-www-form-urlencoded"};
  RETURN_IF_ERROR(AddClientTo(fields, request.headers));
  request.body = FormText(fields);
  ASSIGN_OR_RETURN(const FetchResponse response, Fetch(policy_, request, stop));
  if (response.status / 100 == 2)
    return Annotate(TakeToken(response.body), "the answer of " + request.url);
  const Json answer = Json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  const std::string error = StringAt(answer, "error");
  const std::string why =
      Redacted(fmt::format("{} gives no token: HTTP {} {} {}", request.url, response.status,
                           Shown(error), Shown(StringAt(answer, "error_description"))),
               fields);
  if (error == "invalid_client" && !record_.redirect_uri.empty()) {
    OAuthRecord record = record_;  // the provider has forgotten us: the next login registers anew
    record.client_id.clear();
    Put(std::move(record));
  }
  if (error == "invalid_grant" || error == "invalid_client") return absl::UnauthenticatedError(why);
  return response.status / 100 == 5 ? absl::UnavailableError(why)
                                    : absl::FailedPreconditionError(why);
}

absl::Status OAuthClient::TakeToken(const std::string& body) {
  const Json answer = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  OAuthRecord record = record_;
  record.access_token = StringAt(answer, "access_token");
  if (!IsToken(record.access_token)) return FailedPrecondition("holds no token that can be sent");
  if (absl::AsciiStrToLower(StringAt(answer, "token_type")) != "bearer")
    return FailedPrecondition("holds a token of the type {}, where Bearer is known here",
                              Shown(StringAt(answer, "token_type")));
  const Json& lifetime = At(answer, "expires_in");
  const int64_t seconds = lifetime.is_number_integer() ? lifetime.get<int64_t>() : 0;
  record.expires_s =
      seconds > 0 ? std::time(nullptr) + std::min<int64_t>(seconds, int64_t{1} << 32) : 0;
  // A provider that rotates refresh tokens gives another one; one that does not, none.
  if (const std::string refresh = StringAt(answer, "refresh_token"); IsToken(refresh))
    record.refresh_token = refresh;
  RETURN_IF_ERROR(store_.Save(record));
  Put(std::move(record));
  return absl::OkStatus();
}

// A provider may repeat what it was sent.
std::string OAuthClient::Redacted(std::string text, const FormFields& fields) const {
  const auto hide = [&text](const std::string& secret) {
    if (secret.size() < kMinSecretBytes) return;
    for (size_t at = text.find(secret); at != std::string::npos; at = text.find(secret))
      text.replace(at, secret.size(), "***");
  };
  for (const char* name : {"code", "code_verifier", "refresh_token", "client_secret", "assertion",
                           "client_assertion", "subject_token"})
    hide(FieldOf(fields, name));
  hide(options_.auth.client_secret);
  hide(record_.client_secret);
  hide(record_.access_token);
  return text;
}

}  // namespace agentd::tools::mcp
