// Folders of the user's that sessions work in, instead of in a workspace of their own.
//
// Which session works where is a file for each in DATA/places, beside the store: what is made of a
// backup or a bundle lays no claim to the folder of the original, and goes on in a copy. While a
// daemon lives it holds a lock (flock) on each folder, which keeps the daemon of another data
// directory out, and `agentctl apply`.
#ifndef AGENTD_AGENTD_PLACES_H_
#define AGENTD_AGENTD_PLACES_H_

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace agentd::daemon {

// Thread-safe.
class Places {
 public:
  // Makes the directory if it is missing, and reads what is claimed.
  static absl::StatusOr<std::unique_ptr<Places>> Open(const std::filesystem::path& directory);

  // `folder`, a canonical path, is the session's from here on, over restarts too; and locked.
  // FailedPrecondition: another session works in it, around it or below it, or Lock's.
  absl::Status Claim(const std::string& session_id, const std::filesystem::path& folder);
  // It is nobody's any more; the folder itself stays as it is.
  absl::Status Release(const std::string& session_id);
  // Where the session works; nullopt: in a workspace of its own.
  std::optional<std::filesystem::path> Of(const std::string& session_id) const;
  // That the folder is there and locked for us. FailedPrecondition names it, what is wrong, and the
  // mend.
  absl::Status Lock(const std::string& session_id);
  std::vector<std::string> sessions() const;

 private:
  struct Place {
    std::filesystem::path folder;
    UniqueFd lock;  // of the folder; invalid: not taken yet
  };
  explicit Places(std::filesystem::path directory) : directory_(std::move(directory)) {}
  static absl::Status Lock(const std::string& session_id, Place& place);

  const std::filesystem::path directory_;
  mutable std::mutex mutex_;
  std::map<std::string, Place> places_;  // by session; guarded by mutex_
};

// What the daemon's configuration and its own files say about where sessions may work.
struct PlaceRules {
  bool allowed = true;
  std::vector<std::string> roots;  // only in or below these; none: anywhere
  // Folders of the daemon's that a session must neither hold nor lie in: its data, its programs.
  std::vector<std::filesystem::path> kept_apart;
};

// The canonical path of `folder` if a session may work there: a directory of this user's, neither
// `/` nor a home directory nor around one, and with nothing in it that no snapshot keeps (sockets,
// devices, fifos). FailedPrecondition and InvalidArgument name the field import_directory.
absl::StatusOr<std::filesystem::path> CheckPlace(const std::string& folder,
                                                 const PlaceRules& rules);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_PLACES_H_
