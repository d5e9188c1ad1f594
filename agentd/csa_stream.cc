#include "agentd/csa_stream.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "sessions/crash_point.h"

namespace agentd::daemon {
namespace {

using model::CsaPart;

// Read at once: long enough for several threads of the store, short enough for others' turns.
constexpr int64_t kBatchBytes = int64_t{16} << 20;
// Batches on their way together: of one alone the disk has little to do while its last reads end.
constexpr int kReaders = 3;
// After a step missed so much in one layer it will in the next one too, soon.
constexpr int64_t kMuchBytes = int64_t{1} << 20;
constexpr std::chrono::milliseconds kQuiet{3};
// A step that misses this share of what is still away waits for it: parts read here and there come
// at a third of the speed of all in order, so a few such steps take as long (resume_bench).
constexpr int64_t kMuchOfTheRest = 16;
// But not longer after the last ones came: the disk, or other streams' turns, may be slow.
constexpr std::chrono::milliseconds kPatience{100};

}  // namespace

struct CsaStream::Batch {
  std::vector<CsaPart> parts;
  std::vector<std::string> entries;
  int64_t bytes = 0;
  std::optional<std::pair<int64_t, absl::Status>> failed;  // a block, and what it met
};

// What the reader knows of a stream. Guarded by the reader's mutex, except `store`.
struct CsaStream::Feed {
  explicit Feed(std::shared_ptr<CsaStore> csa_store)
      : store(std::move(csa_store)),
        parts(store->blocks() * store->csa_layers()),
        fetched(static_cast<size_t>(parts)) {}

  const std::shared_ptr<CsaStore> store;  // shared with failures
  const int64_t parts;                    // block by block
  std::vector<bool> fetched;              // a step had it already
  int64_t next = 0;                       // the next part to read
  int64_t part_bytes = 0;                 // 0: not known yet
  int64_t bytes = 0;                      // in `ready`, or being read
  std::deque<Batch> ready;
  bool closed = false;
};

CsaStream::CsaStream(CsaReader* reader, std::shared_ptr<Feed> feed)
    : reader_(reader), feed_(std::move(feed)), left_parts_(feed_->parts) {}

CsaStream::~CsaStream() { reader_->Close(feed_); }

absl::Status CsaStream::Fail(int64_t block, absl::Status status, bool unfit) {
  failure_ = StoredFailure{block, std::move(status), unfit, feed_->store};
  return failure_->status;
}

absl::StatusOr<std::vector<std::string>> CsaStream::Fetch(std::span<const CsaPart> parts) {
  last_fetch_.assign(parts.begin(), parts.end());
  reader_->BeginFetch();
  std::vector<absl::StatusOr<std::string>> results = feed_->store->Read(parts);
  int64_t bytes = 0;
  for (const auto& result : results) bytes += result.ok() ? int64_t(result->size()) : 0;
  reader_->EndFetch(bytes);
  std::vector<std::string> entries;
  entries.reserve(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i].ok()) return Fail(parts[i].block, results[i].status(), /*unfit=*/false);
    fetched_bytes_ += static_cast<int64_t>(results[i]->size());
    entries.push_back(std::move(results[i]).value());
  }
  fetched_parts_ += static_cast<int64_t>(parts.size());
  missed_parts_ += static_cast<int64_t>(parts.size());
  left_parts_ -= static_cast<int64_t>(parts.size());
  std::lock_guard lock(reader_->mutex_);
  for (const CsaPart& part : parts) {
    feed_->fetched[static_cast<size_t>(part.block * feed_->store->csa_layers() + part.csa_layer)] =
        true;
  }
  return entries;
}

absl::Status CsaStream::ImportReady(model::Sequence& sequence,
                                    std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    Batch batch;
    {
      std::lock_guard lock(reader_->mutex_);
      if (feed_->ready.empty()) return absl::OkStatus();
      batch = std::move(feed_->ready.front());
      feed_->ready.pop_front();
    }
    absl::Status status = ImportBatch(sequence, batch);
    const int64_t bytes = batch.bytes;
    batch = {};  // freed before others are read in its place
    {
      std::lock_guard lock(reader_->mutex_);
      reader_->Release(*feed_, bytes);
    }
    RETURN_IF_ERROR(status);
    if (std::chrono::steady_clock::now() >= deadline) return absl::OkStatus();
  }
}

void CsaStream::EndStep() {
  misses_much_ = missed_parts_ > 0 && missed_parts_ * kMuchOfTheRest > left_parts_;
  missed_parts_ = 0;
  last_news_ = std::chrono::steady_clock::now();
}

bool CsaStream::waits_for_rest(std::chrono::steady_clock::time_point now) const {
  return misses_much_ && now - last_news_ < kPatience;
}

bool CsaStream::ready() const {
  std::lock_guard lock(reader_->mutex_);
  return !feed_->ready.empty();
}

absl::Status CsaStream::ImportBatch(model::Sequence& sequence, const Batch& batch) {
  if (batch.failed) return Fail(batch.failed->first, batch.failed->second, /*unfit=*/false);
  absl::Status status = sequence.ImportCsa(batch.parts, batch.entries);
  left_parts_ -= static_cast<int64_t>(batch.parts.size());
  last_news_ = std::chrono::steady_clock::now();
  if (status.ok()) return status;
  RETURN_IF_ERROR(ImportOneByOne(sequence, batch.parts, batch.entries));
  return status;
}

absl::Status CsaStream::ImportOneByOne(model::Sequence& sequence, std::span<const CsaPart> parts,
                                       std::span<const std::string> entries) {
  for (size_t i = 0; i < parts.size(); ++i) {
    absl::Status status = sequence.ImportCsa(parts.subspan(i, 1), entries.subspan(i, 1));
    if (IsRefusal(status)) {
      return Fail(parts[i].block, std::move(status), /*unfit=*/true);
    }
    if (!status.ok()) return status;  // no fault of theirs
  }
  return absl::OkStatus();
}

void CsaStream::Explain(model::Sequence& sequence, const absl::Status& status) {
  if (failure_ || !IsRefusal(status) || last_fetch_.empty()) return;
  const std::vector<CsaPart> parts = last_fetch_;
  absl::StatusOr<std::vector<std::string>> entries = Fetch(parts);
  if (entries.ok()) (void)ImportOneByOne(sequence, parts, *entries);
}

CsaReader::CsaReader(std::function<void()> wake, int64_t memory_bytes)
    : wake_(std::move(wake)), memory_bytes_(memory_bytes) {
  for (int i = 0; i < kReaders; ++i) threads_.emplace_back([this] { Main(); });
}

CsaReader::~CsaReader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

std::unique_ptr<CsaStream> CsaReader::Open(std::shared_ptr<CsaStore> store) {
  auto feed = std::make_shared<CsaStream::Feed>(std::move(store));
  std::lock_guard lock(mutex_);
  if (feed->parts > 0) feeds_.push_back(feed);
  changed_.notify_all();
  return std::unique_ptr<CsaStream>(new CsaStream(this, std::move(feed)));
}

void CsaReader::Release(CsaStream::Feed& feed, int64_t bytes) {
  feed.bytes -= bytes;
  bytes_ -= bytes;
  changed_.notify_all();
}

void CsaReader::BeginFetch() {
  std::lock_guard lock(mutex_);
  ++fetching_;
}

void CsaReader::EndFetch(int64_t bytes) {
  std::lock_guard lock(mutex_);
  --fetching_;
  if (bytes >= kMuchBytes) quiet_until_ = std::chrono::steady_clock::now() + kQuiet;
  changed_.notify_all();
}

// What is being read for it is let go when it comes.
void CsaReader::Close(const std::shared_ptr<CsaStream::Feed>& feed) {
  std::deque<CsaStream::Batch> unused;  // freed without the lock
  std::lock_guard lock(mutex_);
  feed->closed = true;
  feeds_.remove(feed);
  unused.swap(feed->ready);
  for (const auto& batch : unused) Release(*feed, batch.bytes);
}

// The next stream whose share of the memory has room; null: none. A stream that is alone has all.
std::shared_ptr<CsaStream::Feed> CsaReader::NextFeed() {
  const int64_t share = memory_bytes_ / std::max<int64_t>(static_cast<int64_t>(feeds_.size()), 1);
  if (bytes_ > 0 && bytes_ + kBatchBytes > memory_bytes_) return nullptr;
  for (auto it = feeds_.begin(); it != feeds_.end(); ++it) {
    if ((*it)->bytes > 0 && (*it)->bytes + kBatchBytes > share) continue;
    std::shared_ptr<CsaStream::Feed> feed = *it;
    feeds_.splice(feeds_.end(), feeds_, it);
    return feed;
  }
  return nullptr;
}

void CsaReader::Main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (stop_) return;
    if (fetching_ == 0 && std::chrono::steady_clock::now() < quiet_until_) {
      changed_.wait_until(lock, quiet_until_);
      continue;
    }
    const std::shared_ptr<CsaStream::Feed> feed = fetching_ == 0 ? NextFeed() : nullptr;
    if (feed == nullptr) {
      changed_.wait(lock);
      continue;
    }
    ReadBatch(*feed, lock);
    if (feed->next == feed->parts) feeds_.remove(feed);
    if (feed->ready.empty()) continue;
    lock.unlock();
    wake_();
    lock.lock();
  }
}

// Not locked while it reads.
void CsaReader::ReadBatch(CsaStream::Feed& feed, std::unique_lock<std::mutex>& lock) {
  const int layers = feed.store->csa_layers();
  // How large parts are is seen in the first block.
  const size_t limit =
      feed.part_bytes == 0
          ? static_cast<size_t>(layers)
          : static_cast<size_t>(std::max<int64_t>(kBatchBytes / feed.part_bytes, 1));
  CsaStream::Batch batch;
  for (; feed.next < feed.parts && batch.parts.size() < limit; ++feed.next) {
    if (feed.fetched[static_cast<size_t>(feed.next)]) continue;
    batch.parts.push_back({feed.next / layers, static_cast<int>(feed.next % layers)});
  }
  if (batch.parts.empty()) return;
  const int64_t expected = static_cast<int64_t>(batch.parts.size()) * feed.part_bytes;
  feed.bytes += expected;
  bytes_ += expected;
  lock.unlock();
  std::vector<absl::StatusOr<std::string>> results = feed.store->Read(batch.parts);
  sessions::internal::CrashPoint("agentd.csa_read");
  for (size_t i = 0; i < results.size() && !batch.failed; ++i) {
    if (!results[i].ok()) {
      batch.failed.emplace(batch.parts[i].block, results[i].status());
      break;
    }
    batch.bytes += static_cast<int64_t>(results[i]->size());
    batch.entries.push_back(std::move(results[i]).value());
  }
  lock.lock();
  Release(feed, expected - (feed.closed ? 0 : batch.bytes));
  if (feed.closed) return;
  if (batch.failed) feed.next = feed.parts;  // nobody will want more
  feed.part_bytes = std::max<int64_t>(
      batch.bytes / std::max<int64_t>(static_cast<int64_t>(batch.entries.size()), 1), 1);
  feed.ready.push_back(std::move(batch));
}

}  // namespace agentd::daemon
