// SIGKILL of a real agentd with the shipped model, over and over: at every named boundary once,
// then at random moments of its life and of its way up. Several sessions are played at once through
// all its lives; what was acknowledged has to be there after each, and every context that of a run
// that nobody killed.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "tests/kill/agentd_process.h"
#include "tests/kill/played_session.h"

namespace agentd::kill_test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPointPatience(20);
constexpr int kPointTries = 8;
constexpr int kLongestLifeMs = 500;

// In the order of a life. The second: what has to happen for the daemon to pass there.
struct Boundary {
  const char* point;
  Preference preference = Preference::kNone;
  const char* before = nullptr;  // the life before ends here, so that this one has what to do
};
constexpr Boundary kBoundaries[] = {
    {"open_locked"},
    {"open_epoch_raised"},
    {"open_database"},
    {"agentd.imported"},
    {"snapshot_objects"},
    {"agentd.turn_starting"},
    {"agentd.turn_started"},
    {"agentd.prompt"},
    {"agentd.restored"},
    {"agentd.csa_read"},
    {"agentd.tokens"},
    {"agentd.dsml_closed"},
    {"agentd.call_ready"},
    {"agentd.call_journaled"},
    {"agentd.tool_running"},
    {"agentd.tool_exited"},
    {"agentd.result_ready"},
    {"agentd.result_committed"},
    {"agentd.anchor"},
    {"values_intents"},
    {"values_written"},
    {"values_flushed"},
    {"batch_before"},
    {"batch_after"},
    {"agentd.turn_finishing"},
    {"agentd.turn_finished"},
    {"fork_before", Preference::kFork},
    {"fork_after", Preference::kFork},
    {"agentd.forked", Preference::kFork},
    {"agentd.rewinding", Preference::kRewind},
    {"rewind_before", Preference::kRewind},
    {"rewind_after", Preference::kRewind},
    {"agentd.rewound", Preference::kRewind},
    {"delete_before"},
    {"delete_after"},
    {"delete_compacted"},
    {"agentd.deleted"},
    {"sweep_before", Preference::kNone, "values_flushed"},
    {"sweep_after", Preference::kNone, "values_flushed"},
    {"agentd.resuming", Preference::kNone, "agentd.tokens"},
    {"agentd.restored", Preference::kNone, "agentd.tokens"},
};

struct Options {
  Binaries binaries;
  int kills = 70;  // random ones
  int sessions = 4;
  int conversations = 8;
  uint64_t seed = 0;
  std::filesystem::path directory;
};

class KillTest {
 public:
  explicit KillTest(const Options& options)
      : options_(options),
        random_(options.seed),
        workspace_(options.directory / "workspace"),
        daemon_(options.binaries, options.directory / "data") {}

  absl::Status Run() {
    MakeWorkspace(workspace_);
    RETURN_IF_ERROR(LearnAll());
    for (int slot = 0; slot < options_.sessions; ++slot)
      players_.push_back(
          std::make_unique<PlayedSession>(slot, conversations_, workspace_, random_()));
    for (const Boundary& boundary : kBoundaries) RETURN_IF_ERROR(AtBoundary(boundary));
    began_ = Clock::now();
    while (random_kills_ < options_.kills) {
      RETURN_IF_ERROR(RandomLife());
      if (random_kills_ % 100 == 0) Print();
    }
    RETURN_IF_ERROR(LastLife());
    Print();
    return absl::OkStatus();
  }

 private:
  // In a store of their own: the sessions that are killed find nothing of these in theirs.
  absl::Status LearnAll() {
    conversations_ = MakeConversations(random_, static_cast<size_t>(options_.conversations));
    AgentdProcess daemon(options_.binaries, options_.directory / "learned");
    daemon.Start("");
    if (!daemon.IsReady()) return Internal("agentd does not come up: {}", daemon.Report());
    const auto stub = daemon.Connect();
    std::vector<absl::Status> outcomes(conversations_.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < conversations_.size(); ++i) {
      threads.emplace_back([&, i] { outcomes[i] = Learn(*stub, workspace_, conversations_[i]); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& outcome : outcomes) RETURN_IF_ERROR(outcome);
    return daemon.Stop() == 0 ? absl::OkStatus()
                              : Internal("agentd stops with {}", daemon.Report());
  }

  absl::Status AtBoundary(const Boundary& boundary) {
    for (int attempt = 0; attempt < kPointTries; ++attempt) {
      bool reached = false;
      if (boundary.before != nullptr)
        RETURN_IF_ERROR(Life(boundary.before, boundary.preference, &reached));
      RETURN_IF_ERROR(Life(boundary.point, boundary.preference, &reached));
      if (reached) {
        ++boundary_kills_;
        std::printf("killed at %s\n", boundary.point);
        std::fflush(stdout);
        return absl::OkStatus();
      }
    }
    return Internal("agentd never came to the point {}", boundary.point);
  }

  // One life until it ends at the point; killed where it does not get there.
  absl::Status Life(const std::string& point, Preference preference, bool* reached) {
    daemon_.Start(point);
    *reached = false;
    if (!daemon_.IsReady()) {
      *reached = daemon_.ended_at_crash_point();
      return *reached ? absl::OkStatus()
                      : Internal("agentd does not come up: {}", daemon_.Report());
    }
    Play play(*this, preference);
    const bool ended = daemon_.EndsWithin(kPointPatience);
    if (!ended) daemon_.Kill();
    *reached = ended && daemon_.ended_at_crash_point();
    const absl::Status played = play.Join();
    if (ended && !*reached) return Internal("agentd ended by itself: {}", daemon_.Report());
    return played;
  }

  absl::Status RandomLife() {
    const auto started = Clock::now();
    daemon_.Start("");
    if (random_() % 6 == 0 && up_us_ > 0) {  // on its way up
      std::this_thread::sleep_for(
          std::chrono::microseconds(random_() % static_cast<uint64_t>(up_us_)));
      daemon_.Kill();
      ++random_kills_;
      ++early_kills_;
      return absl::OkStatus();
    }
    if (!daemon_.IsReady()) return Internal("agentd does not come up: {}", daemon_.Report());
    up_us_ = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - started).count();
    Play play(*this, Preference::kNone);
    const auto life = std::chrono::milliseconds(random_() % kLongestLifeMs);
    const bool ended = daemon_.EndsWithin(life);
    if (!ended) daemon_.Kill();
    ++random_kills_;
    const absl::Status played = play.Join();
    if (ended) return Internal("agentd ended by itself: {}", daemon_.Report());
    return played;
  }

  // Every session comes to its end, and the daemon's.
  absl::Status LastLife() {
    daemon_.Start("");
    if (!daemon_.IsReady()) return Internal("agentd does not come up: {}", daemon_.Report());
    finish_ = true;
    RETURN_IF_ERROR(Play(*this, Preference::kNone).Join());
    return daemon_.Stop() == 0 ? absl::OkStatus()
                               : Internal("agentd stops with {}", daemon_.Report());
  }

  // The players of one life, each on a thread.
  class Play {
   public:
    Play(KillTest& test, Preference preference)
        : stub_(test.daemon_.Connect()), outcomes_(test.players_.size()) {
      for (size_t i = 0; i < test.players_.size(); ++i) {
        threads_.emplace_back([this, &test, preference, i] {
          outcomes_[i] = test.players_[i]->Play(*stub_, preference, test.finish_);
        });
      }
    }
    absl::Status Join() {
      for (std::thread& thread : threads_) thread.join();
      threads_.clear();
      for (const absl::Status& outcome : outcomes_) RETURN_IF_ERROR(outcome);
      return absl::OkStatus();
    }

   private:
    std::unique_ptr<v1::Agentd::Stub> stub_;
    std::vector<absl::Status> outcomes_;
    std::vector<std::thread> threads_;
  };

  void Print() const {
    Tally all;
    for (const auto& player : players_) {
      const Tally& one = player->tally();
      all.conversations += one.conversations;
      all.turns += one.turns;
      all.forks += one.forks;
      all.rewinds += one.rewinds;
      all.deletions += one.deletions;
      all.given_up += one.given_up;
      all.events_checked += one.events_checked;
      all.resumes_after_crash += one.resumes_after_crash;
      all.most_replayed = std::max(all.most_replayed, one.most_replayed);
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - began_).count();
    std::printf(
        "[figure] kill: %d SIGKILLs at random (%d of them on the way up, %.2f a second), %d at %zu "
        "named boundaries; %lld conversations (%lld turns) as without kills, %lld forks, %lld "
        "rewinds, %lld deletions; %lld resumes in mid-turn, prefilled_again 0, at most %lld "
        "replayed; %lld acknowledged events found again; %lld conversations cut off five times in "
        "one "
        "call\n",
        random_kills_, early_kills_, random_kills_ / seconds, boundary_kills_,
        std::size(kBoundaries), static_cast<long long>(all.conversations),
        static_cast<long long>(all.turns), static_cast<long long>(all.forks),
        static_cast<long long>(all.rewinds), static_cast<long long>(all.deletions),
        static_cast<long long>(all.resumes_after_crash), static_cast<long long>(all.most_replayed),
        static_cast<long long>(all.events_checked), static_cast<long long>(all.given_up));
    std::fflush(stdout);
  }

  const Options& options_;
  std::mt19937_64 random_;
  const std::filesystem::path workspace_;
  AgentdProcess daemon_;
  std::vector<Conversation> conversations_;
  std::vector<std::unique_ptr<PlayedSession>> players_;
  std::atomic<bool> finish_ = false;
  int random_kills_ = 0, early_kills_ = 0, boundary_kills_ = 0;
  int64_t up_us_ = 0;  // how long the last daemon took until it served
  Clock::time_point began_ = Clock::now();
};

int Main(int argc, char** argv) {
  Options options;
  std::string bin = "build/bin";
  options.seed = std::random_device()();
  CLI::App app("Kills a real agentd at every named boundary and at random moments");
  app.add_option("--bin", bin, "Folder of agentd and agentctl")->capture_default_str();
  app.add_option("--model", options.binaries.model, "The model")->required();
  app.add_option("--kills", options.kills, "Random kills")->capture_default_str();
  app.add_option("--sessions", options.sessions, "Sessions at once")->capture_default_str();
  app.add_option("--seed", options.seed, "Of everything random here (default: drawn)");
  CLI11_PARSE(app, argc, argv);
  options.binaries.agentd = std::filesystem::path(bin) / "agentd";
  options.binaries.agentctl = std::filesystem::path(bin) / "agentctl";
  std::printf("--seed %llu\n", static_cast<unsigned long long>(options.seed));
  std::fflush(stdout);
  // In memory: the kernel survives these kills, so what an fsync keeps shows nothing.
  TemporaryDirectory directory;
  options.directory = directory.path();
  const absl::Status status = KillTest(options).Run();
  if (!status.ok()) {
    std::fprintf(stderr, "kill_test: %s\n(--seed %llu; what is left: %s)\n",
                 status.ToString().c_str(), static_cast<unsigned long long>(options.seed),
                 std::move(directory).Keep().c_str());
    return 1;
  }
  struct rusage own, children;
  ::getrusage(RUSAGE_SELF, &own);
  ::getrusage(RUSAGE_CHILDREN, &children);
  const auto seconds = [](const struct rusage& usage) {
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  std::printf("processor time: %.0f s here, %.0f s in agentd\n", seconds(own), seconds(children));
  return 0;
}

}  // namespace
}  // namespace agentd::kill_test

int main(int argc, char** argv) { return agentd::kill_test::Main(argc, argv); }
