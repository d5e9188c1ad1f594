// Brings the index parts of a restore point, block by block: a thread reads a few batches ahead of
// who imports them. So reading and importing overlap, and the memory that parts are read into is
// used again and again: fresh memory costs more than reading into it.
#ifndef AGENTD_AGENTD_INDEX_STREAM_H_
#define AGENTD_AGENTD_INDEX_STREAM_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::daemon {

class IndexStream {
 public:
  // The index parts of blocks [first_block, first_block + count), one result each. On a thread of
  // the stream's.
  using Read =
      std::function<std::vector<absl::StatusOr<std::string>>(int64_t first_block, int64_t count)>;

  // Of blocks [0, blocks). Begins to read.
  IndexStream(int64_t blocks, Read read);
  // Waits for what is being read.
  ~IndexStream();
  IndexStream(const IndexStream&) = delete;
  IndexStream& operator=(const IndexStream&) = delete;

  // Parts that are there, of the blocks after those that it gave before; none: not yet. After all
  // before it, the error of the first block that cannot be read; again and again from then on.
  absl::StatusOr<std::vector<std::string>> Take();
  // Whether Take would give parts or an error.
  bool ready() const;
  // Whether Take has given an error.
  bool failed() const { return failed_; }
  // Of the parts that Take has given.
  int64_t bytes() const { return bytes_; }

 private:
  void Main();
  // Reads the next batch; `lock` holds mutex_, not meanwhile.
  void ReadBatch(std::unique_lock<std::mutex>& lock);

  const int64_t blocks_;
  const Read read_;
  bool failed_ = false;  // the taker's, as the next
  int64_t bytes_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool stop_ = false;
  int64_t next_ = 0;        // the next block to read
  int64_t part_bytes_ = 0;  // 0: not known yet
  struct Batch {
    std::vector<std::string> parts;
    int64_t bytes = 0;
  };
  std::deque<Batch> ready_;
  int64_t ready_bytes_ = 0;
  absl::Status error_;  // after what is ready

  std::thread thread_;  // last: it uses everything above. None: Take reads
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_INDEX_STREAM_H_
