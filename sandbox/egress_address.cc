#include "sandbox/egress_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <charconv>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::sandbox {
namespace {

constexpr const char* kMetadata = "cloud metadata";

struct SpecialRange {
  const char* network;
  const char* what;
};

// The first that contains an address names it.
constexpr SpecialRange kSpecialRanges[] = {
    {"169.254.169.254/32", kMetadata},      // most clouds
    {"169.254.170.2/32", kMetadata},        // AWS containers
    {"169.254.170.23/32", kMetadata},       // AWS pods
    {"100.100.100.200/32", kMetadata},      // Alibaba
    {"168.63.129.16/32", kMetadata},        // Azure, out of a public range
    {"192.0.0.192/32", kMetadata},          // Oracle
    {"fd00:ec2::254/128", kMetadata},       // AWS
    {"fd00:ec2::23/128", kMetadata},        // AWS pods
    {"fd20:ce::254/128", kMetadata},        // Google
    {"fd00:c1::a9fe:a9fe/128", kMetadata},  // Oracle
    {"fd00:42::42/128", kMetadata},         // Scaleway
    {"0.0.0.0/8", "this network"},
    {"10.0.0.0/8", "private"},
    {"100.64.0.0/10", "carrier-grade NAT"},
    {"127.0.0.0/8", "loopback"},
    {"169.254.0.0/16", "link-local"},
    {"172.16.0.0/12", "private"},
    {"192.0.0.0/24", "protocol assignments"},
    {"192.0.2.0/24", "documentation"},
    {"192.88.99.0/24", "6to4 relay"},
    {"192.168.0.0/16", "private"},
    {"198.18.0.0/15", "benchmarking"},
    {"198.51.100.0/24", "documentation"},
    {"203.0.113.0/24", "documentation"},
    {"224.0.0.0/4", "multicast"},
    {"255.255.255.255/32", "broadcast"},
    {"240.0.0.0/4", "reserved"},
    {"::/128", "unspecified"},
    {"::1/128", "loopback"},
    {"::ffff:0:0/96", "IPv4-mapped"},
    {"::/96", "IPv4-compatible"},
    {"64:ff9b::/96", "NAT64"},
    {"64:ff9b:1::/48", "NAT64"},
    {"100::/64", "discard-only"},
    {"2001::/32", "Teredo"},
    {"2001::/23", "protocol assignments"},
    {"2001:db8::/32", "documentation"},
    {"2002::/16", "6to4"},
    {"3fff::/20", "documentation"},
    {"fc00::/7", "private"},
    {"fe80::/10", "link-local"},
    {"fec0::/10", "site-local"},
    {"ff00::/8", "multicast"},
};
constexpr const char* kPublicV6 = "2000::/3";

IpNetwork MustParseNetwork(const char* text) {
  absl::StatusOr<IpNetwork> network = IpNetwork::Parse(text);
  AGENTD_CHECK(network.ok());
  return *network;
}

}  // namespace

std::optional<IpAddress> IpAddress::Parse(std::string_view text) {
  // inet_pton takes exactly what is wanted, but ends at a NUL.
  if (text.find('\0') != std::string_view::npos) return std::nullopt;
  const std::string copy(text);
  IpAddress address;
  if (inet_pton(AF_INET, copy.c_str(), address.bytes.data()) == 1) return address;
  address.v6 = true;
  if (inet_pton(AF_INET6, copy.c_str(), address.bytes.data()) == 1) return address;
  return std::nullopt;
}

std::string IpAddress::ToString() const {
  char text[INET6_ADDRSTRLEN];
  AGENTD_CHECK(inet_ntop(v6 ? AF_INET6 : AF_INET, bytes.data(), text, sizeof(text)) != nullptr);
  return text;
}

absl::StatusOr<IpNetwork> IpNetwork::Parse(std::string_view text) {
  const size_t slash = text.find('/');
  const std::optional<IpAddress> address = IpAddress::Parse(text.substr(0, slash));
  IpNetwork network;
  if (address && slash != std::string_view::npos) {
    const std::string_view digits = text.substr(slash + 1);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), network.prefix);
    if (error == std::errc() && end == digits.data() + digits.size() && network.prefix >= 0 &&
        network.prefix <= (address->v6 ? 128 : 32)) {
      network.address = *address;
      for (int bit = network.prefix; bit < 128; ++bit) {
        if ((address->bytes[bit / 8] >> (7 - bit % 8)) & 1)
          return InvalidArgument("network '{}' has bits set after the first {}", std::string(text),
                                 network.prefix);
      }
      return network;
    }
  }
  return InvalidArgument("'{}' is no network; write an address and a prefix, such as 10.1.0.0/16",
                         std::string(text));
}

bool IpNetwork::Contains(const IpAddress& other) const {
  if (address.v6 != other.v6) return false;
  const int whole = prefix / 8;
  if (std::memcmp(address.bytes.data(), other.bytes.data(), whole) != 0) return false;
  const int rest = prefix % 8;
  return rest == 0 || (address.bytes[whole] >> (8 - rest)) == (other.bytes[whole] >> (8 - rest));
}

const char* NotPublic(const IpAddress& address) {
  struct Range {
    IpNetwork network;
    const char* what;
  };
  static const auto* const ranges = [] {
    auto* all = new std::vector<Range>();
    for (const SpecialRange& range : kSpecialRanges)
      all->push_back({MustParseNetwork(range.network), range.what});
    return all;
  }();
  static const IpNetwork public_v6 = MustParseNetwork(kPublicV6);
  for (const Range& range : *ranges)
    if (range.network.Contains(address)) return range.what;
  return address.v6 && !public_v6.Contains(address) ? "reserved" : nullptr;
}

bool IsMetadata(const IpAddress& address) { return NotPublic(address) == kMetadata; }

bool IsThisMachine(const IpAddress& address) {
  // To a local address the kernel answers from that address; connect on a datagram socket only
  // looks the route up.
  UniqueFd probe(socket(address.v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!probe.valid()) return false;
  sockaddr_storage storage{};
  auto* const generic = reinterpret_cast<sockaddr*>(&storage);
  auto* const v4 = reinterpret_cast<sockaddr_in*>(&storage);
  auto* const v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (address.v6) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(9);
    std::memcpy(&v6->sin6_addr, address.bytes.data(), 16);
  } else {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(9);
    std::memcpy(&v4->sin_addr, address.bytes.data(), 4);
  }
  socklen_t size = sizeof(storage);
  if (connect(probe.get(), generic, address.v6 ? sizeof(*v6) : sizeof(*v4)) != 0) return false;
  if (getsockname(probe.get(), generic, &size) != 0) return false;
  IpAddress local;
  local.v6 = storage.ss_family == AF_INET6;
  if (local.v6) {
    std::memcpy(local.bytes.data(), &v6->sin6_addr, 16);
  } else {
    std::memcpy(local.bytes.data(), &v4->sin_addr, 4);
  }
  return local == address;
}

}  // namespace agentd::sandbox
