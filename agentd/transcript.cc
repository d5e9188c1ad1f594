#include "agentd/transcript.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "agentd/event_kinds.h"
#include "base/status.h"

namespace agentd::daemon {

Transcript::Transcript(const ModelBundle& model, const v1::SessionConfig& config,
                       const std::vector<std::string>& tool_schemas)
    : model_(&model), chat_options_(ChatOptionsOf(config)) {
  model::Message system;
  system.role = model::Role::kSystem;
  system.content = config.system();
  system.tools = tool_schemas;
  messages_.push_back(std::move(system));
}

absl::Status Transcript::Apply(const sessions::Event& event) {
  last_seq_ = event.seq;
  switch (event.kind) {
    case static_cast<uint8_t>(sessions::EventKind::kTokens):
      return ApplyTokens(event);
    case static_cast<uint8_t>(sessions::EventKind::kWorkspace): {
      if (event.payload.size() != sizeof(sessions::TreeId)) {
        return DataLoss("event {}: a workspace id of {} bytes", event.seq, event.payload.size());
      }
      workspace_.emplace();
      std::copy(event.payload.begin(), event.payload.end(), workspace_->begin());
      return absl::OkStatus();
    }
    case KindOf<v1::TurnStarted>::value:
      ++turns_;
      turn_started_seq_ = event.seq;
      usage_ = TurnUsage{};
      usage_.started_us = event.time_us;
      return absl::OkStatus();
    case KindOf<v1::UserMessage>::value:
      return ApplyUserMessage(event);
    case KindOf<v1::ToolStarted>::value:
      return ApplyToolStarted(event);
    case KindOf<v1::ToolFinished>::value:
      return ApplyToolFinished(event);
    case KindOf<v1::ApprovalAsked>::value:
      return ApplyApprovalAsked(event);
    case KindOf<v1::ApprovalAnswered>::value:
      return ApplyApprovalAnswered(event);
    case KindOf<v1::OutputKept>::value:
      return ApplyOutputKept(event);
    case KindOf<v1::TurnFinished>::value:
      CloseOutput();
      AbandonOutput();
      turn_open_ = false;
      return absl::OkStatus();
    default:
      return absl::OkStatus();  // Resumed, Rewound, SeedChanged, Note, ModelAdopted change nothing
                                // here
  }
}

absl::Status Transcript::ApplyUserMessage(const sessions::Event& event) {
  ASSIGN_OR_RETURN(v1::UserMessage message, ReadPayload<v1::UserMessage>(event));
  if (turn_open_) return DataLoss("event {}: a user message inside a turn", event.seq);
  model::Message user;
  user.role = model::Role::kUser;
  user.content = message.text();
  messages_.push_back(std::move(user));
  turn_open_ = true;
  return absl::OkStatus();
}

absl::Status Transcript::ApplyTokens(const sessions::Event& event) {
  if (!event.sampled) {
    ApplyPromptTokens(event.tokens);
    return absl::OkStatus();
  }
  if (!output_open()) return DataLoss("event {}: sampled tokens outside a message", event.seq);
  OutputReader::Delta delta;
  for (TokenId token : event.tokens) output_->Feed(token, delta);
  tokens_.insert(tokens_.end(), event.tokens.begin(), event.tokens.end());
  usage_.sampled_tokens += static_cast<int64_t>(event.tokens.size());
  known_evaluated_ = static_cast<int64_t>(tokens_.size()) - 1;
  if (output_->finished()) CloseOutput();
  return absl::OkStatus();
}

// Text of the template, of people or of tools. When it is complete the model writes.
void Transcript::ApplyPromptTokens(const std::vector<TokenId>& tokens) {
  if (shared_prefix_tokens_ == 0) {
    auto user = std::find(tokens.begin(), tokens.end(), model_->special.user);
    if (user != tokens.end()) {
      shared_prefix_tokens_ = static_cast<int64_t>(tokens_.size()) + (user - tokens.begin());
    }
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  usage_.prompt_tokens += static_cast<int64_t>(tokens.size());
  if (output_open()) {  // the end of a message that was cut short
    CloseOutput();
    return;
  }
  partial_prompt_.insert(partial_prompt_.end(), tokens.begin(), tokens.end());
  const size_t n = partial_prompt_.size();
  const TokenId last = n > 0 ? partial_prompt_[n - 1] : -1;
  const bool complete = n > 1 && partial_prompt_[n - 2] == model_->special.assistant &&
                        (last == model_->special.think || last == model_->special.end_think);
  if (!complete) return;
  partial_prompt_.clear();
  rendered_messages_ = messages_.size();
  calls_.clear();
  output_.emplace(*model_, last == model_->special.think);
  written_ = false;
}

// The message is written: its calls become known.
void Transcript::CloseOutput() {
  if (!output_ || written_) return;
  OutputReader::Delta delta;
  output_->Finish(delta);
  written_ = true;
  const tools::DsmlParser& parser = output_->parser();
  answer_ = parser.content();
  usage_.repaired_calls += parser.repairs();
  model::Message assistant;
  assistant.role = model::Role::kAssistant;
  assistant.content = parser.content();
  assistant.reasoning = parser.reasoning();
  for (const tools::ParsedCall& call : parser.calls()) {
    CallState state;
    state.id = fmt::format("call_{}", ++calls_in_session_);
    state.call = call;
    assistant.tool_calls.push_back({state.id, call.name, call.arguments});
    calls_.push_back(std::move(state));
  }
  messages_.push_back(std::move(assistant));
  rendered_messages_ = messages_.size();
}

// The turn ends here: calls without a result never ran and are no part of the conversation's rules.
void Transcript::AbandonOutput() {
  const bool unanswered =
      std::any_of(calls_.begin(), calls_.end(), [](const CallState& call) { return !call.result; });
  if (unanswered) {
    for (auto message = messages_.rbegin(); message != messages_.rend(); ++message) {
      if (message->role != model::Role::kAssistant) continue;
      std::erase_if(message->tool_calls, [this](const model::ToolCall& call) {
        CallState* state = FindCall(call.id);
        return state != nullptr && !state->result;
      });
      break;
    }
  }
  calls_.clear();
  output_.reset();
}

CallState* Transcript::FindCall(const std::string& id) {
  auto it = std::find_if(calls_.begin(), calls_.end(),
                         [&](const CallState& call) { return call.id == id; });
  return it == calls_.end() ? nullptr : &*it;
}

bool Transcript::call_cut_off() const {
  return std::any_of(calls_.begin(), calls_.end(),
                     [](const CallState& call) { return call.attempts > 0 && !call.result; });
}

absl::Status Transcript::ApplyToolStarted(const sessions::Event& event) {
  ASSIGN_OR_RETURN(v1::ToolStarted started, ReadPayload<v1::ToolStarted>(event));
  CallState* call = FindCall(started.call_id());
  if (call == nullptr) {
    return DataLoss("event {}: starts call {}, which the model did not make", event.seq,
                    started.call_id());
  }
  if (call->attempts == 0) {
    ++usage_.tool_calls;
    if (started.arguments_json() != call->call.arguments) ++usage_.repaired_calls;
  }
  call->attempts = started.attempt();
  return absl::OkStatus();
}

absl::Status Transcript::ApplyToolFinished(const sessions::Event& event) {
  ASSIGN_OR_RETURN(v1::ToolFinished finished, ReadPayload<v1::ToolFinished>(event));
  CallState* call = FindCall(finished.call_id());
  if (call == nullptr || call->result) {
    return DataLoss("event {}: a result for call {}, which waits for none", event.seq,
                    finished.call_id());
  }
  if (call->attempts == 0) ++usage_.tool_calls;
  if (finished.outcome() == v1::TOOL_OUTCOME_REFUSED) ++usage_.refused_calls;
  model::Message result;
  result.role = model::Role::kTool;
  result.tool_call_id = finished.call_id();
  result.content = finished.text();
  messages_.push_back(std::move(result));
  call->result = std::move(finished);
  return absl::OkStatus();
}

absl::Status Transcript::ApplyApprovalAsked(const sessions::Event& event) {
  ASSIGN_OR_RETURN(v1::ApprovalAsked asked, ReadPayload<v1::ApprovalAsked>(event));
  CallState* call = FindCall(asked.call_id());
  if (call == nullptr || call->result) {
    return DataLoss("event {}: asks about call {}, which does not wait", event.seq,
                    asked.call_id());
  }
  call->asked = std::move(asked);
  call->answered.reset();
  return absl::OkStatus();
}

absl::Status Transcript::ApplyApprovalAnswered(const sessions::Event& event) {
  ASSIGN_OR_RETURN(v1::ApprovalAnswered answered, ReadPayload<v1::ApprovalAnswered>(event));
  CallState* call = FindCall(answered.call_id());
  if (call == nullptr || !call->asked || call->answered) {
    return DataLoss("event {}: answers about call {}, which nobody asked", event.seq,
                    answered.call_id());
  }
  if (answered.decision() == v1::APPROVAL_DECISION_ALLOW_SESSION)
    allowed_rules_.insert(answered.rule());
  call->answered = std::move(answered);
  return absl::OkStatus();
}

absl::Status Transcript::ApplyOutputKept(const sessions::Event& event) {
  ASSIGN_OR_RETURN(const v1::OutputKept kept, ReadPayload<v1::OutputKept>(event));
  if (kept_outputs_.empty() || kept_outputs_.back().call_id != kept.call_id())
    kept_outputs_.push_back({.call_id = kept.call_id()});
  kept_outputs_.back().seqs.push_back(event.seq);
  return absl::OkStatus();
}

size_t Transcript::TokensUntilLoop(const std::vector<TokenId>& tokens) const {
  if (!output_open()) return tokens.size();
  OutputReader reader = *output_;
  OutputReader::Delta delta;
  for (size_t i = 0; i < tokens.size(); ++i) {
    reader.Feed(tokens[i], delta);
    if (reader.parser().looping()) return i + 1;
  }
  return tokens.size();
}

Phase Transcript::phase() const {
  if (!turn_open_) return Phase::kIdle;
  if (output_open()) return Phase::kDecode;
  if (rendered_messages_ < messages_.size()) {
    const bool waiting = std::any_of(calls_.begin(), calls_.end(),
                                     [](const CallState& call) { return !call.result; });
    return waiting ? Phase::kCalls : Phase::kPrompt;
  }
  return calls_.empty() ? Phase::kAnswer : Phase::kCalls;
}

absl::StatusOr<std::vector<TokenId>> Transcript::Render(
    const std::vector<model::Message>& messages) const {
  std::vector<model::Piece> pieces;
  if (tokens_.size() == partial_prompt_.size()) {  // the first prompt, perhaps cut
    ASSIGN_OR_RETURN(pieces, model::RenderChat(messages, chat_options_));
  } else {
    ASSIGN_OR_RETURN(pieces,
                     model::RenderContinuation(messages, rendered_messages_, chat_options_));
  }
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, model_->tokenizer->Encode(pieces));
  if (tokens.size() < partial_prompt_.size() ||
      !std::equal(partial_prompt_.begin(), partial_prompt_.end(), tokens.begin())) {
    return FailedPrecondition(
        "the context ends inside a prompt that this daemon would render differently; rewind to an "
        "earlier point");
  }
  tokens.erase(tokens.begin(), tokens.begin() + static_cast<int64_t>(partial_prompt_.size()));
  return tokens;
}

absl::StatusOr<std::vector<TokenId>> Transcript::RenderPrompt() const { return Render(messages_); }

absl::StatusOr<std::vector<TokenId>> Transcript::RenderWithUserMessage(
    const std::string& text) const {
  std::vector<model::Message> messages = messages_;
  model::Message user;
  user.role = model::Role::kUser;
  user.content = text;
  messages.push_back(std::move(user));
  return Render(messages);
}

}  // namespace agentd::daemon
