// Threads that share the work of bulk reads.
//
// A blob is read by one pread that waits for the disk, so the disk is busy only when several wait
// at once. Callers take turns item by item: a short read is not held up by a long one.
#ifndef AGENTD_SESSIONS_READ_THREADS_H_
#define AGENTD_SESSIONS_READ_THREADS_H_

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

namespace agentd::sessions::internal {

class ReadThreads {
 public:
  // At most `threads`, started when they are first wanted.
  explicit ReadThreads(size_t threads) : max_threads_(threads) {}
  ~ReadThreads();
  ReadThreads(const ReadThreads&) = delete;
  ReadThreads& operator=(const ReadThreads&) = delete;

  // Calls work(0), ..., work(count - 1), each once, on these threads and the calling one; returns
  // when all have returned. Any thread; `work` must be safe to call from several at once.
  void ForEach(size_t count, const std::function<void(size_t)>& work);

 private:
  struct Call {
    const std::function<void(size_t)>& work;
    size_t count;
    size_t next = 0;  // guarded by mutex_, as is the rest
    size_t done = 0;
    std::condition_variable finished;
  };

  void Main();
  void StartThreads(size_t wanted);
  // Runs the call's next item. mutex_ is held by `lock`, not meanwhile.
  void RunOne(Call& call, std::unique_lock<std::mutex>& lock);

  const size_t max_threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  bool stop_ = false;
  std::list<Call*> calls_;  // with items left; the front one is served next
  std::vector<std::thread> threads_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_READ_THREADS_H_
