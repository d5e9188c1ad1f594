#include "agentd/workspace_stream.h"

#include <boost/asio/post.hpp>
#include <string>
#include <string_view>

#include "agentd/message_stream.h"

namespace agentd::daemon {

// A request lives as long as its call.

grpc::ServerWriteReactor<v1::DiffWorkspacePart>* StartDiffStream(
    Daemon* daemon, boost::asio::thread_pool* transfers, const v1::DiffWorkspaceRequest& request) {
  auto* stream = new MessageStream<v1::DiffWorkspacePart>;
  boost::asio::post(*transfers, [daemon, stream, &request] {
    stream->End(daemon->DiffWorkspace(
        request, [stream](const v1::DiffWorkspacePart& part) { return stream->Send(part); }));
  });
  return stream;
}

grpc::ServerWriteReactor<v1::FileData>* StartFileStream(
    Daemon* daemon, boost::asio::thread_pool* transfers,
    const v1::ReadWorkspaceFileRequest& request) {
  auto* stream = new MessageStream<v1::FileData>;
  boost::asio::post(*transfers, [daemon, stream, &request] {
    stream->End(daemon->ReadWorkspaceFile(request, [stream](std::string_view bytes) {
      v1::FileData piece;
      piece.set_data(std::string(bytes));
      return stream->Send(piece);
    }));
  });
  return stream;
}

}  // namespace agentd::daemon
