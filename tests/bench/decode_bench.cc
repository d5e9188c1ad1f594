// What it costs a decoding session that its tokens and KV are made durable: the scheduler decodes
// with the store and without, turn about, everything else equal.
#include <dirent.h>
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "agentd/event_hub.h"
#include "agentd/freed_memory.h"
#include "agentd/scheduler.h"
#include "agentd/session_log.h"
#include "base/status.h"
#include "base/temporary_directory.h"
#include "sessions/store.h"
#include "tests/bench/cold_files.h"
#include "tests/bench/figures.h"
#include "tests/bench/resume_engine.h"

namespace agentd::bench {
namespace {

using model::TokenId;

constexpr size_t kGroupTokens = 64;  // of an event at most, as a turn's (agentd/turn.cc)
constexpr int64_t kPromptTokens = 256;

struct Options {
  EngineChoice engine;
  int64_t tokens = 2048;
  int rounds = 5;
  int group_ms = 10;  // how long a token waits for company, as a turn's do
  std::string directory = std::filesystem::temp_directory_path().string();
};

std::set<std::string> Threads() {
  std::set<std::string> threads;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task"))
    threads.insert(entry.path().filename());
  return threads;
}

double ThreadSeconds(const std::string& thread) {
  double seconds = 0;
  if (FILE* file = std::fopen(("/proc/self/task/" + thread + "/schedstat").c_str(), "r")) {
    unsigned long long ns = 0;
    if (std::fscanf(file, "%llu", &ns) == 1) seconds = double(ns) / 1e9;
    std::fclose(file);
  }
  return seconds;
}

enum class Mode { kNothing, kTokens, kTokensAndKv };

// Of one stretch of decoding; seconds.
struct Cost {
  double wall = 0, all_threads = 0, store_threads = 0, consumer = 0;
  int64_t commits = 0;
};

class DecodeBench {
 public:
  DecodeBench(const Options& options, std::filesystem::path directory)
      : options_(options), directory_(std::move(directory)) {}
  absl::Status Run();

 private:
  absl::StatusOr<Cost> Decode(Mode mode);
  absl::Status Consume(daemon::Job& job, Mode mode, daemon::SessionLog* log, Cost& cost);
  double StoreSeconds() const {
    double seconds = 0;
    for (const std::string& thread : store_threads_) seconds += ThreadSeconds(thread);
    return seconds;
  }
  void Say(const char* what, const std::vector<Cost>& costs, const std::vector<Cost>& bare) const;

  const Options& options_;
  const std::filesystem::path directory_;
  std::unique_ptr<daemon::Scheduler> scheduler_;
  std::unique_ptr<sessions::Store> store_;
  std::set<std::string> store_threads_;  // those that came with it
  int stretch_ = 0;
};

absl::Status DecodeBench::Consume(daemon::Job& job, Mode mode, daemon::SessionLog* log,
                                  Cost& cost) {
  using Time = std::chrono::steady_clock;
  const std::chrono::milliseconds group_time(options_.group_ms);
  std::vector<TokenId> group;
  Time::time_point group_started;
  int64_t sampled = 0;
  const auto write = [&]() -> absl::Status {
    if (group.empty()) return absl::OkStatus();
    sampled += int64_t(group.size());
    std::vector<TokenId> tokens = std::exchange(group, {});
    if (log == nullptr) return absl::OkStatus();
    ++cost.commits;
    return log->Append({sessions::NewEvent::Tokens(std::move(tokens), /*sampled=*/true)});
  };
  std::vector<daemon::JobUpdate> updates;
  for (bool ended = false; !ended;) {
    updates.clear();
    job.WaitUpdates(
        group.empty() ? Time::now() + std::chrono::seconds(1) : group_started + group_time,
        updates);
    for (daemon::JobUpdate& update : updates) {
      if (update.kind == daemon::JobUpdate::Kind::kToken) {
        if (group.empty()) group_started = Time::now();
        group.push_back(update.token);
        if (group.size() >= kGroupTokens) RETURN_IF_ERROR(write());
      } else if (update.kind == daemon::JobUpdate::Kind::kKv) {
        RETURN_IF_ERROR(write());
        // Taken in any case: the engine's part of a save is not the store's.
        if (mode == Mode::kTokensAndKv) RETURN_IF_ERROR(log->AppendKv(std::move(update.kv)));
      } else if (update.kind == daemon::JobUpdate::Kind::kEnd) {
        ended = true;
        RETURN_IF_ERROR(update.status);
      }
    }
    if (!group.empty() && Time::now() >= group_started + group_time) RETURN_IF_ERROR(write());
  }
  RETURN_IF_ERROR(write());
  if (sampled != options_.tokens) return Internal("{} tokens sampled", sampled);
  return log == nullptr ? absl::OkStatus() : log->Flush();
}

absl::StatusOr<Cost> DecodeBench::Decode(Mode mode) {
  std::unique_ptr<daemon::SessionLog> log;
  std::string id = "bare";
  std::mt19937 random(7);
  daemon::JobSpec spec;
  for (int64_t i = 0; i < kPromptTokens; ++i) spec.context.push_back(TokenId(random() % 256));
  if (mode != Mode::kNothing) {
    ASSIGN_OR_RETURN(const sessions::SessionInfo session, store_->Create({"decode_bench", 1, ""}));
    id = session.id;
    log = std::make_unique<daemon::SessionLog>(
        store_.get(), std::make_shared<daemon::EventHub>(session.timeline, 0), session.timeline);
    RETURN_IF_ERROR(log->Append({sessions::NewEvent::Tokens(spec.context, /*sampled=*/false)}));
    RETURN_IF_ERROR(log->Flush());
  }
  spec.session_id = fmt::format("{} {}", id, stretch_++);
  spec.max_new_tokens = options_.tokens;
  spec.context_limit_tokens = kPromptTokens + options_.tokens + 2;
  spec.stop_token = -1;
  spec.seed = uint64_t(stretch_);  // other tokens each time: nothing is stored already
  Cost cost;
  const double all = ProcessorSeconds(), store = StoreSeconds();
  const double consumer = ThreadSeconds(std::to_string(::gettid()));
  const Clock clock;
  const std::shared_ptr<daemon::Job> job = scheduler_->Submit(std::move(spec));
  RETURN_IF_ERROR(Consume(*job, mode, log.get(), cost));
  cost.wall = clock.seconds();
  cost.all_threads = ProcessorSeconds() - all;
  cost.store_threads = StoreSeconds() - store;
  cost.consumer = ThreadSeconds(std::to_string(::gettid())) - consumer;
  return cost;
}

template <typename Get>
double MedianOf(const std::vector<Cost>& costs, Get get) {
  std::vector<double> values;
  for (const Cost& cost : costs) values.push_back(get(cost));
  return Median(std::move(values));
}

void DecodeBench::Say(const char* what, const std::vector<Cost>& costs,
                      const std::vector<Cost>& bare) const {
  const auto us = [this](double seconds) { return seconds * 1e6 / double(options_.tokens); };
  const auto wall = [](const Cost& cost) { return cost.wall; };
  const auto consumer = [](const Cost& cost) { return cost.consumer; };
  const double store = MedianOf(costs, [](const Cost& cost) { return cost.store_threads; });
  const double added = MedianOf(costs, consumer) - MedianOf(bare, consumer);
  const double decode = MedianOf(bare, [](const Cost& cost) { return cost.all_threads; });
  Row(what,
      fmt::format("{:.1f} us of processor time a token ({:.1f} the store's threads, {:.1f} "
                  "who appends): {:.2f}% of decoding's {:.0f} us; {:.0f} commits",
                  us(store + added), us(store), us(added), 100 * (store + added) / decode,
                  us(decode), MedianOf(costs, [](const Cost& c) { return double(c.commits); })));
  Row("", fmt::format("wall time {:.1f} us a token, without {:.1f}: {:+.2f}%",
                      us(MedianOf(costs, wall)), us(MedianOf(bare, wall)),
                      100 * (MedianOf(costs, wall) / MedianOf(bare, wall) - 1)));
}

absl::Status DecodeBench::Run() {
  EngineChoice choice = options_.engine;
  choice.sequences = {kPromptTokens + options_.tokens + 2};
  ASSIGN_OR_RETURN(auto engine, LoadEngine(choice));
  sessions::StoreOptions store_options;
  store_options.kv_identity = "decode_bench " + engine->numerics_id();
  scheduler_ = std::make_unique<daemon::Scheduler>(std::move(engine), daemon::SchedulerOptions());
  RETURN_IF_ERROR(Decode(Mode::kNothing).status());  // caches warm, threads there
  const std::set<std::string> before = Threads();
  ASSIGN_OR_RETURN(store_, sessions::Store::Open(directory_ / "store", store_options));
  for (const std::string& thread : Threads())
    if (!before.contains(thread)) store_threads_.insert(thread);
  std::vector<Cost> bare, tokens, kv;
  for (int round = 0; round < options_.rounds; ++round) {
    for (const auto& [mode, costs] :
         {std::pair(Mode::kNothing, &bare), std::pair(Mode::kTokens, &tokens),
          std::pair(Mode::kTokensAndKv, &kv)}) {
      ASSIGN_OR_RETURN(const Cost cost, Decode(mode));
      costs->push_back(cost);
    }
  }
  fmt::print("[figure] decoding {} tokens with the store and without, medians of {}\n",
             options_.tokens, options_.rounds);
  Say("tokens appended, group commits", tokens, bare);
  Say("and KV with tail anchors", kv, bare);
  ASSIGN_OR_RETURN(const std::vector<double> syncs, TimeSyncs(directory_, 200));
  Row("fdatasync of 256 bytes appended to a file", fmt::format("median {:.2f} ms", Median(syncs)));
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const TemporaryDirectory made, TemporaryDirectory::In(options.directory));
  return DecodeBench(options, made.path()).Run();
}

}  // namespace
}  // namespace agentd::bench

int main(int argc, char** argv) {
  agentd::daemon::KeepFreedMemory();
  agentd::bench::Options options;
  options.engine.model = "examples/model";
  CLI::App app("Decodes with the session store and without.");
  app.add_option("--model", options.engine.model, "Directory of a checkpoint")
      ->capture_default_str();
  app.add_option("--backend", options.engine.options.backend, "cpu or cuda");
  app.add_option("--threads", options.engine.options.threads, "0: one per core");
  app.add_option("--tokens", options.tokens, "Sampled in a stretch")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "Stretches of each kind")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--group-ms", options.group_ms, "How long a sampled token waits for company")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--dir", options.directory, "Where the store is made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return agentd::bench::ExitCode("decode_bench", agentd::bench::Run(options));
}
