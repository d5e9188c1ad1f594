// What a sandboxed call's result says to the model, as RESULTS.md words it. Private to tools/.
#ifndef AGENTD_TOOLS_ANSWER_H_
#define AGENTD_TOOLS_ANSWER_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "sandbox/sandbox.h"
#include "tools/tool.h"

namespace agentd::tools {

// Of what the model reads of a call.
inline constexpr size_t kMaxAnswerBytes = 16'384;

// Where the call's output is kept if it is cut; empty: nowhere.
std::string WhereKept(const ToolContext& context);

// Sets answer.text to `text` (valid UTF-8), cut in the middle if it is too long; what is left out
// is kept, if there is a place for it. `missing_bytes` were lost already at `missing_at` (-1:
// none).
void SetText(std::string text, int64_t missing_at, int64_t missing_bytes, const std::string& where,
             ToolResult& answer);
// The same from a call's output, cleaned and without one final line end.
void SetAnswer(const sandbox::CallResult& result, const std::string& where, ToolResult& answer);
// Exit code, sizes, times, cancellation.
void SetFigures(const sandbox::CallResult& result, ToolResult& answer);

// How a call that did not run to an exit ended, in words; empty for an exit.
std::string EndInWords(const sandbox::CallResult& result, int64_t wall_time_ms);

// Of a shell command: its output, and how it ended unless that was well.
ToolResult CommandAnswer(const sandbox::CallResult& result, int64_t wall_time_ms,
                         const std::string& where);
// Why a text is no command that a shell can be given; empty if it is one.
std::string BadCommand(std::string_view command);
// Its time: what the model asks for (seconds; 0: nothing), within what the configuration allows.
int64_t CommandTimeMs(const ToolSpec& spec, int64_t asked_s);

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_ANSWER_H_
