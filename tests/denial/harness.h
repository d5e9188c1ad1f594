// What the denial tests share: a sandbox over a fresh workspace that holds the probe, and the same
// probe run outside as the control.
#ifndef AGENTD_TESTS_DENIAL_HARNESS_H_
#define AGENTD_TESTS_DENIAL_HARNESS_H_

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "base/unique_fd.h"
#include "sandbox/sandbox.h"

namespace agentd::sandbox {

namespace fs = std::filesystem;

// The exit text of a shell command run outside, without its last line end.
inline std::string Shell(const std::string& command) {
  std::string output;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  char buffer[4096];
  while (size_t n = fread(buffer, 1, sizeof(buffer), pipe)) output.append(buffer, n);
  pclose(pipe);
  if (output.ends_with('\n')) output.pop_back();
  return output;
}

// A name that no other process has in its command line.
inline std::string Marker() {
  std::random_device random;
  return fmt::format("agentd-marker-{:08x}{:08x}", random(), random());
}

// Processes of the machine whose command line holds `marker`.
inline int CountMarked(const std::string& marker) {
  int count = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
    std::ifstream in(entry.path() / "cmdline", std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    if (text.find(marker) != std::string::npos) ++count;
  }
  return count;
}

// A service on the host's loopback.
inline UniqueFd ListenTcp(int& port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(fd.get(), 4), 0);
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  port = ntohs(address.sin_port);
  return fd;
}

class DenialTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(workspace());
    fs::create_directory(root_ / "outside");
    fs::copy(AGENTD_DENIAL_DIR "/denial_probe", workspace() / "probe");
    auto sandbox = Sandbox::Start({workspace(), root_ / "lock", AGENTD_HELPER_DIR});
    ASSERT_TRUE(sandbox.ok()) << sandbox.status();
    sandbox_ = std::move(*sandbox);
  }
  void TearDown() override { sandbox_.reset(); }
  fs::path workspace() const { return root_ / "workspace"; }

  CallResult Run(const CallRequest& request) {
    auto result = sandbox_->Run(request, never_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : CallResult{.end = CallEnd::kSandboxDied};
  }
  CallResult Bash(const std::string& command, Limits limits = {}) {
    return Run({.argv = {"/bin/bash", "-c", command}, .limits = limits});
  }
  static std::string WithoutLineEnd(std::string text) {
    if (text.ends_with('\n')) text.pop_back();
    return text;
  }
  std::string Inside(const std::string& attempt, Limits limits = {}) {
    return WithoutLineEnd(Bash("./probe " + attempt, limits).output);
  }
  std::string Outside(const std::string& attempt) {
    return Shell(fmt::format("cd {}/outside && {}/denial_probe {}", root_.string(),
                             AGENTD_DENIAL_DIR, attempt));
  }

  const TemporaryDirectory directory_{TemporaryDirectory::Place::kDisk};
  const fs::path root_ = directory_.path();
  std::unique_ptr<Sandbox> sandbox_;
  CancelFlag never_;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_TESTS_DENIAL_HARNESS_H_
