// The lock file by which a sandbox's life is known from outside. Private to sandbox/.
//
// The init inherits a locked open file description and is the only one to keep it. The kernel
// closes a dying process's files before it has killed the rest of its PID namespace, so a free lock
// alone proves too little: the file also names the init, whose turning into a zombie (or being
// gone) comes after the last process of its namespace.
#ifndef AGENTD_SANDBOX_LOCK_H_
#define AGENTD_SANDBOX_LOCK_H_

#include <sys/types.h>

#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace agentd::sandbox {

// Opens (creates) and locks. FailedPrecondition names the process that has it.
absl::StatusOr<UniqueFd> TakeLock(const std::filesystem::path& path);

// Writes into the locked file which process stands for the tree.
absl::Status RecordInit(int lock_fd, pid_t init);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_LOCK_H_
