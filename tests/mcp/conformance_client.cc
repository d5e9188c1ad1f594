// The client under test of the MCP conformance suite: conformance_client URL. What agentd itself
// does with a server - its tools in the registry, calls through a session - is what the suite sees;
// only whom to call with what is decided here, by scenario.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "tools/mcp/agreeing_authorizer.h"
#include "tools/mcp/json_rpc.h"
#include "tools/mcp/servers.h"
#include "tools/mcp/session.h"

namespace agentd::tools::mcp {
namespace {

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// A person who accepts whatever is asked, with the defaults.
absl::StatusOr<Json> AcceptWithDefaults(const std::string& /*method*/, const Json& params) {
  Json content = Json::object();
  for (const auto& [name, property] : At(At(params, "requestedSchema"), "properties").items())
    if (property.contains("default"))
      content[name] = property["default"];
    else if (StringAt(property, "type") == "boolean")
      content[name] = true;
  return Json{{"action", "accept"}, {"content", content}};
}

// `text` in a file that goes with the process's directory.
std::string InFile(const char* name, const std::string& text) {
  static const TemporaryDirectory kDirectory;
  const std::string path = kDirectory.path() / name;
  std::ofstream(path) << text;
  return path;
}

// What a person would write into [mcp.auth] who knows what the scenario's context holds.
AuthConfig AuthFor(const std::string& scenario, const Json& context) {
  AuthConfig auth;
  auth.client_id = StringAt(context, "client_id");
  auth.client_secret = StringAt(context, "client_secret");
  auth.issuer = StringAt(context, "issuer");
  if (scenario.starts_with("auth/client-credentials"))
    auth.grant = AuthConfig::Grant::kClientCredentials;
  if (const std::string key = StringAt(context, "private_key_pem"); !key.empty())
    auth.private_key_file = InFile("key.pem", key);
  if (const std::string assertion = StringAt(context, "valid_jwt"); !assertion.empty()) {
    auth.grant = AuthConfig::Grant::kJwtBearer;
    auth.assertion_file = InFile("assertion.jwt", assertion);
  }
  if (const std::string id_token = StringAt(context, "idp_id_token"); !id_token.empty()) {
    auth.grant = AuthConfig::Grant::kTokenExchange;
    auth.assertion_file = InFile("id_token.jwt", id_token);
    auth.idp_token_endpoint = StringAt(context, "idp_token_endpoint");
    auth.idp_client_id = StringAt(context, "idp_client_id");
  }
  if (scenario == "auth/basic-cimd")
    auth.client_id = "https://conformance-test.local/client-metadata.json";
  return auth;
}

class ConformanceRun {
 public:
  int Start(const std::string& url, const std::string& scenario, const Json& context) {
    ServerConfig config;
    config.name = "s";
    config.url = url;
    config.auth = AuthFor(scenario, context);
    ServersOptions options;
    options.input = AcceptWithDefaults;
    options.authorizer = &person_;
    auto servers = Servers::Start({config}, options);
    if (!servers.ok()) return Fail(Text(servers.status()));
    servers_ = *std::move(servers);
    if (const absl::Status status = servers_->AddTools(registry_, {}); !status.ok())
      return Fail(Text(status));
    const std::shared_ptr<const ServerView> state = servers_->all()[0]->view();
    for (const std::string& problem : state->problems)
      std::fprintf(stderr, "%s\n", problem.c_str());
    if (state->info.revision.empty()) return 1;
    session_ = std::make_unique<Session>(*servers_, nullptr);
    return 0;
  }

  // A call as a turn of the daemon makes it; `arguments` that do not fit are sent all the same.
  void Call(const std::string& name, const std::string& arguments) {
    const Tool* tool = registry_.Find("s__" + name);
    if (tool == nullptr) {
      std::printf("%s: not offered\n", name.c_str());
      return;
    }
    ToolContext context;
    context.mcp = session_.get();
    const auto result = tool->Run(arguments, context);
    std::printf("%s: %s\n", name.c_str(),
                result.ok() ? result->text.c_str() : Text(result.status()).c_str());
  }

  void CallAll() {
    for (const Tool* tool : registry_.tools())
      Call(tool->spec().name.substr(3), ArgumentsFor(tool->spec()));
  }

  // For those arguments that are required, something of their type.
  static std::string ArgumentsFor(const ToolSpec& spec) {
    const Json parameters = Json::parse(spec.schema)["parameters"];
    Json arguments = Json::object();
    const Json& required = At(parameters, "required");
    for (const auto& [name, property] : At(parameters, "properties").items()) {
      if (!required.is_array() ||
          std::find(required.begin(), required.end(), name) == required.end())
        continue;
      const std::string type = StringAt(property, "type");
      if (type == "number" || type == "integer")
        arguments[name] = 5;
      else if (type == "boolean")
        arguments[name] = true;
      else
        arguments[name] = type == "object" ? Json::object() : Json("text");
    }
    return Dump(arguments);
  }

  const Registry& registry() const { return registry_; }

 private:
  static int Fail(const std::string& why) {
    std::fprintf(stderr, "%s\n", why.c_str());
    return 1;
  }

  AgreeingAuthorizer person_;
  Registry registry_;
  std::unique_ptr<Servers> servers_;
  std::unique_ptr<Session> session_;
};

int RunScenario(const std::string& url) {
  const std::string scenario = Env("MCP_CONFORMANCE_SCENARIO");
  const Json context = Json::parse(Env("MCP_CONFORMANCE_CONTEXT"), nullptr, false);
  ConformanceRun run;
  if (const int failed = run.Start(url, scenario, context); failed != 0) return failed;
  if (At(context, "toolCalls").is_array()) {
    for (const Json& call : context["toolCalls"])
      run.Call(StringAt(call, "name"), Dump(At(call, "arguments")));
  } else if (scenario == "http-standard-headers") {
    run.CallAll();
    run.Call("read_resource", R"({"uri": "file:///path/to/file%20name.txt"})");
  } else if (scenario == "json-schema-2020-12-preservation") {
    const Tool* focal = run.registry().Find("s__json_schema_2020_12_tool");
    if (focal != nullptr)
      run.Call("json_schema_echo",
               Dump(Json{{"schema", Json::parse(focal->spec().schema)["parameters"]}}));
  } else {
    run.CallAll();
  }
  return 0;
}

}  // namespace
}  // namespace agentd::tools::mcp

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: conformance_client URL\n");
    return 2;
  }
  return agentd::tools::mcp::RunScenario(argv[1]);
}
