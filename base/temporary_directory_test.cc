#include "base/temporary_directory.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <fstream>
#include <iterator>

namespace agentd {
namespace {

namespace fs = std::filesystem;

// In a program started anew, since the first object of one looks for what was left.
TEST(TemporaryDirectoryTest, DISABLED_InAnotherProcess) {
  const TemporaryDirectory mine;
  std::ofstream(mine.path() / "file") << "x";
  std::ofstream(getenv("AGENTD_TEST_REPORT")) << mine.path().string() << std::endl;
  if (getenv("AGENTD_TEST_DIES") != nullptr) raise(SIGKILL);
}

class OtherProcess {
 public:
  explicit OtherProcess(const fs::path& report) : report_(report) {}
  // Returns the directory that it had.
  std::string Run(const char* dies) {
    const pid_t pid = fork();
    if (pid == 0) {
      setenv("AGENTD_TEST_REPORT", report_.c_str(), 1);
      if (dies != nullptr) setenv("AGENTD_TEST_DIES", dies, 1);
      execl("/proc/self/exe", "other", "--gtest_also_run_disabled_tests",
            "--gtest_filter=*InAnotherProcess", static_cast<char*>(nullptr));
      _exit(127);
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(WIFSIGNALED(status), dies != nullptr);
    std::ifstream in(report_);
    std::string line;
    std::getline(in, line);
    return line;
  }

 private:
  const fs::path report_;
};

TEST(TemporaryDirectoryTest, WhatAKilledProcessLeftGoesWithTheNext) {
  const TemporaryDirectory mine;
  OtherProcess other(mine.path() / "report");
  const std::string left = other.Run("yes");
  EXPECT_FALSE(left.empty());  // another test may have begun and removed it by now
  const std::string next = other.Run(nullptr);
  EXPECT_NE(next, left);
  EXPECT_FALSE(fs::exists(left));
  EXPECT_FALSE(fs::exists(next));
  EXPECT_TRUE(fs::exists(mine.path() / "report"));  // of one that lives nothing goes
}

TEST(TemporaryDirectoryTest, WhatIsKeptStays) {
  TemporaryDirectory tests;
  auto other = TemporaryDirectory::In(tests.path().parent_path());
  ASSERT_TRUE(other.ok()) << other.status();
  const TemporaryDirectory reports;
  OtherProcess later(reports.path() / "report");
  for (TemporaryDirectory* directory : {&tests, &*other}) {
    std::ofstream(directory->path() / "file") << "x";
    const fs::path kept = std::move(*directory).Keep();
    *directory = TemporaryDirectory();  // nor is it locked any more
    later.Run(nullptr);
    EXPECT_TRUE(fs::exists(kept / "file")) << kept;
    fs::remove_all(kept);
  }
}

}  // namespace
}  // namespace agentd
