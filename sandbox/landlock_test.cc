// Landlock alone: no namespaces, no mounts, no other filter.
#include "sandbox/landlock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "base/temporary_directory.h"
#include "base/unique_fd.h"

namespace agentd::sandbox {
namespace {

class LandlockTest : public testing::Test {
 protected:
  void SetUp() override {
    if (LandlockAbi() < kLeastLandlockAbi) GTEST_SKIP() << "the kernel has no Landlock";
    for (const char* place : {"open", "shut"}) {
      std::filesystem::create_directories(root_ / place / "directory");
      std::ofstream(root_ / place / "file") << "text";
      ASSERT_EQ(mkfifo((root_ / place / "fifo").c_str(), 0600), 0);
    }
  }
  // The errno's name of an attempt in a child that may write below open/ alone, or that is not
  // restricted.
  std::string Try(bool restricted, const std::function<long()>& attempt) {
    const pid_t pid = fork();
    if (pid == 0) {
      const std::string open = root_ / "open";
      const FileRule rules[] = {{"/", FileAccess::kRead}, {open.c_str(), FileAccess::kWrite}};
      if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(255);
      if (restricted && !RestrictByLandlock(LandlockAbi(), rules)) _exit(255);
      _exit(attempt() < 0 ? errno : 0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status)) return "signal";
    return WEXITSTATUS(status) == 0 ? "ok" : strerrorname_np(WEXITSTATUS(status));
  }

  const TemporaryDirectory directory_{TemporaryDirectory::Place::kDisk};
  const std::filesystem::path root_ = directory_.path();
};

TEST_F(LandlockTest, WritesAreForWritablePlacesAlone) {
  struct Case {
    const char* name;
    std::function<long(const std::string& place)> attempt;
  };
  const Case cases[] = {
      {"write", [](const std::string& at) { return open((at + "/file").c_str(), O_WRONLY); }},
      {"append",
       [](const std::string& at) { return open((at + "/file").c_str(), O_WRONLY | O_APPEND); }},
      {"fifo", [](const std::string& at) { return open((at + "/fifo").c_str(), O_RDWR); }},
      {"create", [](const std::string& at) { return creat((at + "/new").c_str(), 0600); }},
      {"mkdir", [](const std::string& at) { return mkdir((at + "/new-directory").c_str(), 0700); }},
      {"mkfifo", [](const std::string& at) { return mkfifo((at + "/new-fifo").c_str(), 0600); }},
      {"symlink", [](const std::string& at) { return symlink("x", (at + "/new-link").c_str()); }},
      {"link",
       [](const std::string& at) {
         return link((at + "/file").c_str(), (at + "/new-hard").c_str());
       }},
      {"rename",
       [](const std::string& at) {
         return rename((at + "/file").c_str(), (at + "/directory/file").c_str());
       }},
      {"unlink", [](const std::string& at) { return unlink((at + "/fifo").c_str()); }},
      {"rmdir", [](const std::string& at) { return rmdir((at + "/directory").c_str()); }},
  };
  // Restricted first: nothing is changed where it must not be.
  for (const Case& c : cases) {
    const std::string refused = Try(true, [&] { return c.attempt(root_ / "shut"); });
    // A link or a move to another directory says so.
    EXPECT_TRUE(refused == "EACCES" || (refused == "EXDEV" && c.name == std::string("rename")))
        << c.name << ": " << refused;
    if (c.name == std::string("rmdir")) continue;  // not empty by now
    EXPECT_EQ(Try(true, [&] { return c.attempt(root_ / "open"); }), "ok") << c.name;
    EXPECT_EQ(Try(false, [&] { return c.attempt(root_ / "shut"); }), "ok") << c.name;
  }
  const auto read = [&] { return open((root_ / "shut/directory/file").c_str(), O_RDONLY); };
  EXPECT_EQ(Try(true, read), "ok");
  const auto truncate_it = [&] { return truncate((root_ / "shut/directory/file").c_str(), 0); };
  if (LandlockAbi() >= 3) {
    EXPECT_EQ(Try(true, truncate_it), "EACCES");
  }
  EXPECT_EQ(Try(false, truncate_it), "ok");
}

TEST_F(LandlockTest, DeviceNodesCanBeMadeNowhere) {
  const auto make = [&] {
    return mknod((root_ / "open/null").c_str(), S_IFCHR | 0600, makedev(1, 3));
  };
  const bool root = geteuid() == 0;
  // The file system's own answer to an ordinary user comes first.
  EXPECT_EQ(Try(true, make), root ? "EACCES" : "EPERM");
  if (root) {
    EXPECT_EQ(Try(false, make), "ok");
  }
}

TEST_F(LandlockTest, AbstractSocketsAndSignalsOfOthersAreOutOfReach) {
  if (LandlockAbi() < kScopedLandlockAbi) GTEST_SKIP() << "the kernel's Landlock has no scopes";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = root_.filename();
  name.copy(address.sun_path + 1, sizeof(address.sun_path) - 2);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener.get(), 4), 0);
  const auto reach = [&] {
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, reinterpret_cast<sockaddr*>(&address), size);
  };
  EXPECT_EQ(Try(true, reach), "EPERM");
  EXPECT_EQ(Try(false, reach), "ok");
  const pid_t other = getpid();
  EXPECT_EQ(Try(true, [&] { return kill(other, 0); }), "EPERM");
  EXPECT_EQ(Try(false, [&] { return kill(other, 0); }), "ok");
}

}  // namespace
}  // namespace agentd::sandbox
