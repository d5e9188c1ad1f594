// What RocksDB tells us about its background jobs.
#ifndef AGENTD_SESSIONS_BACKGROUND_LISTENER_H_
#define AGENTD_SESSIONS_BACKGROUND_LISTENER_H_

#include <rocksdb/listener.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "sessions/flush_jobs.h"

namespace agentd::sessions::internal {

// Thread-safe. One database's.
class BackgroundListener final : public rocksdb::EventListener {
 public:
  explicit BackgroundListener(std::shared_ptr<FlushCount> flushes) : flushes_(std::move(flushes)) {}

  // RocksDB's own recovery after a full disk looks for space every five seconds and keeps Resume()
  // out meanwhile. The pipeline asks before its next write instead.
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* automatic) override {
    *automatic = false;
  }
  // A compaction that meets a damaged block changes nothing: its inputs stay, and reading still
  // finds all that is whole. Taken as an error of the database it would stop every session's
  // writes, in this life and in each that opens the same files.
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override {
    if (reason == rocksdb::BackgroundErrorReason::kCompaction && error->IsCorruption()) {
      damage_met_ = true;
      *error = rocksdb::Status::OK();
      return;
    }
    if (error->severity() >= rocksdb::Status::Severity::kHardError) flushes_->NoteStopped(true);
    std::lock_guard lock(mutex_);
    ++errors_;
    last_error_ = *error;
    changed_.notify_all();
  }
  void OnFlushBegin(rocksdb::DB*, const rocksdb::FlushJobInfo&) override {
    FlushCount::NoteBegun();
  }
  void OnFlushCompleted(rocksdb::DB*, const rocksdb::FlushJobInfo&) override {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  // True once after each such compaction.
  bool TakeDamage() { return damage_met_.exchange(false); }

  int64_t errors() const {
    std::lock_guard lock(mutex_);
    return errors_;
  }
  // Waits until something happened in the background, a moment at most. The newest error, if there
  // are more than `errors`.
  rocksdb::Status Await(int64_t errors) {
    std::unique_lock lock(mutex_);
    if (errors_ == errors) changed_.wait_for(lock, std::chrono::milliseconds(5));
    return errors_ == errors ? rocksdb::Status::OK() : last_error_;
  }

 private:
  const std::shared_ptr<FlushCount> flushes_;  // shared with the Env and its jobs
  std::atomic<bool> damage_met_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int64_t errors_ = 0;          // guarded by mutex_
  rocksdb::Status last_error_;  // guarded by mutex_
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_BACKGROUND_LISTENER_H_
