// What a sandboxed call costs beside a plain fork and exec of the same program, in one run.
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <vector>

#include "base/status.h"
#include "sandbox/sandbox.h"

namespace {

constexpr int kRounds = 200;
constexpr int kStarts = 20;

double MedianMicroseconds(int rounds, const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    times.push_back(took.count());
  }
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  return times[static_cast<size_t>(rounds) / 2];
}

void PlainSpawn() {
  char program[] = "/bin/true";
  char* argv[] = {program, nullptr};
  char* environment[] = {nullptr};
  pid_t pid = -1;
  AGENTD_CHECK(posix_spawn(&pid, program, nullptr, nullptr, argv, environment) == 0);
  AGENTD_CHECK(waitpid(pid, nullptr, 0) == pid);
}

}  // namespace

int main(int argc, char** argv) {
  using agentd::sandbox::Options;
  using agentd::sandbox::Sandbox;
  char directory[] = "/tmp/agentd-call-benchmark-XXXXXX";
  AGENTD_CHECK(mkdtemp(directory) != nullptr);
  const std::filesystem::path root = directory;
  std::filesystem::create_directory(root / "workspace");
  const Options options{root / "workspace", root / "lock", argc > 1 ? argv[1] : ""};
  {
    auto sandbox = Sandbox::Start(options);
    if (!sandbox.ok()) {
      std::fprintf(stderr, "%s\n", agentd::Text(sandbox.status()).c_str());
      return 1;
    }
    const agentd::sandbox::CancelFlag never;
    const auto call = [&] { AGENTD_CHECK((*sandbox)->Run({.argv = {"/bin/true"}}, never).ok()); };
    call();
    const double plain = MedianMicroseconds(kRounds, PlainSpawn);
    const double boxed = MedianMicroseconds(kRounds, call);
    std::printf("fork and exec of /bin/true: %.0f us; sandboxed call: %.0f us; ratio %.1f\n", plain,
                boxed, boxed / plain);
  }
  const double start = MedianMicroseconds(kStarts, [&] {
    AGENTD_CHECK(Sandbox::Start(options).ok());  // and its end
  });
  std::printf("start and end of a session's sandbox: %.1f ms\n", start / 1000);
  std::filesystem::remove_all(root);
  return 0;
}
