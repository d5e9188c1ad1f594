// The gRPC API on top of Daemon. Reactors only hand work to a pool: none waits for the store or the
// model on gRPC's threads.
#ifndef AGENTD_AGENTD_SERVICE_H_
#define AGENTD_AGENTD_SERVICE_H_

#include <boost/asio/thread_pool.hpp>
#include <cstdint>

#include "agentd/daemon.h"
#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::daemon {

struct ServiceOptions {
  int64_t max_prompt_bytes = int64_t{64} << 20;  // of one turn, all its chunks together
};

// Outlives the server that it is registered with; the pool outlives it.
class AgentdService final : public v1::Agentd::CallbackService {
 public:
  AgentdService(Daemon* daemon, boost::asio::thread_pool* pool, ServiceOptions options)
      : daemon_(daemon), pool_(pool), options_(options) {}

  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* GetServerInfo(Context* context, const v1::GetServerInfoRequest* request,
                                          v1::ServerInfo* response) override;
  grpc::ServerUnaryReactor* CreateSession(Context* context, const v1::CreateSessionRequest* request,
                                          v1::Session* response) override;
  grpc::ServerUnaryReactor* GetSession(Context* context, const v1::GetSessionRequest* request,
                                       v1::Session* response) override;
  grpc::ServerUnaryReactor* ListSessions(Context* context, const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSession(Context* context, const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override;
  grpc::ServerUnaryReactor* ForkSession(Context* context, const v1::ForkSessionRequest* request,
                                        v1::Session* response) override;
  grpc::ServerUnaryReactor* RewindSession(Context* context, const v1::RewindSessionRequest* request,
                                          v1::Session* response) override;
  grpc::ServerUnaryReactor* Cancel(Context* context, const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override;
  grpc::ServerBidiReactor<v1::RunRequest, v1::Event>* Run(Context* context) override;
  grpc::ServerWriteReactor<v1::Event>* Watch(Context* context,
                                             const v1::WatchRequest* request) override;

 private:
  template <typename Response, typename Call>
  grpc::ServerUnaryReactor* Unary(Context* context, Response* response, Call call);

  Daemon* const daemon_;
  boost::asio::thread_pool* const pool_;
  const ServiceOptions options_;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SERVICE_H_
