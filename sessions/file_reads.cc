#include "sessions/file_reads.h"

#include <algorithm>
#include <atomic>
#include <string_view>
#include <utility>

namespace agentd::sessions::internal {
namespace {

constexpr std::string_view kBlobSuffix = ".blob", kTableSuffix = ".sst";

class TableFile final : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  using FSRandomAccessFileOwnerWrapper::FSRandomAccessFileOwnerWrapper;

  rocksdb::IOStatus Read(uint64_t offset, size_t bytes, const rocksdb::IOOptions& options,
                         rocksdb::Slice* result, char* scratch,
                         rocksdb::IODebugContext* debug) const override {
    if (begun_.exchange(offset, std::memory_order_relaxed) == offset + bytes) {
      ReadAhead(offset, options, debug);
    } else {
      run_.store(0, std::memory_order_relaxed);
    }
    return FSRandomAccessFileOwnerWrapper::Read(offset, bytes, options, result, scratch, debug);
  }

 private:
  static constexpr int kRun = 4;  // reads one before the other, until more are believed to come
  static constexpr uint64_t kAheadBytes = 256 << 10;

  // Threads that read the same file at once make each other's runs shorter, no more.
  void ReadAhead(uint64_t offset, const rocksdb::IOOptions& options,
                 rocksdb::IODebugContext* debug) const {
    const int run = run_.fetch_add(1, std::memory_order_relaxed) + 1;
    if (run < kRun) return;
    const uint64_t end = run == kRun ? offset : ahead_.load(std::memory_order_relaxed);
    if (end > offset || offset - end > kAheadBytes / 2) return;  // far from there yet
    const uint64_t begin = end - std::min(end, kAheadBytes);
    ahead_.store(begin, std::memory_order_relaxed);
    if (begin == end) return;
    // A hint: where it cannot be given, nothing is lost.
    target()->Prefetch(begin, end - begin, options, debug).PermitUncheckedError();
  }

  mutable std::atomic<uint64_t> begun_ = 0;  // where the last read did
  mutable std::atomic<uint64_t> ahead_ = 0;  // what lies before it has not been read ahead
  mutable std::atomic<int> run_ = 0;
};

class StoreReads final : public rocksdb::FileSystemWrapper {
 public:
  using FileSystemWrapper::FileSystemWrapper;
  const char* Name() const override { return "StoreReads"; }

  rocksdb::IOStatus NewRandomAccessFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                        rocksdb::IODebugContext* debug) override {
    if (name.ends_with(kBlobSuffix)) {
      rocksdb::FileOptions direct = options;
      direct.use_direct_reads = true;
      direct.use_mmap_reads = false;
      if (target()->NewRandomAccessFile(name, direct, file, debug).ok())
        return rocksdb::IOStatus::OK();
    }
    rocksdb::IOStatus status = target()->NewRandomAccessFile(name, options, file, debug);
    if (status.ok() && name.ends_with(kTableSuffix))
      *file = std::make_unique<TableFile>(std::move(*file));
    return status;
  }
};

}  // namespace

std::shared_ptr<rocksdb::FileSystem> WithStoreReads(
    const std::shared_ptr<rocksdb::FileSystem>& base) {
  return std::make_shared<StoreReads>(base);
}

}  // namespace agentd::sessions::internal
