#include "agentd/server.h"

#include <grpcpp/health_check_service_interface.h>

#include <mutex>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {

Server::Server(Daemon* daemon, std::unique_ptr<UnixListener> listener, ServerOptions options)
    : listener_(std::move(listener)),
      pool_(static_cast<size_t>(options.pool_threads)),
      transfers_(static_cast<size_t>(options.transfer_threads)),
      service_(daemon, &pool_, &transfers_, options.service) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(Daemon* daemon,
                                                      std::unique_ptr<UnixListener> listener,
                                                      ServerOptions options) {
  static std::once_flag plugins;  // both are switches of the whole process, before any builder
  std::call_once(plugins, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
  std::unique_ptr<Server> server(new Server(daemon, std::move(listener), options));
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.RegisterService(&server->service_);
  // The peer was checked by its user id when it connected; there is nothing to encrypt.
  server->acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  server->server_ = builder.BuildAndStart();
  if (!server->server_) return Internal("gRPC did not start");
  grpc::HealthCheckServiceInterface* health = server->server_->GetHealthCheckService();
  health->SetServingStatus(v1::Agentd::service_full_name(), true);
  RETURN_IF_ERROR(server->listener_->Start([acceptor = server->acceptor_.get()](UniqueFd peer) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
    parameters.listener_fd = -1;
    parameters.fd = peer.Release();  // gRPC closes it
    acceptor->HandleNewConnection(&parameters);
  }));
  return server;
}

void Server::Stop(std::chrono::milliseconds grace) {
  if (!server_) return;
  listener_->Stop();
  if (grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService()) {
    health->SetServingStatus(false);
  }
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_->Wait();
  pool_.join();
  transfers_.join();
  server_.reset();
}

Server::~Server() { Stop(std::chrono::milliseconds(0)); }

}  // namespace agentd::daemon
