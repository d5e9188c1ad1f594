// A session's past, folded from its events: the messages so far, and where in a turn it stands.
// The turn that runs folds its own events the same way as they are written, so a session that comes
// back after a crash is in the very state that the crash interrupted.
#ifndef AGENTD_AGENTD_TRANSCRIPT_H_
#define AGENTD_AGENTD_TRANSCRIPT_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "agentd/model_bundle.h"
#include "agentd/output_reader.h"
#include "agentd/v1/agentd.pb.h"
#include "model/chat.h"
#include "sessions/store.h"

namespace agentd::daemon {

// What a session has to do next.
enum class Phase {
  kIdle,    // nothing: no turn is open
  kPrompt,  // render the messages that are not in the context yet, append their tokens
  kDecode,  // let the model write
  kCalls,   // the message is written and has calls without results
  kAnswer,  // the message is written and has no calls: the turn is over
};

struct CallState {
  std::string id;
  tools::ParsedCall call;
  int attempts = 0;                              // times it was started
  std::optional<v1::ApprovalAsked> asked;        // a person was asked ...
  std::optional<v1::ApprovalAnswered> answered;  // ... and said this
  std::optional<v1::ToolFinished> result;
};

// What a call wrote where its result shows only a part: in these events.
struct KeptOutput {
  std::string call_id;
  std::vector<uint64_t> seqs;
};

struct TurnUsage {
  int64_t started_us = 0;
  int64_t prompt_tokens = 0;
  int64_t sampled_tokens = 0;
  int32_t tool_calls = 0;
  int32_t repaired_calls = 0;
  int32_t refused_calls = 0;
};

// A value without locks; owned by whoever runs the session.
class Transcript {
 public:
  // `system`: the message that every rendering begins with.
  Transcript(const ModelBundle& model, const v1::SessionConfig& config,
             const std::vector<std::string>& tool_schemas);

  // Events in order, from the first. DataLoss names an event that cannot follow what was before.
  absl::Status Apply(const sessions::Event& event);

  Phase phase() const;
  // The tokens still to append in kPrompt (a cut prompt is completed).
  absl::StatusOr<std::vector<TokenId>> RenderPrompt() const;
  // The same if `text` came as a user message now; for a check before a turn is started.
  absl::StatusOr<std::vector<TokenId>> RenderWithUserMessage(const std::string& text) const;

  const std::vector<TokenId>& tokens() const { return tokens_; }
  const std::vector<CallState>& calls() const { return calls_; }
  // A call was started and has no result: it may have written half of what it would have.
  bool call_cut_off() const;
  const TurnUsage& usage() const { return usage_; }
  int32_t turns() const { return turns_; }
  uint64_t turn_started_seq() const { return turn_started_seq_; }
  uint64_t last_seq() const { return last_seq_; }
  // The model is writing: a message is open, whether or not it has tokens.
  bool output_open() const { return output_.has_value() && !output_->finished(); }
  // The model repeats tags in the open message and does not get out of it: the message is to be
  // ended here.
  bool output_looping() const { return output_open() && output_->parser().looping(); }
  // How many of these sampled tokens belong to the open message if it ends where it begins to loop.
  size_t TokensUntilLoop(const std::vector<TokenId>& tokens) const;
  // The context ends inside a prompt (a fork or rewind cut it).
  bool prompt_cut() const { return !partial_prompt_.empty(); }
  const std::string& answer() const { return answer_; }  // of the last written message
  const std::optional<sessions::TreeId>& workspace() const { return workspace_; }
  const std::vector<KeptOutput>& kept_outputs() const { return kept_outputs_; }
  // A person has allowed all that this rule asks about.
  bool Allows(const std::string& rule) const { return allowed_rules_.count(rule) > 0; }
  // Index of the last sampled token, so tokens [0, it) were evaluated; 0 if none was sampled.
  int64_t known_evaluated() const { return known_evaluated_; }
  // Where the text that all sessions with this configuration share ends (before the first user
  // message), in tokens; 0 if it is not in the context yet.
  int64_t shared_prefix_tokens() const { return shared_prefix_tokens_; }

 private:
  absl::Status ApplyTokens(const sessions::Event& event);
  absl::Status ApplyUserMessage(const sessions::Event& event);
  absl::Status ApplyToolStarted(const sessions::Event& event);
  absl::Status ApplyToolFinished(const sessions::Event& event);
  absl::Status ApplyApprovalAsked(const sessions::Event& event);
  absl::Status ApplyApprovalAnswered(const sessions::Event& event);
  absl::Status ApplyOutputKept(const sessions::Event& event);
  void ApplyPromptTokens(const std::vector<TokenId>& tokens);
  absl::StatusOr<std::vector<TokenId>> Render(const std::vector<model::Message>& messages) const;
  void CloseOutput();
  void AbandonOutput();
  CallState* FindCall(const std::string& id);

  const ModelBundle* model_;
  model::ChatOptions chat_options_;

  std::vector<model::Message> messages_;
  size_t rendered_messages_ = 0;         // these are in the context
  std::vector<TokenId> tokens_;          // the context
  std::vector<TokenId> partial_prompt_;  // appended of a prompt that is not complete
  std::optional<OutputReader> output_;   // the message being written, or just written
  bool written_ = false;                 // output_ is complete and one of messages_
  std::vector<CallState> calls_;         // of output_, once it is written
  bool turn_open_ = false;
  int32_t turns_ = 0;
  int32_t calls_in_session_ = 0;
  uint64_t turn_started_seq_ = 0;
  uint64_t last_seq_ = 0;
  std::string answer_;
  TurnUsage usage_;
  std::optional<sessions::TreeId> workspace_;
  std::vector<KeptOutput> kept_outputs_;
  std::set<std::string> allowed_rules_;
  int64_t known_evaluated_ = 0;
  int64_t shared_prefix_tokens_ = 0;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TRANSCRIPT_H_
