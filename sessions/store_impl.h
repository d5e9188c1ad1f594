// The Store on RocksDB. store.cc: opening and sessions; store_branch.cc: fork, rewind, delete;
// store_commit.cc: commits and reading back; store_kv.cc: restore points and values;
// store_tree.cc: parts of trees; store_usage.cc: what takes how much space; workspace.h: trees;
// space_manager.h: eviction.
#ifndef AGENTD_SESSIONS_STORE_IMPL_H_
#define AGENTD_SESSIONS_STORE_IMPL_H_

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "sessions/database.h"
#include "sessions/file_objects.h"
#include "sessions/pipeline.h"
#include "sessions/read_threads.h"
#include "sessions/record.h"
#include "sessions/space_manager.h"
#include "sessions/store.h"
#include "sessions/summary.h"
#include "sessions/timeline.h"
#include "sessions/workspace.h"

namespace agentd::sessions::internal {

// Reads of values that may wait for the disk at once, besides the callers' own.
// A disk of today is busy only when some dozens of reads wait for it at once: all blocks of a
// batch, as a restore reads them, so that none is left to wait alone at its end. They mostly sleep.
inline size_t ReadThreadCount() {
  return std::clamp<size_t>(2 * std::thread::hardware_concurrency(), 22, 32);
}

int64_t NowUs();

class StoreImpl final : public Store {
 public:
  StoreImpl(std::unique_ptr<Database> database, const StoreOptions& options);
  // Deletes values that a crash left without a name, and begins to keep the budget. Before the
  // first use.
  absl::Status Recover();

  absl::StatusOr<SessionInfo> Create(const NewSession& session) override;
  absl::StatusOr<SessionInfo> Get(std::string_view session_id) override;
  absl::Status VisitSessions(std::string_view owner, std::string_view after_id,
                             const std::function<bool(const SessionInfo&)>& visit) override;
  absl::StatusOr<SessionInfo> Fork(std::string_view session_id, const Point& at,
                                   const NewSession& session) override;
  absl::StatusOr<SessionInfo> Rewind(std::string_view session_id, const Point& to,
                                     uint64_t seed) override;
  absl::Status Delete(std::string_view session_id) override;
  absl::StatusOr<LoadedTimeline> Load(std::string_view session_id) override;
  absl::StatusOr<std::vector<Event>> ReadEvents(TimelineId timeline, uint64_t from_seq,
                                                int limit) override;
  void CommitAsync(Commit commit, CommitCallback done) override;
  absl::StatusOr<RestorePoint> FindRestorePoint(std::string_view owner,
                                                std::span<const TokenId> tokens,
                                                int64_t max_position) override;
  std::vector<absl::StatusOr<std::string>> ReadBlockParts(
      std::span<const BlockPart> parts) override;
  absl::StatusOr<int> CountBlockParts(const BlockHash& block) override;
  absl::StatusOr<std::string> ReadAnchor(const Sha256Digest& anchor, int64_t position) override;
  void DropBlock(const BlockHash& block) override;
  void DropAnchor(const Sha256Digest& anchor) override;
  absl::StatusOr<WorkspaceSnapshot> SnapshotWorkspace(
      const std::filesystem::path& directory) override;
  absl::Status RestoreWorkspace(const TreeId& tree,
                                const std::filesystem::path& directory) override;
  absl::Status ClearWorkspace(const std::filesystem::path& directory) override;
  absl::Status VisitTree(
      const TreeId& tree, std::set<std::string>& seen,
      const std::function<absl::Status(bool directory, std::string_view bytes)>& visit) override;
  std::unique_ptr<TreeWriter> WriteTree() override;
  absl::StatusOr<std::vector<TreeEntry>> ReadTreeDirectory(const TreeId& directory) override;
  absl::StatusOr<std::string> ReadFilePart(const Sha256Digest& part) override;
  const std::string& kv_identity() const override { return kv_identity_; }
  absl::StatusOr<StoreStats> Stats() override;
  absl::StatusOr<BackupInfo> Backup(const std::filesystem::path& directory, uint32_t keep) override;
  absl::Status Reclaim() override;
  absl::StatusOr<StoreUsage> Usage(std::string_view owner) override;

 private:
  struct Removal;  // what Delete takes away, store_branch.cc

  absl::Status SweepIntents();
  absl::Status RecoverCounter();
  absl::StatusOr<bool> MarkNamedFiles(const std::set<std::string>& without,
                                      std::set<std::string>& keys) const;

  // ---- sessions
  absl::Status CheckNewSession(const NewSession& session) const;
  absl::StatusOr<std::pair<SessionRecord, TimelineView>> ReadSession(
      std::string_view session_id, const rocksdb::Snapshot* snapshot) const;
  absl::StatusOr<SessionInfo> ReadInfo(std::string_view session_id,
                                       const rocksdb::Snapshot* snapshot) const;
  static absl::Status ReadSummary(std::string_view id, std::string_view key, std::string_view value,
                                  RecordSource& source, SummaryRecord& record);
  std::string SummaryKey(std::string_view owner, std::string_view id) const;
  std::string NewSessionId(int64_t now_us);
  SessionInfo NewInfo(const NewSession& session);  // without a timeline
  // Reserves an id and adds the counter's record to `writes`.
  TimelineId NewTimeline(std::vector<WriteEntry>& writes);
  // The records of a new session but for its timeline, which `info` names, and those as an
  // operation.
  void AddSession(const SessionInfo& info, std::vector<WriteEntry>& writes) const;
  SummaryChange NewSummary(const SessionInfo& info) const;
  void AddTimeline(TimelineId timeline, const TimelineRecord& record, const HeadRecord& head,
                   std::vector<WriteEntry>& writes) const;
  // null: the owner has no key and `create` is false.
  absl::StatusOr<std::shared_ptr<const BlockHasher>> HasherOf(std::string_view owner, bool create);

  // ---- branches
  // Lists the newest anchor of `source` at or before `point` for `timeline` too, so that it
  // outlives its parent; the use is held until that is written.
  absl::StatusOr<ValuesInUse::Use> ListSharedAnchor(const TimelineView& source,
                                                    const ResolvedPoint& point, TimelineId timeline,
                                                    std::vector<WriteEntry>& writes);
  absl::Status PlanRemoval(const std::string& session_id, TimelineId current, Removal& removal);
  absl::Status RemoveTimeline(TimelineId timeline, const Segment* keep, Removal& removal) const;
  absl::Status RemoveUnreferenced(ValuesInUse::Watch& watch, Removal& removal) const;
  absl::Status RemoveFiles(Removal& removal) const;
  absl::StatusOr<std::string> FindIndexKey(const std::string& session_id) const;
  absl::StatusOr<std::vector<std::shared_ptr<TimelineState>>> StopTimelines(
      const std::string& session_id, TimelineId current);
  absl::Status Remove(const std::string& session_id, const std::string& index_key,
                      const SessionRecord& record, Removal& removal);
  absl::Status EraseFromDisk(const std::string& session_id, const std::string& index_key,
                             const std::vector<TimelineId>& timelines);

  // ---- commits
  std::shared_ptr<TimelineState> StateOf(TimelineId timeline);
  void ForgetState(const std::shared_ptr<TimelineState>& state);
  void ForgetIdleStates();
  // The caller holds state.mutex.
  absl::Status LoadState(TimelineState& state);
  absl::Status CheckCommit(const TimelineState& state, const Commit& commit) const;
  void AppendEvents(TimelineState& state, Commit& commit, int64_t now_us, Operation& operation,
                    CommitResult& result);
  void AddBlocks(TimelineState& state, Commit& commit, size_t first_new_block,
                 Operation& operation) const;
  void AddAnchor(TimelineState& state, Commit& commit, Operation& operation) const;

  // ---- values
  absl::StatusOr<BlockName> ReadNameAt(const rocksdb::Snapshot* snapshot, const BlockHash& block,
                                       bool& damaged) const;
  void ReadPartsAt(const rocksdb::Snapshot* snapshot, const BlockName& name,
                   std::span<const BlockPart> parts, absl::StatusOr<std::string>* data,
                   bool* damaged) const;
  static absl::StatusOr<std::string> CheckPart(const BlockName& name, int part,
                                               const std::string& key,
                                               const absl::StatusOr<bool>& found,
                                               std::string_view value);
  absl::StatusOr<std::string> ReadAnchorAt(const rocksdb::Snapshot* snapshot,
                                           const Sha256Digest& anchor, int64_t position,
                                           bool& damaged) const;
  void RemoveIfDamaged(const BlockPart& part);
  void RemoveBlock(const BlockHash& block);
  void RemoveAnchor(const Sha256Digest& anchor);
  void AddSpaceStats(StoreStats& stats) const;
  absl::StatusOr<std::optional<Sha256Digest>> FindAnchor(const BlockHasher& hasher,
                                                         const std::vector<BlockHash>& hashes,
                                                         std::span<const TokenId> tokens,
                                                         int64_t blocks, int64_t max_position,
                                                         int64_t* position) const;

  // Constant after construction.
  std::unique_ptr<Database> database_;
  const std::string kv_identity_;
  const Sha256Digest identity_;  // digest of the kv_identity
  const uint64_t identity_tag_;  // its first eight bytes

  FileObjects files_;
  Workspaces workspaces_;

  // Fork and Rewind hold it shared, Delete exclusively: a point must not vanish under a fork.
  std::shared_mutex branch_mutex_;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::map<TimelineId, std::shared_ptr<TimelineState>>
      states_;  // shared with the operations in flight
  size_t states_made_ = 0;
  std::map<std::string, std::shared_ptr<const BlockHasher>, std::less<>>
      hashers_;  // shared with the states
  TimelineId next_timeline_ = 1;
  std::string last_session_id_;

  std::mutex
      owner_key_mutex_;  // held while a new owner's key is written, so that there is only one

  ReadThreads read_threads_{ReadThreadCount()};
  // Last: their threads use all of the above.
  Pipeline pipeline_;
  SpaceManager space_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_STORE_IMPL_H_
