// MCP over streamable HTTP: each message is a POST, the answer JSON or a stream of events.
#ifndef AGENTD_TOOLS_MCP_HTTP_TRANSPORT_H_
#define AGENTD_TOOLS_MCP_HTTP_TRANSPORT_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/mcp/transport.h"

namespace agentd::tools::mcp {

class OAuthClient;

struct HttpOptions {
  std::string url;                                           // http or https
  std::vector<std::pair<std::string, std::string>> headers;  // sent with each request
  OAuthClient* oauth = nullptr;  // whose tokens go with each request; null: none do
};

// Each transfer runs in the thread that sends; Listen has one of its own. Redirects are errors
// (they would carry the headers to another place), certificates are checked, answers are not
// compressed. A proxy named by the environment is used, but not for this machine itself.
class HttpTransport : public Transport {
 public:
  // InvalidArgument if libcurl cannot use the URL.
  static absl::StatusOr<std::unique_ptr<HttpTransport>> Create(HttpOptions options);
  ~HttpTransport() override;
  HttpTransport(const HttpTransport&) = delete;
  HttpTransport& operator=(const HttpTransport&) = delete;

  void Start(Receiver receiver) override;
  absl::Status Send(const Outgoing& message, Waiter* waiter) override;
  absl::Status Health() const override;
  void SetProtocol(const std::string& version, bool stateless) override;
  bool is_http() const override { return true; }
  void Listen() override;
  void Finish() override;
  void Abort() override;

 private:
  class Transfer;
  struct Handles;

  explicit HttpTransport(HttpOptions options);
  absl::StatusOr<bool> TryOnce(const Outgoing& message, Waiter& waiter, bool waits, bool may_renew);
  absl::Status Exchange(Transfer& transfer, const Outgoing& message, Waiter& waiter, bool waits);
  absl::Status Resume(const Transfer& before, const Outgoing& message, Waiter& waiter);
  absl::Status Outcome(const Transfer& transfer, const Outgoing& message, bool waits);
  std::vector<std::string> HeadersFor(const Outgoing& message, const std::string& token) const;
  void RunListener();
  bool ListenOnce(std::string& last_id, int64_t& pause_ms);
  void StopListening();
  absl::StatusOr<std::string> Token(Waiter& waiter) const;
  std::unique_ptr<Handles> Take();
  void GiveBack(std::unique_ptr<Handles> handles);

  const HttpOptions options_;
  Receiver receiver_;
  std::atomic<bool> aborted_{false};
  std::atomic<bool> deaf_{false};  // the listener is to end
  std::thread listener_;           // started and joined by whoever owns the transport

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<std::unique_ptr<Handles>> idle_;  // with their connections
  std::string protocol_;                        // "" until both sides agreed
  bool stateless_ = false;
  std::string session_id_;  // "" if the server has none
  std::string why_dead_;
  std::unique_ptr<Handles> listening_;  // what the listener waits on; null before and after
  bool heard_ = false;                  // the server has begun to answer the listener
  std::condition_variable listener_changed_;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_HTTP_TRANSPORT_H_
