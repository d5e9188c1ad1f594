// What the two halves of Folder share: folder.cc compares, folder_write.cc writes.
#ifndef AGENTD_CTL_FOLDER_INTERNAL_H_
#define AGENTD_CTL_FOLDER_INTERNAL_H_

#include <sys/stat.h>

#include <string>

#include "agentd/ctl/changes.h"
#include "agentd/ctl/folder.h"

namespace agentd::ctl {

// What a write goes to before it takes its name. One name, so that the next run takes over what a
// kill left.
inline constexpr char kTemporary[] = ".agentd-apply-unfinished";

struct Folder::State {
  bool exists = false;
  std::string blocked_by;     // a part of the path that is there and no directory
  struct stat status = {};    // exists
  api::WorkspaceEntry entry;  // exists; contents only where the size is one that may be meant
};

struct Folder::Verdict {
  enum class Kind { kToDo, kDone, kConflict } kind = Kind::kToDo;
  std::string why;
  bool can_force = false;
};

// The session changed the mode too, so that it is one of what must be as it was.
bool ModeMatters(const api::WorkspaceChange& change);
// "src" of "src/main.cc", "" of "main.cc".
std::string ParentOf(const std::string& path);
std::string NameIn(const std::string& path);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_FOLDER_INTERNAL_H_
