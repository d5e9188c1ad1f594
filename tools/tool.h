// Tools that a model may call: what they are called, what they accept, what they may touch, and how
// they run.
#ifndef AGENTD_TOOLS_TOOL_H_
#define AGENTD_TOOLS_TOOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandbox/egress_proxy.h"
#include "sandbox/sandbox.h"

namespace agentd::tools {

class Shell;
namespace mcp {
class Session;
}

// What a tool can do decides how a call without a result is treated after a crash, and what may run
// beside it.
struct ToolFlags {
  bool read_only = false;       // changes nothing: may run in parallel with other read-only calls
  bool workspace_only = false;  // its only lasting effect is in the workspace: re-run from the
                                // snapshot before the call
  bool idempotent = false;      // running it again is harmless whatever it touches
  bool needs_approval = false;
  bool network = false;
  bool parallel = false;  // may run beside other such calls although it is not read-only
};

struct ToolSpec {
  std::string name;
  std::string description;
  std::string schema;  // {"name":..., "description":..., "parameters":...} as JSON text, the way
                       // the prompt shows it
  ToolFlags flags;
  sandbox::Limits limits;
  std::optional<sandbox::EgressPolicy> network;  // hosts that its calls may reach; none: no network
  bool wall_time_is_most = false;                // a call cannot ask for more
  bool by_default = true;  // offered to sessions that do not choose their tools
};

struct ToolContext {
  sandbox::Sandbox* sandbox = nullptr;    // the session's
  Shell* shell = nullptr;                 // the session's
  mcp::Session* mcp = nullptr;            // the session's MCP servers; null if there are none
  sandbox::EgressProxy* proxy = nullptr;  // for tools with hosts to reach
  // Of the call in its session: the whole of an output that is cut for the model is kept as the
  // file /outputs/CALL_ID.txt, up to so many bytes. Empty: it is not kept.
  std::string call_id;
  int64_t kept_output_bytes = 0;
  const sandbox::CancelFlag* cancel = nullptr;
  std::function<void(std::string_view)> on_output;  // partial output, may be empty
};

// How a call ended, as the model and the journal see it.
struct ToolResult {
  std::string text;  // for the model, as RESULTS.md says; valid UTF-8
  bool is_error =
      false;  // the tool reports failure (bash: exit code other than 0 is not an error of the tool)
  bool cancelled = false;
  bool workspace_full = false;  // it was ended for that, and `text` says so
  int exit_code = 0;
  int64_t output_bytes = 0;                      // before cutting
  std::vector<sandbox::EgressDecision> network;  // what it asked of the proxy
  std::string whole;  // what `text` says is in /outputs; empty if it says nothing of it
  int64_t wall_time_us = 0;
};

// Immutable; Run may be called from several threads.
class Tool {
 public:
  virtual ~Tool() = default;
  virtual const ToolSpec& spec() const = 0;
  // `arguments`: a JSON object that the schema accepts. A Status is the sandbox's failure, not the
  // tool's.
  virtual absl::StatusOr<ToolResult> Run(std::string_view arguments,
                                         const ToolContext& context) const = 0;
};

// The tools of a daemon. Filled at start, then immutable and shared by all threads.
class Registry {
 public:
  Registry();
  ~Registry();
  Registry(Registry&&) noexcept;
  Registry& operator=(Registry&&) noexcept;

  // AlreadyExists for a name clash; InvalidArgument if the schema is not a usable JSON schema.
  absl::Status Add(std::unique_ptr<Tool> tool);
  const Tool* Find(std::string_view name) const;  // null if unknown
  std::vector<const Tool*> tools() const;         // in the order added

  // The arguments to run a call with: `arguments` itself if they fit, or with a plain slip mended
  // (an object wrapped in one parameter named `arguments`, a number written as text). Otherwise
  // NotFound or InvalidArgument, whose message is the call's result as RESULTS.md words it
  // ("Error: unknown tool NAME", "Error: NAME: WHY", where WHY is something that the model can act
  // on: "path: missing", "timeout: 0 is below the minimum 1"). A function of its parameters alone.
  absl::StatusOr<std::string> FitArguments(std::string_view name, std::string_view arguments) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Where a call reads what was left out of an earlier one's result.
std::string KeptOutputPath(const std::string& call_id);

struct Config;

// What the configuration says of this tool.
void ApplySettings(const Config& config, ToolSpec& spec);

// bash, read_file, write_file, edit_file, list_dir, grep (builtin.json, RESULTS.md), as `config`
// sets them. They run inside the sandbox as /agentd/agentd-tool.
absl::Status AddBuiltinTools(Registry& registry, const Config& config);

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_TOOL_H_
