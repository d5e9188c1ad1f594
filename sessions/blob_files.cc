#include "sessions/blob_files.h"

#include <string_view>

namespace agentd::sessions::internal {
namespace {

constexpr std::string_view kBlobSuffix = ".blob";

class DirectBlobReads final : public rocksdb::FileSystemWrapper {
 public:
  using FileSystemWrapper::FileSystemWrapper;
  const char* Name() const override { return "DirectBlobReads"; }

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
    return target()->NewRandomAccessFile(name, options, file, debug);
  }
};

}  // namespace

std::shared_ptr<rocksdb::FileSystem> WithDirectBlobReads(
    const std::shared_ptr<rocksdb::FileSystem>& base) {
  return std::make_shared<DirectBlobReads>(base);
}

}  // namespace agentd::sessions::internal
