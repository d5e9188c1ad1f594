#include "agentd/turn.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "agentd/event_kinds.h"
#include "agentd/restore.h"
#include "base/status.h"
#include "sessions/crash_point.h"

namespace agentd::daemon {
namespace {

using sessions::NewEvent;
using sessions::internal::CrashPoint;
using Clock = std::chrono::steady_clock;

// Sampled tokens wait this long for company in one event, or until there are this many.
constexpr std::chrono::milliseconds kGroupTime(10);
constexpr size_t kGroupTokens = 64;
// A queue is looked at this often when nothing arrives: only a guard, arrivals wake it.
constexpr std::chrono::seconds kIdleWait(1);
constexpr std::chrono::seconds kSpaceWait(1);
// Prefills shorter than this are over before anybody could read the progress.
constexpr int64_t kProgressTokens = 512;

}  // namespace

Turn::Turn(const Runtime& runtime, std::shared_ptr<Session> session, std::unique_ptr<HotState> hot)
    : runtime_(runtime),
      session_holder_(std::move(session)),
      session_(*session_holder_),
      meta_(session_.meta),
      hot_(std::move(hot)),
      tools_(runtime_.tool_sets->current()) {}

Turn::~Turn() { Join(); }

void Turn::Start() {
  log_ = std::make_unique<SessionLog>(runtime_.store, session_.hub, session_.timeline());
  std::lock_guard lock(join_mutex_);
  thread_ = std::thread([this] { Main(); });
}

absl::StatusOr<std::unique_ptr<HotState>> Turn::CloseNow() {
  cancelled_.store(true);
  log_ = std::make_unique<SessionLog>(runtime_.store, session_.hub, session_.timeline());
  absl::Status status = Loop();
  log_.reset();
  if (!status.ok()) return status;
  return std::move(hot_);
}

void Turn::Join() {
  std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void Turn::Cancel() {
  cancelled_.store(true);
  tool_cancel_.Cancel();
  std::lock_guard lock(mutex_);
  if (job_) job_->Cancel();
  changed_.notify_all();
}

void Turn::Park() {
  parking_.store(true);
  tool_cancel_.Cancel();
  std::lock_guard lock(mutex_);
  changed_.notify_all();  // a job that decodes is parked by the scheduler
}

void Turn::OnDone(std::function<void(absl::Status)> callback) {
  absl::Status outcome;
  {
    std::lock_guard lock(mutex_);
    if (!outcome_) {
      on_done_.push_back(std::move(callback));
      return;
    }
    outcome = *outcome_;
  }
  callback(outcome);
}

void Turn::Main() {
  TakeToolChanges();
  for (;;) {
    absl::Status status = Loop();
    if (status.ok()) {
      return Leave(closed_ ? absl::OkStatus()
                           : absl::UnavailableError("the daemon is shutting down; the turn goes on "
                                                    "when it is started again"));
    }
    if (absl::IsUnavailable(status) && runtime_.fatal) runtime_.fatal(status);
    if (absl::IsResourceExhausted(status) && !Stopping()) {
      spdlog::warn("session {}: paused: {}", session_.id, Text(status));
      status = WaitForSpace();
      if (status.ok()) continue;
    }
    spdlog::error("session {}: the turn stopped: {}", session_.id, Text(status));
    hot_.reset();
    return Leave(Annotate(status, "the turn stopped before its end was durable"));
  }
}

// What this thread has in memory is ahead of the log after a failed commit: the log decides.
absl::Status Turn::Reload() {
  log_.reset();
  if (hot_) hot_->tools.Stop();
  group_.clear();
  runtime_.scheduler->Drop(session_.id);
  ASSIGN_OR_RETURN(hot_, LoadHot(runtime_, session_, config_));
  log_ = std::make_unique<SessionLog>(runtime_.store, session_.hub, session_.timeline());
  session_.hub->ShowNews(/*running=*/true);  // the end that could not be written holds nothing back
  session_.hub->Wake();
  return absl::OkStatus();
}

// Until the store writes again, or the turn is to stop.
absl::Status Turn::WaitForSpace() {
  for (;;) {
    v1::Event event;
    event.set_session_id(session_.id);
    event.mutable_progress()->set_what("waiting for disk space");
    session_.hub->PublishEphemeral(std::move(event));
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kSpaceWait, [this] { return Stopping(); });
    }
    RETURN_IF_ERROR(Reload());
    if (Stopping()) return absl::OkStatus();
    // A commit that changes nothing tells, before the model works for a log that takes nothing.
    absl::Status status =
        log_->AppendWithMeta({}, WithPhase(meta_, v1::SessionMeta::RUNNING).SerializeAsString());
    if (status.ok()) status = log_->Flush();
    if (!absl::IsResourceExhausted(status)) return status;
  }
}

void Turn::Leave(absl::Status outcome) {
  const bool finished = outcome.ok();
  if (!finished && hot_ && parking_.load()) {
    absl::Status status =
        log_->AppendWithMeta({}, WithPhase(meta_, v1::SessionMeta::PARKED).SerializeAsString());
    if (status.ok()) status = log_->Flush();
    if (!status.ok()) spdlog::warn("session {}: not parked: {}", session_.id, Text(status));
  }
  log_.reset();
  if (finished) TakeToolChanges();  // while those are there that heard of them
  if (hot_ && (!finished || !hot_->tools.in_use())) hot_->tools.Stop();
  RefuseAnswers();
  {
    std::lock_guard lock(session_.mutex);
    session_.meta.set_phase(finished ? v1::SessionMeta::IDLE : v1::SessionMeta::INTERRUPTED);
    if (!hot_) runtime_.scheduler->Drop(session_.id);
    session_.hot = std::move(hot_);
    session_.busy = false;
    // Whoever learns that the turn is over finds the session free.
    session_.hub->ShowNews(/*running=*/false);
  }
  session_.hub->Wake();
  std::vector<std::function<void(absl::Status)>> callbacks;
  {
    std::lock_guard lock(mutex_);
    outcome_ = outcome;
    callbacks.swap(on_done_);
  }
  for (auto& callback : callbacks) callback(outcome);
}

absl::Status Turn::Loop() {
  // People look at the workspace too: it is put right before the model goes on, tools or not.
  absl::Status ready = EnsureWorkspace(runtime_, session_.id, *hot_);
  if (!ready.ok()) spdlog::warn("session {}: workspace: {}", session_.id, Text(ready));
  for (;;) {
    if (cancelled_.load()) return Close(v1::TURN_END_CANCELLED);
    if (parking_.load()) return absl::OkStatus();
    switch (hot_->transcript.phase()) {
      case Phase::kIdle:
        closed_ = true;
        return absl::OkStatus();
      case Phase::kPrompt:
        RETURN_IF_ERROR(AppendPrompt());
        break;
      case Phase::kDecode:
        RETURN_IF_ERROR(Decode());
        break;
      case Phase::kCalls:
        RETURN_IF_ERROR(RunCalls());
        break;
      case Phase::kAnswer:
        return Close(v1::TURN_END_ANSWER);
    }
    if (closed_) return absl::OkStatus();
  }
}

absl::Status Turn::Write(std::vector<NewEvent> events) {
  for (const NewEvent& event : events) {
    sessions::Event folded;
    folded.seq = hot_->transcript.last_seq() + 1;
    folded.kind = event.kind;
    folded.sampled = event.sampled;
    folded.tokens = event.tokens;
    folded.payload = event.payload;
    RETURN_IF_ERROR(hot_->transcript.Apply(folded));
  }
  return log_->Append(std::move(events));
}

absl::Status Turn::WriteDurably(std::vector<NewEvent> events) {
  RETURN_IF_ERROR(Write(std::move(events)));
  return log_->Flush();
}

absl::Status Turn::AppendPrompt() {
  absl::StatusOr<std::vector<TokenId>> tokens = hot_->transcript.RenderPrompt();
  if (!tokens.ok()) return Close(v1::TURN_END_ERROR, Text(tokens.status()));
  const int64_t after = static_cast<int64_t>(hot_->transcript.tokens().size() + tokens->size());
  if (after >= runtime_.model->context_limit_tokens) return Close(v1::TURN_END_CONTEXT_FULL);
  CrashPoint("agentd.prompt");
  return Write({NewEvent::Tokens(std::move(tokens).value(), /*sampled=*/false)});
}

absl::Status Turn::Decode() {
  const Transcript& transcript = hot_->transcript;
  if (transcript.usage().sampled_tokens >= config_.max_turn_tokens()) {
    return Close(v1::TURN_END_TOKEN_LIMIT);
  }
  const int64_t context = static_cast<int64_t>(transcript.tokens().size());
  if (context >= runtime_.model->context_limit_tokens) return Close(v1::TURN_END_CONTEXT_FULL);
  // The log ends where the loop began, so whoever goes on from it ends the message here too.
  if (transcript.output_looping()) return EndMessage();

  Stretch stretch;
  for (From from = {.limit = context - 1};;) {
    ASSIGN_OR_RETURN(stretch, RunJob(from));
    if (stretch.end != JobEnd::kImportFailed || transcript.output_looping()) break;
    RETURN_IF_ERROR(FallBack(stretch, from));
  }
  if (transcript.output_looping()) return absl::OkStatus();  // however the job ended after it
  switch (stretch.end) {
    case JobEnd::kStopToken:
      if (!hot_->transcript.calls().empty()) CrashPoint("agentd.dsml_closed");
      return absl::OkStatus();
    case JobEnd::kCancelled:
    case JobEnd::kParked:
      return absl::OkStatus();  // Loop looks at why
    case JobEnd::kMaxTokens:
      return Close(v1::TURN_END_TOKEN_LIMIT);
    case JobEnd::kContextFull:
      return Close(v1::TURN_END_CONTEXT_FULL);
    case JobEnd::kImportFailed:
    case JobEnd::kError:
      break;
  }
  return Close(v1::TURN_END_ERROR, stretch.error);
}

// One job to its end, whatever that is.
absl::StatusOr<Turn::Stretch> Turn::RunJob(From& from) {
  const Clock::time_point started = Clock::now();
  std::optional<v1::Resumed> resumed;
  ASSIGN_OR_RETURN(JobSpec spec, PrepareJob(from, resumed));
  std::shared_ptr<Job> job = runtime_.scheduler->Submit(std::move(spec));
  {
    std::lock_guard lock(mutex_);
    job_ = job;
    if (cancelled_.load()) job->Cancel();
  }
  absl::StatusOr<Stretch> ended = Consume(*job, std::move(resumed), started);
  std::lock_guard lock(mutex_);
  job_.reset();
  return ended;
}

// The stored state that the job began with is of no use: the next one begins before it. What it
// delivered stays, and comes out the same again.
absl::Status Turn::FallBack(const Stretch& failed, From& from) {
  spdlog::warn("session {}: stored KV does not fit or is damaged and will be recomputed: {}",
               session_.id, failed.error);
  from.offered = std::max({from.offered, from.point.position, failed.anchored_at});
  // This process has evaluated what it delivered.
  hot_->known_evaluated = std::max(hot_->known_evaluated, hot_->transcript.known_evaluated());
  // What does not fit is stored again when it is computed again: else each restart would meet it.
  if (failed.lost) {
    const StoredFailure& lost = *failed.lost;
    if (lost.unfit)
      lost.store->Drop(lost.block);
    else if (IsDamage(lost.status))
      lost.store->DropDamaged([this] { return Stopping(); });
    else
      return lost.status;
    from.limit = std::min(from.limit, (lost.block + 1) * model::kBlockTokens - 1);
    return absl::OkStatus();
  }
  if (failed.fitting_blocks < from.point.blocks.size()) {
    runtime_.store->DropBlock(from.point.blocks[failed.fitting_blocks]);
  } else {
    runtime_.store->DropAnchor(from.point.anchor);
  }
  from.limit = from.point.position - 1;
  return absl::OkStatus();
}

// The context's state: what is in memory, else what is stored at or before `from.limit`.
absl::StatusOr<JobSpec> Turn::PrepareJob(From& from, std::optional<v1::Resumed>& resumed) {
  const Transcript& transcript = hot_->transcript;
  JobSpec spec;
  spec.session_id = session_.id;
  spec.context = transcript.tokens();
  spec.stop_token = runtime_.model->special.eos;
  spec.sampling = SamplingOf(config_);
  spec.seed = hot_->seed;
  spec.context_limit_tokens = runtime_.model->context_limit_tokens;
  spec.max_new_tokens = config_.max_turn_tokens() - transcript.usage().sampled_tokens;
  if (transcript.shared_prefix_tokens() > 0) {
    spec.anchor_positions.push_back(transcript.shared_prefix_tokens());
  }
  spec.resident = runtime_.scheduler->Take(session_.id, spec.context);
  if (spec.resident) return spec;

  ASSIGN_OR_RETURN(Restored restored,
                   ReadRestorePoint(*runtime_.store, runtime_.owner, spec.context, from.limit,
                                    runtime_.csa_layers, [this] { return Stopping(); }));
  CrashPoint("agentd.restored");
  const int64_t position = restored.state ? restored.state->position : 0;
  const int64_t covered = std::max(restored.covered, from.offered);
  if (position > 0 || hot_->known_evaluated > 0 || hot_->after_crash) {
    resumed.emplace();
    resumed->set_restored(position);
    resumed->set_prefilled_again(covered - position);
    resumed->set_replayed(std::max<int64_t>(hot_->known_evaluated - covered, 0));
    resumed->set_after_crash(hot_->after_crash);
  }
  spec.stored = std::move(restored.state);
  from.point = std::move(restored.point);
  return spec;
}

absl::StatusOr<Turn::Stretch> Turn::Consume(Job& job, std::optional<v1::Resumed> resumed,
                                            Clock::time_point started) {
  Stretch stretch;
  absl::Status failed;
  std::vector<JobUpdate> updates;
  for (bool ended = false; !ended;) {
    const Clock::time_point deadline =
        group_.empty() ? Clock::now() + kIdleWait : group_started_ + kGroupTime;
    updates.clear();
    job.WaitUpdates(deadline, updates);
    for (JobUpdate& update : updates) {
      ended |= update.kind == JobUpdate::Kind::kEnd;
      if (failed.ok()) failed = Take(update, resumed, started, stretch);
    }
    if (failed.ok() && !group_.empty() && Clock::now() >= group_started_ + kGroupTime) {
      failed = WriteGroup();
    }
    // Nothing more can be logged, or is wanted; the end still comes.
    if (!failed.ok() || hot_->transcript.output_looping()) job.Cancel();
  }
  if (!failed.ok()) return failed;
  return stretch;
}

absl::Status Turn::Take(JobUpdate& update, std::optional<v1::Resumed>& resumed,
                        Clock::time_point started, Stretch& stretch) {
  switch (update.kind) {
    case JobUpdate::Kind::kProgress: {
      if (update.total < kProgressTokens) return absl::OkStatus();
      v1::Event event;
      event.set_session_id(session_.id);
      event.mutable_progress()->set_what("prefill");
      event.mutable_progress()->set_done(update.done);
      event.mutable_progress()->set_total(update.total);
      session_.hub->PublishEphemeral(std::move(event));
      return absl::OkStatus();
    }
    case JobUpdate::Kind::kFirstLogits: {
      if (!resumed) return absl::OkStatus();
      resumed->set_duration_us(
          std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - started).count());
      spdlog::info("session {}: restored {} tokens, replayed {}, prefilled again {}, in {} us",
                   session_.id, resumed->restored(), resumed->replayed(),
                   resumed->prefilled_again(), resumed->duration_us());
      hot_->after_crash = false;
      const v1::Resumed event = *std::exchange(resumed, std::nullopt);
      return Write({MakeEvent(event)});
    }
    case JobUpdate::Kind::kToken:
      if (hot_->transcript.output_looping()) return absl::OkStatus();
      if (group_.empty()) group_started_ = Clock::now();
      group_.push_back(update.token);
      return group_.size() >= kGroupTokens ? WriteGroup() : absl::OkStatus();
    case JobUpdate::Kind::kKv:
      RETURN_IF_ERROR(WriteGroup());
      if (hot_->transcript.output_looping()) return absl::OkStatus();  // of tokens past the log's
      CrashPoint("agentd.anchor");
      return log_->AppendKv(std::move(update.kv));
    case JobUpdate::Kind::kEnd:
      stretch.end = update.end;
      stretch.error = Text(update.status);
      stretch.fitting_blocks = update.fitting_blocks;
      stretch.lost = std::move(update.lost);
      stretch.anchored_at = update.anchored_at;
      return WriteGroup();
  }
  return absl::OkStatus();
}

absl::Status Turn::WriteGroup() {
  if (group_.empty()) return absl::OkStatus();
  CrashPoint("agentd.tokens");
  std::vector<TokenId> group = std::exchange(group_, {});
  // Which tokens came together depends on the clock; where a looping message ends must not.
  group.resize(hot_->transcript.TokensUntilLoop(group));
  return Write({NewEvent::Tokens(std::move(group), /*sampled=*/true)});
}

// The model's message is over although it did not end it.
absl::Status Turn::EndMessage() {
  return Write({NewEvent::Tokens({runtime_.model->special.eos}, /*sampled=*/false)});
}

// Makes the conversation well-formed: a cut prompt is completed, a message ended, every call
// answered.
absl::Status Turn::FinishOpenParts() {
  const Transcript& transcript = hot_->transcript;
  const auto room = [&] {
    return runtime_.model->context_limit_tokens - static_cast<int64_t>(transcript.tokens().size());
  };
  if (transcript.prompt_cut()) {
    absl::StatusOr<std::vector<TokenId>> rest = transcript.RenderPrompt();
    if (rest.ok() && static_cast<int64_t>(rest->size()) < room()) {
      RETURN_IF_ERROR(Write({NewEvent::Tokens(std::move(rest).value(), /*sampled=*/false)}));
    }
  }
  if (transcript.output_open() && room() > 0) RETURN_IF_ERROR(EndMessage());
  for (size_t i = 0; i < transcript.calls().size(); ++i) {
    const CallState& call = transcript.calls()[i];
    if (call.result) continue;
    RETURN_IF_ERROR(Write({MakeEvent(CutOffResult(call, v1::TOOL_OUTCOME_CANCELLED,
                                                  "Error: cancelled before there was a result"))}));
  }
  return absl::OkStatus();
}

absl::Status Turn::Close(v1::TurnEnd end, const std::string& error) {
  RETURN_IF_ERROR(FinishOpenParts());
  CrashPoint("agentd.turn_finishing");
  const Transcript& transcript = hot_->transcript;
  const TurnUsage usage = transcript.usage();
  v1::TurnFinished finished;
  finished.set_end(end);
  finished.set_answer(transcript.answer());
  finished.set_error(error);
  finished.set_prompt_tokens(usage.prompt_tokens);
  finished.set_sampled_tokens(usage.sampled_tokens);
  finished.set_tool_calls(usage.tool_calls);
  finished.set_repaired_calls(usage.repaired_calls);
  finished.set_refused_calls(usage.refused_calls);
  const int64_t now_us = std::chrono::duration_cast<std::chrono::microseconds>(
                             std::chrono::system_clock::now().time_since_epoch())
                             .count();
  finished.set_duration_ms(std::max<int64_t>(now_us - usage.started_us, 0) / 1000);

  sessions::Event folded;
  folded.seq = transcript.last_seq() + 1;
  NewEvent event = MakeEvent(finished);
  folded.kind = event.kind;
  folded.payload = event.payload;
  RETURN_IF_ERROR(hot_->transcript.Apply(folded));
  session_.hub->HoldNews();  // until Leave has given the session back
  RETURN_IF_ERROR(log_->AppendWithMeta(
      {std::move(event)}, WithPhase(meta_, v1::SessionMeta::IDLE).SerializeAsString()));
  RETURN_IF_ERROR(log_->Flush());
  CrashPoint("agentd.turn_finished");
  closed_ = true;
  // From here on this process evaluated all but the last token itself.
  hot_->known_evaluated = hot_->transcript.known_evaluated();
  return absl::OkStatus();
}

}  // namespace agentd::daemon
