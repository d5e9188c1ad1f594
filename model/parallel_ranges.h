// Splits work over large amounts of host memory among a few threads: one cannot move or check bytes
// as fast as a device or a disk delivers them.
#ifndef AGENTD_MODEL_PARALLEL_RANGES_H_
#define AGENTD_MODEL_PARALLEL_RANGES_H_

#include <algorithm>
#include <cstddef>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

namespace agentd::model {

// Calls work(begin, end) for ranges that together are [0, count), concurrently if there are enough
// bytes (count * item_bytes) to pay for threads; returns when all are done. `work` must not throw.
inline void ForRanges(size_t count, size_t item_bytes,
                      const std::function<void(size_t begin, size_t end)>& work) {
  constexpr size_t kBytesPerThread = 1 << 20;
  constexpr size_t kMaxThreads = 8;
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t parts =
      std::clamp<size_t>(count * item_bytes / kBytesPerThread, 1, std::min(cores, kMaxThreads));
  std::vector<std::thread> threads;
  size_t begin = 0;
  for (size_t part = 1; part < parts; ++part) {
    const size_t end = count * part / parts;
    try {
      threads.emplace_back(work, begin, end);
    } catch (const std::system_error&) {
      break;  // no more threads: the rest is done here
    }
    begin = end;
  }
  work(begin, count);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace agentd::model

#endif  // AGENTD_MODEL_PARALLEL_RANGES_H_
