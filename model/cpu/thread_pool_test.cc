#include "model/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace agentd::model {
namespace {

TEST(ThreadPool, EveryTaskOnceInEveryJob) {
  for (int threads : {1, 2, 4, 7}) {
    const std::unique_ptr<ThreadPool> pool = *ThreadPool::Create(threads);
    for (int job = 0; job < 3000; ++job) {
      const int tasks = job % 37;
      std::vector<std::atomic<int>> ran(size_t(tasks) + 1);
      int64_t sum = 0;  // written by job's tasks' slots only
      std::vector<int> values(size_t(tasks) + 1, 0);
      pool->Run(tasks, [&](int task, int worker) {
        ran[size_t(task)].fetch_add(1);
        EXPECT_LT(worker, threads);
        values[size_t(task)] = task + job;
      });
      for (int task = 0; task < tasks; ++task) {
        ASSERT_EQ(ran[size_t(task)].load(), 1);
        sum += values[size_t(task)];
      }
      ASSERT_EQ(sum, int64_t(tasks) * (tasks - 1) / 2 + int64_t(tasks) * job);
      // Now and then the workers have gone to sleep.
      if (job % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
}

// More tasks than a job can count: run as several.
TEST(ThreadPool, MoreTasksThanAJobCounts) {
  constexpr int kTasks = (1 << 19) + 5;
  const std::unique_ptr<ThreadPool> pool = *ThreadPool::Create(3);
  std::vector<uint8_t> ran(kTasks, 0);
  pool->Run(kTasks, [&](int task, int) { ++ran[size_t(task)]; });
  EXPECT_EQ(std::count(ran.begin(), ran.end(), 1), kTasks);
}

}  // namespace
}  // namespace agentd::model
