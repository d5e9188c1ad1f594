#include "sessions/doctor_files.h"

#include <fcntl.h>
#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/sst_file_reader.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "base/small_file.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "sessions/database.h"
#include "sessions/doctor_findings.h"
#include "sessions/log_file.h"
#include "sessions/record.h"

namespace agentd::sessions {
namespace internal {

void AddStoreFinding(DoctorReport& report, const char* kind, const std::string& what,
                     const std::string& reason, const std::string& mend) {
  report.findings.push_back({Harm::kStore,
                             kind,
                             what,
                             reason,
                             "the store is refused; nothing else was looked at",
                             mend,
                             {}});
}

void ExamineRecoveryFiles(const std::filesystem::path& directory, DoctorReport& report) {
  for (const std::filesystem::path& path : RecoveryFiles(directory / "db")) {
    const bool is_log = path.extension() == ".log";
    const char* kind = is_log ? "log" : "manifest";
    const std::string what = (is_log ? "log " : "list of tables ") + path.string();
    const absl::StatusOr<std::string> bytes = ReadWholeFile(path);
    if (!bytes.ok()) {
      AddStoreFinding(report, kind, what, Text(bytes.status()));
      continue;
    }
    report.bytes += static_cast<int64_t>(bytes->size());
    const std::optional<LogDamage> damage = FindLogDamage(*bytes);
    if (!damage.has_value()) continue;
    AddStoreFinding(
        report, kind, what,
        fmt::format("at byte {}: {}; {} bytes from there on cannot be trusted", damage->offset,
                    damage->what, damage->bytes),
        fmt::format("{}, or, on a copy, give up what those {} bytes say: agentctl doctor --cut-log "
                    "(after a loss of power it may be nothing that was acknowledged)",
                    kFromBackup, damage->bytes));
  }
}

void ExamineEpoch(const std::filesystem::path& directory, DoctorReport& report) {
  const std::filesystem::path path = directory / "EPOCH";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return;
  const absl::StatusOr<std::string> bytes = ReadWholeFile(path);
  const absl::StatusOr<uint64_t> epoch =
      bytes.ok() ? DecodeNumber(RecordKind::kEpoch, "EPOCH", *bytes) : bytes.status();
  if (epoch.ok()) return;
  Finding finding = Directory().Explain(RecordKind::kEpoch, "EPOCH");
  finding.what = "file " + path.string();
  finding.reason = Text(epoch.status());
  report.findings.push_back(std::move(finding));
}

void ExamineTables(rocksdb::DB& db, DoctorReport& report) {
  std::vector<rocksdb::LiveFileMetaData> tables;
  db.GetLiveFilesMetaData(&tables);
  for (const rocksdb::LiveFileMetaData& table : tables) {
    const std::string path = table.db_path + table.name;
    const absl::Status status = VerifyTable(path);
    report.bytes += static_cast<int64_t>(table.size);
    if (status.ok()) continue;
    report.findings.push_back(
        {Harm::kTime,
         "table",
         fmt::format("table {} ({})", path, table.column_family_name),
         Text(status),
         "the records in its damaged part, which are named here where they are known; it is not "
         "compacted any more, so reading gets slower",
         kFromBackup,
         {}});
  }
}

absl::Status VerifyTable(const std::filesystem::path& path) {
  rocksdb::SstFileReader reader{rocksdb::Options()};
  rocksdb::Status status = reader.Open(path.string());
  if (status.ok()) status = reader.VerifyChecksum();
  return Translate(status, path.string());
}

void ExplainRefusal(const std::filesystem::path& directory, const absl::Status& why,
                    DoctorReport& report) {
  if (!report.findings.empty() && report.findings.back().harm == Harm::kStore &&
      report.findings.back().kind != "epoch" && report.findings.back().kind != "rewrite")
    return;  // a log, or the list of tables
  const size_t before = report.findings.size();
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory / "db", error), end;
       !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() != ".sst") continue;
    const absl::Status status = VerifyTable(entry->path());
    if (!status.ok())
      AddStoreFinding(report, "table", "table " + entry->path().string(), Text(status));
  }
  if (report.findings.size() > before) return;
  AddStoreFinding(report, "database", "FORMAT, KEYS, or a file of db/ (CURRENT, a table)",
                  Text(why));
}

}  // namespace internal

absl::StatusOr<std::filesystem::path> CutLog(const std::filesystem::path& directory) {
  using namespace internal;  // NOLINT(google-build-using-namespace)
  ASSIGN_OR_RETURN(const UniqueFd lock, Database::LockDirectory(directory));
  // RocksDB leaves an empty one behind.
  std::vector<std::filesystem::path> logs = LogFiles(directory / "db");
  std::erase_if(logs, [](const std::filesystem::path& path) {
    std::error_code error;
    return std::filesystem::file_size(path, error) == 0;
  });
  for (const std::filesystem::path& path : RecoveryFiles(directory / "db")) {
    ASSIGN_OR_RETURN(const std::string bytes, ReadWholeFile(path));
    const std::optional<LogDamage> damage = FindLogDamage(bytes);
    if (!damage.has_value()) continue;
    if (path.extension() == ".log" && path != logs.back()) {
      return FailedPrecondition(
          "the log {} is damaged and newer logs follow it: without it they fit nothing. Put the "
          "store back from a copy",
          path.string());
    }
    const std::filesystem::path kept =
        directory / fmt::format("cut-{}-{}", path.filename().string(), damage->offset);
    RETURN_IF_ERROR(ReplaceFile(kept, std::string_view(bytes).substr(damage->offset)));
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(damage->offset)) != 0 ||
        ::fsync(fd.get()) != 0)
      return ErrnoError(errno, "truncate " + path.string());
    return kept;
  }
  return FailedPrecondition("no log of the store {} is damaged", directory.string());
}

}  // namespace agentd::sessions
