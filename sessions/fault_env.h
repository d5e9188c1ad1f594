// A file system for tests that forgets what was not synced, fails fsyncs, runs out of space, or
// ignores RocksDB's lock.
#ifndef AGENTD_SESSIONS_FAULT_ENV_H_
#define AGENTD_SESSIONS_FAULT_ENV_H_

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>

namespace agentd::sessions::testing {

class FaultFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  FaultFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FaultFileSystem"; }

  std::atomic<bool> fail_syncs = false;
  std::atomic<bool> no_space = false;
  std::atomic<bool> ignore_locks = false;
  std::atomic<int64_t> syncs = 0;

  // From now on nothing reaches the disk, as if the machine had stopped.
  void Stop() { stopped_ = true; }
  // After the store is closed: each file keeps what was synced and a random part of the rest; files
  // whose directory was not synced since they were made vanish.
  void Forget(std::mt19937_64& random);

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to,
                               const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus LockFile(const std::string& name, const rocksdb::IOOptions& options,
                             rocksdb::FileLock** lock, rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus UnlockFile(rocksdb::FileLock* lock, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;

  // For the file and directory wrappers.
  rocksdb::IOStatus BeforeWrite();
  rocksdb::IOStatus BeforeSync();
  void NoteSize(const std::string& name, uint64_t size_bytes);
  void NoteSynced(const std::string& name);
  void NoteDirectorySynced(const std::string& name);

 private:
  struct File {
    uint64_t size_bytes = 0, synced_bytes = 0;
    bool entry_synced = false;
  };

  std::atomic<bool> stopped_ = false;
  std::mutex mutex_;
  std::map<std::string, File> files_;  // guarded by mutex_
};

// The file system with an Env around it.
class FaultEnv {
 public:
  FaultEnv() : fs_(std::make_shared<FaultFileSystem>()), env_(rocksdb::NewCompositeEnv(fs_)) {}
  FaultFileSystem& fs() { return *fs_; }
  rocksdb::Env* env() { return env_.get(); }

 private:
  std::shared_ptr<FaultFileSystem> fs_;  // shared with the Env, as RocksDB wants it
  std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace agentd::sessions::testing

#endif  // AGENTD_SESSIONS_FAULT_ENV_H_
