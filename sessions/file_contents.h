// The contents of one regular file as chunks: read without what its holes would cost, and written
// with holes.
//
// When the contents may be taken from memory instead. A stamp (inode, size, mtime, ctime) tells
// later changes only if (a) nobody had the file open for writing when it was read - who maps a
// file changes it again and again under one time stamp - and (b) the stamp was settled: one that
// changed within its granularity of the reading could change again unseen.
#ifndef AGENTD_SESSIONS_FILE_CONTENTS_H_
#define AGENTD_SESSIONS_FILE_CONTENTS_H_

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {

// What a file looked like when its chunks were computed.
struct FileStamp {
  uint64_t device = 0, inode = 0, size_bytes = 0;
  int64_t mtime_ns = 0, ctime_ns = 0;
  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};
FileStamp StampOf(const struct stat& status);

// Wall clock, as the time stamps of files.
int64_t WallClockNs();
// (b) above, of a file read at `now_ns`.
bool IsSettled(const FileStamp& stamp, int64_t now_ns);

// (a) above: who can write to an open file now, through a descriptor or a mapping. Asked by a read
// lease that is given back at once. Unknown: the file system has no leases, or the file is another
// user's.
enum class Writers { kNone, kSome, kUnknown };
Writers WritersOf(int fd);

// Turns the chunk with this index into its id.
using ChunkSink = std::function<absl::StatusOr<Sha256Digest>(size_t index, std::string_view data)>;
// Gives the bytes of a chunk.
using ChunkSource = std::function<absl::StatusOr<std::string>(const Sha256Digest& id)>;

// Reads the first `limit_bytes` (a file may grow as fast as it is read) into size and chunks of
// `entry`. `path` is for messages, here and below.
absl::Status ReadContents(int fd, const std::string& path, uint64_t limit_bytes,
                          DirectoryEntry& entry, const ChunkSink& sink);

// Writes an entry's contents to an empty file. Blocks of zeros become holes. DataLoss: the chunks
// are not as long as the entry says.
absl::Status WriteContents(int fd, const std::string& path, const DirectoryEntry& entry,
                           const ChunkSource& source);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_FILE_CONTENTS_H_
