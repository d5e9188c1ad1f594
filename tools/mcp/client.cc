#include "tools/mcp/client.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <optional>
#include <set>

#include "base/status.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

using Clock = std::chrono::steady_clock;

// Revisions with a handshake, the one to ask for first.
constexpr std::array<std::string_view, 4> kHandshakeRevisions = {"2025-11-25", "2025-06-18",
                                                                 "2025-03-26", "2024-11-05"};
constexpr size_t kMaxProgressWaiting = 64;
constexpr size_t kMaxProgressBytes = 1'000;
constexpr int kMaxPages = 200;
// How often a server may ask for more input during one request.
constexpr int kMaxRounds = 10;
constexpr int kRoundPauseMs = 250;

constexpr char kMetaVersion[] = "io.modelcontextprotocol/protocolVersion";
constexpr char kMetaClient[] = "io.modelcontextprotocol/clientInfo";
constexpr char kMetaCapabilities[] = "io.modelcontextprotocol/clientCapabilities";
constexpr char kMetaServer[] = "io.modelcontextprotocol/serverInfo";

Json ClientInfo() { return Json{{"name", "agentd"}, {"version", AGENTD_VERSION}}; }

std::string ProgressText(const Json& params) {
  const Json& total = At(params, "total");
  std::string text = Dump(At(params, "progress"));
  if (total.is_number()) text += "/" + Dump(total);
  const std::string message = StringAt(params, "message");
  if (!message.empty()) text += " " + message;
  return CleanUtf8(text.substr(0, kMaxProgressBytes)) + "\n";
}

// What a header mirrors of a request.
std::string NameOf(const std::string& method, const Json& params) {
  if (method == "tools/call" || method == "prompts/get") return StringAt(params, "name");
  return method == "resources/read" ? StringAt(params, "uri") : "";
}

bool IsCancelled(const sandbox::CancelFlag* cancel) {
  return cancel != nullptr && cancel->cancelled();
}

}  // namespace

// A request that waits for its answer. Guarded by Client::mutex_.
struct Client::Pending {
  bool answered = false;
  Reply reply;
  std::deque<std::string> progress;
  Clock::time_point heard = Clock::now();  // of it, last
};

// The waiting for one answer.
class Client::Wait : public Waiter {
 public:
  enum class End { kNone, kAnswered, kCancelled, kTimedOut };

  Wait(Client& client, int64_t id, const RequestOptions& options, int64_t timeout_ms)
      : client_(client), id_(id), options_(options), timeout_(timeout_ms) {
    const std::lock_guard lock(client_.mutex_);
    client_.pending_[id_] = &pending_;
  }
  ~Wait() override {
    const std::lock_guard lock(client_.mutex_);
    client_.pending_.erase(id_);
  }

  bool Ended() override {
    std::deque<std::string> progress;
    {
      const std::lock_guard lock(client_.mutex_);
      const Clock::time_point now = Clock::now();
      progress.swap(pending_.progress);
      if (pending_.answered) {
        end_ = End::kAnswered;
      } else if (IsCancelled(options_.cancel)) {
        end_ = End::kCancelled;
      } else if (now >= pending_.heard + timeout_ || now >= last_) {
        end_ = End::kTimedOut;
      }
    }
    if (options_.on_progress)
      for (const std::string& line : progress) options_.on_progress(line);
    return end_ != End::kNone;
  }
  void WaitFor(int64_t ms) override {
    std::unique_lock lock(client_.mutex_);
    client_.changed_.wait_for(lock, std::chrono::milliseconds(ms),
                              [this] { return pending_.answered || !pending_.progress.empty(); });
  }
  End end() const { return end_; }
  // Once answered.
  Reply TakeReply() { return std::move(pending_.reply); }

 private:
  Client& client_;
  const int64_t id_;
  const RequestOptions& options_;
  const std::chrono::milliseconds timeout_;
  const Clock::time_point last_ =
      Clock::now() + std::chrono::milliseconds(client_.options_.timeouts.total_ms);
  Pending pending_;
  End end_ = End::kNone;
};

Client::Client(std::unique_ptr<Transport> transport, ClientOptions options)
    : options_(std::move(options)), transport_(std::move(transport)) {
  transport_->Start(
      [this](Message message, std::string_view text) { OnMessage(std::move(message), text); });
}

Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const Open& open, ClientOptions options,
                                                        const sandbox::CancelFlag* cancel) {
  for (;;) {
    ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, open());
    std::unique_ptr<Client> client(new Client(std::move(transport), options));
    bool ended_at_probe = false;
    const absl::Status status = client->Negotiate(cancel, &ended_at_probe);
    if (status.ok()) return client;
    if (!ended_at_probe) {
      const std::string clues = client->clues();
      return clues.empty() ? status
                           : absl::Status(status.code(), Text(status) + " (" + clues + ")");
    }
    options.era = Era::kHandshake;
  }
}

absl::Status Client::Negotiate(const sandbox::CancelFlag* cancel, bool* ended_at_probe) {
  if (options_.era != Era::kHandshake) {
    ASSIGN_OR_RETURN(const bool stateless, Probe(cancel, ended_at_probe));
    if (stateless) return absl::OkStatus();
  }
  return Initialize(cancel);
}

// Whether the server speaks the stateless revision. Whatever is no clear sign of it is taken for an
// older server; a lost connection or refused credentials say nothing about revisions.
absl::StatusOr<bool> Client::Probe(const sandbox::CancelFlag* cancel, bool* ended_at_probe) {
  info_.era = Era::kStateless;
  info_.revision = kStatelessRevision;
  transport_->SetProtocol(kStatelessRevision, /*stateless=*/true);
  const Timeouts& timeouts = options_.timeouts;
  RequestOptions request{.cancel = cancel};
  request.timeout_ms = transport_->is_http() ? timeouts.start_ms : timeouts.probe_ms;
  for (int tries = 0; tries < 2; ++tries) {
    const absl::StatusOr<Reply> reply = RequestOnce("server/discover", Json::object(), request, {});
    if (!reply.ok()) {
      const absl::StatusCode code = reply.status().code();
      if (transport_->is_http() && code == absl::StatusCode::kInvalidArgument) return false;
      if (!transport_->is_http() && code == absl::StatusCode::kDeadlineExceeded) return false;
      *ended_at_probe = !transport_->is_http() && code == absl::StatusCode::kUnavailable &&
                        options_.era == Era::kUnknown;
      return reply.status();
    }
    const Json& versions =
        reply->error ? At(reply->error->data, "supported") : At(reply->result, "supportedVersions");
    if (reply->error && reply->error->code != kUnsupportedProtocolVersion) return false;
    if (!versions.is_array()) return false;
    const bool known =
        std::find(versions.begin(), versions.end(), kStatelessRevision) != versions.end();
    if (known && !reply->error) {
      TakeInfo(reply->result, At(At(reply->result, "_meta"), kMetaServer));
      return true;
    }
    if (known) continue;  // it refuses the revision that it names: once more, then give up
    for (const Json& version : versions)
      if (version.is_string() && version.get<std::string>() <= kHandshakeRevisions[0]) return false;
    return FailedPrecondition("it speaks only revisions of MCP that are not known here: {}",
                              Dump(versions));
  }
  return FailedPrecondition("it refuses revision {} although it names it", kStatelessRevision);
}

absl::Status Client::Initialize(const sandbox::CancelFlag* cancel) {
  info_.era = Era::kHandshake;
  transport_->SetProtocol("", /*stateless=*/false);
  Json params = {{"protocolVersion", kHandshakeRevisions[0]},
                 {"capabilities", Capabilities()},
                 {"clientInfo", ClientInfo()}};
  RequestOptions request{.cancel = cancel};
  request.timeout_ms = options_.timeouts.start_ms;
  ASSIGN_OR_RETURN(const Reply reply, RequestOnce("initialize", params, request, {}));
  if (reply.error)
    return FailedPrecondition("it refuses to begin: {} (code {})", reply.error->message,
                              reply.error->code);
  info_.revision = StringAt(reply.result, "protocolVersion");
  if (std::find(kHandshakeRevisions.begin(), kHandshakeRevisions.end(), info_.revision) ==
      kHandshakeRevisions.end())
    return FailedPrecondition("it speaks revision \"{}\" of MCP, which is not known here",
                              info_.revision);
  TakeInfo(reply.result, At(reply.result, "serverInfo"));
  transport_->SetProtocol(info_.revision, /*stateless=*/false);
  RETURN_IF_ERROR(
      transport_->Send({.text = NotificationText("notifications/initialized", Json())}, nullptr));
  transport_->Listen();
  return absl::OkStatus();
}

void Client::TakeInfo(const Json& result, const Json& server_info) {
  info_.name = StringAt(server_info, "name");
  info_.version = StringAt(server_info, "version");
  info_.has_tools = At(result, "capabilities").contains("tools");
  info_.has_resources = At(result, "capabilities").contains("resources");
}

Json Client::Capabilities() const {
  Json capabilities = Json::object();
  if (options_.input) capabilities["elicitation"] = Json{{"form", Json::object()}};
  return capabilities;
}

Json Client::WithMeta(Json params, int64_t progress_token) const {
  if (!params.is_object()) params = Json::object();
  Json& meta = params["_meta"];
  if (info_.era == Era::kStateless) {
    meta[kMetaVersion] = kStatelessRevision;
    meta[kMetaClient] = ClientInfo();
    meta[kMetaCapabilities] = Capabilities();
  }
  if (progress_token > 0) meta["progressToken"] = progress_token;
  if (meta.is_null()) params.erase("_meta");
  return params;
}

absl::StatusOr<Reply> Client::RequestOnce(const std::string& method, const Json& params,
                                          const RequestOptions& options,
                                          std::string_view arguments) {
  const int64_t timeout_ms =
      options.timeout_ms > 0 ? options.timeout_ms : options_.timeouts.call_ms;
  const int64_t id = next_id_++;
  Wait wait(*this, id, options, timeout_ms);
  const Outgoing message{
      .text = RequestText(id, method, WithMeta(params, options.on_progress ? id : 0), arguments),
      .method = method,
      .name = NameOf(method, params),
      .id = id,
      .headers = options.headers};
  const absl::Status status = transport_->Send(message, &wait);
  if (!status.ok()) return status;
  AGENTD_CHECK(wait.Ended());
  if (wait.end() == Wait::End::kAnswered) return wait.TakeReply();
  return GiveUp(id, method, wait, timeout_ms);
}

absl::Status Client::GiveUp(int64_t id, const std::string& method, const Wait& wait,
                            int64_t timeout_ms) {
  const bool cancelled = wait.end() == Wait::End::kCancelled;
  // Over HTTP the closed stream says it since 2026-07-28; "initialize" must not be cancelled.
  const bool closing_says_it = transport_->is_http() && info_.era == Era::kStateless;
  if (!closing_says_it && method != "initialize" && method != "server/discover") {
    const Json params = {{"requestId", id}, {"reason", cancelled ? "cancelled" : "timed out"}};
    // If it cannot be told, the connection is lost, which the next request will see.
    (void)transport_->Send({.text = NotificationText("notifications/cancelled", params),
                            .method = "notifications/cancelled"},
                           nullptr);
  }
  if (method != "server/discover") suspect_ = true;
  if (cancelled) return absl::CancelledError("cancelled");
  return absl::DeadlineExceededError(
      fmt::format("no answer to {} within {} s", method, static_cast<double>(timeout_ms) / 1000));
}

absl::StatusOr<Reply> Client::Request(const std::string& method, const Json& params,
                                      const RequestOptions& options, std::string_view arguments) {
  Json more = params;
  for (int round = 0; round < kMaxRounds; ++round) {
    ASSIGN_OR_RETURN(Reply reply, RequestOnce(method, more, options, arguments));
    const std::string type = StringAt(reply.result, "resultType");
    if (reply.error || type.empty() || type == "complete") return reply;
    if (type != "input_required" || info_.era != Era::kStateless)
      return FailedPrecondition("it answered {} with a result of type \"{}\"", method, type);
    // The request once more, with what the server wants to know; its state goes back unread.
    more = params;
    const Json& asked = At(reply.result, "inputRequests");
    if (asked.is_object() && !asked.empty()) {
      ASSIGN_OR_RETURN(more["inputResponses"], AnswersFor(asked));
    } else {
      const Clock::time_point at = Clock::now() + std::chrono::milliseconds(kRoundPauseMs);
      std::unique_lock lock(mutex_);
      changed_.wait_until(lock, at, [&] { return IsCancelled(options.cancel); });
    }
    if (const Json& state = At(reply.result, "requestState"); !state.is_null())
      more["requestState"] = state;
  }
  return FailedPrecondition("it asked for input {} times during one {}", kMaxRounds, method);
}

absl::StatusOr<Json> Client::AnswersFor(const Json& input_requests) {
  Json answers = Json::object();
  for (const auto& [key, request] : input_requests.items()) {
    const std::string method = StringAt(request, "method");
    if (!options_.input || method != "elicitation/create")
      return FailedPrecondition("it wants \"{}\" answered, which nobody here can", method);
    ASSIGN_OR_RETURN(answers[key], options_.input(method, At(request, "params")));
  }
  return answers;
}

absl::Status Client::List(const std::string& method, const RequestOptions& options,
                          const std::function<absl::Status(const Reply&)>& add) {
  Json params = Json::object();
  std::set<std::string> seen;
  for (int page = 0; page < kMaxPages; ++page) {
    ASSIGN_OR_RETURN(const Reply reply, Request(method, params, options));
    if (reply.error)
      return FailedPrecondition("{}: {} (code {})", method, reply.error->message,
                                reply.error->code);
    RETURN_IF_ERROR(add(reply));
    const std::string cursor = StringAt(reply.result, "nextCursor");
    if (cursor.empty()) return absl::OkStatus();
    if (!seen.insert(cursor).second)
      return FailedPrecondition("{}: it gives the same page again and again", method);
    params["cursor"] = cursor;
  }
  return FailedPrecondition("{}: more than {} pages", method, kMaxPages);
}

absl::Status Client::CheckAlive(const sandbox::CancelFlag* cancel) {
  RequestOptions options{.cancel = cancel};
  options.timeout_ms = options_.timeouts.probe_ms;
  const std::string method = info_.era == Era::kStateless ? "server/discover" : "ping";
  const absl::Status status = RequestOnce(method, Json::object(), options, {}).status();
  if (status.ok()) suspect_ = false;
  return status;
}

void Client::OnMessage(Message message, std::string_view text) {
  if (message.kind == Message::Kind::kRequest) return OnRequest(message);
  if (message.kind == Message::Kind::kNotification) return OnNotification(message);
  if (!message.id.is_number_integer()) return;
  const std::lock_guard lock(mutex_);
  const auto found = pending_.find(message.id.get<int64_t>());
  // The answer to a request that was given up.
  if (found == pending_.end() || found->second->answered) return;
  Pending& pending = *found->second;
  pending.reply = {std::move(message.result), std::move(message.error), std::string(text)};
  pending.answered = true;
  changed_.notify_all();
}

void Client::OnRequest(const Message& request) {
  std::string answer;
  if (request.method == "ping") {
    answer = ResultText(request.id, Json::object());
  } else if (request.method == "elicitation/create" && options_.input) {
    const absl::StatusOr<Json> result = options_.input(request.method, request.params);
    answer = result.ok() ? ResultText(request.id, *result)
                         : ErrorText(request.id, -32603, Text(result.status()));
  } else {
    answer = ErrorText(request.id, kMethodNotFound, "Method not found: " + request.method);
  }
  // A connection that is lost is seen by whoever waits on it.
  (void)transport_->Send({.text = answer, .id = request.id}, nullptr);
}

void Client::OnNotification(const Message& notification) {
  if (notification.method == "notifications/tools/list_changed") ++tool_changes_;
  if (notification.method != "notifications/progress") return;
  const Json& token = At(notification.params, "progressToken");
  if (!token.is_number_integer()) return;
  const std::lock_guard lock(mutex_);
  const auto found = pending_.find(token.get<int64_t>());
  if (found == pending_.end()) return;
  Pending& pending = *found->second;
  pending.heard = Clock::now();
  pending.progress.push_back(ProgressText(notification.params));
  if (pending.progress.size() > kMaxProgressWaiting) pending.progress.pop_front();
  changed_.notify_all();
}

}  // namespace agentd::tools::mcp
