// Text-sized files that programs of this project keep for themselves: read whole, replaced whole,
// on disk when a call returns. Thread-safe for different paths.
#ifndef AGENTD_BASE_SMALL_FILE_H_
#define AGENTD_BASE_SMALL_FILE_H_

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd {

inline constexpr size_t kSmallFileBytes = 4096;

// At most the first kSmallFileBytes. nullopt: there is no such file.
absl::StatusOr<std::optional<std::string>> ReadSmallFile(const std::filesystem::path& path);
// Whole or not at all, whenever the machine stops, and on disk when it returns: what must not come
// back, such as a token that was used up, does not. Of mode 0600, and written through a file of its
// own making beside it (`path`.new; what is left there of a crash is removed): nobody who has one
// of those open reads or writes it, and no link is followed. On failure the old file is as it was.
absl::Status ReplaceFile(const std::filesystem::path& path, std::string_view bytes);
absl::Status SyncDirectory(const std::filesystem::path& path);

}  // namespace agentd

#endif  // AGENTD_BASE_SMALL_FILE_H_
