#include "sandbox/egress_policy.h"

#include <algorithm>
#include <charconv>

#include "base/status.h"

namespace agentd::sandbox {
namespace {

constexpr size_t kMaxNameBytes = 253;
constexpr size_t kMaxLabelBytes = 63;
constexpr size_t kDescribedRules = 20;

// What allow_private may name: networks of one's own.
constexpr const char* kPrivateNetworks[] = {"10.0.0.0/8",    "172.16.0.0/12", "192.168.0.0/16",
                                            "100.64.0.0/10", "127.0.0.0/8",   "::1/128",
                                            "fc00::/7"};

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsHexDigit(char c) { return IsDigit(c) || (c >= 'a' && c <= 'f'); }

// As getaddrinfo reads the last part of an IPv4 address: decimal, octal or hexadecimal.
bool ReadsAsNumber(std::string_view label) {
  if (std::all_of(label.begin(), label.end(), IsDigit)) return true;
  return label.starts_with("0x") && std::all_of(label.begin() + 2, label.end(), IsHexDigit);
}

bool IsLabel(std::string_view label) {
  if (label.empty() || label.size() > kMaxLabelBytes) return false;
  if (label.front() == '-' || label.back() == '-') return false;
  return std::all_of(label.begin(), label.end(), [](char c) {
    return IsDigit(c) || (c >= 'a' && c <= 'z') || c == '-' || c == '_';
  });
}

bool IsName(std::string_view name) {
  if (name.size() > kMaxNameBytes) return false;
  for (;;) {
    const size_t dot = name.find('.');
    const std::string_view label = name.substr(0, dot);
    if (!IsLabel(label)) return false;
    if (dot == std::string_view::npos) return !ReadsAsNumber(label);
    name.remove_prefix(dot + 1);
  }
}

// 1 to 65535 without sign or leading zero.
std::optional<uint16_t> ParsePort(std::string_view text) {
  if (text.empty() || text.size() > 5 || text.front() == '0') return std::nullopt;
  if (!std::all_of(text.begin(), text.end(), IsDigit)) return std::nullopt;
  uint32_t port = 0;
  std::from_chars(text.data(), text.data() + text.size(), port);
  if (port > 65535) return std::nullopt;
  return static_cast<uint16_t>(port);
}

// Cuts ":ports" off; nullopt when there is no host before it. IPv6 stands in brackets.
struct HostAndPorts {
  std::string_view host;  // with the brackets
  std::optional<std::string_view> ports;
};
std::optional<HostAndPorts> SplitPorts(std::string_view text) {
  size_t end = text.find(':');
  if (text.starts_with('[')) {
    end = text.find(']');
    if (end == std::string_view::npos) return std::nullopt;
    ++end;
  }
  if (end >= text.size()) return HostAndPorts{text, std::nullopt};
  if (text[end] != ':') return std::nullopt;
  return HostAndPorts{text.substr(0, end), text.substr(end + 1)};
}

// Brackets belong to IPv6 and to nothing else.
std::optional<std::string> CanonicalInAuthority(std::string_view host) {
  const bool brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (brackets) host = host.substr(1, host.size() - 2);
  std::optional<std::string> canonical = CanonicalHost(host);
  if (!canonical || (canonical->find(':') != std::string::npos) != brackets) return std::nullopt;
  return canonical;
}

std::string ShownHost(const std::string& host) {
  return host.find(':') == std::string::npos ? host : "[" + host + "]";
}

// What is wrong with the host of a rule, as well as it can be guessed.
const char* Advice(std::string_view host) {
  if (IpAddress::Parse(host)) return "write IPv6 addresses in brackets";
  if (host.find("://") != std::string_view::npos || host.find('/') != std::string_view::npos)
    return "write the host alone, without scheme and path";
  if (host.find('@') != std::string_view::npos) return "write the host without a user name";
  if (std::any_of(host.begin(), host.end(), [](char c) { return static_cast<uint8_t>(c) >= 128; }))
    return "write names that are not ASCII as punycode (xn--...)";
  if (host.ends_with('.')) return "write it without the dot at the end";
  if (host.find('*') != std::string_view::npos)
    return "a wildcard is the whole first label, as in *.example.com";
  return "write a name such as api.example.com or a whole IP address";
}

}  // namespace

std::optional<std::string> CanonicalHost(std::string_view host) {
  if (const std::optional<IpAddress> address = IpAddress::Parse(host)) return address->ToString();
  std::string name(host);
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  if (!IsName(name)) return std::nullopt;
  return name;
}

std::optional<Authority> ParseAuthority(std::string_view text) {
  const std::optional<HostAndPorts> split = SplitPorts(text);
  if (!split) return std::nullopt;
  std::optional<std::string> host = CanonicalInAuthority(split->host);
  if (!host) return std::nullopt;
  Authority authority{std::move(*host), std::nullopt};
  if (split->ports) {
    authority.port = ParsePort(*split->ports);
    if (!authority.port) return std::nullopt;
  }
  return authority;
}

absl::StatusOr<EgressPolicy> EgressPolicy::Parse(std::span<const std::string> hosts,
                                                 std::span<const std::string> allow_private) {
  EgressPolicy policy;
  for (const std::string& text : allow_private) RETURN_IF_ERROR(policy.AddPrivate(text));
  for (const std::string& text : hosts) RETURN_IF_ERROR(policy.AddRule(text));
  return policy;
}

absl::Status EgressPolicy::AddRule(const std::string& text) {
  Rule rule;
  std::string_view rest = text;
  if (rest.starts_with("*.")) {
    rule.subdomains = true;
    rest.remove_prefix(2);
  }
  const std::optional<IpAddress> bare = IpAddress::Parse(rest);
  const bool plain = rest.find('/') == std::string_view::npos && !(bare && bare->v6);
  const std::optional<HostAndPorts> split = plain ? SplitPorts(rest) : std::nullopt;
  const std::optional<std::string> host = split ? CanonicalInAuthority(split->host) : std::nullopt;
  if (!host)
    return InvalidArgument("'{}' is no host of a list: {}", text,
                           Advice(split ? split->host : rest));
  rule.host = *host;
  const std::optional<IpAddress> address = IpAddress::Parse(rule.host);
  if (rule.subdomains && (address || rule.host.find('.') == std::string::npos))
    return InvalidArgument(
        "'{}' is no host of a list: a wildcard stands before a name of two labels or more, as in "
        "*.example.com",
        text);
  if (address && NotPublic(*address) != nullptr && !AllowsPrivate(*address))
    return InvalidArgument("'{}' can not be reached: {} is no public address ({}){}", text,
                           rule.host, NotPublic(*address),
                           IsMetadata(*address) ? "" : "; see allow_private");
  std::string_view ports = split->ports.value_or("80,443");
  for (;;) {
    const size_t comma = ports.find(',');
    const std::optional<uint16_t> port = ParsePort(ports.substr(0, comma));
    if (!port)
      return InvalidArgument(
          "'{}' has no valid ports: write numbers from 1 to 65535 with commas between, as in "
          "{}:80,443",
          text, ShownHost(rule.host));
    rule.ports.push_back(*port);
    if (comma == std::string_view::npos) break;
    ports.remove_prefix(comma + 1);
  }
  std::sort(rule.ports.begin(), rule.ports.end());
  rule.ports.erase(std::unique(rule.ports.begin(), rule.ports.end()), rule.ports.end());
  rules_.push_back(std::move(rule));
  return absl::OkStatus();
}

absl::Status EgressPolicy::AddPrivate(const std::string& text) {
  ASSIGN_OR_RETURN(const IpNetwork network, IpNetwork::Parse(text));
  for (const char* own : kPrivateNetworks) {
    const absl::StatusOr<IpNetwork> outer = IpNetwork::Parse(own);
    AGENTD_CHECK(outer.ok());
    if (outer->Contains(network)) {
      allow_private_.push_back(network);
      return absl::OkStatus();
    }
  }
  return InvalidArgument(
      "allow_private: '{}' is no part of a private network (10.0.0.0/8, 172.16.0.0/12, "
      "192.168.0.0/16, 100.64.0.0/10, 127.0.0.0/8, ::1/128 or fc00::/7)",
      text);
}

bool EgressPolicy::AllowsPrivate(const IpAddress& address) const {
  if (IsMetadata(address)) return false;
  return std::any_of(allow_private_.begin(), allow_private_.end(),
                     [&](const IpNetwork& network) { return network.Contains(address); });
}

bool EgressPolicy::Matches(const Rule& rule, const std::string& host) {
  if (!rule.subdomains) return host == rule.host;
  return host.size() > rule.host.size() + 1 && host.ends_with(rule.host) &&
         host[host.size() - rule.host.size() - 1] == '.';
}

std::optional<std::string> EgressPolicy::RefusesHost(const std::string& host, uint16_t port) const {
  bool listed = false;
  for (const Rule& rule : rules_) {
    if (!Matches(rule, host)) continue;
    if (std::binary_search(rule.ports.begin(), rule.ports.end(), port)) return std::nullopt;
    listed = true;
  }
  return fmt::format("{} {} is not in this tool's list (allowed: {})",
                     listed ? fmt::format("port {} of host", port) : "host", ShownHost(host),
                     Describe());
}

std::optional<std::string> EgressPolicy::RefusesAddress(const IpAddress& address) const {
  if (AllowsPrivate(address)) return std::nullopt;
  if (const char* what = NotPublic(address))
    return fmt::format("{} is no public address ({})", address.ToString(), what);
  if (IsThisMachine(address))
    return fmt::format("{} is an address of this machine", address.ToString());
  return std::nullopt;
}

std::string EgressPolicy::Describe() const {
  if (rules_.empty()) return "none";
  std::string text;
  for (size_t i = 0; i < std::min(rules_.size(), kDescribedRules); ++i) {
    const Rule& rule = rules_[i];
    if (i > 0) text += ", ";
    text += (rule.subdomains ? "*." : "") + ShownHost(rule.host);
    for (size_t p = 0; p < rule.ports.size(); ++p)
      text += (p == 0 ? ":" : ",") + std::to_string(rule.ports[p]);
  }
  if (rules_.size() > kDescribedRules)
    text += fmt::format(" and {} more", rules_.size() - kDescribedRules);
  return text;
}

}  // namespace agentd::sandbox
