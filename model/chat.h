// Messages <-> V4's prompt text (DeepSeek-V4's published encoding; rules in the model card, cases in tests/golden/chat).
#ifndef AGENTD_MODEL_CHAT_H_
#define AGENTD_MODEL_CHAT_H_

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace agentd::model {

enum class ThinkingMode { kChat, kThinking };

struct ChatOptions {
  ThinkingMode thinking = ThinkingMode::kChat;
  bool think_max = false;        // reasoning_effort "max"; "high" adds nothing
  bool drop_thinking = true;     // in tool-less chats, reasoning before the last user message is left out
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text
};

enum class Role { kSystem, kDeveloper, kUser, kLatestReminder, kTool, kAssistant };

struct Message {
  Role role = Role::kUser;
  std::string content;
  std::string reasoning;                  // assistant
  std::vector<ToolCall> tool_calls;       // assistant
  std::string tool_call_id;               // tool
  std::vector<std::string> tools;         // system, developer: function schemas as JSON text, printed as Python's json.dumps would
  std::optional<std::string> response_format;  // JSON text
  std::string task;                       // user, developer: "action", "query", ...
};

// A message in the published JSON form (as in tests/golden/chat). InvalidArgument names the field.
absl::StatusOr<Message> MessageFromJson(const nlohmann::ordered_json& json);

// The whole conversation as pieces. Text of messages is never special; only what the template itself puts is.
absl::StatusOr<std::vector<Piece>> RenderChat(const std::vector<Message>& messages, const ChatOptions& options);

// What RenderChat(messages) adds after RenderChat(messages[0, first_new)): the tokens to append to a timeline that already
// holds the earlier ones, whose own tokens stay as they were sampled. FailedPrecondition when the rules change what came before
// (reasoning dropped in a tool-less chat): then the context has to branch.
absl::StatusOr<std::vector<Piece>> RenderContinuation(const std::vector<Message>& messages, size_t first_new,
                                                      const ChatOptions& options);

// Concatenated text of pieces.
std::string PiecesText(const std::vector<Piece>& pieces);

// Strict parse of what the model wrote after the prompt, EOS text included. InvalidArgument says what is malformed.
// The result's content, reasoning and tool_calls are set (ids empty).
absl::StatusOr<Message> ParseAssistant(std::string_view text, ThinkingMode mode);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CHAT_H_
