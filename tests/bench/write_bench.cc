// What a session that grows for days writes: commits turns of Flash-shaped payloads, as the daemon
// does, and prints the bytes that went to the device over the bytes of KV and log committed.
//
// A turn is a prompt (one commit, with its whole blocks and an anchor), then sampled tokens in
// runs, blocks as they become whole, a tail anchor every 1,024 tokens and an anchor at the end.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "fmt/format.h"
#include "sessions/store.h"
#include "tests/bench/figures.h"

namespace agentd {
namespace {

constexpr int64_t kIndexBytes = 114'752, kBlockBytes = 899'648;
constexpr int kCsaParts = 4;
constexpr int64_t kTailEvery = 1024;

struct Flags {
  std::string directory;
  int64_t tokens = 1'000'000, turn_tokens = 2000, prompt_tokens = 900, run_tokens = 32;
  int64_t anchor_bytes = 1'000'000;
  int64_t sessions = 1;  // that take turns
  double budget_gib = 0;
  double limit = 0;
};

// As the kernel counts it for this process: pages made dirty, and of those the ones whose file was
// deleted before they were written.
struct Device {
  int64_t written = 0, cancelled = 0;
};

Device ReadDevice() {
  Device device;
  std::ifstream io("/proc/self/io");
  std::string name;
  for (int64_t value = 0; io >> name >> value;) {
    if (name == "write_bytes:") device.written = value;
    if (name == "cancelled_write_bytes:") device.cancelled = value;
  }
  return device;
}

// One session of the bench. Its payloads do not compress, as real ones do not.
class Writer {
 public:
  Writer(sessions::Store& store, const Flags& flags, sessions::SessionInfo info, uint64_t seed)
      : store_(store), flags_(flags), info_(std::move(info)), random_(seed) {}

  absl::Status Turn(int64_t tokens) {
    const int64_t end = tokens_ + tokens;
    const int64_t prompt = std::min(flags_.prompt_tokens, tokens);
    RETURN_IF_ERROR(Commit(prompt, /*sampled=*/false, /*anchor=*/true, /*tail=*/false));
    while (tokens_ < end) {
      const int64_t run = std::min(flags_.run_tokens, end - tokens_);
      const bool last = tokens_ + run == end;
      const bool tail = (tokens_ + run) / kTailEvery != tokens_ / kTailEvery;
      RETURN_IF_ERROR(Commit(run, /*sampled=*/true, last || tail, !last));
    }
    return absl::OkStatus();
  }

  // Of block payloads, events and anchors.
  int64_t kv_bytes() const { return kv_bytes_; }
  int64_t log_bytes() const { return log_bytes_; }
  int64_t anchor_bytes() const { return anchor_bytes_; }

 private:
  std::string Payload(int64_t bytes) {
    std::string payload(static_cast<size_t>(bytes), '\0');
    for (size_t i = 0; i + 8 <= payload.size(); i += 8) {
      const uint64_t word = random_();
      std::memcpy(payload.data() + i, &word, 8);
    }
    return payload;
  }

  absl::Status Commit(int64_t count, bool sampled, bool anchor, bool tail) {
    sessions::Commit commit;
    commit.timeline = info_.timeline;
    std::vector<sessions::TokenId> tokens(static_cast<size_t>(count));
    for (sessions::TokenId& token : tokens)
      token = static_cast<sessions::TokenId>(random_() % 129'280);
    commit.events.push_back(sessions::NewEvent::Tokens(std::move(tokens), sampled));
    const int64_t first = tokens_ / sessions::kBlockTokens;
    tokens_ += count;
    for (int64_t block = first; block < tokens_ / sessions::kBlockTokens; ++block) {
      sessions::KvBlock& added = commit.blocks.emplace_back();
      added.block = block;
      added.parts.push_back(Payload(kIndexBytes));
      for (int part = 0; part < kCsaParts; ++part)
        added.parts.push_back(Payload((kBlockBytes - kIndexBytes) / kCsaParts));
      kv_bytes_ += kBlockBytes;
    }
    if (anchor) {
      commit.anchor = sessions::KvAnchor{tokens_, Payload(flags_.anchor_bytes), tail};
      anchor_bytes_ += flags_.anchor_bytes;
    }
    log_bytes_ += count * static_cast<int64_t>(sizeof(sessions::TokenId));
    return store_.CommitSync(std::move(commit)).status();
  }

  sessions::Store& store_;
  const Flags& flags_;
  const sessions::SessionInfo info_;
  std::mt19937_64 random_;
  int64_t tokens_ = 0, kv_bytes_ = 0, log_bytes_ = 0, anchor_bytes_ = 0;
};

double Print(const char* when, const std::vector<Writer>& writers, const Device& before,
             const sessions::StoreStats& stats) {
  int64_t kv = 0, log = 0, anchors = 0;
  for (const Writer& writer : writers) {
    kv += writer.kv_bytes();
    log += writer.log_bytes();
    anchors += writer.anchor_bytes();
  }
  const Device now = ReadDevice();
  const int64_t device = now.written - before.written;
  const double ratio = static_cast<double>(device) / static_cast<double>(kv + log);
  fmt::print(
      "{:<14} KV {} + log {} committed, anchors {}; device {} ({} of it never written back); "
      "collection wrote {}; directory {} of {}; device / (KV + log) = {:.3f}\n",
      when, kv, log, anchors, device, now.cancelled - before.cancelled,
      stats.collected_bytes_written, stats.directory_bytes, stats.budget_bytes, ratio);
  std::fflush(stdout);
  return ratio;
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const TemporaryDirectory made, TemporaryDirectory::In(flags.directory));
  sessions::StoreOptions options;
  options.kv_identity = "write_bench";
  options.group_commit_window_us = 0;
  options.budget_bytes = static_cast<int64_t>(flags.budget_gib * (1 << 30));
  ASSIGN_OR_RETURN(std::unique_ptr<sessions::Store> store,
                   sessions::Store::Open(made.path() / "store", options));
  const Device before = ReadDevice();
  std::vector<Writer> writers;
  for (int64_t i = 0; i < flags.sessions; ++i) {
    ASSIGN_OR_RETURN(sessions::SessionInfo info, store->Create({"bench", 1, ""}));
    writers.emplace_back(*store, flags, std::move(info), static_cast<uint64_t>(i) + 1);
  }
  const int64_t turns = flags.tokens / flags.turn_tokens;
  for (int64_t turn = 0; turn < turns; ++turn) {
    RETURN_IF_ERROR(writers[static_cast<size_t>(turn % flags.sessions)].Turn(flags.turn_tokens));
    if ((turn + 1) % std::max<int64_t>(1, turns / 4) != 0) continue;
    ASSIGN_OR_RETURN(const sessions::StoreStats stats, store->Stats());
    Print(fmt::format("{} tokens", (turn + 1) * flags.turn_tokens).c_str(), writers, before, stats);
  }
  const auto begin = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(store->Reclaim());
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ASSIGN_OR_RETURN(const sessions::StoreStats stats, store->Stats());
  const double ratio = Print("reclaimed", writers, before, stats);
  fmt::print("Reclaim took {:.1f} s; evicted {} bytes in {} blocks and {} anchors\n", seconds,
             stats.evicted_bytes, stats.evicted_blocks, stats.evicted_anchors);
  if (flags.limit > 0 && ratio > flags.limit)
    return FailedPrecondition("{:.3f} bytes written for each committed, over {}", ratio,
                              flags.limit);
  return absl::OkStatus();
}

}  // namespace
}  // namespace agentd

int main(int argc, char** argv) {
  CLI::App app("write_bench: device bytes over committed bytes of a session that grows");
  agentd::Flags flags;
  app.add_option("--dir", flags.directory, "Where the store is made, on the disk to measure")
      ->required();
  app.add_option("--tokens", flags.tokens, "In all")->capture_default_str();
  app.add_option("--turn", flags.turn_tokens, "Tokens of a turn")->capture_default_str();
  app.add_option("--prompt", flags.prompt_tokens, "Of them given")->capture_default_str();
  app.add_option("--run", flags.run_tokens, "Sampled tokens a commit")->capture_default_str();
  app.add_option("--anchor-bytes", flags.anchor_bytes, "Of an anchor")->capture_default_str();
  app.add_option("--sessions", flags.sessions, "That take turns")->capture_default_str();
  app.add_option("--budget-gib", flags.budget_gib, "Of the store; 0: none")->capture_default_str();
  app.add_option("--limit", flags.limit, "Fail if the last ratio is above it");
  CLI11_PARSE(app, argc, argv);
  return agentd::bench::ExitCode("write_bench", agentd::Run(flags));
}
