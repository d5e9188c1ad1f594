#include "sandbox/egress_request.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/rfc7230.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/verb.hpp>
#include <utility>
#include <vector>

namespace agentd::sandbox {
namespace {

namespace http = boost::beast::http;

constexpr http::field kHopByHop[] = {
    http::field::connection,
    http::field::keep_alive,
    http::field::proxy_connection,
    http::field::proxy_authenticate,
    http::field::proxy_authorization,
    http::field::te,
    http::field::trailer,
    http::field::upgrade,
    http::field::transfer_encoding,
};

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

EgressRefusal BadRequest(std::string reason) { return {400, std::move(reason)}; }

// The header's value; a refusal when it stands there more than once.
struct SingleHeader {
  std::optional<std::string> value;
  bool repeated = false;
};
SingleHeader FindSingle(const http::fields& fields, http::field name) {
  SingleHeader found;
  const auto range = fields.equal_range(name);
  for (auto it = range.first; it != range.second; ++it) {
    if (found.value) found.repeated = true;
    found.value = std::string(View(it->value()));
  }
  return found;
}

// Two readers of one message must not disagree where it ends: either one plain Content-Length, or
// chunked alone, or neither.
std::optional<std::string> AmbiguousFraming(const http::fields& fields) {
  const SingleHeader length = FindSingle(fields, http::field::content_length);
  const SingleHeader coding = FindSingle(fields, http::field::transfer_encoding);
  if (length.repeated || coding.repeated)
    return "more than one Content-Length or Transfer-Encoding header";
  if (length.value && coding.value) return "both Content-Length and Transfer-Encoding";
  if (coding.value && !boost::beast::iequals(*coding.value, "chunked"))
    return "a Transfer-Encoding other than chunked";
  if (length.value &&
      (length.value->empty() || !std::all_of(length.value->begin(), length.value->end(),
                                             [](char c) { return c >= '0' && c <= '9'; })))
    return "a Content-Length that is no number";
  return std::nullopt;
}

// Also removes what the Connection header names.
void RemoveHopByHop(http::fields& fields) {
  std::vector<std::string> named;
  const auto range = fields.equal_range(http::field::connection);
  for (auto it = range.first; it != range.second; ++it)
    for (const auto& token : http::token_list(it->value())) named.emplace_back(View(token));
  for (const http::field name : kHopByHop) fields.erase(name);
  for (const std::string& name : named) fields.erase(name);
}

struct SplitUrl {
  std::string_view authority;
  std::string_view path;  // with the query; may be empty
};
// The parts of "http://authority/path?query".
std::optional<SplitUrl> SplitHttpUrl(std::string_view url) {
  constexpr std::string_view kScheme = "http://";
  if (url.size() < kScheme.size() ||
      !boost::beast::iequals(boost::beast::string_view(url.data(), kScheme.size()),
                             boost::beast::string_view(kScheme.data(), kScheme.size())))
    return std::nullopt;
  url.remove_prefix(kScheme.size());
  const size_t end = std::min(url.find_first_of("/?"), url.size());
  return SplitUrl{url.substr(0, end), url.substr(end)};
}

// Host headers of HTTP/1.1 stand there once and say what the target says.
std::optional<EgressRefusal> CheckHostHeader(const EgressRequest& request,
                                             const EgressTarget& target) {
  const SingleHeader host = FindSingle(request, http::field::host);
  if (host.repeated) return BadRequest("more than one Host header");
  if (!host.value) {
    if (request.version() >= 11) return BadRequest("no Host header");
    return std::nullopt;
  }
  if (target.tunnel) return std::nullopt;  // it goes no further
  const std::optional<Authority> named = ParseAuthority(*host.value);
  if (!named || named->host != target.host || named->port.value_or(80) != target.port)
    return BadRequest("the Host header is not the host of the request's target");
  return std::nullopt;
}

std::optional<EgressRefusal> ParseConnect(const EgressRequest& request, std::string_view text,
                                          EgressTarget* target) {
  target->tunnel = true;
  const std::optional<Authority> authority = ParseAuthority(text);
  if (!authority || !authority->port)
    return BadRequest("the target of CONNECT is no host:port (names as ASCII, IPv6 in brackets)");
  target->host = authority->host;
  target->port = *authority->port;
  const SingleHeader length = FindSingle(request, http::field::content_length);
  if (request.count(http::field::transfer_encoding) > 0 || length.value.value_or("0") != "0")
    return BadRequest("CONNECT with a body");
  return std::nullopt;
}

std::optional<EgressRefusal> ParsePlain(std::string_view text, EgressTarget* target,
                                        std::string_view* path) {
  if (text.starts_with('/'))
    return BadRequest("this is a proxy: the target must be a whole http:// URL");
  const std::optional<SplitUrl> url = SplitHttpUrl(text);
  if (!url)
    return BadRequest(
        "the target is no http:// URL; other protocols, https too, go through CONNECT");
  const std::optional<Authority> authority = ParseAuthority(url->authority);
  if (!authority)
    return BadRequest("the URL has no valid host (names as ASCII, no user name, IPv6 in brackets)");
  target->host = authority->host;
  target->port = authority->port.value_or(80);
  *path = url->path;
  return std::nullopt;
}

void RewriteForUpstream(EgressRequest& request, const EgressTarget& target, std::string path) {
  const bool chunked = request.count(http::field::transfer_encoding) > 0;
  const SingleHeader length = FindSingle(request, http::field::content_length);
  RemoveHopByHop(request);
  if (path.empty()) {
    path = request.method() == http::verb::options ? "*" : "/";
  } else if (path.front() == '?') {
    path.insert(path.begin(), '/');
  }
  request.target(path);
  std::string host =
      target.host.find(':') == std::string::npos ? target.host : "[" + target.host + "]";
  if (target.port != 80) host += ":" + std::to_string(target.port);
  request.set(http::field::host, host);
  // A Connection header may have named these two.
  request.erase(http::field::content_length);
  if (length.value) request.set(http::field::content_length, *length.value);
  if (chunked) request.set(http::field::transfer_encoding, "chunked");
  if (request.version() < 11) request.erase(http::field::expect);
  request.set(http::field::connection, "close");
}

}  // namespace

std::optional<EgressRefusal> PrepareEgressRequest(EgressRequest& request,
                                                  const EgressPolicy& policy,
                                                  EgressTarget* target) {
  const std::string text(View(request.target()));
  if (!std::all_of(text.begin(), text.end(),
                   [](char c) { return c > ' ' && c < 0x7f && c != '#'; }))
    return BadRequest("the target has characters that no URL has");
  std::string_view path;
  const bool connect = request.method() == http::verb::connect;
  if (auto refusal =
          connect ? ParseConnect(request, text, target) : ParsePlain(text, target, &path))
    return refusal;
  if (auto refusal = CheckHostHeader(request, *target)) return refusal;
  if (const std::optional<std::string> why = AmbiguousFraming(request))
    return BadRequest("the request has " + *why);
  if (request.version() < 11 && request.count(http::field::transfer_encoding) > 0)
    return BadRequest("Transfer-Encoding in an HTTP/1.0 request");
  if (const std::optional<std::string> why = policy.RefusesHost(target->host, target->port))
    return EgressRefusal{403, *why};
  if (!target->tunnel) RewriteForUpstream(request, *target, std::string(path));
  return std::nullopt;
}

std::optional<EgressRefusal> PrepareEgressResponse(EgressResponse& response) {
  if (response.result() == http::status::switching_protocols)
    return EgressRefusal{502, "the host switched protocols without being asked to"};
  if (const std::optional<std::string> why = AmbiguousFraming(response))
    return EgressRefusal{502, "the host's answer has " + *why};
  const bool chunked = response.count(http::field::transfer_encoding) > 0;
  const SingleHeader length = FindSingle(response, http::field::content_length);
  RemoveHopByHop(response);
  response.erase(http::field::content_length);
  if (response.result_int() < 200) return std::nullopt;  // no body, and another answer follows
  if (length.value) response.set(http::field::content_length, *length.value);
  if (chunked) response.set(http::field::transfer_encoding, "chunked");
  response.set(http::field::connection, "close");
  return std::nullopt;
}

std::string EgressAnswer(const EgressRefusal& refusal, bool with_body) {
  const std::string body = "agentd: " + refusal.reason + "\n";
  return fmt::format(
      "HTTP/1.1 {} agentd: {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: "
      "close\r\n\r\n{}",
      refusal.status, refusal.reason, body.size(), with_body ? body : "");
}

}  // namespace agentd::sandbox
