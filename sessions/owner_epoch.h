// Which process owns a store: a number in the file EPOCH that each owner raises, and everybody who
// writes looks at.
#ifndef AGENTD_SESSIONS_OWNER_EPOCH_H_
#define AGENTD_SESSIONS_OWNER_EPOCH_H_

#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace agentd::sessions::internal {

// Thread-safe after Raise.
class OwnerEpoch {
 public:
  // From now on we are the owner: the number is on the disk. DataLoss: what it was cannot be read.
  absl::Status Raise(const std::filesystem::path& directory);
  // Whether nobody has raised it since. An error: that cannot be told.
  absl::StatusOr<bool> IsOurs() const;

 private:
  std::filesystem::path path_;
  std::string bytes_;      // what it holds while it is ours
  UniqueFd file_;          // which holds it
  struct stat stat_ = {};  // of that, as it was made
  bool is_local_ = false;  // no other machine changes it unseen
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_OWNER_EPOCH_H_
