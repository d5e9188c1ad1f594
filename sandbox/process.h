// Long-lived programs (Sandbox::StartProcess). Private to sandbox/.
#ifndef AGENTD_SANDBOX_PROCESS_H_
#define AGENTD_SANDBOX_PROCESS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "sandbox/protocol.h"
#include "sandbox/sandbox.h"
#include "sandbox/workspace_watch.h"

namespace agentd::sandbox {

// `watch` may be null.
absl::StatusOr<std::unique_ptr<Process>> StartProcessThrough(const InitSockets& init,
                                                             int init_pidfd,
                                                             std::shared_ptr<WorkspaceWatch> watch,
                                                             const CallRequest& request);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_PROCESS_H_
