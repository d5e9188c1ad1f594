// The text-sized files beside a database: read whole, replaced whole, on disk when a call returns.
#ifndef AGENTD_SESSIONS_SMALL_FILE_H_
#define AGENTD_SESSIONS_SMALL_FILE_H_

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::sessions::internal {

inline constexpr size_t kSmallFileBytes = 4096;

// At most the first kSmallFileBytes. nullopt: there is no such file.
absl::StatusOr<std::optional<std::string>> ReadSmallFile(const std::filesystem::path& path);
// Whole or not at all, and on disk when it returns.
absl::Status ReplaceFile(const std::filesystem::path& path, std::string_view bytes);
absl::Status SyncDirectory(const std::filesystem::path& path);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_SMALL_FILE_H_
