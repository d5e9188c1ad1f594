#include "tools/mcp/http_fetch.h"

#include <curl/curl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/ascii.h"
#include "base/status.h"
#include "sandbox/egress_address.h"
#include "sandbox/egress_policy.h"

namespace agentd::tools::mcp {
namespace {

constexpr long kFetchConnectMs = 10'000;

bool ProxyForHttps() {
  for (const char* name : {"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"})
    if (const char* value = std::getenv(name); value != nullptr && *value != '\0') return true;
  return false;
}

std::string WithoutQuery(const std::string& url) { return url.substr(0, url.find_first_of("?#")); }

absl::Status NotAsked(const std::string& url, const std::string& why) {
  return Error(absl::StatusCode::kPermissionDenied,
               "{} is not asked: {}; [network] allow_private can allow a private network", url,
               why);
}

struct Exchange {
  const std::function<bool()>& stop;
  bool check_address = false;
  bool allow_loopback = false;
  sandbox::EgressPolicy addresses;
  FetchResponse response;
  std::string refused;  // why an address was not connected to
  bool too_long = false;
  bool stopped = false;
};

size_t OnFetchBody(char* data, size_t size, size_t count, void* self) {
  Exchange& exchange = *static_cast<Exchange*>(self);
  exchange.too_long = exchange.response.body.size() + size * count > kMaxFetchBytes;
  if (exchange.too_long) return 0;
  exchange.response.body.append(data, size * count);
  return size * count;
}

int OnFetchProgress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  Exchange& exchange = *static_cast<Exchange*>(self);
  exchange.stopped = exchange.stop && exchange.stop();
  return exchange.stopped ? 1 : 0;
}

// The address itself is checked, at the moment it is used: what a name stands for may change
// between a check of our own and libcurl's.
curl_socket_t OnFetchSocket(void* self, curlsocktype, curl_sockaddr* to) {
  Exchange& exchange = *static_cast<Exchange*>(self);
  sandbox::IpAddress address;
  address.v6 = to->family == AF_INET6;
  if (address.v6)
    std::memcpy(address.bytes.data(), &reinterpret_cast<sockaddr_in6&>(to->addr).sin6_addr, 16);
  else
    std::memcpy(address.bytes.data(), &reinterpret_cast<sockaddr_in&>(to->addr).sin_addr, 4);
  const bool loopback =
      address.v6 ? address == *sandbox::IpAddress::Parse("::1") : address.bytes[0] == 127;
  if (exchange.check_address && !(loopback && exchange.allow_loopback))
    if (const auto why = exchange.addresses.RefusesAddress(address)) {
      exchange.refused = *why;
      return CURL_SOCKET_BAD;
    }
  return ::socket(to->family, to->socktype | SOCK_CLOEXEC, to->protocol);
}

absl::Status OutcomeOf(const Exchange& exchange, CURLcode code, const std::string& url) {
  if (code == CURLE_OK) return absl::OkStatus();
  if (exchange.stopped) return absl::CancelledError("cancelled");
  if (!exchange.refused.empty()) return NotAsked(url, exchange.refused);
  if (exchange.too_long)
    return Error(absl::StatusCode::kUnavailable, "{} answers with more than {} bytes", url,
                 kMaxFetchBytes);
  if (code == CURLE_OPERATION_TIMEDOUT)
    return Error(absl::StatusCode::kUnavailable, "{} did not answer within {} s", url,
                 kFetchMs / 1000);
  return Error(absl::StatusCode::kUnavailable, "{}: {}", url, curl_easy_strerror(code));
}

}  // namespace

absl::Status CheckFetchUrl(const FetchPolicy& policy, const std::string& text) {
  ASSIGN_OR_RETURN(const Url url, ParseUrl(text));
  if (text.find('#') != std::string::npos) return InvalidArgument("\"{}\" holds a fragment", text);
  if (url.loopback() && !policy.server.loopback())
    return Error(absl::StatusCode::kPermissionDenied,
                 "\"{}\" is on this machine, and the server is not", WithoutQuery(text));
  if (!url.encrypted() && !url.loopback())
    return Error(absl::StatusCode::kPermissionDenied, "\"{}\" is not https", WithoutQuery(text));
  const bool v6 = url.host.starts_with('[');
  const auto address =
      sandbox::IpAddress::Parse(v6 ? url.host.substr(1, url.host.size() - 2) : url.host);
  if (!address || url.loopback() || url.Origin() == policy.server.Origin()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto addresses, sandbox::EgressPolicy::Parse({}, policy.allow_private));
  if (const auto why = addresses.RefusesAddress(*address))
    return NotAsked(WithoutQuery(text), *why);
  return absl::OkStatus();
}

absl::StatusOr<FetchResponse> Fetch(const FetchPolicy& policy, const FetchRequest& request,
                                    const std::function<bool()>& stop) {
  RETURN_IF_ERROR(CheckFetchUrl(policy, request.url));
  ASSIGN_OR_RETURN(const Url url, ParseUrl(request.url));
  Exchange exchange{.stop = stop};
  ASSIGN_OR_RETURN(exchange.addresses, sandbox::EgressPolicy::Parse({}, policy.allow_private));
  // The server's own address was chosen by whoever configured it.
  exchange.check_address =
      url.Origin() != policy.server.Origin() && (url.loopback() || !ProxyForHttps());
  exchange.allow_loopback = policy.server.loopback() && url.loopback();
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> handle(curl_easy_init(),
                                                                   curl_easy_cleanup);
  AGENTD_CHECK(handle != nullptr);
  CURL* const easy = handle.get();
  curl_slist* headers = curl_slist_append(nullptr, "Accept: application/json");
  headers = curl_slist_append(headers, "Expect:");
  for (const std::string& header : request.headers)
    headers = curl_slist_append(headers, header.c_str());
  const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> owned(headers,
                                                                          curl_slist_free_all);
  curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, kFetchConnectMs);
  curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, kFetchMs);
  curl_easy_setopt(easy, CURLOPT_USERAGENT, "agentd");
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &OnFetchBody);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, &exchange);
  curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, &OnFetchProgress);
  curl_easy_setopt(easy, CURLOPT_XFERINFODATA, &exchange);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, &OnFetchSocket);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, &exchange);
  if (url.loopback()) curl_easy_setopt(easy, CURLOPT_PROXY, "");
  if (request.post) {
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request.body.c_str());
  }
  RETURN_IF_ERROR(OutcomeOf(exchange, curl_easy_perform(easy), WithoutQuery(request.url)));
  curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &exchange.response.status);
  char* type = nullptr;
  curl_easy_getinfo(easy, CURLINFO_CONTENT_TYPE, &type);
  const std::string whole = type == nullptr ? "" : absl::AsciiStrToLower(type);
  exchange.response.content_type = whole.substr(0, whole.find_first_of("; "));
  char* location = nullptr;
  curl_easy_getinfo(easy, CURLINFO_REDIRECT_URL, &location);
  exchange.response.location = location == nullptr ? "" : location;
  return std::move(exchange.response);
}

}  // namespace agentd::tools::mcp
