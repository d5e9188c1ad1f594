// What of tools outlives a call: kept outputs, a shell, MCP servers, the way to hosts.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "agentd/daemon.h"
#include "agentd/testing_daemon.h"
#include "base/unique_fd.h"

namespace agentd::daemon {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::string Bash(const std::string& command) { return CallText("bash", {{"command", command}}); }
std::string InShell(const std::string& command) {
  return CallText("shell", {{"command", command}});
}

class ToolHostTest : public DaemonTest {
 protected:
  std::vector<v1::ToolFinished> Finished(const std::string& id) {
    std::vector<v1::ToolFinished> finished;
    for (const v1::Event& event : AllEvents(*daemon_, id))
      if (event.has_tool_finished()) finished.push_back(event.tool_finished());
    return finished;
  }
  std::vector<std::string> Results(const std::string& id) {
    std::vector<std::string> results;
    for (const v1::ToolFinished& finished : Finished(id)) results.push_back(finished.text());
    return results;
  }
};

// A result that is cut says where the rest is; that is so after a restart too, and in a fork, and
// not in a past that has no such call.
TEST_F(ToolHostTest, ALongOutputIsReadInPages) {
  const std::string page =
      CallText("bash", {{"command", "sed -n '20000,20001p' /outputs/call_1.txt"}});
  const Script script = {CallsText({Bash("seq 100000")}),
                         CallsText({page}),
                         "One.",
                         CallsText({page}),
                         "Two.",
                         CallsText({Bash("ls /outputs | wc -l")}),
                         "Three."};
  Start(script);
  const std::string id = NewSession(1, 4000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Count.").ok());
  std::vector<std::string> results = Results(id);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_THAT(results[0], StartsWith("1\n2\n"));
  EXPECT_THAT(results[0], HasSubstr("bytes left out; read them in /outputs/call_1.txt ...]\n"));
  EXPECT_LT(results[0].size(), 17'000u);
  EXPECT_EQ(results[1], "20000\n20001");
  std::string whole;
  uint64_t before = 0;
  for (const v1::Event& event : AllEvents(*daemon_, id)) {
    if (event.has_output_kept()) whole += event.output_kept().text();
    if (event.has_turn_started() && before == 0) before = event.seq() - 1;
  }
  EXPECT_EQ(whole.size(), 588'894u);
  Start(script);
  v1::ForkSessionRequest fork;
  fork.set_session_id(id);
  const absl::StatusOr<v1::Session> forked = daemon_->Fork(fork);
  ASSERT_TRUE(forked.ok()) << forked.status();
  for (const std::string& session : {id, forked->id()}) {
    ASSERT_TRUE(RunTurn(*daemon_, session, "Again.").ok());
    EXPECT_EQ(Results(session).back(), "20000\n20001");
  }
  const std::filesystem::path outputs = daemon_->runtime().OutputsOf(id);
  EXPECT_EQ(Files(outputs).size(), 1u);
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_position(0);
  ASSERT_TRUE(daemon_->Rewind(rewind).ok());
  EXPECT_FALSE(std::filesystem::exists(outputs));
  ASSERT_TRUE(daemon_->Delete(forked->id()).ok());
  EXPECT_FALSE(std::filesystem::exists(daemon_->runtime().OutputsOf(forked->id())));
}

// Calls that run beside each other may end in any order: the model reads the results in the order
// of its calls.
TEST_F(ToolHostTest, ResultsOfParallelCallsAreInTheOrderOfTheCalls) {
  Configure("[tools.bash]\nparallel = true\n");
  Start({CallsText({Bash("until [ -e third ]; do sleep 0.01; done; echo one"),
                    Bash("until [ -e third ]; do sleep 0.01; done; echo two; touch second"),
                    Bash("touch third; until [ -e second ]; do sleep 0.01; done; echo three")}),
         "Ok."});
  const std::string id = NewSession(1, 4000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "All at once.").ok());
  EXPECT_THAT(Results(id), ElementsAre("one", "two", "three"));
  std::string context;
  for (const v1::Event& event : AllEvents(*daemon_, id)) context += event.tokens().text();
  const size_t one = context.find("<tool_result>one</tool_result>");
  const size_t two = context.find("<tool_result>two</tool_result>");
  const size_t three = context.find("<tool_result>three</tool_result>");
  EXPECT_TRUE(one < two && two < three && three != std::string::npos) << context;
}

// What no look at the workspace saw while the call ran, its snapshot tells.
TEST_F(ToolHostTest, ACallThatOverfillsTheWorkspaceIsTold) {
  Configure("[limits]\nworkspace_mib = 1\nworkspace_files = 3\n");
  Start({CallsText({Bash("touch a b; truncate -s 100M a"), Bash("mkdir c; touch c/d c/e"),
                    Bash("echo x > a"), Bash("rm -r c"), Bash("head -c 3M /dev/urandom > a"),
                    Bash("head -c 100K /dev/urandom > a")}),
         "Ok."});
  const std::string id = NewSession(1, 4000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Fill it.").ok());
  const std::vector<std::string> results = Results(id);
  ASSERT_EQ(results.size(), 6u);
  EXPECT_EQ(results[0], "(no output)");  // a hole takes nothing
  EXPECT_THAT(results[1], HasSubstr("the workspace holds 5 files and directories, and may hold 3: "
                                    "delete what is not needed]"));
  // What does not enlarge it is none of its business.
  EXPECT_EQ(results[2], "(no output)");
  EXPECT_EQ(results[3], "(no output)");
  // Here a look may have been in time.
  EXPECT_THAT(results[4], HasSubstr(" bytes, and may hold 1048576: delete what is not needed]"));
  EXPECT_EQ(results[4].find("may hold"), results[4].rfind("may hold"));
  EXPECT_THAT(results[5], Not(HasSubstr("may hold")));
  // Every call says that no hard limit stands behind it.
  int started = 0;
  for (const v1::Event& event : AllEvents(*daemon_, id)) {
    if (!event.has_tool_started()) continue;
    EXPECT_THAT(event.tool_started().missing_walls(),
                Contains("hard limit of the workspace's size"));
    ++started;
  }
  EXPECT_EQ(started, 6);
}

// The shell and its jobs go on between turns; a rewind ends them and puts the files back.
TEST_F(ToolHostTest, TheShellLivesAsLongAsItsSession) {
  Configure("[tools.shell]\nenabled = true\n");
  Start({CallsText({InShell("mkdir d; cd d; x=5; date > tick; "
                            "while :; do date +%s%N > new; mv new tick; sleep 0.02; done &")}),
         "One.",
         CallsText({InShell(
             "echo $x in $PWD; a=$(cat tick); sleep 0.5; [ $a != $(cat tick) ] && echo ticking")}),
         "Two.", CallsText({InShell("echo \"[$x] $PWD\"")}), "Three."});
  const std::string id = NewSession(1, 4000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  uint64_t first_turn = AllEvents(*daemon_, id).back().seq();
  ASSERT_TRUE(RunTurn(*daemon_, id, "And?").ok());
  EXPECT_THAT(Results(id), ElementsAre("(no output)", "5 in /workspace/d\nticking"));
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_seq(first_turn);
  ASSERT_TRUE(daemon_->Rewind(rewind).ok());
  // Nothing ticks any more in what was put back.
  const std::filesystem::path tick = daemon_->runtime().WorkspaceOf(id) / "d/tick";
  const auto stopped_at = std::filesystem::last_write_time(tick);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(std::filesystem::last_write_time(tick), stopped_at);
  ASSERT_TRUE(daemon_->Delete(id).ok());
  EXPECT_FALSE(std::filesystem::exists(tick));
}

TEST_F(ToolHostTest, McpServersRunInTheSandboxOfTheirSession) {
  Configure("[[mount]]\nhost = \"" + std::filesystem::absolute("tests/mcp").string() +
            "\"\ninside = \"/opt/mcp\"\n"
            "[[mcp]]\nname = \"odd\"\n"
            "command = [\"/usr/bin/python3\", \"/opt/mcp/hostile_server.py\"]\n"
            "[tools.odd__hang]\nenabled = false\n"
            "[[rule]]\ntool = \"odd__fail\"\naction = \"deny\"\n");
  Start({CallsText({CallText("odd__pid", {})}), CallsText({CallText("odd__pid", {})}), "One.",
         CallsText({CallText("odd__pid", {})}), CallsText({CallText("odd__fail", {{"text", "x"}})}),
         CallsText({CallText("odd__crash", {})}),
         CallsText({CallText("odd__echo", {{"text", "here again"}})}), "Two."});
  const std::string id = NewSession(1, 4000);
  EXPECT_THAT(daemon_->Get(id)->config().tools(), testing::Contains("odd__echo"));
  EXPECT_THAT(daemon_->Get(id)->config().tools(), Not(testing::Contains("odd__hang")));
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  ASSERT_TRUE(RunTurn(*daemon_, id, "And?").ok());
  const std::vector<std::string> results = Results(id);
  ASSERT_EQ(results.size(), 6u);
  // One instance, in a PID namespace of its own, over calls and turns.
  EXPECT_THAT(results[0], testing::MatchesRegex("[0-9]{1,3}"));
  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
  EXPECT_THAT(results[3], HasSubstr("not allowed"));
  EXPECT_THAT(results[4], StartsWith("Error: odd__crash: "));
  EXPECT_THAT(results[5], HasSubstr("here again"));
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Two.");
}

TEST_F(ToolHostTest, AServerThatIsNotThereIsNoReasonNotToStart) {
  Configure("[[mcp]]\nname = \"gone\"\ncommand = [\"/no/such/program\"]\n");
  Start({"Hi."});
  ASSERT_NE(daemon_, nullptr);
  ASSERT_TRUE(RunTurn(*daemon_, NewSession(1), "Hello.").ok());
}

// Serves one answer to whoever connects, on loopback.
class OneAnswer {
 public:
  OneAnswer() {
    listener_.Reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_.get(), 4), 0);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      UniqueFd peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      char buffer[4096];
      if (::read(peer.get(), buffer, sizeof(buffer)) <= 0) return;
      const std::string answer =
          "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";
      (void)!::write(peer.get(), answer.data(), answer.size());
    });
  }
  ~OneAnswer() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  int port() const { return port_; }

 private:
  UniqueFd listener_;
  int port_ = 0;
  std::thread thread_;
};

// bash's own sockets are enough of a client.
std::string Get(const std::string& host) {
  return Bash("exec 3<>/dev/tcp/127.0.0.1/3128; printf 'GET http://" + host +
              "/ HTTP/1.1\\r\\nHost: " + host + "\\r\\n\\r\\n' >&3; cat <&3 | tail -n 1");
}

TEST_F(ToolHostTest, CallsReachTheHostsOfTheirToolAndNoOthers) {
  OneAnswer server;
  const std::string listed = fmt::format("localhost:{}", server.port());
  Configure(
      "[network]\nallow_private = [\"127.0.0.0/8\", \"::1/128\"]\n[tools.bash]\nnetwork = [\"" +
      listed + "\", \"metadata.test\"]\n");
  Start({CallsText({Get(listed)}), CallsText({Get("example.com")}),
         CallsText({CallText("read_file", {{"path", "x"}})}), "Done."});
  const std::string id = NewSession(1, 8000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  const std::vector<v1::ToolFinished> finished = Finished(id);
  ASSERT_EQ(finished.size(), 3u);
  EXPECT_EQ(finished[0].text(), "hello");
  ASSERT_EQ(finished[0].network_size(), 1);
  EXPECT_EQ(finished[0].network(0).host(), "localhost");
  EXPECT_EQ(finished[0].network(0).port(), server.port());
  EXPECT_TRUE(finished[0].network(0).allowed());
  EXPECT_GT(finished[0].network(0).bytes_down(), 6);
  EXPECT_THAT(finished[1].text(), HasSubstr("example.com"));
  ASSERT_EQ(finished[1].network_size(), 1);
  EXPECT_FALSE(finished[1].network(0).allowed());
  EXPECT_NE(finished[1].network(0).reason(), "");
}

// Without a list there is no way out.
TEST_F(ToolHostTest, CallsWithoutHostsReachNone) {
  Start({CallsText({Get("example.com")}), "Done."});
  const std::string id = NewSession(1, 8000);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  EXPECT_THAT(Results(id)[0], HasSubstr("onnection refused"));
  EXPECT_TRUE(absl::IsInvalidArgument(
      tools::ParseConfig("[tools.bash]\nnetwork = [\"exam ple.com\"]\n", "a").status()));
}

}  // namespace
}  // namespace agentd::daemon
