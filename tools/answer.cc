#include "tools/answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tools/text.h"

namespace agentd::tools {
namespace {

using sandbox::CallEnd;
using sandbox::CallResult;

// What the kernel takes as one argument of a program, with room for the shell's own.
constexpr size_t kMaxCommandBytes = 120'000;

}  // namespace

std::string KeptOutputPath(const std::string& call_id) { return "/outputs/" + call_id + ".txt"; }

std::string WhereKept(const ToolContext& context) {
  return context.call_id.empty() ? std::string() : KeptOutputPath(context.call_id);
}

void SetText(std::string text, int64_t missing_at, int64_t missing_bytes, const std::string& where,
             ToolResult& answer) {
  const bool missing = missing_at >= 0 && missing_bytes > 0;
  if (!missing && text.size() <= kMaxAnswerBytes) {
    answer.text = std::move(text);
    return;
  }
  answer.text = CutMiddle(text, kMaxAnswerBytes, missing ? missing_at : -1, missing_bytes, where);
  if (where.empty()) return;
  if (missing) {
    text.insert(static_cast<size_t>(missing_at),
                fmt::format("\n[... {} bytes were not kept ...]\n", missing_bytes));
  }
  answer.whole = std::move(text);
}

void SetAnswer(const CallResult& result, const std::string& where, ToolResult& answer) {
  const size_t head_size =
      result.dropped_at >= 0 ? static_cast<size_t>(result.dropped_at) : result.output.size();
  const std::string head = CleanUtf8(std::string_view(result.output).substr(0, head_size));
  std::string text = head + CleanUtf8(std::string_view(result.output).substr(head_size));
  if (text.ends_with('\n')) text.pop_back();
  const int64_t missing = result.output_bytes - static_cast<int64_t>(result.output.size());
  SetText(std::move(text), result.dropped_at < 0 ? -1 : static_cast<int64_t>(head.size()), missing,
          where, answer);
}

void SetFigures(const CallResult& result, ToolResult& answer) {
  answer.cancelled = result.end == CallEnd::kCancelled;
  answer.workspace_full = result.end == CallEnd::kWorkspaceFull;
  answer.exit_code = result.exit_code;
  answer.output_bytes = result.output_bytes;
  answer.wall_time_us = result.wall_time_us;
}

std::string EndInWords(const CallResult& result, int64_t wall_time_ms) {
  switch (result.end) {
    case CallEnd::kSignaled:
      return fmt::format("killed by signal {}", result.signal);
    case CallEnd::kTimedOut:
      return fmt::format("timed out after {} s", wall_time_ms / 1000);
    case CallEnd::kCancelled:
      return "cancelled";
    case CallEnd::kWorkspaceFull:
      return fmt::format("ended: {}: delete what is not needed", result.detail);
    default:
      return "";
  }
}

ToolResult CommandAnswer(const CallResult& result, int64_t wall_time_ms, const std::string& where) {
  std::string end = EndInWords(result, wall_time_ms);
  if (end.empty() && result.exit_code != 0) end = fmt::format("exit code {}", result.exit_code);
  if (result.end != CallEnd::kWorkspaceFull && !result.detail.empty())
    end += (end.empty() ? "" : "; ") + result.detail;
  ToolResult answer;
  SetAnswer(result, where, answer);
  if (!end.empty())
    answer.text += fmt::format("{}[{}]", answer.text.empty() ? "" : "\n", end);
  else if (answer.text.empty())
    answer.text = "(no output)";
  return answer;
}

std::string BadCommand(std::string_view command) {
  if (command.size() > kMaxCommandBytes)
    return fmt::format("{} bytes are more than the maximum {}", command.size(), kMaxCommandBytes);
  return command.find('\0') == std::string_view::npos ? "" : "holds a NUL byte";
}

int64_t CommandTimeMs(const ToolSpec& spec, int64_t asked_s) {
  const int64_t asked_ms = asked_s > 0 ? 1000 * asked_s : spec.limits.wall_time_ms;
  return spec.wall_time_is_most ? std::min(asked_ms, spec.limits.wall_time_ms) : asked_ms;
}

}  // namespace agentd::tools
