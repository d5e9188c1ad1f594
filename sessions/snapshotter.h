// One snapshot: looks at what may have changed in a workspace, and stores the tree as it is then.
#ifndef AGENTD_SESSIONS_SNAPSHOTTER_H_
#define AGENTD_SESSIONS_SNAPSHOTTER_H_

#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/directory_walk.h"
#include "sessions/file_objects.h"
#include "sessions/known_tree.h"

namespace agentd::sessions::internal {

class Snapshotter {
 public:
  // What it met.
  struct Counts {
    int64_t files_read = 0, special_files = 0;
  };

  // `known` says what to look at, and is made to say what was found.
  Snapshotter(FileObjects& objects, KnownTree& known) : writer_(objects), known_(known) {}

  // After an error everything is to be looked at again. FailedPrecondition: the tree is larger than
  // one may be; PermissionDenied: something in it cannot be read; Aborted: something in it was
  // another thing at each look. They name it.
  absl::StatusOr<WorkspaceSnapshot> Run(int root);
  const Counts& counts() const { return counts_; }

 private:
  // A directory that is being looked at.
  struct Place {
    KnownDirectory& known;
    int fd;
    const std::string& path;
    int depth;
    std::set<std::string, std::less<>> again;  // names yet to look at, or once more
    absl::Status error;                        // if there still are such in the end
    std::string PathOf(const std::string& name) const {
      return path.empty() ? name : path + "/" + name;
    }
  };
  struct File {
    std::string name;
    struct stat status;
    bool read = true;  // false: only to see that nobody can write to it
  };

  absl::Status RunPasses(int root);
  absl::Status Refresh(KnownDirectory& directory, int fd, const std::string& path, int depth);
  absl::StatusOr<std::set<std::string, std::less<>>> NamesToLookAt(KnownDirectory& directory,
                                                                   int fd, const std::string& path);
  absl::Status Look(Place& place, const std::string& name, std::vector<File>& files);
  void LookAtFile(Place& place, const std::string& name, const struct stat& status,
                  std::vector<File>& files);
  absl::Status LookAtLink(Place& place, const std::string& name);
  absl::Status LookAtDirectory(Place& place, const std::string& name, const struct stat& status);
  absl::Status OpenFiles(Place& place, std::vector<File> files);
  absl::Status ReadFile(Place& place, const File& file, int fd);
  bool Number(KnownEntry& known, int fd);
  static absl::Status LookAgain(Place& place, const std::string& name, const absl::Status& error);
  absl::Status Store(Place& place);

  static void SetEntry(KnownDirectory& directory, KnownEntry& known, DirectoryEntry entry);
  void SetRests(Place& place, const std::string& name, KnownEntry& known, bool rests,
                const struct stat& status);
  void Drop(KnownDirectory& directory, const std::string& name);
  int Watch(int fd, const struct stat& status);
  KnownDirectory* Attach(KnownDirectory& directory, const std::string& name, int watch);
  std::unique_ptr<KnownDirectory> Detach(KnownDirectory& directory);
  bool SuspectOtherNames();
  bool SuspectWhatLeft();
  void ForgetOrphans();

  FileObjects::Writer writer_;
  KnownTree& known_;
  Counts counts_;
  dev_t device_ = 0;  // the root's
  int proofs_left_ = 0;
  bool left_ = false;  // a directory has left the workspace
  // Directories that are no more where they were; perhaps another name of theirs comes yet.
  std::map<KnownDirectory*, std::unique_ptr<KnownDirectory>> orphans_;
  // Inodes (device, number) that were found to have several names.
  std::set<std::pair<uint64_t, uint64_t>> linked_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_SNAPSHOTTER_H_
