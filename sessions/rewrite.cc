#include "sessions/rewrite.h"

#include <memory>
#include <string>
#include <vector>

#include "base/small_file.h"
#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/database.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/store_files.h"
#include "sessions/summary.h"

namespace agentd::sessions {
namespace internal {
namespace {

constexpr size_t kRewriteBatchBytes = 8 << 20;
constexpr std::string_view kRewriteCrashPoints[] = {
    "rewrite_begun", "rewrite_copied",     "rewrite_complete",     "rewrite_old_gone",
    "rewrite_moved", "rewrite_keys_moved", "rewrite_format_moved", "rewrite_tidied"};

class Rewriter {
 public:
  Rewriter(const Database& source, Database& target,
           const std::function<void(const RewriteProgress&)>& report)
      : source_(source), target_(target), report_(report) {}

  absl::StatusOr<RewriteProgress> Run() {
    // Large values by their names: one that cannot be read costs itself alone, where an iterator
    // would end.
    RETURN_IF_ERROR(source_.Scan(
        Column::kTimelines, "k",
        [&](std::string_view key, std::string_view value) { return CopyBlock(key, value); }));
    RETURN_IF_ERROR(
        source_.Scan(Column::kTimelines, "n", [&](std::string_view key, std::string_view) {
          return CopyValue(Column::kAnchors, std::string(key.substr(1)));
        }));
    for (const Column column : {Column::kTimelines, Column::kEvents, Column::kFiles, Column::kMeta})
      RETURN_IF_ERROR(CopyColumn(column));
    RETURN_IF_ERROR(WriteBatch());
    RETURN_IF_ERROR(target_.Flush({Column::kTimelines, Column::kEvents, Column::kKv,
                                   Column::kAnchors, Column::kFiles, Column::kMeta}));
    return progress_;
  }

 private:
  absl::Status CopyBlock(std::string_view name_key, std::string_view value) {
    const absl::StatusOr<BlockName> name = DecodeBlockName(name_key, value);
    if (!name.ok() || name_key.size() != 1 + sizeof(BlockHash)) {
      ++progress_.values_dropped;
      return absl::OkStatus();
    }
    for (uint32_t part = 0; part < name->parts; ++part)
      RETURN_IF_ERROR(CopyValue(Column::kKv, KvPartKey(DigestAt(name_key, 1), part)));
    return absl::OkStatus();
  }

  absl::Status CopyValue(Column column, std::string key) {
    absl::StatusOr<std::optional<std::string>> value = source_.Get(column, key);
    if (!value.ok() && !absl::IsDataLoss(value.status())) return value.status();
    if (value.ok() && value->has_value()) return Put(column, std::move(key), **std::move(value));
    ++progress_.values_dropped;
    return absl::OkStatus();
  }

  absl::Status CopyColumn(Column column) {
    return source_.Scan(column, "", [&](std::string_view key, std::string_view value) {
      return CopyRecord(column, key, value);
    });
  }

  // An encrypted source has the tags of the target already: they have one secret.
  absl::Status CopyRecord(Column column, std::string_view key, std::string_view value) {
    if (source_.keyring() != nullptr) return Put(column, std::string(key), std::string(value));
    if (column == Column::kTimelines && key.starts_with('o') && key.size() > 3) {
      const size_t size = static_cast<uint8_t>(key[1]) << 8 | static_cast<uint8_t>(key[2]);
      if (key.size() < 3 + size) return absl::OkStatus();  // of no owner: nothing finds it
      const std::string tag = target_.OwnerTag(key.substr(3, size));
      return PutUnder(RecordKind::kSummary, column, key,
                      OwnerIndexPrefix(tag).append(key.substr(3 + size)), value);
    }
    if (column == Column::kMeta && key.starts_with('u')) {
      return PutUnder(RecordKind::kOwnerKey, column, key,
                      OwnerKeyKey(target_.OwnerTag(key.substr(1))), value);
    }
    if (column == Column::kFiles && key.size() == 1 + sizeof(Sha256Digest)) {
      return PutUnder(key[0] == 'c' ? RecordKind::kChunk : RecordKind::kDirectory, column, key,
                      ObjectKey(key), value);
    }
    if (column == Column::kMeta && key.starts_with("pf") &&
        key.size() == 3 + sizeof(Sha256Digest)) {
      return PutUnder(RecordKind::kIntent, column, key, IntentKey('f', ObjectKey(key.substr(2))),
                      value);
    }
    return Put(column, std::string(key), std::string(value));
  }

  std::string ObjectKey(std::string_view key) const {
    return Key(key[0], View(target_.ObjectTag(DigestAt(key, 1))));
  }

  // The record's checksum covers its key. A damaged one stays so.
  absl::Status PutUnder(RecordKind kind, Column column, std::string_view key, std::string new_key,
                        std::string_view value) {
    const absl::StatusOr<std::string_view> payload = Unframe(kind, key, value);
    std::string framed = payload.ok() ? Frame(kind, new_key, *payload) : std::string(value);
    return Put(column, std::move(new_key), std::move(framed));
  }

  absl::Status Put(Column column, std::string key, std::string value) {
    ++progress_.records;
    progress_.bytes += static_cast<int64_t>(key.size() + value.size());
    batch_bytes_ += key.size() + value.size();
    batch_.push_back({column, std::move(key), std::move(value)});
    return batch_bytes_ < kRewriteBatchBytes ? absl::OkStatus() : WriteBatch();
  }

  // Without the log: nothing of it counts before all of it is flushed.
  absl::Status WriteBatch() {
    RETURN_IF_ERROR(target_.WriteUnlogged(batch_));
    batch_.clear();
    batch_bytes_ = 0;
    if (report_) report_(progress_);
    return absl::OkStatus();
  }

  const Database& source_;
  Database& target_;
  const std::function<void(const RewriteProgress&)>& report_;
  std::vector<WriteEntry> batch_;
  size_t batch_bytes_ = 0;
  RewriteProgress progress_;
};

}  // namespace

std::span<const std::string_view> RewriteCrashPointNames() { return kRewriteCrashPoints; }

}  // namespace internal

namespace internal {
namespace {

// All of `source`, into `rewrite/`.
absl::StatusOr<RewriteProgress> WriteCopy(
    Database& source, const StoreKeys& keys,
    const std::function<void(const RewriteProgress&)>& report) {
  const std::filesystem::path rewrite = source.directory() / kRewriteName;
  RETURN_IF_ERROR(UpgradeSummaries(source));
  InternalOptions options;
  if (source.keyring() != nullptr) options.store_secret = source.keyring()->secret();
  ASSIGN_OR_RETURN(
      std::unique_ptr<Database> target,
      Database::Open(rewrite, /*create_if_missing=*/true, options, {keys.current, {}}));
  CrashPoint("rewrite_begun");
  ASSIGN_OR_RETURN(const RewriteProgress progress, Rewriter(source, *target, report).Run());
  target.reset();
  // It is the same store, whose backups go on.
  const char* const kIdentity = "db/IDENTITY";
  ASSIGN_OR_RETURN(const std::optional<std::string> identity,
                   ReadSmallFile(source.directory() / kIdentity));
  if (identity.has_value()) RETURN_IF_ERROR(ReplaceFile(rewrite / kIdentity, *identity));
  CrashPoint("rewrite_copied");
  RETURN_IF_ERROR(ReplaceFile(rewrite / kCompleteName, ""));
  return progress;
}

}  // namespace
}  // namespace internal

absl::StatusOr<RewriteProgress> RewriteStore(
    const std::filesystem::path& directory, const StoreKeys& keys,
    const std::function<void(const RewriteProgress&)>& report) {
  using internal::Database;
  if (!keys.current.has_value())
    return InvalidArgument("rewriting {} needs the key to encrypt it with", directory.string());
  absl::StatusOr<RewriteProgress> progress;
  {
    // Holds the store's lock to the end, and finishes or removes what an earlier rewriting left.
    internal::InternalOptions options;
    options.keys_if_encrypted = true;
    options.begins_rewrite = true;
    ASSIGN_OR_RETURN(const std::unique_ptr<Database> source,
                     Database::Open(directory, /*create_if_missing=*/false, options, keys));
    progress = internal::WriteCopy(*source, keys, report);
    if (!progress.ok()) {
      (void)internal::DropRewrite(directory);  // it failed, and says so: the store goes on
      return progress;
    }
  }
  internal::CrashPoint("rewrite_complete");
  // Opening it puts the new database in the old one's place, and shows that it opens.
  RETURN_IF_ERROR(
      Database::Open(directory, /*create_if_missing=*/false, {}, {keys.current, {}}).status());
  return progress;
}

}  // namespace agentd::sessions
