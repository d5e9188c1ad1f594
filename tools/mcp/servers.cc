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

absl::StatusOr<RemoteTool> ReadTool(const ServerConfig& config, const ServerInfo& info,
                                    const OrderedJson& definition) {
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
  if (!config.url.empty() && info.era == Era::kStateless) {
    ASSIGN_OR_RETURN(tool.header_params, HeaderParamsOf(schema));
  }
  std::string description = StringAt(json, "description");
  if (description.empty()) description = StringAt(json, "title");
  tool.spec = SpecFor(config, tool.name, CutMiddle(description, kMaxToolDescriptionBytes),
                      PythonText(definition.at("inputSchema")));
  if (config.trusted) {
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

absl::Status ReadPage(const ServerConfig& config, const Reply& reply, ServerView& view) {
  const std::string text = Readable(reply.text);
  if (std::count(text.begin(), text.end(), ':') > kMaxPageMembers)
    return FailedPrecondition("a page of its tools has more than {} members", kMaxPageMembers);
  const OrderedJson page = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!At(reply.result, "tools").is_array()) return FailedPrecondition("its list has no tools");
  for (const OrderedJson& definition : page.at("result").at("tools")) {
    const Json& name = definition.is_object() ? definition.value("name", Json()) : Json();
    const std::string shown = name.is_string() ? name.get<std::string>() : "(no name)";
    if (!IsWanted(config, shown)) continue;
    if (view.tools.size() >= kMaxTools)
      return FailedPrecondition("it has more than {} tools: name those wanted", kMaxTools);
    absl::StatusOr<RemoteTool> tool = ReadTool(config, view.info, definition);
    if (tool.ok())
      view.tools.push_back(*std::move(tool));
    else
      view.problems.push_back(
          fmt::format("its tool {} is left out: {}", shown, Text(tool.status())));
  }
  return absl::OkStatus();
}

// Two tools of ours through which the model reaches the resources.
void AddResourceTools(const ServerConfig& config, ServerView& view) {
  RemoteTool list;
  list.name = kListResources;
  list.kind = RemoteTool::Kind::kListResources;
  list.spec = SpecFor(config, list.name,
                      fmt::format("List the resources of {}: address, name, type.", config.name),
                      kNoParameters);
  RemoteTool read;
  read.name = kReadResource;
  read.kind = RemoteTool::Kind::kReadResource;
  read.spec =
      SpecFor(config, read.name, fmt::format("Read a resource of {} by its address.", config.name),
              kUriParameter);
  for (RemoteTool* tool : {&list, &read}) {
    tool->spec.flags.read_only = config.trusted;
    tool->spec.flags.idempotent = config.trusted;
    view.tools.push_back(std::move(*tool));
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

// All that the server has, through a client of it.
absl::StatusOr<ServerView> ReadView(const ServerConfig& config, Client& client) {
  ServerView view;
  view.info = client.server();
  if (view.info.has_tools) {
    RequestOptions request;
    request.timeout_ms = config.timeouts.start_ms;
    const absl::Status status = client.List(
        "tools/list", request, [&](const Reply& reply) { return ReadPage(config, reply, view); });
    const std::string clues = client.clues();
    if (!status.ok() && !clues.empty())
      return absl::Status(status.code(), Text(status) + " (" + clues + ")");
    RETURN_IF_ERROR(status);
  }
  if (view.info.has_resources && config.resources) AddResourceTools(config, view);
  for (const std::string& name : config.tools)
    if (std::none_of(view.tools.begin(), view.tools.end(),
                     [&name](const RemoteTool& tool) { return tool.name == name; }))
      view.problems.push_back(fmt::format("it has no usable tool {}", name));
  return view;
}

// Connects and shows what the server has, or why it has nothing.
void AskServer(const ServerState& server, const Launcher& launcher, const InputHandler& input) {
  const auto view = [&]() -> absl::StatusOr<ServerView> {
    ASSIGN_OR_RETURN(
        const std::unique_ptr<Client> client,
        Client::Connect(OpenerFor(server, launcher),
                        {.timeouts = server.config.timeouts, .input = input}, nullptr));
    return ReadView(server.config, *client);
  }();
  server.Show(view.ok() ? *view : ServerView{.problems = {Text(view.status())}});
}

absl::Status CheckClashes(const ServerConfig& config, const ServerView& view) {
  std::map<std::string, const RemoteTool*> by_name;
  for (const RemoteTool& tool : view.tools) {
    const auto [other, added] = by_name.emplace(tool.spec.name, &tool);
    if (added) continue;
    const bool ours = tool.kind != RemoteTool::Kind::kTool;
    return Error(absl::StatusCode::kAlreadyExists,
                 "MCP server {}: its tools \"{}\" and \"{}\"{} would both be named {}: {}",
                 config.name, other->second->name, tool.name,
                 ours ? " (which reaches its resources)" : "", tool.spec.name,
                 ours ? "switch off its resources"
                      : "list those of its tools that are wanted, without one of these");
  }
  return absl::OkStatus();
}

class McpTool : public Tool {
 public:
  McpTool(const ServerState& server, RemoteTool tool) : server_(server), tool_(std::move(tool)) {}
  const ToolSpec& spec() const override { return tool_.spec; }
  absl::StatusOr<ToolResult> Run(std::string_view arguments,
                                 const ToolContext& context) const override {
    if (context.mcp == nullptr)
      return FailedPrecondition("{} needs a session's MCP servers", tool_.spec.name);
    return context.mcp->Call(server_, tool_, arguments, context);
  }

 private:
  const ServerState& server_;
  const RemoteTool tool_;
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

std::shared_ptr<const ServerView> ServerState::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

void ServerState::Show(ServerView view) const {
  auto shown = std::make_shared<const ServerView>(std::move(view));
  const std::lock_guard lock(mutex_);
  view_ = std::move(shown);
}

void ServerState::ReadAgain(Client& client) const {
  absl::StatusOr<ServerView> fresh = ReadView(config, client);
  const absl::Status status = fresh.ok() ? CheckClashes(config, *fresh) : fresh.status();
  if (status.ok()) return Show(*std::move(fresh));
  ServerView kept = *view();
  kept.problems = {"its tools have changed and cannot be read again: " + Text(status)};
  Show(std::move(kept));
}

Servers::Servers(InputHandler input) : input_(std::move(input)) {}
Servers::~Servers() = default;

absl::StatusOr<std::unique_ptr<Servers>> Servers::Start(const std::vector<ServerConfig>& configs,
                                                        const ServersOptions& options) {
  std::unique_ptr<Servers> servers(new Servers(options.input));
  std::set<std::string> names;
  for (const ServerConfig& config : configs) {
    ASSIGN_OR_RETURN(ServerConfig resolved, Resolve(config, options.environment));
    if (!names.insert(config.name).second)
      return InvalidArgument("there are two MCP servers named {}", config.name);
    servers->servers_.push_back(std::make_unique<ServerState>(std::move(resolved)));
  }
  std::vector<std::thread> threads;
  for (const std::unique_ptr<ServerState>& state : servers->servers_) {
    absl::StatusOr<std::unique_ptr<OAuthClient>> oauth = OAuthFor(state->config, options);
    if (!oauth.ok()) {
      state->Show({.problems = {Text(oauth.status())}});
      continue;
    }
    state->oauth = *std::move(oauth);
    threads.emplace_back(
        [&server = *state, &options] { AskServer(server, options.scratch, options.input); });
  }
  for (std::thread& thread : threads) thread.join();
  return servers;
}

absl::Status Servers::AddTools(Registry& registry, const Config& config) const {
  for (const std::unique_ptr<ServerState>& server : servers_) {
    const std::shared_ptr<const ServerView> view = server->view();
    RETURN_IF_ERROR(CheckClashes(server->config, *view));
    for (RemoteTool tool : view->tools) {
      const auto settings = config.tools.find(tool.spec.name);
      if (settings != config.tools.end() && settings->second.LimitsOrNetwork())
        return InvalidArgument(
            "{} of a tool of an MCP server only enabled and parallel can be set "
            "here; limits are its server's ([[mcp]])",
            settings->second.place);
      ApplySettings(config, tool.spec);
      RETURN_IF_ERROR(registry.Add(std::make_unique<McpTool>(*server, std::move(tool))));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const ServerState*> Servers::Find(const std::string& name) const {
  std::string names;
  for (const std::unique_ptr<ServerState>& server : servers_) {
    if (server->config.name == name) return server.get();
    names += (names.empty() ? "" : ", ") + server->config.name;
  }
  return NotFound("there is no MCP server {}; there are {}", name, names.empty() ? "none" : names);
}

void Servers::AskAgain(const ServerState& server) const {
  AskServer(server, /*launcher=*/nullptr, input_);
}

}  // namespace agentd::tools::mcp
