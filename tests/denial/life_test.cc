// What a call must not use up, and that nothing of it outlives it.
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>
#include <thread>

#include "base/unique_fd.h"
#include "sandbox/landlock.h"
#include "tests/denial/harness.h"

namespace agentd::sandbox {
namespace {

class LimitsTest : public DenialTest {};
class LifeTest : public DenialTest {};

TEST_F(LimitsTest, AForkBombIsBounded) {
  // After more processes than the kernel gives out pids for at first: those come from elsewhere.
  const std::string text =
      WithoutLineEnd(Bash("for i in $(seq 700); do /bin/true; done; ./probe fork-bomb 5000",
                          {.max_processes = 320})
                         .output);
  const int count = std::stoi(text);
  EXPECT_GT(count, 300) << text;
  EXPECT_LE(count, 320) << text;
  EXPECT_NE(text.find(" EAGAIN"), std::string::npos) << text;
  // The shell's kind, which never stops by itself; the session goes on.
  const CallResult bomb =
      Bash("b() { b | b & }; b; sleep 0.5; wait", {.wall_time_ms = 2000, .max_processes = 100});
  EXPECT_NE(bomb.end, CallEnd::kSandboxDied);
  EXPECT_EQ(Bash("echo alive").output, "alive\n");
  EXPECT_EQ(Outside("fork-bomb 400"), "400 no limit");
}

// Threads count as processes do.
TEST_F(LimitsTest, AThreadBombIsBounded) {
  const std::string text = Inside("thread-bomb 3000", {.max_processes = 100});
  EXPECT_TRUE(text.ends_with(" EAGAIN")) << text;
  EXPECT_LE(std::stoi(text), 100) << text;
  EXPECT_EQ(Outside("thread-bomb 400"), "400 no limit");
}

TEST_F(LimitsTest, OpenFiles) {
  const std::string text = Inside("open-files 2000", {.max_open_files = 50});
  EXPECT_EQ(text, "47 EMFILE");
}

TEST_F(LimitsTest, Memory) {
  EXPECT_EQ(Inside("memory 1000000000", {.memory_bytes = int64_t{512} << 20}), "ENOMEM");
  EXPECT_EQ(Inside("memory 1000000000"), "ok");
  EXPECT_EQ(Outside("memory 1000000000"), "ok");
}

TEST_F(LimitsTest, FileSize) {
  EXPECT_EQ(Inside("sparse 2000000", {.max_file_bytes = 1'000'000}), "signal 25");
  EXPECT_EQ(Inside("sparse 2000000", {.max_file_bytes = 3'000'000}), "ok");
  EXPECT_EQ(Outside("sparse 2000000"), "ok");
}

// With the limits that calls get when nobody says otherwise.
TEST_F(LimitsTest, ASparseBombIsRefused) {
  EXPECT_EQ(Inside("sparse 1000000000000"), "signal 25");
  EXPECT_EQ(Outside("sparse 1000000000000"), "ok");
}

constexpr char kInodeBomb[] = "i=0; while [ $i -lt 5000 ] && : > f$i; do i=$((i+1)); done; echo $i";

TEST_F(LimitsTest, AnInodeBombIsBounded) {
  const std::string text = Bash(std::string("cd /dev/shm; ") + kInodeBomb).output;
  EXPECT_NE(text.find("No space left on device"), std::string::npos) << text;
  EXPECT_EQ(Shell(fmt::format("cd {}/outside && {}", root_.string(), kInodeBomb)), "5000");
  // In the workspace it has the call's time.
  const CallResult result =
      Bash("i=0; while :; do : > f$i; i=$((i+1)); done", {.wall_time_ms = 300});
  EXPECT_EQ(result.end, CallEnd::kTimedOut);
  EXPECT_EQ(Bash("echo alive").output, "alive\n");
}

TEST_F(LimitsTest, CpuTime) {
  const CallResult result = Bash("while :; do :; done", {.cpu_time_s = 1});
  EXPECT_EQ(result.end, CallEnd::kSignaled);
  EXPECT_TRUE(result.signal == SIGXCPU || result.signal == SIGKILL) << result.signal;
}

TEST_F(LimitsTest, TmpIsBounded) {
  const CallResult result = Bash("head -c 600M /dev/zero > /dev/shm/x; stat -c %s /dev/shm/x");
  EXPECT_NE(result.output.find("No space left on device"), std::string::npos) << result.output;
}

TEST_F(LimitsTest, AFloodIsBounded) {
  int64_t streamed = 0;
  CallRequest request{.argv = {"/usr/bin/yes"}, .limits = {.wall_time_ms = 300}};
  request.on_output = [&](std::string_view text) { streamed += text.size(); };
  const CallResult result = Run(request);
  EXPECT_EQ(result.end, CallEnd::kTimedOut);
  EXPECT_EQ(result.output.size(), size_t{1} << 20);
  EXPECT_GT(result.output_bytes, int64_t{1} << 20);
  EXPECT_EQ(streamed, result.output_bytes);
}

// A program that leaves by every door: a double fork, a new session, signals ignored, standard
// output closed. Its marker is seen while the call runs (the control) and gone after it.
// The marker is put together by the shell, so that no script's text holds it.
std::string Leaver(const std::string& marker) {
  return fmt::format(
      "export H={0} T={1}\n"
      "(setsid bash -c 'trap \"\" TERM HUP INT; exec -a $H$T sleep 1000' >/dev/null 2>&1 & )\n"
      "(exec -a $H$T sleep 1000 & )\n"
      "until [ $(grep -lz \"^[a]${{H#a}}$T\" /proc/[0-9]*/cmdline 2>/dev/null | wc -l) -ge 2 ]\n"
      "do sleep 0.02; done; echo up\n",
      marker.substr(0, 8), marker.substr(8));
}

TEST_F(LifeTest, NothingOutlivesACallThatEnds) {
  const std::string marker = Marker();
  int during = 0;
  CallRequest request{
      .argv = {"/bin/bash", "-c", Leaver(marker) + "until [ -e go ]; do sleep 0.02; done"}};
  request.on_output = [&](std::string_view) {
    during = CountMarked(marker);
    std::ofstream(workspace() / "go");
  };
  EXPECT_EQ(Run(request).end, CallEnd::kExited);
  EXPECT_EQ(during, 2);
  EXPECT_EQ(CountMarked(marker), 0);
}

TEST_F(LifeTest, NothingOutlivesACancelOrATimeout) {
  for (const bool cancelled : {true, false}) {
    const std::string marker = Marker();
    CancelFlag cancel;
    int during = 0;
    CallRequest request{.argv = {"/bin/bash", "-c", Leaver(marker) + "sleep 1000"}};
    if (!cancelled) request.limits.wall_time_ms = 1500;
    request.on_output = [&](std::string_view) {
      during = CountMarked(marker);
      if (cancelled) cancel.Cancel();
    };
    const auto result = sandbox_->Run(request, cancel);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->end, cancelled ? CallEnd::kCancelled : CallEnd::kTimedOut);
    EXPECT_EQ(during, 2);
    EXPECT_EQ(CountMarked(marker), 0);
  }
}

// A long-lived process is held by the same walls, and takes along what it started.
TEST_F(LifeTest, NothingOutlivesAProcess) {
  for (const bool killed : {true, false}) {
    const std::string marker = Marker();
    auto started = sandbox_->StartProcess(
        {.argv = {"/bin/bash", "-c",
                  Leaver(marker) + "ls /proc/$$/fd; ./probe write-usr; sleep 1000"},
         .limits = {.wall_time_ms = 0}});
    ASSERT_TRUE(started.ok()) << started.status();
    const std::string expected = "up\n0\n1\n2\nEROFS\n";
    std::string said;
    while (said.size() < expected.size()) {
      pollfd polled{(*started)->output(), POLLIN, 0};
      ASSERT_GT(poll(&polled, 1, 60'000), 0);
      char buffer[256];
      const ssize_t n = read((*started)->output(), buffer, sizeof(buffer));
      ASSERT_GT(n, 0) << said;
      said.append(buffer, static_cast<size_t>(n));
    }
    EXPECT_EQ(said, expected);
    EXPECT_EQ(CountMarked(marker), 2);
    if (killed) {
      (*started)->Kill();
      EXPECT_EQ((*started)->Wait(60'000)->end, CallEnd::kCancelled);
    } else {
      started->reset();
    }
    EXPECT_EQ(CountMarked(marker), 0);
  }
}

TEST_F(LifeTest, ACallCannotKillItsKeeper) {
  EXPECT_EQ(Bash("kill -9 1; kill -STOP 1; kill -9 -1; echo still here").end, CallEnd::kExited);
  EXPECT_EQ(Bash("kill -9 -1 2>/dev/null; echo still here").output, "still here\n");
  EXPECT_EQ(Bash("kill -9 $PPID; echo still here").output, "still here\n");
}

TEST_F(LifeTest, TheDestructorKillsARunningTree) {
  const std::string marker = Marker();
  std::thread runner([&] {
    const auto result =
        sandbox_->Run({.argv = {"/bin/bash", "-c", "exec -a " + marker + " sleep 1000"}}, never_);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->end, CallEnd::kSandboxDied);
  });
  while (CountMarked(marker) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  // As a crash of the init would.
  std::ifstream lock(root_ / "lock");
  pid_t init = 0;
  lock >> init;
  ASSERT_EQ(kill(init, SIGKILL), 0);
  runner.join();
  EXPECT_EQ(CountMarked(marker), 0);
  EXPECT_TRUE(WaitUntilDead(root_ / "lock", 0).ok());
}

TEST_F(LifeTest, TheSandboxOutlivesTheThreadThatStartedIt) {
  sandbox_.reset();
  std::thread([this] {
    auto sandbox = Sandbox::Start({workspace(), root_ / "lock", AGENTD_HELPER_DIR});
    ASSERT_TRUE(sandbox.ok()) << sandbox.status();
    sandbox_ = std::move(*sandbox);
  }).join();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(Bash("echo alive").output, "alive\n");
}

// A process that runs denial_daemon; the test kills it.
class Daemon {
 public:
  explicit Daemon(const std::string& command, const std::string& prefix = "") {
    int fds[2];
    EXPECT_EQ(pipe(fds), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(fds[1], 1);
      close(fds[0]);
      close(fds[1]);
      const std::string line =
          "exec " + prefix + " " + AGENTD_DENIAL_DIR + "/denial_daemon " + command;
      execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
      _exit(127);
    }
    close(fds[1]);
    output_.Reset(fds[0]);
  }
  ~Daemon() { Kill(); }
  void Kill() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    pid_ = -1;
  }
  // The next piece of output; "" at its end.
  std::string Read() {
    char buffer[4096];
    const ssize_t n = read(output_.get(), buffer, sizeof(buffer));
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : "";
  }
  std::string ReadAll() {
    std::string all;
    for (std::string part; !(part = Read()).empty();) all += part;
    return all;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd output_;
};

class DaemonTest : public DenialTest {
 protected:
  void SetUp() override {
    DenialTest::SetUp();
    sandbox_.reset();
  }
  std::string Arguments(const std::string& command) {
    return fmt::format("{0}/workspace {0}/lock {1} \"{2}\"", root_.string(), AGENTD_HELPER_DIR,
                       command);
  }
};

TEST_F(DaemonTest, ItsDeathTakesTheTreeAlong) {
  for (const bool stopped_init : {false, true}) {
    const std::string marker = Marker();
    std::ofstream(workspace() / "leave.sh") << Leaver(marker) << "sleep 1000\n";
    Daemon daemon(Arguments("source ./leave.sh"));
    ASSERT_EQ(daemon.Read(), "up\n");
    EXPECT_EQ(CountMarked(marker), 2);
    EXPECT_EQ(WaitUntilDead(root_ / "lock", 20).code(), absl::StatusCode::kDeadlineExceeded);
    if (stopped_init) {
      // An init that cannot notice the socket's end: then bubblewrap's own link to its parent acts.
      std::ifstream lock(root_ / "lock");
      pid_t init = 0;
      lock >> init;
      ASSERT_EQ(kill(init, SIGSTOP), 0);
    }
    daemon.Kill();
    const absl::Status dead = WaitUntilDead(root_ / "lock", 10'000);
    // At this point, not some time later: that is what a re-run relies on.
    EXPECT_EQ(CountMarked(marker), 0);
    EXPECT_TRUE(dead.ok()) << dead;
  }
}

TEST_F(DaemonTest, WithoutBubblewrapItRefuses) {
  Daemon daemon(Arguments("echo ran"), "env PATH=/nowhere");
  const std::string said = daemon.ReadAll();
  EXPECT_NE(said.find("'bubblewrap' is missing"), std::string::npos) << said;
  EXPECT_NE(said.find("apt-get install bubblewrap"), std::string::npos) << said;
  EXPECT_EQ(said.find("ran"), std::string::npos) << said;
}

TEST_F(DaemonTest, WithoutUserNamespacesItRefuses) {
  std::ofstream(root_ / "without.sh")
      << "echo 0 > /proc/sys/user/max_user_namespaces || exit 9\nexec \"$@\"\n";
  Daemon daemon(Arguments("echo ran"),
                fmt::format("unshare --user --map-root-user sh {}/without.sh", root_.string()));
  const std::string said = daemon.ReadAll();
  EXPECT_NE(said.find("'user namespace' cannot be put up"), std::string::npos) << said;
  EXPECT_NE(said.find("sysctl"), std::string::npos) << said;
  EXPECT_EQ(said.find("ran"), std::string::npos) << said;
}

// What bubblewrap says decides which wall is named.
TEST_F(DaemonTest, TheWallThatIsMissingIsNamed) {
  struct {
    const char* complaint;
    const char* wall;
    const char* mend;
  } const cases[] = {
      {"bwrap: No permissions to create new namespace", "user namespace", "sysctl"},
      {"bwrap: setting up uid map: Permission denied", "user namespace", "sysctl"},
      {"bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "network namespace", "info"},
      {"bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "proc", "systempaths"},
      {"bwrap: Can't bind mount /oldroot/usr on /newroot/usr", "mount namespace", "info"},
      {"bwrap: execvp /agentd/agentd-init: Exec format error", "agentd-init", "build"},
      {"", "bubblewrap", "agentctl info"},
  };
  for (const auto& c : cases) {
    std::ofstream(root_ / "bwrap") << "#!/bin/sh\necho \"" << c.complaint << "\" >&2\nexit 1\n";
    fs::permissions(root_ / "bwrap", fs::perms(0755));
    Daemon daemon(Arguments("echo ran"), "env PATH=" + root_.string());
    const std::string said = daemon.ReadAll();
    EXPECT_NE(said.find(fmt::format("the wall '{}' cannot be put up", c.wall)), std::string::npos)
        << said;
    EXPECT_NE(said.find(c.mend), std::string::npos) << said;
    EXPECT_EQ(said.find("exit 0"), std::string::npos) << said;
  }
}

TEST_F(DaemonTest, WithoutAHelperItRefuses) {
  for (const char* name : {"agentd-init", "agentd-tool"}) {
    const fs::path helpers = root_ / ("without-" + std::string(name));
    fs::create_directory(helpers);
    for (const char* other : {"agentd-init", "agentd-tool"})
      if (other != std::string_view(name)) fs::copy(fs::path(AGENTD_HELPER_DIR) / other, helpers);
    Daemon daemon(
        fmt::format("{0}/workspace {0}/lock {1} 'echo ran'", root_.string(), helpers.string()));
    const std::string said = daemon.ReadAll();
    EXPECT_NE(said.find(fmt::format("the helper {} is not in", name)), std::string::npos) << said;
    EXPECT_EQ(said.find("exit 0"), std::string::npos) << said;
  }
}

TEST_F(DaemonTest, WithoutSeccompItRefuses) {
  Daemon daemon("--no-seccomp " + Arguments("echo ran"));
  const std::string said = daemon.ReadAll();
  EXPECT_NE(said.find("'seccomp' cannot be put up"), std::string::npos) << said;
  EXPECT_EQ(said.find("ran"), std::string::npos) << said;
}

// A read-only mount stops nobody from writing into a FIFO in it, to whoever reads that on the host:
// Landlock alone does. Without it calls run, and say what they go without.
TEST_F(DaemonTest, LandlockIsAWallOfItsOwn) {
  if (LandlockAbi() < kLeastLandlockAbi) GTEST_SKIP() << "the kernel has no Landlock";
  fs::create_directory(root_ / "mounted");
  ASSERT_EQ(mkfifo((root_ / "mounted/fifo").c_str(), 0666), 0);
  const std::string attempt = fmt::format("--mount {}/mounted {} 2>&1", root_.string(),
                                          Arguments("./probe write /opt/mounted/fifo"));
  const std::string with = Daemon(attempt).ReadAll();
  EXPECT_TRUE(with.ends_with("EACCES\nexit 0\n")) << with;
  EXPECT_EQ(with.find("missing: Landlock"), std::string::npos) << with;
  const std::string without = Daemon("--no-landlock " + attempt).ReadAll();
  EXPECT_TRUE(without.ends_with("ok\nexit 0\n")) << without;
  EXPECT_NE(without.find("missing: Landlock\n"), std::string::npos) << without;
}

TEST_F(DaemonTest, WorksForAnOrdinaryUser) {
  if (geteuid() != 0) GTEST_SKIP() << "this run is by an ordinary user already";
  ASSERT_EQ(chown((root_ / "workspace").c_str(), 65534, 65534), 0);
  ASSERT_EQ(chown(root_.c_str(), 65534, 65534), 0);
  fs::remove(root_ / "lock");
  Daemon daemon(Arguments("id -u; echo x > made && ./probe fork-bomb 5000"),
                "setpriv --reuid 65534 --regid 65534 --clear-groups");
  const std::string said = daemon.ReadAll();
  EXPECT_TRUE(said.starts_with("65534\n")) << said;
  EXPECT_NE(said.find(" EAGAIN\n"), std::string::npos) << said;
  EXPECT_TRUE(said.ends_with("exit 0\n")) << said;
  EXPECT_TRUE(fs::exists(workspace() / "made"));
}

}  // namespace
}  // namespace agentd::sandbox
