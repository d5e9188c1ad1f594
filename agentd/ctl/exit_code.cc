#include "agentd/ctl/exit_code.h"

namespace agentd::ctl {

ExitCode ExitCodeOf(api::TurnEnd end) {
  switch (end) {
    case api::TURN_END_ANSWER:
      return kAnswer;
    case api::TURN_END_TOKEN_LIMIT:
    case api::TURN_END_CALL_LIMIT:
    case api::TURN_END_CONTEXT_FULL:
      return kLimit;
    case api::TURN_END_CANCELLED:
      return kCancelled;
    default:  // an error, or an end that a newer daemon knows
      return kError;
  }
}

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kAnswer;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kUnreachable;
    case absl::StatusCode::kCancelled:
      return kCancelled;
    default:
      return kError;
  }
}

}  // namespace agentd::ctl
