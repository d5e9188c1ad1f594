// Commits, and reading back what they wrote.
#include <algorithm>

#include "base/status.h"
#include "sessions/keys.h"
#include "sessions/store_impl.h"

namespace agentd::sessions::internal {
namespace {

// Tokens kept in memory for all timelines together, in states that nobody is writing to.
constexpr size_t kIdleTokens = 32 << 20;
constexpr size_t kIdleStates = 4096;
// A look passes all of them.
constexpr size_t kStatesBetweenLooks = 16;

}  // namespace

std::shared_ptr<TimelineState> StoreImpl::StateOf(TimelineId timeline) {
  std::lock_guard lock(mutex_);
  if (const auto found = states_.find(timeline); found != states_.end()) return found->second;
  ForgetIdleStates();
  return states_.emplace(timeline, std::make_shared<TimelineState>(timeline)).first->second;
}

void StoreImpl::ForgetState(const std::shared_ptr<TimelineState>& state) {
  std::lock_guard lock(mutex_);
  const auto found = states_.find(state->id);
  if (found != states_.end() && found->second == state) states_.erase(found);
}

// The caller holds mutex_. Copies are handed out under it, so a state that only the map holds is
// nobody's.
void StoreImpl::ForgetIdleStates() {
  if (++states_made_ % kStatesBetweenLooks != 0) return;
  size_t tokens = 0;
  std::vector<TimelineId> idle;
  for (const auto& [id, state] : states_) {
    if (state.use_count() > 1) continue;
    std::unique_lock lock(state->mutex, std::try_to_lock);
    if (!lock.owns_lock() || !state->rejecting.ok()) continue;
    tokens += state->tokens.size();
    idle.push_back(id);
  }
  if (tokens <= kIdleTokens && idle.size() <= kIdleStates) return;
  for (const TimelineId id : idle) states_.erase(id);
}

absl::Status StoreImpl::LoadState(TimelineState& state) {
  if (state.loaded) return absl::OkStatus();
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  ASSIGN_OR_RETURN(const TimelineView timeline, ReadTimeline(*database_, state.id, snapshot.get()));
  ASSIGN_OR_RETURN(const auto session, ReadSession(timeline.record.session, snapshot.get()));
  ASSIGN_OR_RETURN(state.hasher, HasherOf(session.first.owner, /*create=*/true));
  ASSIGN_OR_RETURN(const std::vector<Event> events,
                   ReadEventRange(*database_, timeline, 1, UINT64_MAX, snapshot.get()));
  state.tokens.clear();
  state.hashes.clear();
  for (const Event& event : events)
    state.tokens.insert(state.tokens.end(), event.tokens.begin(), event.tokens.end());
  ExtendHashes(*state.hasher, state.tokens, state.hashes);
  const std::string tail_key = TailKey(state.id);
  ASSIGN_OR_RETURN(const std::optional<std::string> tail,
                   database_->Get(Column::kTimelines, tail_key, snapshot.get()));
  state.tail.reset();
  if (tail.has_value()) {
    absl::StatusOr<TailRecord> decoded = DecodeTail(tail_key, *tail);
    // Without it the anchor that it names stays for good: that costs space, not the session.
    if (!decoded.ok() && !absl::IsDataLoss(decoded.status())) return decoded.status();
    if (decoded.ok()) state.tail = *decoded;
  }
  state.session = timeline.record.session;
  state.summary_key = SummaryKey(session.first.owner, state.session);
  state.last_seq = timeline.head.last_seq;
  state.loaded = true;
  return absl::OkStatus();
}

absl::StatusOr<LoadedTimeline> StoreImpl::Load(std::string_view session_id) {
  ASSIGN_OR_RETURN(const SessionInfo current, Get(session_id));
  const TimelineId id = current.timeline;
  // A timeline that rejects commits starts anew from the disk, once what was queued before the
  // error is through.
  std::shared_ptr<TimelineState> rejecting;
  {
    std::lock_guard lock(mutex_);
    if (const auto found = states_.find(id); found != states_.end()) rejecting = found->second;
  }
  if (rejecting != nullptr) {
    std::unique_lock lock(rejecting->mutex);
    if (!rejecting->rejecting.ok()) {
      rejecting->idle.wait(lock, [&] { return rejecting->pending == 0; });
      if (rejecting->deleting) return rejecting->rejecting;
      ForgetState(rejecting);
    }
  }
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  LoadedTimeline loaded;
  ASSIGN_OR_RETURN(loaded.session, ReadInfo(session_id, snapshot.get()));
  ASSIGN_OR_RETURN(const TimelineView timeline,
                   ReadTimeline(*database_, loaded.session.timeline, snapshot.get()));
  ASSIGN_OR_RETURN(const std::vector<Event> events,
                   ReadEventRange(*database_, timeline, 1, UINT64_MAX, snapshot.get()));
  for (const Event& event : events) {
    loaded.tokens.insert(loaded.tokens.end(), event.tokens.begin(), event.tokens.end());
    if (event.kind != static_cast<uint8_t>(EventKind::kWorkspace)) continue;
    if (event.payload.size() != sizeof(TreeId)) {
      return DataLoss("event {} of timeline {} names no workspace tree", event.seq, timeline.id);
    }
    loaded.workspace = DigestAt(event.payload, 0);
  }
  // So that the first commit, perhaps from a thread that should not wait, finds its state in
  // memory.
  const std::shared_ptr<TimelineState> state = StateOf(timeline.id);
  std::lock_guard lock(state->mutex);
  const absl::Status status = LoadState(*state);
  if (absl::IsNotFound(status)) ForgetState(state);  // deleted meanwhile
  RETURN_IF_ERROR(status);
  return loaded;
}

absl::StatusOr<std::vector<Event>> StoreImpl::ReadEvents(TimelineId timeline, uint64_t from_seq,
                                                         int limit) {
  if (limit <= 0) return InvalidArgument("ReadEvents needs a positive limit, not {}", limit);
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  ASSIGN_OR_RETURN(const TimelineView view, ReadTimeline(*database_, timeline, snapshot.get()));
  return ReadEventRange(*database_, view, from_seq, static_cast<uint64_t>(limit), snapshot.get());
}

absl::Status StoreImpl::CheckCommit(const TimelineState& state, const Commit& commit) const {
  size_t tokens = state.tokens.size();
  for (const NewEvent& event : commit.events) {
    const bool is_tokens = event.kind == static_cast<uint8_t>(EventKind::kTokens);
    const bool is_workspace = event.kind == static_cast<uint8_t>(EventKind::kWorkspace);
    if (!is_tokens && !is_workspace && event.kind < kFirstCallerKind) {
      return InvalidArgument("event kind {} is reserved: a caller's kinds start at {}", event.kind,
                             kFirstCallerKind);
    }
    if (is_tokens != !event.tokens.empty() || (is_tokens && !event.payload.empty())) {
      return InvalidArgument("an event of kind {} with {} tokens and {} payload bytes", event.kind,
                             event.tokens.size(), event.payload.size());
    }
    if (is_workspace && event.payload.size() != sizeof(TreeId)) {
      return InvalidArgument("a workspace event needs a tree id of {} bytes", sizeof(TreeId));
    }
    if (event.payload.size() + event.tokens.size() * sizeof(TokenId) > kMaxPayloadBytes / 2) {
      return InvalidArgument("an event is over {} bytes", kMaxPayloadBytes / 2);
    }
    tokens += event.tokens.size();
  }
  for (const KvBlock& block : commit.blocks) {
    if (block.block < 0 || block.block >= static_cast<int64_t>(tokens / kBlockTokens)) {
      return InvalidArgument("block {} is not whole: timeline {} has {} tokens", block.block,
                             state.id, tokens);
    }
    if (block.parts.empty()) return InvalidArgument("block {} has no parts", block.block);
    for (const std::string& part : block.parts) {
      if (part.size() > kMaxPayloadBytes / 2)
        return InvalidArgument("block {} has a part over 512 MiB", block.block);
    }
  }
  if (commit.anchor.has_value()) {
    const KvAnchor& anchor = *commit.anchor;
    if (anchor.position <= 0 || anchor.position > static_cast<int64_t>(tokens)) {
      return InvalidArgument("an anchor at {}: timeline {} has {} tokens", anchor.position,
                             state.id, tokens);
    }
    if (anchor.payload.size() > kMaxPayloadBytes / 2)
      return InvalidArgument("an anchor over 512 MiB");
  }
  if (commit.session_meta.has_value() && commit.session_meta->size() > kMaxPayloadBytes) {
    return InvalidArgument("session meta is over {} bytes", kMaxPayloadBytes);
  }
  return absl::OkStatus();
}

void StoreImpl::AppendEvents(TimelineState& state, Commit& commit, int64_t now_us,
                             Operation& operation, CommitResult& result) {
  for (NewEvent& added : commit.events) {
    Event event;
    event.seq = ++state.last_seq;
    event.kind = added.kind;
    event.sampled = added.sampled;
    event.time_us = added.time_us != 0 ? added.time_us : now_us;
    event.tokens = std::move(added.tokens);
    event.payload = std::move(added.payload);
    state.tokens.insert(state.tokens.end(), event.tokens.begin(), event.tokens.end());
    event.position = static_cast<int64_t>(state.tokens.size());
    const std::string key = EventKey(state.id, event.seq);
    operation.writes.push_back({Column::kEvents, key, EncodeEvent(key, event)});
    if (event.kind == static_cast<uint8_t>(EventKind::kWorkspace)) {
      const TreeId tree = DigestAt(event.payload, 0);
      const std::string entry_key = WorkspaceEntryKey(state.id, event.seq);
      operation.trees.push_back({tree, std::move(added.hold)});
      operation.writes.push_back({Column::kTimelines, entry_key,
                                  EncodeDigest(RecordKind::kWorkspaceEntry, entry_key, tree)});
    }
    result.events.push_back(std::move(event));
  }
  ExtendHashes(*state.hasher, state.tokens, state.hashes);
  const std::string head_key = HeadKey(state.id);
  const HeadRecord head = {state.last_seq, static_cast<int64_t>(state.tokens.size()), now_us};
  operation.writes.push_back({Column::kTimelines, head_key, EncodeHead(head_key, head)});
  SummaryChange& summary = operation.summary.emplace();
  summary.session = state.session;
  summary.key = state.summary_key;
  // A rewind may have left this timeline meanwhile.
  summary.apply = [timeline = state.id, head](SessionInfo& shown) {
    if (shown.timeline == timeline) SetHead(head, shown);
  };
}

// Lists every block that became whole, stored or not: another timeline may store the same one, and
// Delete has to know all that still refer to it.
void StoreImpl::AddBlocks(TimelineState& state, Commit& commit, size_t first_new_block,
                          Operation& operation) const {
  const auto list = [&](size_t block) {
    const std::string key = BlockEntryKey(state.id, static_cast<int64_t>(block), identity_tag_);
    operation.writes.push_back(
        {Column::kTimelines, key, EncodeDigest(RecordKind::kBlockEntry, key, state.hashes[block])});
    operation.hashes.push_back(state.hashes[block]);
  };
  for (size_t block = first_new_block; block < state.hashes.size(); ++block) list(block);
  for (KvBlock& added : commit.blocks) {
    const size_t block = static_cast<size_t>(added.block);
    if (block < first_new_block) list(block);
    operation.blocks.push_back({state.hashes[block],
                                ParentAt(*state.hasher, state.hashes, added.block * kBlockTokens),
                                added.block, std::move(added.parts)});
  }
}

void StoreImpl::AddAnchor(TimelineState& state, Commit& commit, Operation& operation) const {
  KvAnchor& added = *commit.anchor;
  AnchorToStore anchor;
  anchor.position = added.position;
  anchor.parent = ParentAt(*state.hasher, state.hashes, added.position);
  anchor.hash = PrefixAt(*state.hasher, state.hashes, state.tokens, added.position);
  anchor.payload = std::move(added.payload);
  const std::string entry_key = AnchorEntryKey(state.id, anchor.position, identity_tag_);
  const std::string reference_key = AnchorReferenceKey(anchor.hash, state.id);
  const std::string tail_key = TailKey(state.id);
  operation.writes.push_back({Column::kTimelines, entry_key,
                              EncodeDigest(RecordKind::kAnchorEntry, entry_key, anchor.hash)});
  operation.writes.push_back(
      {Column::kTimelines, reference_key, Frame(RecordKind::kAnchorReference, reference_key, "")});
  if (state.tail.has_value() && state.tail->anchor != anchor.hash)
    operation.replaced_tail = state.tail;
  const bool had_tail = state.tail.has_value();
  // One that this timeline has already listed for good stays.
  const absl::StatusOr<std::optional<std::string>> listed =
      database_->Get(Column::kTimelines, entry_key);
  const bool was_tail = state.tail.has_value() && state.tail->anchor == anchor.hash;
  const bool permanent = !added.tail || (!was_tail && listed.ok() && listed->has_value());
  state.tail.reset();
  if (!permanent) state.tail = TailRecord{anchor.position, anchor.hash};
  if (state.tail.has_value()) {
    operation.writes.push_back({Column::kTimelines, tail_key, EncodeTail(tail_key, *state.tail)});
  } else if (had_tail) {
    operation.writes.push_back({Column::kTimelines, tail_key, std::nullopt});
  }
  operation.hashes.push_back(anchor.hash);
  operation.anchor = std::move(anchor);
}

void StoreImpl::CommitAsync(Commit commit, CommitCallback done) {
  auto operation = std::make_unique<Operation>();
  operation->state = StateOf(commit.timeline);
  TimelineState& state = *operation->state;
  auto result = std::make_shared<CommitResult>();  // shared: std::function must be copyable
  operation->done = [result, done = std::move(done)](absl::Status status) {
    if (status.ok()) {
      done(std::move(*result));
    } else {
      done(std::move(status));
    }
  };
  std::lock_guard lock(state.mutex);
  absl::Status status = state.rejecting;
  if (status.ok()) {
    status = LoadState(state);
    // An unknown timeline's number may be given to a new one: nothing of it is remembered.
    if (absl::IsNotFound(status)) ForgetState(operation->state);
  }
  if (status.ok()) status = CheckCommit(state, commit);
  if (!status.ok()) {
    if (!absl::IsNotFound(status)) state.rejecting = status;
    operation->error = status;
    pipeline_.Submit(std::move(operation));
    return;
  }
  const size_t first_new_block = state.hashes.size();
  AppendEvents(state, commit, NowUs(), *operation, *result);
  AddBlocks(state, commit, first_new_block, *operation);
  if (commit.anchor.has_value()) AddAnchor(state, commit, *operation);
  if (commit.session_meta.has_value()) {
    const std::string key = SessionMetaKey(state.session);
    operation->writes.push_back(
        {Column::kTimelines, key, Frame(RecordKind::kSessionMeta, key, *commit.session_meta)});
    operation->summary->meta = std::move(commit.session_meta);
  }
  pipeline_.Submit(std::move(operation));
}

}  // namespace agentd::sessions::internal
