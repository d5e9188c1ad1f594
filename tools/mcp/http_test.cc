// Servers over HTTP (tests/mcp/http_server.py, on loopback).
#include <algorithm>
#include <chrono>
#include <thread>

#include "tools/mcp/fixture.h"
#include "tools/mcp/http_transport.h"

namespace agentd::tools::mcp {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class HttpServerTest : public ServersFixture {
 protected:
  void TearDown() override {
    ServersFixture::TearDown();
    process_.reset();
  }

  // Starts the server and says how to reach it.
  ServerConfig Serve(std::vector<std::string> ways) {
    ServerConfig program;
    program.command = {"/usr/bin/python3", "tests/mcp/http_server.py"};
    for (std::string& way : ways) program.command.push_back(std::move(way));
    auto peer = ChildPeer::Start(program);
    EXPECT_TRUE(peer.ok()) << peer.status();
    process_ = *std::move(peer);
    std::string port;
    for (char c = 0; read(process_->output(), &c, 1) == 1 && c != '\n';) port += c;
    ServerConfig config;
    config.name = "s";
    config.url = "http://127.0.0.1:" + port + "/mcp";
    config.timeouts = {.start_ms = 20'000, .probe_ms = 10'000, .call_ms = 20'000};
    return config;
  }

  // Cancels a call of the tool "hang" once its stream is open; what the server saw of that.
  std::string CancelledHang() {
    sandbox::CancelFlag cancel;
    context_.cancel = &cancel;
    std::thread canceller([&cancel] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      cancel.Cancel();
    });
    const ToolResult result = Call("hang");
    canceller.join();
    EXPECT_TRUE(result.cancelled) << result.text;
    context_.cancel = nullptr;
    return Text("closed");
  }

  std::unique_ptr<StdioPeer> process_;
};

TEST_F(HttpServerTest, BothRevisionsWithJsonAndWithEvents) {
  for (const bool stateless : {false, true}) {
    for (const bool stream : {false, true}) {
      std::vector<std::string> ways;
      if (stateless) ways.emplace_back("stateless");
      if (stream) ways.emplace_back("stream");
      Start(Serve(ways));
      EXPECT_EQ(State().view()->info.era, stateless ? Era::kStateless : Era::kHandshake);
      EXPECT_EQ(Text("echo", R"({"text": "h\u00e9llo\n"})"), "héllo\n");
    }
  }
}

TEST_F(HttpServerTest, NewerServerGetsItsHeaders) {
  ServerConfig config = Serve({"stateless"});
  config.headers = {{"X-Extra", "more"}, {"Authorization", "Bearer ${TOKEN}"}};
  Start(config);
  const Json headers = Json::parse(Text("headers", R"({"text": " padded "})"));
  EXPECT_EQ(headers["mcp-protocol-version"], "2026-07-28");
  EXPECT_EQ(headers["mcp-method"], "tools/call");
  EXPECT_EQ(headers["mcp-name"], "headers");
  EXPECT_EQ(headers["mcp-param-text"], "=?base64?IHBhZGRlZCA=?=");
  EXPECT_EQ(headers["x-extra"], "more");
  EXPECT_EQ(headers["authorization"], "Bearer s3cret");
  EXPECT_FALSE(headers.contains("mcp-session-id"));
}

TEST_F(HttpServerTest, OlderServerGetsItsSession) {
  Start(Serve({}));
  const Json headers = Json::parse(Text("headers"));
  EXPECT_EQ(headers["mcp-protocol-version"], "2025-11-25");
  EXPECT_TRUE(headers.contains("mcp-session-id"));
  EXPECT_FALSE(headers.contains("mcp-method"));
}

TEST_F(HttpServerTest, ASessionThatTheServerForgotIsBegunAnew) {
  Start(Serve({}));
  EXPECT_EQ(Text("forget"), "done");
  EXPECT_THAT(Text("echo"), HasSubstr("does not know the session"));
  EXPECT_EQ(Text("echo", R"({"text": "new"})"), "new");
}

TEST_F(HttpServerTest, RedirectsAreRefused) {
  Start(Serve({"redirect"}));
  EXPECT_THAT(Problems(), AllOf(HasSubstr("HTTP 307"), HasSubstr("http://127.0.0.1:1/elsewhere")));
}

TEST_F(HttpServerTest, CredentialsComeFromTheEnvironment) {
  ServerConfig config = Serve({"unauthorized"});
  Start(config);
  EXPECT_THAT(Problems(), AllOf(HasSubstr("HTTP 401"), HasSubstr("who are you?")));
  config.headers = {{"Authorization", "Bearer ${TOKEN}"}};
  Start(config);
  EXPECT_EQ(Text("echo", R"({"text": "in"})"), "in");
}

TEST_F(HttpServerTest, AnswersThatAreNoMessages) {
  Start(Serve({"broken"}));
  EXPECT_THAT(Problems(), HasSubstr("HTTP 500: oh no"));
  Start(Serve({"html"}));
  EXPECT_THAT(Problems(), HasSubstr("no JSON-RPC message: HTTP 200: <html>"));
}

TEST_F(HttpServerTest, NobodyListens) {
  ServerConfig config = Serve({});
  process_.reset();
  Start(config);
  EXPECT_THAT(Problems(), HasSubstr("connect"));
}

TEST_F(HttpServerTest, AHugeAnswerAndACutOneAreErrors) {
  Start(Serve({"stateless"}));
  EXPECT_THAT(Text("huge"), HasSubstr("a message of more than 8388608 bytes"));
  EXPECT_THAT(Text("cut"), HasSubstr("closed the stream before it had answered"));
  EXPECT_EQ(Text("echo", R"({"text": "on"})"), "on");
}

TEST_F(HttpServerTest, CancelClosesTheStream) {
  Start(Serve({"stateless"}));
  EXPECT_EQ(CancelledHang(), "started True closed True cancelled False");
}

TEST_F(HttpServerTest, CancelAlsoTellsAnOlderServer) {
  Start(Serve({}));
  EXPECT_EQ(CancelledHang(), "started True closed True cancelled True");
}

TEST_F(HttpServerTest, WhatTheServerAsksOutsideOfCallsIsAnswered) {
  Start(Serve({"events"}));
  const Json seen = Json::parse(Text("pings"));
  EXPECT_GE(seen["pongs"].size(), 6U) << seen;
  // A stream that ends is asked for again from the event on that came last. There are two clients,
  // the daemon's own and the session's, so most of six are not a client's first.
  EXPECT_EQ(seen["streams"][0], "");
  const auto goes_on = [](const Json& from) {
    return from.get<std::string>().starts_with("event-");
  };
  EXPECT_GE(std::count_if(seen["streams"].begin(), seen["streams"].end(), goes_on), 3) << seen;
  session_->Stop();  // ends a stream that is open
}

TEST_F(HttpServerTest, ToolsThatChangeAreReadAgainWhenAsked) {
  Start(Serve({}));
  EXPECT_FALSE(session_->TakeToolChanges());
  EXPECT_EQ(Text("change"), "done");
  const auto fresh = [this] {
    Registry registry;
    EXPECT_TRUE(servers_->AddTools(registry, {}).ok());
    return registry;
  };
  EXPECT_EQ(fresh().Find("s__new"), nullptr);  // nobody has asked yet
  EXPECT_TRUE(session_->TakeToolChanges());
  EXPECT_FALSE(session_->TakeToolChanges());
  const Registry now = fresh();
  ASSERT_NE(now.Find("s__new"), nullptr);
  EXPECT_EQ(now.Find("s__cut"), nullptr);
  EXPECT_EQ(now.Find("s__new")->Run("{}", context_)->text, "done");
  // Whoever has still the old tools gets an answer.
  EXPECT_THAT(Text("cut"), HasSubstr("no such tool"));
  // A list that cannot be used changes nothing, and is told of.
  EXPECT_EQ(Text("clash"), "done");
  EXPECT_TRUE(session_->TakeToolChanges());
  EXPECT_NE(fresh().Find("s__new"), nullptr);
  EXPECT_THAT(Problems(), AllOf(HasSubstr("a.b"), HasSubstr("would both be named s__a_b")));
}

TEST_F(HttpServerTest, StopEndsACallThatRuns) {
  Start(Serve({"stateless"}));
  std::thread stopper([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    session_->Stop();
  });
  EXPECT_THAT(Text("hang"), HasSubstr("was ended"));
  stopper.join();
}

TEST_F(HttpServerTest, ToolsWhoseHeadersAreForbiddenAreLeftOutOnlyWhereHeadersAreSent) {
  EXPECT_FALSE(HeaderParamsOf(
                   Json::parse(R"({"properties": {"a": {"type": "number", "x-mcp-header": "A"}}})"))
                   .ok());
  EXPECT_FALSE(
      HeaderParamsOf(
          Json::parse(
              R"({"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}})"))
          .ok());
}

TEST(HttpConfigTest, SecretsNeedEncryptionAndVariablesMustBeSet) {
  ServerConfig config;
  config.name = "s";
  config.url = "http://example.com/mcp";
  config.headers = {{"Authorization", "Bearer ${TOKEN}"}};
  const Environment set = [](const std::string&) { return std::optional<std::string>("x"); };
  const Environment unset = [](const std::string&) { return std::optional<std::string>(); };
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("use https"));
  config.url = "https://example.com/mcp";
  EXPECT_EQ(Resolve(config, set)->headers[0].second, "Bearer x");
  EXPECT_THAT(Text(Resolve(config, unset).status()), HasSubstr("TOKEN is not set"));
  config.headers = {{"Mcp-Session-Id", "x"}};
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("set by agentd itself"));
  config.headers = {{"A", "x\r\nB: y"}};
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("line end"));
  config.headers = {{"authorization", "Bearer x"}};
  config.auth.emplace();
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("exclude each other"));
  config.headers.clear();
  config.auth->client_secret = "${TOKEN}";
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("of a client_id"));
  config.auth->client_id = "me";
  EXPECT_EQ(Resolve(config, set)->auth->client_secret, "x");
  config.url = "http://example.com/mcp";
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("use https"));
  config.auth = AuthConfig{.grant = AuthConfig::Grant::kClientCredentials};
  config.url = "https://example.com/mcp";
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("needs client_id"));
  config.auth->grant = AuthConfig::Grant::kTokenExchange;
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("assertion_file is for"));
  config.auth->assertion_file = "/run/id.jwt";
  config.auth->client_id = "me";
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("idp_token_endpoint"));
  config.auth->idp_token_endpoint = "https://idp.example/token";
  config.auth->idp_client_id = "agentd";
  EXPECT_TRUE(Resolve(config, set).ok()) << Resolve(config, set).status();
  config.auth.reset();
  for (const char* url :
       {"ftp://x/", "file:///etc/passwd", "https://user:pass@x/", "nonsense://"}) {
    config.url = url;
    EXPECT_FALSE(Resolve(config, set).ok()) << url;
  }
  config.command = {"/bin/true"};
  EXPECT_THAT(Text(Resolve(config, set).status()), HasSubstr("either a command or a url"));
  config.url = "";
  EXPECT_TRUE(Resolve(config, set).ok());
  for (const char* name : {"", "a__b", "_a", "a_", "a b", "ä"}) {
    config.name = name;
    EXPECT_FALSE(Resolve(config, set).ok()) << name;
  }
}

}  // namespace
}  // namespace agentd::tools::mcp
