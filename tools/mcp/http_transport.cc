#include "tools/mcp/http_transport.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <thread>

#include "base/status.h"
#include "tools/mcp/header_params.h"
#include "tools/mcp/oauth_client.h"
#include "tools/mcp/sse.h"
#include "tools/mcp/url.h"
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
// Of one request that the server refuses for its token, again and again.
constexpr int kMaxGrants = 3;
// For the listener's stream to be there before the first call.
constexpr int kListenStartMs = 2'000;
// The listener is woken when it is to end; this is how often it looks besides.
constexpr int kListenLookMs = 60'000;
constexpr int64_t kMaxListenPauseMs = 60'000;
// Of one listening stream; more than its connection lives.
constexpr int64_t kListenMs = int64_t{365} * 24 * 3600 * 1000;

// Waits for nothing but the end of a time.
class DeadlineWaiter : public Waiter {
 public:
  explicit DeadlineWaiter(int64_t ms) : end_(Clock::now() + std::chrono::milliseconds(ms)) {}
  bool Ended() override { return Clock::now() >= end_; }
  void WaitFor(int64_t ms) override { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

 private:
  const Clock::time_point end_;
};

bool IsVisibleAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7F; });
}

}  // namespace

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
           const char* method, const std::string& body, const std::string& token);
  ~Transfer() {
    curl_easy_reset(handles_.easy);  // it points into this
    curl_slist_free_all(headers_);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Until it is done, waiting is over or `aborted`, which is looked at so often.
  void Run(Waiter& waiter, const Receiver& receiver, const std::atomic<bool>& aborted,
           int look_ms = kHttpLookMs);

  bool failed() const { return code_ != CURLE_OK; }
  std::string failure() const;
  long status() const { return status_; }
  bool is_stream() const { return is_stream_; }
  const std::string& body() const { return body_; }
  const std::string& last_id() const { return parser_.last_id(); }
  std::optional<int64_t> retry_ms() const { return parser_.retry_ms(); }
  const std::string& token() const { return token_; }
  // Called once, in Run, as soon as the server has begun to answer.
  void OnAnswer(std::function<void()> call) { on_answer_ = std::move(call); }
  // The values of all headers of that name, with ", " between them.
  std::string Header(const char* name) const;
  // What a server that wants another token, or one for more, says; nullopt if it wants none.
  std::optional<Challenge> Refusal() const;

 private:
  static size_t OnHeader(char* data, size_t size, size_t count, void* self);
  static size_t OnBody(char* data, size_t size, size_t count, void* self);
  void Deliver(const Receiver& receiver);

  Handles& handles_;
  const std::string token_;  // that it was sent with; "" none
  std::function<void()> on_answer_;
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
                                  const std::string& body, const std::string& token)
    : handles_(handles), token_(token) {
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
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, &Transfer::OnHeader);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, this);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Transfer::OnBody);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, this);
  if (const auto url = ParseUrl(options.url); url.ok() && url->loopback())
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
  const std::string_view verb = method;
  if (verb == "POST") {
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
    curl_easy_setopt(easy, CURLOPT_COPYPOSTFIELDS, body.c_str());
  } else if (verb != "GET") {
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
  }
}

size_t HttpTransport::Transfer::OnHeader(char* data, size_t size, size_t count, void* self) {
  Transfer& transfer = *static_cast<Transfer*>(self);
  const std::string_view line(data, size * count);
  if (line == "\r\n" && transfer.on_answer_) std::exchange(transfer.on_answer_, nullptr)();
  return line.size();
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
                                  const std::atomic<bool>& aborted, int look_ms) {
  AGENTD_CHECK(curl_multi_add_handle(handles_.multi, handles_.easy) == CURLM_OK);
  int running = 1;
  while (running > 0) {
    if (curl_multi_perform(handles_.multi, &running) != CURLM_OK) break;
    Deliver(receiver);
    if (waiter.Ended() || aborted) break;
    if (running > 0) curl_multi_poll(handles_.multi, nullptr, 0, look_ms, nullptr);
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
  std::string all;
  curl_header* header = nullptr;
  for (size_t i = 0;
       curl_easy_header(handles_.easy, name, i, CURLH_HEADER, -1, &header) == CURLHE_OK; ++i)
    all += (i == 0 ? "" : ", ") + std::string(header->value);
  return all;
}

std::optional<Challenge> HttpTransport::Transfer::Refusal() const {
  if (failed() || (status_ != 401 && status_ != 403)) return std::nullopt;
  Challenge challenge = ParseChallenge(Header("www-authenticate"));
  if (status_ == 403 && challenge.error != "insufficient_scope") return std::nullopt;
  return challenge;
}

HttpTransport::HttpTransport(HttpOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<HttpTransport>> HttpTransport::Create(HttpOptions options) {
  RETURN_IF_ERROR(ParseUrl(options.url).status());
  return std::unique_ptr<HttpTransport>(new HttpTransport(std::move(options)));
}

HttpTransport::~HttpTransport() {
  Finish();
  aborted_ = true;  // the listener may be answering something
  StopListening();
}

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

std::vector<std::string> HttpTransport::HeadersFor(const Outgoing& message,
                                                   const std::string& token) const {
  std::vector<std::string> headers = {"Content-Type: application/json",
                                      "Accept: application/json, text/event-stream",
                                      "Expect:"};  // libcurl's own would cost a round trip
  for (const auto& [name, value] : options_.headers)
    headers.push_back(fmt::format("{}: {}", name, value));
  if (!token.empty()) headers.push_back("Authorization: Bearer " + token);
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

absl::StatusOr<std::string> HttpTransport::Token(Waiter& waiter) const {
  if (options_.oauth == nullptr) return "";
  return options_.oauth->AccessToken([&] { return aborted_ || waiter.Ended(); });
}

absl::Status HttpTransport::Send(const Outgoing& message, Waiter* waiter) {
  DeadlineWaiter own(kNotificationMs);
  Waiter& waits = waiter != nullptr ? *waiter : own;
  for (int grants = 0;; ++grants) {
    RETURN_IF_ERROR(Health());
    const absl::StatusOr<bool> done =
        TryOnce(message, waits, waiter != nullptr, grants < kMaxGrants);
    if (waiter != nullptr && waiter->Ended()) return absl::OkStatus();
    if (!done.ok()) return done.status();
    if (*done) return absl::OkStatus();
  }
}

// False: the server wanted another token, which there is now.
absl::StatusOr<bool> HttpTransport::TryOnce(const Outgoing& message, Waiter& waiter, bool waits,
                                            bool may_renew) {
  ASSIGN_OR_RETURN(const std::string token, Token(waiter));
  std::unique_ptr<Handles> handles = Take();
  std::optional<Challenge> refusal;
  absl::Status status;
  long code = 0;
  {
    Transfer transfer(*handles, options_, HeadersFor(message, token), "POST", message.text, token);
    status = Exchange(transfer, message, waiter, waits);
    if (options_.oauth != nullptr) refusal = transfer.Refusal();
    code = transfer.status();
  }
  GiveBack(std::move(handles));
  if (!refusal) {
    if (!status.ok()) return status;
    return true;
  }
  if (!may_renew)
    return Error(status.code(), "it refused {} new tokens in a row for one request ({})",
                 kMaxGrants, Text(status));
  const absl::Status granted =
      options_.oauth->Refused(code, *refusal, token, [&] { return aborted_ || waiter.Ended(); });
  if (granted.ok()) return false;
  // InvalidArgument would be a refusal of the message, as of one that an older server does not
  // know.
  const absl::StatusCode why = granted.code() == absl::StatusCode::kInvalidArgument
                                   ? absl::StatusCode::kFailedPrecondition
                                   : granted.code();
  return Error(why, "{} ({})", Text(granted), Text(status));
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
    std::vector<std::string> headers = HeadersFor({}, before.token());
    headers.push_back("Last-Event-ID: " + last_id);
    std::unique_ptr<Handles> handles = Take();
    {
      Transfer transfer(*handles, options_, headers, "GET", "", before.token());
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
  std::string body = transfer.body().substr(0, kShownBodyBytes);
  // It may say what it was sent.
  if (!transfer.token().empty() && transfer.body().find(transfer.token()) != std::string::npos)
    body.clear();
  body = Trimmed(CleanUtf8(body));
  std::string why = fmt::format("HTTP {}{}{}", code, body.empty() ? "" : ": ", body);
  if (code / 100 == 2) return absl::UnavailableError("its answer is no JSON-RPC message: " + why);
  if (code / 100 == 3)
    return FailedPrecondition("{}: it redirects to \"{}\"; if that is the server, configure it so",
                              why, CleanUtf8(transfer.Header("location")));
  if (code == 401)
    return absl::UnauthenticatedError(
        why + (options_.oauth == nullptr ? ": it wants other credentials" : ""));
  if (code == 403) return absl::PermissionDeniedError(why);
  return code >= 500 || code == 429 || code == 408 ? absl::UnavailableError(why)
                                                   : absl::InvalidArgumentError(why);
}

void HttpTransport::Listen() {
  listener_ = std::thread([this] { RunListener(); });
  // What a server says before the stream is there, such as a question during the first call, is
  // lost with many.
  std::unique_lock lock(mutex_);
  listener_changed_.wait_for(lock, std::chrono::milliseconds(kListenStartMs),
                             [this] { return heard_ || deaf_; });
}

// A GET that stays open brings what the server sends outside of answers. One that ends is asked for
// again from its last event on, after the time that the server named.
void HttpTransport::RunListener() {
  std::string last_id;
  int64_t pause_ms = kDefaultRetryMs;
  while (ListenOnce(last_id, pause_ms)) {
    std::unique_lock lock(mutex_);
    listener_changed_.wait_for(lock, std::chrono::milliseconds(pause_ms),
                               [this] { return deaf_.load(); });
  }
}

// Whether to ask again.
bool HttpTransport::ListenOnce(std::string& last_id, int64_t& pause_ms) {
  DeadlineWaiter waiter(kListenMs);
  const absl::StatusOr<std::string> token = Token(waiter);
  std::vector<std::string> headers = HeadersFor({}, token.ok() ? *token : "");
  if (!last_id.empty()) headers.push_back("Last-Event-ID: " + last_id);
  Handles* handles = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (deaf_) return false;
    listening_ = std::make_unique<Handles>();
    handles = listening_.get();
  }
  bool again = false;
  {
    Transfer transfer(*handles, options_, headers, "GET", "", token.ok() ? *token : "");
    const auto heard = [this] {
      const std::lock_guard lock(mutex_);
      heard_ = true;
      listener_changed_.notify_all();
    };
    transfer.OnAnswer(heard);
    transfer.Run(waiter, receiver_, deaf_, kListenLookMs);
    heard();
    if (!transfer.last_id().empty()) last_id = transfer.last_id();
    // A server without such a stream answers with 405; one that failed may come back. Calls renew
    // a token that has run out.
    again = transfer.failed() || transfer.is_stream() || transfer.status() / 100 == 5 ||
            transfer.status() == 401;
    const bool well = !transfer.failed() && transfer.is_stream();
    pause_ms = well ? transfer.retry_ms().value_or(kDefaultRetryMs)
                    : std::min(pause_ms * 2, kMaxListenPauseMs);
  }
  const std::lock_guard lock(mutex_);
  listening_.reset();
  return again && !deaf_ && why_dead_.empty();
}

void HttpTransport::StopListening() {
  {
    const std::lock_guard lock(mutex_);
    deaf_ = true;
    if (listening_ != nullptr) curl_multi_wakeup(listening_->multi);
    listener_changed_.notify_all();
  }
  if (listener_.joinable()) listener_.join();
}

void HttpTransport::Abort() {
  aborted_ = true;
  const std::lock_guard lock(mutex_);
  deaf_ = true;
  if (listening_ != nullptr) curl_multi_wakeup(listening_->multi);
  listener_changed_.notify_all();
}

void HttpTransport::Finish() {
  {
    const std::lock_guard lock(mutex_);
    if (session_id_.empty() || !why_dead_.empty()) return;
  }
  DeadlineWaiter waiter(kGoodbyeMs);
  const absl::StatusOr<std::string> token = Token(waiter);
  const std::vector<std::string> headers = HeadersFor({}, token.ok() ? *token : "");
  {
    const std::lock_guard lock(mutex_);
    why_dead_ = "its session was ended";
  }
  std::unique_ptr<Handles> handles = Take();
  Transfer transfer(*handles, options_, headers, "DELETE", "", token.ok() ? *token : "");
  transfer.Run(
      waiter, [](const Message&, std::string_view) {}, aborted_);
}

}  // namespace agentd::tools::mcp
