// Backups of a store: RocksDB's BackupEngine on a directory that one store's backups share. A
// backup takes what is new since the one before; tables and blob files are shared among them.
// Store::Backup makes one while the store is open; what is here needs no store.
//
// A backup holds what its store's files hold, byte for byte: records that were damaged or encrypted
// there are so in it too. FORMAT.md describes the directory.
//
// Threads: any, but one call works on a backup directory at a time: others get FailedPrecondition.
#ifndef AGENTD_SESSIONS_BACKUP_H_
#define AGENTD_SESSIONS_BACKUP_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::sessions {

struct BackupInfo {
  uint32_t id = 0;           // 1, 2, ... in a backup directory
  int64_t created_us = 0;    // wall clock, microseconds since 1970; whole seconds
  int64_t bytes = 0;         // of all its files, those shared with other backups included
  int64_t shared_bytes = 0;  // only from Store::Backup: what earlier backups held already
  int64_t files = 0;
  std::string damage;  // only from ListBackups: why it cannot be used; the rest is unknown then
};

// Oldest first. Looks at names and sizes, not at contents. NotFound: no such directory;
// InvalidArgument: it holds no backups of a store.
absl::StatusOr<std::vector<BackupInfo>> ListBackups(const std::filesystem::path& directory);

// Reads every file of a backup (0: the newest) and compares its checksum. DataLoss names the first
// file that is damaged, cut or missing.
absl::StatusOr<BackupInfo> VerifyBackup(const std::filesystem::path& directory, uint32_t id);

// Makes the new store directory `store` from a backup (0: the newest). First verifies as above,
// then copies to STORE.restoring, which takes its name once all of it is on disk: a crash before
// leaves nothing under the name, and the next call begins anew. FailedPrecondition if `store` is
// there and not empty: nothing is ever written over.
//
// The store is its own from then on: its owner epoch is far from the source's and from that of any
// other copy. Sessions keep their ids, seeds and timelines; ids made later are random.
absl::StatusOr<BackupInfo> RestoreBackup(const std::filesystem::path& directory, uint32_t id,
                                         const std::filesystem::path& store);

namespace internal {

class Database;

// Of the open store. A backup of another store is not added to `directory`. `keep` > 0: the newest
// `keep` backups stay, older ones go afterwards.
absl::StatusOr<BackupInfo> CreateBackup(Database& database, const std::filesystem::path& directory,
                                        uint32_t keep);

}  // namespace internal
}  // namespace agentd::sessions

#endif  // AGENTD_SESSIONS_BACKUP_H_
