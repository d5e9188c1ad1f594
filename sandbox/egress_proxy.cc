#include "sandbox/egress_proxy.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cstring>
#include <deque>
#include <future>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/status.h"
#include "sandbox/egress_connection.h"

namespace agentd::sandbox {
namespace {

namespace asio = boost::asio;
using EgressTcp = asio::ip::tcp;

// getaddrinfo blocks for as long as a name server is silent; a few names must not hold up the rest.
constexpr size_t kLookUpThreads = 8;
// A call that finds a slow name server must not hold up the other calls' look-ups.
constexpr size_t kLookUpsPerListener = 2;
// Out of descriptors: some time for others to close theirs.
constexpr std::chrono::milliseconds kAcceptPause{100};

// What the proxy lends its listeners; it outlives them.
struct EgressEngine {
  explicit EgressEngine(EgressResolver with) : resolver(std::move(with)) {}

  const EgressResolver resolver;
  asio::io_context io{1};
  asio::thread_pool look_ups{kLookUpThreads};
  std::atomic<int> listeners{0};
};

class EgressListener : public EgressConnectionOwner,
                       public std::enable_shared_from_this<EgressListener> {
 public:
  EgressListener(EgressEngine* engine, EgressTcp protocol, EgressTcp::acceptor acceptor,
                 EgressPolicy policy, EgressLimits limits,
                 std::function<void(const EgressDecision&)> on_decision)
      : engine_(engine),
        policy_(std::move(policy)),
        limits_(limits),
        on_decision_(std::move(on_decision)),
        protocol_(protocol),
        acceptor_(std::move(acceptor)),
        pause_(engine->io) {}

  // The rest on the io thread.
  void Accept();
  void Stop();

  const EgressPolicy& policy() const override { return policy_; }
  const EgressLimits& limits() const override { return limits_; }
  void LookUp(const std::string& host, std::weak_ptr<void> wanted,
              std::function<void(Addresses)> done) override;
  bool Count(EgressWay way, size_t bytes) override;
  void Decided(const EgressDecision& decision) override;
  void Closed(EgressConnection* connection) override;

  EgressUsage usage() const {  // any thread
    return {connections_accepted_, refused_, bytes_up_, bytes_down_};
  }

 private:
  void AcceptAll();
  void StartLookUps();
  // True when no more connections may be open.
  bool Full() const {
    return connections_.size() >= static_cast<size_t>(std::max(1, limits_.max_connections));
  }

  struct WaitingLookUp {
    std::string host;
    std::weak_ptr<void> wanted;
    std::function<void(Addresses)> done;
  };

  EgressEngine* const engine_;
  const EgressPolicy policy_;
  const EgressLimits limits_;
  const std::function<void(const EgressDecision&)> on_decision_;
  const EgressTcp protocol_;
  EgressTcp::acceptor acceptor_;
  asio::steady_timer pause_;
  bool waiting_ = false;  // for the acceptor or the pause
  bool stopped_ = false;
  std::deque<WaitingLookUp> waiting_look_ups_;
  size_t look_ups_ = 0;  // under way
  std::unordered_map<EgressConnection*, std::shared_ptr<EgressConnection>> connections_;
  std::atomic<int64_t> connections_accepted_{0}, refused_{0}, bytes_up_{0}, bytes_down_{0};
};

void EgressListener::Accept() {
  if (stopped_ || waiting_ || Full()) return;
  waiting_ = true;
  acceptor_.async_wait(EgressTcp::acceptor::wait_read,
                       [this, keep = shared_from_this()](boost::system::error_code error) {
                         waiting_ = false;
                         if (stopped_ || error) return;
                         AcceptAll();
                       });
}

void EgressListener::AcceptAll() {
  while (!Full()) {
    // Asio's accept has no close-on-exec.
    UniqueFd fd(accept4(acceptor_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EAGAIN) break;
      waiting_ = true;
      pause_.expires_after(kAcceptPause);
      pause_.async_wait([this, keep = shared_from_this()](boost::system::error_code) {
        waiting_ = false;
        Accept();
      });
      return;
    }
    EgressTcp::socket client(engine_->io);
    boost::system::error_code error;
    client.assign(protocol_, fd.get(), error);
    if (error) continue;
    fd.Release();
    ++connections_accepted_;
    auto connection = std::make_shared<EgressConnection>(std::move(client), shared_from_this());
    connections_.emplace(connection.get(), connection);
    connection->Start();
  }
  Accept();
}

void EgressListener::Stop() {
  stopped_ = true;
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  pause_.cancel();
  waiting_look_ups_.clear();
  const auto open = std::exchange(connections_, {});
  for (const auto& [pointer, connection] : open) connection->Abort("the call has ended");
}

void EgressListener::LookUp(const std::string& host, std::weak_ptr<void> wanted,
                            std::function<void(Addresses)> done) {
  waiting_look_ups_.push_back({host, std::move(wanted), std::move(done)});
  StartLookUps();
}

void EgressListener::StartLookUps() {
  while (!waiting_look_ups_.empty() && look_ups_ < kLookUpsPerListener) {
    WaitingLookUp next = std::move(waiting_look_ups_.front());
    waiting_look_ups_.pop_front();
    if (next.wanted.expired()) continue;
    ++look_ups_;
    asio::post(engine_->look_ups, [keep = shared_from_this(), this, next = std::move(next)] {
      Addresses addresses = engine_->resolver(next.host);
      asio::post(engine_->io, [keep, this, done = next.done, addresses = std::move(addresses)] {
        --look_ups_;
        done(addresses);
        StartLookUps();
      });
    });
  }
}

bool EgressListener::Count(EgressWay way, size_t bytes) {
  std::atomic<int64_t>& sum = way == EgressWay::kUp ? bytes_up_ : bytes_down_;
  sum += static_cast<int64_t>(bytes);
  return sum <= (way == EgressWay::kUp ? limits_.max_bytes_up : limits_.max_bytes_down);
}

void EgressListener::Decided(const EgressDecision& decision) {
  if (!decision.allowed) ++refused_;
  if (on_decision_) on_decision_(decision);
}

void EgressListener::Closed(EgressConnection* connection) {
  connections_.erase(connection);
  Accept();
}

// Runs `work` on the io thread and waits for it.
void RunOn(asio::io_context& io, std::function<void()> work) {
  std::packaged_task<void()> task(std::move(work));
  std::future<void> done = task.get_future();
  asio::post(io, std::move(task));
  done.get();
}

class ServedListener : public EgressHandle {
 public:
  ServedListener(EgressEngine* engine, std::shared_ptr<EgressListener> listener)
      : engine_(engine), listener_(std::move(listener)) {
    ++engine_->listeners;
  }
  ~ServedListener() override {
    // On the io thread it would wait for itself.
    AGENTD_CHECK(!engine_->io.get_executor().running_in_this_thread());
    RunOn(engine_->io, [this] { listener_->Stop(); });
    --engine_->listeners;
  }
  EgressUsage usage() const override { return listener_->usage(); }

 private:
  EgressEngine* const engine_;
  const std::shared_ptr<EgressListener> listener_;  // also held by its connections' operations
};

absl::StatusOr<EgressTcp> ListenerProtocol(int fd) {
  auto option = [fd](int name) {
    int value = 0;
    socklen_t size = sizeof(value);
    return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
  };
  const int domain = option(SO_DOMAIN);
  if ((domain != AF_INET && domain != AF_INET6) || option(SO_TYPE) != SOCK_STREAM ||
      option(SO_PROTOCOL) != IPPROTO_TCP || option(SO_ACCEPTCONN) != 1)
    return InvalidArgument("egress proxy: descriptor {} is no listening TCP socket", fd);
  return domain == AF_INET6 ? EgressTcp::v6() : EgressTcp::v4();
}

class ProxyImpl : public EgressProxy {
 public:
  explicit ProxyImpl(EgressResolver resolver)
      : engine_(std::move(resolver)), work_(asio::make_work_guard(engine_.io)) {
    thread_ = std::thread([this] { engine_.io.run(); });
  }
  ~ProxyImpl() override {
    AGENTD_CHECK(engine_.listeners == 0);
    engine_.look_ups.stop();
    engine_.look_ups.join();
    work_.reset();
    thread_.join();  // after the operations that the last handles cancelled
  }

  absl::StatusOr<std::unique_ptr<EgressHandle>> Serve(
      UniqueFd listener, EgressPolicy policy, EgressLimits limits,
      std::function<void(const EgressDecision&)> on_decision) override {
    ASSIGN_OR_RETURN(const EgressTcp protocol, ListenerProtocol(listener.get()));
    const int flags = fcntl(listener.get(), F_GETFL);
    if (flags < 0 || fcntl(listener.get(), F_SETFL, flags | O_NONBLOCK) != 0 ||
        fcntl(listener.get(), F_SETFD, FD_CLOEXEC) != 0)
      return ErrnoError(errno, "egress proxy: fcntl");
    EgressTcp::acceptor acceptor(engine_.io);
    boost::system::error_code error;
    acceptor.assign(protocol, listener.get(), error);
    if (error) return Internal("egress proxy: {}", error.message());
    listener.Release();
    auto served = std::make_shared<EgressListener>(
        &engine_, protocol, std::move(acceptor), std::move(policy), limits, std::move(on_decision));
    asio::post(engine_.io, [served] { served->Accept(); });
    return std::make_unique<ServedListener>(&engine_, std::move(served));
  }

 private:
  EgressEngine engine_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::vector<IpAddress>> ResolveHost(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(host.c_str(), nullptr, &hints, &list);
  if (error != 0) {
    const std::string why = error == EAI_SYSTEM ? std::system_category().message(errno)
                                                : std::string(gai_strerror(error));
    return NotFound("look-up of {}: {}", host, why);
  }
  std::vector<IpAddress> addresses;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    IpAddress address;
    if (entry->ai_family == AF_INET) {
      std::memcpy(address.bytes.data(),
                  &reinterpret_cast<const sockaddr_in*>(entry->ai_addr)->sin_addr, 4);
    } else if (entry->ai_family == AF_INET6) {
      address.v6 = true;
      std::memcpy(address.bytes.data(),
                  &reinterpret_cast<const sockaddr_in6*>(entry->ai_addr)->sin6_addr, 16);
    } else {
      continue;
    }
    addresses.push_back(address);
  }
  freeaddrinfo(list);
  return addresses;
}

absl::StatusOr<std::unique_ptr<EgressProxy>> EgressProxy::Create(EgressResolver resolver) {
  return std::make_unique<ProxyImpl>(std::move(resolver));
}

}  // namespace agentd::sandbox
