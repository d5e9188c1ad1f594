// Tool arguments that a server wants to see as HTTP headers too ("x-mcp-header" in the tool's
// schema, since revision 2026-07-28). Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_HEADER_PARAMS_H_
#define AGENTD_TOOLS_MCP_HEADER_PARAMS_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/mcp/json_rpc.h"

namespace agentd::tools::mcp {

struct HeaderParam {
  std::vector<std::string> path;  // of the argument, from the arguments' root
  std::string name;               // what follows "Mcp-Param-"
};

// Those that `schema` asks for. InvalidArgument if it asks in a way that the specification
// forbids: such a tool must not be offered over HTTP.
absl::StatusOr<std::vector<HeaderParam>> HeaderParamsOf(const Json& schema);

// (header, value) of those that `arguments` gives.
std::vector<std::pair<std::string, std::string>> HeadersFrom(const std::vector<HeaderParam>& params,
                                                             std::string_view arguments);

// `value` as it may stand in a header: itself, or "=?base64?...?=" where it is not plain ASCII.
std::string EncodeHeaderValue(std::string_view value);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_HEADER_PARAMS_H_
