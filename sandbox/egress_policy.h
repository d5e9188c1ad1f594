// Which hosts a sandboxed call may reach through the proxy (egress_proxy.h), and which addresses
// their names may stand for.
#ifndef AGENTD_SANDBOX_EGRESS_POLICY_H_
#define AGENTD_SANDBOX_EGRESS_POLICY_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "sandbox/egress_address.h"

namespace agentd::sandbox {

// A host as rules and requests are compared: a name in lower case or the canonical text of an
// address, IPv6 without brackets; nullopt for anything else. Names are letters, digits, '-' and '_'
// in labels (others as punycode), without a dot at the end; a name whose last label could be
// read as a number is none ("127.1", "0x7f000001", "1.2.3").
std::optional<std::string> CanonicalHost(std::string_view host);

struct Authority {
  std::string host;  // canonical
  std::optional<uint16_t> port;
};
// "host", "host:port", "[v6]", "[v6]:port"; nullopt for anything else, user names included.
std::optional<Authority> ParseAuthority(std::string_view text);

// Immutable; any thread.
class EgressPolicy {
 public:
  // `hosts`: "api.example.com" (ports 80 and 443), "example.com:8080", "example.com:80,8443",
  // "*.example.com" (every subdomain, not example.com itself), "93.184.216.34",
  // "[2606:2800:220:1::1]:443". `allow_private`: networks such as "10.1.2.0/24" in which listed
  // hosts may have their address although it is private, shared, unique local or loopback;
  // empty for all but an intranet. Cloud metadata stays refused whatever it says.
  // InvalidArgument names the entry and what to write instead.
  static absl::StatusOr<EgressPolicy> Parse(std::span<const std::string> hosts,
                                            std::span<const std::string> allow_private = {});

  // Why `host` (canonical) at `port` may not be asked for, or nullopt when it is listed. A host
  // that is not listed is not even looked up: the look-up would carry data out.
  std::optional<std::string> RefusesHost(const std::string& host, uint16_t port) const;

  // Why no connection may go to `address`, whatever name led to it, or nullopt. Asks the routing
  // table whether it is this machine's own.
  std::optional<std::string> RefusesAddress(const IpAddress& address) const;

  // The rules in one line, cut after some: "api.example.com:80,443, *.example.org:443".
  std::string Describe() const;

 private:
  struct Rule {
    std::string host;  // canonical; of a wildcard what follows "*."
    bool subdomains = false;
    std::vector<uint16_t> ports;  // ascending
  };
  absl::Status AddRule(const std::string& text);
  absl::Status AddPrivate(const std::string& text);
  bool AllowsPrivate(const IpAddress& address) const;
  static bool Matches(const Rule& rule, const std::string& host);

  std::vector<Rule> rules_;
  std::vector<IpNetwork> allow_private_;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_POLICY_H_
