// The part of a turn that runs tools: journal, sandbox, results.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "agentd/event_kinds.h"
#include "agentd/kept_outputs.h"
#include "agentd/turn.h"
#include "agentd/utf8.h"
#include "base/status.h"
#include "sessions/crash_point.h"
#include "tools/mcp/session.h"
#include "tools/text.h"

namespace agentd::daemon {
namespace {

using sessions::NewEvent;
using sessions::internal::CrashPoint;

// A call that was started so often without a result may be what ends the daemon.
constexpr int kMaxAttempts = 5;
constexpr size_t kMaxReasonBytes = 500;  // of an error that the model reads
constexpr char kOutcomeUnknown[] =
    "Error: outcome unknown: the daemon stopped while this call was running; it may or may not "
    "have taken effect";

v1::ToolFinished Refuse(const CallState& call, const std::string& text) {
  return CutOffResult(call, v1::TOOL_OUTCOME_REFUSED, text);
}

NewEvent StartedEvent(const CallState& call, const std::string& arguments,
                      const std::vector<std::string>& missing_walls) {
  v1::ToolStarted started;
  for (const std::string& wall : missing_walls) started.add_missing_walls(wall);
  started.set_call_id(call.id);
  started.set_name(call.call.name);
  started.set_arguments_json(arguments);
  started.set_attempt(call.attempts + 1);
  return MakeEvent(started);
}

// A call that was running when the process died may run again only if that cannot do harm: its
// workspace is put back first, or it says so itself.
bool MayRunAgain(const tools::ToolFlags& flags) {
  return flags.workspace_only || flags.read_only || flags.idempotent;
}

bool MayRunBeside(const tools::ToolFlags& flags) { return flags.read_only || flags.parallel; }

}  // namespace

v1::ToolFinished CutOffResult(const CallState& call, v1::ToolOutcome outcome,
                              const std::string& text) {
  v1::ToolFinished finished;
  finished.set_call_id(call.id);
  finished.set_name(call.call.name);
  finished.set_outcome(outcome);
  finished.set_text(text);
  return finished;
}

// What the session's servers have said of their tools holds for turns that begin from now on.
void Turn::TakeToolChanges() {
  if (hot_->tools.mcp() != nullptr && hot_->tools.mcp()->TakeToolChanges())
    runtime_.tools_changed();
  tools_ = runtime_.tool_sets->current();
}

// Decides whether a call runs, and answers it if not.
Turn::PreparedCall Turn::Prepare(const CallState& call) {
  PreparedCall prepared;
  prepared.call = &call;
  if (!call.call.error.empty()) {
    prepared.refusal = Refuse(call, call.call.error);
    return prepared;
  }
  const std::string& name = call.call.name;
  const bool offered =
      std::find(config_.tools().begin(), config_.tools().end(), name) != config_.tools().end();
  const tools::Tool* tool = offered ? tools_->registry.Find(name) : nullptr;
  if (tool == nullptr) {
    // The prompt names it all the same: it was there when the session began.
    prepared.refusal =
        Refuse(call, offered ? fmt::format("Error: {}: this tool is not there any more; go on "
                                           "without it",
                                           name)
                             : fmt::format("Error: unknown tool {}", name));
    return prepared;
  }
  // A function of the call alone: a second run after a crash gets the same arguments.
  absl::StatusOr<std::string> fitted = tools_->registry.FitArguments(name, call.call.arguments);
  if (!fitted.ok()) {
    prepared.refusal = Refuse(call, Text(fitted.status()));
    return prepared;
  }
  prepared.arguments = *std::move(fitted);
  if (call.attempts >= kMaxAttempts || (call.attempts > 0 && !MayRunAgain(tool->spec().flags))) {
    prepared.refusal = CutOffResult(call, v1::TOOL_OUTCOME_UNKNOWN, kOutcomeUnknown);
    return prepared;
  }
  prepared.tool = tool;
  CheckRules(prepared);
  return prepared;
}

absl::Status Turn::RunCalls() {
  // Calls of the transcript stay where they are while their message is answered; events only fill
  // them in.
  std::vector<PreparedCall> calls;
  const int64_t allowed = config_.max_turn_calls() - hot_->transcript.usage().tool_calls;
  int64_t fresh = 0;
  bool over_limit = false;
  for (const CallState& call : hot_->transcript.calls()) {
    if (call.result) continue;
    if (call.attempts == 0 && ++fresh > allowed) {
      over_limit = true;
      break;
    }
    calls.push_back(Prepare(call));
  }
  RETURN_IF_ERROR(AwaitApprovals(calls));
  if (Stopping()) return absl::OkStatus();
  const bool any_run =
      std::any_of(calls.begin(), calls.end(), [](const PreparedCall& c) { return c.tool; });
  if (any_run) {
    absl::Status ready = StartSandbox();
    if (!ready.ok()) {
      // The store's alone, when it puts the workspace back: a sandbox's has another code.
      if (absl::IsResourceExhausted(ready) || absl::IsUnavailable(ready)) return ready;
      for (PreparedCall& call : calls) {
        if (!call.tool) continue;
        call.tool = nullptr;
        call.refusal = Refuse(*call.call, "Error: the tool was not run: " + Text(ready));
      }
    }
  }
  const bool parallel =
      calls.size() > 1 && std::all_of(calls.begin(), calls.end(), [](const PreparedCall& call) {
        return !call.tool || MayRunBeside(call.tool->spec().flags);
      });
  if (parallel) {
    RETURN_IF_ERROR(RunParallel(calls));
  } else {
    for (const PreparedCall& call : calls) {
      if (Stopping()) return absl::OkStatus();
      RETURN_IF_ERROR(RunOne(call));
    }
  }
  if (over_limit && !Stopping()) return Close(v1::TURN_END_CALL_LIMIT);
  return absl::OkStatus();
}

absl::Status Turn::StartSandbox() {
  if (sandbox_failed_.exchange(false)) hot_->tools.Stop();
  if (!hot_->workspace_ready) hot_->tools.Stop();  // what it runs would hold the old tree's lock
  RETURN_IF_ERROR(EnsureWorkspace(runtime_, session_.id, *hot_));
  RETURN_IF_ERROR(EnsureOutputs(runtime_, session_, *hot_));
  sandbox::Options options;
  options.workspace = runtime_.WorkspaceOf(session_.id);
  options.lock_file = runtime_.LockOf(session_.id);
  options.helper_dir = runtime_.helper_dir;
  options.outputs = runtime_.OutputsOf(session_.id);
  options.mounts = runtime_.tools_config->mounts;
  options.max_workspace_bytes = runtime_.tools_config->workspace_bytes;
  options.max_workspace_files = runtime_.tools_config->workspace_files;
  options.total = runtime_.tools_config->session;
  // So that no session takes the daemon's own memory.
  if (options.total.memory_bytes == 0)
    options.total.memory_bytes = sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / 4 * 3;
  absl::Status started = hot_->tools.Start(options, runtime_.mcp_servers);
  return started.ok() ? started : NotTheStores(started);
}

// Runs a prepared call to its end. Any thread.
Turn::Executed Turn::Execute(const PreparedCall& prepared) {
  const CallState& call = *prepared.call;
  std::atomic<bool> spawned{false};
  tools::Utf8Cleaner cleaner;  // a character that two chunks share is held until it is whole
  auto publish = [&](const std::string& text) {
    if (text.empty()) return;
    v1::Event event;
    event.set_session_id(session_.id);
    event.mutable_tool_output()->set_call_id(call.id);
    event.mutable_tool_output()->set_chunk(text);
    session_.hub->PublishEphemeral(std::move(event));
  };
  tools::ToolContext context;
  context.sandbox = hot_->tools.sandbox();
  context.shell = hot_->tools.shell();
  context.mcp = hot_->tools.mcp();
  context.proxy = runtime_.proxy;
  context.call_id = call.id;
  context.kept_output_bytes = runtime_.tools_config->kept_output_bytes;
  context.cancel = &tool_cancel_;
  context.on_output = [&](std::string_view chunk) {
    if (!spawned.exchange(true)) CrashPoint("agentd.tool_running");
    std::string text;
    cleaner.Append(chunk, text);
    publish(text);
  };
  absl::StatusOr<tools::ToolResult> result = prepared.tool->Run(prepared.arguments, context);
  std::string rest;
  cleaner.Finish(rest);
  publish(rest);
  CrashPoint("agentd.tool_exited");
  if (!result.ok()) {
    spdlog::warn("session {}: {}: {}", session_.id, call.call.name, Text(result.status()));
    sandbox_failed_.store(true);
    return {CutOffResult(call,
                         absl::IsFailedPrecondition(result.status()) ? v1::TOOL_OUTCOME_REFUSED
                                                                     : v1::TOOL_OUTCOME_ERROR,
                         "Error: the sandbox failed: " + Text(result.status())),
            "", false};
  }
  v1::ToolFinished finished = CutOffResult(
      call, result->is_error ? v1::TOOL_OUTCOME_ERROR : v1::TOOL_OUTCOME_OK, result->text);
  if (result->cancelled) finished.set_outcome(v1::TOOL_OUTCOME_CANCELLED);
  finished.set_exit_code(result->exit_code);
  finished.set_output_bytes(result->output_bytes);
  finished.set_wall_time_us(result->wall_time_us);
  for (const sandbox::EgressDecision& decision : result->network) {
    v1::NetworkUse& use = *finished.add_network();
    use.set_host(ValidUtf8(decision.host));
    use.set_port(decision.port);
    use.set_address(decision.address);
    use.set_allowed(decision.allowed);
    use.set_reason(ValidUtf8(decision.reason));
    use.set_bytes_up(decision.bytes_up);
    use.set_bytes_down(decision.bytes_down);
  }
  return {std::move(finished), std::move(result->whole), result->workspace_full};
}

std::vector<NewEvent> Turn::ResultEvents(const Executed& executed) {
  std::vector<NewEvent> events = KeepOutput(executed.finished.call_id(), executed.whole);
  events.push_back(MakeEvent(executed.finished));
  return events;
}

// The events of calls that may have written: their results and the workspace's new tree. If the
// workspace cannot be stored as they left it, its changes are undone and the model is told.
absl::StatusOr<std::vector<NewEvent>> Turn::SaveWorkspace(std::vector<Executed> executed) {
  absl::StatusOr<sessions::WorkspaceSnapshot> snapshot =
      runtime_.store->SnapshotWorkspace(runtime_.WorkspaceOf(session_.id));
  if (absl::IsUnavailable(snapshot.status())) return snapshot.status();
  std::vector<NewEvent> events;
  if (!snapshot.ok()) {
    // A full disk is none of the calls' doing; the commit that follows finds it too and waits.
    spdlog::warn("session {}: the workspace is not saved: {}", session_.id,
                 Text(snapshot.status()));
    for (Executed& call : executed) {
      call.whole.clear();
      call.finished.set_outcome(v1::TOOL_OUTCOME_ERROR);
      call.finished.set_text(ValidUtf8(
          "Error: the workspace could not be saved after this call, so its changes were undone: " +
          Text(snapshot.status()).substr(0, kMaxReasonBytes)));
    }
    hot_->workspace_ready = false;
    absl::Status undone = StartSandbox();
    if (!undone.ok()) spdlog::warn("session {}: undo: {}", session_.id, Text(undone));
  } else {
    TellIfFull(*snapshot, executed);
  }
  for (const Executed& call : executed) {
    for (NewEvent& event : ResultEvents(call)) events.push_back(std::move(event));
  }
  if (snapshot.ok() && snapshot->tree != hot_->transcript.workspace()) {
    events.push_back(NewEvent::Workspace(*snapshot));
  }
  return events;
}

// The sandbox ends calls that it sees enlarge the workspace too much; this is for those that were
// over before it looked.
void Turn::TellIfFull(const sessions::WorkspaceSnapshot& snapshot,
                      std::vector<Executed>& executed) {
  const sandbox::TreeSize size{snapshot.allocated_bytes, snapshot.entries};
  const std::string full = sandbox::WorkspaceFull(
      size, std::exchange(hot_->workspace_size, size),
      {runtime_.tools_config->workspace_bytes, runtime_.tools_config->workspace_files});
  if (full.empty()) return;
  spdlog::info("session {}: {}", session_.id, full);
  for (Executed& call : executed) {
    if (call.workspace_full) continue;
    std::string& text = *call.finished.mutable_text();
    text += fmt::format("{}[{}: delete what is not needed]", text.empty() ? "" : "\n", full);
  }
}

absl::Status Turn::RunOne(const PreparedCall& prepared) {
  if (!prepared.tool) return WriteDurably({MakeEvent(*prepared.refusal)});
  absl::Status ready = StartSandbox();  // a call before this one may have ended it
  if (!ready.ok()) {
    return WriteDurably(
        {MakeEvent(Refuse(*prepared.call, "Error: the tool was not run: " + Text(ready)))});
  }
  CrashPoint("agentd.call_ready");
  RETURN_IF_ERROR(WriteDurably(
      {StartedEvent(*prepared.call, prepared.arguments, hot_->tools.sandbox()->missing_walls())}));
  CrashPoint("agentd.call_journaled");
  Executed executed = Execute(prepared);
  // Parked in mid-call: the call has no result; it runs again when the turn goes on.
  if (CutByParking(executed)) {
    hot_->workspace_ready = false;
    return absl::OkStatus();
  }
  std::vector<NewEvent> events;
  if (prepared.tool->spec().flags.read_only) {
    events = ResultEvents(executed);
  } else {
    std::vector<Executed> one;
    one.push_back(std::move(executed));
    ASSIGN_OR_RETURN(events, SaveWorkspace(std::move(one)));
  }
  CrashPoint("agentd.result_ready");
  RETURN_IF_ERROR(WriteDurably(std::move(events)));
  CrashPoint("agentd.result_committed");
  return absl::OkStatus();
}

bool Turn::CutByParking(const Executed& executed) const {
  return parking_.load() && executed.finished.outcome() == v1::TOOL_OUTCOME_CANCELLED;
}

// Calls that may run beside each other, several at once. Results are written in the order of the
// calls; those of calls that may have written only together with the workspace that they all left.
absl::Status Turn::RunParallel(const std::vector<PreparedCall>& calls) {
  std::vector<NewEvent> begun;
  std::vector<const PreparedCall*> queue;
  for (const PreparedCall& call : calls) {
    if (call.tool) {
      begun.push_back(
          StartedEvent(*call.call, call.arguments, hot_->tools.sandbox()->missing_walls()));
      queue.push_back(&call);
    } else {
      begun.push_back(MakeEvent(*call.refusal));
    }
  }
  RETURN_IF_ERROR(WriteDurably(std::move(begun)));
  CrashPoint("agentd.call_journaled");
  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<std::optional<Executed>> results(queue.size());  // guarded by mutex
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  const size_t at_once = static_cast<size_t>(runtime_.tools_config->parallel_calls);
  for (size_t i = 0; i < std::min(queue.size(), at_once); ++i) {
    threads.emplace_back([&] {
      for (size_t at = next++; at < queue.size(); at = next++) {
        Executed executed = Execute(*queue[at]);
        std::lock_guard lock(mutex);
        results[at] = std::move(executed);
        arrived.notify_one();
      }
    });
  }
  absl::Status status;
  std::vector<Executed> wrote;
  for (size_t at = 0; at < queue.size(); ++at) {
    std::unique_lock lock(mutex);
    arrived.wait(lock, [&] { return results[at].has_value(); });
    Executed executed = *std::move(results[at]);
    lock.unlock();
    if (!queue[at]->tool->spec().flags.read_only) {
      wrote.push_back(std::move(executed));
    } else if (!CutByParking(executed) && status.ok()) {
      status = Write(ResultEvents(executed));
    }
  }
  for (std::thread& thread : threads) thread.join();
  RETURN_IF_ERROR(status);
  if (std::any_of(wrote.begin(), wrote.end(),
                  [this](const Executed& executed) { return CutByParking(executed); })) {
    hot_->workspace_ready = false;  // all of them run again, or are answered as unknown
  } else if (!wrote.empty()) {
    ASSIGN_OR_RETURN(std::vector<NewEvent> events, SaveWorkspace(std::move(wrote)));
    RETURN_IF_ERROR(Write(std::move(events)));
  }
  RETURN_IF_ERROR(log_->Flush());
  CrashPoint("agentd.result_committed");
  return absl::OkStatus();
}

}  // namespace agentd::daemon
