#include "tools/mcp/http_transport.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>

#include "base/status.h"
#include "tools/mcp/header_params.h"
#include "tools/mcp/sse.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kHttpLookMs = 20;
constexpr long kConnectMs = 10'000;
// For messages that nobody waits for.
constexpr int64_t kNotificationMs = 10'000;
constexpr int64_t kGoodbyeMs = 2'000;
// Of a stream that broke, without anything new in between.
constexpr int kMaxResumes = 5;
constexpr int64_t kDefaultRetryMs = 1'000;
constexpr size_t kShownBodyBytes = 300;

// Waits for nothing but the end of a time.
class DeadlineWaiter : public Waiter {
 public:
  explicit DeadlineWaiter(int64_t ms) : end_(Clock::now() + std::chrono::milliseconds(ms)) {}
  bool Ended() override { return Clock::now() >= end_; }
  void WaitFor(int64_t ms) override { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

 private:
  const Clock::time_point end_;
};

void InitCurl() {
  static const CURLcode kDone = curl_global_init(CURL_GLOBAL_DEFAULT);
  AGENTD_CHECK(kDone == CURLE_OK);
}

bool IsVisibleAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7F; });
}

// The part of a URL, "" if it has none.
std::string UrlPart(CURLU* url, CURLUPart part) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, 0) != CURLUE_OK) return "";
  std::string copy(text);
  curl_free(text);
  return copy;
}

}  // namespace

absl::StatusOr<UrlKind> KindOfUrl(const std::string& url) {
  InitCurl();
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> parsed(curl_url(), curl_url_cleanup);
  AGENTD_CHECK(parsed != nullptr);
  if (curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK)
    return InvalidArgument("\"{}\" is not a URL", url);
  const std::string scheme = UrlPart(parsed.get(), CURLUPART_SCHEME);
  if (scheme != "http" && scheme != "https")
    return InvalidArgument("\"{}\": only http and https are possible", url);
  if (!UrlPart(parsed.get(), CURLUPART_USER).empty())
    return InvalidArgument("the URL holds a user name: give an Authorization header instead");
  const std::string host = UrlPart(parsed.get(), CURLUPART_HOST);
  return UrlKind{.encrypted = scheme == "https",
                 .loopback = host == "localhost" || host == "[::1]" || host.starts_with("127.")};
}

// An easy handle and the multi handle that runs it: together they keep a connection open.
struct HttpTransport::Handles {
  Handles() : multi(curl_multi_init()), easy(curl_easy_init()) {
    AGENTD_CHECK(multi != nullptr && easy != nullptr);
  }
  ~Handles() {
    curl_easy_cleanup(easy);
    curl_multi_cleanup(multi);
  }
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;

  CURLM* const multi;
  CURL* const easy;
};

// One HTTP request and what came back so far.
class HttpTransport::Transfer {
 public:
  Transfer(Handles& handles, const HttpOptions& options, const std::vector<std::string>& headers,
           const char* method, const std::string& body);
  ~Transfer() {
    curl_easy_reset(handles_.easy);  // it points into this
    curl_slist_free_all(headers_);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Until it is done, waiting is over or `aborted`.
  void Run(Waiter& waiter, const Receiver& receiver, const std::atomic<bool>& aborted);

  bool failed() const { return code_ != CURLE_OK; }
  std::string failure() const;
  long status() const { return status_; }
  bool is_stream() const { return is_stream_; }
  const std::string& body() const { return body_; }
  const std::string& last_id() const { return parser_.last_id(); }
  std::optional<int64_t> retry_ms() const { return parser_.retry_ms(); }
  std::string Header(const char* name) const;

 private:
  static size_t OnBody(char* data, size_t size, size_t count, void* self);
  void Deliver(const Receiver& receiver);

  Handles& handles_;
  curl_slist* headers_ = nullptr;
  char error_[CURL_ERROR_SIZE] = "";
  CURLcode code_ = CURLE_OK;
  long status_ = 0;
  bool is_stream_ = false;
  bool too_long_ = false;
  SseParser parser_{kMaxMessageBytes};
  std::vector<SseEvent> events_;
  std::string body_;
};

HttpTransport::Transfer::Transfer(Handles& handles, const HttpOptions& options,
                                  const std::vector<std::string>& headers, const char* method,
                                  const std::string& body)
    : handles_(handles) {
  CURL* const easy = handles_.easy;
  curl_easy_reset(easy);
  for (const std::string& header : headers) headers_ = curl_slist_append(headers_, header.c_str());
  curl_easy_setopt(easy, CURLOPT_URL, options.url.c_str());
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, kConnectMs);
  curl_easy_setopt(easy, CURLOPT_USERAGENT, "agentd");
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error_);
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers_);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Transfer::OnBody);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, this);
  if (const auto kind = KindOfUrl(options.url); kind.ok() && kind->loopback)
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
  const std::string_view verb = method;
  if (verb == "POST") {
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
    curl_easy_setopt(easy, CURLOPT_COPYPOSTFIELDS, body.c_str());
  } else if (verb != "GET") {
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
  }
}

size_t HttpTransport::Transfer::OnBody(char* data, size_t size, size_t count, void* self) {
  Transfer& transfer = *static_cast<Transfer*>(self);
  const std::string_view bytes(data, size * count);
  if (transfer.status_ == 0) {
    CURL* const easy = transfer.handles_.easy;
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &transfer.status_);
    char* type = nullptr;
    curl_easy_getinfo(easy, CURLINFO_CONTENT_TYPE, &type);
    transfer.is_stream_ = transfer.status_ / 100 == 2 && type != nullptr &&
                          std::string_view(type).starts_with("text/event-stream");
  }
  if (transfer.is_stream_) {
    transfer.too_long_ = !transfer.parser_.Feed(bytes, transfer.events_);
  } else {
    transfer.too_long_ = transfer.body_.size() + bytes.size() > kMaxMessageBytes;
    if (!transfer.too_long_) transfer.body_ += bytes;
  }
  return transfer.too_long_ ? 0 : bytes.size();
}

// Messages are handled outside of libcurl's callbacks, because the receiver may send.
void HttpTransport::Transfer::Deliver(const Receiver& receiver) {
  for (const SseEvent& event : std::exchange(events_, {})) {
    absl::StatusOr<Message> message = ParseMessage(event.data);
    if (message.ok()) receiver(*std::move(message), event.data);
  }
}

void HttpTransport::Transfer::Run(Waiter& waiter, const Receiver& receiver,
                                  const std::atomic<bool>& aborted) {
  AGENTD_CHECK(curl_multi_add_handle(handles_.multi, handles_.easy) == CURLM_OK);
  int running = 1;
  while (running > 0) {
    if (curl_multi_perform(handles_.multi, &running) != CURLM_OK) break;
    Deliver(receiver);
    if (waiter.Ended() || aborted) break;
    if (running > 0) curl_multi_poll(handles_.multi, nullptr, 0, kHttpLookMs, nullptr);
  }
  int left = 0;
  while (const CURLMsg* message = curl_multi_info_read(handles_.multi, &left))
    if (message->msg == CURLMSG_DONE) code_ = message->data.result;
  curl_easy_getinfo(handles_.easy, CURLINFO_RESPONSE_CODE, &status_);
  // A transfer that is not done is aborted by this: the server sees its stream closed.
  curl_multi_remove_handle(handles_.multi, handles_.easy);
}

std::string HttpTransport::Transfer::failure() const {
  if (too_long_) return fmt::format("it sent a message of more than {} bytes", kMaxMessageBytes);
  return error_[0] != '\0' ? error_ : curl_easy_strerror(code_);
}

std::string HttpTransport::Transfer::Header(const char* name) const {
  curl_header* header = nullptr;
  if (curl_easy_header(handles_.easy, name, 0, CURLH_HEADER, -1, &header) != CURLHE_OK) return "";
  return header->value;
}

HttpTransport::HttpTransport(HttpOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<HttpTransport>> HttpTransport::Create(HttpOptions options) {
  RETURN_IF_ERROR(KindOfUrl(options.url).status());
  return std::unique_ptr<HttpTransport>(new HttpTransport(std::move(options)));
}

HttpTransport::~HttpTransport() { Finish(); }

void HttpTransport::Start(Receiver receiver) { receiver_ = std::move(receiver); }

absl::Status HttpTransport::Health() const {
  if (aborted_) return absl::UnavailableError("the connection was ended");
  const std::lock_guard lock(mutex_);
  return why_dead_.empty() ? absl::OkStatus() : absl::UnavailableError(why_dead_);
}

void HttpTransport::SetProtocol(const std::string& version, bool stateless) {
  const std::lock_guard lock(mutex_);
  protocol_ = version;
  stateless_ = stateless;
}

std::unique_ptr<HttpTransport::Handles> HttpTransport::Take() {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) return std::make_unique<Handles>();
  std::unique_ptr<Handles> handles = std::move(idle_.back());
  idle_.pop_back();
  return handles;
}

void HttpTransport::GiveBack(std::unique_ptr<Handles> handles) {
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(handles));
}

std::vector<std::string> HttpTransport::HeadersFor(const Outgoing& message) const {
  std::vector<std::string> headers = {"Content-Type: application/json",
                                      "Accept: application/json, text/event-stream",
                                      "Expect:"};  // libcurl's own would cost a round trip
  for (const auto& [name, value] : options_.headers)
    headers.push_back(fmt::format("{}: {}", name, value));
  const std::lock_guard lock(mutex_);
  if (!protocol_.empty()) headers.push_back("MCP-Protocol-Version: " + protocol_);
  if (!session_id_.empty()) headers.push_back("Mcp-Session-Id: " + session_id_);
  if (!stateless_ || message.method.empty()) return headers;
  headers.push_back("Mcp-Method: " + message.method);
  if (!message.name.empty()) headers.push_back("Mcp-Name: " + EncodeHeaderValue(message.name));
  for (const auto& [name, value] : message.headers)
    headers.push_back(fmt::format("{}: {}", name, value));
  return headers;
}

absl::Status HttpTransport::Send(const Outgoing& message, Waiter* waiter) {
  RETURN_IF_ERROR(Health());
  DeadlineWaiter own(kNotificationMs);
  std::unique_ptr<Handles> handles = Take();
  absl::Status status;
  {
    Transfer transfer(*handles, options_, HeadersFor(message), "POST", message.text);
    status = Exchange(transfer, message, waiter != nullptr ? *waiter : own, waiter != nullptr);
  }
  GiveBack(std::move(handles));
  return status;
}

absl::Status HttpTransport::Exchange(Transfer& transfer, const Outgoing& message, Waiter& waiter,
                                     bool waits) {
  transfer.Run(waiter, receiver_, aborted_);
  if (message.method == "initialize") {
    const std::string id = transfer.Header("mcp-session-id");
    const std::lock_guard lock(mutex_);
    session_id_ = IsVisibleAscii(id) ? id : "";
  }
  if (waits && waiter.Ended()) return absl::OkStatus();
  bool resumable = waits && !transfer.last_id().empty();
  {
    const std::lock_guard lock(mutex_);
    resumable = resumable && !stateless_;
  }
  if (resumable) return Resume(transfer, message, waiter);
  return Outcome(transfer, message, waits);
}

// A stream that ended before the answer is asked for again from its last event on, after the time
// that the server named. Until 2025-11-25; there is no such thing since 2026-07-28.
absl::Status HttpTransport::Resume(const Transfer& before, const Outgoing& message,
                                   Waiter& waiter) {
  std::string last_id = before.last_id();
  int64_t retry_ms = before.retry_ms().value_or(kDefaultRetryMs);
  absl::Status status = absl::UnavailableError("the connection was ended");
  for (int tries = 0; tries < kMaxResumes; ++tries) {
    const Clock::time_point at = Clock::now() + std::chrono::milliseconds(retry_ms);
    while (!waiter.Ended() && !aborted_ && Clock::now() < at) waiter.WaitFor(kHttpLookMs);
    if (waiter.Ended()) return absl::OkStatus();
    if (aborted_) break;
    std::vector<std::string> headers = HeadersFor({});
    headers.push_back("Last-Event-ID: " + last_id);
    std::unique_ptr<Handles> handles = Take();
    {
      Transfer transfer(*handles, options_, headers, "GET", "");
      transfer.Run(waiter, receiver_, aborted_);
      if (waiter.Ended()) return absl::OkStatus();  // the handles go with their connection
      status = Outcome(transfer, message, true);
      if (!transfer.last_id().empty() && transfer.last_id() != last_id) {
        last_id = transfer.last_id();
        tries = 0;
      }
      retry_ms = transfer.retry_ms().value_or(retry_ms);
      if (!transfer.failed() && !transfer.is_stream()) return status;
    }
    GiveBack(std::move(handles));
  }
  return status;
}

absl::Status HttpTransport::Outcome(const Transfer& transfer, const Outgoing& message, bool waits) {
  const long code = transfer.status();
  if (aborted_) return absl::UnavailableError("the connection was ended");
  std::unique_lock lock(mutex_);
  const bool in_session = !session_id_.empty();
  if (transfer.failed()) {
    // The server may come back without its sessions.
    if (in_session) why_dead_ = transfer.failure();
    return absl::UnavailableError(transfer.failure());
  }
  if (in_session && (code == 404 || code == 400)) {
    why_dead_ = fmt::format("it does not know the session any more (HTTP {})", code);
    return absl::UnavailableError(why_dead_);
  }
  lock.unlock();
  if (code / 100 == 2 && !waits) return absl::OkStatus();
  if (transfer.is_stream())
    return absl::UnavailableError("it closed the stream before it had answered");
  absl::StatusOr<Message> answer = ParseMessage(transfer.body());
  if (answer.ok() && waits && code != 401 && code != 403 && code / 100 != 5) {
    // An error may answer what the server could not read; there was only one request.
    if (answer->error && answer->id.is_null()) answer->id = message.id;
    if (answer->kind == Message::Kind::kResponse && answer->id == message.id) {
      receiver_(*std::move(answer), transfer.body());
      return absl::OkStatus();
    }
  }
  std::string body(Trimmed(CleanUtf8(transfer.body().substr(0, kShownBodyBytes))));
  std::string why = fmt::format("HTTP {}{}{}", code, body.empty() ? "" : ": ", body);
  if (code / 100 == 2) return absl::UnavailableError("its answer is no JSON-RPC message: " + why);
  if (code / 100 == 3)
    return FailedPrecondition("{}: it redirects to \"{}\"; if that is the server, configure it so",
                              why, CleanUtf8(transfer.Header("location")));
  if (code == 401) return absl::UnauthenticatedError(why + ": it wants other credentials");
  if (code == 403) return absl::PermissionDeniedError(why);
  return code >= 500 || code == 429 || code == 408 ? absl::UnavailableError(why)
                                                   : absl::InvalidArgumentError(why);
}

void HttpTransport::Finish() {
  {
    const std::lock_guard lock(mutex_);
    if (session_id_.empty() || !why_dead_.empty()) return;
  }
  const std::vector<std::string> headers = HeadersFor({});
  {
    const std::lock_guard lock(mutex_);
    why_dead_ = "its session was ended";
  }
  std::unique_ptr<Handles> handles = Take();
  DeadlineWaiter waiter(kGoodbyeMs);
  Transfer transfer(*handles, options_, headers, "DELETE", "");
  transfer.Run(
      waiter, [](const Message&, std::string_view) {}, aborted_);
}

}  // namespace agentd::tools::mcp
