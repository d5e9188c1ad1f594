// The system calls that a call may make, as two stacked classic BPF filters. Linked into
// agentd-init only.
//
// The allow list passes known calls by name and answers ENOSYS to every other number, so that a new
// kernel opens nothing. The deny list refuses known dangers with EPERM (what they would say without
// privilege), and arguments of allowed calls: namespaces in clone, sockets other than UNIX and
// internet ones, terminal injection, set-user-id modes. The kernel takes the stricter answer.
#ifndef AGENTD_SANDBOX_SECCOMP_FILTER_H_
#define AGENTD_SANDBOX_SECCOMP_FILTER_H_

#include <linux/filter.h>

#include <vector>

namespace agentd::sandbox {

struct SeccompFilters {
  std::vector<sock_filter> allow;
  std::vector<sock_filter> deny;
};

// Builds both programs. False, with errno set, if libseccomp cannot.
bool BuildSeccompFilters(SeccompFilters& filters);

// Loads both into the calling thread, which has no_new_privs. False with errno set on failure.
bool LoadSeccompFilters(const SeccompFilters& filters);

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_SECCOMP_FILTER_H_
