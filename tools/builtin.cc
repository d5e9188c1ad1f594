// The built-in tools: what they are comes from builtin.json, what they answer from RESULTS.md. bash
// runs /bin/bash; the others run agentd-tool, so that the sandbox's walls hold for them too.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/status.h"
#include "tools/builtin_json.h"
#include "tools/config.h"
#include "tools/text.h"
#include "tools/tool.h"

namespace agentd::tools {
namespace {

using nlohmann::json;
using sandbox::CallEnd;
using sandbox::CallRequest;
using sandbox::CallResult;

constexpr size_t kMaxAnswerBytes = 16'384;
// Enough on both sides of a cut to find line ends.
constexpr int64_t kKeptOutputBytes = 512 * 1024;
constexpr int64_t kToolMs = 60'000;  // of bash, what builtin.json says
// Four times the largest file that edit_file takes.
constexpr int64_t kFileToolMemoryBytes = int64_t{1} << 30;
// What the kernel takes as one argument of a program, with room for the shell's own.
constexpr size_t kMaxCommandBytes = 120'000;

// The output as the model may see it: valid UTF-8, without one final line end, not too long. What
// is left out is kept, if there is a place `where` it can be read.
void SetAnswer(const CallResult& result, const std::string& where, ToolResult& answer) {
  const size_t head_size =
      result.dropped_at >= 0 ? static_cast<size_t>(result.dropped_at) : result.output.size();
  const std::string head = CleanUtf8(std::string_view(result.output).substr(0, head_size));
  std::string text = head + CleanUtf8(std::string_view(result.output).substr(head_size));
  if (text.ends_with('\n')) text.pop_back();
  const int64_t missing =
      result.dropped_at < 0 ? 0 : result.output_bytes - static_cast<int64_t>(result.output.size());
  if (missing == 0 && text.size() <= kMaxAnswerBytes) {
    answer.text = std::move(text);
    return;
  }
  if (!where.empty()) {
    answer.whole = missing == 0
                       ? text
                       : head + fmt::format("\n[... {} bytes were not kept ...]\n", missing) +
                             text.substr(head.size());
  }
  answer.text = CutMiddle(text, kMaxAnswerBytes,
                          missing == 0 ? -1 : static_cast<int64_t>(head.size()), missing, where);
}

std::string Seconds(int64_t wall_time_ms) { return fmt::format("{}", wall_time_ms / 1000); }

// How a call that did not run to an exit ended, in words; "" for an exit.
std::string EndInWords(const CallResult& result, int64_t wall_time_ms) {
  switch (result.end) {
    case CallEnd::kSignaled:
      return fmt::format("killed by signal {}", result.signal);
    case CallEnd::kTimedOut:
      return fmt::format("timed out after {} s", Seconds(wall_time_ms));
    case CallEnd::kCancelled:
      return "cancelled";
    default:
      return "";
  }
}

class BuiltinTool : public Tool {
 public:
  explicit BuiltinTool(ToolSpec spec) : spec_(std::move(spec)) {}
  const ToolSpec& spec() const override { return spec_; }
  absl::StatusOr<ToolResult> Run(std::string_view arguments,
                                 const ToolContext& context) const override;

 private:
  ToolResult BashResult(const CallResult& result, int64_t wall_time_ms,
                        const std::string& where) const;
  ToolResult FileResult(const CallResult& result, int64_t wall_time_ms,
                        const std::string& where) const;

  // What the model asks for (0: nothing), within what the configuration allows.
  int64_t BashTimeMs(int64_t asked_s) const {
    const int64_t asked_ms = asked_s > 0 ? 1000 * asked_s : spec_.limits.wall_time_ms;
    return spec_.wall_time_is_most ? std::min(asked_ms, spec_.limits.wall_time_ms) : asked_ms;
  }

  const ToolSpec spec_;
};

ToolResult BuiltinTool::BashResult(const CallResult& result, int64_t wall_time_ms,
                                   const std::string& where) const {
  std::string end = EndInWords(result, wall_time_ms);
  if (end.empty() && result.exit_code != 0) end = fmt::format("exit code {}", result.exit_code);
  ToolResult answer;
  SetAnswer(result, where, answer);
  if (!end.empty())
    answer.text += fmt::format("{}[{}]", answer.text.empty() ? "" : "\n", end);
  else if (answer.text.empty())
    answer.text = "(no output)";
  return answer;
}

ToolResult BuiltinTool::FileResult(const CallResult& result, int64_t wall_time_ms,
                                   const std::string& where) const {
  ToolResult answer;
  const std::string end = EndInWords(result, wall_time_ms);
  if (end.empty()) {
    SetAnswer(result, where, answer);
    answer.is_error = result.exit_code != 0;
  } else {
    // What there was before a time-out is worth having; what a cancelled call found is not.
    if (result.end == CallEnd::kTimedOut) SetAnswer(result, where, answer);
    answer.text += fmt::format("{}Error: {}: {}", answer.text.empty() ? "" : "\n", spec_.name, end);
    answer.is_error = true;
  }
  return answer;
}

absl::StatusOr<ToolResult> BuiltinTool::Run(std::string_view arguments,
                                            const ToolContext& context) const {
  if (context.sandbox == nullptr) return FailedPrecondition("{} needs a sandbox", spec_.name);
  const json parsed = json::parse(arguments.begin(), arguments.end(), nullptr, false);
  if (!parsed.is_object()) return InvalidArgument("{}: arguments are not an object", spec_.name);
  const bool is_bash = spec_.name == "bash";
  CallRequest request;
  request.limits = spec_.limits;
  request.limits.max_output_bytes =
      std::max(spec_.limits.max_output_bytes, context.kept_output_bytes);
  request.on_output = context.on_output;
  if (is_bash) {
    const std::string command = parsed.value("command", std::string());
    if (command.size() > kMaxCommandBytes || command.find('\0') != std::string::npos)
      return ToolResult{
          .text = command.size() > kMaxCommandBytes
                      ? fmt::format("Error: bash: command: {} bytes are more than the maximum {}",
                                    command.size(), kMaxCommandBytes)
                      : "Error: bash: command: holds a NUL byte",
          .is_error = true};
    request.argv = {"/bin/bash", "-c", command};
    request.limits.wall_time_ms = BashTimeMs(parsed.value("timeout", int64_t{0}));
  } else {
    request.argv = {"/agentd/agentd-tool", spec_.name};
    request.stdin_data = std::string(arguments);
  }
  const sandbox::CancelFlag never;
  const sandbox::CancelFlag& cancel = context.cancel != nullptr ? *context.cancel : never;
  ASSIGN_OR_RETURN(const CallResult result, context.sandbox->Run(request, cancel));
  if (result.end == CallEnd::kSandboxDied)
    return absl::UnavailableError(
        fmt::format("the sandbox died while {} ran; its processes are dead", spec_.name));
  // What read_file leaves out can be read where it was.
  const std::string where = context.call_id.empty() || spec_.name == "read_file"
                                ? std::string()
                                : KeptOutputPath(context.call_id);
  ToolResult answer = is_bash ? BashResult(result, request.limits.wall_time_ms, where)
                              : FileResult(result, request.limits.wall_time_ms, where);
  answer.cancelled = result.end == CallEnd::kCancelled;
  answer.exit_code = result.exit_code;
  answer.output_bytes = result.output_bytes;
  answer.wall_time_us = result.wall_time_us;
  return answer;
}

// The texts of the objects in the array `text`, as they are.
std::vector<std::string> ObjectTexts(std::string_view text) {
  std::vector<std::string> objects;
  int depth = 0;
  bool in_string = false;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{') {
      if (depth++ == 0) begin = i;
    } else if (c == '}' && --depth == 0) {
      objects.emplace_back(text.substr(begin, i + 1 - begin));
    }
  }
  return objects;
}

ToolFlags FlagsOf(const std::string& name) {
  const bool read_only = name == "read_file" || name == "list_dir" || name == "grep";
  return {.read_only = read_only, .workspace_only = !read_only, .idempotent = read_only};
}

}  // namespace

std::string KeptOutputPath(const std::string& call_id) { return "/outputs/" + call_id + ".txt"; }

absl::Status AddBuiltinTools(Registry& registry, const Config& config) {
  for (std::string& text : ObjectTexts(kBuiltinJson)) {
    const json definition = json::parse(text, nullptr, false);
    if (!definition.is_object()) return Internal("builtin.json: not JSON: {}", text);
    ToolSpec spec;
    spec.name = definition.value("name", "");
    spec.description = definition.value("description", "");
    spec.schema = std::move(text);
    spec.flags = FlagsOf(spec.name);
    spec.limits.wall_time_ms = kToolMs;
    spec.limits.max_output_bytes = kKeptOutputBytes;
    if (spec.name != "bash") spec.limits.memory_bytes = kFileToolMemoryBytes;
    ApplySettings(config, spec);
    RETURN_IF_ERROR(registry.Add(std::make_unique<BuiltinTool>(std::move(spec))));
  }
  return absl::OkStatus();
}

}  // namespace agentd::tools
