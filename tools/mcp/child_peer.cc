#include "tools/mcp/child_peer.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <thread>
#include <vector>

#include "base/status.h"

namespace agentd::tools::mcp {
namespace {

constexpr int kReapMs = 200;

struct Pipe {
  UniqueFd read;
  UniqueFd write;
};

absl::StatusOr<Pipe> MakePipe() {
  std::array<int, 2> fds;
  if (pipe2(fds.data(), O_CLOEXEC) != 0) return ErrnoError(errno, "pipe2");
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

}  // namespace

absl::StatusOr<std::unique_ptr<StdioPeer>> ChildPeer::Start(const ServerConfig& config) {
  ASSIGN_OR_RETURN(Pipe in, MakePipe());
  ASSIGN_OR_RETURN(Pipe out, MakePipe());
  ASSIGN_OR_RETURN(Pipe error, MakePipe());
  std::vector<char*> argv;
  for (const std::string& argument : config.command)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  std::vector<std::string> env_texts = {"PATH=/usr/bin:/bin", "HOME=/tmp"};
  for (const auto& [name, value] : config.env) env_texts.push_back(name + "=" + value);
  std::vector<char*> env;
  for (std::string& text : env_texts) env.push_back(text.data());
  env.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.read.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, out.write.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, error.write.get(), 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::unique_ptr<ChildPeer> peer(new ChildPeer);
  const int failed =
      posix_spawn(&peer->pid_, argv[0], &actions, &attributes, argv.data(), env.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) return ErrnoError(failed, "start " + config.command[0]);
  peer->input_ = std::move(in.write);
  peer->output_ = std::move(out.read);
  peer->error_ = std::move(error.read);
  return peer;
}

ChildPeer::~ChildPeer() {
  Kill();
  Reap(/*wait=*/true);
}

void ChildPeer::Kill() {
  const std::lock_guard lock(mutex_);
  if (pid_ > 0) kill(-pid_, SIGKILL);
}

bool ChildPeer::Reap(bool wait) {
  const std::lock_guard lock(mutex_);
  if (pid_ > 0 && waitpid(pid_, &wait_status_, wait ? 0 : WNOHANG) == pid_) pid_ = -1;
  return pid_ < 0;
}

std::string ChildPeer::HowItEnded() {
  // Its output closes a moment before it can be waited for.
  for (int i = 0; i < kReapMs && !Reap(/*wait=*/false); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (!Reap(/*wait=*/false)) return "";
  if (WIFSIGNALED(wait_status_)) return fmt::format("killed by signal {}", WTERMSIG(wait_status_));
  return fmt::format("exit code {}", WEXITSTATUS(wait_status_));
}

}  // namespace agentd::tools::mcp
