// Content-addressed pieces of workspace trees: chunks of files and directories, keyed by SHA-256.
//
// A new object is written without the log, behind an intent record; it is durable once the commit
// that names its tree has flushed it. Until then the tree is pinned, so that a sweep leaves it
// alone.
#ifndef AGENTD_SESSIONS_FILE_OBJECTS_H_
#define AGENTD_SESSIONS_FILE_OBJECTS_H_

#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/database.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {

class FileObjects {
 public:
  explicit FileObjects(Database& database) : database_(database) {}

  // Collects the new objects of one snapshot; not thread-safe.
  class Writer {
   public:
    explicit Writer(FileObjects& objects) : objects_(objects) {}
    absl::StatusOr<Sha256Digest> PutChunk(std::string_view data);
    absl::StatusOr<Sha256Digest> PutDirectory(const std::vector<DirectoryEntry>& entries);
    // Writes what is left and pins `tree` until a commit names it.
    absl::Status Finish(const TreeId& tree);

   private:
    absl::Status Put(RecordKind kind, std::string key, std::string_view payload);
    absl::Status WritePending();

    FileObjects& objects_;
    std::vector<WriteEntry> intents_, values_;
    std::set<std::string> seen_;
    size_t pending_bytes_ = 0;
    std::vector<std::string> intent_keys_;
  };

  absl::StatusOr<std::string> ReadChunk(const Sha256Digest& id) const;
  absl::StatusOr<std::vector<DirectoryEntry>> ReadDirectory(const Sha256Digest& id) const;
  // NotFound: no such tree. DataLoss: its root is damaged.
  absl::Status CheckTree(const TreeId& tree) const;

  // Whether a commit that names `tree` has to flush first.
  bool IsPinned(const TreeId& tree) const;
  // The intents that a durable commit naming `tree` deletes.
  std::vector<std::string> IntentsOf(const TreeId& tree) const;
  void Unpin(const TreeId& tree);
  std::vector<TreeId> Pinned() const;

  // Adds the keys of everything reachable from `tree` to `keys`. An object that is missing or
  // damaged has no children.
  absl::Status Mark(const TreeId& tree, std::set<std::string>& keys) const;

  // Snapshots and restores hold it shared, a sweep exclusively.
  std::shared_mutex& sweep_mutex() { return sweep_mutex_; }

 private:
  Database& database_;
  std::shared_mutex sweep_mutex_;
  mutable std::mutex mutex_;
  std::map<TreeId, std::vector<std::string>>
      pinned_;  // guarded by mutex_; intent keys of each tree
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_FILE_OBJECTS_H_
