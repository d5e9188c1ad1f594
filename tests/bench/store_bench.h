// What the parts of store_bench have in common.
#ifndef AGENTD_TESTS_BENCH_STORE_BENCH_H_
#define AGENTD_TESTS_BENCH_STORE_BENCH_H_

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sessions/store.h"

namespace agentd::bench {

struct StoreBenchOptions {
  int64_t tokens = 1'000'000;  // of the long session
  int repeat = 3;              // cold reads of it
  int branches = 200;          // forks and rewinds each
  int64_t batch_bytes = int64_t{16} << 20;
  std::filesystem::path store;  // made and removed
};

// The parts of a block of V4-Flash: the index part, then the CSA entries of its 21 CSA layers.
inline constexpr int kFlashCsaLayers = 21;
inline constexpr int64_t kFlashIndexBytes = 114'752;
inline constexpr int64_t kFlashCsaBytes = 37'376;  // of one layer
inline constexpr int64_t kFlashAnchorBytes = int64_t{1} << 20;

inline constexpr char kBenchOwner[] = "store_bench";

absl::StatusOr<std::unique_ptr<sessions::Store>> OpenBenchStore(const StoreBenchOptions& options);

// A session of payloads of V4-Flash's shape, saved beside raw writes and read back cold beside raw
// reads; then forks and rewinds of it, and whether all values are as they were saved.
absl::Status MeasureLongSession(const StoreBenchOptions& options);

}  // namespace agentd::bench

#endif  // AGENTD_TESTS_BENCH_STORE_BENCH_H_
