// MCP over streamable HTTP: each message is a POST, the answer JSON or a stream of events.
#ifndef AGENTD_TOOLS_MCP_HTTP_TRANSPORT_H_
#define AGENTD_TOOLS_MCP_HTTP_TRANSPORT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/mcp/transport.h"

namespace agentd::tools::mcp {

struct HttpOptions {
  std::string url;                                           // http or https
  std::vector<std::pair<std::string, std::string>> headers;  // sent with each request
};

struct UrlKind {
  bool encrypted = false;
  bool loopback = false;
};
// InvalidArgument if it is no URL that can be used here.
absl::StatusOr<UrlKind> KindOfUrl(const std::string& url);

// Has no thread: each transfer runs in the thread that sends. Redirects are errors (they would
// carry the headers to another place), certificates are checked, answers are not compressed. A
// proxy named by the environment is used, but not for this machine itself.
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
  void Finish() override;
  void Abort() override { aborted_ = true; }

 private:
  class Transfer;
  struct Handles;

  explicit HttpTransport(HttpOptions options);
  absl::Status Exchange(Transfer& transfer, const Outgoing& message, Waiter& waiter, bool waits);
  absl::Status Resume(const Transfer& before, const Outgoing& message, Waiter& waiter);
  absl::Status Outcome(const Transfer& transfer, const Outgoing& message, bool waits);
  std::vector<std::string> HeadersFor(const Outgoing& message) const;
  std::unique_ptr<Handles> Take();
  void GiveBack(std::unique_ptr<Handles> handles);

  const HttpOptions options_;
  Receiver receiver_;
  std::atomic<bool> aborted_{false};

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<std::unique_ptr<Handles>> idle_;  // with their connections
  std::string protocol_;                        // "" until both sides agreed
  bool stateless_ = false;
  std::string session_id_;  // "" if the server has none
  std::string why_dead_;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_HTTP_TRANSPORT_H_
