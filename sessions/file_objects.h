// Content-addressed pieces of workspace trees: chunks of files and directories, by SHA-256 (in an
// encrypted store by a keyed hash of that).
//
// A new object is written without the log, behind an intent record; it is durable once the commit
// that names its tree has flushed it. Whoever is on the way to such a commit holds the tree, so
// that a sweep leaves it alone.
#ifndef AGENTD_SESSIONS_FILE_OBJECTS_H_
#define AGENTD_SESSIONS_FILE_OBJECTS_H_

#include <functional>
#include <map>
#include <memory>
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
  // On a tree: counted, given back when the last copy goes, at any time and by any thread.
  using Hold = std::shared_ptr<const void>;

  explicit FileObjects(Database& database) : database_(database) {}

  // Collects the new objects of one snapshot; not thread-safe.
  class Writer {
   public:
    explicit Writer(FileObjects& objects) : objects_(objects) {}
    absl::Status PutChunk(const Sha256Digest& id, std::string_view data);
    absl::StatusOr<Sha256Digest> PutDirectory(std::string_view payload);
    // Writes what is left, for no tree.
    absl::Status Flush();
    // The same, and holds the tree.
    absl::StatusOr<Hold> Finish(const TreeId& tree);

   private:
    absl::Status Put(RecordKind kind, std::string key, std::string_view payload);

    FileObjects& objects_;
    std::vector<WriteEntry> intents_, values_;
    std::set<std::string> seen_;
    size_t pending_bytes_ = 0;
    std::vector<std::string> intent_keys_;
  };

  // Where an object is stored.
  std::string ChunkKeyOf(const Sha256Digest& id) const;
  std::string DirectoryKeyOf(const Sha256Digest& id) const;
  absl::StatusOr<std::string> ReadChunk(const Sha256Digest& id) const;
  absl::StatusOr<std::vector<DirectoryEntry>> ReadDirectory(const Sha256Digest& id) const;
  // NotFound: no such tree. DataLoss: its root is damaged.
  absl::Status CheckTree(const TreeId& tree) const;

  Hold HoldTree(const TreeId& tree);
  std::vector<TreeId> Held() const;
  // The intents that a durable commit naming `tree` deletes: of those who hold it now.
  std::vector<std::string> IntentsOf(const TreeId& tree) const;

  // Adds the keys of everything reachable from `tree` to `keys`. An object that is missing or
  // damaged has no children.
  absl::Status Mark(const TreeId& tree, std::set<std::string>& keys) const;

  // As Store::VisitTree.
  absl::Status Visit(
      const TreeId& tree, std::set<std::string>& seen,
      const std::function<absl::Status(bool directory, std::string_view bytes)>& visit) const;

  // Snapshots and restores hold it shared, a sweep exclusively.
  std::shared_mutex& sweep_mutex() { return sweep_mutex_; }

 private:
  struct HeldTree {
    int holds = 0;
    std::vector<std::string> intents;  // keys
  };
  struct HeldTrees {
    std::mutex mutex;
    std::map<TreeId, HeldTree> trees;  // guarded by mutex
  };

  Database& database_;
  std::shared_mutex sweep_mutex_;
  // Shared with the holds, which may outlive the store.
  const std::shared_ptr<HeldTrees> held_ = std::make_shared<HeldTrees>();
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_FILE_OBJECTS_H_
