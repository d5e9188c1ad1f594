// One client of the proxy, from accept to close. Internal to the proxy; all on its io thread.
#ifndef AGENTD_SANDBOX_EGRESS_CONNECTION_H_
#define AGENTD_SANDBOX_EGRESS_CONNECTION_H_

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/serializer.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sandbox/egress_policy.h"
#include "sandbox/egress_proxy.h"
#include "sandbox/egress_relay.h"
#include "sandbox/egress_request.h"

namespace agentd::sandbox {

class EgressConnection;

// The listener, as its connections see it.
class EgressConnectionOwner {
 public:
  using Addresses = absl::StatusOr<std::vector<IpAddress>>;
  virtual ~EgressConnectionOwner() = default;
  virtual const EgressPolicy& policy() const = 0;
  virtual const EgressLimits& limits() const = 0;
  // `done` runs on the io thread; not at all when `wanted` is gone before the look-up begins.
  virtual void LookUp(const std::string& host, std::weak_ptr<void> wanted,
                      std::function<void(Addresses)> done) = 0;
  // Adds to the sums of all connections; false when a limit is passed.
  virtual bool Count(EgressWay way, size_t bytes) = 0;
  virtual void Decided(const EgressDecision& decision) = 0;
  virtual void Closed(EgressConnection* connection) = 0;
};

class EgressConnection : public EgressRelayOwner,
                         public std::enable_shared_from_this<EgressConnection> {
 public:
  EgressConnection(boost::asio::ip::tcp::socket client,
                   std::shared_ptr<EgressConnectionOwner> owner);
  void Start();
  // Closes both sides; a peer that has not had everything sees a reset, no end of file. Reports, if
  // that was not done yet.
  void Abort(std::string reason);

  std::shared_ptr<void> KeepAlive() override { return shared_from_this(); }
  void Moved(EgressWay way, size_t bytes) override;
  void Ended(EgressWay way, EgressEnd end, boost::system::error_code error) override;

 private:
  // Each has its own deadline; the handlers of an earlier phase find another one and return.
  enum class Phase { kRequest, kLookUp, kConnect, kRelay, kAnswer, kClosed };
  using Clock = std::chrono::steady_clock;

  void OnRequest(boost::system::error_code error, size_t header_bytes);
  void OnAddresses(const EgressConnectionOwner::Addresses& addresses);
  void TryNextAddress();
  void OnConnected(boost::system::error_code error, const IpAddress& wanted);
  void StartTunnel();
  void StartMessages();
  void ReadResponse();
  void OnResponse(boost::system::error_code error);
  void PassInterimResponse();

  void Refuse(EgressRefusal refusal);
  void Drain();
  void DrainMore();
  void StopRelays();
  void Report();
  void Close();
  void ExpireAfter(Clock::duration time);
  void OnExpired();

  const std::shared_ptr<EgressConnectionOwner> owner_;
  boost::asio::ip::tcp::socket client_;
  boost::asio::ip::tcp::socket upstream_;
  boost::asio::steady_timer timer_;
  Phase phase_ = Phase::kRequest;

  boost::beast::flat_buffer from_client_;
  boost::beast::flat_buffer from_upstream_;
  boost::beast::http::request_parser<boost::beast::http::buffer_body> request_;
  // Anew for each interim answer.
  std::optional<boost::beast::http::response_parser<boost::beast::http::buffer_body>> response_;
  std::optional<boost::beast::http::response_serializer<boost::beast::http::buffer_body>> interim_;
  std::unique_ptr<MessageRelay<true>> upload_;
  std::unique_ptr<MessageRelay<false>> download_;
  std::unique_ptr<TunnelRelay> tunnel_up_;
  std::unique_ptr<TunnelRelay> tunnel_down_;
  int open_ways_ = 0;       // of the tunnel
  bool answering_ = false;  // the upstream's answer has begun to go to the client
  std::string own_answer_;  // being written
  std::array<char, 4096> drained_;

  EgressTarget target_;
  std::deque<IpAddress> untried_;
  std::string connect_error_;
  bool attempt_expired_ = false;
  Clock::time_point connect_deadline_;
  Clock::time_point last_moved_;

  EgressDecision decision_;
  bool decided_ = false;  // there is a decision to report
  bool reported_ = false;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_CONNECTION_H_
