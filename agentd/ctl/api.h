// The generated API under the name this folder uses for it.
#ifndef AGENTD_CTL_API_H_
#define AGENTD_CTL_API_H_

#include "agentd/v1/agentd.grpc.pb.h"
#include "agentd/v1/agentd.pb.h"

namespace agentd::ctl {
namespace api = ::agentd::v1;
}  // namespace agentd::ctl

#endif  // AGENTD_CTL_API_H_
