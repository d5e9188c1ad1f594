// The built-in tools: what they are comes from builtin.json, what they answer from RESULTS.md. bash
// runs /bin/bash; the others run agentd-tool, so that the sandbox's walls hold for them too.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/status.h"
#include "tools/answer.h"
#include "tools/builtin_json.h"
#include "tools/config.h"
#include "tools/text.h"
#include "tools/tool.h"
#include "tools/way_out.h"

namespace agentd::tools {
namespace {

using nlohmann::json;
using sandbox::CallEnd;
using sandbox::CallRequest;
using sandbox::CallResult;

// Enough on both sides of a cut to find line ends.
constexpr int64_t kKeptOutputBytes = 512 * 1024;
constexpr int64_t kToolMs = 60'000;  // of bash, what builtin.json says
// Four times the largest file that edit_file takes.
constexpr int64_t kFileToolMemoryBytes = int64_t{1} << 30;

class BuiltinTool : public Tool {
 public:
  explicit BuiltinTool(ToolSpec spec) : spec_(std::move(spec)) {}
  const ToolSpec& spec() const override { return spec_; }
  absl::StatusOr<ToolResult> Run(std::string_view arguments,
                                 const ToolContext& context) const override;

 private:
  ToolResult FileResult(const CallResult& result, int64_t wall_time_ms,
                        const std::string& where) const;

  const ToolSpec spec_;
};

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
    if (const std::string why = BadCommand(command); !why.empty())
      return ToolResult{.text = "Error: bash: command: " + why, .is_error = true};
    request.argv = {"/bin/bash", "-c", command};
    request.limits.wall_time_ms = CommandTimeMs(spec_, parsed.value("timeout", int64_t{0}));
  } else {
    request.argv = {"/agentd/agentd-tool", spec_.name};
    request.stdin_data = std::string(arguments);
  }
  const sandbox::CancelFlag never;
  const sandbox::CancelFlag& cancel = context.cancel != nullptr ? *context.cancel : never;
  WayOut way_out;
  RETURN_IF_ERROR(way_out.Open(spec_, context, request));
  ASSIGN_OR_RETURN(const CallResult result, context.sandbox->Run(request, cancel));
  if (result.end == CallEnd::kSandboxDied)
    return absl::UnavailableError(
        fmt::format("the sandbox died while {} ran; its processes are dead", spec_.name));
  // What read_file leaves out can be read where it was.
  const std::string where = spec_.name == "read_file" ? std::string() : WhereKept(context);
  ToolResult answer = is_bash ? CommandAnswer(result, request.limits.wall_time_ms, where)
                              : FileResult(result, request.limits.wall_time_ms, where);
  SetFigures(result, answer);
  answer.network = way_out.Close();
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
