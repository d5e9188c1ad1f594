// What FORMAT and KEYS in a store's directory say, and the end of a rewriting that a crash cut off.
// The caller holds the store's lock.
#ifndef AGENTD_SESSIONS_STORE_FILES_H_
#define AGENTD_SESSIONS_STORE_FILES_H_

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/keyring.h"
#include "sessions/store_keys.h"

namespace agentd::sessions::internal {

// ---- FORMAT

inline constexpr int kFormatVersion = 3;  // the newest that this program reads, and of new stores
// From this one on sessions have summaries (summary.h), which an older program would leave behind.
inline constexpr int kSummaryVersion = 3;
struct Format {
  int version = kFormatVersion;  // encrypted stores begin with 2
  bool encrypted = false;
};
std::string FormatText(const Format& format);
// DataLoss: damaged. FailedPrecondition: a newer version's. `store` names it in errors.
absl::StatusOr<Format> ParseFormat(std::string_view text, const std::string& store);

// ---- KEYS and its copy

absl::Status WriteKeyring(const std::filesystem::path& directory, const Keyring& keyring);
// From whichever of the two is whole. With `may_write` both are so on return, and list the current
// key: on disk, before any record is sealed with it.
absl::StatusOr<std::unique_ptr<const Keyring>> OpenKeyring(const std::filesystem::path& directory,
                                                           const StoreKeys& keys, bool may_write);

// Where they are.
std::vector<std::filesystem::path> KeysFiles(const std::filesystem::path& directory);
// The ids of the keys that records may be sealed with, from whichever of the two is whole.
absl::StatusOr<std::vector<uint64_t>> SealingKeys(const std::filesystem::path& directory);

// ---- rewriting (rewrite.h)

inline constexpr char kRewriteName[] = "rewrite";    // the new store while it is being written
inline constexpr char kCompleteName[] = "COMPLETE";  // in it: it is whole, and takes our place
// Puts a complete new database in the place of the old one. FailedPrecondition: it is incomplete,
// since the rewriting was cut off; the old one is as it was.
absl::Status FinishRewrite(const std::filesystem::path& directory);
// Whether a rewriting was cut off before the new database was complete.
bool IsRewriteCutOff(const std::filesystem::path& directory);
// Removes what there is of a new database.
absl::Status DropRewrite(const std::filesystem::path& directory);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_STORE_FILES_H_
