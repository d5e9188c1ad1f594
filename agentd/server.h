// The gRPC server on the daemon's socket: API, health, reflection.
#ifndef AGENTD_AGENTD_SERVER_H_
#define AGENTD_AGENTD_SERVER_H_

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>

#include <boost/asio/thread_pool.hpp>
#include <filesystem>
#include <memory>

#include "absl/status/statusor.h"
#include "agentd/daemon.h"
#include "agentd/service.h"
#include "agentd/unix_listener.h"

namespace agentd::daemon {

struct ServerOptions {
  int pool_threads = 8;  // run the calls; each may wait for the disk
  // Bundles, diffs and backups. Each may wait for its client for as long as somebody reads it in a
  // pager: so many that those who stopped reading are in nobody's way.
  int transfer_threads = 32;
  int max_message_bytes = 5 << 20;  // longer prompts come in chunks
  ServiceOptions service;
};

class Server {
 public:
  // `listener` is bound already: a second daemon fails before it loads a model. `daemon` outlives
  // the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(Daemon* daemon,
                                                       std::unique_ptr<UnixListener> listener,
                                                       ServerOptions options);
  // Ends all calls, then the pool.
  ~Server();

  // New connections are refused and open streams end, with `grace` for what is under way.
  void Stop(std::chrono::milliseconds grace);

 private:
  explicit Server(Daemon* daemon, std::unique_ptr<UnixListener> listener, ServerOptions options);

  std::unique_ptr<UnixListener> listener_;
  boost::asio::thread_pool pool_, transfers_;
  AgentdService service_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SERVER_H_
