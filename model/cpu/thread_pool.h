// A fixed set of worker threads for one Engine. Results never depend on which thread runs which
// task.
#ifndef AGENTD_MODEL_CPU_THREAD_POOL_H_
#define AGENTD_MODEL_CPU_THREAD_POOL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::model {

// One thread at a time may call Run (it takes part as worker 0). Workers spin for some microseconds
// after a job, as a step is a chain of short ones, and then sleep: an idle engine costs nothing.
class ThreadPool {
 public:
  // `threads`: at least 1, the caller included; 0: one per core. ResourceExhausted if the system
  // starts fewer.
  static absl::StatusOr<std::unique_ptr<ThreadPool>> Create(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls function(task, worker) for every task in [0, tasks), worker in [0, threads()), and
  // returns when all are done. Tasks are claimed one at a time, so a worker that the system does
  // not schedule holds up nothing it has not begun.
  template <typename Function>
  void Run(int tasks, const Function& function) {
    if (tasks <= 1 || workers_.empty()) {
      for (int task = 0; task < tasks; ++task) function(task, 0);
      return;
    }
    // A job counts its tasks in 18 bits.
    for (int begin = 0; begin < tasks; begin += kMaxTasks) {
      const auto part = [&function, begin](int task, int worker) {
        function(begin + task, worker);
      };
      RunJob(
          std::min(tasks - begin, kMaxTasks),
          [](const void* context, int task, int worker) {
            (*static_cast<const decltype(part)*>(context))(task, worker);
          },
          &part);
    }
  }

 private:
  using Call = void (*)(const void* context, int task, int worker);

  static constexpr int kMaxTasks = (1 << 18) - 1;
  static int TaskCount(uint64_t job) { return static_cast<int>(job >> 18 & kMaxTasks); }
  static int NextTask(uint64_t job) { return static_cast<int>(job & kMaxTasks); }

  ThreadPool() = default;

  void RunJob(int tasks, Call call, const void* context);
  void WorkerLoop(int worker);
  // Claims and runs tasks of job `number` until none is left.
  void Work(uint32_t number, int worker);

  // The running job: number (28 bits), count of tasks (18), next unclaimed task (18), changed in
  // one piece so that a worker can never claim a task of one job by the count of another. call_ and
  // context_ are written before job_ names the job and read only after a task of it was claimed;
  // the job cannot end, nor the next begin, while a claimed task is not counted in done_.
  std::atomic<uint64_t> job_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int> done_{0};

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};   // changed under mutex_
  std::atomic<bool> stop_{false};  // changed under mutex_

  std::vector<std::thread> workers_;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_THREAD_POOL_H_
