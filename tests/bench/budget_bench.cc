// Whether the directory is within its budget once the writing ends: sessions grow, fork and go
// until several times the budget was written, most of it still listed; then the directory is
// measured every second. Beside it what the collection of blob files wrote itself, the price of
// giving the space back.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sessions/store.h"
#include "tests/bench/figures.h"

namespace agentd::bench {
namespace {

constexpr int64_t kBlockBytes = 899'648;  // of V4-Flash, in five parts
constexpr int kParts = 5;
constexpr size_t kAnchorBytes = 1'000'000;
constexpr size_t kSessions = 24;  // at least
constexpr int64_t kTurnBlocks = 4;

struct Options {
  int64_t budget_mib = 512;
  double times = 4;  // the budget, so much KV is written
  int settle_seconds = 60;
  double tolerance = 0.10;
  std::string directory = std::filesystem::temp_directory_path().string();
};

// Pages that this process made dirty, as the kernel counts them.
int64_t DirtiedBytes() {
  std::ifstream io("/proc/self/io");
  std::string name;
  for (int64_t value = 0; io >> name >> value;) {
    if (name == "write_bytes:") return value;
  }
  return 0;
}

class Churn {
 public:
  Churn(sessions::Store& store, uint64_t seed) : store_(store), random_(seed) {}

  // A turn of a session, of a fork of it, or a new session in the place of one.
  absl::Status Step() {
    if (sessions_.size() < kSessions) return Begin();
    const size_t chosen = random_() % sessions_.size();
    switch (random_() % 16) {
      case 0:
        RETURN_IF_ERROR(store_.Delete(sessions_[chosen].info.id));
        sessions_.erase(sessions_.begin() + static_cast<std::ptrdiff_t>(chosen));
        return Begin();
      case 1:
        return Fork(sessions_[chosen]);
      default:
        return Turn(sessions_[chosen]);
    }
  }
  int64_t kv_bytes() const { return kv_bytes_; }

 private:
  struct Session {
    sessions::SessionInfo info;
    int64_t tokens = 0;
  };

  absl::Status Begin() {
    ASSIGN_OR_RETURN(const sessions::SessionInfo info, store_.Create({"bench", random_(), ""}));
    sessions_.push_back({info, 0});
    return Turn(sessions_.back());
  }

  absl::Status Fork(const Session& session) {
    const int64_t at = session.tokens / 2;
    ASSIGN_OR_RETURN(const sessions::SessionInfo info,
                     store_.Fork(session.info.id, {std::nullopt, at}, {"bench", random_(), ""}));
    sessions_.push_back({info, at});
    return Turn(sessions_.back());
  }

  absl::Status Turn(Session& session) {
    sessions::Commit commit;
    commit.timeline = session.info.timeline;
    const int64_t end =
        (session.tokens / sessions::kBlockTokens + kTurnBlocks) * int64_t{sessions::kBlockTokens};
    std::vector<sessions::TokenId> tokens(static_cast<size_t>(end - session.tokens));
    for (sessions::TokenId& token : tokens)
      token = static_cast<sessions::TokenId>(random_() % 129'280);
    commit.events.push_back(sessions::NewEvent::Tokens(std::move(tokens), /*sampled=*/true));
    for (int64_t block = session.tokens / sessions::kBlockTokens;
         block < end / sessions::kBlockTokens; ++block) {
      sessions::KvBlock& added = commit.blocks.emplace_back();
      added.block = block;
      for (int part = 0; part < kParts; ++part)
        added.parts.push_back(Payload(kBlockBytes / kParts));
      kv_bytes_ += kBlockBytes;
    }
    session.tokens = end;
    commit.anchor = sessions::KvAnchor{end, Payload(kAnchorBytes), /*tail=*/false};
    kv_bytes_ += int64_t{kAnchorBytes};
    return store_.CommitSync(std::move(commit)).status();
  }

  // Does not compress, as real values do not.
  std::string Payload(size_t bytes) {
    std::string payload(bytes, '\0');
    for (size_t i = 0; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) {
      const uint64_t word = random_();
      std::memcpy(payload.data() + i, &word, sizeof(word));
    }
    return payload;
  }

  sessions::Store& store_;
  std::mt19937_64 random_;
  std::vector<Session> sessions_;
  int64_t kv_bytes_ = 0;
};

std::string Mib(int64_t bytes) { return fmt::format("{:.1f} MiB", double(bytes) / (1 << 20)); }

// False: after `settle_seconds` the directory is not within the tolerance.
absl::StatusOr<bool> Measure(const Options& options, const std::filesystem::path& directory) {
  const int64_t budget = options.budget_mib << 20;
  sessions::StoreOptions store_options;
  store_options.kv_identity = "budget_bench";
  store_options.budget_bytes = budget;
  ASSIGN_OR_RETURN(const auto store, sessions::Store::Open(directory, store_options));
  const uint64_t seed = std::random_device{}();
  Churn churn(*store, seed);
  const int64_t dirtied = DirtiedBytes();
  const Clock clock;
  int64_t most = 0;
  double measured = 0;
  while (double(churn.kv_bytes()) < options.times * double(budget)) {
    RETURN_IF_ERROR(churn.Step());
    if (clock.seconds() - measured < 0.5) continue;
    measured = clock.seconds();
    ASSIGN_OR_RETURN(const sessions::StoreStats stats, store->Stats());
    most = std::max(most, stats.directory_bytes);
  }
  fmt::print("[figure] a budget of {}, sessions that grow, fork and go (seed {})\n", Mib(budget),
             seed);
  Row("KV and anchors written",
      fmt::format("{}, {:.1f} times the budget, in {:.1f} s", Mib(churn.kv_bytes()),
                  double(churn.kv_bytes()) / double(budget), clock.seconds()));
  Row("most that the directory took meanwhile",
      fmt::format("{}, {:.0f}% of the budget", Mib(most), 100 * double(most) / double(budget)));
  const Clock settling;
  double within = -1;
  sessions::StoreStats stats;
  const auto off = [&] { return std::abs(double(stats.directory_bytes) / double(budget) - 1); };
  while (settling.seconds() < options.settle_seconds) {
    ASSIGN_OR_RETURN(stats, store->Stats());
    if (off() > options.tolerance) within = -1;
    if (off() <= options.tolerance && within < 0) within = settling.seconds();
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  ASSIGN_OR_RETURN(stats, store->Stats());
  Row(fmt::format("the directory {} s after the last commit", options.settle_seconds),
      fmt::format("{}, {:.1f}% of the budget; within {:.0f}% for good after {:.0f} s",
                  Mib(stats.directory_bytes), 100 * double(stats.directory_bytes) / double(budget),
                  100 * options.tolerance, within));
  Row("of it dead, in files with live values", Mib(stats.dead_bytes));
  Row("evicted", fmt::format("{} blocks, {} anchors, {}", stats.evicted_blocks,
                             stats.evicted_anchors, Mib(stats.evicted_bytes)));
  Row("written by the collection itself",
      fmt::format("{} from {} files, {:.2f} bytes for each of KV and anchors",
                  Mib(stats.collected_bytes_written), stats.collected_files,
                  double(stats.collected_bytes_written) / double(churn.kv_bytes())));
  Row("dirtied by the process in all",
      fmt::format("{}, {:.2f} bytes for each", Mib(DirtiedBytes() - dirtied),
                  double(DirtiedBytes() - dirtied) / double(churn.kv_bytes())));
  if (!stats.space_error.empty()) return Internal("{}", stats.space_error);
  return off() <= options.tolerance;
}

absl::StatusOr<bool> Run(const Options& options) {
  ASSIGN_OR_RETURN(const TemporaryDirectory made, TemporaryDirectory::In(options.directory));
  return Measure(options, made.path());
}

}  // namespace
}  // namespace agentd::bench

int main(int argc, char** argv) {
  agentd::bench::Options options;
  CLI::App app("Writes several times a store's budget and measures what stays.");
  app.add_option("--budget-mib", options.budget_mib, "The budget")
      ->check(CLI::Range(16, 1 << 20))
      ->capture_default_str();
  app.add_option("--times", options.times, "How many times the budget is written")
      ->check(CLI::Range(1.5, 1000.0))
      ->capture_default_str();
  app.add_option("--settle", options.settle_seconds, "Seconds after the last commit")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  app.add_option("--tolerance", options.tolerance, "How far from the budget is near enough")
      ->capture_default_str();
  app.add_option("--dir", options.directory, "Where the store is made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<bool> within = agentd::bench::Run(options);
  if (!within.ok()) return agentd::bench::ExitCode("budget_bench", within.status());
  fmt::print("{}\n", *within ? "within the tolerance" : "NOT within the tolerance");
  return *within ? 0 : 1;
}
