// A server whose tools change while a session works with it (tests/mcp/http_server.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "agentd/testing_daemon.h"
#include "base/status.h"
#include "tools/mcp/child_peer.h"

namespace agentd::daemon {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class ChangingServerTest : public testing::Test {
 protected:
  void SetUp() override {
    tools::mcp::ServerConfig program;
    program.command = {"/usr/bin/python3", "tests/mcp/http_server.py"};
    auto peer = tools::mcp::ChildPeer::Start(program);
    ASSERT_TRUE(peer.ok()) << peer.status();
    server_ = *std::move(peer);
    std::string port;
    for (char c = 0; read(server_->output(), &c, 1) == 1 && c != '\n';) port += c;
    static const Script kScript = {CallsText({CallText("far__change", {})}),
                                   CallsText({CallText("far__new", {}), CallText("far__cut", {})}),
                                   "It has changed.", CallsText({CallText("far__cut", {})}),
                                   "It is gone."};
    DaemonOptions options = TestOptions(directory_.path() / "data", kScript);
    auto config = tools::ParseConfig(
        "[[mcp]]\nname = \"far\"\nurl = \"http://127.0.0.1:" + port + "/mcp\"\n", "test.toml");
    ASSERT_TRUE(config.ok()) << config.status();
    options.tools = *std::move(config);
    auto daemon = Daemon::Start(std::move(options));
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  std::vector<std::string> ToolNames() const {
    std::vector<std::string> names;
    const auto info = daemon_->Info();
    EXPECT_TRUE(info.ok()) << info.status();
    for (const v1::ToolInfo& tool : info->tools()) names.push_back(tool.name());
    return names;
  }
  std::vector<std::string> Results(const std::string& id) const {
    std::vector<std::string> texts;
    for (const v1::Event& event : AllEvents(*daemon_, id))
      if (event.has_tool_finished()) texts.push_back(event.tool_finished().text());
    return texts;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<tools::mcp::StdioPeer> server_;
  std::unique_ptr<Daemon> daemon_;
};

TEST_F(ChangingServerTest, ATurnKeepsItsToolsAndTheNextOneHasTheNew) {
  EXPECT_THAT(ToolNames(), Contains("far__cut"));
  EXPECT_THAT(ToolNames(), Not(Contains("far__new")));
  v1::CreateSessionRequest request;
  request.mutable_config()->set_seed(1);
  request.mutable_config()->set_max_turn_tokens(10'000);
  const auto session = daemon_->Create(request);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(RunTurn(*daemon_, session->id(), "Change.").ok());
  // In the same turn the old tool is still asked of the server, and the new one is not known.
  EXPECT_THAT(Results(session->id()),
              ElementsAre("done", HasSubstr("unknown tool far__new"), HasSubstr("no such tool")));
  EXPECT_THAT(ToolNames(), Contains("far__new"));
  EXPECT_THAT(ToolNames(), Not(Contains("far__cut")));
  ASSERT_TRUE(RunTurn(*daemon_, session->id(), "Again.").ok());
  EXPECT_THAT(Results(session->id()).back(), HasSubstr("not there any more"));
  // A session that is made now is offered what there is now.
  const auto fresh = daemon_->Create(request);
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  EXPECT_THAT(fresh->config().tools(), Contains("far__new"));
  EXPECT_THAT(fresh->config().tools(), Not(Contains("far__cut")));
  const auto info = daemon_->Info();
  ASSERT_TRUE(info.ok()) << info.status();
  ASSERT_EQ(info->mcp_servers_size(), 1);
  EXPECT_EQ(info->mcp_servers(0).revision(), "2025-11-25");
  EXPECT_FALSE(info->mcp_servers(0).needs_login());
}

}  // namespace
}  // namespace agentd::daemon
