// Who uses what a timeline lists: the live timelines that share it, how far and when last.
//
// A fork shares its source's listings up to its point, without a record for each. So whoever wants
// to know what a session consists of, or who else counts on a value, asks here.
#ifndef AGENTD_SESSIONS_TIMELINE_USES_H_
#define AGENTD_SESSIONS_TIMELINE_USES_H_

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sessions/database.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {

struct TimelineUse {
  TimelineId timeline = 0;  // the one that uses
  std::string session;
  int64_t position = 0;  // so many tokens of the used timeline
  uint64_t last_seq = 0;
  int64_t updated_us = 0;  // of the user
};

// As one snapshot shows it. A timeline that cannot be read uses nothing here: fit for what may be
// computed again and for accounts, not for deciding what to delete for good.
class TimelineUses {
 public:
  static absl::StatusOr<TimelineUses> Read(const Database& database,
                                           const rocksdb::Snapshot* snapshot);

  // Visits listings of blocks (position: of the block's end) or of anchors, with those who use it,
  // at least one.
  using Visit = std::function<void(const Sha256Digest& value, int64_t position,
                                   std::span<const TimelineUse> users)>;
  absl::Status ForEachBlock(const Visit& visit) const;
  absl::Status ForEachAnchor(const Visit& visit) const;
  // Of a timeline: who uses it at all.
  std::span<const TimelineUse> UsersOf(TimelineId timeline) const;

 private:
  TimelineUses(const Database& database, const rocksdb::Snapshot* snapshot)
      : database_(database), snapshot_(snapshot) {}
  absl::Status ForEach(char tag, RecordKind kind, const Visit& visit) const;

  const Database& database_;
  const rocksdb::Snapshot* const snapshot_;
  std::map<TimelineId, std::vector<TimelineUse>> uses_;  // by position, the furthest first
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_TIMELINE_USES_H_
