// A store's files, read without the store: what the disk alone allows.
#ifndef AGENTD_TESTS_BENCH_COLD_FILES_H_
#define AGENTD_TESTS_BENCH_COLD_FILES_H_

#include <cstdint>
#include <filesystem>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::bench {

// Syncs all files below and takes them out of the page cache.
absl::Status DropFromPageCache(const std::filesystem::path& directory);

struct RawRead {
  int64_t bytes = 0;
  double seconds = 0;
  bool direct = false;  // past the page cache
};
// All blob files below, 1 MiB at a time by 4 threads. `to_device`: and on to the CUDA device.
absl::StatusOr<RawRead> ReadRaw(const std::filesystem::path& directory, bool to_device);

// Writes new files of `file_bytes` in a folder below, 1 MiB at a time, one after the other as the
// store does, each fsynced; removes them.
absl::StatusOr<RawRead> WriteRaw(const std::filesystem::path& directory, int64_t bytes,
                                 int64_t file_bytes);

// Milliseconds of each of `count` appends of 256 bytes to a file, fdatasynced: what any durable
// record costs.
absl::StatusOr<std::vector<double>> TimeSyncs(const std::filesystem::path& directory, int count);

}  // namespace agentd::bench

#endif  // AGENTD_TESTS_BENCH_COLD_FILES_H_
