// A folder of the user's, into which a session's changes are carried.
//
// Nothing that lies in the folder leads out of it: every step is openat with O_NOFOLLOW from an
// open parent. Each file is written whole under another name, synced, and then takes its name.
// Whatever moment the process is killed at, carrying over once more ends what was begun.
#ifndef AGENTD_CTL_FOLDER_H_
#define AGENTD_CTL_FOLDER_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "agentd/ctl/api.h"
#include "base/unique_fd.h"

namespace agentd::ctl {

// Changes as DiffWorkspace with DIFF_DETAIL_HISTORY gives them, in its order.
using Changes = std::vector<api::WorkspaceChange>;

// A path of the folder that is neither as the session found it, nor as it had it since, nor as it
// has it now.
struct Conflict {
  const api::WorkspaceChange* change = nullptr;
  std::string why;         // "was changed in the folder"
  bool can_force = false;  // a file or link in the way; never a directory
};

struct Comparison {
  std::vector<const api::WorkspaceChange*> to_do;  // in order
  std::vector<Conflict> conflicts;
  size_t done = 0;  // are in the folder already
};

// Sends the contents that a file has after the change, piece by piece.
using ContentsReader = std::function<absl::Status(
    const api::WorkspaceChange& change, const std::function<absl::Status(std::string_view)>& sink)>;

// One thread's. One process at a time carries into a folder.
class Folder {
 public:
  // FailedPrecondition: another process carries something into it.
  static absl::StatusOr<std::unique_ptr<Folder>> Open(const std::string& path);

  // Writes nothing. `changes` outlive the answer.
  absl::StatusOr<Comparison> Compare(const Changes& changes);

  // Makes `to_do` so: of the last Compare, in the order of the changes, with conflicts that can be
  // forced if `force`; `told` is called after each,
  // with what is to be said of it or an empty text. On an error those before it are made, and the
  // one it names is as it was. Aborted: it changed since the comparison. DataLoss: the contents
  // that came are not those that the change names.
  absl::Status Apply(
      const std::vector<const api::WorkspaceChange*>& to_do, bool force,
      const ContentsReader& contents,
      const std::function<void(const api::WorkspaceChange&, const std::string&)>& told);

 private:
  struct State;    // what the folder has under a path
  struct Verdict;  // on a change, from that
  struct Place {   // an entry's directory and name in it
    UniqueFd directory;
    std::string name;
  };

  Folder(std::string path, UniqueFd root) : path_(std::move(path)), root_(std::move(root)) {}
  absl::StatusOr<State> StateOf(const api::WorkspaceChange& change) const;
  Verdict Judge(const api::WorkspaceChange& change, const State& state) const;
  Verdict JudgeBlocked(const api::WorkspaceChange& change, const std::string& blocked_by) const;
  std::string ForeignEntry(const std::string& directory) const;
  absl::StatusOr<UniqueFd> OpenDirectory(std::string_view path, std::string* blocked_by) const;

  absl::StatusOr<std::string> Make(const api::WorkspaceChange& change, bool force,
                                   const ContentsReader& contents);
  absl::StatusOr<Place> OpenPlace(const std::string& path);
  absl::StatusOr<std::string> Remove(const Place& place, const api::WorkspaceChange& change);
  absl::Status MakeDirectory(const Place& place, const api::WorkspaceChange& change,
                             const State& state);
  absl::Status WriteFile(const Place& place, const api::WorkspaceChange& change, const State& state,
                         const ContentsReader& contents);
  absl::Status WriteLink(const Place& place, const api::WorkspaceChange& change,
                         const State& state);
  absl::Status Settle();

  const std::string path_;
  const UniqueFd root_;  // locked
  std::map<std::string, const api::WorkspaceChange*, std::less<>> by_path_;
  std::map<std::string, uint32_t> modes_;  // of directories, set when all is in them
  std::set<std::string> touched_;          // directories whose entries are to be synced
};

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_FOLDER_H_
