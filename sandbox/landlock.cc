#include "sandbox/landlock.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "base/unique_fd.h"

namespace agentd::sandbox {
namespace {

// Newer than Debian 12's headers.
constexpr uint64_t kTruncate = uint64_t{1} << 14;            // ABI 3
constexpr uint64_t kIoctlDevice = uint64_t{1} << 15;         // ABI 5
constexpr uint64_t kScopeAbstractSocket = uint64_t{1} << 0;  // ABI 6
constexpr uint64_t kScopeSignal = uint64_t{1} << 1;

struct RulesetAttributes {
  uint64_t handled_files;
  uint64_t handled_network;  // ABI 4
  uint64_t scoped;           // ABI 6
};

constexpr uint64_t kReadAccess =
    LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
constexpr uint64_t kDeviceAccess =
    kReadAccess | LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate | kIoctlDevice;
constexpr uint64_t kWriteAccess =
    kReadAccess | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
    LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
    LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_SYM |
    LANDLOCK_ACCESS_FS_REFER | kTruncate;
constexpr uint64_t kAllAccess =
    kWriteAccess | kIoctlDevice | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK;

uint64_t KnownAccess(int abi) {
  uint64_t known = kAllAccess;
  if (abi < 3) known &= ~kTruncate;
  if (abi < 5) known &= ~kIoctlDevice;
  return known;
}

uint64_t Allowed(FileAccess access) {
  switch (access) {
    case FileAccess::kRead:
      return kReadAccess;
    case FileAccess::kDevice:
      return kDeviceAccess;
    case FileAccess::kWrite:
      return kWriteAccess;
  }
  return 0;
}

bool AddRule(int ruleset, uint64_t known, const FileRule& rule) {
  const UniqueFd path(open(rule.path, O_PATH | O_CLOEXEC));
  if (!path.valid()) return false;
  landlock_path_beneath_attr beneath{};
  beneath.allowed_access = Allowed(rule.access) & known;
  beneath.parent_fd = path.get();
  return syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) == 0;
}

}  // namespace

int LandlockAbi() {
  const long abi =
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return abi > 0 ? static_cast<int>(abi) : 0;
}

bool RestrictByLandlock(int abi, std::span<const FileRule> rules) {
  const uint64_t known = KnownAccess(abi);
  RulesetAttributes attributes{known, 0, 0};
  size_t size = sizeof(attributes.handled_files);
  if (abi >= kScopedLandlockAbi) {
    attributes.scoped = kScopeAbstractSocket | kScopeSignal;
    size = sizeof(attributes);
  }
  const UniqueFd ruleset(
      static_cast<int>(syscall(SYS_landlock_create_ruleset, &attributes, size, 0)));
  if (!ruleset.valid()) return false;
  for (const FileRule& rule : rules)
    if (!AddRule(ruleset.get(), known, rule)) return false;
  return syscall(SYS_landlock_restrict_self, ruleset.get(), 0) == 0;
}

}  // namespace agentd::sandbox
