#include "sessions/pipeline.h"

#include <rocksdb/write_batch.h>

#include <future>
#include <shared_mutex>

#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"
#include "sessions/value_removal.h"

namespace agentd::sessions::internal {
namespace {

constexpr size_t kGroupBytes = 8 << 20;
// Each flush of values starts a new log file, and one lives until all columns have flushed what is
// in it.
constexpr int kFlushesPerFullFlush = 32;

size_t BytesOf(const Operation& operation) {
  size_t bytes = 0;
  for (const WriteEntry& entry : operation.writes)
    bytes += entry.key.size() + (entry.value ? entry.value->size() : 0);
  return bytes;
}

}  // namespace

Pipeline::Pipeline(Database& database, FileObjects& files, const Sha256Digest& identity,
                   int window_us)
    : database_(database),
      files_(files),
      identity_(identity),
      window_(window_us),
      summaries_(database) {
  values_thread_ = std::thread([this] { ValuesLoop(); });
  writer_thread_ = std::thread([this] { WriterLoop(); });
}

Pipeline::~Pipeline() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    values_ready_.notify_all();
    writer_ready_.notify_all();
  }
  values_thread_.join();
  writer_thread_.join();
}

void Pipeline::Submit(std::unique_ptr<Operation> operation) {
  operation->queued = std::chrono::steady_clock::now();
  operation->use = values_in_use_.Register(operation->hashes);
  operation->removes_values = operation->removes_values || operation->replaced_tail.has_value();
  bool to_values = operation->HasValues();
  if (operation->state != nullptr) {
    ++operation->state->pending;
    to_values = to_values || operation->state->pending_values > 0;
    if (to_values) ++operation->state->pending_values;
  }
  std::lock_guard lock(mutex_);
  if (to_values) {
    values_queue_.push_back(std::move(operation));
    values_ready_.notify_one();
  } else {
    writer_queue_.push_back(std::move(operation));
    writer_ready_.notify_one();
  }
}

absl::Status Pipeline::SubmitAndWait(std::vector<WriteEntry> writes,
                                     std::optional<SummaryChange> summary, bool removes_values) {
  std::promise<absl::Status> promise;
  auto operation = std::make_unique<Operation>();
  operation->writes = std::move(writes);
  operation->summary = std::move(summary);
  operation->urgent = true;
  operation->removes_values = removes_values;
  operation->done = [&promise](absl::Status status) { promise.set_value(std::move(status)); };
  Submit(std::move(operation));
  return promise.get_future().get();
}

PipelineCounters Pipeline::counters() const {
  std::lock_guard lock(mutex_);
  return counters_;
}

// Whether anything may be written now; after a full disk this is where writing starts again.
absl::Status Pipeline::MayWrite() {
  bool resume;
  {
    std::lock_guard lock(mutex_);
    if (!broken_.ok()) return broken_;
    resume = disk_full_;
  }
  if (!resume) return absl::OkStatus();
  const absl::StatusOr<bool> resumed = database_.Resume();
  if (!resumed.ok()) {
    NoteFailure(resumed.status());
    return resumed.status();
  }
  std::lock_guard lock(mutex_);
  if (*resumed) disk_full_ = false;
  return absl::OkStatus();
}

absl::Status Pipeline::LookForSpace(const absl::Status& full) {
  NoteFailure(full);
  return MayWrite();
}

void Pipeline::NoteFailure(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  if (absl::IsResourceExhausted(status)) {
    disk_full_ = true;
  } else if (broken_.ok()) {
    // What the kernel dropped at a failed fsync would read as clean from then on: only recovery
    // shows what is on disk.
    broken_ = absl::IsFailedPrecondition(status)
                  ? status
                  : absl::UnavailableError("the store stopped after a failed write: reopen it (" +
                                           Text(status) + ")");
  }
}

// ---- values

void Pipeline::ValuesLoop() {
  while (true) {
    Queue group;
    {
      std::unique_lock lock(mutex_);
      values_ready_.wait(lock, [this] { return stopping_ || !values_queue_.empty(); });
      if (values_queue_.empty()) break;
      group.swap(values_queue_);
    }
    StoreValues(group);
    for (std::unique_ptr<Operation>& operation : group) {
      // Both locks: a commit of the same timeline either still sees this one here, or queues behind
      // it at the writer.
      std::unique_lock<std::mutex> state_lock;
      if (operation->state != nullptr) {
        state_lock = std::unique_lock(operation->state->mutex);
        --operation->state->pending_values;
      }
      std::lock_guard lock(mutex_);
      writer_queue_.push_back(std::move(operation));
      writer_ready_.notify_one();
    }
  }
  std::lock_guard lock(mutex_);
  values_stopped_ = true;
  writer_ready_.notify_all();
}

void Pipeline::StoreValues(Queue& group) {
  NewValues values;
  std::set<Column> columns;
  absl::Status may_write = MayWrite();
  for (std::unique_ptr<Operation>& operation : group) {
    TimelineState& state = *operation->state;
    if (operation->error.ok()) operation->error = state.values_error;
    if (operation->error.ok() && operation->HasValues()) {
      operation->error = may_write.ok() ? CollectValues(*operation, values) : may_write;
      // Whoever wrote them: what the tree consists of may still be in memory.
      if (!operation->trees.empty()) columns.insert(Column::kFiles);
    }
    if (!operation->error.ok()) state.values_error = operation->error;
  }
  if (!values.blocks.empty()) columns.insert(Column::kKv);
  if (!values.anchors.empty()) columns.insert(Column::kAnchors);
  if (columns.empty()) return;
  const absl::Status status = WriteValues(values, columns);
  if (status.ok()) return;
  NoteFailure(status);
  const absl::Status shown = MayWrite();
  for (std::unique_ptr<Operation>& operation : group) {
    if (!operation->error.ok() || !operation->HasValues()) continue;
    operation->error = absl::IsResourceExhausted(status) || shown.ok() ? status : shown;
    operation->state->values_error = operation->error;
  }
}

absl::Status Pipeline::CollectValues(Operation& operation, NewValues& values) {
  values_in_use_.AwaitRemovals(operation.hashes);
  RETURN_IF_ERROR(CollectBlocks(operation, values));
  if (operation.anchor.has_value()) RETURN_IF_ERROR(CollectAnchor(operation, values));
  for (NamedTree& tree : operation.trees) {
    // A snapshot's is held since it was taken. Another may be on a sweep's list already: then wait,
    // and find it gone.
    std::shared_lock sweep(files_.sweep_mutex(), std::defer_lock);
    if (tree.hold == nullptr) sweep.lock();
    RETURN_IF_ERROR(files_.CheckTree(tree.id));
    if (tree.hold == nullptr) tree.hold = files_.HoldTree(tree.id);
    for (const std::string& intent : files_.IntentsOf(tree.id)) {
      operation.writes.push_back({Column::kMeta, intent, std::nullopt});
    }
  }
  return absl::OkStatus();
}

// The value's intent, until the operation's batch names it.
void Pipeline::Intend(char column, const Sha256Digest& digest, uint64_t parts, Operation& operation,
                      NewValues& values) {
  const std::string key = IntentKey(column, View(digest));
  values.intents.push_back({Column::kMeta, key, EncodeNumber(RecordKind::kIntent, key, parts)});
  operation.writes.push_back({Column::kMeta, key, std::nullopt});
}

absl::Status Pipeline::CollectBlocks(Operation& operation, NewValues& values) {
  for (const BlockToStore& block : operation.blocks) {
    const std::string name_key = BlockNameKey(block.hash);
    ASSIGN_OR_RETURN(const std::optional<std::string> name,
                     database_.Get(Column::kTimelines, name_key));
    // A value that another operation of this group writes is not written twice; but whether that
    // operation gets to its names is its own affair.
    const bool stored = name.has_value();
    const bool fresh = !stored && values.names.insert(name_key).second;
    {
      std::lock_guard lock(mutex_);
      ++(fresh ? counters_.blocks_written : counters_.blocks_deduplicated);
    }
    if (stored) continue;
    const uint32_t parts = static_cast<uint32_t>(block.parts.size());
    Intend('k', block.hash, parts, operation, values);
    if (fresh) values.blocks.push_back(&block);
    operation.writes.push_back(
        {Column::kTimelines, name_key,
         EncodeBlockName(name_key, {identity_, block.parent, block.block, parts})});
  }
  return absl::OkStatus();
}

absl::Status Pipeline::CollectAnchor(Operation& operation, NewValues& values) {
  const AnchorToStore& anchor = *operation.anchor;
  const std::string name_key = AnchorNameKey(anchor.hash);
  ASSIGN_OR_RETURN(const std::optional<std::string> name,
                   database_.Get(Column::kTimelines, name_key));
  if (name.has_value()) return absl::OkStatus();
  Intend('a', anchor.hash, 0, operation, values);
  if (values.names.insert(name_key).second) values.anchors.push_back(&anchor);
  const std::string index_key = AnchorIndexKey(anchor.parent, anchor.position, anchor.hash);
  operation.writes.push_back(
      {Column::kTimelines, name_key,
       EncodeAnchorName(name_key, {identity_, anchor.parent, anchor.position})});
  operation.writes.push_back(
      {Column::kTimelines, index_key, Frame(RecordKind::kAnchorIndex, index_key, "")});
  return absl::OkStatus();
}

// A batch for each block: what a value is copied through on its way is then small enough to be used
// again by the next, and fresh memory costs more than the copy. Nobody looks at a part before the
// block has its name.
absl::Status Pipeline::WriteBlock(const BlockToStore& block) {
  const uint32_t parts = static_cast<uint32_t>(block.parts.size());
  std::vector<WriteEntry> entries;
  entries.reserve(parts);
  for (uint32_t part = 0; part < parts; ++part) {
    std::string key = KvPartKey(block.hash, part);
    std::string value =
        EncodeKvPart(key, {identity_, block.parent, block.block, part, parts, block.parts[part]});
    entries.push_back({Column::kKv, std::move(key), std::move(value)});
  }
  return database_.WriteUnlogged(entries);
}

absl::Status Pipeline::WriteValues(const NewValues& values, const std::set<Column>& columns) {
  // Not synced: the flush below closes and syncs the log that holds them before it installs its
  // files.
  if (!values.intents.empty()) RETURN_IF_ERROR(database_.Write(values.intents, /*sync=*/false));
  CrashPoint("values_intents");
  for (const BlockToStore* block : values.blocks) RETURN_IF_ERROR(WriteBlock(*block));
  for (const AnchorToStore* anchor : values.anchors) {
    const std::string key = AnchorKey(anchor->hash);
    RETURN_IF_ERROR(database_.WriteUnlogged(
        {{Column::kAnchors, key,
          EncodeAnchor(key, {identity_, anchor->parent, anchor->position, anchor->payload})}}));
  }
  CrashPoint("values_written");
  std::vector<Column> flushed(columns.begin(), columns.end());
  if (++flushes_ % kFlushesPerFullFlush == 0) {
    flushed = {Column::kTimelines, Column::kEvents, Column::kKv,
               Column::kAnchors,   Column::kFiles,  Column::kMeta};
  }
  RETURN_IF_ERROR(database_.Flush(flushed));
  CrashPoint("values_flushed");
  return absl::OkStatus();
}

// ---- the synced batch

void Pipeline::WriterLoop() {
  Queue group;
  while (TakeGroup(group)) {
    WriteGroup(group);
    group.clear();
  }
}

// False when everything is written and the store closes.
bool Pipeline::TakeGroup(Queue& group) {
  std::unique_lock lock(mutex_);
  const auto finished = [this] { return stopping_ && values_stopped_; };
  writer_ready_.wait(lock, [&] { return finished() || !writer_queue_.empty(); });
  if (writer_queue_.empty()) return false;
  const auto company_until = writer_queue_.front()->queued + window_;
  writer_ready_.wait_until(lock, company_until, [&] {
    if (stopping_) return true;
    for (const std::unique_ptr<Operation>& operation : writer_queue_) {
      if (operation->urgent) return true;
    }
    return false;
  });
  size_t bytes = 0;
  while (!writer_queue_.empty() && bytes < kGroupBytes) {
    bytes += BytesOf(*writer_queue_.front());
    group.push_back(std::move(writer_queue_.front()));
    writer_queue_.pop_front();
  }
  return true;
}

void Pipeline::WriteGroup(Queue& group) {
  bool any = false;
  for (std::unique_ptr<Operation>& operation : group) {
    if (operation->error.ok() && operation->state != nullptr)
      operation->error = operation->state->writer_error;
    if (!operation->error.ok() && operation->state != nullptr)
      operation->state->writer_error = operation->error;
    any = any || operation->error.ok();
  }
  absl::Status status;
  if (any) {
    status = MayWrite();
    if (status.ok()) {
      status = WriteBatchOf(group);
      if (!status.ok()) {
        summaries_.Forget();
        NoteFailure(status);
        if (!absl::IsResourceExhausted(status)) status = MayWrite();
      }
    }
  }
  for (std::unique_ptr<Operation>& operation : group) {
    Finish(*operation, operation->error.ok() ? status : operation->error);
  }
}

absl::Status Pipeline::WriteBatchOf(Queue& group) {
  rocksdb::WriteBatch batch;
  std::vector<ValuesInUse::Claim> claims;  // on what the batch removes, until it is written
  std::unique_lock removing(values_in_use_.removal_mutex(), std::defer_lock);
  int64_t commits = 0;
  for (const std::unique_ptr<Operation>& operation : group) {
    if (!operation->error.ok()) continue;
    if (operation->removes_values && !removing.owns_lock()) removing.lock();
    if (operation->replaced_tail.has_value()) DropReplacedTail(*operation, batch, claims);
    database_.Fill(batch, operation->writes);
    if (operation->summary.has_value()) RETURN_IF_ERROR(summaries_.Apply(*operation->summary));
    if (operation->state != nullptr) ++commits;
  }
  database_.Fill(batch, summaries_.TakeWrites());
  CrashPoint("batch_before");
  RETURN_IF_ERROR(database_.Write(batch, /*sync=*/true));
  CrashPoint("batch_after");
  // Again: if the epoch still is ours, a later owner's recovery finds this batch, so it may be
  // acknowledged.
  RETURN_IF_ERROR(database_.CheckEpoch());
  std::lock_guard lock(mutex_);
  disk_full_ = false;
  counters_.commits += commits;
  ++counters_.group_syncs;
  return absl::OkStatus();
}

// Deletes the anchor that the timeline's new one replaces, unless another timeline refers to it.
// One that somebody is about to list becomes this timeline's for good. A record that cannot be read
// leaves it where it is: a commit does not fail for a cache.
void Pipeline::DropReplacedTail(const Operation& operation, rocksdb::WriteBatch& batch,
                                std::vector<ValuesInUse::Claim>& claims) {
  const Sha256Digest& anchor = operation.replaced_tail->anchor;
  std::optional<ValuesInUse::Claim> claim = values_in_use_.ClaimUnused(anchor);
  if (!claim.has_value()) return;
  claims.push_back(*std::move(claim));
  const std::string own = AnchorReferenceKey(anchor, operation.state->id);
  std::vector<WriteEntry> writes;
  writes.push_back({Column::kTimelines, own, std::nullopt});
  writes.push_back({Column::kTimelines,
                    AnchorEntryKey(operation.state->id, operation.replaced_tail->position,
                                   BigEndianAt(View(identity_), 0)),
                    std::nullopt});
  bool shared = false;
  const absl::Status scanned = database_.Scan(Column::kTimelines, AnchorReferencePrefix(anchor),
                                              [&](std::string_view key, std::string_view) {
                                                shared = shared || key != own;
                                                return absl::OkStatus();
                                              });
  if (scanned.ok() && !shared) (void)AddAnchorRemoval(database_, anchor, writes);
  database_.Fill(batch, writes);
}

void Pipeline::Finish(Operation& operation, const absl::Status& status) {
  operation.use.Reset();
  operation.trees.clear();  // named, or not to be: a Delete that waits for us may sweep them
  if (operation.state != nullptr) {
    TimelineState& state = *operation.state;
    if (!status.ok()) state.writer_error = status;
    std::lock_guard lock(state.mutex);
    if (!status.ok() && state.rejecting.ok()) state.rejecting = status;
  }
  if (operation.done) operation.done(status);
  if (operation.state != nullptr) {
    // After the callback: who waits for an idle timeline finds its callbacks done.
    std::lock_guard lock(operation.state->mutex);
    if (--operation.state->pending == 0) operation.state->idle.notify_all();
  }
}

}  // namespace agentd::sessions::internal
