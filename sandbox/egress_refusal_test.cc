// What the proxy refuses, bounds and survives, and programs and namespaces around it.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sandbox/egress_proxy.h"
#include "sandbox/egress_proxy_fixture.h"
#include "sandbox/egress_testing.h"

namespace agentd::sandbox {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST_F(EgressProxyTest, AnUnlistedHostIsNotEvenLookedUp) {
  LoopbackServer server(Echo);
  ServeHost(server.port());
  Name("evil.test", {"127.0.0.1"});
  EXPECT_THAT(
      Get(server.port(), "", "evil.test"),
      StartsWith(fmt::format("HTTP/1.1 403 agentd: host evil.test is not in this tool's list "
                             "(allowed: a.test:{})\r\n",
                             server.port())));
  EXPECT_THAT(Ask("CONNECT a.test:1 HTTP/1.1\r\nHost: a.test\r\n\r\n"), StartsWith("HTTP/1.1 403"));
  EXPECT_EQ(LookUps("evil.test") + LookUps("a.test"), 0);
  EXPECT_EQ(server.connections(), 0);
  EXPECT_FALSE(Decision(0).allowed);
  EXPECT_EQ(Decision(0).host, "evil.test");
  EXPECT_THAT(Decision(0).reason, HasSubstr("not in this tool's list"));
  EXPECT_EQ(handle_->usage().refused, 2);
}

TEST_F(EgressProxyTest, EveryAddressOfANameIsChecked) {
  LoopbackServer server(Echo, "127.0.0.2");
  // Not allowed to be 127.0.0.2, where the server is.
  Serve({fmt::format("*.a.test:{}", server.port())});
  int n = 0;
  for (const char* address :
       {"127.0.0.2", "0.0.0.0", "10.0.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16",
        "192.168.0.1", "172.16.0.1", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::", "::1",
        "::ffff:127.0.0.2", "64:ff9b::7f00:2", "fe80::1", "fd00:ec2::254",
        "2002:7f00:2::", "ff02::1"}) {
    const std::string host = fmt::format("x{}.a.test", n++);
    Name(host, {address});
    const std::string answer = Get(server.port(), "", host);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 403 ")) << address;
    EXPECT_THAT(answer, HasSubstr(IpAddress::Parse(address)->ToString() + " is no public address"));
  }
  // One address that may be tried (nothing listens there) does not let the others pass.
  Name("mixed.a.test", {"127.0.0.2", "127.0.0.1", "127.0.0.2"});
  const std::string answer = Get(server.port(), "", "mixed.a.test");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 502 "));
  EXPECT_THAT(answer, HasSubstr("127.0.0.1: Connection refused"));
  EXPECT_EQ(server.connections(), 0);
}

TEST_F(EgressProxyTest, ANameIsLookedUpOnceSoItCannotChangeBetweenCheckAndConnect) {
  LoopbackServer server(Echo), target(Echo, "127.0.0.2");
  std::atomic<int> asked{0};
  auto rebinding = EgressProxy::Create([&](const std::string&) {
    return std::vector<IpAddress>{*IpAddress::Parse(asked++ % 2 == 0 ? "127.0.0.1" : "127.0.0.2")};
  });
  Serve({"unused.test"});
  UniqueFd listener = ListenAt("127.0.0.1");
  port_ = PortOf(listener.get());
  auto handle = (*rebinding)
                    ->Serve(std::move(listener),
                            *EgressPolicy::Parse(
                                std::vector<std::string>{fmt::format("a.test:{}", server.port())},
                                std::vector<std::string>{"127.0.0.1/32"}),
                            {}, nullptr);
  ASSERT_TRUE(handle.ok());
  {
    Peer client = Tunnel(server.port());
    client.Send("x");
    EXPECT_EQ(client.ReadExactly(1), "x");
  }
  EXPECT_EQ(asked, 1);
  EXPECT_THAT(Get(server.port()), StartsWith("HTTP/1.1 403 "));  // the other answer
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(target.connections(), 0);
}

TEST_F(EgressProxyTest, AFailingAddressLeavesTimeForTheNext) {
  LoopbackServer server(Echo, "127.0.0.3");
  Name("a.test", {"127.0.0.1", "127.0.0.2", "127.0.0.3"});
  Serve({fmt::format("a.test:{}", server.port())}, {}, {"127.0.0.0/30"});
  Peer client = Tunnel(server.port());
  client.Send("x");
  EXPECT_EQ(client.ReadExactly(1), "x");
  client.EndSending();
  EXPECT_EQ(Decision(0).address, "127.0.0.3");
}

TEST_F(EgressProxyTest, SaysWhyItCannotConnect) {
  uint16_t closed;
  {
    UniqueFd listener = ListenAt("127.0.0.1");
    closed = PortOf(listener.get());
  }
  ServeHost(closed);
  EXPECT_THAT(Get(closed), HasSubstr(fmt::format("502 agentd: no connection to a.test port {}: "
                                                 "127.0.0.1: Connection refused\r\n",
                                                 closed)));
  Name("a.test", {});
  EXPECT_THAT(Get(closed), StartsWith("HTTP/1.1 502 agentd: host a.test has no address\r\n"));
  Serve({"gone.test:80"});
  EXPECT_THAT(Get(80, "", "gone.test"),
              StartsWith("HTTP/1.1 502 agentd: look-up of gone.test: no such name\r\n"));
}

TEST_F(EgressProxyTest, BrokenAnswersAre502) {
  std::mutex mutex;
  std::string answer;  // guarded by mutex
  LoopbackServer server([&](Peer& peer) {
    peer.ReadThrough("\r\n\r\n");
    std::lock_guard lock(mutex);
    peer.Send(answer);
  });
  const auto set_answer = [&](const char* text) {
    std::lock_guard lock(mutex);
    answer = text;
  };
  ServeHost(server.port());
  for (const char* broken :
       {"", "HTTP/1.1 200", "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n"}) {
    set_answer(broken);
    EXPECT_THAT(Get(server.port()), StartsWith("HTTP/1.1 502 agentd: ")) << broken;
  }
  // Once it has begun, the client must see that the end is missing.
  set_answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
  Peer client = Connect();
  client.Send(
      fmt::format("GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\n\r\n", server.port()));
  std::string text;
  while (client.More(&text)) {
  }
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_THAT(Decision(5).reason, HasSubstr("the host's answer: "));
}

TEST_F(EgressProxyTest, TooLargeIsRefused) {
  LoopbackServer server(Echo);
  EgressLimits limits;
  limits.max_bytes_up = 100'000;
  ServeHost(server.port(), limits);
  EXPECT_THAT(Get(server.port(), "X: " + std::string(17'000, 'x') + "\r\n"),
              StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(Get(server.port(), "Content-Length: 100001\r\n"), StartsWith("HTTP/1.1 413 "));
  EXPECT_EQ(server.connections(), 0);
  // Found out only while it comes.
  const std::string chunk = fmt::format("{:x}\r\n{}\r\n", 10'000, std::string(10'000, 'x'));
  std::string body;
  for (int i = 0; i < 12; ++i) body += chunk;
  EXPECT_THAT(Get(server.port(), "Transfer-Encoding: chunked\r\n\r\n" + body),
              ::testing::AnyOf(StartsWith("HTTP/1.1 413 "), StartsWith("HTTP/1.1 502 ")));
  Peer client = Tunnel(server.port());
  while (client.Send("more")) {
  }
  EXPECT_THAT(Decision(3).reason, HasSubstr("limit of 100000 bytes up"));
}

TEST_F(EgressProxyTest, SlowAndSilentPeersAreLetGo) {
  LoopbackServer server([](Peer& peer) { peer.ReadAll(); });
  EgressLimits limits;
  limits.request_time_ms = 100;
  limits.idle_time_ms = 100;
  ServeHost(server.port(), limits);
  EXPECT_EQ(Connect().ReadAll(), "");
  EXPECT_THAT(Ask("GET http://a.te"), StartsWith("HTTP/1.1 408 "));
  EXPECT_THAT(Get(server.port()), StartsWith("HTTP/1.1 504 agentd: nothing moved for 100 ms"));
  Tunnel(server.port()).ReadAll();
  EXPECT_EQ(Decision(0).reason,
            "no whole request header within 100 ms");  // the silent one asked nothing
  EXPECT_EQ(Decision(2).reason, "nothing moved for 100 ms");
}

TEST_F(EgressProxyTest, SlowLookUpsAndConnectionsAre504) {
  std::promise<void> go;
  std::shared_future<void> gone = go.get_future().share();
  auto slow = EgressProxy::Create([gone](const std::string&) {
    gone.wait();
    return std::vector<IpAddress>{};
  });
  EgressLimits limits;
  limits.connect_time_ms = 100;
  // Its backlog is full: the kernel drops what else wants to connect.
  UniqueFd full = ListenAt("127.0.0.1", 0);
  const uint16_t port = PortOf(full.get());
  std::vector<UniqueFd> fill;
  const sockaddr_in at = LoopbackAt("127.0.0.1", port);
  for (int i = 0; i < 4; ++i) {
    fill.emplace_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    (void)connect(fill.back().get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at));
  }
  ServeHost(port, limits);
  EXPECT_THAT(Get(port), StartsWith("HTTP/1.1 504 agentd: no connection to a.test"));
  UniqueFd listener = ListenAt("127.0.0.1");
  port_ = PortOf(listener.get());
  auto handle =
      (*slow)->Serve(std::move(listener),
                     *EgressPolicy::Parse(std::vector<std::string>{"a.test:80"}), limits, nullptr);
  EXPECT_THAT(Get(80), StartsWith("HTTP/1.1 504 agentd: the look-up of a.test took more"));
  (*handle).reset();  // does not wait for the look-up
  go.set_value();
}

TEST_F(EgressProxyTest, MoreConnectionsThanAllowedWait) {
  LoopbackServer server(Echo);
  EgressLimits limits;
  limits.max_connections = 2;
  ServeHost(server.port(), limits);
  auto first = std::make_unique<Peer>(Tunnel(server.port()));
  Peer second = Tunnel(server.port());
  Peer third = Connect();
  third.Send(fmt::format("CONNECT a.test:{} HTTP/1.1\r\nHost: a.test\r\n\r\n", server.port()));
  for (int i = 0; i < 100; ++i) {
    second.Send("x");
    ASSERT_EQ(second.ReadExactly(1), "x");
  }
  EXPECT_EQ(handle_->usage().connections, 2);
  first.reset();
  EXPECT_THAT(third.ReadThrough("\r\n\r\n"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(EgressProxyTest, TheHandlesEndIsTheConnectionsEnd) {
  LoopbackServer server([](Peer& peer) {
    const std::string noise(10'000, 'x');
    std::thread writer([&] {
      while (peer.Send(noise)) {
      }
    });
    peer.ReadAll();
    writer.join();
  });
  size_t reported = 0;
  for (int round = 0; round < 20; ++round) {
    ServeHost(server.port());
    std::vector<Peer> clients;
    for (int i = 0; i < 4; ++i) clients.push_back(Tunnel(server.port()));
    std::atomic<size_t> moved{0};
    std::vector<std::thread> threads;
    for (Peer& client : clients) {
      threads.emplace_back([&client] {
        while (client.Send("0123456789")) {
        }
      });
      threads.emplace_back([&client, &moved] {
        for (std::string text; client.More(&text); text.clear()) moved += text.size();
      });
    }
    const size_t wanted = random_() % 1'000'000;
    while (moved < wanted) std::this_thread::yield();
    handle_.reset();
    const size_t now = Decisions();
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(Decisions(), now);
    EXPECT_EQ(now, reported + clients.size());
    for (; reported < now; ++reported) {
      EXPECT_EQ(Decision(reported).reason, "the call has ended");
    }
  }
}

// Thousands of broken requests; whatever reaches the server is one request for it.
TEST_F(EgressProxyTest, MalformedRequestsNeitherPassNorDisturb) {
  std::mutex mutex;
  std::string complaints;
  std::atomic<uint16_t> port{0};
  LoopbackServer server([&](Peer& peer) {
    std::string text = peer.ReadThrough("\r\n\r\n");
    if (text.empty()) return;
    peer.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    const std::string complaint = UpstreamComplaint(text, "a.test", port);
    // Without a body nothing may follow the header.
    if (text.find("\r\nContent-Length") == std::string::npos &&
        text.find("\r\nTransfer-Encoding") == std::string::npos)
      text = peer.ReadAll();
    else
      text.clear();
    std::lock_guard lock(mutex);
    if (!complaint.empty() || !text.empty()) complaints += complaint + ";" + text;
  });
  port = server.port();
  ServeHost(server.port());
  Name("evil.test", {"127.0.0.1"});
  const std::string host = fmt::format("a.test:{}", server.port());
  const std::string good =
      fmt::format("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nAccept: */*\r\n\r\n", host);
  const std::vector<std::string> pieces = {"\r\n",       "\n",
                                           "\r",         " ",
                                           ":",          std::string(1, '\0'),
                                           "\x80",       "Content-Length: 3\r\n",
                                           "abc",        "Transfer-Encoding: chunked\r\n",
                                           "0\r\n\r\n",  "GET http://evil.test/ HTTP/1.1\r\n",
                                           "@evil.test", "Host: evil.test\r\n",
                                           "CONNECT ",   "\r\n\r\n",
                                           good,         "3\r\nabc\r\n"};
  for (int round = 0; round < 1500; ++round) {
    std::string request = good;
    for (size_t i = 1 + random_() % 3; i > 0; --i) {
      const size_t at = random_() % (request.size() + 1);
      if (random_() % 3 == 0) {
        request.erase(at, 1 + random_() % 10);
      } else {
        request.insert(at, pieces[random_() % pieces.size()]);
      }
    }
    Peer client = Connect();
    client.Send(request);
    client.EndSending();
    const std::string answer = client.ReadAll();
    if (!answer.empty()) {
      EXPECT_THAT(answer, StartsWith("HTTP/1.1 ")) << request;
    }
  }
  EXPECT_THAT(Ask(good), ::testing::EndsWith("\r\n\r\nok"));
  EXPECT_EQ(LookUps("evil.test"), 0);
  handle_.reset();
  std::lock_guard lock(mutex);
  EXPECT_EQ(complaints, "");
}

TEST_F(EgressProxyTest, ServesListeningTcpSocketsAlone) {
  UniqueFd udp(socket(AF_INET, SOCK_DGRAM, 0)), idle(socket(AF_INET, SOCK_STREAM, 0)),
      local(socket(AF_UNIX, SOCK_STREAM, 0)), none;
  for (UniqueFd* fd : {&udp, &idle, &local, &none}) {
    const absl::Status status = proxy_->Serve(std::move(*fd), {}, {}, nullptr).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

TEST_F(EgressProxyTest, AddressesAsHosts) {
  LoopbackServer server(Echo);
  Serve({fmt::format("127.0.0.1:{}", server.port())});
  Peer client = Tunnel(server.port(), "127.0.0.1");
  client.Send("x");
  EXPECT_EQ(client.ReadExactly(1), "x");
  EXPECT_THAT(Get(server.port(), "", "127.0.0.2"), StartsWith("HTTP/1.1 403 "));
  EXPECT_EQ(LookUps("127.0.0.1"), 0);
}

TEST_F(EgressProxyTest, TheSystemsResolver) {
  const absl::StatusOr<std::vector<IpAddress>> found = ResolveHost("localhost");
  ASSERT_TRUE(found.ok()) << found.status();
  for (const IpAddress& address : *found) EXPECT_STREQ(NotPublic(address), "loopback");
  EXPECT_FALSE(found->empty());
  const absl::Status missing = ResolveHost("no-such-name.invalid").status();
  EXPECT_THAT(Text(missing), StartsWith("look-up of no-such-name.invalid: "));
}

// Two real clients and a real server that know nothing of this project.
TEST_F(EgressProxyTest, PythonAndCurlGoThrough) {
  const TemporaryDirectory temporary;
  const std::string directory = temporary.path();
  const std::string file = directory + "/data";
  const std::string content = RandomBytes(random_, 2'000'000);
  FILE* out = std::fopen(file.c_str(), "w");
  ASSERT_NE(out, nullptr);
  std::fwrite(content.data(), 1, content.size(), out);
  std::fclose(out);
  // Prints its port, and ends with its standard input.
  const std::string script = directory + "/client.py";
  out = std::fopen(script.c_str(), "w");
  std::fputs(
      "import functools, hashlib, http.client, http.server, sys, threading, urllib.request\n"
      "handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])\n"
      "handler.log_message = None\n"
      "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)\n"
      "port = server.server_address[1]\n"
      "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
      "print(port, flush=True)\n"
      "for line in sys.stdin:\n"
      "    proxy = line.strip()\n"
      "    opener = urllib.request.build_opener(urllib.request.ProxyHandler({'http': 'http://' + "
      "proxy}))\n"
      "    one = opener.open(f'http://a.test:{port}/data').read()\n"
      "    tunnel = http.client.HTTPConnection(proxy)\n"
      "    tunnel.set_tunnel('a.test', port)\n"
      "    two = b''\n"
      "    for _ in range(2):\n"
      "        tunnel.request('GET', '/data')\n"
      "        two = tunnel.getresponse().read()\n"
      "    try:\n"
      "        opener.open(f'http://evil.test:{port}/data')\n"
      "    except urllib.error.HTTPError as error:\n"
      "        refusal = f'{error.code} {error.reason}'\n"
      "    print(one == two == open(sys.argv[1] + '/data', 'rb').read(), refusal, flush=True)\n",
      out);
  std::fclose(out);
  int to[2], from[2];
  ASSERT_EQ(pipe2(to, O_CLOEXEC), 0);
  ASSERT_EQ(pipe2(from, O_CLOEXEC), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(to[0], 0);
    dup2(from[1], 1);
    execlp("python3", "python3", script.c_str(), directory.c_str(), nullptr);
    _exit(127);
  }
  UniqueFd to_child(to[1]), child_in(to[0]), child_out(from[1]);
  child_in.Reset();
  child_out.Reset();
  FILE* child = fdopen(from[0], "r");
  char said[1000] = "";
  ASSERT_NE(std::fgets(said, sizeof(said), child), nullptr);
  const int port = std::atoi(said);
  ServeHost(static_cast<uint16_t>(port));
  const std::string line = fmt::format("127.0.0.1:{}\n", port_);
  ASSERT_EQ(write(to_child.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
  EXPECT_NE(std::fgets(said, sizeof(said), child), nullptr);
  EXPECT_THAT(said, StartsWith("True 403 agentd: host evil.test is not in this tool's list"));
  if (std::system("curl --version >/dev/null 2>&1") == 0) {
    for (const char* how : {"", "--proxytunnel"}) {
      const std::string command = fmt::format(
          "curl -sS {} -x http://127.0.0.1:{} -o {}/got http://a.test:{}/data && cmp {}/got {}",
          how, port_, directory, port, directory, file);
      EXPECT_EQ(std::system(command.c_str()), 0) << command;
    }
  }
  to_child.Reset();
  std::fclose(child);
  waitpid(pid, nullptr, 0);
  std::filesystem::remove_all(directory);
}

bool SetLoopback(const char* name, const std::string& address) {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
  const sockaddr_in at = LoopbackAt(address, 0);
  std::memcpy(&request.ifr_addr, &at, sizeof(at));
  if (ioctl(fd.get(), SIOCSIFADDR, &request) != 0) return false;
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  return ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

// Returns 0, 77 (cannot be tried here) or the number of what went wrong.
int InNamespaces() {
  if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return 77;
  if (!SetLoopback("lo", "127.0.0.1")) return 77;
  UniqueFd inside = ListenAt("127.0.0.1");  // stays in this namespace
  const uint16_t port = PortOf(inside.get());
  UniqueFd clients[2];
  for (UniqueFd& client : clients) client.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (unshare(CLONE_NEWNET) != 0) return 1;
  if (!SetLoopback("lo", "127.0.0.1") || !SetLoopback("lo:1", "93.184.216.34")) return 2;
  LoopbackServer server(Echo, "93.184.216.34"), local(Echo);
  auto proxy = EgressProxy::Create([](const std::string& host) {
    return std::vector<IpAddress>{
        *IpAddress::Parse(host == "public.test" ? "93.184.216.34" : "127.0.0.1")};
  });
  const std::vector<std::string> hosts = {fmt::format("public.test:{}", server.port()),
                                          fmt::format("local.test:{}", local.port())};
  auto handle = (*proxy)->Serve(
      std::move(inside), *EgressPolicy::Parse(hosts, std::vector<std::string>{"127.0.0.0/8"}), {},
      nullptr);
  if (!handle.ok()) return 3;
  const sockaddr_in at = LoopbackAt("127.0.0.1", port);
  for (UniqueFd& client : clients)
    if (connect(client.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) != 0) return 4;
  Peer first(std::move(clients[0])), second(std::move(clients[1]));
  first.Send(
      fmt::format("CONNECT public.test:{} HTTP/1.1\r\nHost: public.test\r\n\r\n", server.port()));
  const std::string answer = first.ReadAll();
  if (answer.find("HTTP/1.1 403 ") != 0) return 5;
  if (answer.find("93.184.216.34 is an address of this machine") == std::string::npos) return 6;
  if (server.connections() != 0) return 7;
  second.Send(
      fmt::format("CONNECT local.test:{} HTTP/1.1\r\nHost: local.test\r\n\r\nx", local.port()));
  second.EndSending();
  return second.ReadAll().ends_with("\r\n\r\nx") ? 0 : 8;
}

// In network namespaces of its own a process can have any address: a public one of this machine,
// and the listener in another namespace than the proxy, as it is in use.
TEST(EgressNamespaceTest, ListenerElsewhereAndThisMachinesPublicAddress) {
  const pid_t pid = fork();
  if (pid == 0) _exit(InNamespaces());
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no user namespaces here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace agentd::sandbox
