// Any bytes as a rule of the list and as a client's request: no crash, and what passes is one
// request for a listed host as another reader of HTTP sees it.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "sandbox/egress_policy.h"
#include "sandbox/egress_request_testing.h"
#include "sandbox/egress_testing.h"

namespace {

using agentd::sandbox::CanonicalHost;
using agentd::sandbox::EgressPolicy;

void FuzzRule(std::string_view text) {
  const std::vector<std::string> hosts = {std::string(text)};
  const absl::StatusOr<EgressPolicy> policy = EgressPolicy::Parse(hosts);
  if (policy.ok()) {
    // What a rule is shown as is a rule of the same meaning.
    const std::vector<std::string> again = {policy->Describe()};
    const absl::StatusOr<EgressPolicy> second = EgressPolicy::Parse(again);
    AGENTD_CHECK(second.ok() && second->Describe() == policy->Describe());
  }
  if (const auto host = CanonicalHost(text)) AGENTD_CHECK(CanonicalHost(*host) == host);
}

void FuzzRequest(std::string_view bytes) {
  static const EgressPolicy policy = *EgressPolicy::Parse(
      std::vector<std::string>{"a.test", "b.test:8080", "*.c.test", "[2606:4700::1111]:80"});
  const auto prepared = agentd::sandbox::PrepareBytes(bytes, policy);
  if (prepared.status != 0) {
    const std::string answer =
        agentd::sandbox::EgressAnswer({prepared.status, prepared.reason}, false);
    AGENTD_CHECK(answer.find("\r\n\r\n") == answer.size() - 4);
    return;
  }
  AGENTD_CHECK(!policy.RefusesHost(prepared.target.host, prepared.target.port));
  if (prepared.target.tunnel) return;
  AGENTD_CHECK(agentd::sandbox::UpstreamComplaint(prepared.header, prepared.target.host,
                                                  prepared.target.port)
                   .empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 4 == 0) {
    FuzzRule(text);
  } else {
    FuzzRequest(text);
  }
  return 0;
}
