// IP addresses, and which of them are not the public Internet.
#ifndef AGENTD_SANDBOX_EGRESS_ADDRESS_H_
#define AGENTD_SANDBOX_EGRESS_ADDRESS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace agentd::sandbox {

struct IpAddress {
  // Dotted quad or RFC 4291 text, nothing else: no octal, hexadecimal or shortened IPv4, no zone.
  static std::optional<IpAddress> Parse(std::string_view text);
  std::string ToString() const;
  bool operator==(const IpAddress&) const = default;

  bool v6 = false;
  std::array<uint8_t, 16> bytes{};  // network order; IPv4 uses the first 4, the rest is 0
};

struct IpNetwork {
  // "10.0.0.0/8", "fd12::/16". InvalidArgument names what is wrong with the text; bits after the
  // prefix must be 0.
  static absl::StatusOr<IpNetwork> Parse(std::string_view text);
  bool Contains(const IpAddress& other) const;
  // Every address of `other` is in this network.
  bool Contains(const IpNetwork& other) const {
    return prefix <= other.prefix && Contains(other.address);
  }

  IpAddress address;
  int prefix = 0;  // bits
};

// Why an address is no public unicast address ("private", "loopback", "cloud metadata", ...), from
// the IANA special-purpose registries; nullptr for public ones. Of IPv6 only 2000::/3 without its
// special parts is public, so what leads on to IPv4 (mapped, NAT64, 6to4, Teredo) never is.
const char* NotPublic(const IpAddress& address);

// The cloud services that hand credentials to whoever asks from inside. Never to be reached.
bool IsMetadata(const IpAddress& address);

// Packets to `address` do not leave this machine, as the routing table of the calling thread's
// network namespace has it. Sends nothing.
bool IsThisMachine(const IpAddress& address);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_ADDRESS_H_
