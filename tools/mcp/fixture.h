// What the tests of MCP servers share: a daemon's servers and one session with them.
#ifndef AGENTD_TOOLS_MCP_FIXTURE_H_
#define AGENTD_TOOLS_MCP_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tools/mcp/child_peer.h"
#include "tools/mcp/servers.h"
#include "tools/mcp/session.h"

namespace agentd::tools::mcp {

class ServersFixture : public testing::Test {
 protected:
  void SetUp() override { signal(SIGPIPE, SIG_IGN); }
  void TearDown() override { session_.reset(); }

  static ServerConfig Hostile(std::vector<std::string> ways) {
    ServerConfig config;
    config.name = "s";
    config.command = {"/usr/bin/python3", "tests/mcp/hostile_server.py"};
    for (std::string& way : ways) config.command.push_back(std::move(way));
    config.timeouts = {.start_ms = 20'000, .probe_ms = 10'000, .call_ms = 20'000};
    return config;
  }

  absl::Status TryStart(const std::vector<ServerConfig>& configs, ServersOptions options = {}) {
    session_.reset();
    options.scratch = ChildPeer::Start;
    options.environment = [](const std::string& name) {
      return name == "TOKEN" ? std::optional<std::string>("s3cret") : std::nullopt;
    };
    auto servers = Servers::Start(configs, options);
    RETURN_IF_ERROR(servers.status());
    registry_ = Registry();
    servers_ = *std::move(servers);
    session_ = std::make_unique<Session>(*servers_, ChildPeer::Start);
    context_.mcp = session_.get();
    return servers_->AddTools(registry_, {});
  }
  void Start(const ServerConfig& config, ServersOptions options = {}) {
    const absl::Status status = TryStart({config}, std::move(options));
    ASSERT_TRUE(status.ok()) << status;
  }
  const ServerState& State() const { return *servers_->all()[0]; }
  std::string Problems() const {
    std::string all;
    for (const std::string& problem : State().view()->problems) all += problem + "\n";
    return all;
  }

  ToolResult Call(const std::string& name, const std::string& arguments = "{}") {
    const Tool* tool = registry_.Find("s__" + name);
    if (tool == nullptr) return {.text = "(no such tool) " + Problems()};
    const absl::StatusOr<ToolResult> result = tool->Run(arguments, context_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ToolResult{.text = "(status)"};
  }
  std::string Text(const std::string& name, const std::string& arguments = "{}") {
    return Call(name, arguments).text;
  }

  Registry registry_;
  std::unique_ptr<Servers> servers_;
  std::unique_ptr<Session> session_;
  ToolContext context_;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_FIXTURE_H_
