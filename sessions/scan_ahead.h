// A walk over records whose reading goes on while they are looked at.
#ifndef AGENTD_SESSIONS_SCAN_AHEAD_H_
#define AGENTD_SESSIONS_SCAN_AHEAD_H_

#include <rocksdb/iterator.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace agentd::sessions::internal {

// From where an iterator stands backwards, as long as keys begin with `prefix`: a thread reads,
// decompresses and decrypts, and the caller decodes. One thread uses it.
class ScanAhead {
 public:
  // `iterator` is not to be touched while this lives.
  ScanAhead(rocksdb::Iterator& iterator, std::string prefix);
  // Ends the reading, wherever it is.
  ~ScanAhead();
  ScanAhead(const ScanAhead&) = delete;
  ScanAhead& operator=(const ScanAhead&) = delete;

  // False at the end, of which the iterator's status tells why once this is gone. The record is
  // there until the next call.
  bool Next(std::string_view& key, std::string_view& value);

 private:
  struct Chunk {
    std::string bytes;                               // keys and values, one after another
    std::vector<std::pair<size_t, size_t>> records;  // sizes of both
  };

  void Read();
  bool ReadChunk(Chunk& chunk);

  rocksdb::Iterator& iterator_;  // the reading thread's
  const std::string prefix_;
  // The caller's.
  Chunk current_;
  size_t record_ = 0, offset_ = 0;  // the next one in current_

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<Chunk> read_;
  bool ended_ = false;  // by the reading thread
  bool stop_ = false;

  std::thread thread_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_SCAN_AHEAD_H_
