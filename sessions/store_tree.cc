// Reading parts of workspace trees.
#include <utility>

#include "base/status.h"
#include "sessions/store_impl.h"

namespace agentd::sessions::internal {

absl::StatusOr<std::vector<TreeEntry>> StoreImpl::ReadTreeDirectory(const TreeId& directory) {
  ASSIGN_OR_RETURN(std::vector<DirectoryEntry> stored, files_.ReadDirectory(directory));
  if (Sha256Of(DirectoryPayload(stored)) != directory) {
    return DataLoss("{} holds another one",
                    Describe(RecordKind::kDirectory, files_.DirectoryKeyOf(directory)));
  }
  std::vector<TreeEntry> entries;
  entries.reserve(stored.size());
  for (DirectoryEntry& entry : stored) {
    entries.push_back({std::move(entry.name), static_cast<TreeEntry::Type>(entry.type), entry.mode,
                       entry.size_bytes, std::move(entry.chunks), std::move(entry.target)});
  }
  return entries;
}

absl::StatusOr<std::string> StoreImpl::ReadFilePart(const Sha256Digest& part) {
  ASSIGN_OR_RETURN(std::string bytes, files_.ReadChunk(part));
  if (Sha256Of(bytes) != part)
    return DataLoss("{} holds another one", Describe(RecordKind::kChunk, files_.ChunkKeyOf(part)));
  return bytes;
}

}  // namespace agentd::sessions::internal
