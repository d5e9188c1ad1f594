// How RocksDB opens its blob files.
#ifndef AGENTD_SESSIONS_BLOB_FILES_H_
#define AGENTD_SESSIONS_BLOB_FILES_H_

#include <rocksdb/file_system.h>

#include <memory>

namespace agentd::sessions::internal {

// `base`, but blob files are read past the page cache where the file system can (else as ever). A
// session's values are read once, in large pieces, and go to the engine's memory: the kernel's copy
// costs a quarter of the time and the cache of everything else. Tables, logs and all that is
// written stay as they are.
std::shared_ptr<rocksdb::FileSystem> WithDirectBlobReads(
    const std::shared_ptr<rocksdb::FileSystem>& base);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_BLOB_FILES_H_
