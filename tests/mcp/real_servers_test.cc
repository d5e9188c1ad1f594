// Servers that others wrote, from npm, over standard input and output and over HTTP.
// tests/mcp/run.sh installs them and sets AGENTD_MCP_NODE and AGENTD_MCP_MODULES.

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/temporary_directory.h"
#include "tools/mcp/fixture.h"

namespace agentd::tools::mcp {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class RealServerTest : public ServersFixture {
 protected:
  void SetUp() override {
    ServersFixture::SetUp();
    ASSERT_NE(std::getenv("AGENTD_MCP_NODE"), nullptr) << "tests/mcp/run.sh runs this";
    ASSERT_NE(std::getenv("AGENTD_MCP_MODULES"), nullptr);
  }
  void TearDown() override {
    ServersFixture::TearDown();
    process_.reset();
  }
  ServerConfig Npm(const std::string& package, std::vector<std::string> arguments) const {
    ServerConfig config;
    config.name = "s";
    config.command = {std::getenv("AGENTD_MCP_NODE"),
                      std::string(std::getenv("AGENTD_MCP_MODULES")) + "/@modelcontextprotocol/" +
                          package + "/dist/index.js"};
    for (std::string& argument : arguments) config.command.push_back(std::move(argument));
    config.timeouts = {.start_ms = 60'000, .probe_ms = 30'000};
    return config;
  }
  void TryEverything() {
    EXPECT_EQ(Problems(), "");
    EXPECT_GE(registry_.tools().size(), 8U);
    EXPECT_THAT(Text("echo", R"({"message": "héllo"})"), HasSubstr("héllo"));
    EXPECT_THAT(Text("get-sum", R"({"a": 20, "b": 22})"), HasSubstr("42"));
    EXPECT_THAT(Text("get-tiny-image"), HasSubstr("[image image/png, "));
    std::string progress;
    context_.on_output = [&progress](std::string_view text) { progress += text; };
    EXPECT_THAT(Text("trigger-long-running-operation", R"({"duration": 1, "steps": 3})"),
                HasSubstr("completed"));
    EXPECT_THAT(progress, HasSubstr("/3"));
    const std::string list = Text("list_resources");
    const size_t at = list.find("demo://");
    ASSERT_NE(at, std::string::npos) << list;
    const std::string uri = list.substr(at, list.find(' ', at) - at);
    EXPECT_FALSE(Call("read_resource", Json{{"uri", uri}}.dump()).is_error);
  }

  const TemporaryDirectory temporary_;
  const std::filesystem::path dir_ = temporary_.path();
  std::unique_ptr<StdioPeer> process_;
};

TEST_F(RealServerTest, Everything) {
  Start(Npm("server-everything", {"stdio"}));
  TryEverything();
}

TEST_F(RealServerTest, EverythingOverHttp) {
  ServerConfig program = Npm("server-everything", {"streamableHttp"});
  const std::string port = std::to_string(20'000 + getpid() % 20'000);
  program.env = {{"PORT", port}};
  auto peer = ChildPeer::Start(program);
  ASSERT_TRUE(peer.ok()) << peer.status();
  process_ = *std::move(peer);
  ServerConfig config;
  config.name = "s";
  config.url = "http://127.0.0.1:" + port + "/mcp";
  for (int i = 0; i < 200; ++i) {
    Start(config);
    if (Problems().empty()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  TryEverything();
}

TEST_F(RealServerTest, Filesystem) {
  ServerConfig config = Npm("server-filesystem", {dir_.string()});
  config.trusted = true;
  Start(config);
  EXPECT_TRUE(registry_.Find("s__read_text_file")->spec().flags.read_only);
  EXPECT_FALSE(registry_.Find("s__write_file")->spec().flags.read_only);
  const std::string path = (dir_ / "a.txt").string();
  EXPECT_FALSE(Call("write_file", Json{{"path", path}, {"content", "hello"}}.dump()).is_error);
  EXPECT_EQ(Text("read_text_file", Json{{"path", path}}.dump()), "hello");
  EXPECT_TRUE(Call("read_text_file", R"({"path": "/etc/passwd"})").is_error);
}

TEST_F(RealServerTest, MemoryIsOneSessionsUntilItStops) {
  ServerConfig config = Npm("server-memory", {});
  config.env = {{"MEMORY_FILE_PATH", (dir_ / "memory.json").string()}};
  Start(config);
  EXPECT_FALSE(Call("create_entities", R"({"entities": [{"name": "harbor", "entityType": "place",
                    "observations": ["it is wide"]}]})")
                   .is_error);
  session_->Stop();
  EXPECT_THAT(Text("read_graph"), AllOf(HasSubstr("harbor"), HasSubstr("it is wide")));
}

}  // namespace
}  // namespace agentd::tools::mcp
