#include "agentd/workspace_import.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "agentd/testing_daemon.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

namespace fs = std::filesystem;

constexpr uid_t kNobody = 65534;

mode_t Mode(const fs::path& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 ? info.st_mode & 07777 : 0;
}

// In a child that is an ordinary user: root may write anywhere.
bool AsNobody(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit((::geteuid() != 0 || ::setuid(kNobody) == 0) && body() ? 0 : 1);
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

class WorkspaceImportTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"from/closed/inner", "to", "data"}) {
      fs::create_directories(directory_.path() / name);
    }
    std::ofstream(directory_.path() / "from/closed/file") << "text";
    std::ofstream(directory_.path() / "from/closed/inner/other") << "more";
    fs::permissions(directory_.path() / "from/closed/file", fs::perms(0444));
    fs::permissions(directory_.path() / "from/closed/inner", fs::perms(0555));
    fs::permissions(directory_.path() / "from/closed", fs::perms(0555));
    fs::permissions(directory_.path(), fs::perms(0755));
    fs::permissions(directory_.path() / "to", fs::perms(0777));
  }
  void TearDown() override {  // else an ordinary user could not remove it
    for (const char* name : {"from/closed", "from/closed/inner", "to/closed", "to/closed/inner"}) {
      std::error_code error;
      fs::permissions(directory_.path() / name, fs::perms(0755), error);
    }
  }
  absl::Status Import() {
    return ImportDirectory((directory_.path() / "from").string(), directory_.path() / "to",
                           directory_.path() / "data");
  }
  TemporaryDirectory directory_;
};

TEST_F(WorkspaceImportTest, ReadOnlyDirectoriesComeWithTheirFiles) {
  EXPECT_TRUE(AsNobody([this] {
    const absl::Status status = Import();
    if (!status.ok()) std::fprintf(stderr, "%s\n", Text(status).c_str());
    return status.ok();
  }));
  EXPECT_EQ(Files(directory_.path() / "to"), Files(directory_.path() / "from"));
  EXPECT_EQ(Mode(directory_.path() / "to/closed"), 0555u);
  EXPECT_EQ(Mode(directory_.path() / "to/closed/inner"), 0555u);
  EXPECT_EQ(Mode(directory_.path() / "to/closed/file"), 0444u);
}

TEST_F(WorkspaceImportTest, ATargetThatFailsIsNamed) {
  const fs::path target = directory_.path() / "to";
  fs::permissions(target, fs::perms(0555));
  EXPECT_TRUE(AsNobody([&] {
    const std::string message = Text(Import());
    return message.find((target / "closed").string()) != std::string::npos;
  }));
}

}  // namespace
}  // namespace agentd::daemon
