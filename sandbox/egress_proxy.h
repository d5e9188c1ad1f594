// The one way out of a sandbox: an HTTP proxy of the daemon's, for the calls of tools that were
// given a list of hosts (egress_policy.h).
//
// A call's network namespace has a loopback and nothing else. On it a listening socket is made for
// the call and handed here: what the call's programs write to it is read by the proxy, which
// looks the host up, checks every address that comes back, connects from the daemon's
// network namespace to a checked address itself, checks once more whom it is connected to, and
// only then passes bytes on. A name is looked up once a connection: an answer that changes
// later changes nothing.
//
// Taken are CONNECT host:port, and plain HTTP requests for http:// URLs, one a connection (the
// answer says Connection: close; what a client writes after its request is dropped). Plain requests
// and their answers are taken apart and put together anew, so no peer behind the proxy can be made
// to see two requests where the proxy saw one. The proxy does not look into tunnels: it holds
// which host is reached, not what is said there.
//
// A request that goes no further is answered 403 (not listed; only refused addresses), 400
// (malformed), 408 (header too slow), 413 (body over the limit), 431 (header over 16 KiB), 502 (no
// such host, no connection, a broken answer) or 504 (too slow), with the reason in the status line
// and the body.
#ifndef AGENTD_SANDBOX_EGRESS_PROXY_H_
#define AGENTD_SANDBOX_EGRESS_PROXY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "sandbox/egress_address.h"
#include "sandbox/egress_policy.h"

namespace agentd::sandbox {

// Of one listener. A request's header may have 16 KiB.
struct EgressLimits {
  int max_connections = 128;         // at one time; more wait in the listener's backlog
  int64_t request_time_ms = 10'000;  // from the connection to the end of its request's header
  int64_t connect_time_ms = 15'000;  // look-up and connecting, all addresses together
  int64_t idle_time_ms = 120'000;    // without a byte either way, waiting for an answer included
  int64_t max_bytes_up = int64_t{4} << 30;  // of all connections together
  int64_t max_bytes_down = int64_t{16} << 30;
};

// What became of one request.
struct EgressDecision {
  std::string host;  // as far as the request was understood
  uint16_t port = 0;
  std::string address;   // that was connected to, or tried last
  bool allowed = false;  // list and addresses allowed it: a connection was tried
  std::string reason;    // of the refusal, or of an end other than the peers'; else empty
  int64_t bytes_up = 0;  // passed on, HTTP headers included
  int64_t bytes_down = 0;
};

struct EgressUsage {
  int64_t connections = 0;  // accepted
  int64_t refused = 0;      // decisions that are not allowed
  int64_t bytes_up = 0;
  int64_t bytes_down = 0;
};

// Addresses of a host, in the order to try them. Called on the proxy's look-up threads, several
// at once; may block.
using EgressResolver =
    std::function<absl::StatusOr<std::vector<IpAddress>>(const std::string& host)>;
// The system's: getaddrinfo, so also /etc/hosts.
absl::StatusOr<std::vector<IpAddress>> ResolveHost(const std::string& host);

// One listener being served. Destroying it closes the listener and all its connections at
// once, reports those that were open, and returns when no callback runs or will run.
class EgressHandle {
 public:
  virtual ~EgressHandle() = default;
  virtual EgressUsage usage() const = 0;  // any thread
};

// One per daemon: an io thread for all listeners and a few for look-ups. Serve may be called from
// any thread. All handles are destroyed before the proxy; its destructor waits for a look-up
// that is under way (resolv.conf says how long that may take).
class EgressProxy {
 public:
  static absl::StatusOr<std::unique_ptr<EgressProxy>> Create(EgressResolver resolver = ResolveHost);
  virtual ~EgressProxy() = default;

  // Serves what connects to `listener`, a listening TCP socket of any network namespace. It is made
  // non-blocking, so no process that is not trusted may hold it too. `on_decision` is called on
  // the io thread, once a request: for a refusal when it is refused, else when the connection has
  // ended; it may not block, nor destroy a handle. InvalidArgument when `listener` is something
  // else.
  virtual absl::StatusOr<std::unique_ptr<EgressHandle>> Serve(
      UniqueFd listener, EgressPolicy policy, EgressLimits limits,
      std::function<void(const EgressDecision&)> on_decision) = 0;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_PROXY_H_
