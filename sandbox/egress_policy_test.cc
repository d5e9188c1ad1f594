#include "sandbox/egress_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "base/status.h"

namespace agentd::sandbox {
namespace {

using ::testing::HasSubstr;

EgressPolicy MustParsePolicy(const std::vector<std::string>& hosts,
                             const std::vector<std::string>& allow_private = {}) {
  absl::StatusOr<EgressPolicy> policy = EgressPolicy::Parse(hosts, allow_private);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return *policy;
}

TEST(EgressPolicyTest, RulesCoverWhatTheySay) {
  const EgressPolicy policy =
      MustParsePolicy({"API.Example.com", "*.example.org:443", "shop.test:8443,80,80", "8.8.8.8:53",
                       "[2606:4700:0::1111]", "x.example.org:22"});
  const struct {
    const char* host;
    uint16_t port;
    bool listed;
  } cases[] = {
      {"api.example.com", 80, true},
      {"api.example.com", 443, true},
      {"api.example.com", 8080, false},
      {"example.com", 443, false},
      {"x.api.example.com", 443, false},
      {"xapi.example.com", 443, false},
      {"www.example.org", 443, true},
      {"a.b.example.org", 443, true},
      {"example.org", 443, false},
      {".example.org", 443, false},
      {"wwwexample.org", 443, false},
      {"www.example.org", 80, false},
      {"x.example.org", 22, true},
      {"x.example.org", 443, true},
      {"example.org.evil.test", 443, false},
      {"shop.test", 80, true},
      {"shop.test", 8443, true},
      {"shop.test", 443, false},
      {"8.8.8.8", 53, true},
      {"8.8.8.9", 53, false},
      {"2606:4700::1111", 443, true},
      {"2606:4700::1112", 443, false},
  };
  for (const auto& test : cases) {
    const std::optional<std::string> refusal = policy.RefusesHost(test.host, test.port);
    EXPECT_EQ(!refusal.has_value(), test.listed) << test.host << ":" << test.port;
  }
  EXPECT_EQ(*policy.RefusesHost("evil.test", 443),
            "host evil.test is not in this tool's list (allowed: api.example.com:80,443, "
            "*.example.org:443, shop.test:80,8443, 8.8.8.8:53, [2606:4700::1111]:80,443, "
            "x.example.org:22)");
  EXPECT_THAT(*policy.RefusesHost("shop.test", 443),
              HasSubstr("port 443 of host shop.test is not"));
  EXPECT_THAT(*MustParsePolicy({}).RefusesHost("a.test", 80), HasSubstr("(allowed: none)"));
}

TEST(EgressPolicyTest, RefusesWhatIsNoRuleAndSaysWhatToWrite) {
  const struct {
    const char* text;
    const char* advice;
  } cases[] = {
      {"", "write a name"},
      {"https://example.com", "without scheme"},
      {"example.com/path", "without scheme and path"},
      {"user@example.com", "without a user name"},
      {"example.com.", "without the dot"},
      {"example.com.:443", "write it without the dot"},
      {"b\xc3\xbc"
       "cher.example",
       "punycode"},
      {"*", "*.example.com"},
      {"*.com", "two labels"},
      {"*.localhost:80", "two labels"},
      {"a.*.com", "*.example.com"},
      {"*a.example.com", "*.example.com"},
      {"*.8.8.8.8", "two labels"},
      {"*.1.2", "write a name"},
      {"a..b", "write a name"},
      {"-a.test", "write a name"},
      {"a-.test", "write a name"},
      {"a b.test", "write a name"},
      {"127.1", "write a name"},
      {"2130706433", "write a name"},
      {"0x7f000001", "write a name"},
      {"0x7f.0.0.0x1", "write a name"},
      {"0177.0.0.1", "write a name"},
      {"1.2.3.4.5", "write a name"},
      {"2606:4700::1111", "in brackets"},
      {"fe80::1", "in brackets"},
      {"[2606:4700::1111", "write a name"},
      {"[8.8.8.8]", "write a name"},
      {"[example.com]:80", "write a name"},
      {"[fe80::1%eth0]", "write a name"},
      {"example.com:", "valid ports"},
      {"example.com:0", "valid ports"},
      {"example.com:65536", "valid ports"},
      {"example.com:99999", "valid ports"},
      {"example.com:080", "valid ports"},
      {"example.com:+80", "valid ports"},
      {"example.com:80,", "valid ports"},
      {"example.com:80,,443", "valid ports"},
      {"example.com:80-90", "valid ports"},
      {"example.com:http", "valid ports"},
      {"example.com:80:443", "valid ports"},
      {"127.0.0.1", "no public address (loopback); see allow_private"},
      {"10.0.0.1:80", "(private); see allow_private"},
      {"[::1]", "(loopback)"},
      {"169.254.169.254", "(cloud metadata)"},
      {"168.63.129.16:80", "(cloud metadata)"},
      {"[::ffff:8.8.8.8]", "(IPv4-mapped)"},
  };
  for (const auto& test : cases) {
    const std::vector<std::string> hosts = {"good.test", test.text};
    const absl::Status status = EgressPolicy::Parse(hosts).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.text;
    EXPECT_THAT(Text(status), HasSubstr("'" + std::string(test.text) + "'"));
    EXPECT_THAT(Text(status), HasSubstr(test.advice)) << test.text;
  }
  const std::string long_label(64, 'a');
  std::string long_name = "a.test";
  while (long_name.size() <= 253) long_name = "a." + long_name;
  for (const std::string& name : {long_label + ".test", long_name, std::string("a\0b.test", 8)})
    EXPECT_FALSE(EgressPolicy::Parse(std::vector<std::string>{name}).ok()) << name;
}

TEST(EgressPolicyTest, AllowPrivateOpensNetworksOfOnesOwnAlone) {
  const EgressPolicy policy =
      MustParsePolicy({"10.1.2.3", "intranet:8080"}, {"10.1.0.0/16", "100.64.0.0/10", "fd00::/8"});
  for (const char* allowed : {"10.1.2.3", "100.64.1.1", "fd00::1"})
    EXPECT_EQ(policy.RefusesAddress(*IpAddress::Parse(allowed)), std::nullopt) << allowed;
  for (const char* refused : {"10.2.0.1", "127.0.0.1", "169.254.169.254", "100.100.100.200",
                              "fd00:ec2::254", "::ffff:10.1.2.3", "fe80::1"})
    EXPECT_TRUE(policy.RefusesAddress(*IpAddress::Parse(refused)).has_value()) << refused;
  EXPECT_EQ(policy.RefusesHost("intranet", 8080), std::nullopt);

  for (const char* wrong :
       {"0.0.0.0/0", "8.8.8.0/24", "10.0.0.0/7", "::/0", "169.254.0.0/16", "2002::/16", "10.1.2.3",
        "10.1.2.3/33", "10.1.2.3/", "10.1.2.3/24", "10.1.2.3/-1", "a/8", "fe80::/10", ""}) {
    const std::vector<std::string> networks = {wrong};
    const absl::Status status = EgressPolicy::Parse({}, networks).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(Text(status), HasSubstr(std::string("'") + wrong)) << wrong;
  }
  EXPECT_FALSE(
      EgressPolicy::Parse(std::vector<std::string>{"169.254.169.254"}, std::vector<std::string>{})
          .ok());
}

TEST(EgressPolicyTest, OnlyPublicAddressesAreReached) {
  const EgressPolicy policy = MustParsePolicy({"a.test"});
  const struct {
    const char* first;
    const char* last;
    const char* what;
  } refused[] = {
      {"0.0.0.0", "0.255.255.255", "this network"},
      {"10.0.0.0", "10.255.255.255", "private"},
      {"100.64.0.0", "100.127.255.255", "carrier-grade NAT"},
      {"127.0.0.0", "127.255.255.255", "loopback"},
      {"169.254.0.0", "169.254.255.255", "link-local"},
      {"169.254.169.254", "169.254.169.254", "cloud metadata"},
      {"100.100.100.200", "100.100.100.200", "cloud metadata"},
      {"168.63.129.16", "168.63.129.16", "cloud metadata"},
      {"172.16.0.0", "172.31.255.255", "private"},
      {"192.0.0.0", "192.0.0.255", "protocol assignments"},
      {"192.0.2.0", "192.0.2.255", "documentation"},
      {"192.88.99.0", "192.88.99.255", "6to4 relay"},
      {"192.168.0.0", "192.168.255.255", "private"},
      {"198.18.0.0", "198.19.255.255", "benchmarking"},
      {"198.51.100.0", "198.51.100.255", "documentation"},
      {"203.0.113.0", "203.0.113.255", "documentation"},
      {"224.0.0.0", "239.255.255.255", "multicast"},
      {"240.0.0.0", "255.255.255.254", "reserved"},
      {"255.255.255.255", "255.255.255.255", "broadcast"},
      {"::", "::", "unspecified"},
      {"::1", "::1", "loopback"},
      {"::2", "::ffff:ffff", "IPv4-compatible"},
      {"::ffff:0.0.0.0", "::ffff:255.255.255.255", "IPv4-mapped"},
      {"::1:0:0:0", "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"},
      {"64:ff9b::", "64:ff9b::ffff:ffff", "NAT64"},
      {"64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "NAT64"},
      {"100::", "100::ffff:ffff:ffff:ffff", "discard-only"},
      {"200::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"},
      {"2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "Teredo"},
      {"2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "protocol assignments"},
      {"2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"},
      {"2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "6to4"},
      {"3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"},
      {"4000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"},
      {"fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private"},
      {"fd00:ec2::254", "fd00:ec2::254", "cloud metadata"},
      {"fd20:ce::254", "fd20:ce::254", "cloud metadata"},
      {"fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"},
      {"fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site-local"},
      {"ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"},
  };
  for (const auto& range : refused) {
    for (const char* text : {range.first, range.last}) {
      const std::optional<IpAddress> address = IpAddress::Parse(text);
      ASSERT_TRUE(address) << text;
      EXPECT_STREQ(NotPublic(*address), range.what) << text;
      EXPECT_THAT(policy.RefusesAddress(*address).value_or("allowed"), HasSubstr(range.what))
          << text;
    }
  }
  for (const char* text :
       {"1.0.0.0",        "8.8.8.8",         "9.255.255.255", "11.0.0.0",        "100.63.255.255",
        "100.128.0.0",    "126.255.255.255", "128.0.0.0",     "169.253.255.255", "169.255.0.0",
        "172.15.255.255", "172.32.0.0",      "192.0.1.0",     "192.0.3.0",       "192.167.255.255",
        "192.169.0.0",    "198.17.255.255",  "198.20.0.0",    "223.255.255.255", "2000::",
        "2001:200::",     "2001:db7:ffff::", "2001:db9::",    "2003::",          "2606:4700::1111",
        "3ffe:ffff::",    "3fff:1000::"}) {
    const std::optional<IpAddress> address = IpAddress::Parse(text);
    ASSERT_TRUE(address) << text;
    EXPECT_EQ(NotPublic(*address), nullptr) << text;
  }
}

TEST(EgressPolicyTest, AnAddressHasOneReading) {
  for (const char* text :
       {"127.1", "0177.0.0.1", "0x7f.0.0.1", "2130706433", "127.0.0.1 ", " 127.0.0.1", "127.0.0.1.",
        "127.0.0.01", "127.0.0.256", "::1%lo", "[::1]", "::1::", "1:2:3:4:5:6:7:8:9", ""})
    EXPECT_EQ(IpAddress::Parse(text), std::nullopt) << text;
  EXPECT_EQ(IpAddress::Parse(std::string_view("127.0.0.1\0.example.com", 22)), std::nullopt);
  EXPECT_EQ(CanonicalHost("2606:4700:0:0::0:1111"), "2606:4700::1111");
  EXPECT_EQ(CanonicalHost("EXAMPLE.Com"), "example.com");
  EXPECT_EQ(CanonicalHost("xn--bcher-kva.example"), "xn--bcher-kva.example");
}

TEST(EgressPolicyTest, RandomNetworksContainWhatSharesTheirBits) {
  const auto seed = std::random_device()();
  std::mt19937 random(seed);
  SCOPED_TRACE(seed);
  for (int round = 0; round < 2000; ++round) {
    IpNetwork network;
    network.address.v6 = random() % 2;
    const int bits = network.address.v6 ? 128 : 32;
    network.prefix = static_cast<int>(random() % (bits + 1));
    for (int bit = 0; bit < network.prefix; ++bit)
      if (random() % 2) network.address.bytes[bit / 8] |= 0x80 >> (bit % 8);
    IpAddress other = network.address;
    for (int bit = network.prefix; bit < bits; ++bit)
      if (random() % 2) other.bytes[bit / 8] ^= 0x80 >> (bit % 8);
    EXPECT_TRUE(network.Contains(other));
    const std::string text = network.address.ToString() + "/" + std::to_string(network.prefix);
    const absl::StatusOr<IpNetwork> parsed = IpNetwork::Parse(text);
    ASSERT_TRUE(parsed.ok()) << text;
    EXPECT_EQ(parsed->address, network.address);
    if (network.prefix == 0) continue;
    const int flipped = static_cast<int>(random() % network.prefix);
    other.bytes[flipped / 8] ^= 0x80 >> (flipped % 8);
    EXPECT_FALSE(network.Contains(other)) << text << " " << other.ToString();
  }
}

TEST(EgressPolicyTest, KnowsThisMachinesAddresses) {
  EXPECT_TRUE(IsThisMachine(*IpAddress::Parse("127.0.0.1")));
  EXPECT_FALSE(IsThisMachine(*IpAddress::Parse("8.8.8.8")));
}

}  // namespace
}  // namespace agentd::sandbox
