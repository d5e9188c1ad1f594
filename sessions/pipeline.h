// From a commit to its acknowledgement: two threads and two queues.
//
// Operations with values (KV, an anchor, a workspace tree) pass the values thread first: it writes
// intents, then the values without the log, and flushes; several waiting operations share one
// flush. All operations end at the writer thread, which gathers company for a moment and writes one
// synced batch for all of them. An operation without values skips the first queue, unless its
// timeline has one there: order is kept per timeline, and a flush delays only its own.
#ifndef AGENTD_SESSIONS_PIPELINE_H_
#define AGENTD_SESSIONS_PIPELINE_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "sessions/database.h"
#include "sessions/file_objects.h"
#include "sessions/record.h"
#include "sessions/summary.h"
#include "sessions/timeline.h"
#include "sessions/values_in_use.h"

namespace agentd::sessions::internal {

// What is known in memory about a timeline that is being written; runs ahead of the disk by the
// queued commits.
struct TimelineState {
  explicit TimelineState(TimelineId id) : id(id) {}
  const TimelineId id;

  std::mutex mutex;
  std::condition_variable idle;  // pending fell to 0
  // Guarded by mutex.
  bool loaded = false;
  std::string session;
  std::string summary_key;
  std::shared_ptr<const BlockHasher> hasher;  // shared with the owner's other timelines
  uint64_t last_seq = 0;
  std::vector<TokenId> tokens;
  std::vector<BlockHash> hashes;  // of the whole blocks of `tokens`
  std::optional<TailRecord> tail;
  absl::Status rejecting;  // not OK: new commits fail with it
  bool deleting = false;   // a Delete is under way: Load may not start it anew
  int pending = 0;         // operations queued
  int pending_values = 0;  // those of them that have not left the values thread

  // One thread's each: the first error there; what is queued behind it fails as well.
  absl::Status values_error;  // values thread
  absl::Status writer_error;  // writer thread
};

struct BlockToStore {
  BlockHash hash{};
  BlockHash parent{};
  int64_t block = 0;
  std::vector<std::string> parts;
};

struct AnchorToStore {
  Sha256Digest hash{};
  BlockHash parent{};
  int64_t position = 0;
  std::string payload;
};

struct NamedTree {
  TreeId id{};
  FileObjects::Hold hold;  // null until the values thread has seen a tree of an earlier event
};

struct Operation {
  std::shared_ptr<TimelineState> state;  // null: not a timeline's; shared with the store's map
  std::vector<WriteEntry> writes;        // of the synced batch
  std::optional<SummaryChange> summary;  // in it too
  std::vector<BlockToStore> blocks;
  std::optional<AnchorToStore> anchor;
  std::vector<NamedTree> trees;
  std::optional<TailRecord> replaced_tail;
  std::vector<Sha256Digest> hashes;  // of the blocks and anchors that it lists
  bool urgent = false;               // does not wait for company
  bool removes_values = false;       // its batch does, of KV or anchors
  absl::Status error;                // found earlier: nothing is written
  std::function<void(absl::Status)> done;
  std::chrono::steady_clock::time_point queued;
  ValuesInUse::Use use;  // of `hashes`, from Submit to Finish

  bool HasValues() const { return !blocks.empty() || anchor.has_value() || !trees.empty(); }
};

struct PipelineCounters {
  int64_t blocks_written = 0, blocks_deduplicated = 0, commits = 0, group_syncs = 0;
};

class Pipeline {
 public:
  Pipeline(Database& database, FileObjects& files, const Sha256Digest& identity, int window_us);
  // Finishes what is queued.
  ~Pipeline();

  // The caller holds operation->state->mutex, so that queue order is submission order.
  void Submit(std::unique_ptr<Operation> operation);
  // A batch that belongs to no timeline, alone and waiting.
  absl::Status SubmitAndWait(std::vector<WriteEntry> writes,
                             std::optional<SummaryChange> summary = std::nullopt,
                             bool removes_values = false);

  // For who writes past the queues and met a full disk: OK if there is space again.
  absl::Status LookForSpace(const absl::Status& full);

  PipelineCounters counters() const;
  // Of the operations that are queued; others who count on a value or remove one join in.
  ValuesInUse& values_in_use() { return values_in_use_; }

 private:
  using Queue = std::deque<std::unique_ptr<Operation>>;

  void ValuesLoop();
  void StoreValues(Queue& group);
  // What a group of operations brings that is not stored yet.
  struct NewValues {
    std::vector<WriteEntry> intents;
    std::vector<const BlockToStore*> blocks;  // the operations'
    std::vector<const AnchorToStore*> anchors;
    std::set<std::string> names;  // keys of the names of both
  };
  static void Intend(char column, const Sha256Digest& digest, uint64_t parts, Operation& operation,
                     NewValues& values);
  absl::Status CollectValues(Operation& operation, NewValues& values);
  absl::Status CollectBlocks(Operation& operation, NewValues& values);
  absl::Status CollectAnchor(Operation& operation, NewValues& values);
  absl::Status WriteValues(const NewValues& values, const std::set<Column>& columns);
  absl::Status WriteBlock(const BlockToStore& block);
  void WriterLoop();
  bool TakeGroup(Queue& group);
  void WriteGroup(Queue& group);
  absl::Status WriteBatchOf(Queue& group);
  void DropReplacedTail(const Operation& operation, rocksdb::WriteBatch& batch,
                        std::vector<ValuesInUse::Claim>& claims);
  void Finish(Operation& operation, const absl::Status& status);
  absl::Status MayWrite();
  void NoteFailure(const absl::Status& status);

  // Constant after construction.
  Database& database_;
  FileObjects& files_;
  const Sha256Digest identity_;
  const std::chrono::microseconds window_;

  ValuesInUse values_in_use_;  // synchronises itself
  mutable std::mutex mutex_;
  std::condition_variable values_ready_, writer_ready_;
  // Guarded by mutex_.
  Queue values_queue_, writer_queue_;
  bool stopping_ = false;
  bool values_stopped_ = false;
  absl::Status broken_;     // after a failed fsync or a lost epoch: for good
  bool disk_full_ = false;  // Resume() before the next write
  PipelineCounters counters_;

  int flushes_ = 0;          // values thread's
  SummaryWriter summaries_;  // writer thread's
  std::thread values_thread_, writer_thread_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_PIPELINE_H_
