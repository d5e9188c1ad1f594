// What the proxy carries, between real sockets on the loopback.
#include "sandbox/egress_proxy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/status.h"
#include "sandbox/egress_proxy_fixture.h"
#include "sandbox/egress_testing.h"

namespace agentd::sandbox {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

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

}  // namespace
}  // namespace agentd::sandbox
