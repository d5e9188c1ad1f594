// Limits of all processes of a sandbox together. The ones that need a cgroup to divide skip where
// there is none, and say why.
#include "sandbox/cgroup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(OwnCgroupTest, SaysWhatIsMissing) {
  TemporaryDirectory directory;
  const fs::path own = directory.path() / "own";
  fs::create_directory(own);
  const std::string mountinfo =
      fmt::format("30 1 0:2 / / rw - ext4 /dev/x rw\n40 30 0:37 / {} rw,relatime - cgroup2 c rw\n",
                  directory.path().string());
  const std::string mine = "4:memory:/elsewhere\n0::/own\n";
  const auto complaint = [](const absl::StatusOr<fs::path>& found) {
    EXPECT_EQ(found.status().code(), absl::StatusCode::kFailedPrecondition);
    return Text(found.status());
  };
  EXPECT_THAT(complaint(FindOwnCgroup("", mine)), HasSubstr("no cgroup v2"));
  EXPECT_THAT(complaint(FindOwnCgroup(mountinfo, "4:memory:/\n")), HasSubstr("no cgroup v2"));
  std::ofstream(own / "cgroup.controllers") << "hugetlb memory cpu\n";
  EXPECT_THAT(complaint(FindOwnCgroup(mountinfo, mine)),
              HasSubstr("own does not have the controller pids"));
  std::ofstream(own / "cgroup.controllers") << "cpu memory pids\n";
  EXPECT_THAT(complaint(FindOwnCgroup(mountinfo, mine)), HasSubstr("Delegate=yes"));
  std::ofstream(own / "cgroup.subtree_control") << "";
  const absl::StatusOr<fs::path> found = FindOwnCgroup(mountinfo, mine);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, own);
}

class SessionLimitsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<fs::path> delegated = DelegatedCgroup();
    if (!delegated.ok()) GTEST_SKIP() << Text(delegated.status());
    parent_ = *delegated;
    fs::create_directory(directory_.path() / "workspace");
  }

  void Start(const TotalLimits& limits) {
    auto started = Sandbox::Start({.workspace = directory_.path() / "workspace",
                                   .lock_file = directory_.path() / "lock",
                                   .helper_dir = AGENTD_HELPER_DIR,
                                   .total = limits});
    ASSERT_TRUE(started.ok()) << started.status();
    sandbox_ = *std::move(started);
    EXPECT_THAT(sandbox_->missing_walls(), Not(::testing::Contains("limits of a whole session")));
  }
  CallResult Bash(const std::string& script) {
    const auto result = sandbox_->Run({.argv = {"/bin/bash", "-c", script}}, CancelFlag());
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : CallResult();
  }
  // Of cgroups of sandboxes under the daemon's.
  std::vector<fs::path> Cgroups() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(parent_))
      if (entry.path().filename().string().starts_with("sandbox-")) found.push_back(entry.path());
    return found;
  }
  static std::string Value(const fs::path& file) {
    std::ifstream in(file);
    std::string line;
    std::getline(in, line);
    return line;
  }

  TemporaryDirectory directory_;
  fs::path parent_;
  std::unique_ptr<Sandbox> sandbox_;
};

// One after the other each takes less than the limit of a process, together they do not fit.
TEST_F(SessionLimitsTest, MemoryOfAllTogether) {
  Start({.memory_bytes = int64_t{192} << 20});
  // tail holds all of its input before it writes; its reader waits for the other's.
  const std::string take =
      "take() { head -c 120M /dev/zero | tail -c 120M | { head -c 1 > /dev/null; touch $1; "
      "until [ -e a ] && [ -e b ]; do sleep 0.05; done; }; }; rm -f a b; ";
  EXPECT_EQ(Bash(take + "touch b; take a").detail, "") << "one alone fits";
  const CallResult both = Bash(take + "take a & take b & wait");
  EXPECT_THAT(both.detail, HasSubstr("reached their memory limit of 192 MiB"));
  EXPECT_EQ(Bash("echo on").output, "on\n") << "the session goes on";
  // Files in memory count too, and stop the one that writes them.
  EXPECT_THAT(Bash("head -c 250M /dev/zero > /dev/shm/a; echo wrote $?").detail,
              HasSubstr("memory limit"));
  EXPECT_EQ(Bash("echo still on").output, "still on\n");
}

TEST_F(SessionLimitsTest, ProcessesOfAllCallsTogether) {
  Start({.max_processes = 24});
  std::atomic<bool> done{false};
  std::string output;
  std::thread other([&] {
    output = Bash("for i in $(seq 12); do sleep 3 & done; wait").output;
    done = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const std::string here = Bash("for i in $(seq 20); do sleep 0.2 & done; wait; true").output;
  other.join();
  EXPECT_THAT(here + output, HasSubstr("Resource temporarily unavailable"));
}

TEST_F(SessionLimitsTest, LimitsAreSetAndTheCgroupGoesWithTheSandbox) {
  Start({.memory_bytes = int64_t{1} << 30, .max_processes = 100, .cpus = 1.5});
  ASSERT_EQ(Cgroups().size(), 1u);
  const fs::path cgroup = Cgroups()[0];
  EXPECT_EQ(Value(cgroup / "memory.max"), "1073741824");
  EXPECT_EQ(Value(cgroup / "pids.max"), "100");
  EXPECT_EQ(Value(cgroup / "cpu.max"), "150000 100000");
  // The init and the call that it has prepared are inside.
  std::ifstream processes(cgroup / "cgroup.procs");
  EXPECT_NE(processes.peek(), std::ifstream::traits_type::eof());
  sandbox_.reset();
  EXPECT_TRUE(Cgroups().empty());
}

TEST_F(SessionLimitsTest, ACallSeesAndChangesNothingOfIt) {
  Start({.max_processes = 50});
  EXPECT_THAT(Bash("ls /sys/fs/cgroup 2>&1; mount -t cgroup2 none /tmp 2>&1; true").output,
              Not(HasSubstr("pids.max")));
}

}  // namespace
}  // namespace agentd::sandbox
