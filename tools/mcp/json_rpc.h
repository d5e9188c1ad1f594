// JSON-RPC 2.0 messages as MCP exchanges them: one JSON object each. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_JSON_RPC_H_
#define AGENTD_TOOLS_MCP_JSON_RPC_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace agentd::tools::mcp {

using Json = nlohmann::json;

inline constexpr int64_t kMethodNotFound = -32601;
inline constexpr int64_t kUnsupportedProtocolVersion = -32022;

struct RpcError {
  int64_t code = 0;
  std::string message;
  Json data;
};

struct Message {
  enum class Kind { kRequest, kNotification, kResponse };
  Kind kind = Kind::kNotification;
  Json id;  // a text or number; null in an error that answers something unreadable
  std::string method;
  Json params;  // an object or null
  Json result;  // of a response that is no error
  std::optional<RpcError> error;
};

// `text` with U+FFFD for bytes that are no UTF-8 and for lone surrogates, which would otherwise
// cost the whole message.
std::string Readable(std::string_view text);

// One message. InvalidArgument says why `text`, once made readable, is none.
absl::StatusOr<Message> ParseMessage(std::string_view text);

// The texts of messages, without line ends. `arguments`, if not empty, is a JSON object that
// becomes the member "arguments" of `params` as it was written: reading and printing a number
// again may change it.
std::string RequestText(int64_t id, std::string_view method, const Json& params,
                        std::string_view arguments = {});
std::string NotificationText(std::string_view method, const Json& params);
std::string ResultText(const Json& id, const Json& result);
std::string ErrorText(const Json& id, int64_t code, std::string_view message);

// Any value as text; never fails.
std::string Dump(const Json& value);

// `object[name]` if it is a text, else "".
std::string StringAt(const Json& object, const char* name);
// `object[name]` or null. `object` may be anything.
const Json& At(const Json& object, const char* name);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_JSON_RPC_H_
