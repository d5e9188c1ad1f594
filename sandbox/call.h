// One call as the library sees it: sent to the init, killed, reported. Private to sandbox/.
#ifndef AGENTD_SANDBOX_CALL_H_
#define AGENTD_SANDBOX_CALL_H_

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "sandbox/protocol.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {

// A killed call's processes die at once unless the kernel is stuck; then the whole tree goes.
inline constexpr auto kKillPatience = std::chrono::seconds(10);

enum class Streams {
  kData,  // standard input is request.stdin_data; output and error are one pipe
  kOwn,   // three pipes
};

// The library's ends; those of pipes do not block.
struct SentCall {
  UniqueFd input;  // kOwn
  UniqueFd output;
  UniqueFd error;  // kOwn
  UniqueFd channel;
};

// Checks the request and sends it into the sandbox.
absl::StatusOr<SentCall> SendCall(const InitSockets& init, const CallRequest& request,
                                  Streams streams);

// Waits for the next message; none when the init has died. A listener has been handed on.
std::optional<CallMessage> ReceiveFromCall(int channel, const CallRequest& request);

// The init kills all processes of the call, then reports.
void AskToKill(int channel);

// Kills the init and with it everything inside. True when all are dead; false if the kernel does
// not get there.
bool KillTree(int init_pidfd);

// The error for a call whose program did not run.
absl::Status CallFailure(const Report& report, const CallRequest& request);

// Sets end, exit_code, signal and detail. No report: the sandbox died. `full`: why the workspace's
// watch ended it, or "".
void SetEnd(const std::optional<Report>& report, const std::string& full, CallResult& result);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_CALL_H_
