// The part of a turn that asks a person: rules, questions and answers in the log, waiting.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "agentd/event_kinds.h"
#include "agentd/rpc_status.h"
#include "agentd/turn.h"
#include "agentd/utf8.h"
#include "base/status.h"
#include "sessions/crash_point.h"

namespace agentd::daemon {
namespace {

using sessions::NewEvent;
using sessions::internal::CrashPoint;

constexpr size_t kMaxAnswerBytes = 2000;  // of a reason that the model reads

std::string NotAllowed(const std::string& tool, const std::string& why) {
  return why.empty() ? fmt::format("Error: {}: this call is not allowed", tool)
                     : fmt::format("Error: {}: this call is not allowed: {}", tool, why);
}

absl::Status NoApproval(const std::string& session_id, const std::string& call_id) {
  return WithReason(FailedPrecondition("session {}: {} waits for an answer", session_id,
                                       call_id.empty() ? "no call" : "no call " + call_id),
                    "NO_APPROVAL");
}

}  // namespace

// What the rules and people say of a call that could run. A person's no holds whatever the rules
// say now; a person's yes is to one call, or to all that one rule asks about.
void Turn::CheckRules(PreparedCall& prepared) {
  const CallState& call = *prepared.call;
  const auto refuse = [&](const std::string& why) {
    prepared.tool = nullptr;
    prepared.refusal =
        CutOffResult(call, v1::TOOL_OUTCOME_REFUSED, NotAllowed(call.call.name, why));
  };
  if (call.answered && call.answered->decision() == v1::APPROVAL_DECISION_DENY)
    return refuse(call.answered->reason());
  const tools::Decision decision = runtime_.tools_config->rules.Decide(
      call.call.name, prepared.arguments, prepared.tool->spec().flags.needs_approval);
  if (decision.action == tools::RuleAction::kDeny) return refuse(decision.reason);
  if (decision.action == tools::RuleAction::kAllow) return;
  if (call.answered || hot_->transcript.Allows(decision.rule)) return;
  v1::ApprovalAsked asked;
  asked.set_call_id(call.id);
  asked.set_name(call.call.name);
  asked.set_arguments_json(prepared.arguments);
  asked.set_rule(decision.rule);
  asked.set_reason(decision.reason);
  prepared.ask = std::move(asked);
}

// Returns when no call waits for a person, or the turn is to stop.
absl::Status Turn::AwaitApprovals(std::vector<PreparedCall>& calls) {
  std::vector<NewEvent> questions;
  for (const PreparedCall& call : calls) {
    // Asked again by each process: who follows the turn now may not have seen it.
    if (call.ask && asked_.insert(call.call->id).second) questions.push_back(MakeEvent(*call.ask));
  }
  if (!questions.empty()) {
    RETURN_IF_ERROR(WriteDurably(std::move(questions)));
    CrashPoint("agentd.approval_asked");
  }
  const auto asks = [](const PreparedCall& call) { return call.ask.has_value(); };
  // A no that came while a yes to all of its kind was written still counts.
  while (std::any_of(calls.begin(), calls.end(), asks) || AnswersQueued()) {
    std::vector<Answer> answers = WaitForAnswers(calls);
    if (answers.empty()) break;  // to stop
    std::vector<NewEvent> events;
    for (const Answer& answer : answers) events.push_back(MakeEvent(answer.answered));
    const absl::Status written = WriteDurably(std::move(events));
    for (Answer& answer : answers) answer.done(written);
    RETURN_IF_ERROR(written);
    CrashPoint("agentd.approval_answered");
    for (PreparedCall& call : calls) {
      if (call.call->asked) call = Prepare(*call.call);
    }
  }
  RefuseAnswers();
  return absl::OkStatus();
}

// At least one answer, or none because the turn is to stop. Answers that come while others are
// written stay queued for the next time.
std::vector<Turn::Answer> Turn::WaitForAnswers(const std::vector<PreparedCall>& calls) {
  std::unique_lock lock(mutex_);
  waiting_for_.clear();
  for (const PreparedCall& call : calls) {
    const bool answered =
        call.ask && std::any_of(answers_.begin(), answers_.end(), [&](const Answer& answer) {
          return answer.answered.call_id() == call.call->id;
        });
    if (call.ask && !answered) waiting_for_.push_back(*call.ask);
  }
  changed_.wait(lock, [this] { return Stopping() || !answers_.empty(); });
  return Stopping() ? std::vector<Answer>() : std::exchange(answers_, {});
}

bool Turn::AnswersQueued() {
  std::lock_guard lock(mutex_);
  return !answers_.empty();
}

std::vector<v1::ApprovalAsked> Turn::waiting_for() {
  std::lock_guard lock(mutex_);
  return waiting_for_;
}

void Turn::AnswerApproval(const v1::AnswerApprovalRequest& request,
                          std::function<void(absl::Status)> done) {
  {
    std::lock_guard lock(mutex_);
    const auto asked =
        std::find_if(waiting_for_.begin(), waiting_for_.end(), [&](const v1::ApprovalAsked& one) {
          return request.call_id().empty() ? waiting_for_.size() == 1
                                           : one.call_id() == request.call_id();
        });
    if (asked != waiting_for_.end()) {
      Answer answer;
      answer.answered.set_call_id(asked->call_id());
      answer.answered.set_decision(request.decision());
      answer.answered.set_reason(CutUtf8(request.reason(), kMaxAnswerBytes, "…"));
      answer.answered.set_rule(asked->rule());
      answer.done = std::move(done);
      answers_.push_back(std::move(answer));
      waiting_for_.erase(asked);
      changed_.notify_all();
      return;
    }
  }
  done(NoApproval(session_.id, request.call_id()));
}

// Nothing waits any more: what came too late was not written.
void Turn::RefuseAnswers() {
  std::vector<Answer> answers;
  {
    std::lock_guard lock(mutex_);
    waiting_for_.clear();
    answers.swap(answers_);
  }
  for (Answer& answer : answers) answer.done(NoApproval(session_.id, answer.answered.call_id()));
}

}  // namespace agentd::daemon
