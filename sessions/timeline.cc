#include "sessions/timeline.h"

#include <algorithm>

#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/keys.h"

namespace agentd::sessions::internal {
namespace {

// The part of the timeline that holds event `seq`.
Segment SegmentOf(const TimelineView& timeline, uint64_t seq) {
  const auto& ancestry = timeline.record.ancestry;
  const auto found =
      std::lower_bound(ancestry.begin(), ancestry.end(), seq,
                       [](const Segment& segment, uint64_t s) { return segment.last_seq < s; });
  if (found != ancestry.end()) return *found;
  return {timeline.id, timeline.head.last_seq, timeline.head.tokens};
}

// Cuts the run at the segment's end. A position that does not reach the end is a gap, found by the
// caller.
void CutAt(const Segment& segment, Event& event) {
  if (event.seq != segment.last_seq || event.position <= segment.last_position) return;
  const int64_t first = event.position - static_cast<int64_t>(event.tokens.size());
  if (segment.last_position < first) return;
  event.tokens.resize(static_cast<size_t>(segment.last_position - first));
  event.position = segment.last_position;
}

absl::Status Missing(const std::string& key) {
  return DataLoss("{} is missing", Describe(RecordKind::kEvent, key));
}

}  // namespace

TimelineId TimelineView::TimelineOf(uint64_t seq) const { return SegmentOf(*this, seq).timeline; }

absl::StatusOr<TimelineView> ReadTimeline(const Database& database, TimelineId timeline,
                                          const rocksdb::Snapshot* snapshot) {
  PointSource source(database, snapshot);
  return ReadTimeline(source, timeline);
}

absl::StatusOr<TimelineView> ReadTimeline(RecordSource& source, TimelineId timeline) {
  TimelineView view;
  view.id = timeline;
  const std::string key = TimelineKey(timeline), head_key = HeadKey(timeline);
  ASSIGN_OR_RETURN(const std::optional<std::string> value, source.Get(key));
  if (!value.has_value()) return NotFound("timeline {} does not exist", timeline);
  ASSIGN_OR_RETURN(view.record, DecodeTimeline(key, *value));
  if (view.record.session.empty()) return NotFound("timeline {} does not exist", timeline);
  ASSIGN_OR_RETURN(const std::optional<std::string> head, source.Get(head_key));
  if (!head.has_value()) return DataLoss("{} is missing", Describe(RecordKind::kHead, head_key));
  ASSIGN_OR_RETURN(view.head, DecodeHead(head_key, *head));
  return view;
}

absl::StatusOr<Event> ReadEvent(const Database& database, const TimelineView& timeline,
                                uint64_t seq, const rocksdb::Snapshot* snapshot) {
  const Segment segment = SegmentOf(timeline, seq);
  const std::string key = EventKey(segment.timeline, seq);
  absl::StatusOr<std::optional<std::string>> value = database.Get(Column::kEvents, key, snapshot);
  if (!value.ok()) return Annotate(value.status(), Describe(RecordKind::kEvent, key));
  if (!value->has_value()) return Missing(key);
  ASSIGN_OR_RETURN(Event event, DecodeEvent(key, **value));
  CutAt(segment, event);
  return event;
}

absl::StatusOr<std::vector<Event>> ReadEventRange(const Database& database,
                                                  const TimelineView& timeline, uint64_t from_seq,
                                                  uint64_t limit,
                                                  const rocksdb::Snapshot* snapshot) {
  std::vector<Event> events;
  uint64_t next = std::max<uint64_t>(from_seq, 1);
  const std::unique_ptr<rocksdb::Iterator> iterator = database.Iterate(Column::kEvents, snapshot);
  while (next <= timeline.head.last_seq && events.size() < limit) {
    const Segment segment = SegmentOf(timeline, next);
    std::string key = EventKey(segment.timeline, next);
    for (iterator->Seek(key); next <= segment.last_seq && events.size() < limit;
         iterator->Next(), ++next) {
      key = EventKey(segment.timeline, next);
      if (!iterator->Valid()) {
        RETURN_IF_ERROR(
            Annotate(Translate(iterator->status(), "reading"), Describe(RecordKind::kEvent, key)));
        return Missing(key);
      }
      if (iterator->key() != key) return Missing(key);
      ASSIGN_OR_RETURN(Event event, DecodeEvent(key, ToView(iterator->value())));
      CutAt(segment, event);
      const int64_t before = event.position - static_cast<int64_t>(event.tokens.size());
      const bool first_of_all = next == 1;
      if ((first_of_all && before != 0) || (!events.empty() && before != events.back().position) ||
          (next == segment.last_seq && event.position != segment.last_position)) {
        return DataLoss("{} does not fit its neighbours: it covers tokens [{}, {})",
                        Describe(RecordKind::kEvent, key), before, event.position);
      }
      events.push_back(std::move(event));
    }
  }
  return events;
}

absl::StatusOr<ResolvedPoint> ResolvePoint(const Database& database, const TimelineView& timeline,
                                           const Point& point, const rocksdb::Snapshot* snapshot) {
  if (point.seq.has_value() == point.position.has_value()) {
    return InvalidArgument("a point needs either an event number or a position");
  }
  const auto position_of = [&](uint64_t seq) -> absl::StatusOr<int64_t> {
    if (seq == 0) return 0;
    ASSIGN_OR_RETURN(const Event event, ReadEvent(database, timeline, seq, snapshot));
    return event.position;
  };
  if (point.seq.has_value()) {
    if (*point.seq > timeline.head.last_seq) {
      return Error(absl::StatusCode::kOutOfRange,
                   "event {} does not exist: the last one of timeline {} is {}", *point.seq,
                   timeline.id, timeline.head.last_seq);
    }
    ASSIGN_OR_RETURN(const int64_t position, position_of(*point.seq));
    return ResolvedPoint{*point.seq, position};
  }
  if (*point.position < 0 || *point.position > timeline.head.tokens) {
    return Error(absl::StatusCode::kOutOfRange,
                 "position {} does not exist: timeline {} has {} tokens", *point.position,
                 timeline.id, timeline.head.tokens);
  }
  // The last event whose position is <= the point's: positions never fall along a timeline.
  uint64_t low = 0, high = timeline.head.last_seq;
  while (low < high) {
    const uint64_t middle = low + (high - low + 1) / 2;
    ASSIGN_OR_RETURN(const int64_t position, position_of(middle));
    if (position <= *point.position) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  ASSIGN_OR_RETURN(const int64_t position, position_of(low));
  return ResolvedPoint{position == *point.position ? low : low + 1, *point.position};
}

std::vector<Segment> AncestryAt(const TimelineView& timeline, const ResolvedPoint& point) {
  std::vector<Segment> ancestry;
  for (const Segment& segment : timeline.record.ancestry) {
    if (segment.last_seq >= point.seq) break;
    ancestry.push_back(segment);
  }
  if (point.seq > 0)
    ancestry.push_back({SegmentOf(timeline, point.seq).timeline, point.seq, point.position});
  return ancestry;
}

// ---- hashes

BlockHasher::BlockHasher(std::string owner_key, const Sha256Digest& identity)
    : key_(std::move(owner_key)), identity_(identity) {
  root_ = HmacSha256(key_, ByteWriter().Put('R').Digest(identity_).str());
}

BlockHash BlockHasher::Block(const BlockHash& parent, std::span<const TokenId> tokens) const {
  ByteWriter message;
  message.Put('B').Digest(identity_).Digest(parent);
  message.Bytes({reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()});
  return HmacSha256(key_, message.str());
}

Sha256Digest BlockHasher::Prefix(const BlockHash& parent, int64_t position,
                                 std::span<const TokenId> open) const {
  ByteWriter message;
  message.Put('A').Digest(identity_).Digest(parent).Put(position);
  message.Bytes({reinterpret_cast<const char*>(open.data()), open.size_bytes()});
  return HmacSha256(key_, message.str());
}

void ExtendHashes(const BlockHasher& hasher, std::span<const TokenId> tokens,
                  std::vector<BlockHash>& hashes) {
  const size_t blocks = tokens.size() / kBlockTokens;
  while (hashes.size() < blocks) {
    const BlockHash parent = hashes.empty() ? hasher.root() : hashes.back();
    hashes.push_back(
        hasher.Block(parent, tokens.subspan(hashes.size() * kBlockTokens, kBlockTokens)));
  }
}

Sha256Digest PrefixAt(const BlockHasher& hasher, const std::vector<BlockHash>& hashes,
                      std::span<const TokenId> tokens, int64_t position) {
  const int64_t open = position % kBlockTokens;
  return hasher.Prefix(
      ParentAt(hasher, hashes, position), position,
      tokens.subspan(static_cast<size_t>(position - open), static_cast<size_t>(open)));
}

}  // namespace agentd::sessions::internal
