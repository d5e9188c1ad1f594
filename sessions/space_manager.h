// Keeps the store's directory within its budget and takes off the disk what is dead: one thread
// that looks every few seconds, and does nothing while nothing is written.
//
// Over the budget: first what is dead already is collected where that is cheap, then the least
// useful KV is evicted (eviction.h) and collected (collector.h), until the directory, measured, is
// a few per cent below it. After a deletion: every file with a dead value is collected, so that no
// byte of it is left. A record says so until it is done, also across a crash.
#ifndef AGENTD_SESSIONS_SPACE_MANAGER_H_
#define AGENTD_SESSIONS_SPACE_MANAGER_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "sessions/collector.h"
#include "sessions/database.h"
#include "sessions/eviction.h"
#include "sessions/values_in_use.h"

namespace agentd::sessions::internal {

struct SpaceCounters {
  int64_t evicted_blocks = 0, evicted_anchors = 0, evicted_bytes = 0;
  int64_t collected_files = 0;
  bool erasing = false;  // something deleted may still have bytes on the disk
  std::string error;     // of the last pass; empty: none
};

// Thread-safe.
class SpaceManager {
 public:
  // budget_bytes 0: no limit.
  SpaceManager(Database& database, ValuesInUse& values, int64_t budget_bytes)
      : database_(database), values_(values), budget_(budget_bytes), collector_(database, values) {}
  // Ends the thread, in the middle of its work if need be.
  ~SpaceManager();
  // `erase`: a deletion was not erased before the store was closed.
  void Start(bool erase);

  // What a Delete adds to its batch, between BeginDelete and EndDelete.
  WriteEntry BeginDelete();
  // `whole`: it could not take its events off the disk itself.
  void EndDelete(bool deleted, bool whole);
  // Runs a pass that begins now, and returns its status: then no byte of what was deleted, evicted
  // or replaced before is in any file, and the directory is within the budget if eviction can do
  // that. Unavailable: a reader holds on to an old state; again later.
  absl::Status Reclaim();

  int64_t budget() const { return budget_; }
  SpaceCounters counters() const;
  const Collector& collector() const { return collector_; }
  // While the result or a copy of it lives, none of them is evicted. It may outlive us.
  std::shared_ptr<const void> Pin(std::vector<Sha256Digest> values);
  RestoreLog& restores() { return restores_; }

 private:
  void Loop();
  absl::Status Tidy();
  absl::Status Enforce();
  absl::Status Erase(bool whole);
  absl::Status EraseDeadValues();
  absl::Status AwaitDeletedFiles(std::vector<std::filesystem::path> files);
  absl::Status FlushAll();
  absl::Status CompactKeys();
  struct DeadFile {
    Column column;
    BlobFile file;
    double dead_share() const {
      return static_cast<double>(file.dead_bytes) / static_cast<double>(file.bytes);
    }
  };
  std::vector<DeadFile> DeadFiles(double least_share) const;
  absl::Status Collect(const std::vector<DeadFile>& files, int64_t wanted_bytes);

  // Constant after construction.
  Database& database_;
  ValuesInUse& values_;
  const int64_t budget_;

  // Synchronise themselves.
  Collector collector_;
  const std::shared_ptr<ValuesInUse> readers_ = std::make_shared<ValuesInUse>();  // and the pins'
  RestoreLog restores_;
  std::atomic<bool> stop_ = false;

  int64_t written_before_ = -1;  // the thread's: database_.written_bytes() at its last pass

  mutable std::mutex mutex_;
  std::condition_variable wake_, pass_done_;
  // Guarded by mutex_.
  bool stopping_ = false;
  bool erase_wanted_ = false;
  bool erase_whole_ = false;
  std::chrono::steady_clock::time_point erase_due_;
  uint64_t delete_steps_ = 0;  // begun and ended ones
  int deletes_begun_ = 0;      // and not ended
  // Of Erase; somebody waits for the one of this number.
  uint64_t passes_begun_ = 0, passes_done_ = 0, pass_wanted_ = 0;
  absl::Status last_erase_;
  SpaceCounters counters_;

  std::thread thread_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_SPACE_MANAGER_H_
