// The RocksDB underneath: column families and their settings, the directory's lock and epoch, and
// the one place where RocksDB's errors become ours.
//
// The one place, too, where values are encrypted and decrypted: above it a store looks the same
// with keys and without, but for the tags in keys of the database.
//
// FORMAT.md has the layout of the directory.
#ifndef AGENTD_SESSIONS_DATABASE_H_
#define AGENTD_SESSIONS_DATABASE_H_

#include <rocksdb/db.h>
#include <rocksdb/env.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "sessions/internal_options.h"
#include "sessions/keyring.h"
#include "sessions/owner_epoch.h"
#include "sessions/store_files.h"

namespace agentd::sessions::internal {

class BackgroundListener;
class FlushCount;

// Their numbers are part of the format: a value is encrypted together with its column's.
enum class Column { kTimelines, kEvents, kKv, kAnchors, kFiles, kMeta };
inline constexpr int kColumns = 6;

// One change of a batch. A missing value deletes.
struct WriteEntry {
  Column column;
  std::string key;
  std::optional<std::string> value;
};

// NoSpace -> ResourceExhausted, Corruption -> DataLoss, other I/O errors -> Unavailable.
absl::Status Translate(const rocksdb::Status& status, const std::string& what);

inline rocksdb::Slice ToSlice(std::string_view bytes) { return {bytes.data(), bytes.size()}; }
inline std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

// A file of large values. What is dead is counted when tables are compacted.
struct BlobFile {
  uint64_t number = 0;
  uint64_t bytes = 0;  // of the file
  uint64_t dead_bytes = 0;
  std::filesystem::path path;
};

// Where a value lies: in a blob file, or (file 0) in the table itself.
struct ValueLocation {
  uint64_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;  // of the value
};

// Thread-safe after Open.
class Database {
 public:
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::filesystem::path& directory,
                                                        bool create_if_missing,
                                                        const InternalOptions& options,
                                                        const StoreKeys& keys = {});
  // Takes the lock but not ownership: nothing of the store is changed, no write is possible. Keys
  // are no error for a store that is not encrypted. Without any, one that is is sealed: its values
  // come as they are stored. FailedPrecondition: a rewriting of the store has yet to be finished.
  static absl::StatusOr<std::unique_ptr<Database>> OpenForReading(
      const std::filesystem::path& directory, const StoreKeys& keys);
  // The directory's lock alone; FailedPrecondition names the process that has it.
  static absl::StatusOr<UniqueFd> LockDirectory(const std::filesystem::path& directory);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // What a key of the database has for an owner's name, and for the id of a file object: in an
  // encrypted store HMACs, which say nothing to who reads or guesses, else the name and the id.
  std::string OwnerTag(std::string_view owner) const;
  Sha256Digest ObjectTag(const Sha256Digest& id) const;

  // Reading below gives a value that does not open as a note, of which Unframe makes the error.

  // nullopt: no such key.
  absl::StatusOr<std::optional<std::string>> Get(Column column, std::string_view key,
                                                 const rocksdb::Snapshot* snapshot = nullptr) const;
  // For large values: they are not copied. False: no such key.
  absl::StatusOr<bool> GetPinned(Column column, std::string_view key,
                                 const rocksdb::Snapshot* snapshot,
                                 rocksdb::PinnableSlice& value) const;
  // The same for several keys at once, one answer each. Values that lie side by side in a blob file
  // are read in one go.
  std::vector<absl::StatusOr<bool>> GetMany(Column column, std::span<const std::string> keys,
                                            const rocksdb::Snapshot* snapshot,
                                            std::vector<rocksdb::PinnableSlice>& values) const;
  // `fill_cache`: not for a walk over more than the cache of blocks holds.
  std::unique_ptr<rocksdb::Iterator> Iterate(Column column,
                                             const rocksdb::Snapshot* snapshot = nullptr,
                                             bool fill_cache = true) const;
  // All entries under `prefix`, in key order, until `visit` returns an error.
  template <typename Visit>  // absl::Status(std::string_view key, std::string_view value)
  absl::Status Scan(Column column, std::string_view prefix, Visit visit,
                    const rocksdb::Snapshot* snapshot = nullptr) const {
    const std::unique_ptr<rocksdb::Iterator> iterator = Iterate(column, snapshot);
    for (iterator->Seek(ToSlice(prefix)); iterator->Valid(); iterator->Next()) {
      if (!iterator->key().starts_with(ToSlice(prefix))) break;
      if (absl::Status status = visit(ToView(iterator->key()), ToView(iterator->value()));
          !status.ok()) {
        return status;
      }
    }
    return Translate(iterator->status(), "reading records");
  }

  // Whatever writes looks at the epoch first and fails with FailedPrecondition when it is lost:
  // even the files that a stale owner's flush makes would take the names of the new owner's.

  // One atomic batch through the log; with `sync`, on disk when it returns.
  absl::Status Write(const std::vector<WriteEntry>& entries, bool sync);
  absl::Status Write(rocksdb::WriteBatch& batch, bool sync);
  // Values that a later batch will name: no log. Durable after Flush.
  absl::Status WriteUnlogged(const std::vector<WriteEntry>& entries);
  absl::Status Flush(const std::vector<Column>& columns);
  // While it lasts no Flush begins and none is under way: whoever waits for one has not named its
  // values. What reads the list of tables first and the log afterwards, as a backup does, so finds
  // no name in the log whose values are in none of those tables.
  class FlushPause;
  // Rewrites a key range so that what was deleted there leaves the disk. Flush first: what RocksDB
  // itself flushes here it may not wait for.
  absl::Status Compact(Column column, std::string_view begin, std::string_view end);
  // Rewrites a column's tables, not the values in its blob files; ends early when `canceled`.
  absl::Status CompactAll(Column column, std::atomic<bool>& canceled);
  // Puts entries into a batch.
  void Fill(rocksdb::WriteBatch& batch, const std::vector<WriteEntry>& entries) const;
  // After NoSpace. True: writing goes on. False: not yet, or perhaps: writes say so themselves.
  // ResourceExhausted: still full. Unavailable: only reopening helps.
  absl::StatusOr<bool> Resume();

  // FailedPrecondition when a newer owner took the directory. From then on RocksDB leaves the files
  // alone: background jobs end, nothing is deleted.
  absl::Status CheckEpoch();

  class SnapshotHolder {
   public:
    explicit SnapshotHolder(rocksdb::DB& db) : db_(db), snapshot_(db.GetSnapshot()) {}
    ~SnapshotHolder() { db_.ReleaseSnapshot(snapshot_); }
    SnapshotHolder(const SnapshotHolder&) = delete;
    SnapshotHolder& operator=(const SnapshotHolder&) = delete;
    const rocksdb::Snapshot* get() const { return snapshot_; }

   private:
    rocksdb::DB& db_;
    const rocksdb::Snapshot* snapshot_;
  };
  SnapshotHolder TakeSnapshot() const { return SnapshotHolder(*db_); }

  // Whether no open has come to its end yet, by a program that marks it.
  bool first_open() const { return first_open_; }
  // From now on the store without db/ is a damaged one.
  absl::Status MarkOpened();

  int format_version() const { return format_.version; }
  // Before anything is written that programs of older versions must not meet.
  absl::Status SetFormatVersion(int version);

  // ---- space (database_space.cc)

  std::vector<BlobFile> BlobFiles(Column column) const;
  // Visits every value that is in a table, without reading those in blob files; what is only in
  // memory is not seen. A key may come more than once: the last time counts, and it may be deleted
  // by now. Errors of damaged tables come at the end, after all others are read.
  absl::Status ScanLocations(
      Column column,
      const std::function<void(std::string_view key, const ValueLocation&)>& visit) const;
  // Tables and blob files in the directory that no column uses, or not yet.
  absl::StatusOr<std::set<std::filesystem::path>> ObsoleteFiles() const;
  // What the directory takes on the disk.
  int64_t MeasureBytes() const;
  // Bytes handed to RocksDB since Open.
  int64_t written_bytes() const { return written_bytes_.load(std::memory_order_relaxed); }

  const std::filesystem::path& directory() const { return directory_; }
  const Keyring* keyring() const { return keyring_.get(); }  // null: not encrypted, or sealed
  bool format_encrypted() const { return format_.encrypted; }
  bool sealed() const { return format_.encrypted && keyring_ == nullptr; }
  rocksdb::DB& db() { return *db_; }

 private:
  Database() = default;
  struct FlushGate {
    std::mutex mutex;
    std::condition_variable changed;
    bool closed = false;  // guarded by mutex
    int flushing = 0;     // guarded by mutex
  };

  absl::Status Prepare(bool create_if_missing, const InternalOptions& options,
                       const StoreKeys& keys, bool for_reading);
  absl::Status MakeFormat(const InternalOptions& options, const StoreKeys& keys);
  absl::Status ProbeSpace();
  absl::Status FlushNow(const std::vector<Column>& columns);
  absl::Status FlushesLost() const;
  bool HoldsUnflushed(const std::vector<rocksdb::ColumnFamilyHandle*>& handles) const;
  absl::Status OpenRocksDb(const InternalOptions& options, bool for_reading);
  absl::Status MayWrite();
  absl::Status HandOver(const rocksdb::WriteOptions& options, rocksdb::WriteBatch& batch);
  rocksdb::ColumnFamilyHandle* Handle(Column column) const {
    return handles_[1 + static_cast<size_t>(column)];
  }

  // Constant after Open.
  std::filesystem::path directory_;
  UniqueFd lock_;
  bool first_open_ = false;
  Format format_;
  std::unique_ptr<const Keyring> keyring_;  // null: not encrypted
  OwnerEpoch epoch_;
  std::shared_ptr<FlushCount> flushes_;           // shared with env_ and listener_
  std::shared_ptr<BackgroundListener> listener_;  // shared with RocksDB
  std::unique_ptr<rocksdb::Env> env_;             // outlives db_
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;  // default, then by Column

  std::atomic<bool> lost_ = false;  // a newer owner was seen
  FlushGate flush_gate_;
  std::atomic<int64_t> written_bytes_ = 0;
};

// One at a time; others wait. End may be called by any thread, more than once.
class Database::FlushPause {
 public:
  explicit FlushPause(Database& database) : gate_(database.flush_gate_) { Begin(); }
  ~FlushPause() { End(); }
  FlushPause(const FlushPause&) = delete;
  FlushPause& operator=(const FlushPause&) = delete;
  void End();

 private:
  void Begin();

  FlushGate& gate_;
  bool ended_ = false;  // guarded by gate_.mutex
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_DATABASE_H_
