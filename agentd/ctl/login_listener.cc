#include "agentd/ctl/login_listener.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/status.h"

namespace agentd::ctl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kPath[] = "/callback";
constexpr size_t kMaxRequestBytes = 16 << 10;
constexpr int kRequestMs = 2'000;  // for a browser to send its request
constexpr char kDone[] =
    "<!doctype html><title>agentd</title><p>agentd has the answer. You can close this page and go "
    "back to the terminal.";

int LeftMs(Clock::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
  return static_cast<int>(std::max<int64_t>(left.count(), 0));
}

// The first line of a request; empty if none comes.
std::string RequestLine(int connection) {
  std::string text;
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(kRequestMs);
  while (text.size() < kMaxRequestBytes && text.find("\r\n\r\n") == std::string::npos) {
    pollfd readable{connection, POLLIN, 0};
    if (poll(&readable, 1, LeftMs(end)) <= 0) return "";
    std::array<char, 4096> bytes;
    const ssize_t size = recv(connection, bytes.data(), bytes.size(), 0);
    if (size <= 0) return "";
    text.append(bytes.data(), static_cast<size_t>(size));
  }
  return text.substr(0, text.find("\r\n"));
}

void SendPage(int connection, const char* status, std::string_view body) {
  const std::string text = fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n"
      "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n{}",
      status, body.size(), body);
  (void)send(connection, text.data(), text.size(), MSG_NOSIGNAL);
}

}  // namespace

absl::StatusOr<LoginListener> LoginListener::Open(uint16_t port) {
  UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.valid()) return ErrnoError(errno, "socket");
  const int on = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener.get(), 4) != 0)
    return ErrnoError(errno, fmt::format("listen on port {} of 127.0.0.1", port));
  socklen_t size = sizeof(address);
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return ErrnoError(errno, "getsockname");
  return LoginListener(std::move(listener),
                       fmt::format("http://127.0.0.1:{}{}", ntohs(address.sin_port), kPath));
}

absl::StatusOr<std::string> LoginListener::Wait(const std::string& state, int seconds) {
  const Clock::time_point end = Clock::now() + std::chrono::seconds(seconds);
  while (Clock::now() < end) {
    std::array<pollfd, 2> polled = {pollfd{listener_.get(), POLLIN, 0},
                                    pollfd{input_open_ ? STDIN_FILENO : -1, POLLIN, 0}};
    if (poll(polled.data(), polled.size(), LeftMs(end)) <= 0) continue;
    if (polled[0].revents != 0) {
      if (std::optional<std::string> url = Serve(state)) return *std::move(url);
    }
    if (polled[1].revents == 0) continue;
    char c = 0;
    input_open_ = read(STDIN_FILENO, &c, 1) == 1;
    if (input_open_ && c != '\n') {
      if (typed_.size() < kMaxRequestBytes) typed_ += c;
      continue;
    }
    const std::string line = std::exchange(typed_, "");
    if (QueryValue(line, "state") == state) return line;
  }
  return Error(absl::StatusCode::kDeadlineExceeded, "nobody finished the login within {} minutes",
               seconds / 60);
}

// Answers one request; the address if it is the one that is waited for.
std::optional<std::string> LoginListener::Serve(const std::string& state) const {
  const UniqueFd connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!connection.valid()) return std::nullopt;
  const std::string line = RequestLine(connection.get());
  const std::string begin = fmt::format("GET {}?", kPath);
  const std::string target = line.starts_with(begin) ? line.substr(4, line.find(' ', 4) - 4) : "";
  if (QueryValue(target, "state") != state) {
    SendPage(connection.get(), "404 Not Found", "");
    return std::nullopt;
  }
  SendPage(connection.get(), "200 OK", kDone);
  return redirect_uri_ + target.substr(sizeof(kPath) - 1);
}

std::string QueryValue(std::string_view url, std::string_view name) {
  const size_t question = url.find('?');
  if (question == std::string_view::npos) return "";
  std::string_view query = url.substr(question + 1);
  query = query.substr(0, query.find('#'));
  while (!query.empty()) {
    const std::string_view field = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), field.size() + 1));
    const size_t equals = field.find('=');
    if (equals != std::string_view::npos && field.substr(0, equals) == name)
      return std::string(field.substr(equals + 1));
  }
  return "";
}

}  // namespace agentd::ctl
