// Fork, rewind and delete: the operations on the tree of timelines. Each is one synced batch.
#include <algorithm>
#include <map>
#include <set>

#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"
#include "sessions/store_impl.h"
#include "sessions/value_removal.h"

namespace agentd::sessions::internal {
namespace {

constexpr int kAnchorAttempts = 4;  // a timeline replaces its tail once in a thousand tokens

std::string EventPrefix(TimelineId timeline) {
  std::string key;
  AppendBigEndian(key, timeline);
  return key;
}

struct ListedAnchor {
  std::string entry_key;
  int64_t position = 0;
  Sha256Digest anchor{};
};

// The newest anchor that `source` or an ancestor of it lists at or before `position`, as of now. A
// timeline without events before the point counts too, though a branch shares none of its events:
// it may have listed an anchor where it began.
absl::StatusOr<std::optional<ListedAnchor>> FindListedAnchor(const Database& database,
                                                             const TimelineView& source,
                                                             int64_t position) {
  std::vector<Segment> chain = source.record.ancestry;
  chain.push_back({source.id, source.head.last_seq, source.head.tokens});
  std::optional<ListedAnchor> newest;
  const std::unique_ptr<rocksdb::Iterator> iterator = database.Iterate(Column::kTimelines);
  for (const Segment& segment : chain) {
    const std::string prefix = Key('a', segment.timeline);
    const int64_t furthest = std::min(segment.last_position, position);
    iterator->SeekForPrev(AnchorEntryKey(segment.timeline, furthest, UINT64_MAX));
    if (!iterator->Valid() || !iterator->key().starts_with(prefix)) continue;
    const std::string_view key = ToView(iterator->key());
    const absl::StatusOr<Sha256Digest> anchor =
        DecodeDigest(RecordKind::kAnchorEntry, key, ToView(iterator->value()));
    if (!anchor.ok()) continue;  // a cache's listing: the fork works without
    const int64_t at = static_cast<int64_t>(BigEndianAt(key, 9));
    if (!newest.has_value() || at >= newest->position)
      newest = ListedAnchor{std::string(key), at, *anchor};
  }
  RETURN_IF_ERROR(Translate(iterator->status(), "looking for an anchor to share"));
  return newest;
}

// What the timelines say of each other, seen from a session that is to be deleted.
struct Kinship {
  std::set<TimelineId> own;
  std::map<TimelineId, Segment> shared;  // the furthest that other live timelines share of each
  std::set<TimelineId> touched;          // what the session's own share of
  std::set<TimelineId> kept_before;      // deleted, kept for those who share them
  TimelineId newest_unreadable = 0;      // of the others
  absl::Status unreadable;               // its damage
};

absl::StatusOr<Kinship> ReadKinship(const Database& database, const std::string& session_id,
                                    TimelineId current) {
  Kinship kin;
  if (current != 0) kin.own.insert(current);
  RETURN_IF_ERROR(
      database.Scan(Column::kTimelines, "t", [&](std::string_view key, std::string_view value) {
        const TimelineId timeline = BigEndianAt(key, 1);
        const absl::StatusOr<TimelineRecord> record = DecodeTimeline(key, value);
        if (!record.ok()) {
          if (timeline == current) return absl::OkStatus();
          kin.newest_unreadable = timeline;  // keys ascend
          kin.unreadable = record.status();
          return absl::OkStatus();
        }
        if (record->session.empty()) kin.kept_before.insert(timeline);
        if (record->session == session_id) kin.own.insert(timeline);
        for (const Segment& segment : record->ancestry) {
          if (record->session == session_id) {
            kin.touched.insert(segment.timeline);
          } else if (!record->session.empty()) {
            Segment& most = kin.shared[segment.timeline];
            if (std::pair(most.last_seq, most.last_position) <
                std::pair(segment.last_seq, segment.last_position)) {
              most = segment;
            }
          }
        }
        return absl::OkStatus();
      }));
  return kin;
}

}  // namespace

absl::StatusOr<ValuesInUse::Use> StoreImpl::ListSharedAnchor(const TimelineView& source,
                                                             const ResolvedPoint& point,
                                                             TimelineId timeline,
                                                             std::vector<WriteEntry>& writes) {
  // The source may run on, and replace the anchor while we look at it. Once it is registered as in
  // use that ends: if it is still listed then, it stays.
  for (int attempt = 0; attempt < kAnchorAttempts; ++attempt) {
    ASSIGN_OR_RETURN(const std::optional<ListedAnchor> found,
                     FindListedAnchor(*database_, source, point.position));
    if (!found.has_value()) break;
    ValuesInUse::Use use = pipeline_.values_in_use().Register({found->anchor});
    pipeline_.values_in_use().AwaitRemovals({found->anchor});
    ASSIGN_OR_RETURN(const std::optional<std::string> listed,
                     database_->Get(Column::kTimelines, found->entry_key));
    if (!listed.has_value()) continue;
    const std::string entry_key =
        AnchorEntryKey(timeline, found->position, BigEndianAt(found->entry_key, 17));
    const std::string reference_key = AnchorReferenceKey(found->anchor, timeline);
    writes.push_back({Column::kTimelines, entry_key,
                      EncodeDigest(RecordKind::kAnchorEntry, entry_key, found->anchor)});
    writes.push_back({Column::kTimelines, reference_key,
                      Frame(RecordKind::kAnchorReference, reference_key, "")});
    return use;
  }
  return ValuesInUse::Use();
}

absl::StatusOr<SessionInfo> StoreImpl::Fork(std::string_view session_id, const Point& at,
                                            const NewSession& session) {
  RETURN_IF_ERROR(CheckNewSession(session));
  RETURN_IF_ERROR(HasherOf(session.owner, /*create=*/true).status());
  std::shared_lock branch(branch_mutex_);
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  ASSIGN_OR_RETURN(const auto source, ReadSession(session_id, snapshot.get()));
  ASSIGN_OR_RETURN(const ResolvedPoint point,
                   ResolvePoint(*database_, source.second, at, snapshot.get()));
  SessionInfo info = NewInfo(session);
  std::vector<WriteEntry> writes;
  info.timeline = NewTimeline(writes);
  info.last_seq = info.forked_at_seq = point.seq;
  info.tokens = point.position;
  info.forked_from = std::string(session_id);
  AddSession(info, writes);
  AddTimeline(info.timeline, {info.id, info.seed, AncestryAt(source.second, point)},
              {info.last_seq, info.tokens, info.updated_us}, writes);
  ASSIGN_OR_RETURN(const ValuesInUse::Use anchor,
                   ListSharedAnchor(source.second, point, info.timeline, writes));
  CrashPoint("fork_before");
  RETURN_IF_ERROR(pipeline_.SubmitAndWait(std::move(writes), NewSummary(info)));
  CrashPoint("fork_after");
  return info;
}

absl::StatusOr<SessionInfo> StoreImpl::Rewind(std::string_view session_id, const Point& to,
                                              uint64_t seed) {
  std::shared_lock branch(branch_mutex_);
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  ASSIGN_OR_RETURN(auto source, ReadSession(session_id, snapshot.get()));
  ASSIGN_OR_RETURN(const ResolvedPoint point,
                   ResolvePoint(*database_, source.second, to, snapshot.get()));
  std::vector<WriteEntry> writes;
  SessionRecord& record = source.first;
  record.timeline = NewTimeline(writes);
  const std::string key = SessionKey(session_id);
  writes.push_back({Column::kTimelines, key, EncodeSession(key, record)});
  const HeadRecord head = {point.seq, point.position, NowUs()};
  AddTimeline(record.timeline, {std::string(session_id), seed, AncestryAt(source.second, point)},
              head, writes);
  ASSIGN_OR_RETURN(const ValuesInUse::Use anchor,
                   ListSharedAnchor(source.second, point, record.timeline, writes));
  CrashPoint("rewind_before");
  SummaryChange summary;
  summary.session = std::string(session_id);
  summary.key = SummaryKey(record.owner, session_id);
  summary.apply = [timeline = record.timeline, seed, head](SessionInfo& shown) {
    shown.timeline = timeline;
    shown.seed = seed;
    SetHead(head, shown);
  };
  RETURN_IF_ERROR(pipeline_.SubmitAndWait(std::move(writes), std::move(summary)));
  CrashPoint("rewind_after");
  return Get(session_id);
}

// ---- delete

struct StoreImpl::Removal {
  std::vector<WriteEntry> writes;
  std::set<std::string> listings;  // keys of the listings that go
  std::set<BlockHash> blocks;      // what they listed
  std::set<Sha256Digest> anchors;
  std::set<TreeId> trees;
  std::vector<TimelineId> timelines;
  std::optional<ValuesInUse::Claim> claim;  // on the blocks and anchors that go
  absl::Status kept;                        // not OK: why events and values stay that would go

  void Drop(Column column, std::string_view key) {
    writes.push_back({column, std::string(key), std::nullopt});
  }
  void DropListing(std::string_view key) {
    Drop(Column::kTimelines, key);
    listings.emplace(key);
  }
};

// New commits fail from here on; the queued ones are through when it returns. A timeline whose
// record is damaged is stopped if it is `current`; nobody can commit to another.
absl::StatusOr<std::vector<std::shared_ptr<TimelineState>>> StoreImpl::StopTimelines(
    const std::string& session_id, TimelineId current) {
  std::set<TimelineId> timelines;
  if (current != 0) timelines.insert(current);
  RETURN_IF_ERROR(
      database_->Scan(Column::kTimelines, "t", [&](std::string_view key, std::string_view value) {
        const absl::StatusOr<TimelineRecord> record = DecodeTimeline(key, value);
        if (record.ok() && record->session == session_id) timelines.insert(BigEndianAt(key, 1));
        return absl::OkStatus();
      }));
  std::vector<std::shared_ptr<TimelineState>> stopped;
  for (const TimelineId timeline : timelines) {
    const std::shared_ptr<TimelineState> state = StateOf(timeline);
    std::unique_lock lock(state->mutex);
    state->rejecting = NotFound("session {} is deleted", session_id);
    state->deleting = true;
    state->idle.wait(lock, [&] { return state->pending == 0; });
    stopped.push_back(state);
  }
  return stopped;
}

// Takes away what lies after `keep` (null: everything), which live forks still share.
absl::Status StoreImpl::RemoveTimeline(TimelineId timeline, const Segment* keep,
                                       Removal& removal) const {
  const uint64_t keep_seq = keep == nullptr ? 0 : keep->last_seq;
  const int64_t keep_position = keep == nullptr ? 0 : keep->last_position;
  removal.timelines.push_back(timeline);
  RETURN_IF_ERROR(database_->Scan(
      Column::kEvents, EventPrefix(timeline), [&](std::string_view key, std::string_view value) {
        const uint64_t seq = BigEndianAt(key, 8);
        if (seq > keep_seq) removal.Drop(Column::kEvents, key);
        if (seq != keep_seq) return absl::OkStatus();
        absl::StatusOr<Event> event = DecodeEvent(key, value);
        if (!event.ok() || event->position <= keep_position) return absl::OkStatus();
        // The run in which the furthest fork cut: the rest of it is the deleted session's.
        const size_t cut = static_cast<size_t>(event->position - keep_position);
        if (cut > event->tokens.size()) return absl::OkStatus();
        event->tokens.resize(event->tokens.size() - cut);
        event->position = keep_position;
        removal.writes.push_back({Column::kEvents, std::string(key), EncodeEvent(key, *event)});
        return absl::OkStatus();
      }));
  RETURN_IF_ERROR(database_->Scan(
      Column::kTimelines, Key('b', timeline), [&](std::string_view key, std::string_view value) {
        if (static_cast<int64_t>(BigEndianAt(key, 9) + 1) * kBlockTokens <= keep_position)
          return absl::OkStatus();
        removal.DropListing(key);
        if (const auto hash = DecodeDigest(RecordKind::kBlockEntry, key, value); hash.ok())
          removal.blocks.insert(*hash);
        return absl::OkStatus();
      }));
  RETURN_IF_ERROR(database_->Scan(
      Column::kTimelines, Key('a', timeline), [&](std::string_view key, std::string_view value) {
        if (static_cast<int64_t>(BigEndianAt(key, 9)) <= keep_position) return absl::OkStatus();
        removal.DropListing(key);
        if (const auto hash = DecodeDigest(RecordKind::kAnchorEntry, key, value); hash.ok()) {
          removal.DropListing(AnchorReferenceKey(*hash, timeline));
          removal.anchors.insert(*hash);
        }
        return absl::OkStatus();
      }));
  RETURN_IF_ERROR(database_->Scan(
      Column::kTimelines, Key('w', timeline), [&](std::string_view key, std::string_view value) {
        if (BigEndianAt(key, 9) <= keep_seq) return absl::OkStatus();
        removal.DropListing(key);
        if (const auto tree = DecodeDigest(RecordKind::kWorkspaceEntry, key, value); tree.ok())
          removal.trees.insert(*tree);
        return absl::OkStatus();
      }));
  const std::string key = TimelineKey(timeline), head_key = HeadKey(timeline);
  removal.Drop(Column::kTimelines, TailKey(timeline));
  if (keep == nullptr) {
    removal.Drop(Column::kTimelines, key);
    removal.Drop(Column::kTimelines, head_key);
  } else {
    AddTimeline(timeline, {}, {keep_seq, keep_position, 0}, removal.writes);
  }
  return absl::OkStatus();
}

absl::Status StoreImpl::PlanRemoval(const std::string& session_id, TimelineId current,
                                    Removal& removal) {
  ValuesInUse::Watch watch(pipeline_.values_in_use());
  ASSIGN_OR_RETURN(const Kinship kin, ReadKinship(*database_, session_id, current));
  std::set<TimelineId> targets = kin.own;
  // One that nobody shares was kept for a timeline that could not be read.
  for (const TimelineId timeline : kin.kept_before) {
    if (kin.touched.contains(timeline) || !kin.shared.contains(timeline)) targets.insert(timeline);
  }
  for (const TimelineId timeline : targets) {
    // A timeline shares of older ones, and so of lower numbers, alone.
    if (timeline < kin.newest_unreadable) {
      // All of it stays, as a deleted session's.
      const std::string key = TimelineKey(timeline);
      removal.timelines.push_back(timeline);
      removal.writes.push_back({Column::kTimelines, key, EncodeTimeline(key, {})});
      removal.kept = kin.unreadable;
      continue;
    }
    const auto found = kin.shared.find(timeline);
    RETURN_IF_ERROR(
        RemoveTimeline(timeline, found == kin.shared.end() ? nullptr : &found->second, removal));
  }
  RETURN_IF_ERROR(RemoveUnreferenced(watch, removal));
  return RemoveFiles(removal);
}

// Blocks and anchors that no remaining timeline lists, nor one that is on its way.
absl::Status StoreImpl::RemoveUnreferenced(ValuesInUse::Watch& watch, Removal& removal) const {
  std::set<BlockHash> unlisted = removal.blocks;
  if (!unlisted.empty()) {
    RETURN_IF_ERROR(
        database_->Scan(Column::kTimelines, "b", [&](std::string_view key, std::string_view value) {
          if (removal.listings.contains(std::string(key))) return absl::OkStatus();
          if (const auto hash = DecodeDigest(RecordKind::kBlockEntry, key, value); hash.ok())
            unlisted.erase(*hash);
          return absl::OkStatus();
        }));
  }
  for (const Sha256Digest& anchor : removal.anchors) {
    bool referenced = false;
    RETURN_IF_ERROR(database_->Scan(Column::kTimelines, AnchorReferencePrefix(anchor),
                                    [&](std::string_view key, std::string_view) {
                                      referenced = referenced ||
                                                   !removal.listings.contains(std::string(key));
                                      return absl::OkStatus();
                                    }));
    if (!referenced) unlisted.insert(anchor);
  }
  removal.claim.emplace(watch.ClaimUnused(std::move(unlisted)));
  for (const BlockHash& block : removal.blocks) {
    if (removal.claim->Has(block))
      RETURN_IF_ERROR(AddBlockRemoval(*database_, block, removal.writes).status());
  }
  for (const Sha256Digest& anchor : removal.anchors) {
    if (removal.claim->Has(anchor))
      RETURN_IF_ERROR(AddAnchorRemoval(*database_, anchor, removal.writes).status());
  }
  return absl::OkStatus();
}

absl::Status StoreImpl::RemoveFiles(Removal& removal) const {
  if (removal.trees.empty()) return absl::OkStatus();
  std::set<std::string> held, named, dropped;
  // What is held first: a commit that is through in between has written its listing by then.
  for (const TreeId& tree : files_.Held()) RETURN_IF_ERROR(files_.Mark(tree, held));
  ASSIGN_OR_RETURN(const bool complete, MarkNamedFiles(removal.listings, named));
  if (!complete) return absl::OkStatus();  // better too much kept than a file lost
  for (const TreeId& tree : removal.trees) RETURN_IF_ERROR(files_.Mark(tree, dropped));
  for (const std::string& key : dropped) {
    if (named.contains(key)) continue;
    // A snapshot that found it here may never be named: then the next open sweeps it.
    const std::string intent = IntentKey('f', key);
    if (held.contains(key)) {
      removal.writes.push_back({Column::kMeta, intent, Frame(RecordKind::kIntent, intent, "")});
    } else {
      removal.Drop(Column::kFiles, key);
    }
  }
  return absl::OkStatus();
}

// For a session whose record cannot be read. NotFound: there is no such session.
absl::StatusOr<std::string> StoreImpl::FindIndexKey(const std::string& session_id) const {
  std::optional<std::string> found;
  RETURN_IF_ERROR(
      database_->Scan(Column::kTimelines, "o", [&](std::string_view key, std::string_view) {
        const size_t rest = OwnerIndexPrefix("").size();
        if (key.size() < rest + session_id.size() || !key.ends_with(session_id))
          return absl::OkStatus();
        const std::string_view tag = key.substr(rest, key.size() - rest - session_id.size());
        if (key == OwnerIndexPrefix(tag) + session_id) found = std::string(key);
        return absl::OkStatus();
      }));
  if (!found.has_value()) return NotFound("session {} does not exist", session_id);
  return *std::move(found);
}

absl::Status StoreImpl::Delete(std::string_view session_id) {
  const std::string id(session_id);
  std::unique_lock branch(branch_mutex_);
  const std::string key = SessionKey(id);
  ASSIGN_OR_RETURN(const std::optional<std::string> value, database_->Get(Column::kTimelines, key));
  absl::StatusOr<SessionRecord> record = NotFound("session {} does not exist", id);
  if (value.has_value()) record = DecodeSession(key, *value);
  if (absl::IsFailedPrecondition(record.status())) return record.status();  // a newer program's
  std::string index_key;
  if (record.ok()) {
    index_key = OwnerIndexPrefix(database_->OwnerTag(record->owner)) + id;
  } else {
    // A damaged session can still be got rid of.
    record = SessionRecord();
    ASSIGN_OR_RETURN(index_key, FindIndexKey(id));
  }
  ASSIGN_OR_RETURN(const std::vector<std::shared_ptr<TimelineState>> stopped,
                   StopTimelines(id, record->timeline));
  Removal removal;
  absl::Status removed = Remove(id, index_key, *record, removal);
  if (!removed.ok()) {
    for (const std::shared_ptr<TimelineState>& state : stopped) {
      std::lock_guard lock(state->mutex);
      state->deleting = false;
    }
    return removed;
  }
  {
    std::lock_guard lock(mutex_);
    for (const TimelineId timeline : removal.timelines) states_.erase(timeline);
  }
  branch.unlock();
  const absl::Status erased = EraseFromDisk(id, index_key, removal.timelines);
  space_.EndDelete(/*deleted=*/true, /*whole=*/!erased.ok());
  RETURN_IF_ERROR(Annotate(
      erased, fmt::format("session {} is deleted, but its bytes are still on the disk", id)));
  return Annotate(removal.kept, fmt::format("session {} is deleted, but its events and values stay "
                                            "while another session, which may share them, cannot "
                                            "be read: delete that one",
                                            id));
}

absl::Status StoreImpl::Remove(const std::string& session_id, const std::string& index_key,
                               const SessionRecord& record, Removal& removal) {
  std::unique_lock sweep(files_.sweep_mutex());
  RETURN_IF_ERROR(PlanRemoval(session_id, record.timeline, removal));
  removal.Drop(Column::kTimelines, index_key);
  removal.Drop(Column::kTimelines, SessionKey(session_id));
  removal.Drop(Column::kTimelines, SessionMetaKey(session_id));
  std::set<std::string> files;
  for (const WriteEntry& write : removal.writes)
    if (write.column == Column::kFiles) files.insert(write.key);
  workspaces_.Forget(files);  // they go, perhaps even if the batch is called failed
  removal.writes.push_back(space_.BeginDelete());
  CrashPoint("delete_before");
  const absl::Status written = pipeline_.SubmitAndWait(
      std::move(removal.writes),
      SummaryChange{SummaryChange::Kind::kDeleted, session_id, index_key, nullptr, std::nullopt},
      /*removes_values=*/true);
  if (!written.ok()) space_.EndDelete(/*deleted=*/false, /*whole=*/false);
  RETURN_IF_ERROR(written);
  CrashPoint("delete_after");
  removal.claim.reset();
  return absl::OkStatus();
}

// So far the events and the meta are only marked as deleted: takes them off the disk, out of the
// log first.
absl::Status StoreImpl::EraseFromDisk(const std::string& session_id, const std::string& index_key,
                                      const std::vector<TimelineId>& timelines) {
  RETURN_IF_ERROR(database_->Flush({Column::kTimelines, Column::kEvents, Column::kKv,
                                    Column::kAnchors, Column::kFiles, Column::kMeta}));
  // A damaged table that lies in one range stops no other.
  absl::Status status;
  for (const TimelineId timeline : timelines) {
    status.Update(
        database_->Compact(Column::kEvents, EventPrefix(timeline), EventPrefix(timeline + 1)));
  }
  for (const std::string& key : {SessionMetaKey(session_id), index_key})
    status.Update(database_->Compact(Column::kTimelines, key, key + '\xff'));
  CrashPoint("delete_compacted");
  return status;
}

}  // namespace agentd::sessions::internal
