// Error plumbing shared by every layer: absl::Status on the host, CHECK for broken invariants.
//
// Abseil 20220623's absl::string_view is not std::string_view, so build messages with fmt and pass
// std::string.
#ifndef AGENTD_BASE_STATUS_H_
#define AGENTD_BASE_STATUS_H_

#include <fmt/core.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd {

// A Status whose message is a fmt format: Error(absl::StatusCode::kNotFound, "session {} does not
// exist", id).
template <typename... Args>
absl::Status Error(absl::StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return absl::Status(code, fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
absl::Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return absl::NotFoundError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status FailedPrecondition(fmt::format_string<Args...> format, Args&&... args) {
  return absl::FailedPreconditionError(fmt::format(format, std::forward<Args>(args)...));
}
// A stored record or a file is damaged: says which.
template <typename... Args>
absl::Status DataLoss(fmt::format_string<Args...> format, Args&&... args) {
  return absl::DataLossError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Internal(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError(fmt::format(format, std::forward<Args>(args)...));
}

// The Status of a failed system call: `what` says call and object ("open /x"); the errno decides
// the code.
absl::Status ErrnoError(int error_number, const std::string& what);

// The message alone, as std::string.
inline std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

// `status` with "context: " before its message; code kept, OK stays OK.
absl::Status Annotate(const absl::Status& status, const std::string& context);

namespace internal {
[[noreturn]] inline void CheckFailed(const char* file, int line, const char* what,
                                     const std::string& more) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s %s\n", file, line, what, more.c_str());
  std::abort();
}
}  // namespace internal

}  // namespace agentd

// A broken invariant ends the process: going on could acknowledge or compute something wrong.
#define AGENTD_CHECK(condition)                                                       \
  do {                                                                                \
    if (!(condition)) [[unlikely]]                                                    \
      ::agentd::internal::CheckFailed(__FILE__, __LINE__, #condition, std::string()); \
  } while (false)

#define RETURN_IF_ERROR(expression)               \
  do {                                            \
    ::absl::Status agentd_status_ = (expression); \
    if (!agentd_status_.ok()) [[unlikely]]        \
      return agentd_status_;                      \
  } while (false)

#define AGENTD_CONCAT_INNER(a, b) a##b
#define AGENTD_CONCAT(a, b) AGENTD_CONCAT_INNER(a, b)

#define ASSIGN_OR_RETURN(declaration, expression) \
  AGENTD_ASSIGN_OR_RETURN(AGENTD_CONCAT(agentd_statusor_, __LINE__), declaration, expression)
#define AGENTD_ASSIGN_OR_RETURN(result, declaration, expression) \
  auto result = (expression);                                    \
  if (!result.ok()) [[unlikely]]                                 \
    return std::move(result).status();                           \
  declaration = std::move(result).value()

#endif  // AGENTD_BASE_STATUS_H_
