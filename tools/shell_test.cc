#include "tools/shell.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/temporary_directory.h"
#include "tools/config.h"
#include "tools/tool.h"

namespace agentd::tools {
namespace {

using sandbox::CallEnd;
using testing::HasSubstr;

class ShellTest : public testing::Test {
 protected:
  void SetUp() override {
    signal(SIGPIPE, SIG_IGN);
    std::filesystem::create_directory(directory_.path() / "workspace");
    sandbox::Options options;
    options.workspace = directory_.path() / "workspace";
    options.lock_file = directory_.path() / "lock";
    options.helper_dir = AGENTD_HELPER_DIR;
    auto sandbox = sandbox::Sandbox::Start(options);
    ASSERT_TRUE(sandbox.ok()) << sandbox.status();
    sandbox_ = *std::move(sandbox);
  }
  void TearDown() override {
    shell_.Stop();
    sandbox_.reset();
  }
  Shell::Result Run(const std::string& text, int64_t wall_time_ms = 60'000) {
    Shell::Command command;
    command.text = text;
    command.limits.wall_time_ms = wall_time_ms;
    command.on_output = [this](std::string_view chunk) { seen_ += chunk; };
    seen_.clear();
    auto result = shell_.Run(*sandbox_, command, cancel_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : Shell::Result();
  }

  const TemporaryDirectory directory_{TemporaryDirectory::Place::kDisk};
  std::unique_ptr<sandbox::Sandbox> sandbox_;
  Shell shell_;
  sandbox::CancelFlag cancel_;
  std::string seen_;
};

TEST_F(ShellTest, KeepsDirectoryVariablesAndFunctions) {
  EXPECT_FALSE(shell_.alive());
  const Shell::Result first = Run("mkdir d; cd d; x='a b'; f() { echo \"f $1\"; }; false");
  EXPECT_TRUE(first.fresh);
  EXPECT_EQ(first.call.exit_code, 1);
  EXPECT_EQ(first.call.output, "");
  EXPECT_TRUE(shell_.alive());
  const Shell::Result second = Run("pwd; echo \"$x\"; f \"it's\"");
  EXPECT_FALSE(second.fresh);
  EXPECT_EQ(second.call.exit_code, 0);
  EXPECT_EQ(second.call.output, "/workspace/d\na b\nf it's\n");
  EXPECT_EQ(seen_, second.call.output);
}

TEST_F(ShellTest, GivesWhatWasWrittenAndNoMore) {
  EXPECT_EQ(Run("printf abc").call.output, "abc");
  EXPECT_EQ(Run("printf 'a\\n'; echo b >&2; exit_code=3; (exit 3)").call.output, "a\nb\n");
  EXPECT_EQ(Run("cat").call.output, "");  // the shell's own input is not the command's
  EXPECT_EQ(Run("cat <<'E'\n'quoted' \"$x\" \\\nE\necho 'two\nlines'").call.output,
            "'quoted' \"$x\" \\\ntwo\nlines\n");
  const Shell::Result wrong = Run("if");
  EXPECT_THAT(wrong.call.output, HasSubstr("syntax error"));
  EXPECT_NE(wrong.call.exit_code, 0);
  EXPECT_FALSE(wrong.ended);
  const Shell::Result flood = Run("head -c 3000000 /dev/zero | tr '\\0' x; echo end");
  EXPECT_EQ(flood.call.output_bytes, 3'000'004);
  EXPECT_THAT(flood.call.output, testing::EndsWith("xend\n"));
  EXPECT_GE(flood.call.dropped_at, 0);
}

TEST_F(ShellTest, JobsInTheBackgroundGoOn) {
  Run("(while [ ! -e stop ]; do sleep 0.01; done; echo done > result) & job=$!");
  EXPECT_FALSE(std::filesystem::exists(directory_.path() / "workspace/result"));
  EXPECT_EQ(Run("touch stop; wait $job; cat result").call.output, "done\n");
}

TEST_F(ShellTest, EndsWithItsCommandTimeOutOrCancel) {
  const Shell::Result left = Run("x=1; sleep 600 & exit 7");
  EXPECT_TRUE(left.ended);
  EXPECT_EQ(left.call.end, CallEnd::kExited);
  EXPECT_EQ(left.call.exit_code, 7);
  EXPECT_FALSE(shell_.alive());
  const Shell::Result again = Run("echo \"[$x]\"");
  EXPECT_TRUE(again.fresh);
  EXPECT_EQ(again.call.output, "[]\n");
  const Shell::Result slow = Run("echo before; sleep 600", /*wall_time_ms=*/300);
  EXPECT_TRUE(slow.ended);
  EXPECT_EQ(slow.call.end, CallEnd::kTimedOut);
  EXPECT_EQ(slow.call.output, "before\n");
  const Shell::Result killed = Run("kill -9 $$");
  EXPECT_TRUE(killed.ended);
  EXPECT_EQ(killed.call.end, CallEnd::kSignaled);
  EXPECT_EQ(killed.call.signal, SIGKILL);
  std::thread person([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    cancel_.Cancel();
  });
  const Shell::Result cancelled = Run("sleep 600");
  person.join();
  EXPECT_TRUE(cancelled.ended);
  EXPECT_EQ(cancelled.call.end, CallEnd::kCancelled);
}

// Stop leaves nothing that still writes.
TEST_F(ShellTest, StopEndsItsJobs) {
  Run("while :; do echo x >> log; sleep 0.01; done & sleep 0.1");
  shell_.Stop();
  const auto size = std::filesystem::file_size(directory_.path() / "workspace/log");
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(std::filesystem::file_size(directory_.path() / "workspace/log"), size);
}

TEST_F(ShellTest, AsATool) {
  Registry registry;
  ASSERT_TRUE(AddShellTool(registry, {}).ok());
  ASSERT_EQ(registry.Find("shell"), nullptr) << "nobody asked for it";
  ASSERT_TRUE(AddShellTool(registry, *ParseConfig("[tools.shell]\n", "a.toml")).ok());
  const Tool& tool = *registry.Find("shell");
  ToolContext context;
  context.sandbox = sandbox_.get();
  context.shell = &shell_;
  const auto run = [&](const std::string& arguments) {
    auto result = tool.Run(*registry.FitArguments("shell", arguments), context);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? result->text : "";
  };
  EXPECT_EQ(run(R"({"command": "cd /tmp; false"})"), "[exit code 1]");
  EXPECT_EQ(run(R"({"command": "pwd"})"), "/tmp");
  EXPECT_EQ(run(R"({"command": "exit 2"})"),
            "[exit code 2]\n[the shell ended, and its background jobs; the next command gets a new "
            "one]");
  EXPECT_EQ(run(R"({"command": "sleep 9", "timeout": 1})"),
            "[timed out after 1 s]\n[the shell ended, and its background jobs; the next command "
            "gets a new one]");
}

}  // namespace
}  // namespace agentd::tools
