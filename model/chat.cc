#include "model/chat.h"

#include <algorithm>
#include <span>
#include <unordered_map>
#include <utility>

#include "base/status.h"

namespace agentd::model {
namespace {

constexpr std::string_view kThinkMax =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial "
    "scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, "
    "and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

constexpr std::string_view kResponseFormat =
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

// The text around the schemas. {DSML}, {THINK} and {/THINK} are special tokens there, as they are
// in the model's training.
constexpr std::string_view kToolsBefore =
    "\n\n## Tools\n\n"
    "You have access to a set of tools to help answer the user's question. You can invoke tools by "
    "writing a "
    "\"<{DSML}tool_calls>\" block like the following:\n\n"
    "<{DSML}tool_calls>\n"
    "<{DSML}invoke name=\"$TOOL_NAME\">\n"
    "<{DSML}parameter name=\"$PARAMETER_NAME\" "
    "string=\"true|false\">$PARAMETER_VALUE</{DSML}parameter>\n"
    "...\n"
    "</{DSML}invoke>\n"
    "<{DSML}invoke name=\"$TOOL_NAME2\">\n"
    "...\n"
    "</{DSML}invoke>\n"
    "</{DSML}tool_calls>\n\n"
    "String parameters should be specified as is and set `string=\"true\"`. For all other types "
    "(numbers, booleans, arrays, "
    "objects), pass the value in JSON format and set `string=\"false\"`.\n\n"
    "If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning "
    "inside {THINK}...{/THINK} "
    "BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after {/THINK} with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n";
constexpr std::string_view kToolsAfter =
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool "
    "calls.\n";

// Collects pieces; neighbouring texts become one.
class PieceWriter {
 public:
  void Text(std::string_view text) {
    if (text.empty()) return;
    if (pieces_.empty() || pieces_.back().special) pieces_.emplace_back();
    pieces_.back().text += text;
  }
  void Special(std::string_view content) {
    pieces_.push_back({std::string(content), /*special=*/true});
  }

  // Text in which {DSML}, {THINK} and {/THINK} stand for special tokens.
  void Template(std::string_view text) {
    static constexpr std::pair<std::string_view, std::string_view> kNames[] = {
        {"{DSML}", kDsmlText}, {"{THINK}", kThinkStartText}, {"{/THINK}", kThinkEndText}};
    while (!text.empty()) {
      const size_t brace = std::min(text.find('{'), text.size());
      Text(text.substr(0, brace));
      text.remove_prefix(brace);
      for (const auto& [name, content] : kNames) {
        if (!text.starts_with(name)) continue;
        Special(content);
        text.remove_prefix(name.size());
        break;
      }
    }
  }

  std::vector<Piece> Take() { return std::move(pieces_); }

 private:
  std::vector<Piece> pieces_;
};

// One turn of the prompt: a message, or adjacent user and tool messages merged into one user turn.
struct Turn {
  const Message* message = nullptr;  // of a merged turn the first
  std::vector<const Message*>
      members;  // a merged turn's: user texts and tool results, in prompt order
  std::string task;

  bool IsUser() const { return !members.empty(); }
  bool IsUserOrDeveloper() const { return IsUser() || message->role == Role::kDeveloper; }
};

// A user message with a task ends its turn for other user messages, though not for results.
std::vector<Turn> MergeTurns(std::span<const Message> messages) {
  std::vector<Turn> turns;
  for (const Message& message : messages) {
    const bool is_user = message.role == Role::kUser;
    if (!is_user && message.role != Role::kTool) {
      turns.push_back({&message, {}, message.task});
      continue;
    }
    if (!turns.empty() && turns.back().IsUser() && (!is_user || turns.back().task.empty())) {
      turns.back().members.push_back(&message);
    } else {
      turns.push_back({&message, {&message}, is_user ? message.task : ""});
    }
  }
  return turns;
}

// Puts the results of a turn in the order of the calls that they answer; texts between them stay
// where they are. An id that no call has sorts with the first.
void SortResults(std::vector<Turn>& turns) {
  std::unordered_map<std::string_view, size_t> order;
  for (Turn& turn : turns) {
    if (turn.message->role == Role::kAssistant && !turn.message->tool_calls.empty()) {
      order.clear();
      for (size_t i = 0; i < turn.message->tool_calls.size(); ++i) {
        const std::string& id = turn.message->tool_calls[i].id;
        if (!id.empty()) order[id] = i;
      }
    }
    std::vector<const Message*> results;
    for (const Message* member : turn.members) {
      if (member->role == Role::kTool) results.push_back(member);
    }
    const auto rank = [&order](const Message* result) {
      const auto found = order.find(result->tool_call_id);
      return found == order.end() ? size_t{0} : found->second;
    };
    std::stable_sort(results.begin(), results.end(),
                     [&](const Message* a, const Message* b) { return rank(a) < rank(b); });
    auto next = results.begin();
    for (const Message*& member : turn.members) {
      if (member->role == Role::kTool) member = *next++;
    }
  }
}

// Index of the last user or developer turn, -1 if there is none.
int64_t LastUser(const std::vector<Turn>& turns) {
  for (int64_t i = static_cast<int64_t>(turns.size()) - 1; i >= 0; --i) {
    if (turns[i].IsUserOrDeveloper()) return i;
  }
  return -1;
}

class Renderer {
 public:
  Renderer(std::span<const Message> messages, const ChatOptions& options)
      : thinking_(options.thinking == ThinkingMode::kThinking),
        think_max_(options.think_max),
        turns_(MergeTurns(messages)) {
    SortResults(turns_);
    const bool any_tools = std::any_of(turns_.begin(), turns_.end(), [](const Turn& t) {
      return !t.IsUser() && !t.message->tools.empty();
    });
    drops_ = options.drop_thinking && !any_tools;
    if (thinking_ && drops_) DropEarlierDevelopers();
    last_user_ = LastUser(turns_);
  }

  absl::StatusOr<std::vector<Piece>> Run() {
    out_.Special(kBosText);
    for (size_t i = 0; i < turns_.size(); ++i) {
      if (i == 0 && thinking_ && think_max_) out_.Text(kThinkMax);
      RETURN_IF_ERROR(RenderTurn(i));
      RETURN_IF_ERROR(RenderOpening(i));
    }
    return out_.Take();
  }

 private:
  // Where reasoning is dropped, developer turns before the last user or developer turn vanish too.
  void DropEarlierDevelopers() {
    const int64_t last = LastUser(turns_);
    std::vector<Turn> kept;
    for (int64_t i = 0; i < static_cast<int64_t>(turns_.size()); ++i) {
      if (i >= last || turns_[i].message->role != Role::kDeveloper)
        kept.push_back(std::move(turns_[i]));
    }
    turns_ = std::move(kept);
  }

  absl::Status RenderTurn(size_t i) {
    const Turn& turn = turns_[i];
    if (turn.IsUser()) {
      RenderUser(turn);
      return absl::OkStatus();
    }
    switch (turn.message->role) {
      case Role::kSystem:
        out_.Text(turn.message->content);
        RenderTools(*turn.message);
        break;
      case Role::kDeveloper:
        if (turn.message->content.empty())
          return InvalidArgument("content of a developer message is empty");
        out_.Special(kUserText);
        out_.Text(turn.message->content);
        RenderTools(*turn.message);
        break;
      case Role::kLatestReminder:
        out_.Special(kLatestReminderText);
        out_.Text(turn.message->content);
        break;
      case Role::kAssistant:
        RenderAssistant(i);
        break;
      case Role::kUser:
      case Role::kTool:
        break;  // merged turns, rendered above
    }
    return absl::OkStatus();
  }

  void RenderUser(const Turn& turn) {
    out_.Special(kUserText);
    for (size_t i = 0; i < turn.members.size(); ++i) {
      const bool is_result = turn.members[i]->role == Role::kTool;
      if (i > 0) out_.Text("\n\n");
      if (is_result) out_.Text("<tool_result>");
      out_.Text(turn.members[i]->content);
      if (is_result) out_.Text("</tool_result>");
    }
  }

  void RenderTools(const Message& message) {
    if (!message.tools.empty()) {
      out_.Template(kToolsBefore);
      for (size_t i = 0; i < message.tools.size(); ++i) {
        if (i > 0) out_.Text("\n");
        out_.Text(message.tools[i]);
      }
      out_.Text(kToolsAfter);
    }
    if (message.response_format.has_value()) {
      out_.Text(kResponseFormat);
      out_.Text(*message.response_format);
    }
  }

  void RenderAssistant(size_t i) {
    const Message& message = *turns_[i].message;
    const bool answers_task = i > 0 && !turns_[i - 1].task.empty();
    if (thinking_ && !answers_task && (!drops_ || static_cast<int64_t>(i) > last_user_)) {
      out_.Text(message.reasoning);
      out_.Special(kThinkEndText);
    }
    out_.Text(message.content);
    if (!message.tool_calls.empty()) {
      out_.Template("\n\n<{DSML}tool_calls>\n");
      for (const ToolCall& call : message.tool_calls) RenderCall(call);
      out_.Template("</{DSML}tool_calls>");
    }
    if (!message.without_eos) out_.Special(kEosText);
  }

  void RenderCall(const ToolCall& call) {
    out_.Template("<{DSML}invoke name=\"");
    out_.Text(call.name);
    out_.Text("\">\n");
    const absl::StatusOr<PythonJson> arguments = PythonJson::Parse(call.arguments);
    if (!arguments.ok() || !arguments->IsObject()) {
      RenderParameter("arguments", PythonJson::String(call.arguments));
    } else {
      for (size_t i = 0; i < arguments->items().size(); ++i) {
        if (i > 0) out_.Text("\n");
        RenderParameter(arguments->keys()[i], arguments->items()[i]);
      }
    }
    out_.Template("\n</{DSML}invoke>\n");
  }

  void RenderParameter(std::string_view name, const PythonJson& value) {
    out_.Template("<{DSML}parameter name=\"");
    out_.Text(name);
    out_.Text(value.IsString() ? "\" string=\"true\">" : "\" string=\"false\">");
    out_.Text(value.IsString() ? value.text() : value.Dump());
    out_.Template("</{DSML}parameter>");
  }

  // What stands between turn i and the model's answer, where one follows or is to be written. (A
  // reminder counts as part of the answer's side, as in the published format.)
  absl::Status RenderOpening(size_t i) {
    if (i + 1 < turns_.size()) {
      const Role next = turns_[i + 1].message->role;
      if (next != Role::kAssistant && next != Role::kLatestReminder) return absl::OkStatus();
    }
    const Turn& turn = turns_[i];
    if (!turn.task.empty()) {
      const std::string_view token = TaskTokenText(turn.task);
      if (token.empty()) return InvalidArgument("task \"{}\" is unknown", turn.task);
      if (turn.task == "action") {
        out_.Special(kAssistantText);
        out_.Special(thinking_ ? kThinkStartText : kThinkEndText);
      }
      out_.Special(token);
    } else if (turn.IsUserOrDeveloper()) {
      const bool thinks = thinking_ && (!drops_ || static_cast<int64_t>(i) >= last_user_);
      out_.Special(kAssistantText);
      out_.Special(thinks ? kThinkStartText : kThinkEndText);
    }
    return absl::OkStatus();
  }

  const bool thinking_;
  const bool think_max_;
  bool drops_ = false;
  std::vector<Turn> turns_;
  int64_t last_user_ = -1;
  PieceWriter out_;
};

}  // namespace

std::string_view TaskTokenText(std::string_view task) {
  static constexpr std::pair<std::string_view, std::string_view> kTasks[] = {
      {"action", "<｜action｜>"}, {"query", "<｜query｜>"}, {"authority", "<｜authority｜>"},
      {"domain", "<｜domain｜>"}, {"title", "<｜title｜>"}, {"read_url", "<｜read_url｜>"}};
  for (const auto& [name, token] : kTasks) {
    if (name == task) return token;
  }
  return "";
}

absl::StatusOr<std::vector<Piece>> RenderChat(const std::vector<Message>& messages,
                                              const ChatOptions& options) {
  return Renderer(messages, options).Run();
}

absl::StatusOr<std::vector<Piece>> RenderContinuation(const std::vector<Message>& messages,
                                                      size_t first_new,
                                                      const ChatOptions& options) {
  if (first_new > messages.size()) {
    return InvalidArgument("first_new is {}, but there are {} messages", first_new,
                           messages.size());
  }
  const std::span<const Message> earlier(messages.data(), first_new);
  ASSIGN_OR_RETURN(const std::vector<Piece> before, Renderer(earlier, options).Run());
  ASSIGN_OR_RETURN(std::vector<Piece> all, RenderChat(messages, options));
  // Whole pieces are compared: text that goes on where the earlier render ended would be tokenized
  // differently.
  if (before.size() > all.size() || !std::equal(before.begin(), before.end(), all.begin())) {
    return FailedPrecondition("the new messages change how the {} earlier ones are rendered",
                              first_new);
  }
  all.erase(all.begin(), all.begin() + before.size());
  return all;
}

std::string PiecesText(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& piece : pieces) text += piece.text;
  return text;
}

}  // namespace agentd::model
