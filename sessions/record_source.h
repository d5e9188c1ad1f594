// Where the records that describe sessions and timelines are read from: one by one, or many
// sessions' one after the other.
#ifndef AGENTD_SESSIONS_RECORD_SOURCE_H_
#define AGENTD_SESSIONS_RECORD_SOURCE_H_

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "sessions/database.h"

namespace agentd::sessions::internal {

// Reads `timelines`. One thread at a time.
class RecordSource {
 public:
  virtual ~RecordSource() = default;
  // nullopt: no such key.
  virtual absl::StatusOr<std::optional<std::string>> Get(const std::string& key) = 0;
};

// Any key at the same price.
class PointSource final : public RecordSource {
 public:
  PointSource(const Database& database, const rocksdb::Snapshot* snapshot)
      : database_(database), snapshot_(snapshot) {}
  absl::StatusOr<std::optional<std::string>> Get(const std::string& key) override {
    return database_.Get(Column::kTimelines, key, snapshot_);
  }

 private:
  const Database& database_;
  const rocksdb::Snapshot* const snapshot_;
};

// For keys that ascend, by their first byte: the next record of a kind is mostly the one after the
// last, and reading on is several times cheaper than looking it up. Every key is found all the
// same.
class AscendingSource final : public RecordSource {
 public:
  AscendingSource(const Database& database, const rocksdb::Snapshot* snapshot)
      : database_(database), snapshot_(snapshot) {}
  absl::StatusOr<std::optional<std::string>> Get(const std::string& key) override;

 private:
  const Database& database_;
  const rocksdb::Snapshot* const snapshot_;
  std::map<char, std::unique_ptr<rocksdb::Iterator>> iterators_;  // by the keys' first byte
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_RECORD_SOURCE_H_
