// What FORMAT and KEYS in a store's directory say, and the end of a rewriting that a crash cut off.
// The caller holds the store's lock.
#ifndef AGENTD_SESSIONS_STORE_FILES_H_
#define AGENTD_SESSIONS_STORE_FILES_H_

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "sessions/keyring.h"
#include "sessions/store_keys.h"

namespace agentd::sessions::internal {

// ---- FORMAT

inline constexpr int kFormatVersion = 2;  // the newest that this program reads
struct Format {
  int version = 1;  // what the store needs to be read: 2 if it is encrypted
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

// ---- rewriting (rewrite.h)

inline constexpr char kRewriteName[] = "rewrite";    // the new store while it is being written
inline constexpr char kCompleteName[] = "COMPLETE";  // in it: it is whole, and takes our place
// Puts a complete new database in the place of the old one, or removes an incomplete one.
absl::Status FinishRewrite(const std::filesystem::path& directory);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_STORE_FILES_H_
