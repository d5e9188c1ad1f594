// A file system for tests that breaks every promise that a disk can break: it forgets what was not
// synced, tears writes, fails reads, writes and syncs by chance and by name, runs out of space, and
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
#include <vector>

namespace agentd::sessions::testing {

enum class FileOperation { kRead, kWrite, kSync };

// EIO of some operations.
struct FaultRule {
  FileOperation operation = FileOperation::kWrite;
  std::string name_part;  // of files whose path contains it; empty: of all
  double chance = 1;      // per operation
};

// What a stop of the machine leaves of the bytes that were not synced.
enum class Tear {
  kPrefix,   // a prefix
  kSectors,  // any of their sectors, zeros for the rest
};

// What a disk writes as a whole.
inline constexpr uint64_t kSectorBytes = 512;

class FaultFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  FaultFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FaultFileSystem"; }

  std::atomic<bool> fail_syncs = false;
  std::atomic<bool> no_space = false;
  std::atomic<bool> ignore_locks = false;
  std::atomic<int64_t> syncs = 0;

  // Each rule is asked in turn; a write that fails leaves a random prefix of its bytes.
  void SetRules(std::vector<FaultRule> rules, uint64_t seed);
  // So many bytes more fit; a write that does not leaves what did. Negative: no limit.
  void LimitSpace(int64_t bytes);

  // What failed since the last call, and in which file: for messages.
  std::vector<std::string> TakeFaults();

  // From now on nothing reaches the disk, as if the machine had stopped.
  void Stop() { stopped_ = true; }
  // After the store is closed: each file keeps what was synced and of the rest what `tear` says;
  // files whose directory was not synced since they were made vanish. Rules and limits end.
  void Forget(std::mt19937_64& random, Tear tear = Tear::kPrefix);

  rocksdb::IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                      rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewRandomAccessFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                        rocksdb::IODebugContext* debug) override;
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
  rocksdb::IOStatus BeforeRead(const std::string& name);
  // `fits`: how many of `bytes` are still written when it fails.
  rocksdb::IOStatus BeforeWrite(const std::string& name, size_t bytes, size_t* fits);
  rocksdb::IOStatus BeforeSync(const std::string& name);
  void NoteSize(const std::string& name, uint64_t size_bytes);
  void NoteSynced(const std::string& name);
  void NoteDirectorySynced(const std::string& name);

 private:
  struct File {
    uint64_t size_bytes = 0, synced_bytes = 0;
    bool entry_synced = false;
  };

  // The caller holds mutex_.
  bool Hits(FileOperation operation, const std::string& name);
  rocksdb::IOStatus Fail(rocksdb::IOStatus status);

  std::atomic<bool> stopped_ = false;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::map<std::string, File> files_;
  std::vector<FaultRule> rules_;
  std::mt19937_64 random_;
  int64_t space_bytes_ = -1;
  std::vector<std::string> faults_;
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
