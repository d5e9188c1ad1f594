// What a sandboxed call costs beside a plain fork and exec of the same program, in one run.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sandbox/sandbox.h"

namespace {

constexpr int kRounds = 500;
constexpr int kStarts = 20;

double Timed(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
  return took.count();
}

double Quantile(std::vector<double>& times, double share) {
  const auto at = times.begin() + static_cast<ptrdiff_t>(share * static_cast<double>(times.size()));
  std::nth_element(times.begin(), at, times.end());
  return *at;
}

void PlainSpawn() {
  char program[] = "/bin/true";
  char* argv[] = {program, nullptr};
  char* environment[] = {nullptr};
  pid_t pid = -1;
  AGENTD_CHECK(posix_spawn(&pid, program, nullptr, nullptr, argv, environment) == 0);
  AGENTD_CHECK(waitpid(pid, nullptr, 0) == pid);
}

// Plain and sandboxed in turns, so that both meet the same weather.
void Compare(const char* how, const std::function<void()>& call, std::chrono::milliseconds pause) {
  std::vector<double> plain;
  std::vector<double> boxed;
  for (int i = 0; i < kRounds; ++i) {
    std::this_thread::sleep_for(pause);
    plain.push_back(Timed(PlainSpawn));
    std::this_thread::sleep_for(pause);
    boxed.push_back(Timed(call));
  }
  std::printf("%d calls of /bin/true, %s:\n", kRounds, how);
  for (const double share : {0.5, 0.99}) {
    const double without = Quantile(plain, share);
    const double with = Quantile(boxed, share);
    std::printf("  %s: plain fork and exec %.2f ms, as a call %.2f ms: %.2f ms over\n",
                share == 0.5 ? "median" : "p99", without / 1000, with / 1000,
                (with - without) / 1000);
  }
}

}  // namespace

int main(int argc, char** argv) {
  using agentd::sandbox::Options;
  using agentd::sandbox::Sandbox;
  const auto made = agentd::TemporaryDirectory::In(std::filesystem::temp_directory_path());
  AGENTD_CHECK(made.ok());
  const std::filesystem::path& root = made->path();
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
    Compare("after a pause, as between a model's calls", call, std::chrono::milliseconds(15));
    Compare("one after the other", call, std::chrono::milliseconds(0));
  }
  std::vector<double> starts;
  for (int i = 0; i < kStarts; ++i)
    starts.push_back(Timed([&] { AGENTD_CHECK(Sandbox::Start(options).ok()); }));  // and its end
  std::printf("start and end of a session's sandbox: %.1f ms\n", Quantile(starts, 0.5) / 1000);
  return 0;
}
