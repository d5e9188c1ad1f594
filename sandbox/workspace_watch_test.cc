#include "sandbox/workspace_watch.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {
namespace {

class WorkspaceWatchTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directory(root_ / "workspace"); }
  void TearDown() override { sandbox_.reset(); }
  void Start(int64_t max_bytes, int64_t max_files) {
    Options options{root_ / "workspace", root_ / "lock", AGENTD_HELPER_DIR};
    options.max_workspace_bytes = max_bytes;
    options.max_workspace_files = max_files;
    auto sandbox = Sandbox::Start(options);
    ASSERT_TRUE(sandbox.ok()) << sandbox.status();
    sandbox_ = *std::move(sandbox);
  }
  CallResult Bash(const std::string& command) {
    const auto result = sandbox_->Run({.argv = {"/bin/bash", "-c", command}}, CancelFlag());
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : CallResult{.end = CallEnd::kSandboxDied};
  }

  const TemporaryDirectory directory_{TemporaryDirectory::Place::kDisk};
  const std::filesystem::path root_ = directory_.path();
  std::unique_ptr<Sandbox> sandbox_;
};

// Many small files, so that the limit of one file's size does not stop it.
constexpr char kFill[] =
    "i=0; while [ $i -lt 4000 ]; do head -c 1M /dev/urandom > f$i; i=$((i+1)); [ -e stop ] && exit "
    "9; done";

TEST_F(WorkspaceWatchTest, ACallThatFillsTheWorkspaceIsEnded) {
  Start(int64_t{40} << 20, 0);
  EXPECT_EQ(Bash("head -c 20M /dev/urandom > a; sleep 0.1").end, CallEnd::kExited);
  const CallResult filled = Bash(kFill);
  EXPECT_EQ(filled.end, CallEnd::kWorkspaceFull);
  EXPECT_NE(filled.detail.find("may hold 41943040"), std::string::npos) << filled.detail;
  const auto size = MeasureTree(root_ / "workspace");
  ASSERT_TRUE(size.ok());
  EXPECT_GT(size->bytes, int64_t{40} << 20);
  // With it full, what does not enlarge it runs, and can empty it.
  EXPECT_EQ(Bash("sleep 1.2; rm -f f* a; sleep 0.1").end, CallEnd::kExited);
  EXPECT_EQ(Bash("head -c 20M /dev/urandom > a; sleep 0.1").end, CallEnd::kExited);
}

TEST_F(WorkspaceWatchTest, ACallThatMakesTooManyFilesIsEnded) {
  Start(0, 500);
  EXPECT_EQ(Bash("for i in $(seq 400); do : > f$i; done; sleep 1.2").end, CallEnd::kExited);
  const CallResult filled = Bash("while :; do : > g$RANDOM$RANDOM; done");
  EXPECT_EQ(filled.end, CallEnd::kWorkspaceFull);
  EXPECT_NE(filled.detail.find("may hold 500"), std::string::npos) << filled.detail;
}

TEST_F(WorkspaceWatchTest, AProcessIsEndedToo) {
  Start(int64_t{10} << 20, 0);
  auto process =
      sandbox_->StartProcess({.argv = {"/bin/bash", "-c", kFill}, .limits = {.wall_time_ms = 0}});
  ASSERT_TRUE(process.ok()) << process.status();
  const auto end = (*process)->Wait(60'000);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, CallEnd::kWorkspaceFull);
  EXPECT_FALSE(end->detail.empty());
}

// The control: without a limit the same call goes on.
TEST_F(WorkspaceWatchTest, WithoutALimitNothingIsEnded) {
  Start(0, 0);
  EXPECT_EQ(Bash("head -c 60M /dev/urandom > a; sleep 1.2").end, CallEnd::kExited);
}

TEST_F(WorkspaceWatchTest, MeasuresWhatIsThere) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const std::filesystem::path workspace = root_ / "workspace";
  int64_t files = 0;
  int64_t bytes = 0;
  for (int i = 0; i < 20; ++i) {
    const std::filesystem::path directory = workspace / std::to_string(random() % 4) / "x";
    files += std::filesystem::exists(directory.parent_path()) ? 0 : 2;
    std::filesystem::create_directories(directory);
    const size_t size = random() % 100'000;
    std::ofstream(directory / fmt::format("f{}", i)) << std::string(size, 'x');
    ++files;
    bytes += static_cast<int64_t>(size);
  }
  std::filesystem::create_symlink("/usr", workspace / "link");
  ++files;
  std::ofstream(workspace / "sparse") << "";
  std::filesystem::resize_file(workspace / "sparse", uintmax_t{1} << 40);
  std::filesystem::create_hard_link(workspace / "sparse", workspace / "second-name");
  files += 2;
  const auto size = MeasureTree(workspace);
  ASSERT_TRUE(size.ok());
  EXPECT_EQ(size->files, files);
  EXPECT_GE(size->bytes, bytes);
  EXPECT_LE(size->bytes, bytes + files * 8192);
  // A file of 1 MB with two names is there once.
  std::ofstream(workspace / "large") << std::string(1 << 20, 'x');
  std::filesystem::create_hard_link(workspace / "large", workspace / "large-too");
  const auto linked = MeasureTree(workspace);
  ASSERT_TRUE(linked.ok());
  EXPECT_LT(linked->bytes - size->bytes, 3 << 19);
  std::filesystem::path deep = workspace;
  for (int i = 0; i < 250; ++i) deep /= "d";
  std::filesystem::create_directories(deep);
  EXPECT_EQ(MeasureTree(workspace).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace agentd::sandbox
