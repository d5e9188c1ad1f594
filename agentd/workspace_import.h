// Copies a directory of the user's into a new session's workspace.
#ifndef AGENTD_AGENTD_WORKSPACE_IMPORT_H_
#define AGENTD_AGENTD_WORKSPACE_IMPORT_H_

#include <filesystem>
#include <string>

#include "absl/status/status.h"

namespace agentd::daemon {

// `from` must be an absolute path of a directory that neither holds nor lies in `data`. Files keep
// their modes, symbolic links are copied as links and never followed. InvalidArgument names what
// cannot be copied (a device, a socket, an unreadable file); then `to` is incomplete.
absl::Status ImportDirectory(const std::string& from, const std::filesystem::path& to,
                             const std::filesystem::path& data);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_WORKSPACE_IMPORT_H_
