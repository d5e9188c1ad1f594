#include "sessions/file_contents.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <optional>

#include "base/status.h"

namespace agentd::sessions::internal {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;
// File systems stamp with the clock of the last tick (4 to 10 ms) or, the coarse ones, of whole or
// even seconds.
constexpr int64_t kSettledNs = 2 * kNsPerSecond + kNsPerSecond / 10;
constexpr size_t kHoleBytes = 4096;  // what file systems give holes in

std::string_view ZeroChunk() {
  static const std::string zeros(kChunkBytes, '\0');
  return zeros;
}

const Sha256Digest& ZeroChunkId() {
  static const Sha256Digest id = Sha256Of(ZeroChunk());
  return id;
}

// Where a file has holes.
class Holes {
 public:
  explicit Holes(int fd) : fd_(fd) {
    struct stat status;
    sparse_ = ::fstat(fd, &status) == 0 && status.st_blocks * 512 < status.st_size;
  }

  // Whether all of [begin, end) is a hole. Asked with ascending offsets.
  bool Cover(uint64_t begin, uint64_t end) {
    if (!sparse_) return false;
    if (begin >= next_data_) next_data_ = NextData(begin);
    return next_data_ >= end;
  }

 private:
  uint64_t NextData(uint64_t begin) const {
    const off_t data = ::lseek(fd_, static_cast<off_t>(begin), SEEK_DATA);
    if (data >= 0) return static_cast<uint64_t>(data);
    struct stat status;  // ENXIO: no more data up to the end, wherever that is by now
    if (errno != ENXIO || ::fstat(fd_, &status) != 0) return begin;
    return std::max(begin, static_cast<uint64_t>(status.st_size));
  }

  const int fd_;
  bool sparse_ = false;
  uint64_t next_data_ = 0;
};

// Fills `buffer` from `offset`; fewer bytes only at the end of the file.
absl::StatusOr<size_t> ReadFully(int fd, const std::string& path, uint64_t offset, char* buffer,
                                 size_t size) {
  size_t filled = 0;
  while (filled < size) {
    const ssize_t count =
        ::pread(fd, buffer + filled, size - filled, static_cast<off_t>(offset + filled));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoError(errno, "read " + path);
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  return filled;
}

absl::Status WriteFully(int fd, const std::string& path, uint64_t offset, std::string_view data) {
  while (!data.empty()) {
    const ssize_t count = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoError(errno, "write " + path);
    offset += static_cast<uint64_t>(count);
    data.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

bool IsZero(std::string_view block) {
  return std::memcmp(block.data(), ZeroChunk().data(), block.size()) == 0;
}

// Of a chunk's blocks, those that are not zeros.
absl::Status WriteData(int fd, const std::string& path, uint64_t offset, std::string_view chunk) {
  for (size_t begin = 0, end; begin < chunk.size(); begin = end) {
    const bool zero = IsZero(chunk.substr(begin, kHoleBytes));
    for (end = begin; end < chunk.size() && IsZero(chunk.substr(end, kHoleBytes)) == zero;)
      end = std::min(end + kHoleBytes, chunk.size());
    if (!zero)
      RETURN_IF_ERROR(WriteFully(fd, path, offset + begin, chunk.substr(begin, end - begin)));
  }
  return absl::OkStatus();
}

}  // namespace

FileStamp StampOf(const struct stat& status) {
  return {status.st_dev, status.st_ino, static_cast<uint64_t>(status.st_size),
          status.st_mtim.tv_sec * kNsPerSecond + status.st_mtim.tv_nsec,
          status.st_ctim.tv_sec * kNsPerSecond + status.st_ctim.tv_nsec};
}

int64_t WallClockNs() {
  struct timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * kNsPerSecond + now.tv_nsec;
}

// Programs can set mtime, so ctime decides.
bool IsSettled(const FileStamp& stamp, int64_t now_ns) {
  return stamp.ctime_ns + kSettledNs < now_ns;
}

Writers WritersOf(int fd) {
  // Who opens the file for writing meanwhile waits for some microseconds, and we are sent a signal:
  // not SIGIO, which would end the process, but one that is ignored.
  if (::fcntl(fd, F_SETSIG, SIGURG) != 0) return Writers::kUnknown;
  if (::fcntl(fd, F_SETLEASE, F_RDLCK) != 0)
    return errno == EAGAIN ? Writers::kSome : Writers::kUnknown;
  (void)::fcntl(fd, F_SETLEASE, F_UNLCK);
  return Writers::kNone;
}

absl::Status ReadContents(int fd, const std::string& path, uint64_t limit_bytes,
                          DirectoryEntry& entry, const ChunkSink& sink) {
  entry.chunks.clear();
  entry.size_bytes = 0;
  std::string buffer;
  Holes holes(fd);
  std::optional<Sha256Digest> zero;  // the id of a chunk of zeros, once the sink has seen it
  while (entry.size_bytes < limit_bytes) {
    const uint64_t begin = entry.size_bytes;
    const size_t wanted = std::min<uint64_t>(kChunkBytes, limit_bytes - begin);
    if (wanted == kChunkBytes && holes.Cover(begin, begin + wanted)) {
      if (!zero.has_value()) {
        ASSIGN_OR_RETURN(zero, sink(entry.chunks.size(), ZeroChunk()));
      }
      entry.chunks.push_back(*zero);
      entry.size_bytes += wanted;
      continue;
    }
    buffer.resize(wanted);
    ASSIGN_OR_RETURN(const size_t filled, ReadFully(fd, path, begin, buffer.data(), wanted));
    if (filled == 0) break;
    ASSIGN_OR_RETURN(const Sha256Digest id,
                     sink(entry.chunks.size(), std::string_view(buffer).substr(0, filled)));
    entry.chunks.push_back(id);
    entry.size_bytes += filled;
    if (filled < wanted) break;
  }
  return absl::OkStatus();
}

absl::Status WriteContents(int fd, const std::string& path, const DirectoryEntry& entry,
                           const ChunkSource& source) {
  uint64_t written = 0;
  for (const Sha256Digest& id : entry.chunks) {
    if (id == ZeroChunkId()) {
      written += kChunkBytes;
      continue;
    }
    ASSIGN_OR_RETURN(const std::string chunk, source(id));
    RETURN_IF_ERROR(WriteData(fd, path, written, chunk));
    written += chunk.size();
  }
  if (written != entry.size_bytes) {
    return DataLoss("{} has {} bytes in the store where its tree says {}", path, written,
                    entry.size_bytes);
  }
  // A hole at the end is not there by writing.
  if (::ftruncate(fd, static_cast<off_t>(entry.size_bytes)) != 0)
    return ErrnoError(errno, "truncate " + path);
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
