#include "sessions/timeline_uses.h"

#include <algorithm>

#include "base/status.h"
#include "sessions/keys.h"

namespace agentd::sessions::internal {

absl::StatusOr<TimelineUses> TimelineUses::Read(const Database& database,
                                                const rocksdb::Snapshot* snapshot) {
  TimelineUses uses(database, snapshot);
  std::map<TimelineId, HeadRecord> heads;
  RETURN_IF_ERROR(database.Scan(
      Column::kTimelines, "h",
      [&](std::string_view key, std::string_view value) {
        if (const absl::StatusOr<HeadRecord> head = DecodeHead(key, value); head.ok())
          heads[BigEndianAt(key, 1)] = *head;
        return absl::OkStatus();
      },
      snapshot));
  RETURN_IF_ERROR(database.Scan(
      Column::kTimelines, "t",
      [&](std::string_view key, std::string_view value) {
        const TimelineId timeline = BigEndianAt(key, 1);
        const absl::StatusOr<TimelineRecord> record = DecodeTimeline(key, value);
        const auto head = heads.find(timeline);
        if (!record.ok() || record->session.empty() || head == heads.end()) return absl::OkStatus();
        TimelineUse use{timeline, record->session, head->second.tokens, head->second.last_seq,
                        head->second.updated_us};
        uses.uses_[timeline].push_back(use);
        for (const Segment& segment : record->ancestry) {
          use.position = segment.last_position;
          use.last_seq = segment.last_seq;
          uses.uses_[segment.timeline].push_back(use);
        }
        return absl::OkStatus();
      },
      snapshot));
  for (auto& [timeline, users] : uses.uses_) {
    std::sort(users.begin(), users.end(),
              [](const TimelineUse& a, const TimelineUse& b) { return a.position > b.position; });
  }
  return uses;
}

std::span<const TimelineUse> TimelineUses::UsersOf(TimelineId timeline) const {
  const auto found = uses_.find(timeline);
  if (found == uses_.end()) return {};
  return found->second;
}

absl::Status TimelineUses::ForEach(char tag, RecordKind kind, const Visit& visit) const {
  return database_.Scan(
      Column::kTimelines, std::string(1, tag),
      [&](std::string_view key, std::string_view value) {
        if (key.size() < 17) return absl::OkStatus();
        const std::span<const TimelineUse> users = UsersOf(BigEndianAt(key, 1));
        int64_t position = static_cast<int64_t>(BigEndianAt(key, 9));
        if (kind == RecordKind::kBlockEntry) position = (position + 1) * kBlockTokens;
        const auto end =
            std::partition_point(users.begin(), users.end(),
                                 [&](const TimelineUse& use) { return use.position >= position; });
        const absl::StatusOr<Sha256Digest> digest = DecodeDigest(kind, key, value);
        if (digest.ok() && end != users.begin())
          visit(*digest, position, users.first(static_cast<size_t>(end - users.begin())));
        return absl::OkStatus();
      },
      snapshot_);
}

absl::Status TimelineUses::ForEachBlock(const Visit& visit) const {
  return ForEach('b', RecordKind::kBlockEntry, visit);
}

absl::Status TimelineUses::ForEachAnchor(const Visit& visit) const {
  return ForEach('a', RecordKind::kAnchorEntry, visit);
}

}  // namespace agentd::sessions::internal
