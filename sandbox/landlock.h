// Landlock: a second wall round files, which stands if a mount is writable that should not be, and
// round what calls of one session share (abstract sockets). Linked into agentd-init only.
#ifndef AGENTD_SANDBOX_LANDLOCK_H_
#define AGENTD_SANDBOX_LANDLOCK_H_

#include <span>

namespace agentd::sandbox {

enum class FileAccess {
  kRead,    // read, list, execute
  kDevice,  // read, write and control what is there, make nothing
  kWrite,   // all but making device nodes
};

// For a path and all below it; the rules of a path and of those above it add up.
struct FileRule {
  const char* path;
  FileAccess access;
};

// Of calls. What it does not forbid: TCP, because a call may serve itself, and its network
// namespace leads nowhere.
inline constexpr FileRule kCallFileRules[] = {{"/", FileAccess::kRead},
                                              {"/dev", FileAccess::kDevice},
                                              {"/workspace", FileAccess::kWrite},
                                              {"/tmp", FileAccess::kWrite},
                                              {"/dev/shm", FileAccess::kWrite}};

// The first version under which files can be moved between directories.
inline constexpr int kLeastLandlockAbi = 2;
// The first that keeps abstract sockets and signals in.
inline constexpr int kScopedLandlockAbi = 6;

// Of the kernel; 0 if it has no Landlock.
int LandlockAbi();

// Restricts the calling thread, which has no_new_privs, and all that it starts, to `rules`; and its
// abstract sockets and signals to what is restricted with it. `abi` is LandlockAbi() and not below
// kLeastLandlockAbi. False with errno set on failure.
bool RestrictByLandlock(int abi, std::span<const FileRule> rules);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_LANDLOCK_H_
