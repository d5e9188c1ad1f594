// How RocksDB reads its files.
#ifndef AGENTD_SESSIONS_FILE_READS_H_
#define AGENTD_SESSIONS_FILE_READS_H_

#include <rocksdb/file_system.h>

#include <memory>

namespace agentd::sessions::internal {

// `base`, but
// - blob files are read past the page cache where the file system can (else as ever). A session's
//   values are read once, in large pieces, and go to the engine's memory: the kernel's copy costs a
//   quarter of the time and the cache of everything else;
// - tables that are read backwards, as a list reads them, are read ahead: the kernel sees only that
//   forwards, and reads a page at a time otherwise.
// Logs and all that is written stay as they are.
std::shared_ptr<rocksdb::FileSystem> WithStoreReads(
    const std::shared_ptr<rocksdb::FileSystem>& base);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_FILE_READS_H_
