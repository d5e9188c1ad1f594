// One call inside the init: the child in its own PID, mount, IPC and user namespaces, its walls,
// and the program. Linked into agentd-init only; the init is single-threaded.
#ifndef AGENTD_SANDBOX_INIT_CALL_H_
#define AGENTD_SANDBOX_INIT_CALL_H_

#include <sys/types.h>

#include "base/unique_fd.h"
#include "sandbox/protocol.h"
#include "sandbox/seccomp_filter.h"

namespace agentd::sandbox {

// Lies in memory shared by the init and the call's first process, which writes it.
struct CallState {
  Stage failed;
  int32_t error_number;
};

// What of the machine the init found out at its start.
struct Abilities {
  bool pid_max_per_namespace = false;
  int landlock_abi = 0;
};

// A call's first process, behind all the walls that do not depend on the call, which it waits for:
// at kCallsFd, or for one of the init's.
// When it is waited for itself, all processes of the call are dead: the kernel ends a PID namespace
// with its first process.
struct PreparedCall {
  pid_t pid = -1;  // in the init's namespace
  // To it: takes one RunMessage with its descriptors, or, if it waits at kCallsFd, gives the one
  // that it got from there, with the call channel alone.
  UniqueFd socket;
  CallState* state = nullptr;
};

enum class CallSource { kInit, kCallsFd };

// Starts such a process. False with errno set if it cannot be started; what it fails at itself is
// in its state.
bool PrepareCall(CallSource source, bool network, const SeccompFilters& filters,
                 const Abilities& abilities, PreparedCall& prepared);

// Makes the mounts of the nodes in /dev read-only, for all calls to come. The nodes are the host's
// own, each bound here with a writable mount: a daemon of uid 0 owns them, so a call could change
// their modes and times for the whole machine. Writing into a device does not need its mount to be
// writable. What a call binds from such a node gets its flags. False with errno set on failure.
bool ProtectDevices();

// By its version. Never found out by writing: in older kernels pid_max is the host's, and a daemon
// of uid 0 would change it.
bool KernelHasPidMaxPerNamespace();

// Whether namespaces of a call can be made and filled, with a pid_max of their own if asked.
bool ProbeNamespaces(bool write_pid_max);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_INIT_CALL_H_
