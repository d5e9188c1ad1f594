#include "tools/config.h"

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>

#include "base/status.h"
#include "tools/tool.h"

namespace agentd::tools {
namespace {

constexpr int64_t kKib = 1024;
constexpr int64_t kMib = 1024 * kKib;
constexpr int64_t kMaxSeconds = 24 * 3600;

// Where an error is.
struct Place {
  std::string source;
  std::string table;  // "tools.bash"

  std::string Of(const toml::source_region& region) const {
    return fmt::format("{}, line {}:{}", source, region.begin.line,
                       table.empty() ? "" : " [" + table + "]");
  }
  absl::Status Fail(const toml::source_region& region, const std::string& what) const {
    return InvalidArgument("{} {}", Of(region), what);
  }
};

const char* TypeName(toml::node_type type) {
  switch (type) {
    case toml::node_type::string:
      return "a text";
    case toml::node_type::integer:
      return "a whole number";
    case toml::node_type::floating_point:
      return "a number with a point";
    case toml::node_type::boolean:
      return "true or false";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::table:
      return "a table";
    default:
      return "a date or time";
  }
}

// Reads a table key by key; what was not asked for in the end is an unknown key.
class TableReader {
 public:
  TableReader(const toml::table& table, Place place) : table_(table), place_(std::move(place)) {}

  // The value times `unit`, if the key is there. In the file it lies in [low, high].
  template <typename T>
  absl::Status Integer(const char* key, int64_t low, int64_t high, int64_t unit,
                       std::optional<T>& out) {
    const toml::node* node = Get(key);
    if (node == nullptr) return absl::OkStatus();
    const std::optional<int64_t> value = node->value_exact<int64_t>();
    if (!value) return WrongType(key, *node, "a whole number");
    if (*value < low || *value > high) {
      return place_.Fail(node->source(),
                         fmt::format("{} = {}: not between {} and {}", key, *value, low, high));
    }
    out = static_cast<T>(*value * unit);
    return absl::OkStatus();
  }
  absl::Status Bool(const char* key, std::optional<bool>& out) {
    const toml::node* node = Get(key);
    if (node == nullptr) return absl::OkStatus();
    out = node->value_exact<bool>();
    return out ? absl::OkStatus() : WrongType(key, *node, "true or false");
  }
  absl::Status String(const char* key, std::optional<std::string>& out) {
    const toml::node* node = Get(key);
    if (node == nullptr) return absl::OkStatus();
    out = node->value_exact<std::string>();
    return out ? absl::OkStatus() : WrongType(key, *node, "a text");
  }
  absl::Status Strings(const char* key, std::vector<std::string>& out) {
    const toml::node* node = Get(key);
    if (node == nullptr) return absl::OkStatus();
    if (node->as_array() == nullptr) return WrongType(key, *node, "a list of texts");
    for (const toml::node& element : *node->as_array()) {
      const std::optional<std::string> text = element.value_exact<std::string>();
      if (!text) return WrongType(key, element, "a list of texts");
      out.push_back(*text);
    }
    return absl::OkStatus();
  }
  // A table of texts, each `wanted`.
  absl::Status Pairs(const char* key, const std::string& wanted,
                     std::vector<std::pair<std::string, std::string>>& out) {
    ASSIGN_OR_RETURN(const toml::table* table, Table(key));
    if (table == nullptr) return absl::OkStatus();
    for (const auto& [name, node] : *table) {
      const std::optional<std::string> text = node.value_exact<std::string>();
      if (!text) return WrongType(fmt::format("{}.{}", key, std::string(name.str())), node, wanted);
      out.emplace_back(std::string(name.str()), *text);
    }
    return absl::OkStatus();
  }
  // Null if the key is not there.
  absl::StatusOr<const toml::table*> Table(const char* key) {
    const toml::node* node = Get(key);
    if (node == nullptr) return nullptr;
    if (node->as_table() == nullptr) return WrongType(key, *node, "a table");
    return node->as_table();
  }
  absl::StatusOr<std::vector<const toml::table*>> Tables(const char* key) {
    std::vector<const toml::table*> tables;
    const toml::node* node = Get(key);
    if (node == nullptr) return tables;
    if (node->as_array() == nullptr)
      return WrongType(key, *node, fmt::format("a list of tables ([[{}]])", key));
    for (const toml::node& element : *node->as_array()) {
      if (element.as_table() == nullptr)
        return WrongType(key, element, fmt::format("a list of tables ([[{}]])", key));
      tables.push_back(element.as_table());
    }
    return tables;
  }
  absl::Status Missing(const char* key) const {
    return place_.Fail(table_.source(), fmt::format("{} is missing", key));
  }
  // After all keys were read.
  absl::Status Finish() const {
    for (const auto& [key, node] : table_) {
      if (known_.count(std::string(key.str())) > 0) continue;
      return place_.Fail(key.source(),
                         fmt::format("unknown key {}; known here: {}", std::string(key.str()),
                                     fmt::join(known_, ", ")));
    }
    return absl::OkStatus();
  }
  const Place& place() const { return place_; }
  const toml::table& table() const { return table_; }

 private:
  const toml::node* Get(const char* key) {
    known_.insert(key);
    return table_.get(key);
  }
  absl::Status WrongType(const std::string& key, const toml::node& node,
                         const std::string& wanted) const {
    return place_.Fail(node.source(), fmt::format("{} is {}, where {} is wanted", key,
                                                  TypeName(node.type()), wanted));
  }

  const toml::table& table_;
  const Place place_;
  std::set<std::string> known_;
};

absl::StatusOr<ToolSettings> ParseTool(TableReader reader,
                                       const std::vector<std::string>& allow_private) {
  ToolSettings settings;
  std::vector<std::string> hosts;
  settings.place = reader.place().Of(reader.table().source());
  RETURN_IF_ERROR(reader.Bool("enabled", settings.enabled));
  RETURN_IF_ERROR(reader.Bool("parallel", settings.parallel));
  RETURN_IF_ERROR(reader.Integer("timeout_s", 1, kMaxSeconds, 1000, settings.wall_time_ms));
  RETURN_IF_ERROR(reader.Integer("cpu_s", 1, kMaxSeconds, 1, settings.cpu_time_s));
  RETURN_IF_ERROR(reader.Integer("memory_mib", 16, int64_t{1} << 24, kMib, settings.memory_bytes));
  RETURN_IF_ERROR(reader.Integer("processes", 1, 30'000, 1, settings.max_processes));
  RETURN_IF_ERROR(reader.Integer("open_files", 16, 1 << 20, 1, settings.max_open_files));
  RETURN_IF_ERROR(reader.Integer("file_mib", 0, int64_t{1} << 24, kMib, settings.max_file_bytes));
  RETURN_IF_ERROR(reader.Strings("network", hosts));
  RETURN_IF_ERROR(reader.Finish());
  if (hosts.empty()) return settings;
  absl::StatusOr<sandbox::EgressPolicy> policy = sandbox::EgressPolicy::Parse(hosts, allow_private);
  if (!policy.ok()) return Annotate(policy.status(), settings.place + " network");
  settings.network = *std::move(policy);
  return settings;
}

absl::StatusOr<mcp::AuthConfig> ParseAuth(TableReader reader) {
  std::optional<std::string> grant, id, secret, key, assertion, issuer, idp, idp_client;
  mcp::AuthConfig auth;
  RETURN_IF_ERROR(reader.String("grant", grant));
  RETURN_IF_ERROR(reader.String("client_id", id));
  RETURN_IF_ERROR(reader.String("client_secret", secret));
  RETURN_IF_ERROR(reader.String("private_key_file", key));
  RETURN_IF_ERROR(reader.String("assertion_file", assertion));
  RETURN_IF_ERROR(reader.String("idp_token_endpoint", idp));
  RETURN_IF_ERROR(reader.String("idp_client_id", idp_client));
  RETURN_IF_ERROR(reader.Strings("scopes", auth.scopes));
  RETURN_IF_ERROR(reader.String("issuer", issuer));
  RETURN_IF_ERROR(reader.Finish());
  auth.client_id = id.value_or("");
  auth.client_secret = secret.value_or("");
  auth.private_key_file = key.value_or("");
  auth.assertion_file = assertion.value_or("");
  auth.idp_token_endpoint = idp.value_or("");
  auth.idp_client_id = idp_client.value_or("");
  auth.issuer = issuer.value_or("");
  using Grant = mcp::AuthConfig::Grant;
  if (!grant || *grant == "authorization_code") return auth;
  if (*grant == "client_credentials") {
    auth.grant = Grant::kClientCredentials;
  } else if (*grant == "jwt_bearer") {
    auth.grant = Grant::kJwtBearer;
  } else if (*grant == "token_exchange") {
    auth.grant = Grant::kTokenExchange;
  } else {
    return reader.place().Fail(reader.table().get("grant")->source(),
                               fmt::format("grant = \"{}\": not authorization_code, "
                                           "client_credentials, jwt_bearer or token_exchange",
                                           *grant));
  }
  return auth;
}

absl::StatusOr<mcp::ServerConfig> ParseServer(TableReader reader) {
  mcp::ServerConfig server;
  std::optional<std::string> name, url, cwd;
  std::optional<bool> trusted, approval, resources;
  std::optional<int64_t> start, call, total, memory;
  RETURN_IF_ERROR(reader.String("name", name));
  RETURN_IF_ERROR(reader.Strings("command", server.command));
  RETURN_IF_ERROR(reader.Pairs("env", "a text", server.env));
  RETURN_IF_ERROR(reader.String("cwd", cwd));
  RETURN_IF_ERROR(reader.String("url", url));
  RETURN_IF_ERROR(reader.Pairs("headers", "a text", server.headers));
  ASSIGN_OR_RETURN(const toml::table* auth, reader.Table("auth"));
  RETURN_IF_ERROR(reader.Bool("trusted", trusted));
  RETURN_IF_ERROR(reader.Bool("approval", approval));
  RETURN_IF_ERROR(reader.Bool("resources", resources));
  RETURN_IF_ERROR(reader.Strings("tools", server.tools));
  RETURN_IF_ERROR(reader.Integer("start_s", 1, kMaxSeconds, 1000, start));
  RETURN_IF_ERROR(reader.Integer("call_s", 1, kMaxSeconds, 1000, call));
  RETURN_IF_ERROR(reader.Integer("total_s", 1, kMaxSeconds, 1000, total));
  RETURN_IF_ERROR(reader.Integer("memory_mib", 16, int64_t{1} << 24, kMib, memory));
  RETURN_IF_ERROR(reader.Finish());
  if (auth != nullptr) {
    ASSIGN_OR_RETURN(server.auth,
                     ParseAuth(TableReader(*auth, {reader.place().source, "mcp.auth"})));
  }
  if (!name) return reader.Missing("name");
  if (server.command.empty() == !url.has_value())
    return reader.place().Fail(reader.table().source(), "give either command or url");
  server.name = *name;
  server.url = url.value_or("");
  server.cwd = cwd.value_or(server.cwd);
  server.trusted = trusted.value_or(server.trusted);
  server.needs_approval = approval.value_or(server.needs_approval);
  server.resources = resources.value_or(server.resources);
  server.timeouts.start_ms = start.value_or(server.timeouts.start_ms);
  server.timeouts.call_ms = call.value_or(server.timeouts.call_ms);
  server.timeouts.total_ms = total.value_or(server.timeouts.total_ms);
  server.memory_bytes = memory.value_or(server.memory_bytes);
  return server;
}

absl::StatusOr<sandbox::Mount> ParseMount(TableReader reader) {
  std::optional<std::string> host, inside;
  RETURN_IF_ERROR(reader.String("host", host));
  RETURN_IF_ERROR(reader.String("inside", inside));
  RETURN_IF_ERROR(reader.Finish());
  if (!host || host->empty()) return reader.Missing("host");
  return sandbox::Mount{*host, inside.value_or(*host)};
}

absl::StatusOr<Rule> ParseRule(TableReader reader) {
  std::optional<std::string> tool, action, reason;
  Rule rule;
  RETURN_IF_ERROR(reader.String("tool", tool));
  RETURN_IF_ERROR(reader.String("action", action));
  RETURN_IF_ERROR(reader.String("reason", reason));
  RETURN_IF_ERROR(reader.Pairs("when", "a pattern (a text)", rule.when));
  RETURN_IF_ERROR(reader.Finish());
  if (!tool || tool->empty()) return reader.Missing("tool");
  if (!action) return reader.Missing("action");
  rule.place = reader.place().Of(reader.table().source());
  rule.tool = *tool;
  rule.reason = reason.value_or("");
  if (*action == "allow") {
    rule.action = RuleAction::kAllow;
  } else if (*action == "ask") {
    rule.action = RuleAction::kAsk;
  } else if (*action == "deny") {
    rule.action = RuleAction::kDeny;
  } else {
    return reader.place().Fail(reader.table().get("action")->source(),
                               fmt::format("action = \"{}\": not allow, ask or deny", *action));
  }
  return rule;
}

absl::Status ParseLimits(TableReader reader, Config& config) {
  std::optional<int> parallel, idle;
  std::optional<int64_t> kept, workspace, files, memory, processes, percent;
  RETURN_IF_ERROR(reader.Integer("parallel_calls", 1, 64, 1, parallel));
  RETURN_IF_ERROR(reader.Integer("kept_output_kib", 16, 64 * 1024, kKib, kept));
  RETURN_IF_ERROR(reader.Integer("turn_tokens", 1, std::numeric_limits<int32_t>::max(), 1,
                                 config.max_turn_tokens));
  RETURN_IF_ERROR(reader.Integer("turn_calls", 1, 1'000'000, 1, config.max_turn_calls));
  RETURN_IF_ERROR(reader.Integer("workspace_mib", 1, int64_t{1} << 24, kMib, workspace));
  RETURN_IF_ERROR(reader.Integer("workspace_files", 1, int64_t{1} << 32, 1, files));
  RETURN_IF_ERROR(reader.Integer("idle_sandboxes", 0, 10'000, 1, idle));
  RETURN_IF_ERROR(reader.Integer("session_memory_mib", 64, int64_t{1} << 24, kMib, memory));
  RETURN_IF_ERROR(reader.Integer("session_processes", 16, int64_t{1} << 22, 1, processes));
  RETURN_IF_ERROR(reader.Integer("session_cpu_percent", 1, 1'000'000, 1, percent));
  config.session.memory_bytes = memory.value_or(config.session.memory_bytes);
  config.session.max_processes = processes.value_or(config.session.max_processes);
  if (percent) config.session.cpus = static_cast<double>(*percent) / 100;
  config.workspace_bytes = workspace.value_or(config.workspace_bytes);
  config.workspace_files = files.value_or(config.workspace_files);
  config.idle_sandboxes = idle.value_or(config.idle_sandboxes);
  config.parallel_calls = parallel.value_or(config.parallel_calls);
  config.kept_output_bytes = kept.value_or(config.kept_output_bytes);
  return reader.Finish();
}

absl::Status ParseInPlace(TableReader reader, Config& config) {
  std::optional<bool> allowed;
  RETURN_IF_ERROR(reader.Bool("allowed", allowed));
  RETURN_IF_ERROR(reader.Strings("roots", config.in_place_roots));
  config.in_place_allowed = allowed.value_or(config.in_place_allowed);
  for (const std::string& root : config.in_place_roots) {
    if (root.starts_with('/')) continue;
    return reader.place().Fail(reader.table().get("roots")->source(),
                               fmt::format("roots: {} is not an absolute path", root));
  }
  return reader.Finish();
}

absl::Status ParseRoot(const toml::table& root, const std::string& source, Config& config) {
  TableReader reader(root, {source, ""});
  ASSIGN_OR_RETURN(const toml::table* tools, reader.Table("tools"));
  ASSIGN_OR_RETURN(const toml::table* limits, reader.Table("limits"));
  ASSIGN_OR_RETURN(const std::vector<const toml::table*> rules, reader.Tables("rule"));
  ASSIGN_OR_RETURN(const std::vector<const toml::table*> servers, reader.Tables("mcp"));
  ASSIGN_OR_RETURN(const std::vector<const toml::table*> mounts, reader.Tables("mount"));
  ASSIGN_OR_RETURN(const toml::table* network, reader.Table("network"));
  ASSIGN_OR_RETURN(const toml::table* in_place, reader.Table("in_place"));
  RETURN_IF_ERROR(reader.Finish());
  if (in_place != nullptr)
    RETURN_IF_ERROR(ParseInPlace(TableReader(*in_place, {source, "in_place"}), config));
  if (network != nullptr) {
    TableReader networks(*network, {source, "network"});
    RETURN_IF_ERROR(networks.Strings("allow_private", config.allow_private));
    RETURN_IF_ERROR(networks.Finish());
    const auto valid = sandbox::EgressPolicy::Parse({}, config.allow_private);
    if (!valid.ok()) return Annotate(valid.status(), networks.place().Of(network->source()));
  }
  if (tools != nullptr) {
    for (const auto& [key, node] : *tools) {
      const Place place{source, "tools." + std::string(key.str())};
      if (node.as_table() == nullptr) return place.Fail(node.source(), "is not a table");
      ASSIGN_OR_RETURN(config.tools[std::string(key.str())],
                       ParseTool(TableReader(*node.as_table(), place), config.allow_private));
    }
  }
  if (limits != nullptr)
    RETURN_IF_ERROR(ParseLimits(TableReader(*limits, {source, "limits"}), config));
  for (const toml::table* table : servers) {
    ASSIGN_OR_RETURN(mcp::ServerConfig server, ParseServer(TableReader(*table, {source, "mcp"})));
    config.mcp_servers.push_back(std::move(server));
  }
  for (const toml::table* table : mounts) {
    ASSIGN_OR_RETURN(sandbox::Mount mount, ParseMount(TableReader(*table, {source, "mount"})));
    config.mounts.push_back(std::move(mount));
  }
  for (const toml::table* table : rules) {
    ASSIGN_OR_RETURN(Rule rule, ParseRule(TableReader(*table, {source, "rule"})));
    config.rules.Add(std::move(rule));
  }
  return absl::OkStatus();
}

}  // namespace

void ApplySettings(const Config& config, ToolSpec& spec) {
  const auto found = config.tools.find(spec.name);
  if (found == config.tools.end()) return;
  const ToolSettings& settings = found->second;
  settings.ApplyTo(spec.limits);
  spec.wall_time_is_most |= settings.wall_time_ms.has_value();
  spec.by_default = settings.enabled.value_or(spec.by_default);
  spec.flags.parallel = settings.parallel.value_or(spec.flags.parallel);
  if (!settings.network) return;
  spec.flags.network = true;
  spec.flags.workspace_only = false;  // what it did elsewhere no snapshot brings back
  spec.network = settings.network;
}

absl::Status Config::CheckNames(const std::vector<std::string>& tool_names,
                                const std::vector<std::string>& absent) const {
  const auto may_come = [&absent](const std::string& pattern) {
    const std::string begin = pattern.substr(0, pattern.find('*'));
    return std::any_of(absent.begin(), absent.end(), [&](const std::string& prefix) {
      return begin.starts_with(prefix) || (begin != pattern && prefix.starts_with(begin));
    });
  };
  const auto none = [&](const std::string& place, const std::string& pattern) {
    return InvalidArgument("{} there is no tool {}; there are {}", place, pattern,
                           fmt::join(tool_names, ", "));
  };
  for (const auto& [name, settings] : tools) {
    if (std::find(tool_names.begin(), tool_names.end(), name) == tool_names.end() &&
        !may_come(name))
      return none(settings.place, name);
  }
  for (const Rule& rule : rules.all()) {
    if (std::none_of(tool_names.begin(), tool_names.end(),
                     [&](const std::string& name) { return MatchesPattern(rule.tool, name); }) &&
        !may_come(rule.tool)) {
      return none(rule.place, rule.tool);
    }
  }
  return absl::OkStatus();
}

void ToolSettings::ApplyTo(sandbox::Limits& limits) const {
  limits.wall_time_ms = wall_time_ms.value_or(limits.wall_time_ms);
  limits.cpu_time_s = cpu_time_s.value_or(limits.cpu_time_s);
  limits.memory_bytes = memory_bytes.value_or(limits.memory_bytes);
  limits.max_processes = max_processes.value_or(limits.max_processes);
  limits.max_open_files = max_open_files.value_or(limits.max_open_files);
  limits.max_file_bytes = max_file_bytes.value_or(limits.max_file_bytes);
}

bool ToolSettings::LimitsOrNetwork() const {
  return wall_time_ms || cpu_time_s || memory_bytes || max_processes || max_open_files ||
         max_file_bytes || network;
}

absl::StatusOr<Config> ParseConfig(std::string_view toml, const std::string& source) {
  const toml::parse_result parsed = toml::parse(toml);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return InvalidArgument("{}, line {}: {}", source, error.source().begin.line,
                           std::string(error.description()));
  }
  Config config;
  RETURN_IF_ERROR(ParseRoot(parsed.table(), source, config));
  return config;
}

absl::StatusOr<Config> ReadConfig(const std::filesystem::path& file) {
  std::error_code error;
  if (std::filesystem::is_directory(file, error))
    return InvalidArgument("{}: is a directory", file.string());
  std::ifstream in(file, std::ios::binary);
  if (!in) return ErrnoError(errno, "read " + file.string());
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  return ParseConfig(text, file.string());
}

}  // namespace agentd::tools
