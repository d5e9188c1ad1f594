#include "sessions/store.h"

#include <sys/random.h>

#include <algorithm>
#include <chrono>
#include <future>

#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"
#include "sessions/scan_ahead.h"
#include "sessions/store_impl.h"

namespace agentd::sessions {

NewEvent NewEvent::Tokens(std::vector<TokenId> tokens, bool sampled) {
  return {static_cast<uint8_t>(EventKind::kTokens), sampled, std::move(tokens), {}};
}
NewEvent NewEvent::Workspace(const WorkspaceSnapshot& snapshot) {
  NewEvent event = Workspace(snapshot.tree);
  event.hold = snapshot.hold;
  return event;
}
NewEvent NewEvent::Workspace(const TreeId& tree) {
  return {
      static_cast<uint8_t>(EventKind::kWorkspace), false, {}, std::string(internal::View(tree))};
}
NewEvent NewEvent::Caller(uint8_t kind, std::string payload) {
  return {kind, false, {}, std::move(payload)};
}

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::filesystem::path& directory,
                                                   const StoreOptions& options) {
  return internal::OpenStore(directory, options, {});
}

absl::StatusOr<CommitResult> Store::CommitSync(Commit commit) {
  std::promise<absl::StatusOr<CommitResult>> promise;
  CommitAsync(std::move(commit), [&promise](absl::StatusOr<CommitResult> result) {
    promise.set_value(std::move(result));
  });
  return promise.get_future().get();
}

absl::StatusOr<std::vector<SessionInfo>> Store::List(std::string_view owner,
                                                     std::string_view after_id, int limit) {
  if (limit <= 0) return InvalidArgument("a page needs a positive limit, not {}", limit);
  std::vector<SessionInfo> page;
  RETURN_IF_ERROR(VisitSessions(owner, after_id, [&](const SessionInfo& info) {
    page.push_back(info);
    return page.size() < static_cast<size_t>(limit);
  }));
  return page;
}

absl::StatusOr<std::string> Store::ReadBlockPart(const BlockHash& block, int part) {
  const BlockPart wanted = {block, part};
  return std::move(ReadBlockParts({&wanted, 1}).front());
}

namespace internal {
namespace {

constexpr size_t kMaxOwnerBytes = 1024;
constexpr size_t kOwnerKeyBytes = 32;
constexpr int kSummariesAlone = 200;  // a tenth of a millisecond and more
constexpr char kIdDigits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
constexpr int kIdTimeDigits = 10, kIdDigitCount = 26;

absl::StatusOr<std::string> RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  if (::getrandom(bytes.data(), count, 0) != static_cast<ssize_t>(count))
    return ErrnoError(errno, "getrandom");
  return bytes;
}

// The next id in sort order.
void Increment(std::string& id) {
  for (size_t i = id.size(); i-- > 0;) {
    const char* digit = std::strchr(kIdDigits, id[i]);
    if (digit[1] != '\0') {
      id[i] = digit[1];
      return;
    }
    id[i] = kIdDigits[0];
  }
}

class ImportedTree final : public TreeWriter {
 public:
  explicit ImportedTree(FileObjects& files)
      : files_(files), sweep_lock_(files.sweep_mutex()), writer_(files) {}

  absl::Status PutChunk(std::string_view bytes) override {
    if (bytes.empty() || bytes.size() > kChunkBytes)
      return InvalidArgument("a file's chunk of {} bytes", bytes.size());
    return writer_.PutChunk(Sha256Of(bytes), bytes);
  }
  absl::Status PutDirectory(std::string_view bytes) override {
    if (!ParseDirectory(bytes).has_value())
      return InvalidArgument("no directory: {} bytes", bytes.size());
    return writer_.PutDirectory(bytes).status();
  }
  absl::StatusOr<WorkspaceSnapshot> Finish(const TreeId& tree) override {
    ASSIGN_OR_RETURN(FileObjects::Hold hold, writer_.Finish(tree));
    RETURN_IF_ERROR(files_.CheckTree(tree));
    return WorkspaceSnapshot{.tree = tree, .hold = std::move(hold)};
  }

 private:
  FileObjects& files_;
  const std::shared_lock<std::shared_mutex> sweep_lock_;  // as a snapshot
  FileObjects::Writer writer_;
};

}  // namespace

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

absl::StatusOr<std::unique_ptr<Store>> OpenStore(const std::filesystem::path& directory,
                                                 const StoreOptions& options,
                                                 const InternalOptions& internal_options) {
  if (options.kv_identity.empty()) return InvalidArgument("StoreOptions::kv_identity is empty");
  if (options.group_commit_window_us < 0)
    return InvalidArgument("StoreOptions::group_commit_window_us is negative");
  if (options.budget_bytes != 0 && options.budget_bytes < kLeastBudget) {
    return InvalidArgument("a budget of {} bytes for {}: give at least {}, or 0 for none",
                           options.budget_bytes, directory.string(), kLeastBudget);
  }
  ASSIGN_OR_RETURN(
      std::unique_ptr<Database> database,
      Database::Open(directory, options.create_if_missing, internal_options, options.keys));
  Database& opened = *database;
  auto store = std::make_unique<StoreImpl>(std::move(database), options);
  RETURN_IF_ERROR(store->Recover());
  RETURN_IF_ERROR(opened.MarkOpened());
  return std::unique_ptr<Store>(std::move(store));
}

StoreImpl::StoreImpl(std::unique_ptr<Database> database, const StoreOptions& options)
    : database_(std::move(database)),
      kv_identity_(options.kv_identity),
      identity_(Sha256Of(options.kv_identity)),
      identity_tag_(BigEndianAt(View(identity_), 0)),
      files_(*database_),
      workspaces_(files_),
      pipeline_(*database_, files_, identity_, options.group_commit_window_us),
      space_(*database_, pipeline_.values_in_use(), options.budget_bytes) {}

absl::Status StoreImpl::Recover() {
  RETURN_IF_ERROR(UpgradeSummaries(*database_));
  RETURN_IF_ERROR(RecoverCounter());
  RETURN_IF_ERROR(SweepIntents());
  ASSIGN_OR_RETURN(const std::optional<std::string> erasure,
                   database_->Get(Column::kMeta, kErasureKey));
  space_.Start(/*erase=*/erasure.has_value());
  return absl::OkStatus();
}

absl::Status StoreImpl::SweepIntents() {
  // An intent whose value got its name is only cleared; any other value was never acknowledged. A
  // damaged intent's key still says all that is needed.
  std::vector<WriteEntry> writes;
  std::vector<std::string> objects;
  RETURN_IF_ERROR(database_->Scan(Column::kMeta, "p", [&](std::string_view key, std::string_view) {
    writes.push_back({Column::kMeta, std::string(key), std::nullopt});
    if (key.size() > 2 && key[1] == 'f') objects.emplace_back(key.substr(2));
    if (key.size() != 2 + sizeof(Sha256Digest) || key[1] == 'f') return absl::OkStatus();
    const Sha256Digest digest = DigestAt(key, 2);
    const bool block = key[1] == 'k';
    ASSIGN_OR_RETURN(
        const std::optional<std::string> name,
        database_->Get(Column::kTimelines, block ? BlockNameKey(digest) : AnchorNameKey(digest)));
    if (name.has_value()) return absl::OkStatus();
    if (!block) writes.push_back({Column::kAnchors, AnchorKey(digest), std::nullopt});
    if (!block) return absl::OkStatus();
    // Found one by one: walking over the parts would end at one that is damaged, and with it the
    // open.
    for (uint32_t part = 0;; ++part) {
      const std::string part_key = KvPartKey(digest, part);
      const absl::StatusOr<std::optional<std::string>> value =
          database_->Get(Column::kKv, part_key);
      if (!value.ok() && !absl::IsDataLoss(value.status())) return value.status();
      if (value.ok() && !value->has_value()) return absl::OkStatus();
      writes.push_back({Column::kKv, part_key, std::nullopt});
    }
  }));
  // Programs that did not mark the store as opened left objects without an intent.
  if (database_->first_open()) {
    RETURN_IF_ERROR(
        database_->Scan(Column::kFiles, "", [&](std::string_view key, std::string_view) {
          objects.emplace_back(key);
          return absl::OkStatus();
        }));
  }
  if (!objects.empty()) {
    std::set<std::string> named;
    ASSIGN_OR_RETURN(const bool complete, MarkNamedFiles({}, named));
    for (const std::string& object : objects) {
      if (complete && !named.contains(object))
        writes.push_back({Column::kFiles, object, std::nullopt});
    }
  }
  if (writes.empty()) return absl::OkStatus();
  CrashPoint("sweep_before");
  RETURN_IF_ERROR(database_->Write(writes, /*sync=*/true));
  CrashPoint("sweep_after");
  return absl::OkStatus();
}

// The record may be damaged, or behind: two new timelines that were made at the same moment may
// have been written in either order. No live timeline's number may be given away again.
absl::Status StoreImpl::RecoverCounter() {
  ASSIGN_OR_RETURN(const std::optional<std::string> next,
                   database_->Get(Column::kMeta, kNextTimelineKey));
  if (next.has_value()) {
    const absl::StatusOr<uint64_t> number =
        DecodeNumber(RecordKind::kNextTimeline, kNextTimelineKey, *next);
    if (number.ok()) next_timeline_ = *number;
    if (!number.ok() && !absl::IsDataLoss(number.status())) return number.status();
  }
  const std::unique_ptr<rocksdb::Iterator> iterator = database_->Iterate(Column::kTimelines);
  iterator->SeekForPrev(TimelineKey(UINT64_MAX));
  if (iterator->Valid() && iterator->key().starts_with("t") && iterator->key().size() == 9)
    next_timeline_ = std::max(next_timeline_, BigEndianAt(ToView(iterator->key()), 1) + 1);
  return Translate(iterator->status(), "looking for the newest timeline");
}

// Adds the keys of everything that a listing outside `without` reaches. False: a listing is
// damaged, so nothing can be known to be unreferenced.
absl::StatusOr<bool> StoreImpl::MarkNamedFiles(const std::set<std::string>& without,
                                               std::set<std::string>& keys) const {
  bool complete = true;
  RETURN_IF_ERROR(
      database_->Scan(Column::kTimelines, "w", [&](std::string_view key, std::string_view value) {
        if (without.contains(std::string(key))) return absl::OkStatus();
        const absl::StatusOr<TreeId> tree = DecodeDigest(RecordKind::kWorkspaceEntry, key, value);
        if (tree.ok()) return files_.Mark(*tree, keys);
        complete = false;
        return absl::OkStatus();
      }));
  return complete;
}

// ---- sessions

absl::Status StoreImpl::CheckNewSession(const NewSession& session) const {
  if (session.owner.empty() || session.owner.size() > kMaxOwnerBytes) {
    return InvalidArgument("an owner has 1 to {} bytes, not {}", kMaxOwnerBytes,
                           session.owner.size());
  }
  if (session.meta.size() > kMaxPayloadBytes)
    return InvalidArgument("session meta is over {} bytes", kMaxPayloadBytes);
  return absl::OkStatus();
}

// A ULID: 48 bits of milliseconds, 80 random bits; the next in order when the clock has not moved
// on.
std::string StoreImpl::NewSessionId(int64_t now_us) {
  const absl::StatusOr<std::string> random = RandomBytes(kIdDigitCount - kIdTimeDigits);
  AGENTD_CHECK(random.ok());
  std::string id(kIdDigitCount, '0');
  uint64_t milliseconds = static_cast<uint64_t>(now_us / 1000);
  for (int i = kIdTimeDigits; i-- > 0; milliseconds >>= 5)
    id[static_cast<size_t>(i)] = kIdDigits[milliseconds & 31];
  for (size_t i = 0; i < random->size(); ++i) {
    id[kIdTimeDigits + i] = kIdDigits[static_cast<uint8_t>((*random)[i]) & 31];
  }
  std::lock_guard lock(mutex_);
  if (id <= last_session_id_) {
    id = last_session_id_;
    Increment(id);
  }
  last_session_id_ = id;
  return id;
}

SessionInfo StoreImpl::NewInfo(const NewSession& session) {
  SessionInfo info;
  info.created_us = info.updated_us = NowUs();
  info.id = NewSessionId(info.created_us);
  info.owner = session.owner;
  info.seed = session.seed;
  info.meta = session.meta;
  return info;
}

TimelineId StoreImpl::NewTimeline(std::vector<WriteEntry>& writes) {
  std::lock_guard lock(mutex_);
  const TimelineId timeline = next_timeline_++;
  writes.push_back({Column::kMeta, kNextTimelineKey,
                    EncodeNumber(RecordKind::kNextTimeline, kNextTimelineKey, next_timeline_)});
  return timeline;
}

void StoreImpl::AddSession(const SessionInfo& info, std::vector<WriteEntry>& writes) const {
  const std::string key = SessionKey(info.id), meta_key = SessionMetaKey(info.id);
  writes.push_back({Column::kTimelines, key,
                    EncodeSession(key, {info.owner, info.timeline, info.created_us,
                                        info.forked_from, info.forked_at_seq})});
  writes.push_back(
      {Column::kTimelines, meta_key, Frame(RecordKind::kSessionMeta, meta_key, info.meta)});
}

SummaryChange StoreImpl::NewSummary(const SessionInfo& info) const {
  return {SummaryChange::Kind::kNew, info.id, SummaryKey(info.owner, info.id),
          [info](SessionInfo& shown) { shown = info; }, info.meta};
}

void StoreImpl::AddTimeline(TimelineId timeline, const TimelineRecord& record,
                            const HeadRecord& head, std::vector<WriteEntry>& writes) const {
  const std::string key = TimelineKey(timeline), head_key = HeadKey(timeline);
  writes.push_back({Column::kTimelines, key, EncodeTimeline(key, record)});
  writes.push_back({Column::kTimelines, head_key, EncodeHead(head_key, head)});
}

absl::StatusOr<std::shared_ptr<const BlockHasher>> StoreImpl::HasherOf(std::string_view owner,
                                                                       bool create) {
  {
    std::lock_guard lock(mutex_);
    if (const auto found = hashers_.find(owner); found != hashers_.end()) return found->second;
  }
  std::lock_guard creating(owner_key_mutex_);
  const std::string key = OwnerKeyKey(database_->OwnerTag(owner));
  ASSIGN_OR_RETURN(const std::optional<std::string> value, database_->Get(Column::kMeta, key));
  absl::StatusOr<std::string_view> stored = NotFound("owner {} has no key", owner);
  if (value.has_value()) stored = Unframe(RecordKind::kOwnerKey, key, *value);
  if (absl::IsNotFound(stored.status()) && !create) return std::shared_ptr<const BlockHasher>();
  std::string secret;
  if (stored.ok()) {
    secret = std::string(*stored);
  } else if (absl::IsNotFound(stored.status()) || absl::IsDataLoss(stored.status())) {
    // A damaged key costs the owner's cached KV, which nothing finds any more: never the sessions.
    ASSIGN_OR_RETURN(secret, RandomBytes(kOwnerKeyBytes));
    RETURN_IF_ERROR(
        pipeline_.SubmitAndWait({{Column::kMeta, key, Frame(RecordKind::kOwnerKey, key, secret)}}));
  } else {
    return stored.status();
  }
  auto hasher = std::make_shared<const BlockHasher>(secret, identity_);
  std::lock_guard lock(mutex_);
  return hashers_.emplace(std::string(owner), std::move(hasher)).first->second;
}

absl::StatusOr<SessionInfo> StoreImpl::Create(const NewSession& session) {
  RETURN_IF_ERROR(CheckNewSession(session));
  RETURN_IF_ERROR(HasherOf(session.owner, /*create=*/true).status());
  SessionInfo info = NewInfo(session);
  std::vector<WriteEntry> writes;
  info.timeline = NewTimeline(writes);
  AddSession(info, writes);
  AddTimeline(info.timeline, {info.id, info.seed, {}}, {0, 0, info.created_us}, writes);
  RETURN_IF_ERROR(pipeline_.SubmitAndWait(std::move(writes), NewSummary(info)));
  return info;
}

absl::StatusOr<std::pair<SessionRecord, TimelineView>> StoreImpl::ReadSession(
    std::string_view session_id, const rocksdb::Snapshot* snapshot) const {
  PointSource source(*database_, snapshot);
  return internal::ReadSession(session_id, source);
}

absl::StatusOr<SessionInfo> StoreImpl::ReadInfo(std::string_view session_id,
                                                const rocksdb::Snapshot* snapshot) const {
  PointSource source(*database_, snapshot);
  return internal::ReadInfo(session_id, source);
}

absl::StatusOr<SessionInfo> StoreImpl::Get(std::string_view session_id) {
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  return ReadInfo(session_id, snapshot.get());
}

std::string StoreImpl::SummaryKey(std::string_view owner, std::string_view id) const {
  return OwnerIndexPrefix(database_->OwnerTag(owner)).append(id);
}

absl::Status StoreImpl::ReadSummary(std::string_view id, std::string_view key,
                                    std::string_view value, RecordSource& source,
                                    SummaryRecord& record) {
  const absl::Status status = DecodeSummary(key, value, record);
  if (absl::IsDataLoss(status)) {
    ASSIGN_OR_RETURN(record.info, internal::ReadInfo(id, source));
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(status);
  if (!record.has_meta) {
    ASSIGN_OR_RETURN(record.info.meta, ReadMeta(id, source));
  }
  return absl::OkStatus();
}

absl::Status StoreImpl::VisitSessions(std::string_view owner, std::string_view after_id,
                                      const std::function<bool(const SessionInfo&)>& visit) {
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  const std::string prefix = OwnerIndexPrefix(database_->OwnerTag(owner));
  const std::unique_ptr<rocksdb::Iterator> iterator =
      database_->Iterate(Column::kTimelines, snapshot.get(), /*fill_cache=*/false);
  PointSource source(*database_, snapshot.get());
  const std::string before = prefix + (after_id.empty() ? "\xff" : std::string(after_id));
  iterator->SeekForPrev(before);
  if (iterator->Valid() && iterator->key() == before) iterator->Prev();
  SummaryRecord record;
  // False: no more are wanted.
  const auto pass_on = [&](std::string_view key, std::string_view value) -> absl::StatusOr<bool> {
    const std::string_view id = key.substr(prefix.size());
    const absl::Status status = ReadSummary(id, key, value, source, record);
    if (absl::IsDataLoss(status) || absl::IsNotFound(status)) {
      // One damaged session must not hide the others.
      record.info = SessionInfo();
      record.info.damage = Text(status);
    } else if (!status.ok()) {
      return status;
    }
    record.info.id = id;
    record.info.owner = owner;
    return visit(record.info);
  };
  // A short page ends before a thread has begun.
  for (int i = 0; i < kSummariesAlone; ++i, iterator->Prev()) {
    if (!iterator->Valid() || !iterator->key().starts_with(prefix))
      return Translate(iterator->status(), "listing sessions");
    ASSIGN_OR_RETURN(const bool more, pass_on(ToView(iterator->key()), ToView(iterator->value())));
    if (!more) return absl::OkStatus();
  }
  {
    ScanAhead ahead(*iterator, prefix);
    for (std::string_view key, value; ahead.Next(key, value);) {
      ASSIGN_OR_RETURN(const bool more, pass_on(key, value));
      if (!more) return absl::OkStatus();
    }
  }
  return Translate(iterator->status(), "listing sessions");
}

absl::StatusOr<StoreStats> StoreImpl::Stats() {
  StoreStats stats;
  RETURN_IF_ERROR(database_->Scan(Column::kTimelines, "s", [&](std::string_view, std::string_view) {
    ++stats.live_sessions;
    return absl::OkStatus();
  }));
  stats.directory_bytes = database_->MeasureBytes();
  const PipelineCounters counters = pipeline_.counters();
  stats.blocks_written = counters.blocks_written;
  stats.blocks_deduplicated = counters.blocks_deduplicated;
  stats.commits = counters.commits;
  stats.group_syncs = counters.group_syncs;
  {
    std::lock_guard lock(mutex_);
    stats.timelines_in_memory = static_cast<int64_t>(states_.size());
  }
  stats.special_files_skipped = workspaces_.special_files_skipped();
  stats.workspace_snapshots = workspaces_.snapshots();
  stats.workspace_walks = workspaces_.walks();
  stats.workspace_unwatched_walks = workspaces_.unwatched_walks();
  AddSpaceStats(stats);
  return stats;
}

absl::StatusOr<BackupInfo> StoreImpl::Backup(const std::filesystem::path& directory,
                                             uint32_t keep) {
  return CreateBackup(*database_, directory, keep);
}

absl::StatusOr<WorkspaceSnapshot> StoreImpl::SnapshotWorkspace(
    const std::filesystem::path& directory) {
  std::shared_lock lock(files_.sweep_mutex());
  absl::StatusOr<WorkspaceSnapshot> snapshot = workspaces_.Snapshot(directory);
  // RocksDB takes nothing after a full disk until it is told that there is space again.
  if (absl::IsResourceExhausted(snapshot.status()) &&
      pipeline_.LookForSpace(snapshot.status()).ok())
    snapshot = workspaces_.Snapshot(directory);
  return snapshot;
}

absl::Status StoreImpl::RestoreWorkspace(const TreeId& tree,
                                         const std::filesystem::path& directory) {
  std::shared_lock lock(files_.sweep_mutex());
  return workspaces_.Restore(tree, directory);
}

absl::Status StoreImpl::VisitTree(
    const TreeId& tree, std::set<std::string>& seen,
    const std::function<absl::Status(bool directory, std::string_view bytes)>& visit) {
  return files_.Visit(tree, seen, visit);
}

std::unique_ptr<TreeWriter> StoreImpl::WriteTree() {
  return std::make_unique<ImportedTree>(files_);
}

absl::Status StoreImpl::ClearWorkspace(const std::filesystem::path& directory) {
  return workspaces_.Clear(directory);
}

}  // namespace internal
}  // namespace agentd::sessions
