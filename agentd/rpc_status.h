// absl::Status -> gRPC status with google.rpc.Status / ErrorInfo details.
#ifndef AGENTD_AGENTD_RPC_STATUS_H_
#define AGENTD_AGENTD_RPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace agentd::daemon {

// Attaches the stable reason ("TURN_RUNNING") that clients may test for.
absl::Status WithReason(absl::Status status, const std::string& reason);

// Code and message kept; ErrorInfo{reason, domain "agentd"} in the details. Without an own reason
// the code's name is it. Messages are made valid UTF-8, cut to about 1 KiB, and stand in the status
// alone, not in the details again.
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_RPC_STATUS_H_
