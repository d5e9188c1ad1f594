#include "tests/kill/agentd_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <vector>

#include "base/status.h"

namespace agentd::kill_test {
namespace {

constexpr size_t kLogTail = 3000;
constexpr int kPatienceMs = 240'000;  // a hang, not a slow day

}  // namespace

AgentdProcess::AgentdProcess(const Binaries& binaries, std::filesystem::path data)
    : binaries_(binaries),
      data_(std::move(data)),
      socket_(data_.string() + ".sock"),
      log_(data_.string() + ".log") {}

AgentdProcess::~AgentdProcess() {
  if (pid_ > 0) Kill();
}

void AgentdProcess::Start(const std::string& crash_point) {
  AGENTD_CHECK(pid_ < 0);
  int ends[2];
  AGENTD_CHECK(::pipe2(ends, O_CLOEXEC) == 0);
  ready_.Reset(ends[0]);
  UniqueFd writing(ends[1]);
  // Made before the fork: the child of a program with threads may not allocate.
  std::vector<std::string> words = {binaries_.agentd.string(),
                                    "--model",
                                    binaries_.model.string(),
                                    "--data",
                                    data_.string(),
                                    "--socket",
                                    socket_.string(),
                                    "--threads",
                                    "1",
                                    "--ready-fd",
                                    std::to_string(writing.get())};
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable)
    variables.emplace_back(*variable);
  variables.push_back("AGENTD_CRASH_POINT=" + crash_point);
  std::vector<char*> arguments, environment;
  for (std::string& word : words) arguments.push_back(word.data());
  for (std::string& variable : variables) environment.push_back(variable.data());
  arguments.push_back(nullptr);
  environment.push_back(nullptr);
  UniqueFd log(::open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  pid_ = ::fork();
  AGENTD_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    ::dup2(log.get(), STDOUT_FILENO);
    ::dup2(log.get(), STDERR_FILENO);
    ::fcntl(writing.get(), F_SETFD, 0);  // stays open
    ::execve(arguments[0], arguments.data(), environment.data());
    ::_exit(127);
  }
  pidfd_.Reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  AGENTD_CHECK(pidfd_.valid());
}

bool AgentdProcess::IsReady() {
  char line[512];
  struct pollfd poll = {ready_.get(), POLLIN, 0};
  AGENTD_CHECK(::poll(&poll, 1, kPatienceMs) == 1);
  if (::read(ready_.get(), line, sizeof(line)) > 0) return true;
  Reap();
  return false;
}

std::unique_ptr<v1::Agentd::Stub> AgentdProcess::Connect() const {
  grpc::ChannelArguments arguments;
  // Else the next life's channel waits as long as this one's would before it tries again.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::Agentd::NewStub(grpc::CreateCustomChannel(
      "unix:" + socket_.string(), grpc::InsecureChannelCredentials(), arguments));
}

void AgentdProcess::Reap() {
  AGENTD_CHECK(::waitpid(pid_, &wait_status_, 0) == pid_);
  pid_ = -1;
  pidfd_.Reset();
}

void AgentdProcess::Kill() {
  ::kill(pid_, SIGKILL);
  Reap();
}

int AgentdProcess::Stop() {
  ::kill(pid_, SIGTERM);
  AGENTD_CHECK(EndsWithin(std::chrono::milliseconds(kPatienceMs)));
  return WIFEXITED(wait_status_) ? WEXITSTATUS(wait_status_) : -1;
}

bool AgentdProcess::EndsWithin(std::chrono::milliseconds patience) {
  struct pollfd poll = {pidfd_.get(), POLLIN, 0};
  if (::poll(&poll, 1, static_cast<int>(patience.count())) != 1) return false;
  Reap();
  return true;
}

bool AgentdProcess::ended_at_crash_point() const {
  return WIFEXITED(wait_status_) && WEXITSTATUS(wait_status_) == 137;
}

std::string AgentdProcess::Report() const {
  std::ifstream file(log_, std::ios::binary);
  std::string log((std::istreambuf_iterator<char>(file)), {});
  if (log.size() > kLogTail) log.erase(0, log.size() - kLogTail);
  return fmt::format("wait status {:#x}; its log ends with\n{}", wait_status_, log);
}

}  // namespace agentd::kill_test
