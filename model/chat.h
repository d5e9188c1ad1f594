// Messages <-> V4's prompt text (DeepSeek-V4's published encoding; rules in the model card, cases
// in tests/golden/chat).
#ifndef AGENTD_MODEL_CHAT_H_
#define AGENTD_MODEL_CHAT_H_

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/json_python.h"
#include "model/tokenizer.h"

namespace agentd::model {

// The special tokens of the format, by content; their ids come from the tokenizer.
inline constexpr std::string_view kBosText = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEosText = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUserText = "<｜User｜>";
inline constexpr std::string_view kAssistantText = "<｜Assistant｜>";
inline constexpr std::string_view kLatestReminderText = "<｜latest_reminder｜>";
inline constexpr std::string_view kThinkStartText = "<think>";
inline constexpr std::string_view kThinkEndText = "</think>";
inline constexpr std::string_view kDsmlText = "｜DSML｜";

enum class ThinkingMode { kChat, kThinking };

struct ChatOptions {
  ThinkingMode thinking = ThinkingMode::kChat;
  bool think_max = false;  // reasoning_effort "max"; "high" adds nothing
  bool drop_thinking =
      true;  // in tool-less chats, reasoning before the last user message is left out
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text; anything else is rendered as one parameter named "arguments"
};

enum class Role { kSystem, kDeveloper, kUser, kLatestReminder, kTool, kAssistant };

struct Message {
  Role role = Role::kUser;
  std::string content;
  std::string reasoning;             // assistant
  std::vector<ToolCall> tool_calls;  // assistant
  std::string tool_call_id;          // tool
  std::vector<std::string> tools;    // system, developer: function schemas as JSON text, printed as
                                     // Python's json.dumps would
  std::optional<std::string> response_format;  // JSON text
  std::string task;                            // user, developer: "action", "query", ...
  bool without_eos =
      false;  // assistant: the text is to be continued, so no end of sentence follows it
};

// A message in the published JSON form (as in tests/golden/chat). InvalidArgument names the field.
// Fields that the format does not have are ignored. The first form keeps integers of any size.
absl::StatusOr<Message> MessageFromJson(const PythonJson& json);
absl::StatusOr<Message> MessageFromJson(const nlohmann::ordered_json& json);
// An assistant message in that form, as one line of JSON.
std::string AssistantToJson(const Message& message);

// The token that a `task` stands for: "action" gives "<｜action｜>". Empty if there is no such
// task.
std::string_view TaskTokenText(std::string_view task);

// The whole conversation as pieces. Text of messages is never special; only what the template
// itself puts is. InvalidArgument for an unknown task, or a developer message without content.
absl::StatusOr<std::vector<Piece>> RenderChat(const std::vector<Message>& messages,
                                              const ChatOptions& options);

// What RenderChat(messages) adds after RenderChat(messages[0, first_new)): the tokens to append to
// a timeline that already holds the earlier ones, whose own tokens stay as they were sampled.
// FailedPrecondition when the rules change what came before (reasoning dropped in a tool-less chat,
// a result that sorts before an earlier one, a user message that joins the one before): then the
// context has to branch. The tokens add up too: Encode(all) is Encode(prefix) followed by
// Encode(continuation).
absl::StatusOr<std::vector<Piece>> RenderContinuation(const std::vector<Message>& messages,
                                                      size_t first_new, const ChatOptions& options);

// Concatenated text of pieces.
std::string PiecesText(const std::vector<Piece>& pieces);

// Strict parse of what the model wrote after the prompt, EOS text included. InvalidArgument says
// what is malformed. The result's content, reasoning and tool_calls are set (ids empty).
absl::StatusOr<Message> ParseAssistant(std::string_view text, ThinkingMode mode);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CHAT_H_
