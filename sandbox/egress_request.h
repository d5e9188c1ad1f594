// What the proxy makes of an HTTP request and of an answer: pure functions of their headers and the
// policy, so that a fuzzer can drive them. Internal to the proxy.
#ifndef AGENTD_SANDBOX_EGRESS_REQUEST_H_
#define AGENTD_SANDBOX_EGRESS_REQUEST_H_

#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/message.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "sandbox/egress_policy.h"

namespace agentd::sandbox {

using EgressRequest = boost::beast::http::request<boost::beast::http::buffer_body>;
using EgressResponse = boost::beast::http::response<boost::beast::http::buffer_body>;

// Why a request goes no further, as the client is told.
struct EgressRefusal {
  int status = 0;
  std::string reason;
};

struct EgressTarget {
  std::string host;  // canonical
  uint16_t port = 0;
  bool tunnel = false;  // CONNECT
};

// Finds where `request` wants to go and whether it may. `target` is set as far as it was
// understood, also on refusal. On success a request that is no tunnel is rewritten to what goes
// upstream: origin-form, a Host header of our own, no hop-by-hop header, one framing, Connection:
// close.
std::optional<EgressRefusal> PrepareEgressRequest(EgressRequest& request,
                                                  const EgressPolicy& policy, EgressTarget* target);

// Rewrites an upstream's answer to what the client gets: no hop-by-hop headers, Connection: close.
// A refusal when it cannot be passed on.
std::optional<EgressRefusal> PrepareEgressResponse(EgressResponse& response);

// An answer of our own. The reason is also the status line's, since many clients show only that.
std::string EgressAnswer(const EgressRefusal& refusal, bool with_body);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_REQUEST_H_
