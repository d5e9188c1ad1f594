// Any text as a model's answer, in both modes; any JSON as messages. An answer that parses must
// render to what parses to the same answer.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "model/chat.h"
#include "model/tokenizer_utf8.h"

using namespace agentd::model;  // NOLINT: one short program

namespace {

void CheckAnswer(std::string_view text, ThinkingMode mode) {
  const auto answer = ParseAssistant(text, mode);
  if (!answer.ok()) return;
  Message question;
  question.content = "q";
  ChatOptions options;
  options.thinking = mode;
  const auto written = RenderContinuation({question, *answer}, 1, options);
  AGENTD_CHECK(written.ok());
  const auto again = ParseAssistant(PiecesText(*written), mode);
  // Values of string="false" are copied unread, so arguments may be no JSON: then they come back as
  // one parameter.
  for (const ToolCall& call : answer->tool_calls) {
    if (!PythonJson::Parse(call.arguments).ok() || call.name.find("DSML") != std::string::npos)
      return;
    if (call.name.find("\">\n") != std::string::npos ||
        call.arguments.find("DSML") != std::string::npos)
      return;
    if (call.arguments.find("string=") != std::string::npos || call.name.ends_with('\n')) return;
  }
  AGENTD_CHECK(again.ok());
  AGENTD_CHECK(again->content == answer->content && again->reasoning == answer->reasoning);
  AGENTD_CHECK(again->tool_calls.size() == answer->tool_calls.size());
}

void CheckMessages(std::string_view text) {
  const auto json = PythonJson::Parse(text);
  if (!json.ok()) return;
  const std::string printed = json->Dump();
  const auto reread = PythonJson::Parse(printed);
  AGENTD_CHECK(reread.ok() && reread->Dump() == printed);
  std::vector<Message> messages;
  for (const PythonJson& item : json->items()) {
    const auto message = MessageFromJson(item);
    if (message.ok()) messages.push_back(*message);
  }
  for (int bits = 0; bits < 8; ++bits) {
    ChatOptions options;
    options.thinking = (bits & 1) != 0 ? ThinkingMode::kThinking : ThinkingMode::kChat;
    options.think_max = (bits & 2) != 0;
    options.drop_thinking = (bits & 4) != 0;
    const auto all = RenderChat(messages, options);
    if (!all.ok()) continue;
    for (size_t first_new = 0; first_new <= messages.size() && first_new < 8; ++first_new) {
      const auto more = RenderContinuation(messages, first_new, options);
      if (!more.ok()) continue;
      const std::vector<Message> earlier(messages.begin(), messages.begin() + first_new);
      AGENTD_CHECK(PiecesText(*RenderChat(earlier, options)) + PiecesText(*more) ==
                   PiecesText(*all));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  CheckAnswer(text, ThinkingMode::kChat);
  CheckAnswer(text, ThinkingMode::kThinking);
  CheckMessages(text);
  return 0;
}
