// Calls whose effect is outside of everything that a session can take back: a server counts them.
// Over hundreds of SIGKILLs a call with a result never reaches it again, and one that a kill cut
// off, whose effect nobody knows, is not tried a second time but reported to the model.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "agentd/testing_child.h"
#include "agentd/testing_daemon.h"
#include "base/sanitized.h"
#include "base/status.h"
#include "tools/mcp/child_peer.h"

namespace agentd::daemon {
namespace {

constexpr char kLifeData[] = "AGENTD_TEST_LIFE_DATA";
constexpr char kLifePort[] = "AGENTD_TEST_LIFE_PORT";
constexpr char kOutsideTitle[] = "counting";
constexpr int kCalls = 12;  // of each kind, in one turn
constexpr int kOutsideKills = kSanitized ? 10 : 200;
constexpr std::chrono::milliseconds kLongestLife(300);  // from where it is up
constexpr char kUp[] = "up";                            // a file that says so

// Beside each count one line in the workspace: that call has no effect elsewhere, so it does run
// again, from the workspace as it was.
const Script& CountingScript() {
  static const auto* script = [] {
    auto* messages = new Script;
    for (int i = 0; i < kCalls; ++i) {
      const std::string number = std::to_string(i);
      messages->push_back(CallsText({CallText("far__count", {{"text", number}}),
                                     CallText("bash", {{"command", "echo " + number + " >> n"}})}));
    }
    messages->push_back("Counted.");
    return messages;
  }();
  return *script;
}

DaemonOptions CountingOptions(const std::filesystem::path& data, const std::string& port) {
  DaemonOptions options = TestOptions(data, CountingScript());
  absl::StatusOr<tools::Config> config = tools::ParseConfig(
      "[[mcp]]\nname = \"far\"\nurl = \"http://127.0.0.1:" + port + "/mcp\"\ntools = [\"count\"]\n",
      "test.toml");
  AGENTD_CHECK(config.ok());
  options.tools = *std::move(config);
  return options;
}

std::string CountingSession(Daemon& daemon) {
  const absl::StatusOr<v1::ListSessionsResponse> list = daemon.List({});
  EXPECT_TRUE(list.ok()) << list.status();
  for (const v1::Session& session : list->sessions())
    if (session.config().title() == kOutsideTitle) return session.id();
  return "";
}

// Makes the session, starts its turn or goes on with it, and ends with it.
TEST(OutsideChild, DISABLED_Life) {
  const std::filesystem::path data = std::getenv(kLifeData);
  auto daemon = Daemon::Start(CountingOptions(data, std::getenv(kLifePort)));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  std::ofstream(data.parent_path() / kUp) << "up";
  std::string id = CountingSession(**daemon);
  if (id.empty()) {
    v1::CreateSessionRequest request;
    request.mutable_config()->set_title(kOutsideTitle);
    request.mutable_config()->set_seed(1);
    request.mutable_config()->set_max_turn_tokens(10'000);
    id = (*daemon)->Create(request)->id();
  }
  WaitIdle(**daemon, id);
  bool asked = false;
  for (const v1::Event& event : AllEvents(**daemon, id)) asked |= event.has_user_message();
  if (asked) return;
  ASSERT_TRUE(RunTurn(**daemon, id, "Count.").ok());
}

// What the log says of the calls to the server: by the number that each sends.
struct Counted {
  std::map<std::string, v1::ToolOutcome> outcomes;
  std::map<std::string, int> attempts;
  bool over = false;  // the turn
  int64_t prefilled_again = 0;
  std::string workspace;  // its file
};

class OutsideTest : public testing::Test {
 protected:
  void SetUp() override {
    tools::mcp::ServerConfig program;
    program.command = {"/usr/bin/python3", "tests/mcp/http_server.py", "stateless",
                       "count=" + (directory_.path() / "counter").string()};
    auto peer = tools::mcp::ChildPeer::Start(program);
    ASSERT_TRUE(peer.ok()) << peer.status();
    server_ = *std::move(peer);
    for (char c = 0; read(server_->output(), &c, 1) == 1 && c != '\n';) port_ += c;
  }

  // How often each number was sent.
  std::map<std::string, int> Counter() const {
    std::map<std::string, int> counts;
    std::ifstream file(directory_.path() / "counter");
    for (std::string line; std::getline(file, line);) ++counts[line];
    return counts;
  }

  // One life that ends somewhere, most often once it is up. False: it had come to its end.
  bool LiveAndDie(const std::filesystem::path& data, std::mt19937_64& random) const {
    std::filesystem::remove(directory_.path() / kUp);
    const pid_t child =
        StartSelf("OutsideChild.DISABLED_Life", {{kLifeData, data}, {kLifePort, port_}});
    if (random() % 8 != 0) {
      const auto patience = std::chrono::steady_clock::now() + std::chrono::minutes(5);
      while (!std::filesystem::exists(directory_.path() / kUp) &&
             std::chrono::steady_clock::now() < patience)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(
        std::chrono::microseconds(random() % std::chrono::microseconds(kLongestLife).count()));
    ::kill(child, SIGKILL);
    return WIFSIGNALED(Wait(child));
  }

  // Reads the log while nobody lives on it.
  Counted Look(const std::filesystem::path& data) const {
    Counted counted;
    DaemonOptions options = CountingOptions(data, port_);
    options.resume = false;
    auto daemon = Daemon::Start(options);
    EXPECT_TRUE(daemon.ok()) << daemon.status();
    const std::string id = CountingSession(**daemon);
    if (id.empty()) return counted;
    std::map<std::string, std::string> numbers;  // by call id
    const std::vector<v1::Event> events = AllEvents(**daemon, id);
    EXPECT_TRUE(Gapless(events));
    for (const v1::Event& event : events) {
      if (event.tool_started().name() == "far__count") {
        const std::string& json = event.tool_started().arguments_json();
        std::string number;
        for (const char c : json)
          if (std::isdigit(static_cast<unsigned char>(c)) != 0) number += c;
        numbers[event.tool_started().call_id()] = number;
        ++counted.attempts[number];
      }
      const auto number = numbers.find(event.tool_finished().call_id());
      if (event.has_tool_finished() && number != numbers.end()) {
        EXPECT_FALSE(counted.outcomes.contains(number->second)) << "a second result";
        counted.outcomes[number->second] = event.tool_finished().outcome();
      }
      counted.over |= event.has_turn_finished();
      counted.prefilled_again += event.resumed().prefilled_again();
    }
    counted.workspace = Files((*daemon)->runtime().WorkspaceOf(id))["n"];
    return counted;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<tools::mcp::StdioPeer> server_;
  std::string port_;
};

TEST_F(OutsideTest, NoCallReachesItTwice) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  std::string expected;
  for (int i = 0; i < kCalls; ++i) expected += std::to_string(i) + "\n";
  int kills = 0, turns = 0, results = 0, unknown = 0, unknown_but_counted = 0;
  while (kills < kOutsideKills) {
    const std::filesystem::path data = directory_.path() / fmt::format("data{}", turns++);
    std::filesystem::remove(directory_.path() / "counter");
    Counted before;
    std::map<std::string, int> counter_before;
    while (!before.over) {
      kills += LiveAndDie(data, random) ? 1 : 0;
      // Its last request may still be on the way to the server's file; calls with a result are
      // there.
      const Counted now = Look(data);
      const std::map<std::string, int> counter = Counter();
      for (const auto& [number, outcome] : before.outcomes) {
        ASSERT_TRUE(now.outcomes.contains(number)) << "the result of " << number << " is lost";
        ASSERT_EQ(now.outcomes.at(number), outcome);
        ASSERT_EQ(now.attempts.at(number), before.attempts.at(number)) << "again: " << number;
        if (outcome == v1::TOOL_OUTCOME_OK) {
          ASSERT_EQ(counter.at(number), counter_before.at(number)) << "again: " << number;
        }
      }
      before = now;
      counter_before = counter;
    }
    EXPECT_EQ(before.workspace, expected);
    EXPECT_EQ(before.prefilled_again, 0);
    ASSERT_EQ(before.outcomes.size(), static_cast<size_t>(kCalls));
    std::map<std::string, int> counter = Counter();
    for (const auto& [number, outcome] : before.outcomes) {
      const int count = counter[number];
      if (outcome == v1::TOOL_OUTCOME_OK) {
        EXPECT_EQ(count, 1) << number;
        ++results;
      } else {
        ASSERT_EQ(outcome, v1::TOOL_OUTCOME_UNKNOWN) << number;
        EXPECT_LE(count, 1) << number;
        ++unknown;
        unknown_but_counted += count;
      }
    }
  }
  std::printf(
      "[figure] outside: %d SIGKILLs over %d turns; %d calls with a result, each counted once; %d "
      "cut off and reported as unknown, %d of them counted, none twice\n",
      kills, turns, results, unknown, unknown_but_counted);
}

}  // namespace
}  // namespace agentd::daemon
