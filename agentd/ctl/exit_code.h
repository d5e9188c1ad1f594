// What agentctl's exit code says. Part of the command's contract: scripts depend on the values.
#ifndef AGENTD_CTL_EXIT_CODE_H_
#define AGENTD_CTL_EXIT_CODE_H_

#include "absl/status/status.h"
#include "agentd/ctl/api.h"

namespace agentd::ctl {

enum ExitCode : int {
  kAnswer = 0,       // the turn ended with an answer; other commands: done
  kError = 1,        // the daemon refused, or the turn ended with an error
  kUsage = 2,        // the command line is wrong; nothing was sent
  kLimit = 3,        // the turn met its token or call limit, or the context is full
  kCancelled = 4,    // the turn was cancelled
  kUnreachable = 5,  // no daemon, or it went away before the end
  kDamaged = 6,      // doctor: something is damaged
  kConflict = 7,     // apply: what is in the folder is in the way of some changes
};

ExitCode ExitCodeOf(api::TurnEnd end);
// OK maps to kAnswer.
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_EXIT_CODE_H_
