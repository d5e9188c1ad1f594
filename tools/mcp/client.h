// An MCP client: one connection to one server, in the revision that both know. Private to
// tools/mcp/; servers.h is what the daemon uses.
#ifndef AGENTD_TOOLS_MCP_CLIENT_H_
#define AGENTD_TOOLS_MCP_CLIENT_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "sandbox/sandbox.h"
#include "tools/mcp/config.h"
#include "tools/mcp/json_rpc.h"
#include "tools/mcp/transport.h"

namespace agentd::tools::mcp {

// Since this revision requests stand alone; before it a handshake ("initialize") begins a session.
inline constexpr char kStatelessRevision[] = "2026-07-28";

enum class Era { kUnknown, kHandshake, kStateless };

// Answers what a server asks of a person (method "elicitation/create" and its parameters): the
// result, or a Status whose message the server is told. Called by the thread of the call or by the
// connection's reader.
using InputHandler =
    std::function<absl::StatusOr<Json>(const std::string& method, const Json& params)>;

struct ClientOptions {
  Timeouts timeouts;
  Era era = Era::kUnknown;  // of a server that was asked before
  InputHandler input;       // may be empty: then servers are told that nobody can be asked
};

// Of one request.
struct RequestOptions {
  const sandbox::CancelFlag* cancel = nullptr;
  std::function<void(std::string_view)> on_progress;  // called by the thread that waits
  int64_t timeout_ms = 0;                             // 0: Timeouts::call_ms
  std::vector<std::pair<std::string, std::string>> headers;
};

// What a server answered: a result, or an error of its own.
struct Reply {
  Json result;
  std::optional<RpcError> error;
  std::string text;  // the whole message
};

struct ServerInfo {
  Era era = Era::kUnknown;
  std::string revision;
  std::string name;
  std::string version;
  bool has_tools = false;
  bool has_resources = false;
};

// Any thread. Errors of all requests: Unavailable the connection is lost (see health),
// DeadlineExceeded, Cancelled; InvalidArgument, Unauthenticated, PermissionDenied and
// FailedPrecondition from HTTP.
class Client {
 public:
  using Open = std::function<absl::StatusOr<std::unique_ptr<Transport>>()>;

  // Finds out which revision the server speaks. `open` is called a second time when a server of an
  // older revision ends at a question that it does not know.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const Open& open, ClientOptions options,
                                                         const sandbox::CancelFlag* cancel);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  const ServerInfo& server() const { return info_; }
  bool is_http() const { return transport_->is_http(); }

  // `params` without _meta. `arguments`: see RequestText.
  absl::StatusOr<Reply> Request(const std::string& method, const Json& params,
                                const RequestOptions& options, std::string_view arguments = {});
  // All pages of a list: calls `add` with the text of each page's message and its result.
  absl::Status List(const std::string& method, const RequestOptions& options,
                    const std::function<absl::Status(const Reply&)>& add);

  // Whether the connection lives, and if not why.
  absl::Status health() const { return transport_->Health(); }
  std::string clues() const { return transport_->Clues(); }
  // A request was not answered in time or was cancelled: the server may hang.
  bool suspect() const { return suspect_; }
  // Asks it something that every server answers at once.
  absl::Status CheckAlive(const sandbox::CancelFlag* cancel);
  // How often the server has said that its tools are others now.
  int64_t tool_changes() const { return tool_changes_; }
  // See Transport.
  void Finish() { transport_->Finish(); }
  void Abort() { transport_->Abort(); }

 private:
  struct Pending;
  class Wait;

  Client(std::unique_ptr<Transport> transport, ClientOptions options);
  absl::Status Negotiate(const sandbox::CancelFlag* cancel, bool* ended_at_probe);
  absl::StatusOr<bool> Probe(const sandbox::CancelFlag* cancel, bool* ended_at_probe);
  absl::Status Initialize(const sandbox::CancelFlag* cancel);
  void TakeInfo(const Json& result, const Json& server_info);

  absl::StatusOr<Reply> RequestOnce(const std::string& method, const Json& params,
                                    const RequestOptions& options, std::string_view arguments);
  absl::StatusOr<Json> AnswersFor(const Json& input_requests);
  absl::Status GiveUp(int64_t id, const std::string& method, const Wait& wait, int64_t timeout_ms);
  Json Capabilities() const;
  Json WithMeta(Json params, int64_t progress_token) const;
  void OnMessage(Message message, std::string_view text);
  void OnRequest(const Message& request);
  void OnNotification(const Message& notification);

  const ClientOptions options_;
  ServerInfo info_;  // constant once connected
  std::atomic<int64_t> next_id_{1};
  std::atomic<bool> suspect_{false};
  std::atomic<int64_t> tool_changes_{0};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, Pending*> pending_;  // guarded by mutex_

  const std::unique_ptr<Transport> transport_;  // last: its reader uses what is above
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_CLIENT_H_
