// The gRPC API on top of Daemon. Reactors only hand work to a pool: none waits for the store or the
// model on gRPC's threads.
#ifndef AGENTD_AGENTD_SERVICE_H_
#define AGENTD_AGENTD_SERVICE_H_

#include <boost/asio/thread_pool.hpp>
#include <cstdint>
#include <utility>

#include "agentd/daemon.h"
#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::daemon {

struct ServiceOptions {
  int64_t max_prompt_bytes = int64_t{64} << 20;  // of one turn, all its chunks together
};

// Outlives the server that it is registered with; the pools outlive it. Calls that last as long as
// much data takes run on `transfers`.
class AgentdService final
    : public v1::Agentd::WithRawCallbackMethod_ListSessions<v1::Agentd::CallbackService> {
 public:
  AgentdService(Daemon* daemon, boost::asio::thread_pool* pool, boost::asio::thread_pool* transfers,
                ServiceOptions options)
      : daemon_(daemon), pool_(pool), transfers_(transfers), options_(options) {}

  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* GetServerInfo(Context* context, const v1::GetServerInfoRequest* request,
                                          v1::ServerInfo* response) override;
  grpc::ServerUnaryReactor* CreateSession(Context* context, const v1::CreateSessionRequest* request,
                                          v1::Session* response) override;
  grpc::ServerUnaryReactor* GetSession(Context* context, const v1::GetSessionRequest* request,
                                       v1::Session* response) override;
  grpc::ServerUnaryReactor* ListSessions(Context* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DeleteSession(Context* context, const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override;
  grpc::ServerUnaryReactor* GetStoreUsage(Context* context, const v1::GetStoreUsageRequest* request,
                                          v1::StoreUsage* response) override;
  grpc::ServerUnaryReactor* ForkSession(Context* context, const v1::ForkSessionRequest* request,
                                        v1::Session* response) override;
  grpc::ServerUnaryReactor* RewindSession(Context* context, const v1::RewindSessionRequest* request,
                                          v1::Session* response) override;
  grpc::ServerUnaryReactor* Cancel(Context* context, const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override;
  grpc::ServerUnaryReactor* AnswerApproval(Context* context,
                                           const v1::AnswerApprovalRequest* request,
                                           v1::AnswerApprovalResponse* response) override;
  grpc::ServerBidiReactor<v1::RunRequest, v1::Event>* Run(Context* context) override;
  grpc::ServerWriteReactor<v1::Event>* Watch(Context* context,
                                             const v1::WatchRequest* request) override;
  grpc::ServerWriteReactor<v1::DiffWorkspacePart>* DiffWorkspace(
      Context* context, const v1::DiffWorkspaceRequest* request) override;
  grpc::ServerWriteReactor<v1::FileData>* ReadWorkspaceFile(
      Context* context, const v1::ReadWorkspaceFileRequest* request) override;
  grpc::ServerWriteReactor<v1::BundleData>* ExportSession(
      Context* context, const v1::ExportSessionRequest* request) override;
  grpc::ServerReadReactor<v1::ImportSessionRequest>* ImportSession(
      Context* context, v1::ImportSessionResponse* response) override;
  grpc::ServerUnaryReactor* CreateBackup(Context* context, const v1::CreateBackupRequest* request,
                                         v1::Backup* response) override;
  grpc::ServerUnaryReactor* ListBackups(Context* context, const v1::ListBackupsRequest* request,
                                        v1::ListBackupsResponse* response) override;
  grpc::ServerUnaryReactor* VerifyBackup(Context* context, const v1::VerifyBackupRequest* request,
                                         v1::Backup* response) override;
  grpc::ServerUnaryReactor* BeginMcpLogin(Context* context, const v1::BeginMcpLoginRequest* request,
                                          v1::McpLogin* response) override;
  grpc::ServerUnaryReactor* FinishMcpLogin(Context* context,
                                           const v1::FinishMcpLoginRequest* request,
                                           v1::McpServer* response) override;
  grpc::ServerUnaryReactor* LogOutOfMcp(Context* context, const v1::LogOutOfMcpRequest* request,
                                        v1::McpServer* response) override;

 private:
  template <typename Response, typename Call>
  grpc::ServerUnaryReactor* Unary(Context* context, Response* response, Call call) {
    return UnaryOn(pool_, context, response, std::move(call));
  }
  template <typename Response, typename Call>
  grpc::ServerUnaryReactor* UnaryOn(boost::asio::thread_pool* pool, Context* context,
                                    Response* response, Call call);

  Daemon* const daemon_;
  boost::asio::thread_pool* const pool_;
  boost::asio::thread_pool* const transfers_;
  const ServiceOptions options_;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SERVICE_H_
