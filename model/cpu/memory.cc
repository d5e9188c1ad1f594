#include "model/cpu/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <limits>

#include "base/status.h"

namespace agentd::model {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// The sum of MemAvailable and SwapFree.
int64_t SystemBytes() {
  std::FILE* file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) return kUnknown;
  int64_t total = 0;
  bool known = false;
  char line[256];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    long long kib = 0;
    if (std::sscanf(line, "MemAvailable: %lld kB", &kib) == 1)
      known = true;
    else if (std::sscanf(line, "SwapFree: %lld kB", &kib) != 1)
      continue;
    total += int64_t{kib} * 1024;
  }
  std::fclose(file);
  return known ? total : kUnknown;
}

// What the process may still map.
int64_t AddressSpaceBytes() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnknown;
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return kUnknown;
  long long pages = 0;
  const bool read = std::fscanf(file, "%lld", &pages) == 1;
  std::fclose(file);
  return read ? int64_t(limit.rlim_cur) - int64_t{pages} * ::sysconf(_SC_PAGESIZE) : kUnknown;
}

}  // namespace

absl::Status CheckMemory(const std::string& what, int64_t bytes) {
  const int64_t system = SystemBytes();
  if (bytes > system) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "{} need {:.1f} MB of memory, this machine has {:.1f} MB left", what,
                 double(bytes) / 1e6, double(system) / 1e6);
  }
  const int64_t space = AddressSpaceBytes();
  if (bytes > space) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "{} need {:.1f} MB of memory, this process's limit leaves {:.1f} MB: raise it "
                 "(ulimit -v)",
                 what, double(bytes) / 1e6, double(space) / 1e6);
  }
  return absl::OkStatus();
}

}  // namespace agentd::model
