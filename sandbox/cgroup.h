// A cgroup (version 2) for each sandbox: what all of its processes take together is limited there,
// where a process's own limits do not add up. Private to sandbox/.
//
// The kernel lets only whoever a part of the tree was delegated to divide it. So the daemon needs a
// cgroup of its own (a systemd unit or scope with Delegate=yes); without one, sandboxes do without.
#ifndef AGENTD_SANDBOX_CGROUP_H_
#define AGENTD_SANDBOX_CGROUP_H_

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {

// The directory of the cgroup that this process may divide. FailedPrecondition says what is missing
// and how to mend it. The first call moves this process into a child cgroup, since one that is
// divided holds no processes itself, and ends what a dead daemon left there; later calls repeat its
// answer. Any thread.
absl::StatusOr<std::filesystem::path> DelegatedCgroup();

// The same from the texts of /proc/self/mountinfo and /proc/self/cgroup, before anything is moved:
// the cgroup of this process, if it has the controllers memory, pids and cpu and this user may
// divide it.
absl::StatusOr<std::filesystem::path> FindOwnCgroup(std::string_view mountinfo,
                                                    std::string_view own);

class Cgroup {
 public:
  // A new one with these limits under `parent` (DelegatedCgroup's).
  static absl::StatusOr<std::unique_ptr<Cgroup>> Create(const std::filesystem::path& parent,
                                                        const TotalLimits& limits);
  // Kills what is left in it.
  ~Cgroup();
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;

  // Moves a process and its children, which have none themselves, into it.
  absl::Status Add(pid_t pid);

  // Processes that the kernel ended because all together wanted more memory than they may have.
  int64_t out_of_memory_kills() const;
  const std::filesystem::path& directory() const { return directory_; }

 private:
  explicit Cgroup(std::filesystem::path directory) : directory_(std::move(directory)) {}
  const std::filesystem::path directory_;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_CGROUP_H_
