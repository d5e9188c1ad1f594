// Any bytes as WWW-Authenticate headers of a refusing server: no crash, nothing that was not in
// them, and the same whatever other schemes stand before, and after it was written out again.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "tools/mcp/oauth_discovery.h"

namespace {

using agentd::tools::mcp::Challenge;
using agentd::tools::mcp::ParseChallenge;
using agentd::tools::mcp::ScopesOf;
using agentd::tools::mcp::ScopeText;

bool Same(const Challenge& a, const Challenge& b) {
  return a.resource_metadata == b.resource_metadata && a.scope == b.scope && a.error == b.error;
}

std::string Quoted(std::string_view value) {
  std::string text = "\"";
  for (char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + "\"";
}

std::string Written(const Challenge& challenge) {
  return "Bearer error=" + Quoted(challenge.error) + ",\tSCOPE = " + Quoted(challenge.scope) +
         ", Resource_Metadata=" + Quoted(challenge.resource_metadata);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string header(reinterpret_cast<const char*>(data), size);
  const Challenge challenge = ParseChallenge(header);
  AGENTD_CHECK(
      challenge.resource_metadata.size() + challenge.scope.size() + challenge.error.size() <= size);
  AGENTD_CHECK(Same(ParseChallenge(Written(challenge)), challenge));
  // Parameters of another scheme are not the Bearer's.
  AGENTD_CHECK(Same(ParseChallenge("Basic realm=\"a, Bearer error=b\", " + header), challenge));
  const Challenge first =
      ParseChallenge(Written({"https://a.example/m", "s", "e"}) + ", " + header);
  AGENTD_CHECK(Same(first, {"https://a.example/m", "s", "e"}));
  const std::vector<std::string> scopes = ScopesOf(challenge.scope);
  AGENTD_CHECK(ScopesOf(ScopeText(scopes)) == scopes);
  return 0;
}
