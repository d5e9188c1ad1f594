// Reading timelines: records, the events of a timeline with its ancestors, points, and the hash
// chain of its blocks.
#ifndef AGENTD_SESSIONS_TIMELINE_H_
#define AGENTD_SESSIONS_TIMELINE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/database.h"
#include "sessions/record.h"
#include "sessions/record_source.h"

namespace agentd::sessions::internal {

// A timeline as one snapshot of the database shows it.
struct TimelineView {
  TimelineId id = 0;
  TimelineRecord record;
  HeadRecord head;
  // Whose record event `seq` is.
  TimelineId TimelineOf(uint64_t seq) const;
};

// NotFound names the timeline. One that is deleted and kept for its forks is not found.
absl::StatusOr<TimelineView> ReadTimeline(RecordSource& source, TimelineId timeline);
absl::StatusOr<TimelineView> ReadTimeline(const Database& database, TimelineId timeline,
                                          const rocksdb::Snapshot* snapshot);

// Event `seq`, cut where its segment ends. 1 <= seq <= head.last_seq; a missing one is DataLoss.
absl::StatusOr<Event> ReadEvent(const Database& database, const TimelineView& timeline,
                                uint64_t seq, const rocksdb::Snapshot* snapshot);

// Events [from_seq, head.last_seq], at most `limit`, in order and checked: no gap in seq or
// position.
absl::StatusOr<std::vector<Event>> ReadEventRange(const Database& database,
                                                  const TimelineView& timeline, uint64_t from_seq,
                                                  uint64_t limit,
                                                  const rocksdb::Snapshot* snapshot);

struct ResolvedPoint {
  uint64_t seq = 0;
  int64_t position = 0;
};
// OutOfRange if the point does not exist, InvalidArgument unless exactly one of its two is set.
absl::StatusOr<ResolvedPoint> ResolvePoint(const Database& database, const TimelineView& timeline,
                                           const Point& point, const rocksdb::Snapshot* snapshot);

// The ancestry of a new timeline that leaves `timeline` at `point`.
std::vector<Segment> AncestryAt(const TimelineView& timeline, const ResolvedPoint& point);

// ---- hashes

// Computes block and prefix hashes for one owner and kv_identity: HMAC-SHA256 with the owner's key,
// so that nobody else can tell or forge what is stored. Immutable.
class BlockHasher {
 public:
  BlockHasher(std::string owner_key, const Sha256Digest& identity);
  const BlockHash& root() const { return root_; }  // the parent of block 0
  // tokens: [kBlockTokens]
  BlockHash Block(const BlockHash& parent, std::span<const TokenId> tokens) const;
  // Key of the anchor at `position`; `open` are the tokens after the last whole block, position %
  // kBlockTokens of them.
  Sha256Digest Prefix(const BlockHash& parent, int64_t position,
                      std::span<const TokenId> open) const;

 private:
  std::string key_;
  Sha256Digest identity_;
  BlockHash root_;
};

// Extends `hashes` to all whole blocks of `tokens`.
void ExtendHashes(const BlockHasher& hasher, std::span<const TokenId> tokens,
                  std::vector<BlockHash>& hashes);

// Hash of the blocks before `position`.
inline const BlockHash& ParentAt(const BlockHasher& hasher, const std::vector<BlockHash>& hashes,
                                 int64_t position) {
  const int64_t blocks = position / kBlockTokens;
  return blocks == 0 ? hasher.root() : hashes[static_cast<size_t>(blocks - 1)];
}

// Prefix hash at `position` <= tokens.size().
Sha256Digest PrefixAt(const BlockHasher& hasher, const std::vector<BlockHash>& hashes,
                      std::span<const TokenId> tokens, int64_t position);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_TIMELINE_H_
