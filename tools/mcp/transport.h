// How MCP messages travel. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_TRANSPORT_H_
#define AGENTD_TOOLS_MCP_TRANSPORT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "tools/mcp/json_rpc.h"

namespace agentd::tools::mcp {

// What a server may send in one message; a longer one ends the connection.
inline constexpr size_t kMaxMessageBytes = size_t{8} << 20;

struct Outgoing {
  std::string text;    // one JSON-RPC message without line ends
  std::string method;  // of a request or notification
  std::string name;    // what it is about: the tool's name, the resource's URI
  Json id;             // of a request or response
  std::vector<std::pair<std::string, std::string>> headers;  // more of them, for HTTP
};

// Who waits for the answer to a request. Used by the thread that waits.
class Waiter {
 public:
  virtual ~Waiter() = default;
  // Whether waiting is over: answered, cancelled or out of time. Does not block.
  virtual bool Ended() = 0;
  // Until waiting may be over, and at most so long.
  virtual void WaitFor(int64_t ms) = 0;
};

// A connection to one server. Send may be called by several threads at once.
class Transport {
 public:
  // Given each message that arrives, and its text, by a thread of the transport or one that is in
  // Send. It may send responses.
  using Receiver = std::function<void(Message, std::string_view)>;

  virtual ~Transport() = default;
  // Once, before the first Send.
  virtual void Start(Receiver receiver) = 0;
  // Sends a message. For a request (`waiter` not null) returns when waiting is over: OK if the
  // waiter says so, else why no answer can come any more. Codes: Unavailable the server or the way
  // to it is gone, InvalidArgument it refused this message, Unauthenticated, PermissionDenied.
  virtual absl::Status Send(const Outgoing& message, Waiter* waiter) = 0;
  // Why no further message can be sent; OK while the connection lives.
  virtual absl::Status Health() const = 0;
  // What a person who looks for the reason of a failure wants to read: the end of what the server
  // wrote to its standard error, lines that were no messages. May be empty.
  virtual std::string Clues() const { return ""; }
  // Of the revision that both sides agreed on; `stateless` since 2026-07-28.
  virtual void SetProtocol(const std::string& version, bool stateless) = 0;
  virtual bool is_http() const = 0;
  // Once, when both sides are ready: from now on takes what the server sends outside of answers,
  // where that needs more than Send. Not for the stateless revision.
  virtual void Listen() {}
  // Tells a server that it can end; it then has a moment to do so before the transport is
  // destroyed.
  virtual void Finish() = 0;
  // Ends the connection at once, and with it whoever is in Send.
  virtual void Abort() = 0;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_TRANSPORT_H_
