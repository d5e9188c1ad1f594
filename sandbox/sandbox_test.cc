#include "sandbox/sandbox.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sandbox/output.h"

namespace agentd::sandbox {
namespace {

namespace fs = std::filesystem;

class SandboxTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(root_ / "workspace");
    options_ = {root_ / "workspace", root_ / "lock", AGENTD_HELPER_DIR};
    auto sandbox = Sandbox::Start(options_);
    ASSERT_TRUE(sandbox.ok()) << sandbox.status();
    sandbox_ = std::move(*sandbox);
  }
  void TearDown() override { sandbox_.reset(); }

  CallResult Bash(const std::string& command, Limits limits = {}) {
    return Run({.argv = {"/bin/bash", "-c", command}, .limits = limits});
  }
  CallResult Run(const CallRequest& request) {
    auto result = sandbox_->Run(request, never_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : CallResult{.end = CallEnd::kSandboxDied};
  }

  const TemporaryDirectory directory_{TemporaryDirectory::Place::kDisk};
  const fs::path root_ = directory_.path();
  Options options_;
  std::unique_ptr<Sandbox> sandbox_;
  CancelFlag never_;
};

TEST_F(SandboxTest, RunsAProgramAndReportsItsEnd) {
  const CallResult result = Bash("echo out; echo err >&2; exit 7");
  EXPECT_EQ(result.end, CallEnd::kExited);
  EXPECT_EQ(result.exit_code, 7);
  EXPECT_EQ(result.output, "out\nerr\n");
  EXPECT_EQ(result.output_bytes, 8);
  EXPECT_EQ(result.dropped_at, -1);
}

TEST_F(SandboxTest, ReportsTheSignalThatEndedTheProgram) {
  const CallResult result = Bash("kill -SEGV $$");
  EXPECT_EQ(result.end, CallEnd::kSignaled);
  EXPECT_EQ(result.signal, SIGSEGV);
}

TEST_F(SandboxTest, GivesStandardInputWholeWhateverItsSize) {
  std::string input;
  while (input.size() < 3'000'000) input += "0123456789abcdef";
  const CallResult result = Run({.argv = {"/usr/bin/wc", "-c"}, .stdin_data = input});
  EXPECT_EQ(result.output, std::to_string(input.size()) + "\n");
}

TEST_F(SandboxTest, WorkspaceIsSharedWithTheHost) {
  std::ofstream(root_ / "workspace/in.txt") << "from outside";
  const CallResult result = Bash("cat in.txt; pwd; echo inside > out.txt");
  EXPECT_EQ(result.output, "from outside/workspace\n");
  std::ifstream out(root_ / "workspace/out.txt");
  std::string text;
  std::getline(out, text);
  EXPECT_EQ(text, "inside");
  EXPECT_EQ(fs::status(root_ / "workspace/out.txt").permissions() & fs::perms::owner_write,
            fs::perms::owner_write);
}

TEST_F(SandboxTest, EnvironmentIsCleanAndCanBeAddedTo) {
  setenv("AGENTD_TEST_LEAK", "secret", 1);
  const CallResult result = Run({.argv = {"/usr/bin/env"}, .env = {{"EXTRA", "1"}, {"LANG", "C"}}});
  EXPECT_EQ(result.output.find("AGENTD_TEST_LEAK"), std::string::npos);
  EXPECT_NE(result.output.find("EXTRA=1\n"), std::string::npos);
  EXPECT_NE(result.output.find("LANG=C\n"), std::string::npos);
  EXPECT_NE(result.output.find("HOME=/tmp\n"), std::string::npos);
}

TEST_F(SandboxTest, TmpIsPrivateToTheCall) {
  EXPECT_EQ(Bash("echo x > /tmp/f; echo y > /dev/shm/f; cat /tmp/f /dev/shm/f").output, "x\ny\n");
  EXPECT_EQ(Bash("ls -A /tmp /dev/shm").output, "/dev/shm:\n\n/tmp:\n");
}

TEST_F(SandboxTest, SeesOnlyItsOwnProcesses) {
  const CallResult result =
      Bash("for p in /proc/[0-9]*; do [ ${p#/proc/} = $$ ] && echo me || echo ${p#/proc/}; done");
  EXPECT_EQ(result.output, "1\nme\n");
}

// The kernel counts pids, and uses those of dead processes again only above the first 300: a call
// that starts many in a row must not run into its limit, however many ran before.
TEST_F(SandboxTest, MayStartManyMoreProcessesThanRunAtOnce) {
  const CallResult result = Bash(
      "for i in $(seq 700); do /bin/true || exit 1; done; for i in $(seq 20); do sleep 5 & done\n"
      "jobs -r | wc -l; seq 3 | cat | cat | tail -1",
      {.max_processes = 64});
  EXPECT_EQ(result.output, "20\n3\n");
  EXPECT_EQ(result.exit_code, 0);
}

TEST_F(SandboxTest, TimesOut) {
  const CallResult result =
      Bash("trap '' TERM INT; echo begin; sleep 100; sleep 100", {.wall_time_ms = 300});
  EXPECT_EQ(result.end, CallEnd::kTimedOut);
  EXPECT_EQ(result.output, "begin\n");
}

TEST_F(SandboxTest, CancelEndsTheCallAndLeavesOthersAlone) {
  CancelFlag cancel;
  std::thread other(
      [&] { EXPECT_EQ(Bash("sleep 0.5; echo undisturbed").output, "undisturbed\n"); });
  CallRequest request{.argv = {"/bin/bash", "-c", "sleep 1000 & sleep 1000 & echo up; wait"}};
  request.on_output = [&](std::string_view) { cancel.Cancel(); };
  const auto result = sandbox_->Run(request, cancel);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->end, CallEnd::kCancelled);
  EXPECT_EQ(result->output, "up\n");
  other.join();
}

TEST_F(SandboxTest, ManyCallsAtOnce) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([this, i] {
      for (int k = 0; k < 5; ++k)
        EXPECT_EQ(Bash(fmt::format("echo {}-{}", i, k)).output, fmt::format("{}-{}\n", i, k));
    });
  for (std::thread& thread : threads) thread.join();
}

TEST_F(SandboxTest, KeepsBothEndsOfAFlood) {
  const CallResult result =
      Bash("echo first; head -c 5000000 /dev/zero; echo; echo last", {.max_output_bytes = 1000});
  EXPECT_EQ(result.output_bytes, 6 + 5000000 + 1 + 5);
  EXPECT_EQ(result.output.size(), 1000u);
  EXPECT_EQ(result.dropped_at, 500);
  EXPECT_EQ(result.output.substr(0, 6), "first\n");
  EXPECT_EQ(result.output.substr(994), "\nlast\n");
}

TEST_F(SandboxTest, AMissingProgramIsAnError) {
  const auto result = sandbox_->Run({.argv = {"/usr/bin/no-such-program"}}, never_);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kNotFound) << result.status();
  const auto relative = sandbox_->Run({.argv = {"bash"}}, never_);
  EXPECT_EQ(relative.status().code(), absl::StatusCode::kInvalidArgument);
  const auto cwd = sandbox_->Run({.argv = {"/bin/true"}, .cwd = "/workspace/none"}, never_);
  EXPECT_EQ(cwd.status().code(), absl::StatusCode::kNotFound) << cwd.status();
}

// Whoever takes a call, a first process that waits or the init, each has its own end.
TEST_F(SandboxTest, CallsFromSeveralThreadsAtOnce) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::atomic<int> exited = 0;
  std::atomic<int> cancelled = 0;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(seed + t);
      for (int i = 0; i < 60; ++i) {
        std::this_thread::sleep_for(
            std::chrono::milliseconds(random() % 3 == 0 ? random() % 12 : 0));
        const std::string text = fmt::format("{} {} {}", t, i, random());
        CancelFlag cancel;
        std::thread canceller;
        const bool sleeps = random() % 4 == 0;
        if (sleeps)
          canceller = std::thread([&cancel, after = random() % 15] {
            std::this_thread::sleep_for(std::chrono::milliseconds(after));
            cancel.Cancel();
          });
        const auto result = sandbox_->Run(
            {.argv = {"/bin/bash", "-c", "cat" + std::string(sleeps ? "; sleep 600" : "")},
             .stdin_data = text},
            cancel);
        if (sleeps) canceller.join();
        ASSERT_TRUE(result.ok()) << result.status();
        if (sleeps) {
          EXPECT_EQ(result->end, CallEnd::kCancelled);
          EXPECT_TRUE(result->output.empty() || result->output == text) << result->output;
          ++cancelled;
        } else {
          EXPECT_EQ(result->end, CallEnd::kExited);
          EXPECT_EQ(result->output, text);
          ++exited;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(exited + cancelled, 240);
}

TEST_F(SandboxTest, OneSandboxPerLock) {
  const auto second = Sandbox::Start(options_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
  const absl::Status alive = WaitUntilDead(options_.lock_file, 50);
  EXPECT_EQ(alive.code(), absl::StatusCode::kDeadlineExceeded) << alive;
  sandbox_.reset();
  EXPECT_TRUE(WaitUntilDead(options_.lock_file, 0).ok());
  const auto third = Sandbox::Start(options_);
  EXPECT_TRUE(third.ok()) << third.status();
}

TEST_F(SandboxTest, StartNamesAMissingWorkspace) {
  const auto started = Sandbox::Start({root_ / "none", root_ / "lock2", AGENTD_HELPER_DIR});
  EXPECT_EQ(started.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ProbeWallsTest, AllRequiredWallsStand) {
  const TemporaryDirectory directory;
  for (const Wall& wall : ProbeWalls(AGENTD_HELPER_DIR, directory.path() / "probe")) {
    EXPECT_TRUE(wall.available || !wall.required) << wall.name << ": " << wall.detail;
    EXPECT_FALSE(wall.detail.empty());
  }
}

TEST(ProbeWallsTest, WhatAKilledProbeLeftGoesWithTheNext) {
  const TemporaryDirectory directory;
  const fs::path scratch = directory.path() / "probe";
  fs::create_directories(scratch / "workspace/left");
  std::ofstream(scratch / "lock") << "4711\n";
  fs::create_symlink(directory.path(), scratch / "workspace/link");
  for (const Wall& wall : ProbeWalls(AGENTD_HELPER_DIR, scratch))
    EXPECT_TRUE(wall.available || !wall.required) << wall.name << ": " << wall.detail;
  EXPECT_TRUE(fs::is_empty(directory.path()));
  // A place that cannot be had is named.
  std::ofstream(directory.path() / "file") << "x";
  const std::vector<Wall> walls = ProbeWalls(AGENTD_HELPER_DIR, directory.path() / "file/probe");
  EXPECT_NE(walls.back().detail.find("file/probe"), std::string::npos) << walls.back().detail;
  EXPECT_FALSE(walls.back().available);
}

// A wall that is missing is named, by the probe and by the sandbox that goes without.
TEST_F(SandboxTest, NamesTheWallsThatItsCallsGoWithout) {
  std::vector<std::string> missing;
  for (const Wall& wall : ProbeWalls(AGENTD_HELPER_DIR, root_ / "probe"))
    if (!wall.available) missing.push_back(wall.name);
  EXPECT_EQ(sandbox_->missing_walls(), missing);
}

TEST(WaitUntilDeadTest, NoFileMeansNothingRan) {
  EXPECT_TRUE(WaitUntilDead("/tmp/agentd-no-such-lock-file", 0).ok());
}

TEST(OutputBufferTest, EqualsAWholeCopyCutInTheMiddle) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    const size_t max = 1 + random() % 40;
    OutputBuffer buffer(static_cast<int64_t>(max));
    std::string whole;
    for (unsigned i = random() % 12; i > 0; --i) {
      std::string chunk;
      for (unsigned k = random() % 30; k > 0; --k) chunk.push_back('a' + random() % 26);
      whole += chunk;
      buffer.Append(chunk);
    }
    int64_t dropped_at = 0;
    const std::string kept = buffer.Take(dropped_at);
    if (whole.size() <= max) {
      EXPECT_EQ(kept, whole);
      EXPECT_EQ(dropped_at, -1);
    } else {
      const size_t head = max / 2;
      EXPECT_EQ(kept, whole.substr(0, head) + whole.substr(whole.size() - (max - head)));
      EXPECT_EQ(dropped_at, static_cast<int64_t>(head));
    }
  }
}

}  // namespace
}  // namespace agentd::sandbox
