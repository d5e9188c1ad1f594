// What the proxy's tests share: real sockets on the loopback at both of its ends. Listed hosts get
// their addresses from a table, and policies allow loopback addresses where a server is to be
// reached.
#ifndef AGENTD_SANDBOX_EGRESS_PROXY_FIXTURE_H_
#define AGENTD_SANDBOX_EGRESS_PROXY_FIXTURE_H_

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "sandbox/egress_proxy.h"

namespace agentd::sandbox {

inline sockaddr_in LoopbackAt(const std::string& address, uint16_t port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(port);
  AGENTD_CHECK(inet_pton(AF_INET, address.c_str(), &result.sin_addr) == 1);
  return result;
}

inline UniqueFd ListenAt(const std::string& address, int backlog = 128) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in at = LoopbackAt(address, 0);
  AGENTD_CHECK(bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) == 0);
  AGENTD_CHECK(listen(fd.get(), backlog) == 0);
  return fd;
}

inline uint16_t PortOf(int fd) {
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

inline void Echo(Peer& peer) {
  std::string text;
  while (peer.More(&text)) {
    if (!peer.Send(text)) return;
    text.clear();
  }
  peer.EndSending();
}

inline std::string RandomBytes(std::mt19937& random, size_t size) {
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

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_PROXY_FIXTURE_H_
