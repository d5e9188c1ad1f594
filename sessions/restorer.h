// Makes a directory equal to a stored tree: writes what differs, removes what is not in it.
#ifndef AGENTD_SESSIONS_RESTORER_H_
#define AGENTD_SESSIONS_RESTORER_H_

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/file_objects.h"
#include "sessions/known_tree.h"

namespace agentd::sessions::internal {

class Restorer {
 public:
  // `known` is of the directory `root`, with its notices taken: what it tells need not be read.
  Restorer(FileObjects& objects, const KnownTree& known, int root)
      : objects_(objects), known_(known), root_(root) {}

  // After an error the directory is in between.
  absl::Status Run(const TreeId& tree);
  int64_t files_read() const { return files_read_; }

 private:
  // Each gets what is known of the directory it works in, or null.
  absl::Status Directory(int fd, const Sha256Digest& id, const std::string& path, int depth,
                         const KnownDirectory* known);
  absl::Status Subdirectory(int fd, const DirectoryEntry& entry, const std::string& path, int depth,
                            const KnownDirectory* above);
  absl::Status Symlink(int fd, const DirectoryEntry& entry, const std::string& path);
  absl::Status File(int fd, const DirectoryEntry& entry, const std::string& path,
                    const KnownDirectory* known);
  absl::StatusOr<bool> IsSame(int fd, const DirectoryEntry& entry, const std::string& path,
                              const struct stat& status, const KnownEntry* known);
  std::optional<std::vector<Sha256Digest>> ChunksOf(int fd, const std::string& name,
                                                    const std::string& path,
                                                    const struct stat& status,
                                                    const KnownEntry* known);
  absl::Status WriteFile(int fd, const DirectoryEntry& entry, const std::string& path);
  absl::Status Fill(int file, const DirectoryEntry& entry, const std::string& path);

  FileObjects& objects_;
  const KnownTree& known_;
  const int root_;
  int64_t files_read_ = 0;
  int temporaries_ = 0;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_RESTORER_H_
