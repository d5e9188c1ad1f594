#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {
namespace {

constexpr int64_t kLongMs = 60'000;

std::unique_ptr<Sandbox> MustStart(const Options& options) {
  auto sandbox = Sandbox::Start(options);
  EXPECT_TRUE(sandbox.ok()) << sandbox.status();
  return sandbox.ok() ? *std::move(sandbox) : nullptr;
}

class ProcessTest : public testing::Test {
 protected:
  void SetUp() override {
    signal(SIGPIPE, SIG_IGN);
    std::filesystem::create_directory(root_ / "workspace");
    options_ = {root_ / "workspace", root_ / "lock", AGENTD_HELPER_DIR};
    sandbox_ = MustStart(options_);
    ASSERT_NE(sandbox_, nullptr);
  }
  void TearDown() override { sandbox_.reset(); }

  std::unique_ptr<Process> Start(std::vector<std::string> argv, int64_t wall_time_ms = 0) {
    auto process =
        sandbox_->StartProcess({.argv = std::move(argv), .limits = {.wall_time_ms = wall_time_ms}});
    EXPECT_TRUE(process.ok()) << process.status();
    return process.ok() ? *std::move(process) : nullptr;
  }

  const TemporaryDirectory directory_{TemporaryDirectory::Place::kDisk};
  const std::filesystem::path root_ = directory_.path();
  Options options_;
  std::unique_ptr<Sandbox> sandbox_;
};

// What comes until `end` has come, or the stream's end.
std::string ReadUntil(int fd, const std::string& end) {
  std::string text;
  while (end.empty() || text.find(end) == std::string::npos) {
    pollfd polled{fd, POLLIN, 0};
    if (poll(&polled, 1, static_cast<int>(kLongMs)) <= 0) break;
    char buffer[4096];
    const ssize_t n = read(fd, buffer, sizeof(buffer));
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  return text;
}

void Write(const Process& process, const std::string& text) {
  ASSERT_EQ(write(process.input(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

TEST_F(ProcessTest, AShellKeepsItsStateBetweenQuestions) {
  const auto shell = Start({"/bin/bash"});
  ASSERT_NE(shell, nullptr);
  const unsigned number = std::random_device()();
  Write(*shell, fmt::format("x={}; cd /tmp; echo first\n", number));
  EXPECT_EQ(ReadUntil(shell->output(), "\n"), "first\n");
  EXPECT_EQ(shell->Wait(0), std::nullopt);
  // Calls run beside it.
  const auto call = sandbox_->Run({.argv = {"/bin/echo", "call"}}, CancelFlag());
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->output, "call\n");
  Write(*shell, "echo $x $PWD; echo to error >&2; exit 7\n");
  EXPECT_EQ(ReadUntil(shell->output(), ""), fmt::format("{} /tmp\n", number));
  EXPECT_EQ(ReadUntil(shell->error(), ""), "to error\n");
  const auto end = shell->Wait(kLongMs);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, CallEnd::kExited);
  EXPECT_EQ(end->exit_code, 7);
  EXPECT_GT(end->wall_time_us, 0);
  EXPECT_EQ(shell->Wait(0)->exit_code, 7);
}

TEST_F(ProcessTest, ClosedInputIsTheEndOfFile) {
  const auto cat = Start({"/bin/cat"});
  ASSERT_NE(cat, nullptr);
  Write(*cat, "text\n");
  cat->CloseInput();
  EXPECT_EQ(cat->input(), -1);
  EXPECT_EQ(ReadUntil(cat->output(), ""), "text\n");
  EXPECT_EQ(cat->Wait(kLongMs)->end, CallEnd::kExited);
}

TEST_F(ProcessTest, PipesDoNotBlockTheCaller) {
  const auto sleeper = Start({"/bin/sleep", "1000"});
  ASSERT_NE(sleeper, nullptr);
  char byte;
  EXPECT_EQ(read(sleeper->output(), &byte, 1), -1);
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_EQ(read(sleeper->error(), &byte, 1), -1);
  EXPECT_EQ(errno, EAGAIN);
  const std::string much(1 << 20, 'x');
  EXPECT_LT(write(sleeper->input(), much.data(), much.size()), static_cast<ssize_t>(much.size()));
  EXPECT_EQ(write(sleeper->input(), much.data(), much.size()), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST_F(ProcessTest, KillEndsIt) {
  const auto shell = Start({"/bin/bash", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"});
  ASSERT_NE(shell, nullptr);
  EXPECT_EQ(ReadUntil(shell->output(), "\n"), "up\n");
  std::thread waiter([&] { EXPECT_EQ(shell->Wait(kLongMs)->end, CallEnd::kCancelled); });
  shell->Kill();
  EXPECT_EQ(shell->Wait(kLongMs)->end, CallEnd::kCancelled);
  waiter.join();
  shell->Kill();
}

TEST_F(ProcessTest, ReportsTheSignalThatEndedTheProgram) {
  const auto shell = Start({"/bin/bash", "-c", "kill -SEGV $$"});
  ASSERT_NE(shell, nullptr);
  const auto end = shell->Wait(kLongMs);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, CallEnd::kSignaled);
  EXPECT_EQ(end->signal, SIGSEGV);
}

TEST_F(ProcessTest, TimesOutOnlyIfAsked) {
  const auto shell = Start({"/bin/sleep", "1000"}, 200);
  ASSERT_NE(shell, nullptr);
  EXPECT_EQ(shell->Wait(kLongMs)->end, CallEnd::kTimedOut);
  const auto negative =
      sandbox_->StartProcess({.argv = {"/bin/true"}, .limits = {.wall_time_ms = -1}});
  EXPECT_EQ(negative.status().code(), absl::StatusCode::kInvalidArgument);
  const auto call = sandbox_->Run({.argv = {"/bin/true"}, .limits = {.wall_time_ms = 0}}, {});
  EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ProcessTest, AMissingProgramIsAnErrorAtOnce) {
  const auto missing = sandbox_->StartProcess({.argv = {"/usr/bin/no-such-program"}});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound) << missing.status();
  const auto cwd = sandbox_->StartProcess({.argv = {"/bin/true"}, .cwd = "/workspace/none"});
  EXPECT_EQ(cwd.status().code(), absl::StatusCode::kNotFound) << cwd.status();
  const auto input = sandbox_->StartProcess({.argv = {"/bin/cat"}, .stdin_data = "x"});
  EXPECT_EQ(input.status().code(), absl::StatusCode::kInvalidArgument) << input.status();
}

TEST_F(ProcessTest, EndsWithItsSandbox) {
  const auto sleeper = Start({"/bin/sleep", "1000"});
  ASSERT_NE(sleeper, nullptr);
  sandbox_.reset();
  EXPECT_EQ(sleeper->Wait(kLongMs)->end, CallEnd::kSandboxDied);
  sandbox_ = MustStart(options_);
}

TEST_F(ProcessTest, ManyAtOnce) {
  std::vector<std::unique_ptr<Process>> processes;
  for (int i = 0; i < 12; ++i) processes.push_back(Start({"/bin/cat"}));
  for (int i = 0; i < 12; ++i) Write(*processes[i], fmt::format("{}\n", i));
  for (int i = 0; i < 12; ++i)
    EXPECT_EQ(ReadUntil(processes[i]->output(), "\n"), fmt::format("{}\n", i));
}

class MountTest : public ProcessTest {
 protected:
  void SetUp() override {
    ProcessTest::SetUp();
    sandbox_.reset();
    std::filesystem::create_directories(root_ / "server/lib");
    std::ofstream(root_ / "server/lib/index.js") << "code";
    std::filesystem::create_directory(root_ / "outputs");
  }
  std::string Bash(const std::string& command) {
    const auto result = sandbox_->Run({.argv = {"/bin/bash", "-c", command}}, CancelFlag());
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? result->output : "";
  }
};

TEST_F(MountTest, FoldersOfTheHostAreSeenAndCannotBeChanged) {
  options_.mounts = {{root_ / "server", "/opt/server"},
                     {root_ / "server/lib/index.js", "/srv/one/file.js"}};
  options_.outputs = root_ / "outputs";
  sandbox_ = MustStart(options_);
  ASSERT_NE(sandbox_, nullptr);
  EXPECT_EQ(Bash("cat /opt/server/lib/index.js /srv/one/file.js"), "codecode");
  // Written while the sandbox runs, as outputs are.
  std::ofstream(root_ / "outputs/7") << "long output";
  EXPECT_EQ(Bash("cat /outputs/7"), "long output");
  for (const char* place : {"/opt/server/new", "/opt/server/lib/index.js", "/srv/one/file.js",
                            "/srv/new", "/outputs/new", "/outputs/7"})
    EXPECT_NE(Bash(fmt::format("echo x 2>&1 >> {}", place)).find("Read-only file system"),
              std::string::npos)
        << place;
  EXPECT_EQ(Bash("chmod 777 /opt/server 2>&1 | grep -c 'Read-only'"), "1\n");
}

TEST_F(MountTest, WhatASandboxHasCannotBeCovered) {
  for (const char* inside : {"/workspace",
                             "/workspace/x",
                             "/agentd",
                             "/agentd/agentd-tool",
                             "/proc/x",
                             "/dev",
                             "/tmp/x",
                             "/etc/passwd",
                             "/usr",
                             "/usr/lib/x",
                             "/lib64",
                             "/bin/bash",
                             "/outputs",
                             "/",
                             "",
                             "relative",
                             "/opt/../usr",
                             "/opt/./x",
                             "/opt//x",
                             "/opt/x/"}) {
    options_.mounts = {{root_ / "server", inside}};
    const auto sandbox = Sandbox::Start(options_);
    EXPECT_EQ(sandbox.status().code(), absl::StatusCode::kInvalidArgument)
        << inside << ": " << sandbox.status();
  }
  options_.mounts = {{root_ / "server", "/opt/a"}, {root_ / "server", "/opt/a/b"}};
  EXPECT_EQ(Sandbox::Start(options_).status().code(), absl::StatusCode::kInvalidArgument);
  options_.mounts = {{root_ / "none", "/opt/a"}};
  EXPECT_EQ(Sandbox::Start(options_).status().code(), absl::StatusCode::kInvalidArgument);
  options_.mounts.clear();
  options_.outputs = root_ / "none";
  EXPECT_EQ(Sandbox::Start(options_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace agentd::sandbox
