// Takes dead values off the disk, where RocksDB would only do so with a whole file of them.
//
// RocksDB's own collection reads the values it moves inside a compaction, and a damaged one ends
// all compactions. So it is off, and the values of a file that is mostly dead are written again
// here, by the same path as new ones: read, verified, written without the log, flushed. A damaged
// one is dropped and costs its computation. Once the tables have been compacted no key refers to
// the old file, and RocksDB deletes it. Killed anywhere, a value is in the old file, the new one or
// both.
#ifndef AGENTD_SESSIONS_COLLECTOR_H_
#define AGENTD_SESSIONS_COLLECTOR_H_

#include <atomic>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sessions/database.h"
#include "sessions/values_in_use.h"

namespace agentd::sessions::internal {

// One thread at a time; the counters may be read by any.
class Collector {
 public:
  Collector(Database& database, ValuesInUse& values) : database_(database), values_(values) {}

  // Writes the named values of these files of kKv or kAnchors again. Does not compact. Ends early
  // without an error when `stop` is set.
  absl::Status Rewrite(Column column, const std::set<uint64_t>& files, std::atomic<bool>& stop);

  int64_t rewritten_bytes() const { return rewritten_bytes_.load(); }
  int64_t dropped_values() const { return dropped_values_.load(); }

 private:
  struct Item {
    ValueLocation location;
    std::string key;
  };
  absl::StatusOr<uint64_t> RewriteSome(Column column, std::span<const Item> items);
  absl::StatusOr<uint64_t> RewriteOne(Column column, const std::string& key);
  absl::StatusOr<bool> IsNamed(Column column, const std::string& key) const;
  absl::Status Drop(Column column, const std::string& key);

  Database& database_;
  ValuesInUse& values_;
  std::atomic<int64_t> rewritten_bytes_ = 0, dropped_values_ = 0;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_COLLECTOR_H_
