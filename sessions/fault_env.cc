#include "sessions/fault_env.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/unique_fd.h"

namespace agentd::sessions::testing {
namespace {

using rocksdb::IOStatus;

class FaultFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultFile(std::unique_ptr<rocksdb::FSWritableFile>&& file, std::string name, FaultFileSystem& fs)
      : FSWritableFileOwnerWrapper(std::move(file)), name_(std::move(name)), fs_(fs) {}

  IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                  rocksdb::IODebugContext* debug) override {
    size_t fits = 0;
    const IOStatus refused = fs_.BeforeWrite(name_, data.size(), &fits);
    if (!refused.ok() && fits == 0) return refused;
    const rocksdb::Slice written(data.data(), refused.ok() ? data.size() : fits);
    const IOStatus status = target()->Append(written, options, debug);
    if (status.ok()) Grow(written.size());
    return refused.ok() ? status : refused;
  }
  IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                  const rocksdb::DataVerificationInfo&, rocksdb::IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
    if (IOStatus status = fs_.BeforeSync(name_); !status.ok()) return status;
    const IOStatus status = target()->Sync(options, debug);
    if (status.ok()) fs_.NoteSynced(name_);
    return status;
  }
  IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
    return Sync(options, debug);
  }
  // Promises nothing, so it keeps nothing.
  IOStatus RangeSync(uint64_t, uint64_t, const rocksdb::IOOptions&,
                     rocksdb::IODebugContext*) override {
    return IOStatus::OK();
  }
  IOStatus Truncate(uint64_t size, const rocksdb::IOOptions& options,
                    rocksdb::IODebugContext* debug) override {
    size_t fits = 0;
    if (IOStatus status = fs_.BeforeWrite(name_, 0, &fits); !status.ok()) return status;
    size_bytes_ = size;
    fs_.NoteSize(name_, size_bytes_);
    return target()->Truncate(size, options, debug);
  }
  bool use_direct_io() const override { return false; }

 private:
  void Grow(size_t bytes) {
    size_bytes_ += bytes;
    fs_.NoteSize(name_, size_bytes_);
  }

  const std::string name_;
  FaultFileSystem& fs_;
  uint64_t size_bytes_ = 0;
};

class FaultSequentialFile final : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  FaultSequentialFile(std::unique_ptr<rocksdb::FSSequentialFile>&& file, std::string name,
                      FaultFileSystem& fs)
      : FSSequentialFileOwnerWrapper(std::move(file)), name_(std::move(name)), fs_(fs) {}

  IOStatus Read(size_t size, const rocksdb::IOOptions& options, rocksdb::Slice* result,
                char* scratch, rocksdb::IODebugContext* debug) override {
    if (IOStatus status = fs_.BeforeRead(name_); !status.ok()) return status;
    return FSSequentialFileOwnerWrapper::Read(size, options, result, scratch, debug);
  }

 private:
  const std::string name_;
  FaultFileSystem& fs_;
};

class FaultRandomAccessFile final : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  FaultRandomAccessFile(std::unique_ptr<rocksdb::FSRandomAccessFile>&& file, std::string name,
                        FaultFileSystem& fs)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), name_(std::move(name)), fs_(fs) {}

  IOStatus Read(uint64_t offset, size_t size, const rocksdb::IOOptions& options,
                rocksdb::Slice* result, char* scratch,
                rocksdb::IODebugContext* debug) const override {
    if (IOStatus status = fs_.BeforeRead(name_); !status.ok()) return status;
    return FSRandomAccessFileOwnerWrapper::Read(offset, size, options, result, scratch, debug);
  }
  IOStatus MultiRead(rocksdb::FSReadRequest* requests, size_t count,
                     const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
    if (IOStatus status = fs_.BeforeRead(name_); !status.ok()) return status;
    return FSRandomAccessFileOwnerWrapper::MultiRead(requests, count, options, debug);
  }
  // Ahead of a read that may be refused.
  IOStatus Prefetch(uint64_t, size_t, const rocksdb::IOOptions&,
                    rocksdb::IODebugContext*) override {
    return IOStatus::NotSupported("no prefetch");
  }

 private:
  const std::string name_;
  FaultFileSystem& fs_;
};

class FaultDirectory final : public rocksdb::FSDirectoryWrapper {
 public:
  FaultDirectory(std::unique_ptr<rocksdb::FSDirectory>&& directory, std::string name,
                 FaultFileSystem& fs)
      : FSDirectoryWrapper(std::move(directory)), name_(std::move(name)), fs_(fs) {}

  IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
    return FsyncWithDirOptions(options, debug, {});
  }
  IOStatus FsyncWithDirOptions(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug,
                               const rocksdb::DirFsyncOptions& directory_options) override {
    if (IOStatus status = fs_.BeforeSync(name_); !status.ok()) return status;
    const IOStatus status =
        FSDirectoryWrapper::FsyncWithDirOptions(options, debug, directory_options);
    if (status.ok()) fs_.NoteDirectorySynced(name_);
    return status;
  }

 private:
  const std::string name_;
  FaultFileSystem& fs_;
};

class NoLock final : public rocksdb::FileLock {};

std::string Normal(const std::string& name) {
  std::string normal = std::filesystem::path(name).lexically_normal().string();
  if (normal.size() > 1 && normal.back() == '/') normal.pop_back();
  return normal;
}

}  // namespace

void FaultFileSystem::SetRules(std::vector<FaultRule> rules, uint64_t seed) {
  std::lock_guard lock(mutex_);
  rules_ = std::move(rules);
  random_.seed(seed);
}

void FaultFileSystem::LimitSpace(int64_t bytes) {
  std::lock_guard lock(mutex_);
  space_bytes_ = bytes;
}

bool FaultFileSystem::Hits(FileOperation operation, const std::string& name) {
  for (const FaultRule& rule : rules_) {
    if (rule.operation != operation || name.find(rule.name_part) == std::string::npos) continue;
    if (std::generate_canonical<double, 53>(random_) >= rule.chance) continue;
    return true;
  }
  return false;
}

IOStatus FaultFileSystem::Fail(IOStatus status) {
  faults_.push_back(status.ToString());
  return status;
}

std::vector<std::string> FaultFileSystem::TakeFaults() {
  std::lock_guard lock(mutex_);
  return std::exchange(faults_, {});
}

IOStatus FaultFileSystem::BeforeRead(const std::string& name) {
  std::lock_guard lock(mutex_);
  if (Hits(FileOperation::kRead, name))
    return Fail(IOStatus::IOError("injected: EIO on read", name));
  return IOStatus::OK();
}

IOStatus FaultFileSystem::BeforeWrite(const std::string& name, size_t bytes, size_t* fits) {
  *fits = 0;
  if (stopped_) return IOStatus::IOError("the machine has stopped");
  if (no_space) return IOStatus::NoSpace("injected: no space left on device");
  std::lock_guard lock(mutex_);
  if (Hits(FileOperation::kWrite, name)) {
    *fits = bytes == 0 ? 0 : random_() % bytes;
    return Fail(IOStatus::IOError("injected: EIO on write", name));
  }
  if (space_bytes_ < 0) return IOStatus::OK();
  if (static_cast<int64_t>(bytes) <= space_bytes_) {
    space_bytes_ -= static_cast<int64_t>(bytes);
    return IOStatus::OK();
  }
  *fits = static_cast<size_t>(space_bytes_);
  space_bytes_ = 0;
  return Fail(IOStatus::NoSpace("injected: no space left on device", name));
}

IOStatus FaultFileSystem::BeforeSync(const std::string& name) {
  if (stopped_) return IOStatus::IOError("the machine has stopped");
  ++syncs;
  if (fail_syncs) return IOStatus::IOError("injected: fsync failed");
  std::lock_guard lock(mutex_);
  if (Hits(FileOperation::kSync, name))
    return Fail(IOStatus::IOError("injected: EIO on sync", name));
  return IOStatus::OK();
}

void FaultFileSystem::NoteSize(const std::string& name, uint64_t size_bytes) {
  std::lock_guard lock(mutex_);
  files_[name].size_bytes = size_bytes;
}

void FaultFileSystem::NoteSynced(const std::string& name) {
  std::lock_guard lock(mutex_);
  files_[name].synced_bytes = files_[name].size_bytes;
}

void FaultFileSystem::NoteDirectorySynced(const std::string& name) {
  std::lock_guard lock(mutex_);
  for (auto& [path, file] : files_) {
    if (std::filesystem::path(path).parent_path() == name) file.entry_synced = true;
  }
}

IOStatus FaultFileSystem::NewSequentialFile(const std::string& name,
                                            const rocksdb::FileOptions& options,
                                            std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                            rocksdb::IODebugContext* debug) {
  const IOStatus status = FileSystemWrapper::NewSequentialFile(name, options, file, debug);
  if (status.ok())
    *file = std::make_unique<FaultSequentialFile>(std::move(*file), Normal(name), *this);
  return status;
}

IOStatus FaultFileSystem::NewRandomAccessFile(const std::string& name,
                                              const rocksdb::FileOptions& options,
                                              std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                              rocksdb::IODebugContext* debug) {
  const IOStatus status = FileSystemWrapper::NewRandomAccessFile(name, options, file, debug);
  if (status.ok())
    *file = std::make_unique<FaultRandomAccessFile>(std::move(*file), Normal(name), *this);
  return status;
}

IOStatus FaultFileSystem::NewWritableFile(const std::string& name,
                                          const rocksdb::FileOptions& options,
                                          std::unique_ptr<rocksdb::FSWritableFile>* file,
                                          rocksdb::IODebugContext* debug) {
  // An empty file usually still finds room on a full disk.
  if (stopped_) return IOStatus::IOError("the machine has stopped");
  const IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, debug);
  if (!status.ok()) return status;
  {
    std::lock_guard lock(mutex_);
    files_[Normal(name)] = File{};
  }
  *file = std::make_unique<FaultFile>(std::move(*file), Normal(name), *this);
  return status;
}

IOStatus FaultFileSystem::NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                       std::unique_ptr<rocksdb::FSDirectory>* directory,
                                       rocksdb::IODebugContext* debug) {
  const IOStatus status = FileSystemWrapper::NewDirectory(name, options, directory, debug);
  if (status.ok())
    *directory = std::make_unique<FaultDirectory>(std::move(*directory), Normal(name), *this);
  return status;
}

IOStatus FaultFileSystem::RenameFile(const std::string& from, const std::string& to,
                                     const rocksdb::IOOptions& options,
                                     rocksdb::IODebugContext* debug) {
  size_t fits = 0;
  if (IOStatus status = BeforeWrite(Normal(from), 0, &fits); !status.ok()) return status;
  const IOStatus status = FileSystemWrapper::RenameFile(from, to, options, debug);
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  const auto found = files_.find(Normal(from));
  if (found != files_.end()) {
    File file = found->second;
    // A lost rename would bring the old file back; RocksDB syncs before it relies on one, so keep
    // the new name.
    file.entry_synced = true;
    files_.erase(found);
    files_[Normal(to)] = file;
  }
  return status;
}

IOStatus FaultFileSystem::DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                                     rocksdb::IODebugContext* debug) {
  if (stopped_) return IOStatus::IOError("the machine has stopped");
  std::lock_guard lock(mutex_);
  files_.erase(Normal(name));
  return FileSystemWrapper::DeleteFile(name, options, debug);
}

IOStatus FaultFileSystem::LockFile(const std::string& name, const rocksdb::IOOptions& options,
                                   rocksdb::FileLock** lock, rocksdb::IODebugContext* debug) {
  if (!ignore_locks) return FileSystemWrapper::LockFile(name, options, lock, debug);
  *lock = new NoLock;
  return IOStatus::OK();
}

IOStatus FaultFileSystem::UnlockFile(rocksdb::FileLock* lock, const rocksdb::IOOptions& options,
                                     rocksdb::IODebugContext* debug) {
  if (!ignore_locks) return FileSystemWrapper::UnlockFile(lock, options, debug);
  delete lock;
  return IOStatus::OK();
}

namespace {

// Some of the sectors between `synced` and `size` are kept, the rest reads as zeros: the file
// system wrote its size down before the data came.
void TearSectors(const std::string& name, uint64_t synced, uint64_t size, std::mt19937_64& random) {
  const UniqueFd fd(::open(name.c_str(), O_WRONLY | O_CLOEXEC));
  uint64_t kept = synced;  // end of the last sector that reached the disk
  for (uint64_t begin = synced; begin < size;) {
    const uint64_t end = std::min(size, (begin / kSectorBytes + 1) * kSectorBytes);
    if (random() % 2 == 0) {
      kept = end;
    } else {
      const std::string zeros(end - begin, '\0');
      (void)!::pwrite(fd.get(), zeros.data(), zeros.size(), static_cast<off_t>(begin));
    }
    begin = end;
  }
  (void)!::ftruncate(fd.get(), static_cast<off_t>(kept));
}

}  // namespace

void FaultFileSystem::Forget(std::mt19937_64& random, Tear tear) {
  std::lock_guard lock(mutex_);
  for (const auto& [name, file] : files_) {
    std::error_code error;
    if (!file.entry_synced && file.synced_bytes == 0) {
      std::filesystem::remove(name, error);
      continue;
    }
    if (!std::filesystem::exists(name, error)) continue;
    if (tear == Tear::kSectors) {
      TearSectors(name, file.synced_bytes, file.size_bytes, random);
      continue;
    }
    const uint64_t kept = file.synced_bytes + random() % (file.size_bytes - file.synced_bytes + 1);
    (void)!::truncate(name.c_str(), static_cast<off_t>(kept));
  }
  files_.clear();
  rules_.clear();
  space_bytes_ = -1;
  stopped_ = false;
}

}  // namespace agentd::sessions::testing
