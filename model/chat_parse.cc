// The strict form of what the model writes. The grammar is the published parser's, oddities
// included: a name or a value ends where the next tag begins, whatever is in it, and values of
// string="false" are copied unread.
#include <algorithm>
#include <array>
#include <initializer_list>
#include <unordered_set>
#include <utility>

#include "base/status.h"
#include "model/chat.h"
#include "model/tokenizer_utf8.h"

namespace agentd::model {
namespace {

constexpr std::string_view kCallsOpen = "\n\n<｜DSML｜tool_calls";
constexpr std::string_view kCallsClose = "</｜DSML｜tool_calls>";
constexpr std::string_view kInvokeOpen = "<｜DSML｜invoke";
constexpr std::string_view kInvokeClose = "</｜DSML｜invoke";
constexpr std::string_view kParameterOpen = "<｜DSML｜parameter";
constexpr std::string_view kParameterClose = "/｜DSML｜parameter";

bool IsPythonSpace(char32_t c) {
  static constexpr std::array<char32_t, 10> kSingle = {0x20,   0x85,   0xA0,   0x1680, 0x2028,
                                                       0x2029, 0x202F, 0x205F, 0x3000, 0x3000};
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F) || (c >= 0x2000 && c <= 0x200A) ||
         std::find(kSingle.begin(), kSingle.end(), c) != kSingle.end();
}

void SkipPythonSpace(std::string_view* text) {
  while (!text->empty()) {
    const Utf8Character character = ReadUtf8(*text, 0);
    if (!character.valid || !IsPythonSpace(character.code)) return;
    text->remove_prefix(character.length);
  }
}

bool TakePrefix(std::string_view prefix, std::string_view* text) {
  if (!text->starts_with(prefix)) return false;
  text->remove_prefix(prefix.size());
  return true;
}

bool TakeSuffix(std::string_view suffix, std::string_view* text) {
  if (!text->ends_with(suffix)) return false;
  text->remove_suffix(suffix.size());
  return true;
}

// `suffix`, which one line end more may follow (that is how a Python "$" sees the end of a text).
bool TakeSuffixBeforeEnd(std::string_view suffix, std::string_view* text) {
  const std::string with_line_end = std::string(suffix) + "\n";
  return TakeSuffix(with_line_end, text) || TakeSuffix(suffix, text);
}

struct Parameter {
  std::string_view name;
  std::string_view value;
  bool is_string = false;
};

class Parser {
 public:
  explicit Parser(std::string_view text) : rest_(text) {}

  absl::StatusOr<Message> Run(ThinkingMode mode) {
    Message message;
    message.role = Role::kAssistant;
    if (mode == ThinkingMode::kThinking) {
      const auto [reasoning, stop] = ReadUntil({kThinkEndText, kCallsOpen});
      if (stop != kThinkEndText) return InvalidArgument("{} is missing", kThinkEndText);
      message.reasoning = reasoning;
    }
    const auto [content, stop] = ReadUntil({kEosText, kCallsOpen});
    message.content = content;
    if (stop.empty()) return InvalidArgument("{} is missing", kEosText);
    if (stop == kCallsOpen) {
      RETURN_IF_ERROR(ReadCalls(&message.tool_calls));
      if (!TakePrefix(kEosText, &rest_))
        return InvalidArgument("{} does not follow the tool calls", kEosText);
    }
    if (!rest_.empty()) return InvalidArgument("text after {}", kEosText);
    for (const std::string_view special :
         {kBosText, kEosText, kThinkStartText, kThinkEndText, kDsmlText}) {
      if (message.content.find(special) != std::string::npos)
        return InvalidArgument("{} in the content", special);
      if (message.reasoning.find(special) != std::string::npos)
        return InvalidArgument("{} in the reasoning", special);
    }
    return message;
  }

 private:
  // Reads up to the first of `stops` and past it: the text before it, and which it was (empty: the
  // text ended).
  std::pair<std::string_view, std::string_view> ReadUntil(
      std::initializer_list<std::string_view> stops) {
    size_t first = std::string_view::npos;
    std::string_view which;
    for (const std::string_view stop : stops) {
      // Searched no further than the best so far, so that a long text is not read to its end for
      // every tag.
      const size_t limit = first == std::string_view::npos
                               ? rest_.size()
                               : std::min(rest_.size(), first + stop.size());
      const size_t at = rest_.substr(0, limit).find(stop);
      if (at < first) {
        first = at;
        which = stop;
      }
    }
    const std::string_view before = rest_.substr(0, first);
    rest_.remove_prefix(std::min(before.size() + which.size(), rest_.size()));
    return {before, which};
  }

  absl::Status ReadCalls(std::vector<ToolCall>* calls) {
    while (true) {
      const auto [between, stop] = ReadUntil({kInvokeOpen, kCallsClose});
      if (stop.empty()) return InvalidArgument("the tool_calls block does not end");
      if (between != ">\n")
        return InvalidArgument("a tag of the tool_calls block is not followed by > and a line end");
      if (stop == kCallsClose) return absl::OkStatus();
      RETURN_IF_ERROR(ReadCall(&calls->emplace_back()));
    }
  }

  absl::Status ReadCall(ToolCall* call) {
    auto [head, stop] = ReadUntil({kParameterOpen, kInvokeClose});
    SkipPythonSpace(&head);
    if (!TakePrefix("name=\"", &head) || !TakeSuffixBeforeEnd("\">\n", &head)) {
      return InvalidArgument("an invoke tag does not read name=\"NAME\">");
    }
    call->name = head;
    call->arguments = "{";
    std::unordered_set<std::string_view> names;
    while (stop == kParameterOpen) {
      Parameter parameter;
      RETURN_IF_ERROR(ReadParameter(&parameter));
      if (!names.empty()) call->arguments += ", ";
      if (!names.insert(parameter.name).second) {
        return InvalidArgument("parameter \"{}\" of {} is given twice", parameter.name, call->name);
      }
      AppendPythonString(parameter.name, &call->arguments);
      call->arguments += ": ";
      if (parameter.is_string) {
        AppendPythonString(parameter.value, &call->arguments);
      } else {
        call->arguments += parameter.value;
      }
      const auto [between, next] = ReadUntil({kParameterOpen, kInvokeClose});
      if (between != ">\n")
        return InvalidArgument("parameter \"{}\" is not followed by > and a line end",
                               parameter.name);
      stop = next;
    }
    if (stop.empty()) return InvalidArgument("the invoke of {} does not end", call->name);
    call->arguments += "}";
    return absl::OkStatus();
  }

  // ` name="NAME" string="true|false">VALUE<`, up to the closing tag.
  absl::Status ReadParameter(Parameter* out) {
    static constexpr std::string_view kTrue = "\" string=\"true\">";
    static constexpr std::string_view kFalse = "\" string=\"false\">";
    auto [body, stop] = ReadUntil({kParameterClose});
    if (stop.empty()) return InvalidArgument("a parameter does not end");
    const bool named = TakePrefix(" name=\"", &body);
    const size_t at_true = body.find(kTrue);
    const size_t at_false = body.find(kFalse);
    if (!named || (at_true == std::string_view::npos && at_false == std::string_view::npos)) {
      return InvalidArgument("a parameter does not read name=\"NAME\" string=\"true|false\">VALUE");
    }
    out->is_string = at_true < at_false;
    const size_t name_end = std::min(at_true, at_false);
    out->name = body.substr(0, name_end);
    body.remove_prefix(name_end + (out->is_string ? kTrue : kFalse).size());
    if (!TakeSuffixBeforeEnd("<", &body))
      return InvalidArgument("parameter \"{}\" is not closed", out->name);
    out->value = body;
    return absl::OkStatus();
  }

  std::string_view rest_;
};

}  // namespace

absl::StatusOr<Message> ParseAssistant(std::string_view text, ThinkingMode mode) {
  return Parser(text).Run(mode);
}

}  // namespace agentd::model
