#include "agentd/service.h"

#include <boost/asio/post.hpp>
#include <memory>
#include <string>
#include <utility>

#include "agentd/bundle_stream.h"
#include "agentd/event_stream.h"
#include "agentd/rpc_status.h"
#include "agentd/workspace_stream.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

void Assign(const absl::Status& status, google::protobuf::Message*,
            grpc::ServerUnaryReactor* reactor) {
  reactor->Finish(ToGrpc(status));
}

template <typename Response>
void Assign(absl::StatusOr<Response> result, Response* response,
            grpc::ServerUnaryReactor* reactor) {
  const absl::Status status = result.status();
  if (result.ok()) *response = *std::move(result);
  reactor->Finish(ToGrpc(status));
}

}  // namespace

// Request, response and context live until Finish.
template <typename Response, typename Call>
grpc::ServerUnaryReactor* AgentdService::UnaryOn(boost::asio::thread_pool* pool, Context* context,
                                                 Response* response, Call call) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  boost::asio::post(
      *pool, [response, reactor, call = std::move(call)] { Assign(call(), response, reactor); });
  return reactor;
}

grpc::ServerUnaryReactor* AgentdService::GetServerInfo(Context* context,
                                                       const v1::GetServerInfoRequest*,
                                                       v1::ServerInfo* response) {
  return Unary(context, response, [this] { return daemon_->Info(); });
}

grpc::ServerUnaryReactor* AgentdService::CreateSession(Context* context,
                                                       const v1::CreateSessionRequest* request,
                                                       v1::Session* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->Create(*request); });
}

grpc::ServerUnaryReactor* AgentdService::GetSession(Context* context,
                                                    const v1::GetSessionRequest* request,
                                                    v1::Session* response) {
  return Unary(context, response, [this, request] { return daemon_->Get(request->session_id()); });
}

grpc::ServerUnaryReactor* AgentdService::ListSessions(Context* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Unary(context, response, [this, request]() -> absl::StatusOr<grpc::ByteBuffer> {
    v1::ListSessionsRequest parsed;
    grpc::ByteBuffer bytes(*request);  // shares what it refers to
    if (!grpc::SerializationTraits<v1::ListSessionsRequest>::Deserialize(&bytes, &parsed).ok())
      return InvalidArgument("the request is no ListSessionsRequest");
    ASSIGN_OR_RETURN(std::string serialised, daemon_->ListBytes(parsed));
    auto page = std::make_unique<std::string>(std::move(serialised));
    const grpc::Slice slice(
        page->data(), page->size(), [](void* sent) { delete static_cast<std::string*>(sent); },
        page.get());
    (void)page.release();  // the slice's
    return grpc::ByteBuffer(&slice, 1);
  });
}

grpc::ServerUnaryReactor* AgentdService::DeleteSession(Context* context,
                                                       const v1::DeleteSessionRequest* request,
                                                       v1::DeleteSessionResponse* response) {
  return Unary(context, response,
               [this, request] { return daemon_->Delete(request->session_id()); });
}

grpc::ServerUnaryReactor* AgentdService::GetStoreUsage(Context* context,
                                                       const v1::GetStoreUsageRequest* request,
                                                       v1::StoreUsage* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->StoreUsage(*request); });
}

grpc::ServerUnaryReactor* AgentdService::ForkSession(Context* context,
                                                     const v1::ForkSessionRequest* request,
                                                     v1::Session* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->Fork(*request); });
}

grpc::ServerUnaryReactor* AgentdService::RewindSession(Context* context,
                                                       const v1::RewindSessionRequest* request,
                                                       v1::Session* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->Rewind(*request); });
}

grpc::ServerUnaryReactor* AgentdService::Cancel(Context* context, const v1::CancelRequest* request,
                                                v1::CancelResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  boost::asio::post(*pool_, [this, request, reactor] {
    daemon_->Cancel(request->session_id(),
                    [reactor](const absl::Status& status) { reactor->Finish(ToGrpc(status)); });
  });
  return reactor;
}

grpc::ServerUnaryReactor* AgentdService::AnswerApproval(Context* context,
                                                        const v1::AnswerApprovalRequest* request,
                                                        v1::AnswerApprovalResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  boost::asio::post(*pool_, [this, request, reactor] {
    daemon_->AnswerApproval(
        *request, [reactor](const absl::Status& status) { reactor->Finish(ToGrpc(status)); });
  });
  return reactor;
}

grpc::ServerBidiReactor<v1::RunRequest, v1::Event>* AgentdService::Run(Context* context) {
  return StartRunStream(daemon_, pool_, context, options_.max_prompt_bytes);
}

grpc::ServerWriteReactor<v1::Event>* AgentdService::Watch(Context* context,
                                                          const v1::WatchRequest* request) {
  return StartWatchStream(daemon_, pool_, context, *request);
}

grpc::ServerWriteReactor<v1::DiffWorkspacePart>* AgentdService::DiffWorkspace(
    Context*, const v1::DiffWorkspaceRequest* request) {
  return StartDiffStream(daemon_, transfers_, *request);
}

grpc::ServerWriteReactor<v1::FileData>* AgentdService::ReadWorkspaceFile(
    Context*, const v1::ReadWorkspaceFileRequest* request) {
  return StartFileStream(daemon_, transfers_, *request);
}

grpc::ServerWriteReactor<v1::BundleData>* AgentdService::ExportSession(
    Context*, const v1::ExportSessionRequest* request) {
  return StartExportStream(daemon_, transfers_, *request);
}

grpc::ServerReadReactor<v1::ImportSessionRequest>* AgentdService::ImportSession(
    Context* context, v1::ImportSessionResponse* response) {
  return StartImportStream(daemon_, transfers_, context, response);
}

grpc::ServerUnaryReactor* AgentdService::CreateBackup(Context* context,
                                                      const v1::CreateBackupRequest* request,
                                                      v1::Backup* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->CreateBackup(*request); });
}

grpc::ServerUnaryReactor* AgentdService::ListBackups(Context* context,
                                                     const v1::ListBackupsRequest* request,
                                                     v1::ListBackupsResponse* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->ListBackups(*request); });
}

grpc::ServerUnaryReactor* AgentdService::VerifyBackup(Context* context,
                                                      const v1::VerifyBackupRequest* request,
                                                      v1::Backup* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->VerifyBackup(*request); });
}

// On `transfers_`: they last as long as other servers take to answer.
grpc::ServerUnaryReactor* AgentdService::BeginMcpLogin(Context* context,
                                                       const v1::BeginMcpLoginRequest* request,
                                                       v1::McpLogin* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->BeginMcpLogin(*request); });
}

grpc::ServerUnaryReactor* AgentdService::FinishMcpLogin(Context* context,
                                                        const v1::FinishMcpLoginRequest* request,
                                                        v1::McpServer* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->FinishMcpLogin(*request); });
}

grpc::ServerUnaryReactor* AgentdService::LogOutOfMcp(Context* context,
                                                     const v1::LogOutOfMcpRequest* request,
                                                     v1::McpServer* response) {
  return UnaryOn(transfers_, context, response,
                 [this, request] { return daemon_->LogOutOfMcp(*request); });
}

}  // namespace agentd::daemon
