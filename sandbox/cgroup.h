// What this machine's cgroups could do for a call's limits. Private to sandbox/.
#ifndef AGENTD_SANDBOX_CGROUP_H_
#define AGENTD_SANDBOX_CGROUP_H_

#include <string>
#include <string_view>

namespace agentd::sandbox {

// In words: whether the daemon's own cgroup (v2) has the controllers memory and pids and may be
// divided by this user, and what is missing for it.
std::string DescribeCgroup();

// The same from the texts of /proc/self/mountinfo and /proc/self/cgroup.
std::string DescribeCgroup(std::string_view mountinfo, std::string_view own);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_CGROUP_H_
