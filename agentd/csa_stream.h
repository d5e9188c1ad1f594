// Brings the CSA entries of restored sequences from where they are kept: at once when a step misses
// some, all others in the background. So a session's first token comes long before all of it is in
// memory.
#ifndef AGENTD_AGENTD_CSA_STREAM_H_
#define AGENTD_AGENTD_CSA_STREAM_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agentd/stored_state.h"
#include "model/engine.h"

namespace agentd::daemon {

// Of entries read ahead, all sequences together.
inline constexpr int64_t kCsaReadAheadBytes = int64_t{128} << 20;

class CsaReader;

// Of one sequence that was imported without its CSA entries. One thread at a time, the one that
// steps the sequence; Open'ed by a reader, which outlives it.
class CsaStream {
 public:
  ~CsaStream();
  CsaStream(const CsaStream&) = delete;
  CsaStream& operator=(const CsaStream&) = delete;

  // The sequence's CsaSource: waits for the store.
  absl::StatusOr<std::vector<std::string>> Fetch(std::span<const model::CsaPart> parts);
  // Hands over what was read ahead: one batch, if there is one, and more until the deadline. After
  // an error failure() may tell why.
  absl::Status ImportReady(model::Sequence& sequence,
                           std::chrono::steady_clock::time_point deadline);
  // Whether ImportReady has something to hand over.
  bool ready() const;
  // A step of the sequence has ended.
  void EndStep();
  // Whether the next step should wait for what is read ahead: the last one missed so much that
  // others like it would take longer than to read all the rest in order. Not for long after
  // anything has come.
  bool waits_for_rest(std::chrono::steady_clock::time_point now) const;
  // A step of `sequence` failed: looks whether it was because of what Fetch gave it.
  void Explain(model::Sequence& sequence, const absl::Status& status);
  const std::optional<StoredFailure>& failure() const { return failure_; }

  int64_t fetched_parts() const { return fetched_parts_; }
  int64_t fetched_bytes() const { return fetched_bytes_; }

 private:
  friend class CsaReader;
  struct Batch;
  struct Feed;
  CsaStream(CsaReader* reader, std::shared_ptr<Feed> feed);
  absl::Status Fail(int64_t block, absl::Status status, bool unfit);
  absl::Status ImportBatch(model::Sequence& sequence, const Batch& batch);
  // The first part that is refused fails the stream.
  absl::Status ImportOneByOne(model::Sequence& sequence, std::span<const model::CsaPart> parts,
                              std::span<const std::string> entries);

  CsaReader* const reader_;
  const std::shared_ptr<Feed> feed_;  // shared with the reader while it reads
  std::optional<StoredFailure> failure_;
  std::vector<model::CsaPart> last_fetch_;
  int64_t left_parts_ = 0;    // of the feed's, that neither a step nor the reader has brought
  int64_t missed_parts_ = 0;  // by the step under way
  bool misses_much_ = false;  // the last one did
  std::chrono::steady_clock::time_point last_news_;  // of a step's end or of parts
  int64_t fetched_parts_ = 0;
  int64_t fetched_bytes_ = 0;
};

// Threads that read ahead for all streams in turn, within a bound of memory, but not while a step
// waits for the disk.
class CsaReader {
 public:
  // `wake` is called on a thread of the reader's whenever a stream has something to import.
  explicit CsaReader(std::function<void()> wake, int64_t memory_bytes = kCsaReadAheadBytes);
  ~CsaReader();
  CsaReader(const CsaReader&) = delete;
  CsaReader& operator=(const CsaReader&) = delete;

  std::unique_ptr<CsaStream> Open(std::shared_ptr<CsaStore> store);

 private:
  friend class CsaStream;
  void Main();
  std::shared_ptr<CsaStream::Feed> NextFeed();
  void ReadBatch(CsaStream::Feed& feed, std::unique_lock<std::mutex>& lock);
  void Release(CsaStream::Feed& feed, int64_t bytes);
  void Close(const std::shared_ptr<CsaStream::Feed>& feed);
  // A step waits for what it misses; has `bytes` of it.
  void BeginFetch();
  void EndFetch(int64_t bytes);

  const std::function<void()> wake_;
  const int64_t memory_bytes_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_, as are all feeds.
  bool stop_ = false;
  int fetching_ = 0;                                   // steps that wait for what they miss
  std::chrono::steady_clock::time_point quiet_until_;  // nothing is read ahead before
  int64_t bytes_ = 0;                                  // read ahead, or being read
  std::list<std::shared_ptr<CsaStream::Feed>> feeds_;  // with parts left; the front is next
  std::vector<std::thread> threads_;                   // last: they use everything above
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_CSA_STREAM_H_
