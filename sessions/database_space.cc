// What lies where on the disk, and how much of it.
#include <rocksdb/metadata.h>
#include <rocksdb/sst_file_reader.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/status.h"
#include "sessions/database.h"

namespace agentd::sessions::internal {
namespace {

// A reference into a blob file, as RocksDB keeps it in a table: type 1, then three varints (file,
// offset, size) and the compression. Our own records begin with their magic.
constexpr char kBlobReference = 1;
constexpr size_t kMaxReferenceBytes = 32;

bool TakeVarint(std::string_view& bytes, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    const uint8_t byte = static_cast<uint8_t>(bytes.front());
    bytes.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

ValueLocation Locate(std::string_view stored) {
  ValueLocation location;
  location.bytes = stored.size();
  if (stored.empty() || stored.front() != kBlobReference || stored.size() > kMaxReferenceBytes)
    return location;
  ValueLocation blob;
  stored.remove_prefix(1);
  if (!TakeVarint(stored, blob.file) || !TakeVarint(stored, blob.offset) ||
      !TakeVarint(stored, blob.bytes)) {
    return location;
  }
  return blob;
}

struct Table {
  std::string path;
  int level = 0;
  uint64_t newest = 0;  // sequence number
};

// From the oldest values to the newest.
std::vector<Table> TablesOf(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* handle) {
  rocksdb::ColumnFamilyMetaData column;
  db.GetColumnFamilyMetaData(handle, &column);
  std::vector<Table> tables;
  for (const rocksdb::LevelMetaData& level : column.levels) {
    for (const rocksdb::SstFileMetaData& file : level.files)
      tables.push_back({file.db_path + "/" + file.name, level.level, file.largest_seqno});
  }
  std::sort(tables.begin(), tables.end(), [](const Table& a, const Table& b) {
    return a.level != b.level ? a.level > b.level : a.newest < b.newest;
  });
  return tables;
}

}  // namespace

std::vector<BlobFile> Database::BlobFiles(Column column) const {
  rocksdb::ColumnFamilyMetaData metadata;
  db_->GetColumnFamilyMetaData(Handle(column), &metadata);
  std::vector<BlobFile> files;
  for (const rocksdb::BlobMetaData& file : metadata.blob_files) {
    files.push_back({file.blob_file_number, file.blob_file_size, file.garbage_blob_bytes,
                     std::filesystem::path(file.blob_file_path) / file.blob_file_name});
  }
  return files;
}

absl::Status Database::ScanLocations(
    Column column,
    const std::function<void(std::string_view key, const ValueLocation&)>& visit) const {
  // The tables must outlive their reading. Counted, so the one of a lost epoch stays.
  RETURN_IF_ERROR(Translate(db_->DisableFileDeletions(), "holding tables"));
  absl::Status status;
  rocksdb::Options options = db_->GetOptions(Handle(column));
  for (const Table& table : TablesOf(*db_, Handle(column))) {
    rocksdb::SstFileReader reader(options);
    rocksdb::Status read = reader.Open(table.path);
    if (read.ok()) {
      rocksdb::ReadOptions once;
      once.fill_cache = false;
      const std::unique_ptr<rocksdb::Iterator> iterator(reader.NewIterator(once));
      for (iterator->SeekToFirst(); iterator->Valid(); iterator->Next())
        visit(ToView(iterator->key()), Locate(ToView(iterator->value())));
      read = iterator->status();
    }
    status.Update(Translate(read, "reading table " + table.path));
  }
  (void)db_->EnableFileDeletions(/*force=*/false);
  return status;
}

absl::StatusOr<std::set<std::filesystem::path>> Database::ObsoleteFiles() const {
  const std::filesystem::path directory = directory_ / "db";
  std::set<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::filesystem::path extension = entry->path().extension();
    if (extension == ".sst" || extension == ".blob") files.insert(entry->path());
  }
  std::vector<std::string> live;
  uint64_t manifest_bytes = 0;
  RETURN_IF_ERROR(Translate(db_->GetLiveFiles(live, &manifest_bytes, /*flush_memtable=*/false),
                            "listing live files"));
  for (const std::string& name : live)
    files.erase(directory / std::filesystem::path(name).relative_path());
  return files;
}

int64_t Database::MeasureBytes() const {
  int64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(directory_, error), end;
       !error && entry != end; entry.increment(error)) {
    // A file may vanish between listing and measuring: it then counts nothing.
    struct stat status;
    if (::lstat(entry->path().c_str(), &status) == 0) bytes += status.st_blocks * int64_t{512};
  }
  return bytes;
}

absl::Status Database::CompactAll(Column column, std::atomic<bool>& canceled) {
  RETURN_IF_ERROR(CheckEpoch());
  rocksdb::CompactRangeOptions options;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  options.exclusive_manual_compaction = false;
  options.canceled = &canceled;
  return Translate(db_->CompactRange(options, Handle(column), nullptr, nullptr), "compacting");
}

}  // namespace agentd::sessions::internal
