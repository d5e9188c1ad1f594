// Messages in the published JSON form.
#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/status.h"
#include "model/chat.h"

namespace agentd::model {
namespace {

// The string in json[field]; empty where it is null or missing.
absl::StatusOr<std::string> OptionalText(const PythonJson& json, std::string_view field) {
  const PythonJson& value = json[field];
  if (value.IsNull()) return std::string();
  if (!value.IsString()) return InvalidArgument("{} is not a string: {:.80}", field, value.Dump());
  return value.text();
}

// Text, or a list of parts: their texts joined by a blank line, anything else named.
absl::StatusOr<std::string> ReadContent(const PythonJson& content) {
  if (content.IsNull()) return std::string();
  if (content.IsString()) return content.text();
  if (!content.IsArray())
    return InvalidArgument("content is neither text nor a list: {:.80}", content.Dump());
  std::string text;
  for (size_t i = 0; i < content.items().size(); ++i) {
    const PythonJson& part = content.items()[i];
    if (!part.IsObject())
      return InvalidArgument("content[{}] is not an object: {:.80}", i, part.Dump());
    const PythonJson& type = part["type"];
    if (i > 0) text += "\n\n";
    if (type.IsString() && type.text() == "text") {
      absl::StatusOr<std::string> part_text = OptionalText(part, "text");
      if (!part_text.ok()) return Annotate(part_text.status(), fmt::format("content[{}]", i));
      text += *part_text;
    } else {
      text += fmt::format("[Unsupported {}]", type.IsNull() ? "None" : type.text());
    }
  }
  return text;
}

absl::StatusOr<std::vector<std::string>> ReadTools(const PythonJson& tools) {
  std::vector<std::string> out;
  if (tools.IsNull()) return out;
  if (!tools.IsArray()) return InvalidArgument("tools is not a list: {:.80}", tools.Dump());
  for (size_t i = 0; i < tools.items().size(); ++i) {
    const PythonJson& function = tools.items()[i]["function"];
    if (function.IsNull()) return InvalidArgument("tools[{}].function is missing", i);
    out.push_back(function.Dump());
  }
  return out;
}

absl::StatusOr<std::vector<ToolCall>> ReadToolCalls(const PythonJson& calls) {
  std::vector<ToolCall> out;
  if (calls.IsNull()) return out;
  if (!calls.IsArray()) return InvalidArgument("tool_calls is not a list: {:.80}", calls.Dump());
  for (size_t i = 0; i < calls.items().size(); ++i) {
    const std::string field = fmt::format("tool_calls[{}]", i);
    const PythonJson& call = calls.items()[i];
    const PythonJson& function = call["function"];
    const PythonJson& arguments = function["arguments"];
    if (!function["name"].IsString())
      return InvalidArgument("{}.function.name is missing or not a string", field);
    if (arguments.IsNull()) return InvalidArgument("{}.function.arguments is missing", field);
    ASSIGN_OR_RETURN(std::string id, OptionalText(call, "id"));
    if (id.empty()) {
      ASSIGN_OR_RETURN(id, OptionalText(function, "id"));
    }
    out.push_back({std::move(id), function["name"].text(),
                   arguments.IsString() ? arguments.text() : arguments.Dump()});
  }
  return out;
}

absl::StatusOr<Role> ReadRole(const PythonJson& role) {
  static constexpr std::pair<std::string_view, Role> kRoles[] = {
      {"system", Role::kSystem},
      {"developer", Role::kDeveloper},
      {"user", Role::kUser},
      {"tool", Role::kTool},
      {"latest_reminder", Role::kLatestReminder},
      {"assistant", Role::kAssistant}};
  for (const auto& [name, value] : kRoles) {
    if (role.IsString() && role.text() == name) return value;
  }
  return InvalidArgument("role {:.80} is unknown", role.Dump());
}

}  // namespace

absl::StatusOr<Message> MessageFromJson(const PythonJson& json) {
  if (!json.IsObject()) return InvalidArgument("message is not an object: {:.80}", json.Dump());
  Message message;
  ASSIGN_OR_RETURN(message.role, ReadRole(json["role"]));
  ASSIGN_OR_RETURN(message.content, ReadContent(json["content"]));
  ASSIGN_OR_RETURN(message.reasoning, OptionalText(json, "reasoning_content"));
  ASSIGN_OR_RETURN(message.tool_call_id, OptionalText(json, "tool_call_id"));
  ASSIGN_OR_RETURN(message.tools, ReadTools(json["tools"]));
  ASSIGN_OR_RETURN(message.tool_calls, ReadToolCalls(json["tool_calls"]));
  if (json["response_format"].IsTrue()) message.response_format = json["response_format"].Dump();
  ASSIGN_OR_RETURN(message.task, OptionalText(json, "task"));
  if (!json["task"].IsNull() && TaskTokenText(message.task).empty()) {
    return InvalidArgument("task \"{}\" is unknown", message.task);
  }
  message.without_eos = json["wo_eos"].IsTrue();
  return message;
}

absl::StatusOr<Message> MessageFromJson(const nlohmann::ordered_json& json) {
  ASSIGN_OR_RETURN(const PythonJson converted, PythonJson::From(json));
  return MessageFromJson(converted);
}

std::string AssistantToJson(const Message& message) {
  std::string out = R"({"role": "assistant", "content": )";
  AppendPythonString(message.content, &out);
  out += R"(, "reasoning_content": )";
  AppendPythonString(message.reasoning, &out);
  out += R"(, "tool_calls": [)";
  for (size_t i = 0; i < message.tool_calls.size(); ++i) {
    const ToolCall& call = message.tool_calls[i];
    out += i > 0 ? ", {" : "{";
    if (!call.id.empty()) {
      out += R"("id": )";
      AppendPythonString(call.id, &out);
      out += ", ";
    }
    out += R"("type": "function", "function": {"name": )";
    AppendPythonString(call.name, &out);
    out += R"(, "arguments": )";
    AppendPythonString(call.arguments, &out);
    out += "}}";
  }
  return out + "]}";
}

}  // namespace agentd::model
