#include "sessions/database.h"

#include <fcntl.h>
#include <rocksdb/convenience.h>
#include <rocksdb/env.h>
#include <rocksdb/write_batch.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <utility>

#include "base/small_file.h"
#include "base/status.h"
#include "sessions/background_listener.h"
#include "sessions/bytes.h"
#include "sessions/crash_point.h"
#include "sessions/crc32c.h"
#include "sessions/database_options.h"
#include "sessions/file_reads.h"
#include "sessions/flush_jobs.h"
#include "sessions/log_file.h"
#include "sessions/record.h"
#include "sessions/store_files.h"

namespace agentd::sessions::internal {
namespace {

constexpr uint64_t kSpareBytes = 4 << 20;
constexpr size_t kEntryBytes = 32;  // of an entry in a batch, besides key and value, at most
constexpr char kOpenedName[] = "OPENED";
constexpr char kProbeName[] = "PROBE";
constexpr const char* kColumnNames[kColumns] = {"timelines", "events", "kv",
                                                "anchors",   "files",  "meta"};

}  // namespace

absl::Status Translate(const rocksdb::Status& status, const std::string& what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = fmt::format("{}: {}", what, status.ToString());
  if (status.IsNotFound()) return absl::NotFoundError(message);
  if (status.IsNoSpace()) {
    return absl::ResourceExhaustedError(message +
                                        " (free space on the store's disk; later commits go on)");
  }
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsIOError() || status.IsBusy() || status.IsTryAgain() || status.IsIncomplete() ||
      status.IsShutdownInProgress()) {
    return absl::UnavailableError(message);
  }
  return absl::InternalError(message);
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::filesystem::path& directory,
                                                         bool create_if_missing,
                                                         const InternalOptions& options,
                                                         const StoreKeys& keys) {
  std::unique_ptr<Database> database(new Database);
  database->directory_ = directory;
  RETURN_IF_ERROR(database->Prepare(create_if_missing, options, keys, /*for_reading=*/false));
  CrashPoint("open_locked");
  // Before RocksDB reads its logs: whatever an older owner acknowledges was checked against the old
  // epoch after it was synced, so this recovery sees it.
  RETURN_IF_ERROR(database->epoch_.Raise(directory));
  CrashPoint("open_epoch_raised");
  RETURN_IF_ERROR(database->OpenRocksDb(options, /*for_reading=*/false));
  CrashPoint("open_database");
  return database;
}

absl::StatusOr<std::unique_ptr<Database>> Database::OpenForReading(
    const std::filesystem::path& directory, const StoreKeys& keys) {
  InternalOptions options;
  options.keys_if_encrypted = true;
  options.sealed = !keys.current.has_value() && keys.old.empty();
  std::unique_ptr<Database> database(new Database);
  database->directory_ = directory;
  RETURN_IF_ERROR(database->Prepare(/*create_if_missing=*/false, options, keys,
                                    /*for_reading=*/true));
  RETURN_IF_ERROR(database->OpenRocksDb({}, /*for_reading=*/true));
  return database;
}

Database::~Database() {
  if (db_ == nullptr) return;
  (void)CheckEpoch();  // a fenced owner must not tidy files away that are the new owner's
  for (rocksdb::ColumnFamilyHandle* handle : handles_) (void)db_->DestroyColumnFamilyHandle(handle);
  (void)db_->Close();
}

absl::Status Database::Prepare(bool create_if_missing, const InternalOptions& options,
                               const StoreKeys& keys, bool for_reading) {
  std::error_code error;
  if (!create_if_missing && !std::filesystem::exists(directory_ / "FORMAT", error))
    return NotFound("{} holds no session store", directory_.string());
  std::filesystem::create_directories(directory_, error);
  if (error) return ErrnoError(error.value(), "create directory " + directory_.string());
  // Sessions are private to the daemon's user.
  (void)::chmod(directory_.c_str(), 0700);
  if (!options.ignore_lock) {
    ASSIGN_OR_RETURN(lock_, LockDirectory(directory_));
  }
  (void)::unlink((directory_ / kProbeName).c_str());  // a crash left it, and the space with it
  if (options.begins_rewrite && IsRewriteCutOff(directory_))
    RETURN_IF_ERROR(DropRewrite(directory_));
  if (!for_reading) RETURN_IF_ERROR(FinishRewrite(directory_));
  if (std::filesystem::exists(directory_ / kRewriteName / kCompleteName, error)) {
    return FailedPrecondition(
        "a rewriting of the store {} was cut off near its end: start agentd once, which finishes "
        "it",
        directory_.string());
  }
  first_open_ = !std::filesystem::exists(directory_ / kOpenedName, error);
  if (!first_open_ && !std::filesystem::exists(directory_ / "db" / "CURRENT", error)) {
    // RocksDB would make an empty one.
    return DataLoss(
        "the store {} was in use, but its database db/CURRENT is gone: put the folder db back from "
        "a copy, or move {} away to begin with an empty store",
        directory_.string(), directory_.string());
  }
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadSmallFile(directory_ / "FORMAT"));
  if (!text.has_value()) return MakeFormat(options, keys);
  ASSIGN_OR_RETURN(format_, ParseFormat(*text, directory_.string()));
  if (format_.encrypted && options.sealed) return absl::OkStatus();
  if (format_.encrypted) {
    ASSIGN_OR_RETURN(keyring_, OpenKeyring(directory_, keys, /*may_write=*/!for_reading));
  } else if (keys.current.has_value() && !options.keys_if_encrypted) {
    return InvalidArgument(
        "the store {} is not encrypted, and a key is given: open it without, or rewrite it with "
        "the key (agentd --rewrite-store)",
        directory_.string());
  }
  return absl::OkStatus();
}

absl::Status Database::MakeFormat(const InternalOptions& options, const StoreKeys& keys) {
  // FORMAT is there before db/, so db/ without it is not one of ours.
  std::error_code error;
  if (std::filesystem::exists(directory_ / "db", error)) {
    return DataLoss("{} has a db folder but no FORMAT file: not a session store, or a damaged one",
                    directory_.string());
  }
  if (keys.current.has_value()) {
    format_.encrypted = true;
    keyring_ = Keyring::Create(
        keys, options.store_secret.empty() ? Keyring::NewSecret() : options.store_secret);
    RETURN_IF_ERROR(WriteKeyring(directory_, *keyring_));
  }
  return ReplaceFile(directory_ / "FORMAT", FormatText(format_));
}

absl::Status Database::SetFormatVersion(int version) {
  format_.version = version;
  return ReplaceFile(directory_ / "FORMAT", FormatText(format_));
}

absl::Status Database::MarkOpened() {
  if (!first_open_) return absl::OkStatus();
  first_open_ = false;
  return ReplaceFile(directory_ / kOpenedName, "");
}

absl::StatusOr<UniqueFd> Database::LockDirectory(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "LOCK";
  UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid()) return ErrnoError(errno, "open " + path.string());
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoError(errno, "flock " + path.string());
    char pid[32] = {};
    const ssize_t size = ::pread(lock.get(), pid, sizeof(pid) - 1, 0);
    return FailedPrecondition("the store {} is in use by process {}: stop it first",
                              directory.string(), size > 0 ? pid : "(unknown)");
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock.get(), 0) != 0 ||
      ::pwrite(lock.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return ErrnoError(errno, "write " + path.string());
  }
  return lock;
}

absl::Status Database::OpenRocksDb(const InternalOptions& internal_options, bool for_reading) {
  (void)RocksDbUsesOurCrc32c();  // so that the program that links this has it
  flushes_ = std::make_shared<FlushCount>();
  listener_ = std::make_shared<BackgroundListener>(flushes_);
  rocksdb::Env* const base =
      internal_options.env != nullptr ? internal_options.env : rocksdb::Env::Default();
  env_ =
      WithCountedFlushes(rocksdb::NewCompositeEnv(WithStoreReads(base->GetFileSystem())), flushes_);
  const rocksdb::Options options = DbOptions(env_.get(), listener_);
  std::vector<rocksdb::ColumnFamilyDescriptor> columns;
  columns.emplace_back(rocksdb::kDefaultColumnFamilyName, rocksdb::ColumnFamilyOptions());
  for (int i = 0; i < kColumns; ++i)
    columns.emplace_back(kColumnNames[i],
                         ColumnOptions(static_cast<Column>(i), internal_options.compress));
  const std::string path = (directory_ / "db").string();
  RETURN_IF_ERROR(CheckRecoveryFiles(path));
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened =
      for_reading ? rocksdb::DB::OpenForReadOnly(options, path, columns, &handles_, &db)
                  : rocksdb::DB::Open(options, path, columns, &handles_, &db);
  RETURN_IF_ERROR(Translate(opened, "opening " + path));
  db_.reset(db);
  if (for_reading) return absl::OkStatus();
  // The first synced write to a new log also syncs the directory that it is in: a few milliseconds
  // that nobody's commit has to wait for.
  RETURN_IF_ERROR(Translate(db_->SyncWAL(), "syncing the log of " + path));
  // RocksDB syncs what is in db/: the name of db/ itself, and of the store, are ours to sync.
  RETURN_IF_ERROR(SyncDirectory(directory_));
  const absl::Status synced = SyncDirectory(std::filesystem::absolute(directory_).parent_path());
  return absl::IsPermissionDenied(synced) ? absl::OkStatus() : synced;
}

namespace {

// The record in an encrypted store's value; a note that Unframe knows if it does not open, so that
// a damaged record is met where all damage is: when it is decoded.
void OpenValue(const Keyring& keyring, Column column, std::string_view key, std::string_view stored,
               std::string& value) {
  const absl::Status status = keyring.Open({static_cast<uint8_t>(column), key}, stored, value);
  if (!status.ok()) value = UnopenedNote(status);
}

// Over an encrypted store; opens a value when it is asked for.
class OpeningIterator final : public rocksdb::Iterator {
 public:
  OpeningIterator(std::unique_ptr<rocksdb::Iterator> stored, const Keyring& keyring, Column column)
      : stored_(std::move(stored)), keyring_(keyring), column_(column) {}

  bool Valid() const override { return stored_->Valid(); }
  void SeekToFirst() override { Moved().SeekToFirst(); }
  void SeekToLast() override { Moved().SeekToLast(); }
  void Seek(const rocksdb::Slice& target) override { Moved().Seek(target); }
  void SeekForPrev(const rocksdb::Slice& target) override { Moved().SeekForPrev(target); }
  void Next() override { Moved().Next(); }
  void Prev() override { Moved().Prev(); }
  rocksdb::Slice key() const override { return stored_->key(); }
  rocksdb::Slice value() const override {
    if (!opened_) OpenValue(keyring_, column_, ToView(key()), ToView(stored_->value()), value_);
    opened_ = true;
    return value_;
  }
  rocksdb::Status status() const override { return stored_->status(); }

 private:
  rocksdb::Iterator& Moved() {
    opened_ = false;
    return *stored_;
  }

  const std::unique_ptr<rocksdb::Iterator> stored_;
  const Keyring& keyring_;
  const Column column_;
  mutable bool opened_ = false;  // value_ is that of this position
  mutable std::string value_;
};

}  // namespace

absl::StatusOr<bool> Database::GetPinned(Column column, std::string_view key,
                                         const rocksdb::Snapshot* snapshot,
                                         rocksdb::PinnableSlice& value) const {
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  rocksdb::PinnableSlice sealed;
  const rocksdb::Status status =
      db_->Get(options, Handle(column), ToSlice(key), keyring_ == nullptr ? &value : &sealed);
  if (status.IsNotFound()) return false;
  RETURN_IF_ERROR(
      Translate(status, fmt::format("reading from {}", kColumnNames[static_cast<int>(column)])));
  if (keyring_ != nullptr) {
    OpenValue(*keyring_, column, key, ToView(sealed), *value.GetSelf());
    value.PinSelf();
  }
  return true;
}

absl::StatusOr<std::optional<std::string>> Database::Get(Column column, std::string_view key,
                                                         const rocksdb::Snapshot* snapshot) const {
  rocksdb::PinnableSlice value;
  ASSIGN_OR_RETURN(const bool found, GetPinned(column, key, snapshot, value));
  if (!found) return std::optional<std::string>();
  return std::optional<std::string>(value.ToString());
}

std::vector<absl::StatusOr<bool>> Database::GetMany(
    Column column, std::span<const std::string> keys, const rocksdb::Snapshot* snapshot,
    std::vector<rocksdb::PinnableSlice>& values) const {
  const std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
  std::vector<rocksdb::Status> statuses(keys.size());
  values = std::vector<rocksdb::PinnableSlice>(keys.size());
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  db_->MultiGet(options, Handle(column), keys.size(), slices.data(), values.data(),
                statuses.data());
  std::vector<absl::StatusOr<bool>> found;
  found.reserve(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const rocksdb::Status& status = statuses[i];
    if (status.ok() || status.IsNotFound()) {
      if (status.ok() && keyring_ != nullptr) {
        std::string opened;
        OpenValue(*keyring_, column, keys[i], ToView(values[i]), opened);
        values[i].Reset();
        *values[i].GetSelf() = std::move(opened);
        values[i].PinSelf();
      }
      found.emplace_back(status.ok());
    } else {
      found.emplace_back(Translate(
          status, fmt::format("reading from {}", kColumnNames[static_cast<int>(column)])));
    }
  }
  return found;
}

std::unique_ptr<rocksdb::Iterator> Database::Iterate(Column column,
                                                     const rocksdb::Snapshot* snapshot,
                                                     bool fill_cache) const {
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  options.fill_cache = fill_cache;
  std::unique_ptr<rocksdb::Iterator> stored(db_->NewIterator(options, Handle(column)));
  if (keyring_ == nullptr) return stored;
  return std::make_unique<OpeningIterator>(std::move(stored), *keyring_, column);
}

std::string Database::OwnerTag(std::string_view owner) const {
  return keyring_ == nullptr ? std::string(owner) : keyring_->OwnerTag(owner);
}

Sha256Digest Database::ObjectTag(const Sha256Digest& id) const {
  return keyring_ == nullptr ? id : keyring_->ObjectTag(id);
}

void Database::Fill(rocksdb::WriteBatch& batch, const std::vector<WriteEntry>& entries) const {
  for (const WriteEntry& entry : entries) {
    if (!entry.value.has_value()) {
      (void)batch.Delete(Handle(entry.column), entry.key);
    } else if (keyring_ == nullptr) {
      (void)batch.Put(Handle(entry.column), entry.key, *entry.value);
    } else {
      (void)batch.Put(
          Handle(entry.column), entry.key,
          keyring_->Seal({static_cast<uint8_t>(entry.column), entry.key}, *entry.value));
    }
  }
}

absl::Status Database::Write(const std::vector<WriteEntry>& entries, bool sync) {
  rocksdb::WriteBatch batch;
  Fill(batch, entries);
  return Write(batch, sync);
}

absl::Status Database::MayWrite() {
  RETURN_IF_ERROR(CheckEpoch());
  if (!listener_->TakeDamage()) return absl::OkStatus();
  // RocksDB would try the same compaction again, once a second. Without compactions level 0 grows,
  // which costs reading time, and writers are not held up by its size. If this fails, so does the
  // next compaction, and we are here again.
  for (rocksdb::ColumnFamilyHandle* handle : handles_)
    (void)db_->SetOptions(handle, {{"disable_auto_compactions", "true"}});
  return absl::OkStatus();
}

namespace {

// RocksDB joins the batches of threads that write at once: one of them copies the others'. A
// function of its own, so that TSan has Database::HandOver on the stack there (tests/tsan.supp).
[[gnu::noinline]] rocksdb::Status WriteBatchTo(rocksdb::DB& db,
                                               const rocksdb::WriteOptions& options,
                                               rocksdb::WriteBatch& batch) {
  return db.Write(options, &batch);
}

}  // namespace

absl::Status Database::HandOver(const rocksdb::WriteOptions& options, rocksdb::WriteBatch& batch) {
  written_bytes_.fetch_add(static_cast<int64_t>(batch.GetDataSize()), std::memory_order_relaxed);
  return Translate(WriteBatchTo(*db_, options, batch), "writing a batch");
}

absl::Status Database::Write(rocksdb::WriteBatch& batch, bool sync) {
  RETURN_IF_ERROR(MayWrite());
  rocksdb::WriteOptions options;
  options.sync = sync;
  return HandOver(options, batch);
}

absl::Status Database::WriteUnlogged(const std::vector<WriteEntry>& entries) {
  RETURN_IF_ERROR(MayWrite());
  size_t bytes = 0;
  for (const WriteEntry& entry : entries)
    bytes += entry.key.size() + (entry.value.has_value() ? entry.value->size() : 0) + kEntryBytes;
  rocksdb::WriteBatch batch(bytes);
  Fill(batch, entries);
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  return HandOver(options, batch);
}

void Database::FlushPause::Begin() {
  std::unique_lock lock(gate_.mutex);
  gate_.changed.wait(lock, [this] { return !gate_.closed; });
  gate_.closed = true;
  gate_.changed.wait(lock, [this] { return gate_.flushing == 0; });
}

void Database::FlushPause::End() {
  std::lock_guard lock(gate_.mutex);
  if (std::exchange(ended_, true)) return;
  gate_.closed = false;
  gate_.changed.notify_all();
}

absl::Status Database::Flush(const std::vector<Column>& columns) {
  RETURN_IF_ERROR(MayWrite());
  {
    std::unique_lock lock(flush_gate_.mutex);
    flush_gate_.changed.wait(lock, [this] { return !flush_gate_.closed; });
    ++flush_gate_.flushing;
  }
  const absl::Status status = FlushNow(columns);
  std::lock_guard lock(flush_gate_.mutex);
  --flush_gate_.flushing;
  flush_gate_.changed.notify_all();
  return status;
}

absl::Status Database::FlushNow(const std::vector<Column>& columns) {
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  for (Column column : columns) handles.push_back(Handle(column));
  rocksdb::FlushOptions options;
  options.allow_write_stall = true;  // never waits for a compaction that damage may have ended
  const int64_t errors = listener_->errors();
  RETURN_IF_ERROR(Translate(db_->Flush(options, handles), "flushing values"));
  // After an error and Resume() it says OK as soon as the jobs are queued.
  while (HoldsUnflushed(handles)) {
    RETURN_IF_ERROR(Translate(listener_->Await(errors), "flushing values"));
    if (flushes_->lost()) return FlushesLost();
  }
  return absl::OkStatus();
}

// Whether a memtable that was closed is not in a table yet.
bool Database::HoldsUnflushed(const std::vector<rocksdb::ColumnFamilyHandle*>& handles) const {
  return std::any_of(handles.begin(), handles.end(), [&](rocksdb::ColumnFamilyHandle* handle) {
    uint64_t count = 0;
    return db_->GetIntProperty(handle, rocksdb::DB::Properties::kNumImmutableMemTable, &count) &&
           count > 0;
  });
}

absl::Status Database::Compact(Column column, std::string_view begin, std::string_view end) {
  RETURN_IF_ERROR(CheckEpoch());
  rocksdb::CompactRangeOptions options;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  const rocksdb::Slice first = ToSlice(begin), last = ToSlice(end);
  return Translate(db_->CompactRange(options, Handle(column), &first, &last), "compacting");
}

// RocksDB flushes all it holds in memory when it resumes, and takes running out of space then as
// fatal: so first see that the space is there.
absl::Status Database::ProbeSpace() {
  uint64_t needed = kSpareBytes;
  for (rocksdb::ColumnFamilyHandle* handle : handles_) {
    uint64_t bytes = 0;
    db_->GetIntProperty(handle, rocksdb::DB::Properties::kCurSizeAllMemTables, &bytes);
    needed += bytes;
  }
  const std::string path = (directory_ / kProbeName).string();
  std::unique_ptr<rocksdb::WritableFile> file;
  rocksdb::Status status = db_->GetEnv()->NewWritableFile(path, &file, rocksdb::EnvOptions());
  const std::string zeros(1 << 20, '\0');
  for (uint64_t written = 0; status.ok() && written < needed; written += zeros.size()) {
    status = file->Append(zeros);
  }
  if (status.ok()) status = file->Close();
  file.reset();
  (void)db_->GetEnv()->DeleteFile(path);
  return Translate(status, fmt::format("looking for {} bytes of free space", needed));
}

absl::Status Database::FlushesLost() const {
  return absl::UnavailableError(
      "RocksDB cannot go on after a full disk: it has lost a flush; reopen the store " +
      directory_.string());
}

absl::StatusOr<bool> Database::Resume() {
  RETURN_IF_ERROR(CheckEpoch());
  RETURN_IF_ERROR(ProbeSpace());
  rocksdb::Status status;
  {
    const FlushCount::Watch watch(
        *flushes_, [this] { rocksdb::CancelAllBackgroundWork(db_.get(), /*wait=*/false); });
    status = db_->Resume();
  }
  if (flushes_->lost()) return FlushesLost();
  if (status.IsBusy()) return false;  // a background job is on its way out
  if (status.severity() >= rocksdb::Status::Severity::kFatalError) {
    return absl::UnavailableError("RocksDB cannot go on after a full disk: " + status.ToString());
  }
  RETURN_IF_ERROR(Translate(status, "resuming after a full disk"));
  flushes_->NoteStopped(false);
  return true;
}

absl::Status Database::CheckEpoch() {
  ASSIGN_OR_RETURN(const bool owner, epoch_.IsOurs());
  if (owner) return absl::OkStatus();
  if (!lost_.exchange(true)) {
    // What is obsolete for us may be live for the new owner, and a file that a background job makes
    // here would take the place of one of its own.
    (void)db_->DisableFileDeletions();
    rocksdb::CancelAllBackgroundWork(db_.get(), /*wait=*/false);
  }
  return FailedPrecondition(
      "the store {} has a newer owner: this process lost it and must not write",
      directory_.string());
}

}  // namespace agentd::sessions::internal
