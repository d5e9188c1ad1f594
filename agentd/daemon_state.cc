// The daemon's life: start, bringing sessions into memory, handing them out, shutting down.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "agentd/daemon.h"
#include "agentd/event_kinds.h"
#include "agentd/hold.h"
#include "agentd/turn.h"
#include "base/status.h"
#include "sessions/crash_point.h"
#include "tools/mcp/session.h"

namespace agentd::daemon {
namespace {

using sessions::NewEvent;
using sessions::internal::CrashPoint;

constexpr int kListPage = 10'000;
constexpr size_t kMaxSessionsInMemory = 256;

absl::Status NoDataDirectory(const std::error_code& error, const std::string& what) {
  return Annotate(ErrnoError(error.value(), what),
                  "--data needs a directory that this user may write");
}

}  // namespace

Daemon::Daemon(DaemonOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(DaemonOptions options) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(options)));
  RETURN_IF_ERROR(daemon->Init());
  RETURN_IF_ERROR(daemon->ReleasePlaces());
  RETURN_IF_ERROR(daemon->TakeUpSessions());
  return daemon;
}

absl::Status Daemon::MakeDirectories() {
  for (const char* name : {"", "workspaces", "locks", "outputs", "mcp-tokens"}) {
    const std::filesystem::path directory = options_.data / name;
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error) return NoDataDirectory(error, "create directory " + directory.string());
    // Other users have no business in anybody's sessions.
    std::filesystem::permissions(directory, std::filesystem::perms::owner_all, error);
    if (error) return NoDataDirectory(error, "chmod " + directory.string());
  }
  return absl::OkStatus();
}

absl::Status Daemon::AddTools() {
  RETURN_IF_ERROR(StartServers());
  ASSIGN_OR_RETURN(ToolSet set, MakeToolSet());
  // A server that has no tools today may have those that the configuration names tomorrow.
  std::vector<std::string> absent;
  if (mcp_servers_ != nullptr)
    for (const auto& server : mcp_servers_->all())
      if (server->view()->tools.empty()) absent.push_back(server->config.name + "__");
  RETURN_IF_ERROR(options_.tools.CheckNames(set.names, absent));
  const auto all = set.registry.tools();
  if (std::any_of(all.begin(), all.end(),
                  [](const tools::Tool* tool) { return tool->spec().network.has_value(); })) {
    ASSIGN_OR_RETURN(proxy_, sandbox::EgressProxy::Create());
  }
  tool_sets_.Replace(std::move(set));
  return absl::OkStatus();
}

absl::Status Daemon::Init() {
  // Not with the first call: no tool would run then.
  RETURN_IF_ERROR(Annotate(sandbox::CheckMounts(options_.tools.mounts), "[[mount]]"));
  RETURN_IF_ERROR(MakeDirectories());
  RETURN_IF_ERROR(AddTools());
  std::unique_ptr<model::Engine> engine;
  ASSIGN_OR_RETURN(model_, ModelBundle::Load(options_.model, options_.engine, engine));
  defaults_ = model_->defaults;
  defaults_.max_turn_tokens = options_.tools.max_turn_tokens.value_or(defaults_.max_turn_tokens);
  defaults_.max_turn_calls = options_.tools.max_turn_calls.value_or(defaults_.max_turn_calls);
  sessions::StoreOptions store_options;
  store_options.kv_identity = model_->fingerprint_hex + " " + model_->numerics_id;
  store_options.budget_bytes = options_.store_budget_bytes;
  store_options.keys = options_.store_keys;
  ASSIGN_OR_RETURN(store_, sessions::Store::Open(StorePath(options_.data), store_options));
  ASSIGN_OR_RETURN(places_, Places::Open(options_.data / "places"));
  for (model::LayerKind kind : engine->config().layer_kinds) {
    runtime_.csa_layers += kind == model::LayerKind::kCsa ? 1 : 0;
  }
  scheduler_ = std::make_unique<Scheduler>(std::move(engine), options_.scheduler);
  walls_ = sandbox::ProbeWalls(options_.helper_dir, options_.data / "probe");
  for (const sandbox::Wall& wall : walls_) {
    if (!wall.required || wall.available) continue;
    spdlog::warn("tools will not run: {}: {}", wall.name, wall.detail);
  }
  runtime_.store = store_.get();
  runtime_.scheduler = scheduler_.get();
  runtime_.model = model_.get();
  runtime_.tool_sets = &tool_sets_;
  runtime_.tools_changed = [this] { ToolsChanged(); };
  runtime_.places = places_.get();
  runtime_.tools_config = &options_.tools;
  runtime_.mcp_servers = mcp_servers_.get();
  runtime_.proxy = proxy_.get();
  runtime_.owner = fmt::format("uid:{}", ::getuid());
  runtime_.data = options_.data;
  runtime_.helper_dir = options_.helper_dir;
  runtime_.fatal = options_.fatal;
  return absl::OkStatus();
}

Daemon::~Daemon() {
  Shutdown();
  JoinTurns();
}

void Daemon::Shutdown() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  if (scheduler_) scheduler_->Park();
  JoinTurns();
  std::vector<std::shared_ptr<Session>> all;
  {
    std::lock_guard lock(mutex_);
    for (auto& [id, session] : sessions_) all.push_back(session);
  }
  for (const auto& session : all) session->hub->Wake();  // those who watch learn it too
}

bool Daemon::stopping() {
  std::lock_guard lock(mutex_);
  return stopping_;
}

void Daemon::JoinTurns() {
  std::vector<std::shared_ptr<Turn>> turns;
  {
    std::lock_guard lock(mutex_);
    for (auto& [id, session] : sessions_) {
      std::lock_guard session_lock(session->mutex);
      if (session->turn) turns.push_back(std::exchange(session->turn, nullptr));
    }
  }
  for (auto& turn : turns) turn->Park();
  for (auto& turn : turns) turn->Join();
}

// Erases what was never finished, goes on with every turn that was under way when the last daemon
// stopped.
absl::Status Daemon::TakeUpSessions() {
  std::string after;
  for (;;) {
    ASSIGN_OR_RETURN(std::vector<sessions::SessionInfo> infos,
                     store_->List(runtime_.owner, after, kListPage));
    for (const sessions::SessionInfo& info : infos) {
      absl::StatusOr<v1::SessionMeta> meta = ParseMeta(info);
      if (!meta.ok()) {
        spdlog::error("{}", Text(meta.status()));
        continue;
      }
      if (meta->phase() == v1::SessionMeta::IMPORTING) {
        spdlog::info("session {}: the daemon stopped while it was made; it is erased", info.id);
        absl::Status deleted = Delete(info.id);
        if (!deleted.ok()) spdlog::warn("session {}: {}", info.id, Text(deleted));
        continue;
      }
      const bool under_way =
          meta->phase() == v1::SessionMeta::RUNNING || meta->phase() == v1::SessionMeta::PARKED;
      if (!under_way || !options_.resume) continue;
      CrashPoint("agentd.resuming");
      absl::StatusOr<Started> started = Run(info.id, "");
      if (!started.ok()) {
        spdlog::error("session {} does not go on: {}", info.id, Text(started.status()));
      } else {
        spdlog::info("session {} goes on", info.id);
      }
    }
    if (static_cast<int>(infos.size()) < kListPage) return absl::OkStatus();
    after = infos.back().id;
  }
}

std::shared_ptr<Session> Daemon::Remember(sessions::SessionInfo info, v1::SessionMeta meta) {
  std::lock_guard lock(mutex_);
  if (sessions_.size() >= kMaxSessionsInMemory) ForgetIdle();
  std::shared_ptr<Session>& slot = sessions_[info.id];
  if (!slot) slot = std::make_shared<Session>(std::move(info), std::move(meta));
  return slot;
}

// Sandboxes of sessions without a turn, in which something lives on, take memory: all but some end.
void Daemon::EndIdleTools() {
  std::vector<std::shared_ptr<Session>> all;
  {
    std::lock_guard lock(mutex_);
    for (auto& [id, session] : sessions_) all.push_back(session);
  }
  std::vector<std::pair<int64_t, std::shared_ptr<Session>>> idle;
  for (const auto& session : all) {
    std::lock_guard lock(session->mutex);
    if (!session->busy && session->hot && session->hot->tools.running())
      idle.emplace_back(session->info.updated_us, session);
  }
  std::sort(idle.begin(), idle.end());  // the newest stay
  const size_t keep = static_cast<size_t>(options_.tools.idle_sandboxes);
  for (size_t i = 0; i + keep < idle.size(); ++i) {
    std::unique_ptr<HotState> hot;  // read again when it is wanted
    std::lock_guard lock(idle[i].second->mutex);
    if (!idle[i].second->busy) hot = std::move(idle[i].second->hot);
  }
}

// Sessions that nobody uses or watches; the store has all that is in them. mutex_ is held, so
// nobody can take one meanwhile.
void Daemon::ForgetIdle() {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    std::shared_ptr<Turn> over;
    {
      std::lock_guard lock(it->second->mutex);
      if (!it->second->busy) over = std::exchange(it->second->turn, nullptr);
    }
    over.reset();  // joins; it has given the session back, so it is about to end
    it = it->second.use_count() == 1 ? sessions_.erase(it) : std::next(it);
  }
}

absl::StatusOr<std::shared_ptr<Session>> Daemon::Find(const std::string& session_id) {
  {
    std::lock_guard lock(mutex_);
    auto it = sessions_.find(session_id);
    if (it != sessions_.end()) return it->second;
  }
  absl::StatusOr<sessions::SessionInfo> info = store_->Get(session_id);
  if (absl::IsNotFound(info.status()) || (info.ok() && info->owner != runtime_.owner)) {
    return NotFound("session {} does not exist", session_id);
  }
  if (!info.ok()) return info.status();
  ASSIGN_OR_RETURN(v1::SessionMeta meta, ParseMeta(*info));
  return Remember(std::move(info).value(), std::move(meta));
}

absl::StatusOr<Daemon::Hold> Daemon::Acquire(const std::string& session_id, bool to_start_a_turn,
                                             bool adopt) {
  ASSIGN_OR_RETURN(std::shared_ptr<Session> session, Find(session_id));
  Hold hold(nullptr, nullptr);
  v1::SessionMeta meta;
  {
    std::lock_guard lock(session->mutex);
    if (session->busy) return TurnRunning(session_id);
    session->busy = true;
    session->starting = to_start_a_turn;
    session->hub->HoldNews();  // until it is given back, or a turn runs
    hold.session = session;
    hold.hot = std::move(session->hot);
    meta = session->meta;
  }
  const absl::Status model = CheckModel(*model_, session_id, meta);
  hold.another_model = adopt && CanAdopt(*model_, meta);
  if (!hold.another_model) RETURN_IF_ERROR(model);
  if (!hold.hot) {
    ASSIGN_OR_RETURN(hold.hot, LoadHot(runtime_, *session, meta.config()));
    // Nobody in this process stopped this turn, and the last one did not say good-bye.
    hold.hot->after_crash = meta.phase() == v1::SessionMeta::RUNNING;
    // A rewind into a turn that was not told to the session any more.
    std::lock_guard lock(session->mutex);
    if (meta.phase() == v1::SessionMeta::IDLE && hold.hot->transcript.phase() != Phase::kIdle) {
      session->meta.set_phase(v1::SessionMeta::INTERRUPTED);
    }
  }
  return hold;
}

// Writes durably, then folds and publishes what was written.
absl::Status Daemon::Commit(Hold& hold, std::vector<NewEvent> events,
                            v1::SessionMeta::Phase phase) {
  Session& session = *hold.session;
  v1::SessionMeta meta;
  sessions::Commit commit;
  {
    std::lock_guard lock(session.mutex);
    meta = WithPhase(session.meta, phase);
    // Sessions of an earlier version do not say; the model is the same, as was checked.
    if (meta.model_fingerprint() == model_->fingerprint_hex)
      meta.set_tokenizer_fingerprint(model_->tokenizer_fingerprint_hex);
    commit.timeline = session.info.timeline;
  }
  commit.events = std::move(events);
  commit.session_meta = meta.SerializeAsString();
  absl::StatusOr<sessions::CommitResult> result = Noted(store_->CommitSync(std::move(commit)));
  absl::Status status = result.status();
  if (result.ok()) {
    for (const sessions::Event& event : result->events) {
      if (status.ok()) status = hold.hot->transcript.Apply(event);
    }
    session.hub->Publish(result->events);
  }
  if (!status.ok()) {
    hold.hot.reset();
    return status;
  }
  std::lock_guard lock(session.mutex);
  session.meta = std::move(meta);
  return absl::OkStatus();
}

// After a fork or a rewind: logs what changed, says whether the point is inside a turn, puts the
// workspace there too.
absl::Status Daemon::Settle(Hold& hold, uint64_t old_seed, const v1::Rewound* rewound) {
  std::vector<NewEvent> events;
  if (rewound != nullptr) events.push_back(MakeEvent(*rewound));
  if (hold.hot->seed != old_seed) {
    v1::SeedChanged changed;
    changed.set_seed(hold.hot->seed);
    events.push_back(MakeEvent(changed));
  }
  const bool inside = hold.hot->transcript.phase() != Phase::kIdle;
  RETURN_IF_ERROR(Commit(hold, std::move(events),
                         inside ? v1::SessionMeta::INTERRUPTED : v1::SessionMeta::IDLE));
  return EnsureWorkspace(runtime_, hold.session->id, *hold.hot);
}

absl::Status Daemon::Noted(absl::Status status) const {
  if (absl::IsUnavailable(status) && runtime_.fatal) runtime_.fatal(status);
  return status;
}

v1::Session Daemon::Describe(Session& session) {
  const EventHub::View view = session.hub->view();
  sessions::SessionInfo info;
  v1::SessionMeta meta;
  std::shared_ptr<Turn> turn;
  {
    std::lock_guard lock(session.mutex);
    info = session.info;
    meta = session.meta;
    if (view.running) turn = session.turn;
  }
  // The store knows the newest counts; what is in memory serves while it cannot be read.
  absl::StatusOr<sessions::SessionInfo> newest = store_->Get(session.id);
  if (newest.ok()) info = std::move(newest).value();
  v1::Session out;
  DescribeStored(info, meta.phase(), meta.import_directory(), view.running, out);
  out.mutable_config()->Swap(meta.mutable_config());
  if (!turn) return out;
  for (v1::ApprovalAsked& asked : turn->waiting_for()) *out.add_waiting_for() = std::move(asked);
  if (out.waiting_for_size() > 0) out.set_state(v1::SESSION_STATE_WAITING);
  return out;
}

void Daemon::DescribeStored(const sessions::SessionInfo& info, v1::SessionMeta::Phase phase,
                            std::string_view import_directory, bool running,
                            v1::Session& out) const {
  out.set_id(info.id);
  out.set_state(running                          ? v1::SESSION_STATE_RUNNING
                : phase == v1::SessionMeta::IDLE ? v1::SESSION_STATE_IDLE
                                                 : v1::SESSION_STATE_INTERRUPTED);
  out.set_created_us(info.created_us);
  out.set_updated_us(info.updated_us);
  out.set_last_seq(info.last_seq);
  out.set_tokens(info.tokens);
  out.set_import_directory(import_directory.data(), import_directory.size());
  const std::optional<std::filesystem::path> place = runtime_.places->Of(info.id);
  out.set_in_place(place.has_value());
  out.set_workspace(place ? place->string() : runtime_.OwnWorkspaceName(info.id));
  out.set_forked_from(info.forked_from);
  out.set_forked_at_seq(info.forked_at_seq);
  out.set_timeline(info.timeline);
  out.set_seed(info.seed);
}

}  // namespace agentd::daemon
