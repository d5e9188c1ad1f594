#include "sandbox/egress_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/beast/http/status.hpp>
#include <random>
#include <string>
#include <vector>

#include "sandbox/egress_request_testing.h"
#include "sandbox/egress_testing.h"

namespace agentd::sandbox {
namespace {

using ::testing::HasSubstr;

const EgressPolicy& ListedHosts() {
  static const EgressPolicy policy = *EgressPolicy::Parse(
      std::vector<std::string>{"a.test", "b.test:8080", "*.c.test", "[2606:4700::1111]:80"});
  return policy;
}

TEST(EgressRequestTest, RewritesToOriginForm) {
  const struct {
    const char* request;
    const char* upstream;
  } cases[] = {
      {"GET http://A.test/x?y=1 HTTP/1.1\r\nHost: a.TEST:80\r\nAccept: */*\r\n\r\n",
       "GET /x?y=1 HTTP/1.1\r\nAccept: */*\r\nHost: a.test\r\nConnection: close\r\n\r\n"},
      {"GET HTTP://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n",
       "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"},
      {"GET http://a.test?q HTTP/1.0\r\n\r\n",
       "GET /?q HTTP/1.0\r\nHost: a.test\r\nConnection: close\r\n\r\n"},
      {"OPTIONS http://b.test:8080 HTTP/1.1\r\nHost: b.test:8080\r\n\r\n",
       "OPTIONS * HTTP/1.1\r\nHost: b.test:8080\r\nConnection: close\r\n\r\n"},
      {"GET http://[2606:4700:0::1111]/ HTTP/1.1\r\nHost: [2606:4700::1111]\r\n\r\n",
       "GET / HTTP/1.1\r\nHost: [2606:4700::1111]\r\nConnection: close\r\n\r\n"},
      {"GET http://a.test//http://evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
       "GET //http://evil.test/ HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"},
      {"PUT http://x.c.test/ HTTP/1.1\r\nHost: x.c.test\r\nContent-Length: 5\r\nX-A: "
       "1\r\nConnection: "
       "keep-alive, x-a, Content-Length, host\r\nKeep-Alive: 5\r\nProxy-Connection: "
       "keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nTrailer: X-B\r\nUpgrade: "
       "h2c\r\nAuthorization: mine\r\n\r\n",
       "PUT / HTTP/1.1\r\nAuthorization: mine\r\nHost: x.c.test\r\nContent-Length: "
       "5\r\nConnection: close\r\n\r\n"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: Chunked\r\nExpect: "
       "100-continue\r\n\r\n",
       "POST / HTTP/1.1\r\nExpect: 100-continue\r\nHost: a.test\r\nTransfer-Encoding: "
       "chunked\r\nConnection: close\r\n\r\n"},
  };
  for (const auto& test : cases) {
    const PreparedRequest prepared = PrepareBytes(test.request, ListedHosts());
    EXPECT_EQ(prepared.status, 0) << test.request << prepared.reason;
    // Beast keeps the order of fields, and a field that is set anew at its place.
    std::vector<std::string> got, expected;
    const auto lines = [](const std::string& text) {
      std::vector<std::string> all;
      for (size_t at = 0, end; (end = text.find("\r\n", at)) != std::string::npos; at = end + 2)
        all.push_back(text.substr(at, end - at));
      return all;
    };
    EXPECT_THAT(lines(prepared.header), ::testing::UnorderedElementsAreArray(lines(test.upstream)))
        << test.request;
    EXPECT_EQ(UpstreamComplaint(prepared.header, prepared.target.host, prepared.target.port), "");
  }
}

TEST(EgressRequestTest, ConnectNamesHostAndPort) {
  const PreparedRequest prepared =
      PrepareBytes("CONNECT A.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", ListedHosts());
  EXPECT_EQ(prepared.status, 0) << prepared.reason;
  EXPECT_TRUE(prepared.target.tunnel);
  EXPECT_EQ(prepared.target.host, "a.test");
  EXPECT_EQ(prepared.target.port, 443);
}

TEST(EgressRequestTest, Refuses) {
  const struct {
    std::string request;
    int status;
    const char* reason;
  } cases[] = {
      // Where to
      {"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 403,
       "host evil.test is not in"},
      {"GET http://c.test/ HTTP/1.1\r\nHost: c.test\r\n\r\n", 403, "host c.test is not in"},
      {"GET http://a.test:8080/ HTTP/1.1\r\nHost: a.test:8080\r\n\r\n", 403,
       "port 8080 of host a.test"},
      {"GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 403, "is not in"},
      {"CONNECT a.test:22 HTTP/1.1\r\nHost: a.test:22\r\n\r\n", 403, "port 22 of host a.test"},
      {"CONNECT evil.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", 403,
       "host evil.test is not in"},
      {"CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no host:port"},
      {"CONNECT a.test: HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no host:port"},
      {"CONNECT a.test.:443 HTTP/1.1\r\nHost: a.test.:443\r\n\r\n", 400, "no host:port"},
      {"CONNECT a.test:443@evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no host:port"},
      {"CONNECT http://a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no host:port"},
      {"CONNECT /etc HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no host:port"},
      {"CONNECT a.test:443 HTTP/1.1\r\n\r\n", 400, "no Host header"},
      {"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n", 400,
       "with a body"},
      {"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
       "with a body"},
      {"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "this is a proxy"},
      {"GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "go through CONNECT"},
      {"GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no http:// URL"},
      {"GET http:/a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no http:// URL"},
      {"GET * HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no http:// URL"},
      {"GET http://a.test@evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no valid host"},
      {"GET http://u:p@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no valid host"},
      {"GET http://a.test\\@evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no valid host"},
      {"GET http://a.test%00.evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no valid host"},
      {"GET http://a.test./ HTTP/1.1\r\nHost: a.test.\r\n\r\n", 400, "no valid host"},
      {"GET http://127.1/ HTTP/1.1\r\nHost: 127.1\r\n\r\n", 400, "no valid host"},
      {"GET http://0x7f000001/ HTTP/1.1\r\nHost: 0x7f000001\r\n\r\n", 400, "no valid host"},
      {"GET http:///x HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no valid host"},
      {"GET http://a.test/#x HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no URL has"},
      {"GET http://b\xc3\xbc.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "no URL has"},
      // Whose
      {"GET http://a.test/ HTTP/1.1\r\n\r\n", 400, "no Host header"},
      {"GET http://a.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400, "not the host of"},
      {"GET http://a.test/ HTTP/1.0\r\nHost: evil.test\r\n\r\n", 400, "not the host of"},
      {"GET http://a.test/ HTTP/1.1\r\nHost: a.test:8080\r\n\r\n", 400, "not the host of"},
      {"GET http://a.test/ HTTP/1.1\r\nHost:\r\n\r\n", 400, "not the host of"},
      {"GET http://a.test/ HTTP/1.1\r\nHost: a.test, evil.test\r\n\r\n", 400, "not the host of"},
      {"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n", 400,
       "more than one Host"},
      // Where it ends
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: "
       "chunked\r\n\r\n",
       400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: "
       "chunked\r\nContent-Length: "
       "5\r\n\r\n",
       400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: "
       "identity\r\nContent-Length: "
       "5\r\n\r\n",
       400, "both"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nContent-Length: "
       "5\r\n\r\n",
       400, "more than one"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nContent-Length: "
       "6\r\n\r\n",
       400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5, 5\r\n\r\n", 400,
       "no number"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: +5\r\n\r\n", 400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: -1\r\n\r\n", 400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0x5\r\n\r\n", 400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length:\r\n\r\n", 400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: "
       "18446744073709551616\r\n\r\n",
       400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
       400, "other than chunked"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
       400, "other than chunked"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: identity\r\n\r\n", 400,
       "other than chunked"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: x\r\nTransfer-Encoding: "
       "chunked\r\n\r\n",
       400, "more than one"},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: \x0b"
       "chunked\r\n\r\n",
       400, ""},
      {"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding : chunked\r\n\r\n", 400,
       ""},
      {"POST http://a.test/ HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
       "HTTP/1.0"},
      // What is no request
      {"GET http://a.test/ HTTP/1.1\nHost: a.test\n\n", 400, ""},
      {"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: a\rb\r\n\r\n", 400, ""},
      {"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n",
       400, ""},
      {"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: a" + std::string(1, '\0') + "b\r\n\r\n",
       400, ""},
      {"GET http://a.test/ HTTP/1.1\r\n Host: a.test\r\n\r\n", 400, ""},
      {"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n: x\r\n\r\n", 400, ""},
      {"GET  http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, ""},
      {"GET http://a.test/ x HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, ""},
      {"GET http://a.test/ HTTP/2.0\r\nHost: a.test\r\n\r\n", 400, ""},
      {"GET http://a.test/ HTTP/0.9\r\nHost: a.test\r\n\r\n", 400, ""},
      {"GET http://a.test/\r\n\r\n", 400, ""},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""},
      {"\x16\x03\x01\x02\x01\x01", 400, ""},
  };
  for (const auto& test : cases) {
    const PreparedRequest prepared = PrepareBytes(test.request, ListedHosts());
    EXPECT_EQ(prepared.status, test.status) << test.request << prepared.reason;
    EXPECT_THAT(prepared.reason, HasSubstr(test.reason)) << test.request;
  }
}

// Pieces that parsers disagree about, put together at random: whatever passes is one request for a
// listed host as a strict reader sees it.
TEST(EgressRequestTest, WhatPassesIsOneRequest) {
  const auto seed = std::random_device()();
  std::mt19937 random(seed);
  SCOPED_TRACE(seed);
  const std::vector<std::string> pieces = {"GET ",
                                           "POST ",
                                           "CONNECT ",
                                           "HEAD ",
                                           "http://",
                                           "HTTP://",
                                           "a.test",
                                           "A.TEST",
                                           "evil.test",
                                           "b.test:8080",
                                           ":80",
                                           ":443",
                                           "/",
                                           "?q",
                                           "#",
                                           "@",
                                           "[2606:4700::1111]",
                                           " HTTP/1.1",
                                           " HTTP/1.0",
                                           "\r\n",
                                           "\r\n",
                                           "\r\n",
                                           "\n",
                                           "\r",
                                           "\r\n\r\n",
                                           "Host: ",
                                           "Host: a.test\r\n",
                                           "Connection: ",
                                           "close",
                                           "keep-alive",
                                           ", ",
                                           "Content-Length: ",
                                           "5",
                                           "0",
                                           "Transfer-Encoding: ",
                                           "chunked",
                                           "identity",
                                           "Upgrade: x\r\n",
                                           "TE: x\r\n",
                                           " ",
                                           "\t",
                                           ":",
                                           "x",
                                           std::string(1, '\0'),
                                           "\x80",
                                           "Host",
                                           "Content-Length",
                                           "Expect: 100-continue\r\n"};
  int passed = 0;
  for (int round = 0; round < 30000; ++round) {
    std::string request;
    if (random() % 4 != 0) {
      request = random() % 3 ? "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n"
                             : "POST http://b.test:8080/x HTTP/1.1\r\nHost: b.test:8080\r\n";
    }
    const size_t fixed = request.size();
    for (size_t i = random() % 12; i > 0; --i) request += pieces[random() % pieces.size()];
    if (random() % 3 == 0 && fixed > 0)
      request.insert(random() % fixed, pieces[random() % pieces.size()]);
    if (random() % 2 == 0) request += "\r\n";
    request += "\r\n";
    const PreparedRequest prepared = PrepareBytes(request, ListedHosts());
    EXPECT_EQ(EgressAnswer({400, prepared.reason}, true).find("\r\n\r\n"),
              EgressAnswer({400, prepared.reason}, false).size() - 4);
    if (prepared.status != 0) continue;
    EXPECT_EQ(ListedHosts().RefusesHost(prepared.target.host, prepared.target.port), std::nullopt);
    if (prepared.target.tunnel) continue;
    ++passed;
    EXPECT_EQ(UpstreamComplaint(prepared.header, prepared.target.host, prepared.target.port), "")
        << request << "\n-- became\n"
        << prepared.header;
  }
  EXPECT_GT(passed, 500);
}

TEST(EgressRequestTest, AnswersLoseHopByHopHeaders) {
  EgressResponse response(boost::beast::http::status::ok, 11);
  response.set("Connection", "keep-alive, X-A");
  response.set("X-A", "1");
  response.set("Keep-Alive", "timeout=5");
  response.set("Content-Length", "3");
  response.set("Set-Cookie", "a=b");
  EXPECT_EQ(PrepareEgressResponse(response), std::nullopt);
  std::ostringstream text;
  text << response.base();
  EXPECT_EQ(text.str(),
            "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 3\r\nConnection: close\r\n\r\n");
  response.set("Transfer-Encoding", "gzip");
  EXPECT_EQ(PrepareEgressResponse(response)->status, 502);
  response = EgressResponse(boost::beast::http::status::switching_protocols, 11);
  EXPECT_EQ(PrepareEgressResponse(response)->status, 502);
}

}  // namespace
}  // namespace agentd::sandbox
