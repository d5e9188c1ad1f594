// OAuth against tests/mcp/oauth_server.py, an MCP server and its authorization server on loopback,
// which can be hostile.
#include <jwt.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/temporary_directory.h"
#include "tools/mcp/agreeing_authorizer.h"
#include "tools/mcp/fixture.h"
#include "tools/mcp/jwt.h"

namespace agentd::tools::mcp {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// What was asked of the servers.
struct Asked {
  std::string at, path, authorization;
  Json fields;
};

class OAuthTest : public ServersFixture {
 protected:
  void TearDown() override {
    ServersFixture::TearDown();
    servers_.reset();
    process_.reset();
  }

  ServerConfig Serve(std::vector<std::string> ways) {
    ServerConfig program;
    program.command = {"/usr/bin/python3", "tests/mcp/oauth_server.py"};
    for (std::string& way : ways) program.command.push_back(std::move(way));
    auto peer = ChildPeer::Start(program);
    EXPECT_TRUE(peer.ok()) << peer.status();
    process_ = *std::move(peer);
    std::string line;
    for (char c = 0; read(process_->output(), &c, 1) == 1 && c != '\n';) line += c;
    std::string mcp_port, auth_port;
    std::istringstream(line) >> mcp_port >> auth_port;
    auth_origin_ = "http://127.0.0.1:" + auth_port;
    ServerConfig config;
    config.name = "s";
    config.url = "http://127.0.0.1:" + mcp_port + "/mcp";
    config.timeouts = {.start_ms = 20'000, .probe_ms = 10'000, .call_ms = 20'000};
    return config;
  }

  ServersOptions Headless() const { return {.tokens = directory_.path()}; }
  ServersOptions WithPerson() {
    ServersOptions options = Headless();
    options.authorizer = &person_;
    return options;
  }
  OAuthClient& OAuth() { return *State().oauth; }

  // Of each path, or of one.
  std::vector<Asked> Log(const std::string& path = "") {
    const std::string url = auth_origin_ + "/log";
    const auto page = Fetch({*ParseUrl(url), {}}, {.url = url}, nullptr);
    EXPECT_TRUE(page.ok()) << page.status();
    std::vector<Asked> all;
    for (const Json& entry : Json::parse(page.ok() ? page->body : "[]"))
      if (path.empty() || entry["path"] == path)
        all.push_back({entry["at"], entry["path"], entry["authorization"], entry["fields"]});
    return all;
  }

  // The two steps of a login, as agentctl takes them.
  absl::Status LogIn() {
    ASSIGN_OR_RETURN(const std::string url, OAuth().BeginLogin(person_.redirect_uri(), nullptr));
    ASSIGN_OR_RETURN(const std::string redirected, person_.Authorize(url));
    return OAuth().FinishLogin(redirected, nullptr);
  }

  std::filesystem::path Record() const { return directory_.path() / "s.json"; }
  Json Kept() const {
    std::ifstream in(Record());
    return Json::parse(in, nullptr, false);
  }

  TemporaryDirectory directory_;
  AgreeingAuthorizer person_;
  std::unique_ptr<StdioPeer> process_;
  std::string auth_origin_;
};

TEST(UrlTest, LoopbackIsAnAddressOrTheNameOfThisMachine) {
  for (const char* url : {"http://localhost/", "http://127.0.0.1:8/x", "http://127.9.9.9",
                          "http://[::1]:80/", "HTTP://LOCALHOST"})
    EXPECT_TRUE(ParseUrl(url)->loopback()) << url;
  for (const char* url : {"http://127.evil.example/", "http://localhost.example/",
                          "http://10.0.0.1/", "http://[::2]/"})
    EXPECT_FALSE(ParseUrl(url)->loopback()) << url;
  EXPECT_EQ(ParseUrl("https://EXAMPLE.com:443/a/../b?c#d")->Origin(), "https://example.com");
  EXPECT_EQ(WithQuery("https://x/?a=1#f", {{"b c", "&="}}), "https://x/?a=1&b%20c=%26%3D");
  EXPECT_EQ(ParseForm("a=b+c&&d=%26&e"), (FormFields{{"a", "b c"}, {"d", "&"}, {"e", ""}}));
}

TEST(ChallengeTest, OfSeveralSchemesAndHeaders) {
  const Challenge challenge = ParseChallenge(
      R"(Basic realm="a \"Bearer\" error=no", scope="no", Bearer  scope="a b" , error=insufficient_scope,)"
      R"( resource_metadata = "https://x/?a=b,c", DPoP error="other")");
  EXPECT_EQ(challenge.scope, "a b");
  EXPECT_EQ(challenge.error, "insufficient_scope");
  EXPECT_EQ(challenge.resource_metadata, "https://x/?a=b,c");
  for (const char* text : {"", "Bearer", "Bearer \"", "Bearer scope=", "=,=\"\\", "Basic scope=x"})
    EXPECT_EQ(ParseChallenge(text).scope, "") << text;
}

TEST(FetchUrlTest, OfARemoteServerOnlyHttps) {
  const FetchPolicy remote{*ParseUrl("https://mcp.example/mcp"), {}};
  const FetchPolicy here{*ParseUrl("http://127.0.0.1:5/mcp"), {}};
  EXPECT_TRUE(CheckFetchUrl(remote, "https://auth.example/x").ok());
  EXPECT_TRUE(CheckFetchUrl(here, "http://localhost:8/x").ok());
  for (const char* url : {"http://auth.example/", "http://127.0.0.1/", "https://localhost/",
                          "https://[::1]/", "file:///etc/passwd", "javascript:alert(1)",
                          "https://u:p@x/", "https://x/#f", "gopher://x/"})
    EXPECT_FALSE(CheckFetchUrl(remote, url).ok()) << url;
  EXPECT_FALSE(CheckFetchUrl(here, "http://192.168.1.1/").ok());
  // A name that stands for an address that nobody on the Internet has is refused when it is known.
  const auto inside = Fetch(remote, {.url = "https://10.1.2.3/"}, nullptr);
  EXPECT_EQ(inside.status().code(), absl::StatusCode::kPermissionDenied) << inside.status();
}

TEST_F(OAuthTest, ALoginThenCallsThenANewLifeWithoutOne) {
  const ServerConfig config = Serve({});
  Start(config, Headless());
  EXPECT_THAT(Problems(), AllOf(HasSubstr("agentctl mcp login s"), HasSubstr("HTTP 401")));
  EXPECT_TRUE(OAuth().needs_login());
  ASSERT_TRUE(LogIn().ok());
  EXPECT_FALSE(OAuth().needs_login());
  struct stat info {};
  ASSERT_EQ(stat(Record().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0600U);

  Start(config, Headless());
  EXPECT_EQ(Problems(), "");
  EXPECT_EQ(Text("echo", R"({"text": "in"})"), "in");
  const std::string token = Kept()["access_token"];
  for (const Asked& asked : Log())
    EXPECT_TRUE(asked.at == "mcp" || asked.authorization.find(token) == std::string::npos);
  const Asked authorize = Log("/authorize").at(0), grant = Log("/token").at(0);
  EXPECT_EQ(authorize.fields["resource"], config.url);
  EXPECT_EQ(grant.fields["resource"], config.url);
  EXPECT_EQ(authorize.fields["scope"], "read offline_access");
  EXPECT_EQ(authorize.fields["code_challenge_method"], "S256");
  EXPECT_EQ(Log("/register").at(0).fields["redirect_uris"][0], person_.redirect_uri());
}

TEST_F(OAuthTest, ALoginIsForItsOwnAnswerAndOnce) {
  Start(Serve({}), Headless());
  EXPECT_EQ(OAuth().FinishLogin("http://x/?state=&code=c", nullptr).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(OAuth().BeginLogin("https://elsewhere.example/", nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto old = OAuth().BeginLogin(person_.redirect_uri(), nullptr);
  ASSERT_TRUE(old.ok()) << old.status();
  const auto url = OAuth().BeginLogin(person_.redirect_uri(), nullptr);
  ASSERT_TRUE(url.ok()) << url.status();
  const std::string stale = *person_.Authorize(*old), good = *person_.Authorize(*url);
  for (const std::string& wrong : {stale, std::string(), std::string("http://x/?code=c&state="),
                                   good.substr(0, good.size() / 2)})
    EXPECT_EQ(OAuth().FinishLogin(wrong, nullptr).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Log("/token").empty());
  EXPECT_TRUE(OAuth().FinishLogin(good, nullptr).ok());
  EXPECT_EQ(OAuth().FinishLogin(good, nullptr).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Log("/token").size(), 1U);
}

TEST_F(OAuthTest, HostileServersGetNoCodeAndNoToken) {
  struct Case {
    const char* way;
    const char* says;
    bool asks_person;
  };
  for (const Case& one : std::initializer_list<Case>{
           {"wrong-issuer", "of another issuer, \"https://evil.example\"", false},
           {"wrong-resource", "for another resource, \"https://elsewhere.example/mcp\"", false},
           {"other-server", "elsewhere.example", false},
           {"no-s256", "PKCE with S256", false},
           {"no-registration", "register agentd there", false},
           {"script-endpoint", "token_endpoint that may not be used", false},
           {"private-metadata", "10.1.2.3", false},
           {"plain-metadata", "is not https", false},
           {"redirect-metadata", "redirects are not followed", false},
           {"huge", "more than 262144 bytes", false},
           {"iss-wrong", "is of another one than", true},
           {"iss-missing", "does not say that it is of", true},
           {"state-wrong", "its state differs", true}}) {
    Start(Serve({one.way}), WithPerson());
    EXPECT_THAT(Problems(), HasSubstr(one.says)) << one.way;
    EXPECT_EQ(Log("/authorize").size(), one.asks_person ? 1U : 0U) << one.way;
    EXPECT_TRUE(Log("/token").empty()) << one.way;
    EXPECT_TRUE(Log("/elsewhere").empty()) << one.way;
    EXPECT_FALSE(Kept().contains("access_token")) << one.way;
  }
}

TEST_F(OAuthTest, TokensThatCannotBeUsed) {
  for (const auto& [way, says] : std::initializer_list<std::pair<const char*, const char*>>{
           {"bad-token", "no token that can be sent"},
           {"mac-token", "of the type \"mac\""},
           {"redirect-token", "gives no token: HTTP 307"}}) {
    Start(Serve({way}), WithPerson());
    EXPECT_THAT(Problems(), HasSubstr(says)) << way;
    EXPECT_TRUE(Log("/elsewhere").empty()) << way;
    for (const Asked& asked : Log("/mcp")) EXPECT_EQ(asked.authorization, "") << way;
  }
}

TEST_F(OAuthTest, NoSecretIsInAMessage) {
  Start(Serve({"echo-secrets"}), WithPerson());
  EXPECT_THAT(Problems(), HasSubstr("invalid_grant"));
  const Asked grant = Log("/token").at(0);
  for (const char* name : {"code", "code_verifier"})
    EXPECT_THAT(Problems(), Not(HasSubstr(grant.fields[name].get<std::string>()))) << name;
}

TEST_F(OAuthTest, ServersOfOlderRevisionsHaveTheirOwnAuthorizationServer) {
  for (const bool page : {false, true}) {
    std::vector<std::string> ways = {"legacy"};
    if (page) ways.emplace_back("page");
    Start(Serve(ways), WithPerson());
    EXPECT_EQ(Text("echo", R"({"text": "old"})"), "old") << Problems();
    EXPECT_EQ(Log("/register").at(0).at, "mcp");
  }
}

TEST_F(OAuthTest, ATokenThatRunsOutIsRenewedOnceByWhoeverNeedsItFirst) {
  const ServerConfig config = Serve({"lifetime=31"});  // it counts as run out a second from now
  Start(config, WithPerson());
  const std::string refresh = Kept()["refresh_token"];
  std::this_thread::sleep_for(std::chrono::milliseconds(1'100));
  std::vector<std::thread> threads;
  std::vector<std::string> answers(6);
  for (std::string& answer : answers)
    threads.emplace_back([this, &answer] { answer = Text("echo", R"({"text": "on"})"); });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& answer : answers) EXPECT_EQ(answer, "on");
  const std::vector<Asked> asked = Log("/token");
  EXPECT_GE(asked.size(), 2U);
  EXPECT_EQ(Log("/authorize").size(), 1U);
  EXPECT_EQ(
      std::count_if(asked.begin(), asked.end(),
                    [&](const Asked& a) { return a.fields.value("refresh_token", "") == refresh; }),
      1);
  EXPECT_NE(Kept()["refresh_token"], refresh);
}

TEST_F(OAuthTest, ARefusedRenewalWantsALogin) {
  const ServerConfig config = Serve({"lifetime=1", "refuse-refresh"});
  Start(config, Headless());
  ASSERT_TRUE(LogIn().ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(1'100));
  Start(config, Headless());
  EXPECT_THAT(Problems(), HasSubstr("agentctl mcp login s"));
  EXPECT_EQ(Kept()["refresh_token"], "");
  EXPECT_EQ(Log("/token").size(), 2U);
}

TEST_F(OAuthTest, MoreRightsAreAskedForWithThoseThatThereWere) {
  Start(Serve({"step-up"}), WithPerson());
  EXPECT_EQ(Text("echo", R"({"text": "may"})"), "may");
  const std::vector<Asked> asked = Log("/authorize");
  ASSERT_EQ(asked.size(), 2U);
  EXPECT_THAT(asked[1].fields["scope"].get<std::string>(),
              AllOf(HasSubstr("read"), HasSubstr("write")));
}

TEST_F(OAuthTest, MoreRightsWithoutAPersonAreAClearAnswer) {
  Start(Serve({"step-up"}), Headless());
  ASSERT_TRUE(LogIn().ok());
  const ServerConfig config = State().config;
  Start(config, Headless());
  EXPECT_THAT(Text("echo"), AllOf(HasSubstr("more rights"), HasSubstr("agentctl mcp login s")));
  ASSERT_TRUE(LogIn().ok());
  EXPECT_EQ(Text("echo", R"({"text": "may"})"), "may");
}

TEST_F(OAuthTest, AServerThatAlwaysWantsMoreIsGivenUp) {
  Start(Serve({"greedy"}), WithPerson());
  EXPECT_THAT(Text("echo"), HasSubstr("refused 3 new tokens in a row"));
  EXPECT_LE(Log("/authorize").size(), 5U);
}

TEST_F(OAuthTest, ClientCredentialsNeedNobodyAndGoToTheirIssuerAlone) {
  ServerConfig config = Serve({"no-registration", "lifetime=1"});
  config.auth = AuthConfig{.grant = AuthConfig::Grant::kClientCredentials};
  config.auth->client_id = "known";
  config.auth->client_secret = "s3cret-of-known";
  Start(config, Headless());
  EXPECT_EQ(Text("echo", R"({"text": "alone"})"), "alone") << Problems();
  std::this_thread::sleep_for(std::chrono::milliseconds(1'100));
  EXPECT_EQ(Text("echo", R"({"text": "again"})"), "again");
  EXPECT_EQ(OAuth().BeginLogin("http://127.0.0.1:9/", nullptr).status().code(),
            absl::StatusCode::kFailedPrecondition);
  config.auth->issuer = "https://auth.example";
  Start(config, Headless());
  EXPECT_THAT(Problems(), HasSubstr("another authorization server"));
  // The first issuer is kept also where the configuration names none.
  config.auth->issuer.clear();
  ServerConfig other = Serve({"no-registration"});
  Json record = Kept();
  record["url"] = other.url;
  record["client_id"] = "known";
  record["issuer"] = "https://auth.example";
  std::ofstream(Record()) << record.dump();
  other.auth = config.auth;
  Start(other, Headless());
  EXPECT_THAT(Problems(), HasSubstr("another authorization server"));
  EXPECT_TRUE(Log("/token").empty());
}

TEST_F(OAuthTest, AHangingServerIsLeftWhenTheCallerStops) {
  Start(Serve({"hang"}), Headless());  // a login is wanted; nothing is asked yet
  const auto begin = std::chrono::steady_clock::now();
  const auto url = OAuth().BeginLogin(person_.redirect_uri(), [begin] {
    return std::chrono::steady_clock::now() > begin + std::chrono::milliseconds(300);
  });
  EXPECT_EQ(url.status().code(), absl::StatusCode::kCancelled) << url.status();
}

TEST_F(OAuthTest, ForgottenTokensAreGone) {
  Start(Serve({}), WithPerson());
  EXPECT_NE(Kept()["access_token"], "");
  ASSERT_TRUE(OAuth().Forget().ok());
  EXPECT_EQ(Kept()["access_token"], "");
  EXPECT_EQ(*OAuth().AccessToken(nullptr), "");
}

TEST_F(OAuthTest, ADamagedRecordIsNamed) {
  const ServerConfig config = Serve({});
  std::ofstream(Record()) << "{\"access_token\": ";
  Start(config, Headless());
  EXPECT_THAT(Problems(), AllOf(HasSubstr(Record().string()), HasSubstr("log in again")));
}

std::string PemOf(EVP_PKEY* key, bool secret) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> out(BIO_new(BIO_s_mem()), BIO_free);
  EXPECT_EQ(secret ? PEM_write_bio_PrivateKey(out.get(), key, nullptr, nullptr, 0, nullptr, nullptr)
                   : PEM_write_bio_PUBKEY(out.get(), key),
            1);
  char* text = nullptr;
  const long size = BIO_get_mem_data(out.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

TEST(AssertionTest, IsSignedWithEitherKindOfKey) {
  for (const bool rsa : {false, true}) {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
        rsa ? EVP_RSA_gen(2048) : EVP_EC_gen("P-256"), EVP_PKEY_free);
    const auto assertion =
        ClientAssertion("me", "https://auth.example", PemOf(key.get(), /*secret=*/true));
    ASSERT_TRUE(assertion.ok()) << assertion.status();
    const std::string pem = PemOf(key.get(), /*secret=*/false);
    jwt_t* read = nullptr;
    ASSERT_EQ(
        jwt_decode(&read, assertion->c_str(), reinterpret_cast<const unsigned char*>(pem.data()),
                   static_cast<int>(pem.size())),
        0);
    const std::unique_ptr<jwt_t, decltype(&jwt_free)> jwt(read, jwt_free);
    EXPECT_EQ(jwt_get_alg(read), rsa ? JWT_ALG_RS256 : JWT_ALG_ES256);
    for (const char* claim : {"iss", "sub"}) EXPECT_STREQ(jwt_get_grant(read, claim), "me");
    EXPECT_STREQ(jwt_get_grant(read, "aud"), "https://auth.example");
    EXPECT_GT(jwt_get_grant_int(read, "exp"), std::time(nullptr));
  }
  EXPECT_FALSE(ClientAssertion("me", "x", "no key").ok());
}

}  // namespace
}  // namespace agentd::tools::mcp
