// How fast the session store is, beside what the disk alone does in the same run.
#include "tests/bench/store_bench.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "agentd/freed_memory.h"
#include "base/status.h"
#include "base/temporary_directory.h"
#include "tests/bench/figures.h"

namespace agentd::bench {

absl::StatusOr<std::unique_ptr<sessions::Store>> OpenBenchStore(const StoreBenchOptions& options) {
  sessions::StoreOptions store;
  store.kv_identity = "store_bench";
  return sessions::Store::Open(options.store / "store", store);
}

}  // namespace agentd::bench

int main(int argc, char** argv) {
  agentd::daemon::KeepFreedMemory();  // as agentd
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
  const auto made = agentd::TemporaryDirectory::In(directory);
  if (!made.ok()) return agentd::bench::ExitCode("store_bench", made.status());
  options.store = made->path();
  return agentd::bench::ExitCode("store_bench", agentd::bench::MeasureLongSession(options));
}
