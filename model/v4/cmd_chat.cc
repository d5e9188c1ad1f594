// v4 chat: messages <-> prompt text, a line of JSON at a time. What is wrong with a line is its
// answer, {"error": ...}, so that lines in and lines out stay side by side.
#include <memory>

#include "base/status.h"
#include "model/chat.h"
#include "model/json_python.h"
#include "model/v4/command.h"

namespace agentd::model::v4 {
namespace {

absl::StatusOr<ChatOptions> ReadOptions(const PythonJson& json) {
  ChatOptions options;
  const PythonJson& mode = json["thinking_mode"];
  if (mode.IsString() && mode.text() == "thinking") {
    options.thinking = ThinkingMode::kThinking;
  } else if (!mode.IsString() || mode.text() != "chat") {
    return InvalidArgument("thinking_mode is {:.80}, must be \"chat\" or \"thinking\"",
                           mode.Dump());
  }
  const PythonJson& effort = json["reasoning_effort"];
  options.think_max = effort.IsString() && effort.text() == "max";
  if (!effort.IsNull() && !options.think_max && !(effort.IsString() && effort.text() == "high")) {
    return InvalidArgument("reasoning_effort is {:.80}, must be null, \"high\" or \"max\"",
                           effort.Dump());
  }
  // Missing means true.
  const PythonJson& drop = json["drop_thinking"];
  if (!drop.IsNull() && drop.kind() != PythonJson::Kind::kBool)
    return InvalidArgument("drop_thinking is {:.80}, must be true or false", drop.Dump());
  options.drop_thinking = drop.IsNull() || drop.IsTrue();
  return options;
}

absl::StatusOr<std::string> EncodeLine(std::string_view line) {
  ASSIGN_OR_RETURN(const PythonJson json, PythonJson::Parse(line));
  if (!json.IsObject()) return InvalidArgument("is not a JSON object");
  ASSIGN_OR_RETURN(const ChatOptions options, ReadOptions(json));
  if (!json["messages"].IsArray()) return InvalidArgument("messages is missing or not a list");
  std::vector<Message> messages;
  for (const PythonJson& item : json["messages"].items()) {
    absl::StatusOr<Message> message = MessageFromJson(item);
    if (!message.ok())
      return Annotate(message.status(), fmt::format("messages[{}]", messages.size()));
    messages.push_back(std::move(*message));
  }
  if (!json["tools"].IsNull() && !json["tools"].IsArray())
    return InvalidArgument("tools is {:.80}, must be a list", json["tools"].Dump());
  // Tools beside the messages belong to the first of them.
  for (const PythonJson& tool : json["tools"].items()) {
    if (messages.empty()) return InvalidArgument("tools without a message to carry them");
    if (tool["function"].IsNull()) return InvalidArgument("tools: an entry has no function");
    messages[0].tools.push_back(tool["function"].Dump());
  }
  ASSIGN_OR_RETURN(const std::vector<Piece> pieces, RenderChat(messages, options));
  std::string out;
  AppendPythonString(PiecesText(pieces), &out);
  return out;
}

absl::StatusOr<std::string> ParseLine(std::string_view line) {
  ASSIGN_OR_RETURN(const PythonJson json, PythonJson::Parse(line));
  if (!json["text"].IsString()) return InvalidArgument("text is missing or not a string");
  ASSIGN_OR_RETURN(const ChatOptions options, ReadOptions(json));
  ASSIGN_OR_RETURN(const Message message, ParseAssistant(json["text"].text(), options.thinking));
  return AssistantToJson(message);
}

absl::Status Run(absl::StatusOr<std::string> (*convert)(std::string_view)) {
  RETURN_IF_ERROR(ForEachInputLine([&](std::string_view line) {
    const absl::StatusOr<std::string> converted = convert(line);
    std::string out;
    if (converted.ok()) {
      out = *converted;
    } else {
      out = "{\"error\": ";
      AppendPythonString(Text(converted.status()), &out);
      out += "}";
    }
    Print(out + "\n");
    return absl::OkStatus();
  }));
  return FlushOutput();
}

}  // namespace

void RegisterChat(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("chat", "Messages to prompt text and back");
  command->require_subcommand(1);
  CLI::App* encode =
      command->add_subcommand("encode",
                              "{\"messages\": [...], \"thinking_mode\": \"chat\"} per line in, the "
                              "prompt as a JSON string per line out");
  CLI::App* parse = command->add_subcommand(
      "parse",
      "{\"text\": \"...\", \"thinking_mode\": \"chat\"} per line in, the message per line out");
  encode->callback([exit_code] { *exit_code = Report(Run(EncodeLine)); });
  parse->callback([exit_code] { *exit_code = Report(Run(ParseLine)); });
}

}  // namespace agentd::model::v4
