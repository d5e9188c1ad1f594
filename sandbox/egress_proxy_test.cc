// The proxy between real sockets on the loopback. Listed hosts get their addresses from a table,
// and policies allow loopback addresses where a server is to be reached.
#include "sandbox/egress_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "sandbox/egress_testing.h"

namespace agentd::sandbox {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

sockaddr_in LoopbackAt(const std::string& address, uint16_t port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(port);
  AGENTD_CHECK(inet_pton(AF_INET, address.c_str(), &result.sin_addr) == 1);
  return result;
}

UniqueFd ListenAt(const std::string& address, int backlog = 128) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in at = LoopbackAt(address, 0);
  AGENTD_CHECK(bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) == 0);
  AGENTD_CHECK(listen(fd.get(), backlog) == 0);
  return fd;
}

uint16_t PortOf(int fd) {
  sockaddr_in at{};
  socklen_t size = sizeof(at);
  AGENTD_CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size) == 0);
  return ntohs(at.sin_port);
}

// One end of a connection, blocking; a peer that says nothing for 30 s fails the test.
class Peer {
 public:
  explicit Peer(UniqueFd fd) : fd_(std::move(fd)) {
    const timeval limit{30, 0};
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  }
  // False when the other side has closed.
  bool Send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      text.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void EndSending() { shutdown(fd_.get(), SHUT_WR); }
  // Reads some more into `text`; false at the end of file or an error (errno 0 or not).
  bool More(std::string* text) {
    char buffer[16384];
    errno = 0;
    const ssize_t got = recv(fd_.get(), buffer, sizeof(buffer), 0);
    if (got > 0) text->append(buffer, static_cast<size_t>(got));
    return got > 0;
  }
  std::string ReadAll() {
    std::string text = std::exchange(rest_, {});
    while (More(&text)) {
    }
    return text;
  }
  // Through `end`; what follows stays for the next call.
  std::string ReadThrough(const std::string& end) {
    size_t at;
    while ((at = rest_.find(end)) == std::string::npos)
      if (!More(&rest_)) return std::exchange(rest_, {});
    std::string text = rest_.substr(0, at + end.size());
    rest_.erase(0, text.size());
    return text;
  }
  std::string ReadExactly(size_t size) {
    while (rest_.size() < size && More(&rest_)) {
    }
    std::string text = rest_.substr(0, size);
    rest_.erase(0, text.size());
    return text;
  }
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  std::string rest_;
};

// Runs `serve` for every connection, on a thread of its own.
class LoopbackServer {
 public:
  explicit LoopbackServer(std::function<void(Peer&)> serve,
                          const std::string& address = "127.0.0.1")
      : serve_(std::move(serve)), listener_(ListenAt(address)), port_(PortOf(listener_.get())) {
    thread_ = std::thread([this] {
      for (;;) {
        UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!fd.valid()) return;
        ++connections_;
        peers_.emplace_back([this, fd = std::move(fd)]() mutable {
          Peer peer(std::move(fd));
          serve_(peer);
        });
      }
    });
  }
  ~LoopbackServer() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
    for (std::thread& peer : peers_) peer.join();
  }
  uint16_t port() const { return port_; }
  int connections() const { return connections_; }

 private:
  const std::function<void(Peer&)> serve_;
  UniqueFd listener_;
  const uint16_t port_;
  std::atomic<int> connections_{0};
  std::thread thread_;
  std::vector<std::thread> peers_;  // of thread_ until it is joined
};

void Echo(Peer& peer) {
  std::string text;
  while (peer.More(&text)) {
    if (!peer.Send(text)) return;
    text.clear();
  }
  peer.EndSending();
}

std::string RandomBytes(std::mt19937& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

class EgressProxyTest : public ::testing::Test {
 protected:
  EgressProxyTest() {
    absl::StatusOr<std::unique_ptr<EgressProxy>> proxy = EgressProxy::Create(
        [this](const std::string& host) -> absl::StatusOr<std::vector<IpAddress>> {
          std::lock_guard lock(mutex_);
          ++look_ups_[host];
          const auto found = names_.find(host);
          if (found == names_.end()) return NotFound("look-up of {}: no such name", host);
          std::vector<IpAddress> addresses;
          for (const std::string& text : found->second)
            addresses.push_back(*IpAddress::Parse(text));
          return addresses;
        });
    AGENTD_CHECK(proxy.ok());
    proxy_ = std::move(*proxy);
    seed_ = std::random_device()();
    random_.seed(seed_);
    std::printf("seed %u\n", seed_);
  }

  void Name(const std::string& host, std::vector<std::string> addresses) {
    std::lock_guard lock(mutex_);
    names_[host] = std::move(addresses);
  }
  int LookUps(const std::string& host) {
    std::lock_guard lock(mutex_);
    return look_ups_[host];
  }

  void Serve(const std::vector<std::string>& hosts, EgressLimits limits = {},
             const std::vector<std::string>& allow_private = {"127.0.0.1/32"}) {
    absl::StatusOr<EgressPolicy> policy = EgressPolicy::Parse(hosts, allow_private);
    AGENTD_CHECK(policy.ok());
    UniqueFd listener = ListenAt("127.0.0.1");
    port_ = PortOf(listener.get());
    absl::StatusOr<std::unique_ptr<EgressHandle>> handle = proxy_->Serve(
        std::move(listener), std::move(*policy), limits, [this](const EgressDecision& decision) {
          std::lock_guard lock(mutex_);
          decisions_.push_back(decision);
          decided_.notify_all();
        });
    AGENTD_CHECK(handle.ok());
    handle_ = std::move(*handle);
  }
  void ServeHost(uint16_t port, EgressLimits limits = {}) {
    Name("a.test", {"127.0.0.1"});
    Serve({"a.test:" + std::to_string(port)}, limits);
  }

  Peer Connect() {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in at = LoopbackAt("127.0.0.1", port_);
    AGENTD_CHECK(connect(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) == 0);
    return Peer(std::move(fd));
  }
  Peer Tunnel(uint16_t port, const std::string& host = "a.test") {
    Peer client = Connect();
    client.Send(fmt::format("CONNECT {0}:{1} HTTP/1.1\r\nHost: {0}\r\n\r\n", host, port));
    EXPECT_EQ(client.ReadThrough("\r\n\r\n"), "HTTP/1.1 200 Connection established\r\n\r\n");
    return client;
  }
  std::string Ask(const std::string& request) {
    Peer client = Connect();
    client.Send(request);
    return client.ReadAll();
  }
  std::string Get(uint16_t port, const std::string& more = "", const std::string& host = "a.test") {
    return Ask(
        fmt::format("GET http://{0}:{1}/ HTTP/1.1\r\nHost: {0}:{1}\r\n{2}\r\n", host, port, more));
  }

  // The n-th decision, from 0.
  EgressDecision Decision(size_t n) {
    std::unique_lock lock(mutex_);
    decided_.wait(lock, [&] { return decisions_.size() > n; });
    return decisions_[n];
  }
  size_t Decisions() {
    std::lock_guard lock(mutex_);
    return decisions_.size();
  }

  uint32_t seed_ = 0;
  std::mt19937 random_;
  std::unique_ptr<EgressProxy> proxy_;
  uint16_t port_ = 0;

 private:
  std::mutex mutex_;
  std::condition_variable decided_;
  // Guarded by mutex_.
  std::map<std::string, std::vector<std::string>> names_;
  std::map<std::string, int> look_ups_;
  std::vector<EgressDecision> decisions_;

 protected:
  std::unique_ptr<EgressHandle> handle_;  // calls back into the members above
};

TEST_F(EgressProxyTest, ATunnelCarriesBothWaysAndItsHalfClose) {
  LoopbackServer server([](Peer& peer) {
    Echo(peer);
    peer.Send("unheard");  // after its end of file
  });
  ServeHost(server.port());
  for (const size_t size : {size_t{0}, size_t{1}, size_t{8} << 20}) {
    const std::string sent = RandomBytes(random_, size);
    Peer client = Tunnel(server.port());
    std::thread writer([&] {
      EXPECT_TRUE(client.Send(sent));
      client.EndSending();
    });
    EXPECT_EQ(client.ReadAll() == sent, true) << size;
    writer.join();
  }
  const EgressDecision decision = Decision(2);
  EXPECT_TRUE(decision.allowed);
  EXPECT_EQ(decision.host, "a.test");
  EXPECT_EQ(decision.port, server.port());
  EXPECT_EQ(decision.address, "127.0.0.1");
  EXPECT_EQ(decision.reason, "");
  EXPECT_EQ(decision.bytes_up, 8 << 20);
  EXPECT_EQ(decision.bytes_down, 8 << 20);
  EXPECT_EQ(handle_->usage().connections, 3);
  EXPECT_EQ(handle_->usage().refused, 0);
  EXPECT_EQ(handle_->usage().bytes_up, (8 << 20) + 1);
}

TEST_F(EgressProxyTest, WhatComesWithConnectIsPassedOn) {
  LoopbackServer server(Echo);
  ServeHost(server.port());
  Peer client = Connect();
  client.Send(
      fmt::format("CONNECT a.test:{} HTTP/1.1\r\nHost: a.test\r\n\r\nhello", server.port()));
  client.EndSending();
  EXPECT_EQ(client.ReadAll(), "HTTP/1.1 200 Connection established\r\n\r\nhello");
}

TEST_F(EgressProxyTest, APlainRequestIsRewrittenAndTheNextOneDropped) {
  std::promise<std::string> received;
  LoopbackServer server([&](Peer& peer) {
    const std::string request = peer.ReadThrough("\r\n\r\nhello");
    peer.Send("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nokEXTRA");
    received.set_value(request + peer.ReadAll());
  });
  ServeHost(server.port());
  const std::string host = fmt::format("a.test:{}", server.port());
  const std::string answer = Ask(fmt::format(
      "POST http://{0}/x HTTP/1.1\r\nHost: {0}\r\nProxy-Connection: keep-alive\r\nContent-Length: "
      "5\r\n\r\nhelloGET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
      host));
  EXPECT_EQ(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
  EXPECT_EQ(Decision(0).reason, "");
  const std::string seen = received.get_future().get();
  EXPECT_EQ(server.connections(), 1);
  EXPECT_THAT(seen, StartsWith("POST /x HTTP/1.1\r\n"));
  EXPECT_EQ(UpstreamComplaint(seen.substr(0, seen.find("\r\n\r\n") + 4), "a.test", server.port()),
            "");
  EXPECT_EQ(seen.substr(seen.find("\r\n\r\n") + 4), "hello");
}

// Reads one chunked body as a strict reader does; nothing may follow it.
std::string Dechunk(std::string_view text) {
  std::string body;
  for (;;) {
    const size_t end = text.find("\r\n");
    AGENTD_CHECK(end != std::string_view::npos && end > 0);
    const size_t size = std::stoul(std::string(text.substr(0, end)), nullptr, 16);
    text.remove_prefix(end + 2);
    body += text.substr(0, size);
    AGENTD_CHECK(text.substr(size, 2) == "\r\n");
    text.remove_prefix(size + 2);
    if (size == 0) {
      AGENTD_CHECK(text.empty());
      return body;
    }
  }
}

std::string ChunkAtRandom(std::mt19937& random, std::string_view body) {
  std::string text;
  while (!body.empty()) {
    const size_t size = std::min<size_t>(body.size(), 1 + random() % (random() % 4 ? 20 : 50000));
    text +=
        fmt::format("{:x}{}\r\n{}\r\n", size, random() % 3 ? "" : ";x=\"y\"", body.substr(0, size));
    body.remove_prefix(size);
  }
  return text + (random() % 2 ? "0\r\n\r\n" : "0\r\nX-Trailer: 1\r\n\r\n");
}

TEST_F(EgressProxyTest, BodiesArriveWhole) {
  const std::string up = RandomBytes(random_, 300'000 + random_() % 100);
  const std::string down = RandomBytes(random_, 300'000 + random_() % 100);
  const std::string chunks_down = ChunkAtRandom(random_, down);
  std::atomic<int> bad{0};
  LoopbackServer server([&](Peer& peer) {
    const std::string header = peer.ReadThrough("\r\n\r\n");
    const bool chunked = header.find("Transfer-Encoding: chunked") != std::string::npos;
    std::string body =
        chunked ? Dechunk(peer.ReadThrough("\r\n0\r\n\r\n")) : peer.ReadExactly(up.size());
    if (body != up) ++bad;
    if (header.find("/to-eof ") != std::string::npos) {
      peer.Send("HTTP/1.1 200 OK\r\n\r\n" + down);
    } else if (header.find("/chunked ") != std::string::npos) {
      peer.Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks_down);
    } else {
      peer.Send(fmt::format("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", down.size()) + down);
    }
  });
  ServeHost(server.port());
  for (const char* path : {"length", "chunked", "to-eof"}) {
    for (const bool chunked : {false, true}) {
      Peer client = Connect();
      client.Send(fmt::format(
          "POST http://a.test:{0}/{1} HTTP/1.1\r\nHost: a.test:{0}\r\n{2}\r\n\r\n", server.port(),
          path,
          chunked ? "Transfer-Encoding: chunked" : fmt::format("Content-Length: {}", up.size())));
      client.Send(chunked ? ChunkAtRandom(random_, up) : up);
      const std::string header = client.ReadThrough("\r\n\r\n");
      EXPECT_THAT(header, StartsWith("HTTP/1.1 200 OK\r\n")) << path;
      const std::string body = client.ReadThrough("never");
      EXPECT_EQ((path == std::string("chunked") ? Dechunk(body) : body) == down, true)
          << path << " " << chunked;
    }
  }
  EXPECT_EQ(bad, 0);
}

TEST_F(EgressProxyTest, ALastChunkThatComesAloneEndsTheBodyOnce) {
  std::promise<std::string> received;
  LoopbackServer server([&](Peer& peer) {
    peer.ReadThrough("\r\n\r\n");
    std::string body = peer.ReadThrough("hello\r\n");
    peer.Send("HTTP/1.1 100 Continue\r\n\r\n");
    body += peer.ReadThrough("\r\n\r\n");
    peer.Send("HTTP/1.1 204 No Content\r\n\r\n");
    received.set_value(body + peer.ReadAll());
  });
  ServeHost(server.port());
  Peer client = Connect();
  client.Send(
      fmt::format("PUT http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\nTransfer-Encoding: "
                  "chunked\r\n\r\n5\r\nhello\r\n",
                  server.port()));
  EXPECT_EQ(client.ReadThrough("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("0\r\n\r\n");
  EXPECT_EQ(client.ReadAll(), "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(received.get_future().get(), "5\r\nhello\r\n0\r\n\r\n");
}

TEST_F(EgressProxyTest, InterimEarlyAndBodilessAnswers) {
  LoopbackServer server([&](Peer& peer) {
    const std::string header = peer.ReadThrough("\r\n\r\n");
    if (header.find("Expect") != std::string::npos) {
      peer.Send("HTTP/1.1 100 Continue\r\n\r\n");
      peer.Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + peer.ReadExactly(5));
    } else if (header.find("HEAD") == 0) {
      peer.Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    } else {
      peer.Send("HTTP/1.1 413 No\r\nContent-Length: 4\r\n\r\nfull");
    }
  });
  ServeHost(server.port());
  const std::string host = fmt::format("a.test:{}", server.port());
  Peer client = Connect();
  client.Send(
      fmt::format("PUT http://{0}/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: 5\r\nExpect: "
                  "100-continue\r\n\r\n",
                  host));
  EXPECT_EQ(client.ReadThrough("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("abcde");
  EXPECT_THAT(client.ReadAll(), HasSubstr("\r\n\r\nabcde"));
  EXPECT_EQ(Ask(fmt::format("HEAD http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", host)),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(Ask(fmt::format("PUT http://{0}/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: "
                              "1000000\r\n\r\n{1}",
                              host, std::string(100'000, 'x'))),
              HasSubstr("\r\n\r\nfull"));
}

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
  char directory[] = "/tmp/egress_test.XXXXXX";
  ASSERT_NE(mkdtemp(directory), nullptr);
  const std::string file = std::string(directory) + "/data";
  const std::string content = RandomBytes(random_, 2'000'000);
  FILE* out = std::fopen(file.c_str(), "w");
  ASSERT_NE(out, nullptr);
  std::fwrite(content.data(), 1, content.size(), out);
  std::fclose(out);
  // Prints its port, and ends with its standard input.
  const std::string script = std::string(directory) + "/client.py";
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
    execlp("python3", "python3", script.c_str(), directory, nullptr);
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
