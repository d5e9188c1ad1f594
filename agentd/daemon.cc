#include "agentd/daemon.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <random>
#include <system_error>
#include <utility>

#include "agentd/event_kinds.h"
#include "agentd/hold.h"
#include "agentd/rpc_status.h"
#include "agentd/session_page.h"
#include "agentd/turn.h"
#include "agentd/utf8.h"
#include "base/status.h"
#include "sessions/crash_point.h"

namespace agentd::daemon {
namespace {

using sessions::NewEvent;
using sessions::internal::CrashPoint;

constexpr int kDefaultPage = 100;
constexpr int kMaxPage = 10'000;
// A page ends before a client's usual limit of 4 MiB a message, however long titles and system
// texts are.
constexpr size_t kMaxPageBytes = 3 << 20;
constexpr size_t kDrawnTitleBytes = 80;  // of a title that nobody gave

uint64_t DrawSeed() {
  std::random_device random;
  return (static_cast<uint64_t>(random()) << 32) | random();
}

bool IsSessionId(const std::string& text) {
  return text.size() == 26 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c); });
}

// The daemon's own files: what could change them could change the daemon.
PlaceRules RulesForPlaces(const DaemonOptions& options) {
  std::error_code error;
  PlaceRules rules;
  rules.allowed = options.tools.in_place_allowed;
  rules.roots = options.tools.in_place_roots;
  rules.kept_apart = options.kept_apart;
  rules.kept_apart.insert(rules.kept_apart.end(),
                          {options.data, options.model,
                           std::filesystem::read_symlink("/proc/self/exe", error).parent_path()});
  if (!options.helper_dir.empty()) rules.kept_apart.push_back(options.helper_dir);
  for (const sandbox::Mount& mount : options.tools.mounts) rules.kept_apart.push_back(mount.host);
  return rules;
}

absl::StatusOr<sessions::Point> ToPoint(const v1::Point& point, const char* field) {
  sessions::Point out;
  if (point.at_case() == v1::Point::kSeq) out.seq = point.seq();
  if (point.at_case() == v1::Point::kPosition) {
    if (point.position() < 0) return InvalidArgument("{}.position: below 0", field);
    out.position = point.position();
  }
  return out;
}

// The first line of `text` that says something, cut between characters.
std::string TitleOf(const std::string& text) {
  const size_t start = text.find_first_not_of(" \t\r\n");
  if (start == std::string::npos) return "";
  return CutUtf8(text.substr(start, text.find_first_of("\r\n", start) - start), kDrawnTitleBytes,
                 "…");
}

// A prompt may be long and its tokens take a while: people change their minds meanwhile.
absl::Status StillWanted(Session& session, const std::function<bool()>& abandoned) {
  const bool gone = abandoned && abandoned();
  std::lock_guard lock(session.mutex);
  if (!gone && session.cancels.empty()) return absl::OkStatus();
  return Error(absl::StatusCode::kCancelled, "session {}: the turn was cancelled before it began",
               session.id);
}

}  // namespace

absl::StatusOr<Daemon::Started> Daemon::Run(const std::string& session_id, const std::string& text,
                                            const std::function<bool()>& abandoned, bool adopt) {
  ASSIGN_OR_RETURN(Hold hold, Acquire(session_id, /*to_start_a_turn=*/true, adopt));
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return absl::UnavailableError("the daemon is shutting down");
  }
  RETURN_IF_ERROR(TakeInChanges(hold));
  if (hold.another_model) {
    RETURN_IF_ERROR(StartWithAnotherModel(hold, text, abandoned));
  } else {
    RETURN_IF_ERROR(StartTurn(hold, text, abandoned, {}));
  }
  Started started;
  started.session = hold.session;
  started.turn_seq = hold.hot->transcript.turn_started_seq();
  Launch(std::move(hold));
  return started;
}

// Makes the turn's beginning durable: from here on a crash goes on with it.
// `events` come before it, in the same commit.
absl::Status Daemon::StartTurn(Hold& hold, const std::string& text,
                               const std::function<bool()>& abandoned,
                               std::vector<NewEvent> events) {
  Transcript& transcript = hold.hot->transcript;
  if (text.empty()) {
    if (transcript.phase() == Phase::kIdle) {
      return WithReason(
          FailedPrecondition("session {}: no turn was interrupted; give a text", hold.session->id),
          "NO_TURN");
    }
    return Commit(hold, std::move(events), v1::SessionMeta::RUNNING);
  }
  if (transcript.phase() != Phase::kIdle) {
    return WithReason(FailedPrecondition("session {}: a turn was interrupted; go on with it (Run "
                                         "without text) or cancel it first",
                                         hold.session->id),
                      "TURN_INTERRUPTED");
  }
  absl::StatusOr<std::vector<TokenId>> prompt = transcript.RenderWithUserMessage(text);
  if (!prompt.ok()) return Annotate(prompt.status(), "session " + hold.session->id);
  const size_t after = transcript.tokens().size() + prompt->size();
  if (static_cast<int64_t>(after) >= model_->context_limit_tokens) {
    return WithReason(
        Error(absl::StatusCode::kResourceExhausted,
              "session {}: the context has {} tokens and this message {}; the model takes {}. "
              "Shorten it, rewind, or start another session",
              hold.session->id, transcript.tokens().size(), prompt->size(),
              model_->context_limit_tokens),
        "CONTEXT_FULL");
  }
  v1::TurnStarted started;
  started.set_turn(transcript.turns() + 1);
  v1::UserMessage message;
  message.set_text(text);
  RETURN_IF_ERROR(StillWanted(*hold.session, abandoned));
  {
    std::lock_guard lock(hold.session->mutex);
    v1::SessionConfig& config = *hold.session->meta.mutable_config();
    if (config.title().empty()) config.set_title(TitleOf(text));
  }
  CrashPoint("agentd.turn_starting");
  events.push_back(MakeEvent(started));
  events.push_back(MakeEvent(message));
  events.push_back(NewEvent::Tokens(std::move(prompt).value(), /*sampled=*/false));
  RETURN_IF_ERROR(Commit(hold, std::move(events), v1::SessionMeta::RUNNING));
  CrashPoint("agentd.turn_started");
  return absl::OkStatus();
}

void Daemon::Launch(Hold hold) {
  std::shared_ptr<Session> session = hold.session;
  auto turn = std::make_shared<Turn>(runtime_, session, std::move(hold.hot));
  hold.Release();  // the turn gives the session back
  EndIdleTools();
  std::shared_ptr<Turn> previous;
  std::vector<std::function<void(absl::Status)>> cancels;
  {
    std::lock_guard lock(session->mutex);
    previous = std::exchange(session->turn, turn);
    session->starting = false;
    cancels.swap(session->cancels);
    session->hub->ShowNews(/*running=*/true);
  }
  session->hub->Wake();
  if (!cancels.empty()) turn->Cancel();  // asked for while its beginning was written
  turn->Start();
  for (auto& done : cancels) turn->OnDone(std::move(done));
  bool stopping = false;
  {
    std::lock_guard lock(mutex_);
    stopping = stopping_;
  }
  if (stopping) turn->Park();
}

// Ends the interrupted turn as cancelled.
absl::Status Daemon::CloseTurn(Hold& hold) {
  Turn turn(runtime_, hold.session, std::move(hold.hot));
  ASSIGN_OR_RETURN(hold.hot, turn.CloseNow());
  std::lock_guard lock(hold.session->mutex);
  hold.session->meta.set_phase(v1::SessionMeta::IDLE);
  return absl::OkStatus();
}

void Daemon::Cancel(const std::string& session_id, std::function<void(absl::Status)> done) {
  absl::StatusOr<std::shared_ptr<Session>> session = Find(session_id);
  if (!session.ok()) return done(session.status());
  std::shared_ptr<Turn> turn;
  {
    std::lock_guard lock((*session)->mutex);
    if ((*session)->starting) {
      (*session)->cancels.push_back(std::move(done));
      return;
    }
    turn = (*session)->RunningTurn();
  }
  if (turn) {
    turn->Cancel();
    turn->OnDone(std::move(done));
    return;
  }
  // Given back before the answer: whoever reads it may start the next turn.
  done([&]() -> absl::Status {
    ASSIGN_OR_RETURN(Hold hold, Acquire(session_id));
    if (hold.hot->transcript.phase() == Phase::kIdle) {
      return WithReason(FailedPrecondition("session {}: no turn is running", session_id),
                        "NO_TURN");
    }
    return CloseTurn(hold);
  }());
}

void Daemon::AnswerApproval(const v1::AnswerApprovalRequest& request,
                            std::function<void(absl::Status)> done) {
  if (!v1::ApprovalDecision_IsValid(request.decision()) ||
      request.decision() == v1::APPROVAL_DECISION_UNSPECIFIED) {
    return done(InvalidArgument("decision: {} is none of allow once, allow session, deny",
                                static_cast<int>(request.decision())));
  }
  absl::StatusOr<std::shared_ptr<Session>> session = Find(request.session_id());
  if (!session.ok()) return done(session.status());
  std::shared_ptr<Turn> turn;
  {
    std::lock_guard lock((*session)->mutex);
    turn = (*session)->RunningTurn();
  }
  if (turn) return turn->AnswerApproval(request, std::move(done));
  done(WithReason(FailedPrecondition("session {}: no turn is running; if one was interrupted, go "
                                     "on with it first (Run without text)",
                                     request.session_id()),
                  "NO_TURN"));
}

absl::StatusOr<v1::Session> Daemon::Create(const v1::CreateSessionRequest& request) {
  const std::shared_ptr<const ToolSet> set = tool_sets_.current();
  ASSIGN_OR_RETURN(v1::SessionConfig config,
                   ResolveConfig(request.config(), defaults_, set->names, set->by_default));
  sessions::NewSession fresh;
  fresh.owner = runtime_.owner;
  fresh.seed = config.seed();
  v1::SessionMeta meta;
  *meta.mutable_config() = config;
  meta.set_model_fingerprint(model_->fingerprint_hex);
  meta.set_model_name(model_->name);
  meta.set_tokenizer_fingerprint(model_->tokenizer_fingerprint_hex);
  meta.set_import_directory(request.import_directory());
  if (request.in_place()) {
    ASSIGN_OR_RETURN(const std::filesystem::path place,
                     CheckPlace(request.import_directory(), RulesForPlaces(options_)));
    meta.set_import_directory(place.string());
  }
  if (!request.import_directory().empty()) meta.set_phase(v1::SessionMeta::IMPORTING);
  fresh.meta = meta.SerializeAsString();
  ASSIGN_OR_RETURN(sessions::SessionInfo info, Noted(store_->Create(fresh)));
  std::shared_ptr<Session> session = Remember(std::move(info), std::move(meta));
  absl::Status filled = FillWorkspace(*session, request);
  if (!filled.ok()) return Undone(session->id, filled);
  return Describe(*session);
}

// The caller never learnt the id: nothing of the session stays.
absl::Status Daemon::Undone(const std::string& session_id, absl::Status why) {
  absl::Status deleted = Delete(session_id);
  if (!deleted.ok()) spdlog::warn("session {}: {}", session_id, Text(deleted));
  return why;
}

absl::StatusOr<v1::Session> Daemon::Get(const std::string& session_id) {
  ASSIGN_OR_RETURN(std::shared_ptr<Session> session, Find(session_id));
  return Describe(*session);
}

absl::StatusOr<v1::ListSessionsResponse> Daemon::List(const v1::ListSessionsRequest& request) {
  ASSIGN_OR_RETURN(const std::string bytes, ListBytes(request));
  v1::ListSessionsResponse response;
  AGENTD_CHECK(response.ParseFromString(bytes));
  return response;
}

absl::StatusOr<std::string> Daemon::ListBytes(const v1::ListSessionsRequest& request) {
  if (request.page_size() < 0 || request.page_size() > kMaxPage) {
    return InvalidArgument("page_size: {} is not between 0 and {}", request.page_size(), kMaxPage);
  }
  if (!request.page_token().empty() && !IsSessionId(request.page_token())) {
    return InvalidArgument("page_token: not one that ListSessions gave");
  }
  const int limit = request.page_size() == 0 ? kDefaultPage : request.page_size();
  std::map<std::string, std::shared_ptr<Session>> known;  // few are in memory
  {
    std::lock_guard lock(mutex_);
    known = sessions_;
  }
  // One of each for all sessions: what they hold is used again.
  v1::SessionConfig config;
  v1::Session described;
  std::string page, last;
  v1::ListSessionsResponse end;
  int visited = 0;
  const auto visit = [&](const sessions::SessionInfo& info) {
    if (visited == limit || page.size() >= kMaxPageBytes) {
      end.set_next_page_token(last);
      return false;
    }
    ++visited;
    last = info.id;
    const std::optional<ListedMeta> meta =
        info.damage.empty() ? ReadListedMeta(info.meta, config) : std::nullopt;
    if (meta && meta->phase == v1::SessionMeta::IMPORTING) return true;  // not there yet
    if (const auto it = known.find(info.id); it != known.end()) {
      AppendListed(Describe(*it->second), page);
      return true;
    }
    const ListedMeta shown = meta.value_or(ListedMeta());
    DescribeStored(info, shown.phase, shown.import_directory, /*running=*/false, described);
    if (!meta) {
      const absl::Status damage = UnreadableMeta(info);
      spdlog::warn("{}", Text(damage));
      described.set_state(v1::SESSION_STATE_UNSPECIFIED);
      described.set_damage(Text(damage));
    }
    AppendListed(described, shown.config, page);
    described.clear_damage();
    return true;
  };
  RETURN_IF_ERROR(store_->VisitSessions(runtime_.owner, request.page_token(), visit));
  AGENTD_CHECK(end.AppendPartialToString(&page));
  return page;
}

absl::Status Daemon::Delete(const std::string& session_id) {
  ASSIGN_OR_RETURN(std::shared_ptr<Session> session, Find(session_id));
  std::shared_ptr<Turn> turn;
  std::unique_ptr<HotState> hot;
  {
    std::lock_guard lock(session->mutex);
    if (session->busy) return TurnRunning(session_id);
    session->busy = true;  // for good
    turn = std::exchange(session->turn, nullptr);
    hot = std::move(session->hot);
  }
  if (turn) turn->Join();
  hot.reset();                   // what runs in its sandbox ends before its files go
  scheduler_->Drop(session_id);  // before what it still reads is gone
  absl::Status status = Noted(store_->Delete(session_id));
  if (!status.ok() && !absl::IsNotFound(store_->Get(session_id).status())) {
    std::lock_guard lock(session->mutex);
    session->busy = false;
    return status;
  }
  CrashPoint("agentd.deleted");
  // A folder of the user's stays as it is.
  if (const absl::Status released = places_->Release(session_id); !released.ok())
    spdlog::warn("session {}: {}", session_id, Text(released));
  session->hub->SetDeleted();
  {
    std::lock_guard lock(mutex_);
    sessions_.erase(session_id);
  }
  absl::Status cleared = store_->ClearWorkspace(runtime_.OwnWorkspaceOf(session_id));
  std::error_code error;
  std::filesystem::remove(runtime_.OwnWorkspaceOf(session_id), error);
  if (cleared.ok() && error) cleared = ErrnoError(error.value(), "remove it");
  if (!cleared.ok() && !absl::IsNotFound(cleared)) {
    spdlog::warn("session {}: workspace not removed: {}", session_id, Text(cleared));
  }
  std::filesystem::remove_all(runtime_.OutputsOf(session_id), error);
  if (error) spdlog::warn("session {}: outputs not removed: {}", session_id, error.message());
  std::filesystem::remove(runtime_.LockOf(session_id), error);
  return status;  // an error that is left: deleted, but bytes of it are still on the disk
}

absl::StatusOr<v1::Session> Daemon::Fork(const v1::ForkSessionRequest& request) {
  ASSIGN_OR_RETURN(std::shared_ptr<Session> parent, Find(request.session_id()));
  ASSIGN_OR_RETURN(sessions::Point point, ToPoint(request.at(), "at"));
  RETURN_IF_ERROR(CheckTitle(request.title(), "title"));
  const bool at_end = !point.seq && !point.position;
  if (at_end && places_->Of(parent->id)) RETURN_IF_ERROR(TakeInBeforeFork(parent->id));
  ASSIGN_OR_RETURN(const sessions::SessionInfo now, store_->Get(parent->id));
  if (at_end) point.seq = now.last_seq;
  const uint64_t parent_seed = now.seed;
  // Until its log has been looked at, the fork counts as being inside a turn.
  v1::SessionMeta meta;
  {
    std::lock_guard lock(parent->mutex);
    meta = WithPhase(parent->meta, v1::SessionMeta::INTERRUPTED);
  }
  RETURN_IF_ERROR(CheckModel(*model_, parent->id, meta));
  if (!request.title().empty()) meta.mutable_config()->set_title(request.title());
  sessions::NewSession fresh;
  fresh.owner = runtime_.owner;
  fresh.seed = request.has_seed() ? request.seed() : request.keep_seed() ? parent_seed : DrawSeed();
  meta.mutable_config()->set_seed(fresh.seed);
  fresh.meta = meta.SerializeAsString();
  ASSIGN_OR_RETURN(sessions::SessionInfo info, Noted(store_->Fork(parent->id, point, fresh)));
  CrashPoint("agentd.forked");
  std::shared_ptr<Session> session = Remember(std::move(info), std::move(meta));
  const absl::Status settled = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(Hold hold, Acquire(session->id));
    return Settle(hold, parent_seed, /*rewound=*/nullptr);
  }();
  if (!settled.ok()) return Undone(session->id, settled);
  return Describe(*session);
}

absl::StatusOr<v1::Session> Daemon::Rewind(const v1::RewindSessionRequest& request) {
  ASSIGN_OR_RETURN(sessions::Point point, ToPoint(request.to(), "to"));
  if (!point.seq && !point.position) return InvalidArgument("to: give a seq or a position");
  ASSIGN_OR_RETURN(Hold hold, Acquire(request.session_id()));
  Session& session = *hold.session;
  RETURN_IF_ERROR(CheckRewind(hold, point, request.discard_changes()));
  const uint64_t old_seed = hold.hot->seed;
  const uint64_t seed = request.has_seed()    ? request.seed()
                        : request.keep_seed() ? old_seed
                                              : DrawSeed();
  v1::Rewound rewound;
  rewound.set_from_timeline(session.timeline());
  CrashPoint("agentd.rewinding");
  ASSIGN_OR_RETURN(sessions::SessionInfo info, Noted(store_->Rewind(session.id, point, seed)));
  CrashPoint("agentd.rewound");
  scheduler_->Drop(session.id);
  rewound.set_timeline(info.timeline);
  rewound.set_to_seq(info.last_seq);
  rewound.set_to_position(info.tokens);
  v1::SessionConfig config;
  {
    std::lock_guard lock(session.mutex);
    config = session.meta.config();
  }
  hold.hot.reset();
  const absl::Status settled = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(hold.hot, LoadHot(runtime_, session, config));
    return Settle(hold, old_seed, &rewound);
  }();
  if (!settled.ok()) {
    return Annotate(
        settled, fmt::format("session {} is rewound to event {}, but", session.id, info.last_seq));
  }
  return Describe(session);
}

absl::StatusOr<v1::StoreUsage> Daemon::StoreUsage(const v1::GetStoreUsageRequest& request) {
  if (request.reclaim()) RETURN_IF_ERROR(store_->Reclaim());
  ASSIGN_OR_RETURN(const sessions::StoreUsage usage, store_->Usage(runtime_.owner));
  ASSIGN_OR_RETURN(const sessions::StoreStats stats, store_->Stats());
  v1::StoreUsage out;
  for (const sessions::SessionUsage& session : usage.sessions) {
    v1::SessionUsage& row = *out.add_sessions();
    row.set_session_id(session.id);
    row.set_log_bytes(session.log_bytes);
    row.set_kv_bytes(session.kv_bytes);
    row.set_shared_kv_bytes(session.shared_kv_bytes);
    row.set_anchor_bytes(session.anchor_bytes);
    row.set_shared_anchor_bytes(session.shared_anchor_bytes);
    row.set_workspace_bytes(session.workspace_bytes);
  }
  out.set_log_bytes(usage.log_bytes);
  out.set_kv_bytes(usage.kv_bytes);
  out.set_anchor_bytes(usage.anchor_bytes);
  out.set_workspace_bytes(usage.workspace_bytes);
  out.set_dead_bytes(usage.dead_bytes);
  out.set_directory_bytes(usage.directory_bytes);
  out.set_budget_bytes(usage.budget_bytes);
  out.set_written_bytes(stats.written_bytes);
  out.set_collected_written_bytes(stats.collected_bytes_written);
  out.set_evicted_blocks(stats.evicted_blocks);
  out.set_evicted_anchors(stats.evicted_anchors);
  out.set_evicted_bytes(stats.evicted_bytes);
  out.set_erasing(stats.erasing);
  out.set_space_error(stats.space_error);
  return out;
}

absl::StatusOr<v1::ServerInfo> Daemon::Info() {
  ASSIGN_OR_RETURN(sessions::StoreStats stats, store_->Stats());
  v1::ServerInfo info;
  info.set_version(AGENTD_VERSION);
  info.set_model(model_->name);
  info.set_model_fingerprint(model_->fingerprint_hex);
  info.set_numerics_id(model_->numerics_id);
  info.set_context_limit_tokens(model_->context_limit_tokens);
  info.set_sessions(stats.live_sessions);
  info.set_store_bytes(stats.directory_bytes);
  info.set_pid(::getpid());
  info.set_data_directory(options_.data.string());
  info.set_uptime_ms(std::chrono::duration_cast<std::chrono::milliseconds>(
                         std::chrono::steady_clock::now() - started_)
                         .count());
  const std::shared_ptr<const ToolSet> set = tool_sets_.current();
  for (const tools::Tool* tool : set->registry.tools()) {
    v1::ToolInfo& out = *info.add_tools();
    out.set_name(tool->spec().name);
    out.set_schema_json(tool->spec().schema);
    out.set_read_only(tool->spec().flags.read_only);
    out.set_workspace_only(tool->spec().flags.workspace_only);
    out.set_idempotent(tool->spec().flags.idempotent);
    out.set_by_default(tool->spec().by_default);
    out.set_parallel(tool->spec().flags.parallel);
  }
  DescribeServers(info);
  for (const sandbox::Wall& wall : walls_) {
    v1::Wall& out = *info.add_walls();
    out.set_name(wall.name);
    out.set_required(wall.required);
    out.set_available(wall.available);
    out.set_detail(wall.detail);
  }
  std::lock_guard lock(mutex_);
  for (const auto& [id, session] : sessions_) {
    if (session->hub->view().running) info.set_running_turns(info.running_turns() + 1);
  }
  return info;
}

}  // namespace agentd::daemon
