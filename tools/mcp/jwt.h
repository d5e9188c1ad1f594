// Signed assertions with which a client proves to a token endpoint who it is (RFC 7523). Private to
// tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_JWT_H_
#define AGENTD_TOOLS_MCP_JWT_H_

#include <string>

#include "absl/status/statusor.h"

namespace agentd::tools::mcp {

// Bytes from the system's generator as text: 43 letters, digits, '-' and '_' for 32 bytes.
std::string RandomText();

// A JWT of `client_id` for `audience`, good for some minutes and once, signed with `private_key`
// (PEM): ES256 for a P-256 key, RS256 for an RSA one. InvalidArgument if it is neither.
absl::StatusOr<std::string> ClientAssertion(const std::string& client_id,
                                            const std::string& audience,
                                            const std::string& private_key);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_JWT_H_
