// The calls that send a session's workspace or what changed in it. Each holds a thread of the pool
// for transfers as long as it works or its client makes it wait.
#ifndef AGENTD_AGENTD_WORKSPACE_STREAM_H_
#define AGENTD_AGENTD_WORKSPACE_STREAM_H_

#include <boost/asio/thread_pool.hpp>

#include "agentd/daemon.h"
#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::daemon {

// Both own themselves: gRPC's OnDone frees them.
grpc::ServerWriteReactor<v1::DiffWorkspacePart>* StartDiffStream(
    Daemon* daemon, boost::asio::thread_pool* transfers, const v1::DiffWorkspaceRequest& request);
grpc::ServerWriteReactor<v1::FileData>* StartFileStream(
    Daemon* daemon, boost::asio::thread_pool* transfers,
    const v1::ReadWorkspaceFileRequest& request);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_WORKSPACE_STREAM_H_
