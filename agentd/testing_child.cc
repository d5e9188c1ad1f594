#include "agentd/testing_child.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include "agentd/testing_daemon.h"
#include "base/status.h"

extern char** environ;

namespace agentd::daemon {

pid_t StartSelf(const std::string& name, const std::map<std::string, std::string>& environment) {
  TestModel();  // made once, by the parent
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.push_back(*variable);
  for (const auto& [key, value] : environment) variables.push_back(key + "=" + value);
  std::vector<char*> pointers;
  for (std::string& variable : variables) pointers.push_back(variable.data());
  pointers.push_back(nullptr);
  std::string self = std::filesystem::read_symlink("/proc/self/exe");
  std::string filter = "--gtest_filter=" + name;
  std::string also = "--gtest_also_run_disabled_tests";
  std::string brief = "--gtest_brief=1";
  char* arguments[] = {self.data(), filter.data(), also.data(), brief.data(), nullptr};
  pid_t pid = -1;
  AGENTD_CHECK(posix_spawn(&pid, self.c_str(), nullptr, nullptr, arguments, pointers.data()) == 0);
  return pid;
}

int Wait(pid_t child) {
  int status = 0;
  AGENTD_CHECK(::waitpid(child, &status, 0) == child);
  return status;
}

}  // namespace agentd::daemon
