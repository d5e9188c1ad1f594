#include "tests/bench/cold_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tests/bench/figures.h"
#ifdef AGENTD_HAS_CUDA
#include "model/cuda/device.h"
#endif

namespace agentd::bench {
namespace {

constexpr size_t kChunk = 1 << 20;
constexpr int kThreads = 4;
constexpr size_t kAlignment = 4096;  // of direct reads

// Where a thread reads to.
class Target {
 public:
  static absl::StatusOr<Target> Make(bool to_device) {
    Target target;
    if (!to_device) {
      target.memory_.reset(std::aligned_alloc(kAlignment, kChunk));
      return target;
    }
#ifdef AGENTD_HAS_CUDA
    ASSIGN_OR_RETURN(target.pinned_, model::cuda::PinnedMemory::Allocate(kChunk, "raw read"));
    ASSIGN_OR_RETURN(target.device_, model::cuda::DeviceMemory::Allocate(kChunk, "raw read"));
    ASSIGN_OR_RETURN(target.stream_, model::cuda::Stream::Create());
    return target;
#else
    return InvalidArgument("the cuda backend is not built in");
#endif
  }

  void* data() const {
#ifdef AGENTD_HAS_CUDA
    if (pinned_.bytes() > 0) return pinned_.as<void>();
#endif
    return memory_.get();
  }
  absl::Status PassOn([[maybe_unused]] size_t bytes) {
#ifdef AGENTD_HAS_CUDA
    if (pinned_.bytes() > 0) {
      RETURN_IF_ERROR(
          model::cuda::CudaStatus(cudaMemcpyAsync(device_.as<void>(), pinned_.as<void>(), bytes,
                                                  cudaMemcpyHostToDevice, stream_.get()),
                                  "copy to the device"));
      return stream_.Synchronize();
    }
#endif
    return absl::OkStatus();
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
#ifdef AGENTD_HAS_CUDA
  model::cuda::PinnedMemory pinned_;
  model::cuda::DeviceMemory device_;
  model::cuda::Stream stream_;
#endif
};

struct Chunk {
  int file = -1;
  off_t offset = 0;
};

absl::Status ReadChunks(const std::vector<Chunk>& chunks, std::atomic<size_t>& next,
                        std::atomic<int64_t>& bytes, Target& target) {
  for (size_t i; (i = next.fetch_add(1)) < chunks.size();) {
    const ssize_t got = ::pread(chunks[i].file, target.data(), kChunk, chunks[i].offset);
    if (got < 0) return ErrnoError(errno, "read a blob file");
    RETURN_IF_ERROR(target.PassOn(static_cast<size_t>(got)));
    bytes += got;
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Open(const std::filesystem::path& path, bool& direct) {
  UniqueFd fd(direct ? ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT) : -1);
  if (!fd.valid()) {  // not every file system has direct reads
    direct = false;
    fd.Reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  }
  if (!fd.valid()) return ErrnoError(errno, "open " + path.string());
  return fd;
}

}  // namespace

absl::Status DropFromPageCache(const std::filesystem::path& directory) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    UniqueFd fd(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return ErrnoError(errno, "open " + entry.path().string());
    if (::fsync(fd.get()) != 0) return ErrnoError(errno, "fsync " + entry.path().string());
    const int error = ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    if (error != 0) return ErrnoError(error, "posix_fadvise " + entry.path().string());
  }
  return absl::OkStatus();
}

absl::StatusOr<RawRead> ReadRaw(const std::filesystem::path& directory, bool to_device) {
  RawRead raw;
  raw.direct = true;
  std::vector<UniqueFd> files;
  std::vector<Chunk> chunks;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.path().extension() != ".blob") continue;
    ASSIGN_OR_RETURN(UniqueFd file, Open(entry.path(), raw.direct));
    for (uintmax_t offset = 0; offset < entry.file_size(); offset += kChunk)
      chunks.push_back({file.get(), static_cast<off_t>(offset)});
    files.push_back(std::move(file));
  }
  std::vector<Target> targets;
  for (int i = 0; i < kThreads; ++i) {
    ASSIGN_OR_RETURN(Target target, Target::Make(to_device));
    targets.push_back(std::move(target));
  }
  std::atomic<size_t> next = 0;
  std::atomic<int64_t> bytes = 0;
  std::vector<absl::Status> statuses(kThreads);
  const auto begin = std::chrono::steady_clock::now();
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < targets.size(); ++i) {
      threads.emplace_back([&, i] { statuses[i] = ReadChunks(chunks, next, bytes, targets[i]); });
    }
  }
  raw.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  raw.bytes = bytes;
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return raw;
}

absl::StatusOr<RawRead> WriteRaw(const std::filesystem::path& directory, int64_t bytes,
                                 int64_t file_bytes) {
  const std::filesystem::path folder = directory / "raw";
  std::filesystem::create_directories(folder);
  std::string chunk(kChunk, '\0');
  std::mt19937_64 random(1);
  for (size_t i = 0; i + 8 <= chunk.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(chunk.data() + i, &word, sizeof(word));
  }
  RawRead raw;
  const Clock clock;
  for (int file = 0; raw.bytes < bytes; ++file) {
    const std::string path = folder / std::to_string(file);
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd.valid()) return ErrnoError(errno, "open " + path);
    for (int64_t written = 0; written < file_bytes && raw.bytes < bytes;) {
      std::memcpy(chunk.data(), &raw.bytes, sizeof(raw.bytes));
      const int64_t left = std::min(file_bytes - written, bytes - raw.bytes);
      const ssize_t put =
          ::write(fd.get(), chunk.data(), size_t(std::min<int64_t>(left, int64_t(kChunk))));
      if (put < 0) return ErrnoError(errno, "write " + path);
      written += put;
      raw.bytes += put;
    }
    if (::fsync(fd.get()) != 0) return ErrnoError(errno, "fsync " + path);
  }
  raw.seconds = clock.seconds();
  std::filesystem::remove_all(folder);
  return raw;
}

absl::StatusOr<std::vector<double>> TimeSyncs(const std::filesystem::path& directory, int count) {
  const std::string path = directory / "syncs";
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoError(errno, "open " + path);
  const std::string record(256, 'r');
  std::vector<double> milliseconds;
  for (int i = 0; i < count; ++i) {
    const Clock clock;
    if (::write(fd.get(), record.data(), record.size()) < 0)
      return ErrnoError(errno, "write " + path);
    if (::fdatasync(fd.get()) != 0) return ErrnoError(errno, "fdatasync " + path);
    milliseconds.push_back(clock.seconds() * 1e3);
  }
  ::unlink(path.c_str());
  return milliseconds;
}

}  // namespace agentd::bench
