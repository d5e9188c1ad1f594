#include "tools/mcp/oauth_discovery.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "tools/mcp/json_rpc.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

constexpr size_t kShownOAuthBytes = 200;
constexpr size_t kMaxNames = 256;
constexpr char kS256[] = "S256";

bool IsTokenChar(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

// Reads challenges: SCHEME NAME=VALUE, NAME="VALUE", SCHEME ...
class ChallengeReader {
 public:
  explicit ChallengeReader(std::string_view text) : text_(text) {}

  Challenge Read() {
    Challenge challenge;
    bool bearer = false;
    while (SkipTo()) {
      const std::string name = absl::AsciiStrToLower(Token());
      if (name.empty()) {
        ++at_;
        continue;
      }
      SkipBlanks();
      if (at_ >= text_.size() || text_[at_] != '=') {
        bearer = name == "bearer";
        continue;
      }
      ++at_;
      SkipBlanks();
      const std::string value = Value();
      if (!bearer) continue;
      for (auto [known, field] : {std::pair{"resource_metadata", &challenge.resource_metadata},
                                  {"scope", &challenge.scope},
                                  {"error", &challenge.error}})
        if (name == known && field->empty()) *field = value;
    }
    return challenge;
  }

 private:
  bool SkipTo() {
    while (at_ < text_.size() && (text_[at_] == ',' || text_[at_] == ' ' || text_[at_] == '\t'))
      ++at_;
    return at_ < text_.size();
  }
  void SkipBlanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
  }
  std::string Token() {
    const size_t from = at_;
    while (at_ < text_.size() && IsTokenChar(text_[at_])) ++at_;
    return std::string(text_.substr(from, at_ - from));
  }
  std::string Value() {
    if (at_ >= text_.size() || text_[at_] != '"') return Token();
    std::string value;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\\' && at_ + 1 < text_.size()) ++at_;
      value += text_[at_];
    }
    ++at_;
    return value;
  }

  const std::string_view text_;
  size_t at_ = 0;
};

std::vector<std::string> TextsAt(const Json& object, const char* name) {
  std::vector<std::string> texts;
  for (const Json& element : At(object, name))
    if (element.is_string() && texts.size() < kMaxNames) texts.push_back(element);
  return texts;
}

class Discovery {
 public:
  Discovery(const FetchPolicy& policy, bool grants_code, const std::function<bool()>& stop)
      : policy_(policy), grants_code_(grants_code), stop_(stop) {}

  absl::StatusOr<Discovered> Run(const std::string& url, const Challenge& challenge,
                                 const std::string& issuer) {
    ASSIGN_OR_RETURN(const std::optional<Json> resource, FindResource(challenge));
    Discovered found;
    if (!resource) return Legacy(url, issuer);
    found.resource = StringAt(*resource, "resource");
    RETURN_IF_ERROR(CheckResource(found.resource));
    found.scopes = TextsAt(*resource, "scopes_supported");
    const std::vector<std::string> servers = TextsAt(*resource, "authorization_servers");
    if (servers.empty())
      return FailedPrecondition("{} names no authorization server", resource_place_);
    if (!issuer.empty() && !HasName(servers, issuer))
      return FailedPrecondition(
          "{} names another authorization server ({}) than the one that this server's credentials "
          "are for, {}",
          resource_place_, Shown(servers[0]), Shown(issuer));
    const std::string& chosen = issuer.empty() ? servers[0] : issuer;
    ASSIGN_OR_RETURN(const std::optional<Json> metadata, FindServer(chosen));
    if (!metadata)
      return FailedPrecondition("the authorization server {} publishes no metadata", Shown(chosen));
    ASSIGN_OR_RETURN(found.server, ReadServer(*metadata, chosen));
    return found;
  }

 private:
  // The document at `url`; nullopt if there is none.
  absl::StatusOr<std::optional<Json>> Document(const std::string& url) {
    ASSIGN_OR_RETURN(const FetchResponse response, Fetch(policy_, {.url = url}, stop_));
    if (response.status / 100 == 4) return std::nullopt;
    if (response.status != 200)
      return FailedPrecondition("{} answers with HTTP {}{}", url, response.status,
                                response.status / 100 == 3 ? "; redirects are not followed" : "");
    // Some servers answer with their page whatever is asked for.
    if (response.content_type == "text/html") return std::nullopt;
    Json document = Json::parse(response.body, nullptr, /*allow_exceptions=*/false);
    if (!document.is_object()) return FailedPrecondition("{} is no JSON object", url);
    return document;
  }

  absl::StatusOr<std::optional<Json>> FindResource(const Challenge& challenge) {
    if (!challenge.resource_metadata.empty()) {
      resource_place_ = "the metadata at " + Shown(challenge.resource_metadata);
      ASSIGN_OR_RETURN(std::optional<Json> document, Document(challenge.resource_metadata));
      if (!document) return FailedPrecondition("{} is not there", resource_place_);
      return document;
    }
    const std::string root = policy_.server.Origin() + "/.well-known/oauth-protected-resource";
    for (const std::string& url : {root + PathOf(policy_.server), root}) {
      resource_place_ = "the metadata at " + url;
      ASSIGN_OR_RETURN(std::optional<Json> document, Document(url));
      if (document) return document;
      if (policy_.server.path == "/") break;
    }
    return std::nullopt;
  }

  // The path as well-known addresses append it: "" for the root.
  static std::string PathOf(const Url& url) {
    std::string path = url.path;
    while (path.ends_with('/')) path.pop_back();
    return path;
  }

  // Metadata may be for this server or for all below a path that it is in; tokens for anything else
  // would be somebody else's.
  absl::Status CheckResource(const std::string& resource) const {
    const auto url = ParseUrl(resource);
    const std::string path = url.ok() ? PathOf(*url) : "";
    const std::string own = PathOf(policy_.server);
    if (url.ok() && resource.find('#') == std::string::npos &&
        url->Origin() == policy_.server.Origin() && own.starts_with(path) &&
        (own.size() == path.size() || own[path.size()] == '/'))
      return absl::OkStatus();
    return FailedPrecondition("{} is for another resource, {}", resource_place_, Shown(resource));
  }

  absl::StatusOr<std::optional<Json>> FindServer(const std::string& issuer) {
    RETURN_IF_ERROR(CheckFetchUrl(policy_, issuer));
    ASSIGN_OR_RETURN(const Url url, ParseUrl(issuer));
    if (!url.query.empty()) return FailedPrecondition("the issuer {} holds a query", Shown(issuer));
    const std::string path = PathOf(url), known = url.Origin() + "/.well-known/";
    std::vector<std::string> places = {known + "oauth-authorization-server" + path,
                                       known + "openid-configuration" + path};
    if (!path.empty()) places.push_back(url.Origin() + path + "/.well-known/openid-configuration");
    for (const std::string& place : places) {
      ASSIGN_OR_RETURN(std::optional<Json> document, Document(place));
      if (!document) continue;
      if (StringAt(*document, "issuer") != issuer)
        return FailedPrecondition("the metadata at {} is of another issuer, {}", place,
                                  Shown(StringAt(*document, "issuer")));
      return document;
    }
    return std::nullopt;
  }

  absl::StatusOr<AuthorizationServer> ReadServer(const Json& metadata, const std::string& issuer) {
    AuthorizationServer server;
    server.issuer = issuer;
    for (auto [name, field, needed] :
         {std::tuple{"authorization_endpoint", &server.authorization_endpoint, grants_code_},
          {"token_endpoint", &server.token_endpoint, true},
          {"registration_endpoint", &server.registration_endpoint, false}}) {
      *field = StringAt(metadata, name);
      if (field->empty() && !needed) continue;
      if (field->empty())
        return FailedPrecondition("the authorization server {} has no {}", Shown(issuer), name);
      const absl::Status status = CheckFetchUrl(policy_, *field);
      if (!status.ok())
        return FailedPrecondition("the authorization server {} has a {} that may not be used: {}",
                                  Shown(issuer), name, Text(status));
    }
    if (grants_code_ && !HasName(TextsAt(metadata, "code_challenge_methods_supported"), kS256))
      return FailedPrecondition(
          "the authorization server {} does not say that it checks PKCE with S256: without that a "
          "login is not safe",
          Shown(issuer));
    server.scopes = TextsAt(metadata, "scopes_supported");
    server.token_auth_methods = TextsAt(metadata, "token_endpoint_auth_methods_supported");
    server.says_issuer = At(metadata, "authorization_response_iss_parameter_supported") == true;
    server.takes_metadata_client = At(metadata, "client_id_metadata_document_supported") == true;
    return server;
  }

  // Until revision 2025-03-26: the server's origin is the authorization server.
  absl::StatusOr<Discovered> Legacy(const std::string& url, const std::string& issuer) {
    const std::string origin = policy_.server.Origin();
    if (!issuer.empty() && issuer != origin)
      return FailedPrecondition(
          "it names no authorization server, and the one that its credentials are for is {}",
          Shown(issuer));
    Discovered found;
    found.resource = url.substr(0, url.find('#'));
    ASSIGN_OR_RETURN(const std::optional<Json> metadata, FindServer(origin));
    if (metadata) {
      ASSIGN_OR_RETURN(found.server, ReadServer(*metadata, origin));
      return found;
    }
    found.server.issuer = origin;
    found.server.authorization_endpoint = origin + "/authorize";
    found.server.token_endpoint = origin + "/token";
    found.server.registration_endpoint = origin + "/register";
    return found;
  }

  const FetchPolicy& policy_;
  const bool grants_code_;
  const std::function<bool()>& stop_;
  std::string resource_place_;
};

}  // namespace

Challenge ParseChallenge(std::string_view header) { return ChallengeReader(header).Read(); }

bool HasName(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::vector<std::string> ScopesOf(std::string_view text) {
  const std::vector<std::string> names = absl::StrSplit(std::string(text), ' ', absl::SkipEmpty());
  return ScopeUnion({}, names);
}

std::string ScopeText(const std::vector<std::string>& scopes) {
  return fmt::format("{}", fmt::join(scopes, " "));
}

std::vector<std::string> ScopeUnion(std::vector<std::string> scopes,
                                    const std::vector<std::string>& more) {
  for (const std::string& scope : more)
    if (!HasName(scopes, scope) && scopes.size() < kMaxNames) scopes.push_back(scope);
  return scopes;
}

absl::StatusOr<Discovered> Discover(const FetchPolicy& policy, const std::string& url,
                                    const Challenge& challenge, const std::string& issuer,
                                    bool grants_code, const std::function<bool()>& stop) {
  return Discovery(policy, grants_code, stop).Run(url, challenge, issuer);
}

std::string Shown(const std::string& text) {
  const std::string quoted = JsonString(text);
  return quoted.size() <= kShownOAuthBytes
             ? quoted
             : CleanUtf8(quoted.substr(0, kShownOAuthBytes)) + "...\"";
}

}  // namespace agentd::tools::mcp
