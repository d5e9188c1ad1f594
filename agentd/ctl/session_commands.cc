// The commands that look at sessions or change them without starting a turn.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/json.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "agentd/ctl/turn.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

void Print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

int Fail(bool json, const absl::Status& status) {
  if (json) Print(ErrorLine(status, ExitCodeOf(status)) + "\n");
  const std::string line = "agentctl: " + Printable(Text(status));
  fmt::print(stderr, "{}\n", Style::For(stderr).Red(line));
  return ExitCodeOf(status);
}

int Usage(const absl::Status& status) {
  Fail(/*json=*/false, status);
  return kUsage;
}

// The daemon, and the session that `name` means there.
struct Target {
  std::unique_ptr<Client> client;
  std::string session_id;
};
absl::StatusOr<Target> Open(const GlobalOptions& global, const std::string& name) {
  Target target;
  ASSIGN_OR_RETURN(target.client, Client::Connect(global.socket, global.wait_seconds));
  ASSIGN_OR_RETURN(target.session_id, target.client->Resolve(name));
  return target;
}

// A call that says nothing but that it is done.
template <typename Request, typename Response>
int CallOn(const GlobalOptions& global, const std::string& name,
           grpc::Status (api::Agentd::Stub::*method)(grpc::ClientContext*, const Request&,
                                                     Response*)) {
  const auto target = Open(global, name);
  if (!target.ok()) return Fail(/*json=*/false, target.status());
  Request request;
  request.set_session_id(target->session_id);
  const auto response = target->client->Call(method, request);
  return response.ok() ? kAnswer : Fail(/*json=*/false, response.status());
}

// Sampled or not, and the id, of every token: two transcripts are the same exactly if these are.
class TokenList : public Output {
 public:
  void Session(const api::Session&) override {}
  void Event(const api::Event& event) override {
    if (!event.has_tokens()) return;
    for (const int32_t id : event.tokens().ids())
      Print(fmt::format("{} {}\n", event.tokens().sampled() ? "sampled" : "given", id));
  }
  void Notice(std::string_view) override {}
  void Error(const absl::Status&, int) override {}
  void Finish() override { std::fflush(stdout); }
};

std::unique_ptr<Output> TranscriptOutput(const ShowOptions& options) {
  if (options.json) return std::make_unique<JsonOutput>(stdout, stderr);
  if (options.tokens) return std::make_unique<TokenList>();
  TextOptions text;
  text.user_messages = true;
  text.event_numbers = true;
  text.result_lines = 20;
  return std::make_unique<TextOutput>(stdout, stdout, text);
}

int PrintSession(const api::Session& session, const std::string& what, bool json) {
  if (json) {
    Print(SessionLine(session) + "\n");
    return kAnswer;
  }
  Print(session.id() + "\n");
  std::fflush(stdout);
  const std::string line = fmt::format("{} · event {} · {} tokens · workspace {}", what,
                                       session.last_seq(), session.tokens(), session.workspace());
  fmt::print(stderr, "{}\n", Style::For(stderr).Dim(line));
  return kAnswer;
}

// Fills what fork and rewind have in common.
template <typename Request>
void SetSeed(const PointOptions& options, Request* request) {
  request->set_keep_seed(options.keep_seed);
  if (options.seed.has_value()) request->set_seed(*options.seed);
}

void SetPoint(const PointOptions& options, api::Point* point) {
  if (options.seq.has_value()) point->set_seq(*options.seq);
  if (options.position.has_value()) point->set_position(*options.position);
}

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string Flags(const api::ToolInfo& tool) {
  std::string flags;
  const auto add = [&](bool set, const char* name) {
    if (set) flags += fmt::format("{}{}", flags.empty() ? "" : ", ", name);
  };
  add(tool.read_only(), "read-only");
  add(tool.workspace_only(), "workspace only");
  add(tool.idempotent(), "idempotent");
  return flags.empty() ? "may have effects elsewhere" : flags;
}

std::string WallState(const api::Wall& wall) {
  if (wall.available()) return "up";
  return wall.required() ? "MISSING: tools will not run" : "not available";
}

// That no turn runs need not mean that the last one ended.
absl::Status NotInterrupted(Client* client, const std::string& session_id) {
  const auto session = client->GetSession(session_id);
  if (!session.ok()) return session.status();
  if (session->state() != api::SESSION_STATE_INTERRUPTED) return absl::OkStatus();
  return FailedPrecondition(
      "session {}: its turn was interrupted before its end; go on with it: agentctl run --session "
      "{}",
      session_id, session_id);
}

}  // namespace

int WatchCommand(const GlobalOptions& global, const WatchOptions& options) {
  std::unique_ptr<Output> output;
  if (options.json) {
    output = std::make_unique<JsonOutput>(stdout, stderr);
  } else {
    TextOptions text;
    text.user_messages = true;
    text.quiet = options.quiet;
    output = std::make_unique<TextOutput>(stdout, stderr, text);
  }
  TurnRunner turns(output.get());
  const auto target = Open(global, options.session_id);
  if (!target.ok()) return Fail(options.json, target.status());
  const auto session = target->client->GetSession(target->session_id);
  if (!session.ok()) return Fail(options.json, session.status());
  output->Session(*session);
  api::WatchRequest request;
  request.set_session_id(target->session_id);
  request.set_from_seq(options.from_seq);
  request.set_until_idle(options.until_idle);
  const TurnResult result = turns.Watch(target->client.get(), request, /*stop_at=*/0);
  if (!result.status.ok()) {
    output->Error(result.status, result.exit_code());
    return result.exit_code();
  }
  if (options.until_idle && !result.left) {
    if (const auto status = NotInterrupted(target->client.get(), target->session_id);
        !status.ok()) {
      output->Error(status, ExitCodeOf(status));
      return ExitCodeOf(status);
    }
  }
  // Nothing need have ended while we watched.
  return result.end.has_value() ? ExitCodeOf(*result.end) : kAnswer;
}

int ShowCommand(const GlobalOptions& global, const ShowOptions& options) {
  const std::unique_ptr<Output> output = TranscriptOutput(options);
  TurnRunner turns(output.get());
  const auto target = Open(global, options.session_id);
  if (!target.ok()) return Fail(options.json, target.status());
  const auto session = target->client->GetSession(target->session_id);
  if (!session.ok()) return Fail(options.json, session.status());
  output->Session(*session);
  // A running turn is shown up to where it was when asked.
  if (session->last_seq() > 0) {
    api::WatchRequest request;
    request.set_session_id(target->session_id);
    request.set_from_seq(1);
    request.set_timeline(session->timeline());
    const TurnResult result = turns.Watch(target->client.get(), request, session->last_seq());
    if (!result.status.ok()) return Fail(options.json, result.status);
    if (result.rewound)
      return Fail(options.json,
                  FailedPrecondition("session {} was rewound while it was shown: ask again",
                                     target->session_id));
  }
  output->Finish();
  return kAnswer;
}

int SessionsCommand(const GlobalOptions& global, const ListOptions& options) {
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Fail(options.json, client.status());
  const auto sessions = (*client)->ListSessions(options.limit);
  if (!sessions.ok()) return Fail(options.json, sessions.status());
  if (options.json) {
    for (const api::Session& session : *sessions) Print(SessionLine(session) + "\n");
  } else if (sessions->empty()) {
    fmt::print(stderr, "no sessions yet: agentctl run \"...\" makes one\n");
  } else {
    Print(SessionTable(*sessions, NowUs()));
  }
  return kAnswer;
}

int UsageCommand(const GlobalOptions& global, const UsageOptions& options) {
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Fail(options.json, client.status());
  api::GetStoreUsageRequest request;
  request.set_reclaim(options.reclaim);
  // Takes as long as files have to be written again.
  grpc::ClientContext context;
  api::StoreUsage usage;
  const grpc::Status status = (*client)->stub().GetStoreUsage(&context, request, &usage);
  if (!status.ok()) return Fail(options.json, (*client)->ToStatus(status));
  Print(options.json ? Dump(ToJson(usage)) + "\n" : UsageTable(usage));
  return kAnswer;
}

int ForkCommand(const GlobalOptions& global, const PointOptions& options) {
  const auto target = Open(global, options.session_id);
  if (!target.ok()) return Fail(options.json, target.status());
  api::ForkSessionRequest request;
  request.set_session_id(target->session_id);
  if (options.seq.has_value() || options.position.has_value())
    SetPoint(options, request.mutable_at());
  SetSeed(options, &request);
  request.set_title(options.title);
  const auto session = target->client->Call(&api::Agentd::Stub::ForkSession, request);
  if (!session.ok()) return Fail(options.json, session.status());
  return PrintSession(*session, "forked from " + target->session_id, options.json);
}

int RewindCommand(const GlobalOptions& global, const PointOptions& options) {
  if (!options.seq.has_value() && !options.position.has_value())
    return Usage(InvalidArgument("rewind where? Give --to SEQ or --position N"));
  const auto target = Open(global, options.session_id);
  if (!target.ok()) return Fail(options.json, target.status());
  api::RewindSessionRequest request;
  request.set_session_id(target->session_id);
  SetPoint(options, request.mutable_to());
  request.set_discard_changes(options.discard_changes);
  SetSeed(options, &request);
  const auto session = target->client->Call(&api::Agentd::Stub::RewindSession, request);
  if (!session.ok()) return Fail(options.json, session.status());
  return PrintSession(*session, "rewound", options.json);
}

int CancelCommand(const GlobalOptions& global, const std::string& session_id) {
  return CallOn(global, session_id, &api::Agentd::Stub::Cancel);
}

int DeleteCommand(const GlobalOptions& global, const std::string& session_id) {
  return CallOn(global, session_id, &api::Agentd::Stub::DeleteSession);
}

int InfoCommand(const GlobalOptions& global, bool json) {
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Fail(json, client.status());
  const auto info = (*client)->Call(&api::Agentd::Stub::GetServerInfo, api::GetServerInfoRequest());
  if (!info.ok()) return Fail(json, info.status());
  Print(json ? Dump(ToJson(*info)) + "\n" : InfoText(*info));
  return kAnswer;
}

std::string SessionTable(const std::vector<api::Session>& sessions, int64_t now_us) {
  std::string table = fmt::format("{:<26}  {:<11}  {:>8}  {:>6}  {:<12}  {}\n", "ID", "STATE",
                                  "TOKENS", "EVENTS", "UPDATED", "TITLE");
  for (const api::Session& session : sessions) {
    std::string title = OneLine(session.config().title(), 60);
    if (!session.forked_from().empty())
      title += fmt::format("{}(fork of {} at {})", title.empty() ? "" : " ", session.forked_from(),
                           session.forked_at_seq());
    std::string row = fmt::format("{:<26}  {:<11}  {:>8}  {:>6}  {:<12}  {}", session.id(),
                                  EnumName(session.state()), session.tokens(), session.last_seq(),
                                  Ago(session.updated_us(), now_us), title);
    row.erase(row.find_last_not_of(' ') + 1);
    table += row + "\n";
  }
  return table;
}

std::string UsageTable(const api::StoreUsage& usage) {
  static constexpr char kRow[] = "{:<26}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}\n";
  std::string table =
      fmt::format(kRow, "ID", "LOG", "KV", "SHARED KV", "ANCHORS", "SHARED", "FILES");
  for (const api::SessionUsage& session : usage.sessions()) {
    table += fmt::format(kRow, session.session_id(), Bytes(session.log_bytes()),
                         Bytes(session.kv_bytes()), Bytes(session.shared_kv_bytes()),
                         Bytes(session.anchor_bytes()), Bytes(session.shared_anchor_bytes()),
                         Bytes(session.workspace_bytes()));
  }
  table +=
      fmt::format(kRow, "all, each byte once", Bytes(usage.log_bytes()), Bytes(usage.kv_bytes()),
                  "", Bytes(usage.anchor_bytes()), "", Bytes(usage.workspace_bytes()));
  const std::string budget =
      usage.budget_bytes() == 0 ? "no budget"
                                : fmt::format("{:.1f}% of the budget of {}",
                                              100.0 * static_cast<double>(usage.directory_bytes()) /
                                                  static_cast<double>(usage.budget_bytes()),
                                              Bytes(usage.budget_bytes()));
  table += fmt::format("\non the disk   {} ({}), {} of it dead{}\n", Bytes(usage.directory_bytes()),
                       budget, Bytes(usage.dead_bytes()),
                       usage.erasing() ? "; a deletion is being erased" : "");
  table += fmt::format(
      "since start   {} written, {} more by collection; {} evicted in {} blocks and {} anchors\n",
      Bytes(usage.written_bytes()), Bytes(usage.collected_written_bytes()),
      Bytes(usage.evicted_bytes()), usage.evicted_blocks(), usage.evicted_anchors());
  if (!usage.space_error().empty())
    table += fmt::format("eviction or collection failed: {}\n", OneLine(usage.space_error(), 400));
  return table;
}

std::string InfoText(const api::ServerInfo& info) {
  std::string text;
  const auto line = [&](std::string_view name, const std::string& value) {
    text += fmt::format("{:<14} {}\n", name, OneLine(value, 200));
  };
  line("version", info.version());
  line("process", fmt::format("{}, up {}", info.pid(), Duration(info.uptime_ms() * 1000)));
  line("model", info.model());
  line("fingerprint", info.model_fingerprint());
  line("numerics", info.numerics_id());
  line("context", fmt::format("{} tokens", info.context_limit_tokens()));
  line("sessions", fmt::format("{} ({} running)", info.sessions(), info.running_turns()));
  line("data", fmt::format("{} ({})", info.data_directory(), Bytes(info.store_bytes())));
  size_t width = 12;
  for (const api::ToolInfo& tool : info.tools()) width = std::max(width, tool.name().size());
  for (const api::Wall& wall : info.walls()) width = std::max(width, wall.name().size());
  text += "tools\n";
  for (const api::ToolInfo& tool : info.tools())
    text += fmt::format("  {:<{}} {}\n", Printable(tool.name()), width, Flags(tool));
  if (!info.mcp_servers().empty()) text += "MCP servers\n";
  for (const api::McpServer& server : info.mcp_servers())
    text += fmt::format("  {:<{}} {}\n", Printable(server.name()), width, McpServerLine(server));
  text += "walls around tools\n";
  for (const api::Wall& wall : info.walls())
    text += fmt::format("  {:<{}} {}{}\n", Printable(wall.name()), width, WallState(wall),
                        wall.detail().empty() ? "" : " (" + OneLine(wall.detail(), 1000) + ")");
  return text;
}

}  // namespace agentd::ctl
