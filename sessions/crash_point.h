// Named places where a test can end the process as SIGKILL would, always compiled in: with
// AGENTD_CRASH_POINT=name[:count] in the environment, the count-th passage (default 1) of that name
// calls _exit(137). Without it, one relaxed load.
#ifndef AGENTD_SESSIONS_CRASH_POINT_H_
#define AGENTD_SESSIONS_CRASH_POINT_H_

#include <atomic>
#include <span>
#include <string_view>

namespace agentd::sessions::internal {

extern std::atomic<bool> crash_points_armed;
void PassCrashPoint(std::string_view name);

// Arms `spec` ("name" or "name:count") from now on; empty disarms. The environment is read once at
// program start.
void ArmCrashPoint(std::string_view spec);

// Every name that the store passes, in the order of a life: open, commit with values, fork, rewind,
// delete.
std::span<const std::string_view> CrashPointNames();

inline void CrashPoint(std::string_view name) {
  if (crash_points_armed.load(std::memory_order_relaxed)) [[unlikely]] {
    PassCrashPoint(name);
  }
}

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_CRASH_POINT_H_
