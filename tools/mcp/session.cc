#include "tools/mcp/session.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/status.h"
#include "tools/answer.h"
#include "tools/mcp/content.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kSessionLookMs = 20;
// The pause before a server that died is started again doubles with each time that it failed in a
// row; after so many it is left alone for a while.
constexpr int kFirstPauseMs = 100;
constexpr int kMaxFailures = 5;
constexpr int64_t kRestMs = 30'000;

ToolResult Failure(const RemoteTool& tool, const std::string& why) {
  return {.text = fmt::format("Error: {}: {}", tool.spec.name, CutMiddle(why, kMaxAnswerBytes)),
          .is_error = true};
}

bool Cancelled(const ToolContext& context) {
  return context.cancel != nullptr && context.cancel->cancelled();
}

// What a failed request means to the model.
ToolResult FailedRequest(const ServerState& server, const RemoteTool& tool, const Client& client,
                         const absl::Status& status) {
  if (status.code() == absl::StatusCode::kCancelled) {
    ToolResult result = Failure(tool, "cancelled");
    result.cancelled = true;
    return result;
  }
  std::string why = Text(status);
  if (const std::string clues = client.clues(); !clues.empty()) why += "; " + clues;
  const std::string unknown =
      tool.spec.flags.read_only ? "" : " Whether the call took effect is unknown.";
  if (status.code() == absl::StatusCode::kDeadlineExceeded)
    return Failure(tool, fmt::format("timed out: {}.{}", why, unknown));
  if (status.code() != absl::StatusCode::kUnavailable) return Failure(tool, why);
  if (client.health().ok())
    return Failure(tool, fmt::format("the connection to the MCP server {} failed: {}.{}",
                                     server.config.name, why, unknown));
  return Failure(
      tool, fmt::format("the MCP server {} was lost in the middle of the call: {}.{} It is started "
                        "again for the next call.",
                        server.config.name, why, unknown));
}

absl::StatusOr<std::string> ListResources(Client& client, const RequestOptions& options) {
  std::string text;
  const auto add = [&text](const char* member) {
    return [&text, member](const Reply& reply) {
      const Json& entries = At(reply.result, member);
      if (!entries.is_array()) return FailedPrecondition("its list has no {}", member);
      for (const Json& entry : entries) text += ResourceLine(entry) + "\n";
      return absl::OkStatus();
    };
  };
  RETURN_IF_ERROR(client.List("resources/list", options, add("resources")));
  // Not every server that has resources knows templates.
  const absl::Status templates =
      client.List("resources/templates/list", options, add("resourceTemplates"));
  if (!templates.ok() && templates.code() != absl::StatusCode::kFailedPrecondition)
    return templates;
  if (text.empty()) return "(no resources)";
  text.pop_back();
  return text;
}

ToolResult FromReply(const RemoteTool& tool, const Reply& reply, const ToolContext& context) {
  if (reply.error)
    return Failure(tool, fmt::format("{} (code {})", reply.error->message, reply.error->code));
  const std::string text = tool.kind == RemoteTool::Kind::kReadResource
                               ? ResourceText(reply.result)
                               : ToolResultText(reply.result);
  if (At(reply.result, "isError") == true) return Failure(tool, text);
  ToolResult result;
  result.output_bytes = static_cast<int64_t>(text.size());
  SetText(text, -1, 0, WhereKept(context), result);
  return result;
}

ToolResult Ask(const ServerState& server, const RemoteTool& tool, Client& client,
               std::string_view arguments, const ToolContext& context) {
  RequestOptions options{.cancel = context.cancel, .on_progress = context.on_output};
  if (tool.kind == RemoteTool::Kind::kListResources) {
    const absl::StatusOr<std::string> text = ListResources(client, options);
    if (!text.ok()) return FailedRequest(server, tool, client, text.status());
    ToolResult result;
    result.output_bytes = static_cast<int64_t>(text->size());
    SetText(*text, -1, 0, WhereKept(context), result);
    return result;
  }
  absl::StatusOr<Reply> reply;
  if (tool.kind == RemoteTool::Kind::kReadResource) {
    reply = client.Request("resources/read",
                           Json::parse(arguments, nullptr, /*allow_exceptions=*/false), options);
  } else {
    if (client.is_http()) options.headers = HeadersFrom(tool.header_params, arguments);
    reply = client.Request("tools/call", Json{{"name", tool.name}}, options, arguments);
  }
  if (!reply.ok()) return FailedRequest(server, tool, client, reply.status());
  return FromReply(tool, *reply, context);
}

}  // namespace

struct Session::Instance {
  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  bool opening = false;  // by one of the calls
  // Shared with the calls that use it, which may outlast its place here.
  std::shared_ptr<Client> client;
  int64_t tool_changes = 0;  // of the client's, those that were taken
  int failures = 0;          // since a call had an answer
  std::string last_failure;
  Clock::time_point not_before;  // of the next start

  void Failed(const std::string& why) {
    last_failure = why;
    ++failures;
    const int64_t pause = failures < kMaxFailures ? kFirstPauseMs << (failures - 1) : kRestMs;
    not_before = Clock::now() + milliseconds(pause);
  }
};

Session::Session(const Servers& servers, Launcher launcher)
    : servers_(servers), launcher_(std::move(launcher)) {
  for (const std::unique_ptr<ServerState>& server : servers_.all())
    instances_.emplace_back(server.get(), std::make_unique<Instance>());
}

Session::~Session() { Stop(); }

bool Session::any_running() const {
  for (const auto& [server, instance] : instances_) {
    const std::lock_guard lock(instance->mutex);
    if (instance->client != nullptr && !instance->client->is_http()) return true;
  }
  return false;
}

bool Session::TakeToolChanges() {
  bool any = false;
  for (auto& [server, instance] : instances_) {
    std::shared_ptr<Client> client;
    {
      const std::lock_guard lock(instance->mutex);
      if (instance->client == nullptr || !instance->client->health().ok()) continue;
      const int64_t changes = instance->client->tool_changes();
      if (std::exchange(instance->tool_changes, changes) == changes) continue;
      client = instance->client;
    }
    server->ReadAgain(*client);
    any = true;
  }
  return any;
}

void Session::Stop() {
  std::vector<std::shared_ptr<Client>> clients;
  for (auto& [server, instance] : instances_) {
    const std::lock_guard lock(instance->mutex);
    if (instance->client != nullptr) clients.push_back(std::move(instance->client));
    instance->client = nullptr;
    instance->failures = 0;
    instance->not_before = {};
  }
  // All are told before the first is waited for.
  for (const std::shared_ptr<Client>& client : clients) client->Finish();
  for (const std::shared_ptr<Client>& client : clients)
    if (client.use_count() > 1) client->Abort();
}

absl::Status Session::Open(const ServerState& server, Instance& instance,
                           const sandbox::CancelFlag* cancel) {
  ClientOptions options{.timeouts = server.config.timeouts, .input = servers_.input()};
  // A program stays the same; what is behind an address may change.
  if (server.config.url.empty()) options.era = server.view()->info.era;
  absl::Status launched;
  absl::StatusOr<std::unique_ptr<Client>> client =
      Client::Connect(OpenerFor(server, launcher_, &launched), options, cancel);
  const std::lock_guard lock(instance.mutex);
  instance.opening = false;
  instance.changed.notify_all();
  if (client.ok()) {
    instance.client = *std::move(client);
    instance.tool_changes = 0;
    return absl::OkStatus();
  }
  if (client.status().code() == absl::StatusCode::kCancelled) return client.status();
  if (launched.code() == absl::StatusCode::kUnavailable) return launched;
  instance.Failed(Text(client.status()));
  return FailedPrecondition("the MCP server {} could not be started: {}", server.config.name,
                            instance.last_failure);
}

// The live client, made if there is none. Codes: FailedPrecondition for the model to read,
// Unavailable the sandbox died, Cancelled.
absl::StatusOr<std::shared_ptr<Client>> Session::ClientOf(const ServerState& server,
                                                          Instance& instance,
                                                          const sandbox::CancelFlag* cancel) {
  auto cancelled = [cancel] { return cancel != nullptr && cancel->cancelled(); };
  std::shared_ptr<Client> dead;  // destroyed without the lock: that may take a moment
  std::unique_lock lock(instance.mutex);
  for (;;) {
    if (cancelled()) return absl::CancelledError("cancelled");
    if (instance.opening) {
      instance.changed.wait_for(lock, milliseconds(kSessionLookMs));
      continue;
    }
    if (instance.client == nullptr) break;
    const absl::Status health = instance.client->health();
    if (health.ok()) return instance.client;
    dead = std::move(instance.client);
    instance.client = nullptr;
    instance.Failed(Text(health));
    break;
  }
  if (instance.failures >= kMaxFailures && Clock::now() < instance.not_before)
    return FailedPrecondition(
        "the MCP server {} failed {} times in a row (last: {}); it is tried again in {} s",
        server.config.name, instance.failures, instance.last_failure,
        std::chrono::ceil<std::chrono::seconds>(instance.not_before - Clock::now()).count());
  instance.opening = true;
  while (Clock::now() < instance.not_before && !cancelled())
    instance.changed.wait_for(lock, milliseconds(kSessionLookMs));
  if (cancelled()) {
    instance.opening = false;
    instance.changed.notify_all();
    return absl::CancelledError("cancelled");
  }
  lock.unlock();
  dead.reset();
  RETURN_IF_ERROR(Open(server, instance, cancel));
  lock.lock();
  if (instance.client == nullptr)
    return FailedPrecondition("the MCP server {} was ended with its session", server.config.name);
  return instance.client;
}

absl::StatusOr<ToolResult> Session::Call(const ServerState& server, const RemoteTool& tool,
                                         std::string_view arguments, const ToolContext& context) {
  const Clock::time_point begin = Clock::now();
  const auto found = std::find_if(instances_.begin(), instances_.end(),
                                  [&server](const auto& entry) { return entry.first == &server; });
  AGENTD_CHECK(found != instances_.end());
  Instance& instance = *found->second;
  auto timed = [begin](ToolResult result) {
    result.wall_time_us =
        std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
    return result;
  };
  absl::StatusOr<std::shared_ptr<Client>> client = ClientOf(server, instance, context.cancel);
  // One that left a request unanswered may hang: better found out before the call than in it.
  if (client.ok() && (*client)->suspect() && !(*client)->CheckAlive(context.cancel).ok() &&
      !Cancelled(context)) {
    (*client)->Abort();
    client = ClientOf(server, instance, context.cancel);
  }
  if (!client.ok()) {
    if (client.status().code() == absl::StatusCode::kUnavailable) return client.status();
    ToolResult result = Failure(tool, Text(client.status()));
    result.cancelled = client.status().code() == absl::StatusCode::kCancelled;
    return timed(std::move(result));
  }
  ToolResult result = Ask(server, tool, **client, arguments, context);
  if ((*client)->health().ok() && !(*client)->suspect()) {  // it answered
    const std::lock_guard lock(instance.mutex);
    instance.failures = 0;
  }
  return timed(std::move(result));
}

}  // namespace agentd::tools::mcp
