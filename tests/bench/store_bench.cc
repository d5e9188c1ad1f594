// How fast the session store is, beside what the disk alone does in the same run.
#include "tests/bench/store_bench.h"

#include <fmt/core.h>
#include <malloc.h>

#include <CLI/CLI.hpp>

#include "base/status.h"

namespace agentd::bench {

absl::StatusOr<std::unique_ptr<sessions::Store>> OpenBenchStore(const StoreBenchOptions& options) {
  sessions::StoreOptions store;
  store.kv_identity = "store_bench";
  return sessions::Store::Open(options.store / "store", store);
}

}  // namespace agentd::bench

int main(int argc, char** argv) {
  // As agentd (agentd/freed_memory.h): buffers of the size of a block are used again and again.
  mallopt(M_TRIM_THRESHOLD, 32 << 20);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  agentd::bench::StoreBenchOptions options;
  std::string directory = std::filesystem::temp_directory_path().string();
  CLI::App app("Measures the session store beside the raw disk.");
  app.add_option("--tokens", options.tokens, "Length of the long session")->capture_default_str();
  app.add_option("--repeat", options.repeat, "Cold reads of it")->capture_default_str();
  app.add_option("--branches", options.branches, "Forks and rewinds of it")->capture_default_str();
  app.add_option("--batch", options.batch_bytes, "Bytes read at once")->capture_default_str();
  app.add_option("--dir", directory, "Where the store is made, on the disk to measure")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (options.tokens < agentd::sessions::kBlockTokens || options.repeat < 1 ||
      options.branches < 1) {
    fmt::print(stderr, "store_bench: at least 256 tokens, one repetition and one branch\n");
    return 1;
  }
  std::string made = directory + "/store_bench.XXXXXX";
  if (::mkdtemp(made.data()) == nullptr) {
    fmt::print(stderr, "store_bench: cannot make a directory in {}\n", directory);
    return 1;
  }
  options.store = made;
  const absl::Status status = agentd::bench::MeasureLongSession(options);
  std::error_code error;
  std::filesystem::remove_all(options.store, error);
  if (!status.ok()) fmt::print(stderr, "store_bench: {}\n", agentd::Text(status));
  return status.ok() ? 0 : 1;
}
