// A look at RocksDB's write-ahead logs, and at its list of tables (the MANIFEST, of the same
// format), before RocksDB reads them. Its recovery refuses a record with a wrong checksum, but
// takes some damage for the end of the log and drops all that follows without a word: a length that
// reaches past the file's end, and zeros.
#ifndef AGENTD_SESSIONS_LOG_FILE_H_
#define AGENTD_SESSIONS_LOG_FILE_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::sessions::internal {

struct LogDamage {
  uint64_t offset = 0;  // of the first record that cannot be read
  uint64_t bytes = 0;   // from there to the file's end
  std::string what;
};

// In the bytes of a log file. None: every record is whole, or the last one is cut as a crash cuts
// it. A tail whose sectors reached the disk out of order looks like damage too.
std::optional<LogDamage> FindLogDamage(std::string_view log);

// The log files of a RocksDB directory, oldest first.
std::vector<std::filesystem::path> LogFiles(const std::filesystem::path& database);

// All that recovery reads in this format: the list of the tables (which CURRENT names) first.
std::vector<std::filesystem::path> RecoveryFiles(const std::filesystem::path& database);

// DataLoss names the first damaged one of these, and the place in it.
absl::Status CheckRecoveryFiles(const std::filesystem::path& database);

absl::StatusOr<std::string> ReadWholeFile(const std::filesystem::path& path);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_LOG_FILE_H_
