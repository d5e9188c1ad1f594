#include "tools/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "base/status.h"
#include "tools/tool.h"

namespace agentd::tools {
namespace {

using testing::HasSubstr;

TEST(Config, ReadsEveryKey) {
  const auto config = ParseConfig(R"(
[limits]
parallel_calls = 3
kept_output_kib = 64
turn_tokens = 1000
turn_calls = 7

[tools.bash]
enabled = false
parallel = true
timeout_s = 5
cpu_s = 6
memory_mib = 128
processes = 9
open_files = 64
file_mib = 2

[[rule]]
tool = "bash"
when = { command = "rm *" }
action = "ask"
reason = "removes files"

[[rule]]
tool = "*"
action = "allow"
)",
                                  "a.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->parallel_calls, 3);
  EXPECT_EQ(config->kept_output_bytes, 64 * 1024);
  EXPECT_EQ(config->max_turn_tokens, 1000);
  EXPECT_EQ(config->max_turn_calls, 7);
  ToolSpec spec;
  spec.name = "bash";
  ApplySettings(*config, spec);
  EXPECT_FALSE(spec.by_default);
  EXPECT_TRUE(spec.flags.parallel);
  EXPECT_TRUE(spec.wall_time_is_most);
  EXPECT_EQ(spec.limits.wall_time_ms, 5000);
  EXPECT_EQ(spec.limits.cpu_time_s, 6);
  EXPECT_EQ(spec.limits.memory_bytes, 128 << 20);
  EXPECT_EQ(spec.limits.max_processes, 9);
  EXPECT_EQ(spec.limits.max_open_files, 64);
  EXPECT_EQ(spec.limits.max_file_bytes, 2 << 20);
  ASSERT_EQ(config->rules.all().size(), 2u);
  EXPECT_EQ(config->rules.all()[0].Name(), R"(bash command="rm *")");
  EXPECT_EQ(config->rules.all()[0].action, RuleAction::kAsk);
  EXPECT_EQ(config->rules.all()[0].reason, "removes files");
  EXPECT_EQ(config->rules.all()[1].Name(), "*");
}

// The example in CONFIG.md: its lines as they stand (the first alternative of each), and with
// what stands in comments as well where that can be together.
std::string DocumentedExample(bool with_comments) {
  std::ifstream file("tools/CONFIG.md");
  EXPECT_TRUE(file.good());
  std::string line, text;
  while (std::getline(file, line) && line != "```toml") {
  }
  while (std::getline(file, line) && line != "```") {
    const bool commented = line.starts_with("# ") && line.find(" = ") != std::string::npos;
    text += (commented && with_comments ? line.substr(2) : line) + "\n";
  }
  return text;
}

TEST(Config, TheDocumentedExampleIsOne) {
  const auto config = ParseConfig(DocumentedExample(false), "CONFIG.md");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->mcp_servers.size(), 1U);
  EXPECT_EQ(config->mounts.size(), 1U);
}

// An unknown key in each table is answered with those that are known there: all are documented.
TEST(Config, EveryKeyIsDocumented) {
  const std::string documented = "\n" + DocumentedExample(true);
  for (const std::string table : {"", "[limits]\n", "[tools.bash]\n", "[tools.shell]\n",
                                  "[in_place]\n", "[network]\n", "[[mount]]\n", "[[mcp]]\n",
                                  "[[mcp]]\nurl = 'https://a.test'\n[mcp.auth]\n", "[[rule]]\n"}) {
    const absl::Status status = ParseConfig(table + "no_such_key = 1\n", "test").status();
    ASSERT_FALSE(status.ok()) << table;
    const std::string message = Text(status);
    constexpr std::string_view kKnown = "known here: ";
    ASSERT_THAT(message, HasSubstr(kKnown)) << table;
    std::istringstream keys(message.substr(message.find(kKnown) + kKnown.size()));
    for (std::string key; std::getline(keys >> std::ws, key, ',');) {
      EXPECT_TRUE(documented.find("\n" + key + " = ") != std::string::npos ||
                  documented.find("[" + key) != std::string::npos ||
                  documented.find("." + key + "]") != std::string::npos)
          << table << key;
    }
  }
}

TEST(Config, AnEmptyFileChangesNothing) {
  const auto config = ParseConfig("# nothing\n", "a.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  ToolSpec spec;
  spec.name = "bash";
  const sandbox::Limits before = spec.limits;
  ApplySettings(*config, spec);
  EXPECT_TRUE(spec.by_default);
  EXPECT_EQ(spec.limits.wall_time_ms, before.wall_time_ms);
  EXPECT_EQ(config->rules.Decide("bash", "{}", /*needs_approval=*/false).action,
            RuleAction::kAllow);
}

// Every mistake is named with its line.
TEST(Config, NamesMistakes) {
  const struct {
    const char* toml;
    const char* says;
  } kCases[] = {
      {"[limits]\nparalel_calls = 3\n", "a.toml, line 2: [limits] unknown key paralel_calls"},
      {"[limits]\nparalel_calls = 3\n", "parallel_calls"},  // what is known there
      {"\n[limit]\n", "line 2: unknown key limit"},
      {"[tools.bash]\n\ntimeout = 3\n", "line 3: [tools.bash] unknown key timeout"},
      {"[tools.bash]\ntimeout_s = \"3\"\n",
       "line 2: [tools.bash] timeout_s is a text, where a whole number is wanted"},
      {"[tools.bash]\ntimeout_s = 3.0\n", "is a number with a point"},
      {"[tools.bash]\ntimeout_s = 0\n", "timeout_s = 0: not between 1 and"},
      {"[tools.bash]\nenabled = 1\n", "enabled is a whole number, where true or false is wanted"},
      {"[tools]\nbash = 3\n", "line 2: [tools.bash] is not a table"},
      {"tools = 3\n", "line 1: tools is a whole number, where a table is wanted"},
      {"rule = 3\n", "a list of tables"},
      {"rule = [3]\n", "a list of tables"},
      {"[[rule]]\naction = \"ask\"\n", "[rule] tool is missing"},
      {"[[rule]]\ntool = \"bash\"\n", "[rule] action is missing"},
      {"[[rule]]\ntool = \"bash\"\naction = \"maybe\"\n",
       "line 3: [rule] action = \"maybe\": not allow, ask or deny"},
      {"[[rule]]\ntool = \"bash\"\naction = \"ask\"\nwhen = { command = 3 }\n",
       "when.command is a whole number, where a pattern (a text) is wanted"},
      {"[limits\n", "a.toml, line 1:"},
      {"[limits]\nturn_calls = 1\nturn_calls = 2\n", "a.toml, line 3:"},
  };
  for (const auto& one : kCases) {
    const auto config = ParseConfig(one.toml, "a.toml");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << one.toml;
    EXPECT_THAT(Text(config.status()), HasSubstr(one.says)) << one.toml;
  }
}

TEST(Config, NamesToolsThatThereAreNot) {
  const std::vector<std::string> names = {"bash", "grep"};
  auto config = ParseConfig("[tools.grep]\n[[rule]]\ntool = \"ba*\"\naction = \"deny\"\n", "a");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->CheckNames(names).ok());
  config = ParseConfig("\n[tools.gerp]\n", "a");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(Text(config->CheckNames(names)),
            "a, line 2: [tools.gerp] there is no tool gerp; there are bash, grep");
  config = ParseConfig("[[rule]]\ntool = \"basch\"\naction = \"deny\"\n", "a");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Text(config->CheckNames(names)), HasSubstr("line 1: [rule] there is no tool basch"));
}

TEST(Config, ToolsOfAServerThatHasNoneYetMayBeNamed) {
  const std::vector<std::string> names = {"bash"}, absent = {"mail__"};
  const auto check = [&](const std::string& pattern) {
    const auto config =
        ParseConfig("[[rule]]\ntool = \"" + pattern + "\"\naction = \"deny\"\n", "a");
    EXPECT_TRUE(config.ok()) << config.status();
    return config->CheckNames(names, absent).ok();
  };
  for (const char* pattern : {"mail__send", "mail__*", "ma*", "mail__s*d"})
    EXPECT_TRUE(check(pattern)) << pattern;
  for (const char* pattern : {"mail", "mail_", "male__send", "mx*"})
    EXPECT_FALSE(check(pattern)) << pattern;
}

TEST(Config, ReadsFiles) {
  EXPECT_EQ(ReadConfig("/no/such/file.toml").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Text(ReadConfig(testing::TempDir()).status()), HasSubstr("is a directory"));
  const std::filesystem::path file =
      std::filesystem::path(testing::TempDir()) / fmt::format("config-{}.toml", ::getpid());
  std::ofstream(file) << "[limits]\nturn_calls = 0\n";
  EXPECT_THAT(Text(ReadConfig(file).status()), HasSubstr(file.string() + ", line 2:"));
  std::filesystem::remove(file);
}

TEST(Config, HowAnMcpServersTokensAreHad) {
  const std::string server = "[[mcp]]\nname = \"s\"\nurl = \"https://x/mcp\"\n[mcp.auth]\n";
  const auto config = ParseConfig(server + R"(
grant = "client_credentials"
client_id = "me"
client_secret = "${SECRET}"
scopes = ["read", "write"]
issuer = "https://auth.example"
[[mcp]]
name = "t"
url = "https://y/mcp"
)",
                                  "a.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  const mcp::AuthConfig& auth = *config->mcp_servers.at(0).auth;
  EXPECT_EQ(auth.grant, mcp::AuthConfig::Grant::kClientCredentials);
  EXPECT_EQ(auth.client_id, "me");
  EXPECT_EQ(auth.client_secret, "${SECRET}");
  EXPECT_EQ(auth.scopes, (std::vector<std::string>{"read", "write"}));
  EXPECT_EQ(auth.issuer, "https://auth.example");
  EXPECT_FALSE(config->mcp_servers.at(1).auth.has_value());
  EXPECT_THAT(Text(ParseConfig(server + "clientid = \"x\"", "a.toml").status()),
              HasSubstr("a.toml, line 5: [mcp.auth] unknown key clientid"));
  EXPECT_THAT(
      Text(ParseConfig(server + "grant = \"password\"", "a.toml").status()),
      HasSubstr("not authorization_code, client_credentials, jwt_bearer or token_exchange"));
}

}  // namespace
}  // namespace agentd::tools
