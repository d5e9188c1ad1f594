#include "sessions/backup.h"

#include <fcntl.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <rocksdb/utilities/backup_engine.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "base/small_file.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "sessions/bytes.h"
#include "sessions/checksum.h"
#include "sessions/crash_point.h"
#include "sessions/database.h"
#include "sessions/record.h"

namespace agentd::sessions {
namespace internal {
namespace {

constexpr char kMarkFile[] = "BACKUPS";
constexpr char kMarkLine[] = "agentd-backups ";
constexpr int kBackupVersion = 1;
// How far a restored store's owner epoch may be from its source's.
constexpr uint64_t kEpochRange = uint64_t{1} << 48;

// Tells when a file of the database is first read: the lists of tables and logs stand by then.
class WatchedFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  WatchedFileSystem(const std::shared_ptr<rocksdb::FileSystem>& target,
                    std::function<void()> on_read)
      : FileSystemWrapper(target), on_read_(std::move(on_read)) {}
  const char* Name() const override { return "WatchedFileSystem"; }
  rocksdb::IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                      rocksdb::IODebugContext* debug) override {
    on_read_();
    return target()->NewSequentialFile(name, options, file, debug);
  }

 private:
  const std::function<void()> on_read_;
};

// The disk is the backup's: what Translate says of the store's does not fit.
absl::Status TranslateHere(const rocksdb::Status& status, const std::string& what) {
  if (!status.IsNoSpace()) return Translate(status, what);
  return absl::ResourceExhaustedError(
      fmt::format("{}: no space left: {}", what, status.ToString()));
}

rocksdb::BackupEngineOptions EngineOptions(const std::filesystem::path& directory) {
  rocksdb::BackupEngineOptions options(directory.string(), rocksdb::Env::Default());
  options.sync = true;
  return options;
}

// ---- the directory

// `flock`ed while a call works in it.
absl::StatusOr<UniqueFd> LockDirectory(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "LOCK";
  UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid() && errno == EROFS) return lock;  // nobody else can change it either
  if (!lock.valid()) return ErrnoError(errno, "open " + path.string());
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) return ErrnoError(errno, "flock " + path.string());
  return FailedPrecondition("{} is in use: another backup, verification or restore works there",
                            directory.string());
}

// A version, the identity of the store, and a checksum of both, a line each.
std::string MarkOf(int version, std::string_view identity) {
  const std::string lines = fmt::format("{}{}\n{}\n", kMarkLine, version, identity);
  return fmt::format("{}{:016x}\n", lines, Xxh3({lines}));
}

// The identity of the store whose backups these are. nullopt: no backup was ever made here.
absl::StatusOr<std::optional<std::string>> ReadMark(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kMarkFile;
  ASSIGN_OR_RETURN(const std::optional<std::string> mark, ReadSmallFile(path));
  if (!mark.has_value()) return mark;
  int version = 0;
  const size_t line = mark->find('\n');
  const size_t next = line == std::string::npos ? line : mark->find('\n', line + 1);
  if (next == std::string::npos || next == line + 1 ||
      std::sscanf(mark->c_str(), "agentd-backups %d\n", &version) != 1 || version < 1 ||
      *mark != MarkOf(version, std::string_view(*mark).substr(line + 1, next - line - 1))) {
    return DataLoss("{} is damaged: it should hold '{}{}', the store's identity and a checksum",
                    path.string(), kMarkLine, kBackupVersion);
  }
  if (version > kBackupVersion) {
    return FailedPrecondition(
        "{} has format version {}, this program reads up to {}: use a newer "
        "agentd",
        path.string(), version, kBackupVersion);
  }
  return mark->substr(line + 1, next - line - 1);
}

absl::Status PrepareDirectory(const std::filesystem::path& directory, const std::string& identity) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return ErrnoError(error.value(), "create directory " + directory.string());
  ASSIGN_OR_RETURN(const std::optional<std::string> mark, ReadMark(directory));
  if (mark.has_value()) {
    if (*mark == identity) return absl::OkStatus();
    return FailedPrecondition(
        "{} holds backups of another store ({}, this one is {}): give each store, and a restored "
        "copy too, a backup directory of its own",
        directory.string(), *mark, identity);
  }
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name == "LOCK" || name == std::string(kMarkFile) + ".new") continue;
    return FailedPrecondition("{} is neither empty nor a backup directory: it holds {}",
                              directory.string(), name);
  }
  if (error) return ErrnoError(error.value(), "list " + directory.string());
  (void)::chmod(directory.c_str(), 0700);
  return ReplaceFile(directory / kMarkFile, MarkOf(kBackupVersion, identity));
}

int64_t BytesUnder(const std::filesystem::path& directory) {
  int64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(directory, error), end;
       !error && entry != end; entry.increment(error)) {
    struct stat status;
    if (::lstat(entry->path().c_str(), &status) == 0 && S_ISREG(status.st_mode))
      bytes += status.st_size;
  }
  return bytes;
}

// ---- what lies beside db/

using SmallFiles = std::map<std::string, std::string>;

// All that is in the store's directory itself, but for what belongs to its present owner alone.
absl::StatusOr<SmallFiles> ReadSmallFiles(const std::filesystem::path& store) {
  SmallFiles files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(store, error)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name == "LOCK" || name == "PROBE" || name.ends_with(".new"))
      continue;
    ASSIGN_OR_RETURN(std::optional<std::string> bytes, ReadSmallFile(entry.path()));
    if (!bytes.has_value()) continue;
    if (bytes->size() == kSmallFileBytes)
      return Internal("{} is longer than a backup takes", entry.path().string());
    files.emplace(name, *std::move(bytes));
  }
  if (error) return ErrnoError(error.value(), "list " + store.string());
  return files;
}

std::string EncodeSmallFiles(const SmallFiles& files) {
  ByteWriter writer;
  writer.Put(uint32_t{kBackupVersion}).Put(static_cast<uint32_t>(files.size()));
  for (const auto& [name, bytes] : files) writer.Sized(name).Sized(bytes);
  const std::string encoded = writer.str();
  return ByteWriter().Bytes(encoded).Put(Xxh3({encoded})).str();
}

absl::StatusOr<SmallFiles> DecodeSmallFiles(const std::string& encoded, const std::string& what) {
  const absl::Status damaged =
      DataLoss("{} is damaged: its list of small files is not readable", what);
  if (encoded.size() < sizeof(uint64_t)) return damaged;
  const std::string_view body =
      std::string_view(encoded).substr(0, encoded.size() - sizeof(uint64_t));
  if (ByteReader(std::string_view(encoded).substr(body.size())).Get<uint64_t>() != Xxh3({body}))
    return damaged;
  ByteReader reader(body);
  const uint32_t version = reader.Get<uint32_t>();
  if (version > kBackupVersion) {
    return FailedPrecondition(
        "{} has format version {}, this program reads up to {}: use a newer "
        "agentd",
        what, version, kBackupVersion);
  }
  const uint32_t count = reader.Get<uint32_t>();
  SmallFiles files;
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    std::string name(reader.Sized());
    if (name.empty() || name.find('/') != std::string::npos || name == "." || name == "..")
      return damaged;
    files.emplace(std::move(name), std::string(reader.Sized()));
  }
  if (!reader.Done() || !files.contains("FORMAT") || !files.contains("EPOCH")) return damaged;
  return files;
}

// ---- reading a backup directory

BackupInfo InfoOf(const rocksdb::BackupInfo& backup) {
  BackupInfo info;
  info.id = backup.backup_id;
  info.created_us = backup.timestamp * 1'000'000;
  info.bytes = static_cast<int64_t>(backup.size);
  info.files = backup.number_files;
  return info;
}

struct Reading {
  UniqueFd lock;
  std::unique_ptr<rocksdb::BackupEngineReadOnly> engine;
};

absl::StatusOr<Reading> OpenForReading(const std::filesystem::path& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error))
    return NotFound("there is no backup directory {}", directory.string());
  ASSIGN_OR_RETURN(const std::optional<std::string> mark, ReadMark(directory));
  if (!mark.has_value()) {
    return InvalidArgument("{} holds no backups of a session store: it has no file {}",
                           directory.string(), kMarkFile);
  }
  Reading reading;
  ASSIGN_OR_RETURN(reading.lock, LockDirectory(directory));
  rocksdb::BackupEngineReadOnly* engine = nullptr;
  RETURN_IF_ERROR(TranslateHere(rocksdb::BackupEngineReadOnly::Open(
                                    EngineOptions(directory), rocksdb::Env::Default(), &engine),
                                "opening the backups in " + directory.string()));
  reading.engine.reset(engine);
  return reading;
}

std::vector<BackupInfo> ListIn(const rocksdb::BackupEngineReadOnlyBase& engine) {
  std::vector<rocksdb::BackupInfo> good;
  std::vector<rocksdb::BackupID> bad;
  engine.GetBackupInfo(&good);
  engine.GetCorruptedBackups(&bad);
  std::vector<BackupInfo> infos;
  for (const rocksdb::BackupInfo& backup : good) infos.push_back(InfoOf(backup));
  for (const rocksdb::BackupID id : bad) {
    BackupInfo info;
    info.id = id;
    rocksdb::BackupInfo unreadable;
    info.damage = engine.GetBackupInfo(id, &unreadable).ToString();
    infos.push_back(std::move(info));
  }
  std::sort(infos.begin(), infos.end(),
            [](const BackupInfo& a, const BackupInfo& b) { return a.id < b.id; });
  return infos;
}

std::string NameOf(const std::filesystem::path& directory, uint32_t id) {
  return fmt::format("backup {} in {}", id, directory.string());
}

// The backup `id`, or the newest: one that is damaged is not passed over in silence.
absl::StatusOr<rocksdb::BackupInfo> Choose(const rocksdb::BackupEngineReadOnlyBase& engine,
                                           const std::filesystem::path& directory, uint32_t id) {
  const std::vector<BackupInfo> infos = ListIn(engine);
  if (infos.empty()) return NotFound("{} holds no backup that came to its end", directory.string());
  if (id == 0) id = infos.back().id;
  const auto found = std::find_if(infos.begin(), infos.end(),
                                  [id](const BackupInfo& info) { return info.id == id; });
  if (found == infos.end()) {
    return NotFound("there is no {}; the newest is {}", NameOf(directory, id), infos.back().id);
  }
  if (!found->damage.empty())
    return DataLoss("{} is damaged: {}", NameOf(directory, id), found->damage);
  rocksdb::BackupInfo backup;
  RETURN_IF_ERROR(TranslateHere(engine.GetBackupInfo(id, &backup), NameOf(directory, id)));
  return backup;
}

absl::Status VerifyIn(const rocksdb::BackupEngineReadOnlyBase& engine,
                      const std::filesystem::path& directory, const rocksdb::BackupInfo& backup,
                      bool contents) {
  const std::string name = NameOf(directory, backup.backup_id);
  RETURN_IF_ERROR(DecodeSmallFiles(backup.app_metadata, name).status());
  const rocksdb::IOStatus verified = engine.VerifyBackup(backup.backup_id, contents);
  if (verified.IsCorruption() || verified.IsNotFound())
    return DataLoss("{} is damaged: {}", name, verified.ToString());
  return TranslateHere(verified, "verifying " + name);
}

// ---- restoring

absl::Status CheckTarget(const std::filesystem::path& store) {
  std::error_code error;
  if (!std::filesystem::exists(std::filesystem::symlink_status(store, error)))
    return absl::OkStatus();
  if (std::filesystem::is_directory(std::filesystem::symlink_status(store, error)) &&
      std::filesystem::is_empty(store, error) && !error) {
    return absl::OkStatus();
  }
  return FailedPrecondition(
      "{} is there already, and a restore writes nothing over: restore to a new directory, or move "
      "that one away",
      store.string());
}

// What a restore that crashed left behind is of no use; one that runs holds its lock.
absl::StatusOr<UniqueFd> PrepareTemporary(const std::filesystem::path& temporary) {
  std::error_code error;
  std::filesystem::create_directories(temporary, error);
  if (error) return ErrnoError(error.value(), "create directory " + temporary.string());
  (void)::chmod(temporary.c_str(), 0700);
  ASSIGN_OR_RETURN(UniqueFd lock, LockDirectory(temporary));
  for (const auto& entry : std::filesystem::directory_iterator(temporary, error)) {
    if (entry.path().filename() != "LOCK") std::filesystem::remove_all(entry.path(), error);
    if (error) return ErrnoError(error.value(), "remove " + entry.path().string());
  }
  if (error) return ErrnoError(error.value(), "list " + temporary.string());
  return lock;
}

// Another number than its source or any other copy has or will have: a process that still has one
// of those open under this name must not take this one for its own.
absl::StatusOr<std::string> NewEpoch(const std::string& old, const std::string& what) {
  absl::StatusOr<uint64_t> number = DecodeNumber(RecordKind::kEpoch, "EPOCH", old);
  if (!number.ok()) return Annotate(number.status(), what);
  uint64_t random = 0;
  if (::getrandom(&random, sizeof(random), 0) != static_cast<ssize_t>(sizeof(random)))
    return ErrnoError(errno, "getrandom");
  return EncodeNumber(RecordKind::kEpoch, "EPOCH", *number + 1 + random % kEpochRange);
}

absl::Status SyncAll(const std::filesystem::path& directory) {
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, "open " + directory.string());
  if (::syncfs(fd.get()) != 0) return ErrnoError(errno, "syncfs " + directory.string());
  return absl::OkStatus();
}

absl::Status FillTemporary(const rocksdb::BackupEngineReadOnlyBase& engine,
                           const std::filesystem::path& directory,
                           const rocksdb::BackupInfo& backup,
                           const std::filesystem::path& temporary) {
  const std::string name = NameOf(directory, backup.backup_id);
  ASSIGN_OR_RETURN(SmallFiles files, DecodeSmallFiles(backup.app_metadata, name));
  ASSIGN_OR_RETURN(files["EPOCH"], NewEpoch(files["EPOCH"], name));
  const std::string db = (temporary / "db").string();
  RETURN_IF_ERROR(
      TranslateHere(engine.RestoreDBFromBackup(rocksdb::RestoreOptions(), backup.backup_id, db, db),
                    "restoring " + name));
  CrashPoint("restore_copied");
  for (const auto& [file, bytes] : files) RETURN_IF_ERROR(ReplaceFile(temporary / file, bytes));
  return SyncAll(temporary);
}

}  // namespace

absl::StatusOr<BackupInfo> CreateBackup(Database& database, const std::filesystem::path& directory,
                                        uint32_t keep) {
  RETURN_IF_ERROR(database.CheckEpoch());
  std::string identity;
  RETURN_IF_ERROR(
      TranslateHere(database.db().GetDbIdentity(identity), "reading the store's identity"));
  RETURN_IF_ERROR(PrepareDirectory(directory, identity));
  ASSIGN_OR_RETURN(const UniqueFd lock, LockDirectory(directory));
  ASSIGN_OR_RETURN(const SmallFiles files, ReadSmallFiles(database.directory()));

  // The engine lists tables and logs, then reads them. Nothing may be flushed between the two
  // lists.
  std::unique_ptr<Database::FlushPause> pause;
  const auto watched =
      std::make_shared<WatchedFileSystem>(database.db().GetEnv()->GetFileSystem(), [&pause] {
        if (pause != nullptr) pause->End();
      });
  const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(watched);
  rocksdb::BackupEngine* opened = nullptr;
  RETURN_IF_ERROR(
      TranslateHere(rocksdb::BackupEngine::Open(EngineOptions(directory), env.get(), &opened),
                    "opening the backups in " + directory.string()));
  const std::unique_ptr<rocksdb::BackupEngine> engine(opened);
  const int64_t bytes_before = BytesUnder(directory);
  pause = std::make_unique<Database::FlushPause>(database);
  CrashPoint("backup_before");
  rocksdb::BackupID id = 0;
  const rocksdb::IOStatus created = engine->CreateNewBackupWithMetadata(
      rocksdb::CreateBackupOptions(), &database.db(), EncodeSmallFiles(files), &id);
  pause->End();
  RETURN_IF_ERROR(TranslateHere(created, "backing up to " + directory.string()));
  CrashPoint("backup_after");
  if (const absl::Status owner = database.CheckEpoch(); !owner.ok()) {
    // Files may have vanished or been replaced under the copying.
    (void)engine->DeleteBackup(id);
    return owner;
  }
  ASSIGN_OR_RETURN(const rocksdb::BackupInfo backup, Choose(*engine, directory, id));
  // Files that an earlier backup brought may have been cut since.
  RETURN_IF_ERROR(VerifyIn(*engine, directory, backup, /*contents=*/false));
  BackupInfo info = InfoOf(backup);
  info.shared_bytes =
      std::clamp<int64_t>(info.bytes - (BytesUnder(directory) - bytes_before), 0, info.bytes);
  if (keep > 0) {
    RETURN_IF_ERROR(TranslateHere(
        engine->PurgeOldBackups(keep),
        fmt::format("{} is made, but older ones are not removed", NameOf(directory, id))));
  }
  return info;
}

}  // namespace internal

absl::StatusOr<std::vector<BackupInfo>> ListBackups(const std::filesystem::path& directory) {
  ASSIGN_OR_RETURN(const internal::Reading reading, internal::OpenForReading(directory));
  return internal::ListIn(*reading.engine);
}

absl::StatusOr<BackupInfo> VerifyBackup(const std::filesystem::path& directory, uint32_t id) {
  ASSIGN_OR_RETURN(const internal::Reading reading, internal::OpenForReading(directory));
  ASSIGN_OR_RETURN(const rocksdb::BackupInfo backup,
                   internal::Choose(*reading.engine, directory, id));
  RETURN_IF_ERROR(internal::VerifyIn(*reading.engine, directory, backup, /*contents=*/true));
  return internal::InfoOf(backup);
}

absl::StatusOr<BackupInfo> RestoreBackup(const std::filesystem::path& directory, uint32_t id,
                                         const std::filesystem::path& store) {
  using namespace internal;
  // "x/" has an empty name.
  const std::filesystem::path target =
      store.has_filename() ? store : std::filesystem::path(store).parent_path();
  RETURN_IF_ERROR(CheckTarget(target));
  ASSIGN_OR_RETURN(const Reading reading, OpenForReading(directory));
  ASSIGN_OR_RETURN(const rocksdb::BackupInfo backup, Choose(*reading.engine, directory, id));
  RETURN_IF_ERROR(VerifyIn(*reading.engine, directory, backup, /*contents=*/true));
  const std::filesystem::path temporary = target.string() + ".restoring";
  ASSIGN_OR_RETURN(const UniqueFd lock, PrepareTemporary(temporary));
  RETURN_IF_ERROR(FillTemporary(*reading.engine, directory, backup, temporary));
  RETURN_IF_ERROR(CheckTarget(target));
  // Takes the place of an empty directory, and of nothing else.
  if (::rename(temporary.c_str(), target.c_str()) != 0)
    return ErrnoError(errno, "rename " + temporary.string() + " to " + target.string());
  CrashPoint("restore_renamed");
  RETURN_IF_ERROR(SyncDirectory(std::filesystem::absolute(target).parent_path()));
  return InfoOf(backup);
}

}  // namespace agentd::sessions
