#include "sessions/read_threads.h"

#include <system_error>

namespace agentd::sessions::internal {

ReadThreads::~ReadThreads() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    wake_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ReadThreads::ForEach(size_t count, const std::function<void(size_t)>& work) {
  if (count == 0) return;
  if (count == 1) return work(0);
  Call call{work, count};
  std::unique_lock lock(mutex_);
  calls_.push_back(&call);
  StartThreads(count - 1);
  wake_.notify_all();
  while (call.next < call.count) RunOne(call, lock);
  call.finished.wait(lock, [&] { return call.done == call.count; });
}

// Fewer threads than wanted only make it slower: the caller works too.
void ReadThreads::StartThreads(size_t wanted) {
  while (threads_.size() < max_threads_ && threads_.size() < wanted) {
    try {
      threads_.emplace_back([this] { Main(); });
    } catch (const std::system_error&) {
      return;
    }
  }
}

void ReadThreads::RunOne(Call& call, std::unique_lock<std::mutex>& lock) {
  const size_t item = call.next++;
  if (call.next == call.count) calls_.remove(&call);
  lock.unlock();
  call.work(item);
  lock.lock();
  // Under the lock: the caller may take the call away as soon as it sees this.
  if (++call.done == call.count) call.finished.notify_one();
}

void ReadThreads::Main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !calls_.empty(); });
    if (calls_.empty()) return;  // nobody calls while this is destroyed
    Call& call = *calls_.front();
    calls_.splice(calls_.end(), calls_, calls_.begin());
    RunOne(call, lock);
  }
}

}  // namespace agentd::sessions::internal
