// Outputs of calls that were cut for the model. The log has them whole; the files that calls read
// them in (/outputs/CALL_ID.txt) are made from it.
#ifndef AGENTD_AGENTD_KEPT_OUTPUTS_H_
#define AGENTD_AGENTD_KEPT_OUTPUTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "agentd/session.h"

namespace agentd::daemon {

// The events that keep `whole`; to be committed with the result that speaks of it.
std::vector<sessions::NewEvent> KeepOutput(const std::string& call_id, const std::string& whole);

// Writes what is missing in the session's directory of outputs; its workspace is ready.
absl::Status EnsureOutputs(const Runtime& runtime, Session& session, HotState& hot);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_KEPT_OUTPUTS_H_
