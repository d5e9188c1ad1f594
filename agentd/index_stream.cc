#include "agentd/index_stream.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace agentd::daemon {
namespace {

// Read at once: long enough for all of the store's threads.
constexpr int64_t kIndexBatchBytes = int64_t{16} << 20;
// Read ahead of who imports.
constexpr int64_t kIndexAheadBytes = int64_t{48} << 20;
// Of the first batch, which shows how large parts are.
constexpr int64_t kFirstBlocks = 64;

}  // namespace

IndexStream::IndexStream(int64_t blocks, Read read) : blocks_(blocks), read_(std::move(read)) {
  if (blocks == 0) return;
  try {
    thread_ = std::thread([this] { Main(); });
  } catch (const std::system_error&) {
    // The system refuses one: slower, that is all.
  }
}

IndexStream::~IndexStream() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_one();
  }
  thread_.join();
}

absl::StatusOr<std::vector<std::string>> IndexStream::Take() {
  std::unique_lock lock(mutex_);
  if (!thread_.joinable() && ready_.empty() && error_.ok() && next_ < blocks_) ReadBatch(lock);
  if (ready_.empty()) {
    failed_ = !error_.ok();
    if (failed_) return error_;
    return std::vector<std::string>();
  }
  Batch batch = std::move(ready_.front());
  ready_.pop_front();
  ready_bytes_ -= batch.bytes;
  bytes_ += batch.bytes;
  changed_.notify_one();
  return std::move(batch.parts);
}

bool IndexStream::ready() const {
  std::lock_guard lock(mutex_);
  return !ready_.empty() || !error_.ok() || (!thread_.joinable() && next_ < blocks_);
}

void IndexStream::Main() {
  std::unique_lock lock(mutex_);
  while (next_ < blocks_ && error_.ok()) {
    changed_.wait(lock, [this] {
      return stop_ || ready_.empty() || ready_bytes_ + kIndexBatchBytes <= kIndexAheadBytes;
    });
    if (stop_) return;
    ReadBatch(lock);
  }
}

void IndexStream::ReadBatch(std::unique_lock<std::mutex>& lock) {
  const int64_t first = next_;
  const int64_t wanted =
      part_bytes_ == 0 ? kFirstBlocks : std::max<int64_t>(kIndexBatchBytes / part_bytes_, 1);
  const int64_t count = std::min(wanted, blocks_ - first);
  lock.unlock();
  std::vector<absl::StatusOr<std::string>> results = read_(first, count);
  Batch batch;
  absl::Status error;
  for (absl::StatusOr<std::string>& result : results) {
    if (!result.ok()) {
      error = result.status();
      break;
    }
    batch.bytes += static_cast<int64_t>(result->size());
    batch.parts.push_back(std::move(result).value());
  }
  results.clear();
  lock.lock();
  next_ += count;
  part_bytes_ = std::max<int64_t>(batch.bytes / count, 1);
  ready_bytes_ += batch.bytes;
  if (!batch.parts.empty()) ready_.push_back(std::move(batch));
  error_ = std::move(error);
}

}  // namespace agentd::daemon
