#include "tools/mcp/stdio_transport.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "base/status.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

using Clock = std::chrono::steady_clock;

// How often who waits looks whether waiting is over.
constexpr int kLookMs = 20;
// A message that nobody waits for, and which the server does not read, is given up after this.
constexpr int64_t kWriteMs = 5'000;
// How long a server may take to end after its input was closed.
constexpr int64_t kEndMs = 1'000;
constexpr int kReaperMs = 500;
constexpr size_t kKeptErrorBytes = 2'048;
constexpr size_t kShownNoiseBytes = 200;
// Some servers print a banner where only messages belong; one that goes on like that is broken.
constexpr int64_t kMaxNoiseBytes = 64 << 10;

void SetNonBlocking(int fd) {
  if (fd >= 0) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

std::string Beginning(std::string_view text, size_t bytes) {
  return CleanUtf8(text.size() > bytes ? std::string(text.substr(0, bytes)) + "..."
                                       : std::string(text));
}

}  // namespace

StdioTransport::StdioTransport(std::unique_ptr<StdioPeer> peer)
    : peer_(std::move(peer)), wake_(eventfd(0, EFD_CLOEXEC)) {
  AGENTD_CHECK(wake_.valid());
  SetNonBlocking(peer_->input());
  SetNonBlocking(peer_->output());
  SetNonBlocking(peer_->error());
}

StdioTransport::~StdioTransport() {
  Finish();
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(kEndMs);
  while (reader_.joinable() && !done_ && Clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  peer_->Kill();
  const uint64_t one = 1;
  AGENTD_CHECK(write(wake_.get(), &one, sizeof(one)) == sizeof(one));
  if (reader_.joinable()) reader_.join();
}

void StdioTransport::Start(Receiver receiver) {
  receiver_ = std::move(receiver);
  reader_ = std::thread([this] { ReadLoop(); });
}

void StdioTransport::Finish() {
  const std::lock_guard lock(write_mutex_);
  if (std::exchange(input_open_, false)) peer_->CloseInput();
}

absl::Status StdioTransport::Health() const {
  const std::lock_guard lock(mutex_);
  return why_dead_.empty() ? absl::OkStatus() : absl::UnavailableError(why_dead_);
}

std::string StdioTransport::Clues() const {
  const std::lock_guard lock(mutex_);
  std::string clues;
  if (!first_noise_.empty())
    clues = fmt::format("its output held {} bytes that are no messages, first: {}", noise_bytes_,
                        first_noise_);
  const std::string error(Trimmed(CleanUtf8(error_tail_)));
  if (!error.empty())
    clues += fmt::format("{}its standard error ends: {}", clues.empty() ? "" : "; ", error);
  return clues;
}

void StdioTransport::Die(const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    if (why_dead_.empty()) why_dead_ = why;
  }
  peer_->Kill();
}

absl::Status StdioTransport::Send(const Outgoing& message, Waiter* waiter) {
  RETURN_IF_ERROR(Write(message.text + "\n", waiter));
  if (waiter == nullptr) return absl::OkStatus();
  while (!waiter->Ended()) {
    // Looked at before Ended is asked again: the answer may have been the last thing it wrote.
    const absl::Status health = Health();
    if (!health.ok() && done_) return waiter->Ended() ? absl::OkStatus() : health;
    waiter->WaitFor(kLookMs);
  }
  return absl::OkStatus();
}

absl::Status StdioTransport::Write(const std::string& line, Waiter* waiter) {
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(kWriteMs);
  auto over = [&] { return waiter != nullptr ? waiter->Ended() : Clock::now() >= end; };
  std::unique_lock lock(write_mutex_, std::defer_lock);
  while (!lock.try_lock()) {
    if (over()) return waiter != nullptr ? absl::OkStatus() : absl::UnavailableError("it is busy");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  RETURN_IF_ERROR(Health());
  if (!input_open_) return absl::UnavailableError("it was told to end");
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t n = write(peer_->input(), line.data() + sent, line.size() - sent);
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      // Half a message cannot be taken back: the next one would be read as its rest.
      if (sent > 0 && over()) Die("it did not read a message to its end");
      if (over())
        return waiter != nullptr ? absl::OkStatus() : absl::UnavailableError("it reads nothing");
      RETURN_IF_ERROR(Health());
      pollfd wait = {.fd = peer_->input(), .events = POLLOUT, .revents = 0};
      poll(&wait, 1, kLookMs);
    } else if (errno != EINTR) {
      // Most often it has ended, and the reader is about to find out how.
      for (int i = 0; errno == EPIPE && !done_ && i < kReaperMs; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      Die("it does not read its input");
      return Health();
    }
  }
  return absl::OkStatus();
}

void StdioTransport::ReadLoop() {
  bool error_open = peer_->error() >= 0;
  bool output_open = true;
  while (output_open) {
    std::array<pollfd, 3> wait = {{{wake_.get(), POLLIN, 0},
                                   {peer_->output(), POLLIN, 0},
                                   {error_open ? peer_->error() : -1, POLLIN, 0}}};
    if (poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR) break;
    if (wait[0].revents != 0) break;
    if (wait[2].revents != 0) error_open = ReadError();
    if (wait[1].revents != 0) output_open = ReadOutput();
  }
  // What it wrote last says why.
  if (error_open) ReadError();
  std::string how = peer_->HowItEnded();
  Die(how.empty() ? "it closed its output" : fmt::format("it ended ({})", how));
  done_ = true;
}

bool StdioTransport::ReadOutput() {
  std::array<char, 65536> buffer;
  const ssize_t n = read(peer_->output(), buffer.data(), buffer.size());
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  std::string_view rest(buffer.data(), static_cast<size_t>(n));
  for (size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
    line_ += rest.substr(0, end);
    rest.remove_prefix(end + 1);
    Line(std::exchange(line_, ""));
  }
  line_ += rest;
  if (line_.size() <= kMaxMessageBytes) return Health().ok();
  Die(fmt::format("it wrote a line of more than {} bytes", kMaxMessageBytes));
  return false;
}

bool StdioTransport::ReadError() {
  std::array<char, 16384> buffer;
  const ssize_t n = read(peer_->error(), buffer.data(), buffer.size());
  if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EINTR);
  const std::lock_guard lock(mutex_);
  error_tail_.append(buffer.data(), static_cast<size_t>(n));
  if (error_tail_.size() > kKeptErrorBytes)
    error_tail_.erase(0, error_tail_.size() - kKeptErrorBytes);
  return true;
}

void StdioTransport::Line(std::string_view line) {
  const std::string_view text = Trimmed(line);
  if (text.empty()) return;
  absl::StatusOr<Message> message = ParseMessage(text);
  if (message.ok()) {
    receiver_(*std::move(message), text);
    return;
  }
  bool broken = false;
  {
    const std::lock_guard lock(mutex_);
    if (first_noise_.empty()) first_noise_ = Beginning(text, kShownNoiseBytes);
    noise_bytes_ += static_cast<int64_t>(text.size());
    broken = noise_bytes_ > kMaxNoiseBytes;
  }
  if (broken) Die("it writes what is no JSON-RPC message to its output");
}

}  // namespace agentd::tools::mcp
