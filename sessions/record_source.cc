#include "sessions/record_source.h"

namespace agentd::sessions::internal {

absl::StatusOr<std::optional<std::string>> AscendingSource::Get(const std::string& key) {
  std::unique_ptr<rocksdb::Iterator>& iterator = iterators_[key.front()];
  if (iterator == nullptr) iterator = database_.Iterate(Column::kTimelines, snapshot_);
  // Other sessions' may lie between.
  constexpr int kSteps = 4;
  for (int step = 0; step < kSteps && iterator->Valid() && iterator->key().compare(key) < 0; ++step)
    iterator->Next();
  if (!iterator->Valid() || iterator->key() != key) iterator->Seek(key);
  if (iterator->Valid() && iterator->key() == key)
    return std::optional<std::string>(iterator->value().ToString());
  if (absl::Status status = Translate(iterator->status(), "reading from timelines"); !status.ok())
    return status;
  return std::optional<std::string>();
}

}  // namespace agentd::sessions::internal
