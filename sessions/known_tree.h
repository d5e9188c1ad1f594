// What is remembered of a workspace between two snapshots: its entries with their contents' ids,
// and what has to be looked at again.
//
// Not thread-safe.
#ifndef AGENTD_SESSIONS_KNOWN_TREE_H_
#define AGENTD_SESSIONS_KNOWN_TREE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "sessions/change_feed.h"
#include "sessions/file_contents.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {

struct KnownDirectory;

struct KnownEntry {
  DirectoryEntry entry;  // as in the tree; its chunks are stored
  // ---- kFile
  uint64_t allocated_bytes = 0;  // when it was looked at, for this of its names
  FileStamp stamp;               // when it was read
  bool believed = false;         // while its stamp is this one, its contents are those
  bool rests = false;            // it does not change without a notice
  uint64_t id = 0;      // its number in the feed; not 0 while it rests and the feed tells files
  bool linked = false;  // has another name
  // ---- kDirectory
  std::unique_ptr<KnownDirectory> directory;
};

struct KnownDirectory {
  KnownDirectory* above = nullptr;  // null: the root, or out of the tree
  std::string name;
  int watch = -1;       // of the feed; -1: none
  bool listed = false;  // all of its names but `suspects` are as in `entries`
  bool open = false;    // being looked at now
  std::map<std::string, KnownEntry, std::less<>> entries;
  // Names to look at; of a directory that has any, or is not listed, also in the one above.
  std::set<std::string, std::less<>> suspects;
  std::optional<Sha256Digest> id;  // of its record, stored
  uint64_t entries_below = 0, bytes_below = 0;
  uint64_t allocated_below = 0;  // as of the last snapshot
};

// Every directory, those below after it; `visit` may add and remove none.
template <typename Visit>  // void(KnownDirectory&)
void ForEachDirectory(KnownDirectory& directory, const Visit& visit) {
  visit(directory);
  for (auto& [name, known] : directory.entries)
    if (known.directory != nullptr) ForEachDirectory(*known.directory, visit);
}

// Puts a name on the list of its directory, and that on the list of the one above.
void Suspect(KnownDirectory& directory, const std::string& name);
// So that all of it is listed and looked at. With `believe_notices` a file rests on if its stamp is
// believed and still the same: then nothing has happened to it under any name.
void SuspectAll(KnownDirectory& directory, bool believe_notices);

// A workspace's root with the feed that it hangs on.
struct KnownTree {
  KnownDirectory root;
  std::unique_ptr<ChangeFeed> feed;                   // null: everything is walked each time
  std::unordered_map<int, KnownDirectory*> by_watch;  // of the feed
  std::unordered_set<uint64_t> rested;  // the numbers of all that rest, and of some that did
  int snapshots_to_feed = 0;            // without a feed: until one is tried again
  int snapshots_to_walk = 0;            // with one: until all is looked at all the same

  // Ends the feed; everything known is to be looked at.
  void DropFeed();
  // Makes suspects of what has changed. False: that is not known, so of everything.
  bool TakeNotices();
  // Makes suspects of files that rested when they got another name: what is written under that is
  // noticed under that alone.
  void SuspectNamed(const std::unordered_set<uint64_t>& named);
  // Of a subtree that is no more in the tree.
  void Unwatch(KnownDirectory& directory);
  // What is in these objects (keys in `files`, by `key_of`) is not stored any more.
  void Forget(const std::set<std::string>& keys,
              const std::function<std::string(const Sha256Digest& id, bool directory)>& key_of);
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_KNOWN_TREE_H_
