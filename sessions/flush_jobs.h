// Sees when RocksDB loses count of its flushes.
#ifndef AGENTD_SESSIONS_FLUSH_JOBS_H_
#define AGENTD_SESSIONS_FLUSH_JOBS_H_

#include <rocksdb/env.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace agentd::sessions::internal {

// RocksDB 7.8 has a queue of columns to flush (DBImpl::flush_queue_) and a number of jobs that have
// yet to be started for them (unscheduled_flushes_). The number falls when a job is handed to the
// Env; the job takes a column off the queue when it runs. One that was handed over before an error
// (the log met a full disk) and runs after it, before Resume(), returns without taking any
// (DBImpl::BackgroundFlush). From then on there is one job too few: each takes the column of
// another, and the last one stays in the queue, where nothing queues it again, as it is marked as
// queued. Resume(), which waits for a table of every column, then waits for ever. No call raises
// that number alone, and flushes of other columns only hand the loss on: what helps is to open the
// database anew. (FaultTest.AFlushThatAFullDiskOvertookIsNotWaitedFor makes it so. With
// atomic_flush columns have no such mark; but there RocksDB asserts that the columns of a request
// have one reason, which two requests that overlap break, and Debian's library has assertions.)
class FlushCount {
 public:
  // What the listener of the database hears: the job that this thread runs has taken its column;
  // background work stops, from before it does until a Resume() has succeeded.
  static void NoteBegun();
  void NoteStopped(bool stopped);
  void NoteEnded(bool begun);  // a job, on its thread

  bool lost() const;

  // Calls `act` when the count is lost, or at once if it was; never after it is gone. Waits for
  // `act` when it goes.
  class Watch {
   public:
    Watch(FlushCount& count, std::function<void()> act);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    FlushCount& count_;
    bool over_ = false;  // guarded by count_.mutex_
    std::thread thread_;
  };

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;  // guarded by mutex_
  bool lost_ = false;     // guarded by mutex_
};

// `base`, with the flush jobs of one database counted. `count` is shared with jobs: the last one's
// thread may look at it when the database is closed.
std::unique_ptr<rocksdb::Env> WithCountedFlushes(std::unique_ptr<rocksdb::Env> base,
                                                 std::shared_ptr<FlushCount> count);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_FLUSH_JOBS_H_
