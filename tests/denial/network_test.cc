// Calls that are given a network: what they see of it, and that nobody else sees it.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include "base/unique_fd.h"
#include "tests/denial/harness.h"

namespace agentd::sandbox {
namespace {

// Answers each connection with a text, until it is destroyed. Stands where a proxy will.
class Greeter {
 public:
  ~Greeter() {
    if (listener_.valid()) shutdown(listener_.get(), SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
  }
  void Serve(UniqueFd listener, const std::string& text) {
    listener_ = std::move(listener);
    thread_ = std::thread([this, text] {
      while (true) {
        const UniqueFd peer(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!peer.valid()) return;
        (void)!send(peer.get(), text.data(), text.size(), MSG_NOSIGNAL);
      }
    });
  }

 private:
  UniqueFd listener_;
  std::thread thread_;
};

constexpr char kAskProxy[] = "cat < /dev/tcp/127.0.0.1/3128";

class NetworkTest : public DenialTest {
 protected:
  CallRequest Request(const std::string& command, Greeter& greeter, const std::string& text) {
    CallRequest request{.argv = {"/bin/bash", "-c", command}, .network = true};
    request.on_proxy_listener = [&greeter, text](UniqueFd listener) {
      greeter.Serve(std::move(listener), text);
    };
    return request;
  }
};

TEST_F(NetworkTest, ACallReachesItsOwnProxyAndNothingElse) {
  Greeter greeter;
  EXPECT_EQ(Run(Request(kAskProxy, greeter, "hello")).output, "hello");
  // A service of the host's.
  int port = 0;
  const UniqueFd service = ListenTcp(port);
  const std::string to_service = fmt::format("tcp 127.0.0.1 {}", port);
  EXPECT_EQ(Outside(to_service), "ok");
  struct {
    std::string attempt;
    const char* inside;
  } const attempts[] = {
      {to_service, "ECONNREFUSED"},       {"tcp 8.8.8.8 80", "ENETUNREACH"},
      {"tcp 10.0.0.1 80", "ENETUNREACH"}, {"tcp 169.254.169.254 80", "ENETUNREACH"},
      {"udp 8.8.8.8 53", "ENETUNREACH"},  {"netlink", "EAFNOSUPPORT"},
      {"packet", "EAFNOSUPPORT"},         {"raw-icmp", "EPERM"},
      {"loopback-down", "EPERM"},         {"unshare-user", "EPERM"}};
  std::string command;
  std::string expected;
  for (const auto& attempt : attempts) {
    command += "./probe " + attempt.attempt + "; ";
    expected += std::string(attempt.inside) + "\n";
  }
  Greeter another;
  EXPECT_EQ(Run(Request(command, another, "")).output, expected);
  // Nor has it a capability left from making the namespace.
  Greeter third;
  EXPECT_EQ(Run(Request("grep -c 'Cap.*:.0*$' /proc/self/status", third, "")).output, "5\n");
}

TEST_F(NetworkTest, OnlyItsOwnCallReachesAProxy) {
  Greeter first;
  Greeter second;
  std::atomic<bool> asked = false;
  std::string without;
  std::string other;
  CallRequest request =
      Request(std::string(kAskProxy) + "; echo; until [ -e go ]; do sleep 0.02; done; " + kAskProxy,
              first, "first");
  request.on_output = [&](std::string_view) {
    if (asked.exchange(true)) return;
    without = Inside("tcp 127.0.0.1 3128");
    other = Run(Request(kAskProxy, second, "second")).output;
    std::ofstream(workspace() / "go");
  };
  EXPECT_EQ(Run(request).output, "first\nfirst");
  EXPECT_EQ(without, "ECONNREFUSED");
  EXPECT_EQ(other, "second");
}

TEST_F(NetworkTest, TheEnvironmentNamesTheProxy) {
  Greeter greeter;
  EXPECT_EQ(Run(Request("env | grep -i proxy | sort", greeter, "")).output,
            "ALL_PROXY=http://127.0.0.1:3128\nHTTPS_PROXY=http://127.0.0.1:3128\n"
            "HTTP_PROXY=http://127.0.0.1:3128\nNO_PROXY=localhost,127.0.0.1,::1\n"
            "all_proxy=http://127.0.0.1:3128\nhttp_proxy=http://127.0.0.1:3128\n"
            "https_proxy=http://127.0.0.1:3128\nno_proxy=localhost,127.0.0.1,::1\n");
  EXPECT_EQ(Bash("env | grep -ic proxy").output, "0\n");
}

TEST_F(NetworkTest, AProcessHasItToo) {
  Greeter greeter;
  const auto process = sandbox_->StartProcess(Request(kAskProxy, greeter, "hello"));
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ((*process)->Wait(60'000)->exit_code, 0);
  char buffer[16];
  EXPECT_EQ(read((*process)->output(), buffer, sizeof(buffer)), 5);
}

TEST_F(NetworkTest, NetworkAndItsListenerGoTogether) {
  const auto without = sandbox_->Run({.argv = {"/bin/true"}, .network = true}, never_);
  EXPECT_EQ(without.status().code(), absl::StatusCode::kInvalidArgument);
  CallRequest request{.argv = {"/bin/true"}};
  request.on_proxy_listener = [](UniqueFd) {};
  EXPECT_EQ(sandbox_->Run(request, never_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace agentd::sandbox
