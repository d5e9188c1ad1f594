#include "sessions/doctor_findings.h"

#include <utility>

#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/keys.h"

namespace agentd::sessions {

const char* NameOf(Harm harm) {
  switch (harm) {
    case Harm::kNothing:
      return "nothing";
    case Harm::kTime:
      return "time";
    case Harm::kFiles:
      return "files";
    case Harm::kSession:
      return "session";
    case Harm::kStore:
      return "store";
  }
  return "unknown";
}

namespace internal {
namespace {

struct Consequence {
  Harm harm;
  const char* kind;
  const char* costs;
  const char* mend;
};

constexpr char kRefused[] = "the session is refused with this name; no other is touched";
constexpr char kFromCopy[] =
    "put the store back from a copy, or give the session up: agentctl delete";
constexpr char kAgain[] = "computed again from the token log when a turn wants it";
constexpr char kNextTurn[] = "the next turn that restores it stores it anew";
constexpr char kWithSession[] = "it goes with the session";

Consequence ConsequenceOf(RecordKind kind) {
  switch (kind) {
    case RecordKind::kSession:
      return {Harm::kSession, "session", kRefused, kFromCopy};
    case RecordKind::kSessionMeta:
      return {Harm::kSession, "meta", kRefused, kFromCopy};
    case RecordKind::kTimeline:
      return {Harm::kSession, "timeline", kRefused, kFromCopy};
    case RecordKind::kHead:
      return {Harm::kSession, "head", kRefused, kFromCopy};
    case RecordKind::kEvent:
      return {Harm::kSession, "event", kRefused,
              "a fork from before it goes on: agentctl fork ID --at SEQ"};
    case RecordKind::kOwnerIndex:
      return {Harm::kNothing, "owner-index", "nothing: its key says enough", kWithSession};
    case RecordKind::kSummary:
      return {Harm::kNothing, "summary", "a list may show the session as it was, or take longer",
              "the session's next commit writes it anew, unless it can be read"};
    case RecordKind::kAnchorIndex:
      return {Harm::kNothing, "anchor-index", "nothing: its key says enough",
              "it goes with the anchor"};
    case RecordKind::kAnchorReference:
      return {Harm::kNothing, "anchor-reference", "nothing: its key says enough", kWithSession};
    case RecordKind::kTail:
      return {Harm::kNothing, "tail", "a little space: the anchor stays that the next one replaces",
              "the session's next anchor writes it anew"};
    case RecordKind::kBlockEntry:
      return {Harm::kTime, "block-listing",
              "time: the block goes when the others who share it are deleted", kWithSession};
    case RecordKind::kAnchorEntry:
      return {Harm::kTime, "anchor-listing", "a fork does not find the anchor, and it stays",
              kWithSession};
    case RecordKind::kWorkspaceEntry:
      return {Harm::kNothing, "workspace-listing",
              "space: while it is there no deletion frees files", kWithSession};
    case RecordKind::kBlockName:
      return {Harm::kTime, "block-name", kAgain, kNextTurn};
    case RecordKind::kAnchorName:
      return {Harm::kTime, "anchor-name", kAgain, kNextTurn};
    case RecordKind::kKvPart:
      return {Harm::kTime, "kv", kAgain, kNextTurn};
    case RecordKind::kAnchor:
      return {Harm::kTime, "anchor", kAgain, kNextTurn};
    case RecordKind::kChunk:
    case RecordKind::kDirectory:
      return {Harm::kFiles, kind == RecordKind::kChunk ? "file" : "directory",
              "the workspace cannot be brought back as it was there",
              "saving a workspace that holds the same contents stores it anew; else fork or rewind "
              "to another event"};
    case RecordKind::kOwnerKey:
      return {Harm::kTime, "owner-key", "all cached KV of this owner: computed again",
              "the next turn makes a new key"};
    case RecordKind::kNextTimeline:
      return {Harm::kNothing, "timeline-counter", "nothing: it is found again from the timelines",
              "the next session or fork writes it anew"};
    case RecordKind::kIntent:
      return {Harm::kNothing, "intent", "nothing: its key says enough", "the next start sweeps it"};
    case RecordKind::kErasure:
      return {Harm::kNothing, "erasure", "nothing: that it is there says enough",
              "the erasure that the next start begins"};
    case RecordKind::kEpoch:
      return {Harm::kStore, "epoch", "the store is refused",
              "delete the file EPOCH; no process may have the store open then"};
    case RecordKind::kKeys:
      return {Harm::kStore, "keys", "the store is refused",
              "put KEYS or KEYS.copy back from a copy"};
  }
  return {Harm::kNothing, "unknown", "unknown", "a newer agentctl may know it"};
}

bool IsOf(RecordKind kind, std::initializer_list<RecordKind> kinds) {
  for (const RecordKind other : kinds) {
    if (kind == other) return true;
  }
  return false;
}

bool IsTimelines(RecordKind kind) {
  return IsOf(kind,
              {RecordKind::kTimeline, RecordKind::kHead, RecordKind::kTail, RecordKind::kBlockEntry,
               RecordKind::kAnchorEntry, RecordKind::kWorkspaceEntry});
}

// Where a digest stands in the key of a block's, or an anchor's, record.
bool IsBlocks(RecordKind kind, size_t* offset) {
  *offset = kind == RecordKind::kKvPart ? 0 : 1;
  return IsOf(kind, {RecordKind::kBlockName, RecordKind::kKvPart});
}
bool IsAnchors(RecordKind kind, size_t* offset) {
  *offset = kind == RecordKind::kAnchor ? 0 : 1;
  return IsOf(kind, {RecordKind::kAnchorName, RecordKind::kAnchor, RecordKind::kAnchorReference});
}

}  // namespace

void Directory::AddTimeline(TimelineId timeline, TimelineRecord record) {
  timelines_[timeline] = std::move(record);
}
void Directory::AddSession(const std::string& id, const SessionRecord& record) {
  current_[record.timeline] = id;
}
void Directory::AddBlock(const BlockHash& block, TimelineId timeline, int64_t index) {
  blocks_.try_emplace(block, Place{timeline, index});
}
void Directory::AddAnchor(const Sha256Digest& anchor, TimelineId timeline, int64_t position) {
  anchors_.try_emplace(anchor, Place{timeline, position});
}
void Directory::AddFile(const std::string& key, TimelineId timeline, uint64_t seq,
                        const std::string& path) {
  files_.try_emplace(key, FilePlace{timeline, seq, path});
}

std::string Directory::OwnerOf(TimelineId timeline) const {
  const auto found = timelines_.find(timeline);
  if (found != timelines_.end() && !found->second.session.empty())
    return "session " + found->second.session;
  if (const auto current = current_.find(timeline); current != current_.end())
    return "session " + current->second;
  return fmt::format("timeline {}", timeline);
}

std::vector<std::string> Directory::SessionsWith(TimelineId timeline, uint64_t seq) const {
  std::vector<std::string> sessions;
  for (const auto& [current, session] : current_) {
    bool has = current == timeline;
    if (const auto record = timelines_.find(current); record != timelines_.end()) {
      uint64_t before = 0;
      for (const Segment& segment : record->second.ancestry) {
        has = has || (segment.timeline == timeline && seq > before && seq <= segment.last_seq);
        before = segment.last_seq;
      }
      // Its own events come after its ancestors'.
      if (current == timeline && seq <= before) has = false;
    }
    if (has) sessions.push_back(session);
  }
  return sessions;
}

std::vector<std::string> Directory::Concerned(RecordKind kind, std::string_view key) const {
  const auto of = [&](TimelineId timeline) -> std::vector<std::string> {
    const auto found = timelines_.find(timeline);
    if (found != timelines_.end() && !found->second.session.empty()) return {found->second.session};
    const auto current = current_.find(timeline);
    if (current != current_.end()) return {current->second};
    return {};
  };
  size_t offset = 0;
  if (IsOf(kind, {RecordKind::kSession, RecordKind::kSessionMeta}))
    return {std::string(key.substr(1))};
  if (kind == RecordKind::kSummary) return {std::string(SessionInSummaryKey(key))};
  if (IsTimelines(kind) && key.size() >= 9) return of(BigEndianAt(key, 1));
  if (kind == RecordKind::kEvent && key.size() == 16)
    return SessionsWith(BigEndianAt(key, 0), BigEndianAt(key, 8));
  if (IsBlocks(kind, &offset) && key.size() >= offset + sizeof(BlockHash)) {
    const auto found = blocks_.find(DigestAt(key, offset));
    if (found != blocks_.end()) return of(found->second.timeline);
  }
  if (IsAnchors(kind, &offset) && key.size() >= offset + sizeof(Sha256Digest)) {
    const auto found = anchors_.find(DigestAt(key, offset));
    if (found != anchors_.end()) return of(found->second.timeline);
  }
  if (const auto found = files_.find(std::string(key)); found != files_.end())
    return SessionsWith(found->second.timeline, found->second.seq);
  return {};
}

std::string Directory::Name(RecordKind kind, std::string_view key) const {
  const std::string record = Describe(kind, key);
  size_t offset = 0;
  if (kind == RecordKind::kEvent && key.size() == 16)
    return fmt::format("event {} of {}", BigEndianAt(key, 8), OwnerOf(BigEndianAt(key, 0)));
  if (IsTimelines(kind) && key.size() >= 9)
    return fmt::format("{} ({})", record, OwnerOf(BigEndianAt(key, 1)));
  if (IsBlocks(kind, &offset) && key.size() >= offset + sizeof(BlockHash)) {
    const auto found = blocks_.find(DigestAt(key, offset));
    if (found == blocks_.end()) return record;
    const int64_t first = found->second.number * kBlockTokens;
    return fmt::format("{} (tokens {} to {} of {})", record, first, first + kBlockTokens - 1,
                       OwnerOf(found->second.timeline));
  }
  if (IsAnchors(kind, &offset) && key.size() >= offset + sizeof(Sha256Digest)) {
    const auto found = anchors_.find(DigestAt(key, offset));
    if (found == anchors_.end()) return record;
    return fmt::format("{} (after {} tokens of {})", record, found->second.number,
                       OwnerOf(found->second.timeline));
  }
  if (const auto found = files_.find(std::string(key)); found != files_.end()) {
    const FilePlace& place = found->second;
    return fmt::format("{} \"{}\" of the workspace at event {} of {}",
                       kind == RecordKind::kChunk ? "file" : "directory", place.path, place.seq,
                       OwnerOf(place.timeline));
  }
  return record;
}

Finding Directory::Explain(RecordKind kind, std::string_view key) const {
  const Consequence consequence = ConsequenceOf(kind);
  Finding finding;
  finding.harm = consequence.harm;
  finding.kind = consequence.kind;
  finding.what = Name(kind, key);
  finding.costs = consequence.costs;
  finding.mend = consequence.mend;
  finding.sessions = Concerned(kind, key);
  if (kind == RecordKind::kEvent && key.size() == 16 && !finding.sessions.empty()) {
    finding.mend = fmt::format("a fork from before it goes on: agentctl fork {} --at {}",
                               finding.sessions[0], BigEndianAt(key, 8) - 1);
  }
  return finding;
}

}  // namespace internal
}  // namespace agentd::sessions
