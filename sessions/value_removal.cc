#include "sessions/value_removal.h"

#include "base/status.h"
#include "sessions/keys.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {

absl::StatusOr<bool> AddBlockRemoval(const Database& database, const BlockHash& block,
                                     std::vector<WriteEntry>& writes) {
  const std::string key = BlockNameKey(block);
  ASSIGN_OR_RETURN(const std::optional<std::string> value, database.Get(Column::kTimelines, key));
  if (!value.has_value()) return false;
  writes.push_back({Column::kTimelines, key, std::nullopt});
  const absl::StatusOr<BlockName> name = DecodeBlockName(key, *value);
  for (uint32_t part = 0; name.ok() && part < name->parts; ++part) {
    writes.push_back({Column::kKv, KvPartKey(block, part), std::nullopt});
  }
  return true;
}

absl::StatusOr<bool> AddAnchorRemoval(const Database& database, const Sha256Digest& anchor,
                                      std::vector<WriteEntry>& writes) {
  const std::string key = AnchorNameKey(anchor);
  ASSIGN_OR_RETURN(const std::optional<std::string> value, database.Get(Column::kTimelines, key));
  if (!value.has_value()) return false;
  writes.push_back({Column::kTimelines, key, std::nullopt});
  writes.push_back({Column::kAnchors, AnchorKey(anchor), std::nullopt});
  if (const absl::StatusOr<AnchorName> name = DecodeAnchorName(key, *value); name.ok()) {
    writes.push_back(
        {Column::kTimelines, AnchorIndexKey(name->parent, name->position, anchor), std::nullopt});
  }
  return true;
}

}  // namespace agentd::sessions::internal
