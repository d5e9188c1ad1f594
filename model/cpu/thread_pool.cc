#include "model/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>

#include "base/status.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace agentd::model {
namespace {

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Between two jobs of one step lie a few microseconds of serial work; sleeping and waking costs
// some 50.
constexpr auto kSpin = std::chrono::microseconds(40);

constexpr uint32_t kNumberMask = (1u << 28) - 1;
uint32_t JobNumber(uint64_t job) { return static_cast<uint32_t>(job >> 36); }

}  // namespace

absl::StatusOr<std::unique_ptr<ThreadPool>> ThreadPool::Create(int threads) {
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::unique_ptr<ThreadPool> pool(new ThreadPool);
  pool->workers_.reserve(static_cast<size_t>(threads));
  for (int i = 1; i < threads; ++i) {
    try {  // std::thread has no other way to tell
      pool->workers_.emplace_back([worker = pool.get(), i] { worker->WorkerLoop(i); });
    } catch (const std::system_error& error) {
      return Error(absl::StatusCode::kResourceExhausted,
                   "--threads {}: the system started {} of them ({}): give fewer, or raise the "
                   "limits of processes and memory (ulimit -u, ulimit -v)",
                   threads, i, error.code().message());
    }
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunJob(int tasks, Call call, const void* context) {
  AGENTD_CHECK(tasks <= kMaxTasks);
  const uint32_t number = (JobNumber(job_.load(std::memory_order_relaxed)) + 1) & kNumberMask;
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  job_.store(uint64_t{number} << 36 | uint64_t(tasks) << 18);
  if (sleeping_.load() > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  Work(number, 0);
  for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; ++spins) {
    // A worker that was preempted in the middle of a task needs the core more than this loop.
    if (spins < 2000) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::Work(uint32_t number, int worker) {
  uint64_t job = job_.load();
  while (JobNumber(job) == number && NextTask(job) < TaskCount(job)) {
    if (!job_.compare_exchange_weak(job, job + 1)) continue;
    call_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), NextTask(job),
                                          worker);
    done_.fetch_add(1, std::memory_order_release);
    job = job_.load();
  }
}

void ThreadPool::WorkerLoop(int worker) {
  uint32_t seen = 0;
  auto idle_since = std::chrono::steady_clock::now();
  for (int spins = 0;; ++spins) {
    const uint32_t number = JobNumber(job_.load());
    if (number != seen) {
      seen = number;
      Work(number, worker);
      idle_since = std::chrono::steady_clock::now();
      spins = 0;
      continue;
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    Pause();
    if (spins % 64 != 63 || std::chrono::steady_clock::now() - idle_since < kSpin) continue;
    std::unique_lock lock(mutex_);
    sleeping_.fetch_add(1);
    // RunJob publishes the job before it looks at sleeping_, so one of the two sees the other.
    wake_.wait(lock, [&] { return stop_.load() || JobNumber(job_.load()) != seen; });
    sleeping_.fetch_sub(1);
    if (stop_.load()) return;
    idle_since = std::chrono::steady_clock::now();
  }
}

}  // namespace agentd::model
