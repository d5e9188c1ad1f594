// The daemon's configuration of its tools: one TOML file (tools/CONFIG.md), read at start.
#ifndef AGENTD_TOOLS_CONFIG_H_
#define AGENTD_TOOLS_CONFIG_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "sandbox/egress_policy.h"
#include "sandbox/sandbox.h"
#include "tools/mcp/config.h"
#include "tools/rules.h"

namespace agentd::tools {

// [tools.NAME]: what differs from the tool's own. Sizes in bytes.
struct ToolSettings {
  std::string place;            // "FILE, line N: [tools.NAME]"
  std::optional<bool> enabled;  // offered to sessions that do not choose their tools
  std::optional<bool> parallel;
  std::optional<int64_t> wall_time_ms;
  std::optional<int64_t> cpu_time_s;
  std::optional<int64_t> memory_bytes;
  std::optional<int64_t> max_processes;
  std::optional<int64_t> max_open_files;
  std::optional<int64_t> max_file_bytes;
  std::optional<sandbox::EgressPolicy> network;  // hosts that calls may reach

  void ApplyTo(sandbox::Limits& limits) const;
  bool LimitsOrNetwork() const;  // any of these is set
};

struct Config {
  // InvalidArgument names the place where a tool is set that is none of these, or the rule that can
  // apply to none. `absent`: how the names of tools begin that may come later.
  absl::Status CheckNames(const std::vector<std::string>& tool_names,
                          const std::vector<std::string>& absent = {}) const;

  std::map<std::string, ToolSettings> tools;
  Rules rules;
  std::vector<mcp::ServerConfig> mcp_servers;  // [[mcp]]
  std::vector<sandbox::Mount> mounts;          // [[mount]]
  std::vector<std::string> allow_private;      // [network]
  // [in_place]
  bool in_place_allowed = true;
  std::vector<std::string>
      in_place_roots;  // absolute; none: wherever a folder is the daemon's user's
  // [limits]
  int64_t workspace_bytes = 0;  // 0: no limit
  int64_t workspace_files = 0;
  sandbox::TotalLimits session = {.max_processes =
                                      2048};  // memory 0: three quarters of the machine's
  int idle_sandboxes = 8;                     // of sessions without a turn, for what lives in them
  int parallel_calls = 8;                     // of one message, at one time
  int64_t kept_output_bytes = int64_t{1} << 20;  // of a call, for the model to read in pages
  std::optional<int64_t> max_turn_tokens;        // default of sessions; else the model's own
  std::optional<int32_t> max_turn_calls;
};

// InvalidArgument names `source`, the line, and what is wrong: an unknown key, a value of another
// type or out of its range, a rule that cannot apply.
absl::StatusOr<Config> ParseConfig(std::string_view toml, const std::string& source);
// The same from a file; NotFound if there is none.
absl::StatusOr<Config> ReadConfig(const std::filesystem::path& file);

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_CONFIG_H_
