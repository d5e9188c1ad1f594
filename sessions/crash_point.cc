#include "sessions/crash_point.h"

#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <string>

#include "base/status.h"

namespace agentd::sessions::internal {
namespace {

constexpr std::string_view kNames[] = {
    "open_locked",      "open_epoch_raised", "open_database",    "sweep_before",   "sweep_after",
    "snapshot_objects", "values_intents",    "values_written",   "values_flushed", "batch_before",
    "batch_after",      "fork_before",       "fork_after",       "rewind_before",  "rewind_after",
    "delete_before",    "delete_after",      "delete_compacted", "evict_before",   "evict_after",
    "collect_written",  "collect_flushed",   "collect_compacted"};

struct Armed {
  std::mutex mutex;
  std::string name;  // guarded by mutex
  int remaining = 0;
};

Armed& TheArmed() {
  static Armed* armed = new Armed;  // never destroyed: threads may pass points at exit
  return *armed;
}

bool ArmFromEnvironment() {
  const char* spec = std::getenv("AGENTD_CRASH_POINT");
  if (spec == nullptr || *spec == '\0') return false;
  ArmCrashPoint(spec);
  return true;
}

}  // namespace

std::atomic<bool> crash_points_armed{false};
[[maybe_unused]] static const bool armed_at_start = ArmFromEnvironment();

void ArmCrashPoint(std::string_view spec) {
  Armed& armed = TheArmed();
  std::lock_guard lock(armed.mutex);
  const size_t colon = spec.find(':');
  armed.name = std::string(spec.substr(0, colon));
  armed.remaining =
      colon == std::string_view::npos ? 1 : std::atoi(std::string(spec.substr(colon + 1)).c_str());
  crash_points_armed.store(!armed.name.empty());
}

void PassCrashPoint(std::string_view name) {
  Armed& armed = TheArmed();
  std::lock_guard lock(armed.mutex);
  if (name == armed.name && --armed.remaining == 0) _exit(137);
}

std::span<const std::string_view> CrashPointNames() { return kNames; }

}  // namespace agentd::sessions::internal
