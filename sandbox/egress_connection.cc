#include "sandbox/egress_connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>
#include <utility>

#include "base/status.h"

namespace agentd::sandbox {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;
using std::chrono::milliseconds;

constexpr size_t kMaxRequestHeader = 16 * 1024;
constexpr size_t kMaxResponseHeader = 64 * 1024;
// For the client to read the end of an answer before its connection goes: closing one with unread
// bytes resets it, and the answer may be lost.
constexpr milliseconds kDrainTime{2'000};
constexpr size_t kMaxTries = 8;

asio::ip::address ToAsio(const IpAddress& address) {
  if (address.v6) return asio::ip::address_v6(address.bytes);
  asio::ip::address_v4::bytes_type bytes;
  std::copy_n(address.bytes.begin(), bytes.size(), bytes.begin());
  return asio::ip::address_v4(bytes);
}

IpAddress FromAsio(const asio::ip::address& address) {
  IpAddress result;
  result.v6 = address.is_v6();
  if (result.v6) {
    const auto bytes = address.to_v6().to_bytes();
    std::copy(bytes.begin(), bytes.end(), result.bytes.begin());
  } else {
    const auto bytes = address.to_v4().to_bytes();
    std::copy(bytes.begin(), bytes.end(), result.bytes.begin());
  }
  return result;
}

// Asio's own sockets are not close-on-exec, and the daemon starts programs at any time.
ErrorCode OpenUpstream(Tcp::socket& upstream, bool v6) {
  ErrorCode error;
  upstream.close(error);
  UniqueFd fd(socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return {errno, boost::system::system_category()};
  upstream.assign(v6 ? Tcp::v6() : Tcp::v4(), fd.get(), error);
  if (!error) fd.Release();
  return error;
}

void CloseWithReset(Tcp::socket& socket) {
  ErrorCode ignored;
  if (!socket.is_open()) return;
  socket.set_option(asio::socket_base::linger(true, 0), ignored);
  socket.close(ignored);
}

bool IsHttpError(ErrorCode error) {
  return error.category() == http::make_error_code(http::error::bad_chunk).category();
}

}  // namespace

EgressConnection::EgressConnection(Tcp::socket client, std::shared_ptr<EgressConnectionOwner> owner)
    : owner_(std::move(owner)),
      client_(std::move(client)),
      upstream_(client_.get_executor()),
      timer_(client_.get_executor()),
      from_client_(kMaxRequestHeader),
      from_upstream_(kMaxResponseHeader) {
  request_.header_limit(kMaxRequestHeader);
  request_.body_limit(boost::none);
}

void EgressConnection::Start() {
  ErrorCode ignored;
  client_.set_option(Tcp::no_delay(true), ignored);
  ExpireAfter(milliseconds(owner_->limits().request_time_ms));
  http::async_read_header(client_, from_client_, request_,
                          [this, keep = shared_from_this()](ErrorCode error, size_t size) {
                            if (phase_ == Phase::kRequest) OnRequest(error, size);
                          });
}

void EgressConnection::OnRequest(ErrorCode error, size_t header_bytes) {
  if (error == http::error::header_limit || error == http::error::buffer_overflow ||
      (!error && header_bytes > kMaxRequestHeader)) {
    return Refuse(
        {431, fmt::format("the request's header has more than {} bytes", kMaxRequestHeader)});
  }
  if (error && !IsHttpError(error)) return Close();
  if (error == http::error::end_of_stream) return Close();
  if (error) return Refuse({400, "no HTTP/1.1 request: " + error.message()});
  std::optional<EgressRefusal> refusal =
      PrepareEgressRequest(request_.get(), owner_->policy(), &target_);
  decision_.host = target_.host;
  decision_.port = target_.port;
  if (refusal) return Refuse(std::move(*refusal));
  const auto length = request_.content_length();
  const int64_t limit = owner_->limits().max_bytes_up;
  if (length && *length > static_cast<uint64_t>(limit))
    return Refuse({413, fmt::format("the request's body has more than {} bytes", limit)});
  decided_ = true;
  phase_ = Phase::kLookUp;
  connect_deadline_ = Clock::now() + milliseconds(owner_->limits().connect_time_ms);
  ExpireAfter(connect_deadline_ - Clock::now());
  if (const std::optional<IpAddress> literal = IpAddress::Parse(target_.host))
    return OnAddresses(std::vector<IpAddress>{*literal});
  owner_->LookUp(target_.host, weak_from_this(),
                 [this, keep = weak_from_this()](const EgressConnectionOwner::Addresses& found) {
                   const auto self = keep.lock();
                   if (self && phase_ == Phase::kLookUp) OnAddresses(found);
                 });
}

void EgressConnection::OnAddresses(const EgressConnectionOwner::Addresses& addresses) {
  if (!addresses.ok()) return Refuse({502, Text(addresses.status())});
  std::string refused;
  for (const IpAddress& address : *addresses) {
    if (const std::optional<std::string> why = owner_->policy().RefusesAddress(address)) {
      if (refused.size() < 500) refused += (refused.empty() ? "" : "; ") + *why;
    } else if (untried_.size() < kMaxTries) {
      untried_.push_back(address);
    }
  }
  if (untried_.empty()) {
    if (refused.empty()) return Refuse({502, "host " + target_.host + " has no address"});
    return Refuse({403, fmt::format("host {} leads to nothing that may be reached: {}",
                                    target_.host, refused)});
  }
  decision_.allowed = true;
  phase_ = Phase::kConnect;
  TryNextAddress();
}

void EgressConnection::TryNextAddress() {
  const auto left = connect_deadline_ - Clock::now();
  if (untried_.empty() || left <= Clock::duration::zero()) {
    return Refuse(
        {attempt_expired_ ? 504 : 502, fmt::format("no connection to {} port {}: {}", target_.host,
                                                   target_.port, connect_error_)});
  }
  const IpAddress address = untried_.front();
  untried_.pop_front();
  decision_.address = address.ToString();
  // The time is shared out, so that a dead first address leaves some for the next.
  ExpireAfter(left / static_cast<int>(untried_.size() + 1));
  attempt_expired_ = false;
  if (const ErrorCode error = OpenUpstream(upstream_, address.v6)) {
    connect_error_ = decision_.address + ": " + error.message();
    return TryNextAddress();  // at most kMaxTries deep
  }
  upstream_.async_connect({ToAsio(address), target_.port},
                          [this, address, keep = shared_from_this()](ErrorCode error) {
                            if (phase_ == Phase::kConnect) OnConnected(error, address);
                          });
}

void EgressConnection::OnConnected(ErrorCode error, const IpAddress& wanted) {
  if (attempt_expired_) error = asio::error::timed_out;
  Tcp::endpoint peer;
  if (!error) peer = upstream_.remote_endpoint(error);
  if (error) {
    connect_error_ = decision_.address + ": " + error.message();
    return TryNextAddress();
  }
  const IpAddress reached = FromAsio(peer.address());
  std::optional<std::string> why = owner_->policy().RefusesAddress(reached);
  if (!(reached == wanted)) why = "connected to " + reached.ToString();
  if (why) {
    decision_.allowed = false;
    return Refuse({403, fmt::format("host {}: {}", target_.host, *why)});
  }
  ErrorCode ignored;
  upstream_.set_option(Tcp::no_delay(true), ignored);
  phase_ = Phase::kRelay;
  last_moved_ = Clock::now();
  ExpireAfter(milliseconds(owner_->limits().idle_time_ms));
  if (target_.tunnel) {
    StartTunnel();
  } else {
    StartMessages();
  }
}

void EgressConnection::StartTunnel() {
  own_answer_ = "HTTP/1.1 200 Connection established\r\n\r\n";
  asio::async_write(
      client_, asio::buffer(own_answer_),
      [this, keep = shared_from_this()](ErrorCode error, size_t) {
        if (phase_ != Phase::kRelay) return;
        if (error) return Abort("the client: " + error.message());
        open_ways_ = 2;
        tunnel_up_ = std::make_unique<TunnelRelay>(client_, upstream_, EgressWay::kUp, *this);
        tunnel_down_ = std::make_unique<TunnelRelay>(upstream_, client_, EgressWay::kDown, *this);
        tunnel_up_->Start(from_client_.data());
        tunnel_down_->Start({});
      });
}

void EgressConnection::StartMessages() {
  upload_ = std::make_unique<MessageRelay<true>>(client_, from_client_, request_, upstream_,
                                                 EgressWay::kUp, *this);
  upload_->Start();
  ReadResponse();
}

void EgressConnection::ReadResponse() {
  interim_.reset();
  response_.emplace();
  response_->header_limit(kMaxResponseHeader);
  response_->body_limit(boost::none);
  if (request_.get().method() == http::verb::head) response_->skip(true);
  http::async_read_header(upstream_, from_upstream_, *response_,
                          [this, keep = shared_from_this()](ErrorCode error, size_t) {
                            if (phase_ == Phase::kRelay) OnResponse(error);
                          });
}

void EgressConnection::OnResponse(ErrorCode error) {
  if (error)
    return Refuse({502, fmt::format("no whole answer from {}: {}", target_.host, error.message())});
  if (std::optional<EgressRefusal> refusal = PrepareEgressResponse(response_->get()))
    return Refuse(std::move(*refusal));
  if (response_->get().result_int() < 200) return PassInterimResponse();
  answering_ = true;
  download_ = std::make_unique<MessageRelay<false>>(upstream_, from_upstream_, *response_, client_,
                                                    EgressWay::kDown, *this);
  download_->Start();
}

void EgressConnection::PassInterimResponse() {
  if (request_.get().version() < 11) return ReadResponse();  // HTTP/1.0 knows none
  interim_.emplace(response_->get());
  http::async_write_header(client_, *interim_,
                           [this, keep = shared_from_this()](ErrorCode error, size_t size) {
                             if (phase_ != Phase::kRelay) return;
                             Moved(EgressWay::kDown, size);
                             if (phase_ != Phase::kRelay) return;
                             if (error) return Abort("the client: " + error.message());
                             ReadResponse();
                           });
}

void EgressConnection::Moved(EgressWay way, size_t bytes) {
  last_moved_ = Clock::now();
  const bool up = way == EgressWay::kUp;
  (up ? decision_.bytes_up : decision_.bytes_down) += static_cast<int64_t>(bytes);
  if (owner_->Count(way, bytes)) return;
  const EgressLimits& limits = owner_->limits();
  std::string reason =
      fmt::format("the call's limit of {} bytes {} is passed",
                  up ? limits.max_bytes_up : limits.max_bytes_down, up ? "up" : "down");
  if (up && !target_.tunnel && !answering_) return Refuse({413, std::move(reason)});
  Abort(std::move(reason));
}

void EgressConnection::Ended(EgressWay way, EgressEnd end, ErrorCode error) {
  if (target_.tunnel) {
    if (end != EgressEnd::kDone) return Abort("the tunnel: " + error.message());
    if (--open_ways_ == 0) Close();
    return;
  }
  if (way == EgressWay::kDown) {
    if (end == EgressEnd::kDone) return Drain();
    return Abort((end == EgressEnd::kReadFailed ? "the host's answer: " : "the client: ") +
                 error.message());
  }
  // A host that takes no more of a request may have answered it: the answer tells.
  if (end != EgressEnd::kReadFailed) return;
  if (IsHttpError(error) && !answering_)
    return Refuse({400, "the request's body: " + error.message()});
  Abort("the client: " + error.message());
}

void EgressConnection::StopRelays() {
  if (upload_) upload_->Stop();
  if (download_) download_->Stop();
  if (tunnel_up_) tunnel_up_->Stop();
  if (tunnel_down_) tunnel_down_->Stop();
  ErrorCode ignored;
  client_.cancel(ignored);
}

void EgressConnection::Refuse(EgressRefusal refusal) {
  own_answer_ = EgressAnswer(refusal, request_.get().method() != http::verb::head);
  decided_ = true;
  decision_.reason = std::move(refusal.reason);
  phase_ = Phase::kAnswer;
  StopRelays();
  CloseWithReset(upstream_);
  Report();
  ExpireAfter(milliseconds(owner_->limits().request_time_ms));
  asio::async_write(client_, asio::buffer(own_answer_),
                    [this, keep = shared_from_this()](ErrorCode error, size_t) {
                      if (phase_ != Phase::kAnswer) return;
                      if (error) return Close();
                      Drain();
                    });
}

// What the client still sends is read and dropped until it closes.
void EgressConnection::Drain() {
  ErrorCode ignored;
  phase_ = Phase::kAnswer;
  StopRelays();
  upstream_.close(ignored);
  client_.shutdown(Tcp::socket::shutdown_send, ignored);
  ExpireAfter(kDrainTime);
  DrainMore();
}

void EgressConnection::DrainMore() {
  client_.async_read_some(asio::buffer(drained_),
                          [this, keep = shared_from_this()](ErrorCode error, size_t) {
                            if (phase_ != Phase::kAnswer) return;
                            if (error) return Close();
                            DrainMore();
                          });
}

void EgressConnection::Report() {
  if (!decided_ || reported_) return;
  reported_ = true;
  owner_->Decided(decision_);
}

void EgressConnection::Abort(std::string reason) {
  if (phase_ == Phase::kClosed) return;
  decision_.reason = std::move(reason);
  CloseWithReset(client_);
  CloseWithReset(upstream_);
  Close();
}

void EgressConnection::Close() {
  if (phase_ == Phase::kClosed) return;
  StopRelays();
  phase_ = Phase::kClosed;
  ErrorCode ignored;
  timer_.cancel();
  client_.close(ignored);
  upstream_.close(ignored);
  Report();
  owner_->Closed(this);
}

void EgressConnection::ExpireAfter(Clock::duration time) {
  timer_.expires_after(time);
  timer_.async_wait([this, keep = shared_from_this()](ErrorCode error) {
    // Without an error it may still be an earlier wait's end, queued before the time was set anew.
    if (error || phase_ == Phase::kClosed || Clock::now() < timer_.expiry()) return;
    OnExpired();
  });
}

void EgressConnection::OnExpired() {
  const EgressLimits& limits = owner_->limits();
  ErrorCode ignored;
  switch (phase_) {
    case Phase::kRequest:
      if (!request_.got_some() && from_client_.size() == 0) return Close();
      return Refuse(
          {408, fmt::format("no whole request header within {} ms", limits.request_time_ms)});
    case Phase::kLookUp:
      return Refuse({504, fmt::format("the look-up of {} took more than {} ms", target_.host,
                                      limits.connect_time_ms)});
    case Phase::kConnect:
      attempt_expired_ = true;
      upstream_.close(ignored);  // ends the attempt
      return;
    case Phase::kRelay: {
      const auto idle = Clock::now() - last_moved_;
      const milliseconds limit(limits.idle_time_ms);
      if (idle < limit) return ExpireAfter(limit - idle);
      std::string reason = fmt::format("nothing moved for {} ms", limits.idle_time_ms);
      if (!target_.tunnel && !answering_) return Refuse({504, std::move(reason)});
      return Abort(std::move(reason));
    }
    case Phase::kAnswer:
      return Close();
    case Phase::kClosed:
      return;
  }
}

}  // namespace agentd::sandbox
