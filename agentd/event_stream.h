// The two streaming calls. A stream has one message under way at most and reads the next events
// only after that is gone: a slow reader costs nothing but its own place.
#ifndef AGENTD_AGENTD_EVENT_STREAM_H_
#define AGENTD_AGENTD_EVENT_STREAM_H_

#include <boost/asio/thread_pool.hpp>
#include <cstdint>

#include "agentd/daemon.h"
#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::daemon {

// Both own themselves: gRPC's OnDone frees them.
grpc::ServerBidiReactor<v1::RunRequest, v1::Event>* StartRunStream(
    Daemon* daemon, boost::asio::thread_pool* pool, grpc::CallbackServerContext* context,
    int64_t max_prompt_bytes);
grpc::ServerWriteReactor<v1::Event>* StartWatchStream(Daemon* daemon,
                                                      boost::asio::thread_pool* pool,
                                                      grpc::CallbackServerContext* context,
                                                      const v1::WatchRequest& request);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_EVENT_STREAM_H_
