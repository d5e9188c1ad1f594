// The end of a login: what a browser, or somebody else on this machine, sends to the port that
// waits for it.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <thread>

#include "agentd/ctl/commands.h"
#include "agentd/ctl/login_listener.h"

namespace agentd::ctl {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Sends `text` to the port of `uri`; the answer.
std::string SendTo(const std::string& uri, const std::string& text) {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(uri.substr(uri.rfind(':') + 1))));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(text.size()));
  shutdown(fd.get(), SHUT_WR);
  std::string answer;
  char c = 0;
  while (recv(fd.get(), &c, 1, 0) == 1) answer += c;
  return answer;
}

TEST(LoginListenerTest, TakesTheAnswerOfItsOwnLoginAlone) {
  auto listener = LoginListener::Open(0);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const std::string uri = listener->redirect_uri();
  std::thread others([&uri] {
    for (const char* request :
         {"", "GET /callback?state=other&code=c HTTP/1.1\r\n\r\n", "GET /callback HTTP/1.1\r\n\r\n",
          "GET /else?state=mine HTTP/1.1\r\n\r\n", "POST /callback?state=mine HTTP/1.1\r\n\r\n",
          "GET /callback?state=mine", "nonsense\r\n\r\n"})
      EXPECT_THAT(SendTo(uri, request), StartsWith("HTTP/1.1 404")) << request;
    EXPECT_THAT(
        SendTo(uri, "GET /callback?code=a%20b&state=mine&iss=x HTTP/1.1\r\nHost: x\r\n\r\n"),
        HasSubstr("close this page"));
  });
  const auto url = listener->Wait("mine", 60);
  others.join();
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_EQ(*url, uri + "?code=a%20b&state=mine&iss=x");
}

TEST(LoginListenerTest, APortThatIsTakenIsNamed) {
  const auto first = LoginListener::Open(0);
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string& uri = first->redirect_uri();
  const auto second =
      LoginListener::Open(static_cast<uint16_t>(std::stoi(uri.substr(uri.rfind(':') + 1))));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("listen on port"));
}

TEST(McpServerLineTest, SaysWhatToDo) {
  api::McpServer server;
  server.set_name("mail");
  server.set_tools(1);
  EXPECT_EQ(McpServerLine(server), "1 tool");
  server.add_problems("its tool x is left out:\nno schema");
  EXPECT_THAT(McpServerLine(server), StartsWith("1 tool; its tool x is left out:"));
  server.set_needs_login(true);
  EXPECT_EQ(McpServerLine(server), "needs a login: agentctl mcp login mail");
}

}  // namespace
}  // namespace agentd::ctl
