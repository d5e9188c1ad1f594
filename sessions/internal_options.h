// What no caller of the layer sets when a store is opened: a RocksDB Env that injects faults and an
// ignored lock, for tests; what a rewriting needs. Kept out of store.h so that no
// RocksDB type leaks from this layer.
#ifndef AGENTD_SESSIONS_INTERNAL_OPTIONS_H_
#define AGENTD_SESSIONS_INTERNAL_OPTIONS_H_

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "sessions/store.h"

namespace rocksdb {
class Env;
}

namespace agentd::sessions::internal {

struct InternalOptions {
  rocksdb::Env* env = nullptr;  // null: the default; must outlive the store
  // Skips the flock, as on a network file system that lost it: the epoch alone fences then. The Env
  // must skip RocksDB's own lock.
  bool ignore_lock = false;
  bool compress = true;            // off: a test can look for bytes in the files
  bool keys_if_encrypted = false;  // keys are no error for a store that is not encrypted
  bool begins_rewrite = false;     // what one that was cut off left is dropped
  bool sealed = false;             // no key: an encrypted store's values come as they are stored
  std::string store_secret;        // of a new encrypted store; empty: one of its own
};

// Store::Open with the above.
absl::StatusOr<std::unique_ptr<Store>> OpenStore(const std::filesystem::path& directory,
                                                 const StoreOptions& options,
                                                 const InternalOptions& internal_options);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_INTERNAL_OPTIONS_H_
