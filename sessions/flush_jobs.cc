#include "sessions/flush_jobs.h"

#include <utility>

namespace agentd::sessions::internal {
namespace {

thread_local bool flush_begun = false;

struct FlushJob {
  std::shared_ptr<FlushCount> count;
  void (*function)(void*);
  void* argument;
  void (*dropped)(void*);
};

void RunFlushJob(void* argument) {
  const std::unique_ptr<FlushJob> job(static_cast<FlushJob*>(argument));
  flush_begun = false;
  job->function(job->argument);  // the database may be gone now
  job->count->NoteEnded(flush_begun);
}

void DropFlushJob(void* argument) {
  const std::unique_ptr<FlushJob> job(static_cast<FlushJob*>(argument));
  if (job->dropped != nullptr) job->dropped(job->argument);
}

class CountedFlushes final : public rocksdb::EnvWrapper {
 public:
  CountedFlushes(std::unique_ptr<rocksdb::Env> base, std::shared_ptr<FlushCount> count)
      : EnvWrapper(std::move(base)), count_(std::move(count)) {}
  const char* Name() const override { return "CountedFlushes"; }

  void Schedule(void (*function)(void*), void* argument, Priority priority, void* tag,
                void (*dropped)(void*)) override {
    // Of what RocksDB runs at high priority only flushes can be taken back.
    if (priority != Priority::HIGH || tag == nullptr)
      return EnvWrapper::Schedule(function, argument, priority, tag, dropped);
    EnvWrapper::Schedule(&RunFlushJob, new FlushJob{count_, function, argument, dropped}, priority,
                         tag, &DropFlushJob);
  }

 private:
  const std::shared_ptr<FlushCount> count_;
};

}  // namespace

void FlushCount::NoteBegun() { flush_begun = true; }

void FlushCount::NoteStopped(bool stopped) {
  const std::lock_guard lock(mutex_);
  stopped_ = stopped;
}

void FlushCount::NoteEnded(bool begun) {
  const std::lock_guard lock(mutex_);
  // Without an error: a column that the job before has emptied is taken and passed over.
  if (begun || !stopped_) return;
  lost_ = true;
  changed_.notify_all();
}

bool FlushCount::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

FlushCount::Watch::Watch(FlushCount& count, std::function<void()> act) : count_(count) {
  thread_ = std::thread([this, act = std::move(act)] {
    std::unique_lock lock(count_.mutex_);
    count_.changed_.wait(lock, [this] { return over_ || count_.lost_; });
    if (over_) return;
    lock.unlock();
    act();
  });
}

FlushCount::Watch::~Watch() {
  {
    const std::lock_guard lock(count_.mutex_);
    over_ = true;
    count_.changed_.notify_all();
  }
  thread_.join();
}

std::unique_ptr<rocksdb::Env> WithCountedFlushes(std::unique_ptr<rocksdb::Env> base,
                                                 std::shared_ptr<FlushCount> count) {
  return std::make_unique<CountedFlushes>(std::move(base), std::move(count));
}

}  // namespace agentd::sessions::internal
