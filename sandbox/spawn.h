// Starts bubblewrap with the init inside. Private to sandbox/.
#ifndef AGENTD_SANDBOX_SPAWN_H_
#define AGENTD_SANDBOX_SPAWN_H_

#include <sys/types.h>

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "sandbox/protocol.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {

struct Spawned {
  InitSockets sockets() const { return {control.get(), calls.get()}; }

  pid_t bwrap = -1;  // child of this process, to be waited for
  UniqueFd control;  // the library's ends of the init's sockets
  UniqueFd calls;
  UniqueFd complaints;  // what bwrap and the init write to standard error
};

// Path of bwrap in PATH, or FailedPrecondition with the mend.
absl::StatusOr<std::string> FindBubblewrap();

// Directory with agentd-init: `wanted`, or beside the running binary, or in bin/ beside its
// directory. FailedPrecondition if it has no agentd-init.
absl::StatusOr<std::filesystem::path> FindHelpers(const std::filesystem::path& wanted);

// Returns when bwrap runs; the Hello on the control socket says whether it got through.
absl::StatusOr<Spawned> SpawnInit(const Options& options, const std::string& bwrap,
                                  const std::filesystem::path& helpers, int lock_fd);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_SPAWN_H_
