// What a server's answers are to the model: text. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_CONTENT_H_
#define AGENTD_TOOLS_MCP_CONTENT_H_

#include <string>

#include "tools/mcp/json_rpc.h"

namespace agentd::tools::mcp {

// The result of tools/call. Texts as they are, one after the other; links and embedded resources
// with their address; what is no text (images, sound, binary resources) named with type and size;
// structured content as JSON, unless one of the texts says the same. "(no output)" for nothing.
std::string ToolResultText(const Json& result);

// The result of resources/read.
std::string ResourceText(const Json& result);

// One line for an entry of resources/list or resources/templates/list.
std::string ResourceLine(const Json& resource);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_CONTENT_H_
