// Keeps RocksDB's recovery after an error from waiting for ever.
#ifndef AGENTD_SESSIONS_FLUSH_NUDGE_H_
#define AGENTD_SESSIONS_FLUSH_NUDGE_H_

#include <rocksdb/db.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace agentd::sessions::internal {

// Asks for flushes while it lives. RocksDB's Resume() queues one of each column and waits for its
// table; but a job that ended without an error and without that table (it ran while the one before
// failed) is not queued again, and then it waits for ever.
class FlushNudge {
 public:
  FlushNudge(rocksdb::DB& db, const std::vector<rocksdb::ColumnFamilyHandle*>& columns)
      : thread_([this, &db, &columns] { Loop(db, columns); }) {}
  ~FlushNudge() {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  void Loop(rocksdb::DB& db, const std::vector<rocksdb::ColumnFamilyHandle*>& columns) {
    rocksdb::FlushOptions options;
    options.wait = false;
    options.allow_write_stall = true;
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, std::chrono::milliseconds(500), [this] { return over_; })) {
      lock.unlock();
      // Whether it could be queued shows in what Resume() says.
      db.Flush(options, columns).PermitUncheckedError();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_FLUSH_NUDGE_H_
