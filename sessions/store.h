// The durable store of sessions: token logs, KV values, anchors, tool journals and workspace trees
// in one RocksDB.
//
// The token log is the truth; KV is a cache of it. Losing or damaging a KV value costs time (it is
// recomputed), never data. Payloads of blocks, anchors and caller events are opaque bytes here: the
// engine and the daemon serialise them.
//
// Threads: every method may be called from any thread. Callbacks run on the store's writer thread
// and must not block or call back into the store (a cold timeline's first commit reads it, and
// Load, Create, Fork, Rewind, Delete and CommitSync wait for that thread). Errors: NotFound names
// the session or timeline; DataLoss names the record that is damaged; FailedPrecondition when this
// process is no longer the owner (a newer epoch exists); ResourceExhausted when the disk is full
// (nothing was acknowledged; later commits go on when space returns); Unavailable after a failed
// fsync (reopen the store).
#ifndef AGENTD_SESSIONS_STORE_H_
#define AGENTD_SESSIONS_STORE_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "sessions/backup.h"
#include "sessions/store_keys.h"

namespace agentd::sessions {

using TokenId = int32_t;
using TimelineId = uint64_t;
using TreeId = Sha256Digest;  // content address of a workspace tree
using BlockHash =
    Sha256Digest;  // keyed by what made the block: owner, model, numerics, parent, tokens

inline constexpr int kBlockTokens = 256;

// ---- events
// -------------------------------------------------------------------------------------------------------

// Kinds below kFirstCallerKind are the store's own; it looks into them. Kinds from there on are
// opaque.
enum class EventKind : uint8_t {
  kTokens = 1,     // a run of tokens appended to the context
  kWorkspace = 2,  // the workspace's tree from here on; payload = TreeId
};
inline constexpr uint8_t kFirstCallerKind = 16;

struct Event {
  uint64_t seq = 0;  // 1, 2, ... along the timeline, ancestors included, without gaps
  uint8_t kind = 0;
  int64_t position = 0;         // tokens in the context after this event
  int64_t time_us = 0;          // wall clock, microseconds since 1970
  bool sampled = false;         // kTokens: drawn by the sampler (else prompt, results, template)
  std::vector<TokenId> tokens;  // kTokens
  std::string payload;          // other kinds
};

// A workspace's tree as SnapshotWorkspace stored it. Until this and all its copies are gone (an
// event made of it holds one), no Delete takes the tree's files away.
struct WorkspaceSnapshot {
  TreeId tree{};
  int64_t entries = 0;               // files, links and directories
  int64_t allocated_bytes = 0;       // of files, on the disk; one with several names counts once
  std::shared_ptr<const void> hold;  // shared, so that events can be copied
};

// An event to append; seq and position are set by the store.
struct NewEvent {
  uint8_t kind = 0;
  bool sampled = false;
  std::vector<TokenId> tokens;
  std::string payload;
  std::shared_ptr<const void> hold = nullptr;  // of the tree it names; shared as above
  int64_t time_us = 0;  // 0: now; an event that comes from elsewhere keeps its own

  static NewEvent Tokens(std::vector<TokenId> tokens, bool sampled);
  static NewEvent Workspace(const WorkspaceSnapshot& snapshot);
  static NewEvent Workspace(const TreeId& tree);  // of an earlier event
  static NewEvent Caller(uint8_t kind, std::string payload);
};

// ---- KV
// -----------------------------------------------------------------------------------------------------------

// A block's opaque parts. Part 0 is the index part (read first, needed by every step); the rest are
// read when wanted.
struct KvBlock {
  int64_t block = 0;  // covers tokens [block*256, block*256+256) of the timeline
  std::vector<std::string> parts;
};

// Names one of them.
struct BlockPart {
  BlockHash block{};
  int part = 0;
};

struct KvAnchor {
  int64_t position = 0;  // > 0
  std::string payload;
  // Replaceable: the timeline's next anchor deletes it, unless a fork or an equal timeline lists
  // it.
  bool tail = false;
};

// What one atomic commit binds together. KV and workspace values are written and flushed first,
// then one synced batch names them with the events: there is no state in which they disagree.
struct Commit {
  TimelineId timeline = 0;
  std::vector<NewEvent> events;
  std::vector<KvBlock> blocks;     // any whole blocks of tokens already committed or in `events`
  std::optional<KvAnchor> anchor;  // position <= tokens after `events`
  std::optional<std::string> session_meta;  // replaces SessionInfo::meta
};

struct CommitResult {
  std::vector<Event> events;  // as stored, with seq, position and time
};
using CommitCallback = std::function<void(absl::StatusOr<CommitResult>)>;

// Where a sequence can go on from without evaluating what is before: blocks [0, position/256), then
// the anchor.
struct RestorePoint {
  int64_t position = 0;  // 0: nothing usable is stored
  std::vector<BlockHash> blocks;
  Sha256Digest anchor{};  // prefix hash, the key of the anchor record
  // While it or a copy lives, none of them is evicted. (A Delete of the last session that lists
  // them takes them away all the same.)
  std::shared_ptr<const void> hold;
};

// ---- sessions
// -----------------------------------------------------------------------------------------------------

struct SessionInfo {
  std::string id;  // 26 characters, sortable by creation time
  std::string owner;
  TimelineId timeline = 0;  // the current one
  uint64_t seed = 0;  // of the current timeline: all sampling derives from (seed, position, draw)
  int64_t created_us = 0;
  int64_t updated_us = 0;
  uint64_t last_seq = 0;
  int64_t tokens = 0;
  std::string forked_from;  // session id, or empty
  uint64_t forked_at_seq = 0;
  std::string meta;  // the caller's, opaque
  // Only in List: why nothing but id and owner could be read. Empty: all is well.
  std::string damage;
};

struct NewSession {
  std::string owner;
  uint64_t seed = 0;
  std::string meta;
};

// A point of a timeline: after event `seq`, or after exactly `position` tokens (a run is cut in two
// if need be; then events up to and including the cut run belong to the point; without a cut, all
// events whose position is <= it). One of the two is set; seq 0 is the empty beginning.
struct Point {
  std::optional<uint64_t> seq;
  std::optional<int64_t> position;
};

struct LoadedTimeline {
  SessionInfo session;
  std::vector<TokenId> tokens;      // the whole context
  std::optional<TreeId> workspace;  // newest tree
};

struct StoreStats {
  int64_t live_sessions = 0;
  int64_t directory_bytes = 0;  // measured
  int64_t blocks_written = 0, blocks_deduplicated = 0;
  int64_t commits = 0, group_syncs = 0;
  int64_t timelines_in_memory = 0;    // their next commit reads nothing
  int64_t special_files_skipped = 0;  // fifos, sockets and devices met by SnapshotWorkspace
  // Snapshots; those that looked at every file; and of those, such for which the kernel gives no
  // notices of changes (SnapshotWorkspace).
  int64_t workspace_snapshots = 0, workspace_walks = 0, workspace_unwatched_walks = 0;
  int64_t budget_bytes = 0;  // 0: none
  // Values in blob files that no key refers to, as far as compactions have counted them.
  int64_t dead_bytes = 0;
  int64_t written_bytes =
      0;  // handed to the store's files by commits since Open, tables not counted
  int64_t evicted_blocks = 0, evicted_anchors = 0, evicted_bytes = 0;
  int64_t collected_files = 0, collected_bytes_written = 0;  // collection's own writes
  int64_t damaged_values_dropped = 0;                        // met by the collection
  bool erasing = false;     // something deleted may still have bytes on the disk
  std::string space_error;  // why the last pass of eviction and collection failed; empty: none
};

// What a session takes of the directory: bytes of stored records, before compression.
struct SessionUsage {
  std::string id;
  std::string owner;
  int64_t log_bytes = 0;        // events and meta; not those of a session that it was forked from
  int64_t kv_bytes = 0;         // blocks that no other session uses
  int64_t shared_kv_bytes = 0;  // blocks that others use as well, whole in each
  int64_t anchor_bytes = 0;     // that no other session uses
  int64_t shared_anchor_bytes = 0;
  int64_t workspace_bytes = 0;  // its trees' files, shared ones whole in each
};

struct StoreUsage {
  std::vector<SessionUsage> sessions;  // newest first
  // Of all sessions of all owners, each record once.
  int64_t log_bytes = 0, kv_bytes = 0, anchor_bytes = 0, workspace_bytes = 0;
  int64_t dead_bytes = 0;       // see StoreStats
  int64_t directory_bytes = 0;  // measured
  int64_t budget_bytes = 0;     // 0: none
};

struct StoreOptions {
  // Identity of the KV values this process makes: model fingerprint + numerics id. Others' values
  // are never served.
  std::string kv_identity;
  int group_commit_window_us = 2000;  // how long a commit may wait for company
  bool create_if_missing = true;
  // What the directory may take on the disk, measured; 0: no limit. Over it, the least useful
  // blocks and anchors are evicted, and computed again when they are wanted. Logs, meta and
  // workspaces are never evicted: where they alone exceed it, no KV stays. At least kLeastBudget.
  int64_t budget_bytes = 0;
  // Encrypts a new store. Needed to open an encrypted one, refused by one that is not: see Open,
  // and RewriteStore in rewrite.h.
  StoreKeys keys;
};

// What a directory of a tree holds under one name.
struct TreeEntry {
  enum class Type : uint8_t { kFile = 1, kDirectory = 2, kSymlink = 3 };

  std::string name;
  Type type = Type::kFile;
  uint32_t mode = 0;                // permission bits; 0 of a symlink
  uint64_t size_bytes = 0;          // kFile
  std::vector<Sha256Digest> parts;  // kFile: the SHA-256 of each MiB; kDirectory: one, its TreeId
  std::string target;               // kSymlink
  friend bool operator==(const TreeEntry&, const TreeEntry&) = default;
};

// Stores a tree that comes from elsewhere piece by piece, what is in a directory before it. No
// Delete gets on while one lives. One thread's.
class TreeWriter {
 public:
  virtual ~TreeWriter() = default;
  virtual absl::Status PutChunk(std::string_view bytes) = 0;  // 1 to 1 MiB of a file
  // As VisitTree gave them. InvalidArgument: no directory.
  virtual absl::Status PutDirectory(std::string_view bytes) = 0;
  // The last call. NotFound: its root was not put and is not stored.
  virtual absl::StatusOr<WorkspaceSnapshot> Finish(const TreeId& tree) = 0;
};

inline constexpr int64_t kLeastBudget = int64_t{16} << 20;

class Store {
 public:
  // Takes ownership of the directory: a second opener of a live store gets FailedPrecondition
  // naming the holder's pid; a new owner raises the epoch, which fences the old one. Checks formats
  // and refuses newer versions by name. InvalidArgument names the key that an encrypted store wants
  // and that is not in `options.keys`, or says that the store is not encrypted. A current key that
  // is new to the store encrypts all that is written from now on.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::filesystem::path& directory,
                                                     const StoreOptions& options);
  // Waits for queued commits (their callbacks run), then closes.
  virtual ~Store() = default;

  // All durable on return.
  virtual absl::StatusOr<SessionInfo> Create(const NewSession& session) = 0;
  virtual absl::StatusOr<SessionInfo> Get(std::string_view session_id) = 0;
  // Shows `visit` an owner's sessions as they are now, newest first, those after `after_id` (empty:
  // all), until it returns false. A session with a damaged record is shown too, with
  // SessionInfo::damage.
  virtual absl::Status VisitSessions(std::string_view owner, std::string_view after_id,
                                     const std::function<bool(const SessionInfo&)>& visit) = 0;
  // A page of them; `after_id` = last id of the page before.
  absl::StatusOr<std::vector<SessionInfo>> List(std::string_view owner, std::string_view after_id,
                                                int limit);
  // A new session that shares everything up to `at`; copies nothing. OutOfRange if the point does
  // not exist.
  virtual absl::StatusOr<SessionInfo> Fork(std::string_view session_id, const Point& at,
                                           const NewSession& session) = 0;
  // The session's current timeline becomes a new one that ends at `to`; seq goes on from there. The
  // old one stays readable by ReadEvents until the session is deleted.
  virtual absl::StatusOr<SessionInfo> Rewind(std::string_view session_id, const Point& to,
                                             uint64_t seed) = 0;
  // Erases the session's events and unreferences its KV and files; what forks share stays. Waits
  // for its queued commits; later ones fail with NotFound. A damaged session can be deleted too.
  // Bytes of events and meta are off the disk on return, those of KV, anchors and files after a
  // pass in the background that begins within ten seconds, or with Reclaim. An error that says "is
  // deleted, but" means just that.
  virtual absl::Status Delete(std::string_view session_id) = 0;

  // Reads a session's current timeline, checking every record. DataLoss names the first damaged
  // one.
  virtual absl::StatusOr<LoadedTimeline> Load(std::string_view session_id) = 0;
  // Events [from_seq, ...] of a timeline, ancestors included, at most `limit`.
  virtual absl::StatusOr<std::vector<Event>> ReadEvents(TimelineId timeline, uint64_t from_seq,
                                                        int limit) = 0;

  // Appends in call order per timeline; `done` runs after the synced batch (grouped with other
  // timelines' commits) or with the error. After an error every later commit of that timeline fails
  // too until Load is called again for its session. NotFound also when an event names a workspace
  // tree that is not stored.
  virtual void CommitAsync(Commit commit, CommitCallback done) = 0;
  // The same, waiting.
  absl::StatusOr<CommitResult> CommitSync(Commit commit);

  // The furthest point <= max_position from which tokens[0, ...) of this owner can go on. Looks at
  // what is stored for the same tokens whoever's timeline wrote them (same owner only). Checks
  // presence, not contents.
  virtual absl::StatusOr<RestorePoint> FindRestorePoint(std::string_view owner,
                                                        std::span<const TokenId> tokens,
                                                        int64_t max_position) = 0;
  // Verified reads: checksum, identity, position, parent. DataLoss / NotFound name the value; the
  // caller recomputes, and the damaged value is dropped so that it is not offered again.
  //
  // One result per part, all as of one moment; several threads read. Cheapest with the parts of a
  // block side by side and in order, as they lie on the disk.
  virtual std::vector<absl::StatusOr<std::string>> ReadBlockParts(
      std::span<const BlockPart> parts) = 0;
  absl::StatusOr<std::string> ReadBlockPart(const BlockHash& block, int part);
  // How many parts the block has, by its name. NotFound, DataLoss as above.
  virtual absl::StatusOr<int> CountBlockParts(const BlockHash& block) = 0;
  virtual absl::StatusOr<std::string> ReadAnchor(const Sha256Digest& anchor, int64_t position) = 0;
  // For a value that is whole but of no use to the caller: it is no more offered, and stored again
  // when it is computed again.
  virtual void DropBlock(const BlockHash& block) = 0;
  virtual void DropAnchor(const Sha256Digest& anchor) = 0;

  // Stores the tree of `directory` (files, modes, symlinks, empty directories). Incremental: looks
  // at what the kernel has noticed to change since the last snapshot of this directory; where it
  // gives no such notices, or now and then, at every file's size, times and inode (workspace.h).
  // Durable only with a commit that names it; without one, what is new in it goes at the next Open.
  // FailedPrecondition names the file with which the tree is larger than FORMAT.md allows.
  virtual absl::StatusOr<WorkspaceSnapshot> SnapshotWorkspace(
      const std::filesystem::path& directory) = 0;
  // Makes `directory` equal to the tree: writes what differs, deletes what is not in it. Never
  // follows a symlink out of it.
  virtual absl::Status RestoreWorkspace(const TreeId& tree,
                                        const std::filesystem::path& directory) = 0;
  // Removes all that is in `directory`, read-only directories of ours too. NotFound: there is none.
  virtual absl::Status ClearWorkspace(const std::filesystem::path& directory) = 0;

  // Each directory and each chunk of a file in the tree, what is in a directory before it; none
  // whose key is in `seen` already. Their ids are the SHA-256 of the bytes, which are checked.
  // DataLoss names the piece that is damaged or missing.
  virtual absl::Status VisitTree(
      const TreeId& tree, std::set<std::string>& seen,
      const std::function<absl::Status(bool directory, std::string_view bytes)>& visit) = 0;
  virtual std::unique_ptr<TreeWriter> WriteTree() = 0;
  // For who looks at parts of a tree (sessions/tree_diff.h), checked as in VisitTree. A tree stays
  // as long as an event of a session names it.
  //
  // The entries of a tree or of a directory in one, by name.
  virtual absl::StatusOr<std::vector<TreeEntry>> ReadTreeDirectory(const TreeId& directory) = 0;
  // One of TreeEntry::parts of a file.
  virtual absl::StatusOr<std::string> ReadFilePart(const Sha256Digest& part) = 0;

  virtual const std::string& kv_identity() const = 0;  // StoreOptions::kv_identity
  virtual absl::StatusOr<StoreStats> Stats() = 0;

  // Adds a backup of the store as it is now to `directory` (made if missing; not in the store's),
  // while the store goes on: every commit that was acknowledged before the call is in it, and of
  // later ones whole commits or nothing. Commits with values wait for some milliseconds. `keep` >
  // 0: of the backups there, the newest `keep` stay. After a crash the store is untouched, the
  // backups before are whole, and the next call clears away what was left. FailedPrecondition:
  // another call works in the directory, it holds another store's backups, or anything else.
  virtual absl::StatusOr<BackupInfo> Backup(const std::filesystem::path& directory,
                                            uint32_t keep) = 0;
  // Waits for a pass of collection: on success no byte of what was deleted, evicted or replaced
  // before the call is in any file of the directory, and the directory is within its budget as far
  // as eviction can bring it there. Rewrites every file that holds dead values. Unavailable: a
  // reader holds on to them, try again; DataLoss: a damaged table is in the way.
  virtual absl::Status Reclaim() = 0;

  // Of one owner's sessions; reads what all timelines list, and the trees of workspaces.
  virtual absl::StatusOr<StoreUsage> Usage(std::string_view owner) = 0;
};

}  // namespace agentd::sessions

#endif  // AGENTD_SESSIONS_STORE_H_
