#include "sandbox/cgroup.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>
#include <vector>

#include "base/status.h"

namespace agentd::sandbox {
namespace {

std::string WholeFile(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Where cgroup v2 is mounted, or "".
std::string MountPoint(std::string_view mountinfo) {
  std::istringstream lines{std::string(mountinfo)};
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" - cgroup2 ") == std::string::npos) continue;
    std::istringstream fields(line);
    std::string field;
    for (int i = 0; i < 5; ++i) fields >> field;
    return field;
  }
  return "";
}

}  // namespace

std::string DescribeCgroup() {
  return DescribeCgroup(WholeFile("/proc/self/mountinfo"), WholeFile("/proc/self/cgroup"));
}

std::string DescribeCgroup(std::string_view mountinfo, std::string_view own) {
  const std::string mounted = MountPoint(mountinfo);
  const size_t at = own.starts_with("0::") ? 0 : own.find("\n0::");
  if (mounted.empty() || at == std::string_view::npos)
    return "no cgroup v2 is mounted here: boot with systemd.unified_cgroup_hierarchy=1";
  std::string_view path = own.substr(own.find("0::", at) + 3);
  path = path.substr(0, path.find('\n'));
  const std::string directory = mounted + (path == "/" ? "" : std::string(path));
  std::istringstream words(WholeFile(directory + "/cgroup.controllers"));
  std::string offered;
  bool memory = false;
  bool pids = false;
  for (std::string word; words >> word;) {
    offered += (offered.empty() ? "" : ", ") + word;
    memory = memory || word == "memory";
    pids = pids || word == "pids";
  }
  if (!memory || !pids)
    return fmt::format(
        "the cgroup {} has the controllers [{}], not memory and pids: cgroup v1 may hold them "
        "(systemd.unified_cgroup_hierarchy=1), or they are not delegated to it",
        directory, offered);
  if (access((directory + "/cgroup.subtree_control").c_str(), W_OK) != 0)
    return fmt::format(
        "the cgroup {} is not this user's to divide: run the daemon with Delegate=yes", directory);
  return fmt::format("the cgroup {} could, but is not used yet", directory);
}

}  // namespace agentd::sandbox
