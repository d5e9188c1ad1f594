// This test program once more as a child process: a daemon's life that may end at any moment.
#ifndef AGENTD_AGENTD_TESTING_CHILD_H_
#define AGENTD_AGENTD_TESTING_CHILD_H_

#include <sys/types.h>

#include <map>
#include <string>

namespace agentd::daemon {

// Runs the (disabled) test `name` of this program with these variables besides its own. It reads
// the test model that the parent made.
pid_t StartSelf(const std::string& name, const std::map<std::string, std::string>& environment);

// How the child ended, as waitpid(2) says.
int Wait(pid_t child);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TESTING_CHILD_H_
