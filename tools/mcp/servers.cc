#include "tools/mcp/servers.h"

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/ascii.h"
#include "base/status.h"
#include "tools/mcp/http_transport.h"
#include "tools/mcp/session.h"
#include "tools/schema.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

// Keeps the order in which a server wrote a schema: it is the order in which the model reads it.
using OrderedJson = nlohmann::ordered_json;

constexpr size_t kMaxTools = 512;
constexpr size_t kMaxToolNameBytes = 128;
constexpr size_t kMaxToolDescriptionBytes = 8'192;
constexpr size_t kMaxSchemaBytes = 64 << 10;
// Looking up a member of an OrderedJson takes time in proportion to their number.
constexpr int64_t kMaxPageMembers = 20'000;

constexpr char kListResources[] = "list_resources";
constexpr char kReadResource[] = "read_resource";
constexpr char kNoParameters[] = R"({"type": "object", "properties": {}})";
constexpr char kUriParameter[] =
    R"({"type": "object", "properties": {"uri": {"type": "string"}}, "required": ["uri"]})";

// The way Python's json.dumps(ensure_ascii=False) writes it, like the built-in tools'.
std::string PythonText(const OrderedJson& value) {
  std::string text;
  if (value.is_object()) {
    for (const auto& [name, member] : value.items())
      text +=
          fmt::format("{}{}: {}", text.empty() ? "" : ", ", JsonString(name), PythonText(member));
    return "{" + text + "}";
  }
  if (value.is_array()) {
    for (const OrderedJson& item : value) text += (text.empty() ? "" : ", ") + PythonText(item);
    return "[" + text + "]";
  }
  if (value.is_string()) return JsonString(value.get_ref<const std::string&>());
  return value.dump();
}

std::string Definition(const std::string& name, const std::string& description,
                       const std::string& parameters) {
  return fmt::format(R"({{"name": {}, "description": {}, "parameters": {}}})", JsonString(name),
                     JsonString(description), parameters);
}

// A tool's name as the model may write it.
std::string Sanitised(std::string name) {
  std::replace_if(
      name.begin(), name.end(),
      [](unsigned char c) { return !absl::ascii_isalnum(c) && c != '_' && c != '-'; }, '_');
  return name;
}

// The specification that all tools of a server share but for name, texts and flags.
ToolSpec SpecFor(const ServerConfig& config, const std::string& name,
                 const std::string& description, const std::string& parameters) {
  ToolSpec spec;
  spec.name = config.name + "__" + Sanitised(name);
  spec.description = description;
  spec.schema = Definition(spec.name, description, parameters);
  spec.flags.needs_approval = config.needs_approval;
  spec.flags.network = !config.url.empty();
  spec.limits.wall_time_ms = config.timeouts.total_ms;
  return spec;
}

absl::StatusOr<RemoteTool> ReadTool(const ServerState& server, const OrderedJson& definition) {
  // Small values are read in the usual form.
  const Json json = Json::parse(definition.dump(), nullptr, /*allow_exceptions=*/false);
  RemoteTool tool;
  tool.name = StringAt(json, "name");
  if (tool.name.empty() || tool.name.size() > kMaxToolNameBytes)
    return InvalidArgument("it has no name of 1 to {} bytes", kMaxToolNameBytes);
  const Json& schema = At(json, "inputSchema");
  if (!schema.is_object()) return InvalidArgument("it has no inputSchema");
  if (Dump(schema).size() > kMaxSchemaBytes)
    return InvalidArgument("its inputSchema has more than {} bytes", kMaxSchemaBytes);
  if (!server.config.url.empty() && server.info.era == Era::kStateless) {
    ASSIGN_OR_RETURN(tool.header_params, HeaderParamsOf(schema));
  }
  std::string description = StringAt(json, "description");
  if (description.empty()) description = StringAt(json, "title");
  tool.spec = SpecFor(server.config, tool.name, CutMiddle(description, kMaxToolDescriptionBytes),
                      PythonText(definition.at("inputSchema")));
  if (server.config.trusted) {
    const Json& hints = At(json, "annotations");
    tool.spec.flags.read_only = At(hints, "readOnlyHint") == true;
    tool.spec.flags.idempotent = tool.spec.flags.read_only || At(hints, "idempotentHint") == true;
  }
  RETURN_IF_ERROR(ArgumentSchema::Parse(tool.spec.schema).status());
  return tool;
}

bool IsWanted(const ServerConfig& config, const std::string& name) {
  return config.tools.empty() ||
         std::find(config.tools.begin(), config.tools.end(), name) != config.tools.end();
}

absl::Status ReadPage(ServerState& server, const Reply& reply) {
  const std::string text = Readable(reply.text);
  if (std::count(text.begin(), text.end(), ':') > kMaxPageMembers)
    return FailedPrecondition("a page of its tools has more than {} members", kMaxPageMembers);
  const OrderedJson page = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!At(reply.result, "tools").is_array()) return FailedPrecondition("its list has no tools");
  for (const OrderedJson& definition : page.at("result").at("tools")) {
    const Json& name = definition.is_object() ? definition.value("name", Json()) : Json();
    const std::string shown = name.is_string() ? name.get<std::string>() : "(no name)";
    if (!IsWanted(server.config, shown)) continue;
    if (server.tools.size() >= kMaxTools)
      return FailedPrecondition("it has more than {} tools: name those wanted", kMaxTools);
    absl::StatusOr<RemoteTool> tool = ReadTool(server, definition);
    if (tool.ok())
      server.tools.push_back(*std::move(tool));
    else
      server.problems.push_back(
          fmt::format("its tool {} is left out: {}", shown, Text(tool.status())));
  }
  return absl::OkStatus();
}

// Two tools of ours through which the model reaches the resources.
void AddResourceTools(ServerState& server) {
  RemoteTool list;
  list.name = kListResources;
  list.kind = RemoteTool::Kind::kListResources;
  list.spec =
      SpecFor(server.config, list.name,
              fmt::format("List the resources of {}: address, name, type.", server.config.name),
              kNoParameters);
  RemoteTool read;
  read.name = kReadResource;
  read.kind = RemoteTool::Kind::kReadResource;
  read.spec = SpecFor(server.config, read.name,
                      fmt::format("Read a resource of {} by its address.", server.config.name),
                      kUriParameter);
  for (RemoteTool* tool : {&list, &read}) {
    tool->spec.flags.read_only = server.config.trusted;
    tool->spec.flags.idempotent = server.config.trusted;
    server.tools.push_back(std::move(*tool));
  }
}

// Null for a server that needs none.
absl::StatusOr<std::unique_ptr<OAuthClient>> OAuthFor(const ServerConfig& config,
                                                      const ServersOptions& options) {
  if (config.url.empty() || HasAuthorization(config)) return nullptr;
  ASSIGN_OR_RETURN(const Url url, ParseUrl(config.url));
  if (!url.encrypted() && !url.loopback()) return nullptr;  // no token goes there
  return OAuthClient::Create({.name = config.name,
                              .url = config.url,
                              .auth = config.auth.value_or(AuthConfig()),
                              .allow_private = options.allow_private,
                              .directory = options.tokens,
                              .authorizer = options.authorizer});
}

absl::Status ReadServer(ServerState& server, const ServersOptions& options) {
  ASSIGN_OR_RETURN(server.oauth, OAuthFor(server.config, options));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Client> client,
      Client::Connect(OpenerFor(server, options.scratch),
                      {.timeouts = server.config.timeouts, .input = options.input}, nullptr));
  server.info = client->server();
  if (server.info.has_tools) {
    RequestOptions request;
    request.timeout_ms = server.config.timeouts.start_ms;
    const absl::Status status = client->List(
        "tools/list", request, [&server](const Reply& reply) { return ReadPage(server, reply); });
    const std::string clues = client->clues();
    if (!status.ok() && !clues.empty())
      return absl::Status(status.code(), Text(status) + " (" + clues + ")");
    RETURN_IF_ERROR(status);
  }
  if (server.info.has_resources && server.config.resources) AddResourceTools(server);
  for (const std::string& name : server.config.tools)
    if (std::none_of(server.tools.begin(), server.tools.end(),
                     [&name](const RemoteTool& tool) { return tool.name == name; }))
      server.problems.push_back(fmt::format("it has no usable tool {}", name));
  return absl::OkStatus();
}

class McpTool : public Tool {
 public:
  McpTool(const ServerState& server, const RemoteTool& tool) : server_(server), tool_(tool) {}
  const ToolSpec& spec() const override { return tool_.spec; }
  absl::StatusOr<ToolResult> Run(std::string_view arguments,
                                 const ToolContext& context) const override {
    if (context.mcp == nullptr)
      return FailedPrecondition("{} needs a session's MCP servers", tool_.spec.name);
    return context.mcp->Call(server_, tool_, arguments, context);
  }

 private:
  const ServerState& server_;
  const RemoteTool& tool_;
};

}  // namespace

Client::Open OpenerFor(const ServerState& server, const Launcher& launcher,
                       absl::Status* launch_status) {
  return [&server, launcher, launch_status]() -> absl::StatusOr<std::unique_ptr<Transport>> {
    const ServerConfig& config = server.config;
    if (!config.url.empty()) {
      ASSIGN_OR_RETURN(std::unique_ptr<HttpTransport> transport,
                       HttpTransport::Create({config.url, config.headers, server.oauth.get()}));
      return transport;
    }
    absl::StatusOr<std::unique_ptr<StdioPeer>> peer = launcher(config);
    if (launch_status != nullptr) *launch_status = peer.status();
    if (!peer.ok()) return peer.status();
    return std::make_unique<StdioTransport>(*std::move(peer));
  };
}

Servers::Servers(InputHandler input) : input_(std::move(input)) {}
Servers::~Servers() = default;

absl::StatusOr<std::unique_ptr<Servers>> Servers::Start(const std::vector<ServerConfig>& configs,
                                                        const ServersOptions& options) {
  std::unique_ptr<Servers> servers(new Servers(options.input));
  std::set<std::string> names;
  for (const ServerConfig& config : configs) {
    auto state = std::make_unique<ServerState>();
    ASSIGN_OR_RETURN(state->config, Resolve(config, options.environment));
    if (!names.insert(config.name).second)
      return InvalidArgument("there are two MCP servers named {}", config.name);
    servers->servers_.push_back(std::move(state));
  }
  std::vector<std::thread> threads;
  for (const std::unique_ptr<ServerState>& state : servers->servers_) {
    threads.emplace_back([&server = *state, &options] {
      const absl::Status status = ReadServer(server, options);
      if (status.ok()) return;
      server.tools.clear();
      server.problems.push_back(Text(status));
    });
  }
  for (std::thread& thread : threads) thread.join();
  return servers;
}

absl::Status Servers::AddTools(Registry& registry, const Config& config) {
  for (const std::unique_ptr<ServerState>& server : servers_) {
    std::map<std::string, const RemoteTool*> by_name;
    for (const RemoteTool& tool : server->tools) {
      const auto [other, added] = by_name.emplace(tool.spec.name, &tool);
      if (added) continue;
      const bool ours = tool.kind != RemoteTool::Kind::kTool;
      return Error(absl::StatusCode::kAlreadyExists,
                   "MCP server {}: its tools \"{}\" and \"{}\"{} would both be named {}: {}",
                   server->config.name, other->second->name, tool.name,
                   ours ? " (which reaches its resources)" : "", tool.spec.name,
                   ours ? "switch off its resources"
                        : "list those of its tools that are wanted, without one of these");
    }
    for (RemoteTool& tool : server->tools) {
      const auto settings = config.tools.find(tool.spec.name);
      if (settings != config.tools.end() && settings->second.LimitsOrNetwork())
        return InvalidArgument(
            "{} of a tool of an MCP server only enabled and parallel can be set "
            "here; limits are its server's ([[mcp]])",
            settings->second.place);
      ApplySettings(config, tool.spec);
      RETURN_IF_ERROR(registry.Add(std::make_unique<McpTool>(*server, tool)));
    }
  }
  return absl::OkStatus();
}

}  // namespace agentd::tools::mcp
