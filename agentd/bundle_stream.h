// The two calls that move a bundle. Each holds a thread of the pool for transfers as long as it
// works or its client makes it wait, and one message in memory.
#ifndef AGENTD_AGENTD_BUNDLE_STREAM_H_
#define AGENTD_AGENTD_BUNDLE_STREAM_H_

#include <boost/asio/thread_pool.hpp>

#include "agentd/daemon.h"
#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::daemon {

// Both own themselves: gRPC's OnDone frees them.
grpc::ServerWriteReactor<v1::BundleData>* StartExportStream(
    Daemon* daemon, boost::asio::thread_pool* transfers, const v1::ExportSessionRequest& request);
grpc::ServerReadReactor<v1::ImportSessionRequest>* StartImportStream(
    Daemon* daemon, boost::asio::thread_pool* transfers, grpc::CallbackServerContext* context,
    v1::ImportSessionResponse* response);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_BUNDLE_STREAM_H_
