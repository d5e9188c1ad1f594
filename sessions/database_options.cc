#include "sessions/database_options.h"

#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/table.h>

#include <cstdarg>
#include <utility>

namespace agentd::sessions::internal {
namespace {

// RocksDB's own log is a text file in the store's directory, and a full disk ends the process
// there: built with assertions, as Debian's is, the library aborts at the next line after one that
// did not fit. What matters of it comes back to us as a Status.
class NoLogFile final : public rocksdb::Logger {
 public:
  NoLogFile() : rocksdb::Logger(rocksdb::InfoLogLevel::FATAL_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

}  // namespace

rocksdb::Options DbOptions(rocksdb::Env* env, std::shared_ptr<rocksdb::EventListener> listener) {
  rocksdb::Options options;
  options.env = env;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.paranoid_checks = true;
  // Point-in-time recovery, the default, would drop acknowledged records behind one flipped bit
  // without an error.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.recycle_log_file_num = 0;
  options.track_and_verify_wals_in_manifest = true;
  // A failed write or fsync is not tried again behind our back; Resume() is called where it is
  // right.
  options.max_bgerror_resume_count = 0;
  options.listeners.push_back(std::move(listener));
  // What has no name yet may be forgotten, and a stale owner must not write when it closes.
  options.avoid_flush_during_shutdown = true;
  options.max_total_wal_size = 64 << 20;
  options.max_open_files = 512;
  // Space is not taken before it is used: the directory is measured.
  options.allow_fallocate = false;
  options.max_background_jobs = 2;
  options.info_log = std::make_shared<NoLogFile>();
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  return options;
}

rocksdb::ColumnFamilyOptions ColumnOptions(Column column, bool compress) {
  rocksdb::ColumnFamilyOptions options;
  rocksdb::BlockBasedTableOptions table;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  options.compression = compress ? rocksdb::kZSTD : rocksdb::kNoCompression;
  // Every commit with KV flushes once, so level 0 gets many small files: their compaction moves
  // keys only, so let them gather instead of slowing writers down.
  options.level0_slowdown_writes_trigger = 64;
  options.level0_stop_writes_trigger = 128;
  if (column == Column::kKv || column == Column::kAnchors) {
    options.compression = rocksdb::kNoCompression;  // quantised values do not shrink
    options.enable_blob_files = true;
    options.min_blob_size = 4096;
    options.blob_file_size = 256 << 20;
    // No compaction may read values: one that meets a damaged value stops the whole database, for
    // good, and a damaged value must cost no more than time. Each flush makes a file of its own,
    // which goes when the last value in it does; the collector (collector.h) sees to that.
    options.enable_blob_garbage_collection = false;
    options.write_buffer_size = 64 << 20;
  } else {
    options.write_buffer_size = 16 << 20;
  }
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

}  // namespace agentd::sessions::internal
