// Which KV values go when the store is over its budget: blocks and anchors, the least useful first,
// leaf first along the chains of parents.
//
// Usefulness of a value per byte = uses x cost / (age + a minute). Uses: the timelines, forks
// included, that share it, and its restores. Age: since the last commit of one of them or the last
// restore. Cost: of its tokens' evaluation, which grows with their position. A block without its
// parents is worth nothing, so one is never older or less used than its children, and never goes
// before them; and one whose parents are missing serves nobody until they are computed again: it
// and all below it go first. An anchor goes with the blocks behind it: it is a child of the last
// one. Anchors that no timeline would resume from today serve forks and rewinds only and count for
// less.
#ifndef AGENTD_SESSIONS_EVICTION_H_
#define AGENTD_SESSIONS_EVICTION_H_

#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/database.h"
#include "sessions/values_in_use.h"

namespace agentd::sessions::internal {

struct DigestHash {
  size_t operator()(const Sha256Digest& digest) const {
    size_t hash;
    std::memcpy(&hash, digest.data(), sizeof(hash));
    return hash;
  }
};

// Restores since the store was opened; the deepest value of each says enough. Thread-safe.
class RestoreLog {
 public:
  struct Entry {
    int64_t restores = 0;
    int64_t last_us = 0;
  };
  void Note(const Sha256Digest& anchor, int64_t now_us);
  std::unordered_map<Sha256Digest, Entry, DigestHash> entries() const;

 private:
  mutable std::mutex mutex_;
  std::unordered_map<Sha256Digest, Entry, DigestHash> entries_;  // guarded by mutex_
};

struct EvictionCounters {
  int64_t blocks = 0, anchors = 0, bytes = 0;
};

// Evicts until `bytes` of values are dead or nothing more can go: values that a commit on its way
// or a reader (`readers`) counts on stay, and their parents with them. In batches through the log,
// unsynced: a crash undoes the last ones. What is on the disk only.
absl::StatusOr<EvictionCounters> Evict(Database& database, ValuesInUse& values,
                                       ValuesInUse& readers, const RestoreLog& restores,
                                       int64_t now_us, int64_t bytes);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_EVICTION_H_
