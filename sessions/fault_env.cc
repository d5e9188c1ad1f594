#include "sessions/fault_env.h"

#include <unistd.h>

#include <filesystem>

namespace agentd::sessions::testing {
namespace {

using rocksdb::IOStatus;

class FaultFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultFile(std::unique_ptr<rocksdb::FSWritableFile>&& file, std::string name, FaultFileSystem& fs)
      : FSWritableFileOwnerWrapper(std::move(file)), name_(std::move(name)), fs_(fs) {}

  IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                  rocksdb::IODebugContext* debug) override {
    if (IOStatus status = fs_.BeforeWrite(); !status.ok()) return status;
    const IOStatus status = target()->Append(data, options, debug);
    if (status.ok()) Grow(data.size());
    return status;
  }
  IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                  const rocksdb::DataVerificationInfo&, rocksdb::IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
    if (IOStatus status = fs_.BeforeSync(); !status.ok()) return status;
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
    if (IOStatus status = fs_.BeforeWrite(); !status.ok()) return status;
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
    if (IOStatus status = fs_.BeforeSync(); !status.ok()) return status;
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

IOStatus FaultFileSystem::BeforeWrite() {
  if (stopped_) return IOStatus::IOError("the machine has stopped");
  if (no_space) return IOStatus::NoSpace("injected: no space left on device");
  return IOStatus::OK();
}

IOStatus FaultFileSystem::BeforeSync() {
  if (stopped_) return IOStatus::IOError("the machine has stopped");
  ++syncs;
  if (fail_syncs) return IOStatus::IOError("injected: fsync failed");
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
  if (IOStatus status = BeforeWrite(); !status.ok()) return status;
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

void FaultFileSystem::Forget(std::mt19937_64& random) {
  std::lock_guard lock(mutex_);
  for (const auto& [name, file] : files_) {
    // RocksDB's own log file is never synced and never read.
    if (std::filesystem::path(name).filename().string().starts_with("LOG")) continue;
    std::error_code error;
    if (!file.entry_synced && file.synced_bytes == 0) {
      std::filesystem::remove(name, error);
      continue;
    }
    const uint64_t kept = file.synced_bytes + random() % (file.size_bytes - file.synced_bytes + 1);
    if (std::filesystem::exists(name, error))
      (void)!::truncate(name.c_str(), static_cast<off_t>(kept));
  }
  files_.clear();
  stopped_ = false;
}

}  // namespace agentd::sessions::testing
