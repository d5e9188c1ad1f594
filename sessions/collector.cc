#include "sessions/collector.h"

#include <algorithm>
#include <span>
#include <unordered_map>

#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/value_removal.h"

namespace agentd::sessions::internal {
namespace {

// How much is claimed at a time: who commits one of these values again waits so long.
constexpr uint64_t kClaimedBytes = 4 << 20;
constexpr uint64_t kRewriteFlushBytes = 32 << 20;

absl::Status CheckValue(Column column, std::string_view key, std::string_view value) {
  if (column == Column::kKv) return DecodeKvPart(key, value).status();
  return DecodeAnchor(key, value).status();
}

}  // namespace

absl::Status Collector::Rewrite(Column column, const std::set<uint64_t>& files,
                                std::atomic<bool>& stop) {
  std::unordered_map<std::string, ValueLocation> newest;
  // A table that cannot be read keeps its values where they are.
  absl::Status status =
      database_.ScanLocations(column, [&](std::string_view key, const ValueLocation& location) {
        if (key.size() < sizeof(Sha256Digest)) return;
        if (files.contains(location.file)) {
          newest[std::string(key)] = location;
        } else if (!newest.empty()) {
          newest.erase(std::string(key));
        }
      });
  if (newest.empty()) return status;
  std::vector<Item> items;
  for (const auto& [key, location] : newest) items.push_back({location, key});
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return std::pair(a.location.file, a.location.offset) <
           std::pair(b.location.file, b.location.offset);
  });
  const std::span<const Item> all = items;
  uint64_t unflushed = 0;
  for (size_t begin = 0, end = 0; begin < all.size() && !stop; begin = end) {
    uint64_t bytes = 0;
    for (; end < all.size() && bytes < kClaimedBytes; ++end) bytes += all[end].location.bytes;
    ASSIGN_OR_RETURN(const uint64_t written, RewriteSome(column, all.subspan(begin, end - begin)));
    unflushed += written;
    CrashPoint("collect_written");
    if (unflushed < kRewriteFlushBytes) continue;
    RETURN_IF_ERROR(database_.Flush({column}));
    unflushed = 0;
  }
  RETURN_IF_ERROR(database_.Flush({column}));
  CrashPoint("collect_flushed");
  return status;
}

absl::StatusOr<uint64_t> Collector::RewriteSome(Column column, std::span<const Item> items) {
  std::set<Sha256Digest> hashes;
  for (const Item& item : items) hashes.insert(DigestAt(item.key, 0));
  // Nobody stores one of them anew meanwhile; who removes one gets in between (see RewriteOne).
  const ValuesInUse::Claim claim = values_.ClaimAnyway(std::move(hashes));
  uint64_t bytes = 0;
  for (const Item& item : items) {
    ASSIGN_OR_RETURN(const uint64_t written, RewriteOne(column, item.key));
    bytes += written;
  }
  rewritten_bytes_ += static_cast<int64_t>(bytes);
  return bytes;
}

// Returns the bytes written. What has no name yet is somebody's commit on its way, what has none
// any more is dead: both stay as they are.
absl::StatusOr<uint64_t> Collector::RewriteOne(Column column, const std::string& key) {
  ASSIGN_OR_RETURN(const bool named, IsNamed(column, key));
  if (!named) return 0;
  rocksdb::PinnableSlice pinned;
  const absl::StatusOr<bool> found = database_.GetPinned(column, key, nullptr, pinned);
  if (!found.ok() && !absl::IsDataLoss(found.status())) return found.status();
  if (found.ok() && !*found) return 0;
  const absl::Status whole = found.ok() ? CheckValue(column, key, ToView(pinned)) : found.status();
  if (absl::IsDataLoss(whole)) {
    RETURN_IF_ERROR(Drop(column, key));
    return 0;
  }
  // A newer program's record is not ours to judge: it is written as it is, and left where it is
  // if its envelope is newer, since it does not open.
  if (!whole.ok() && IsUnopenedNote(ToView(pinned))) return 0;
  const std::lock_guard removing(values_.removal_mutex());
  ASSIGN_OR_RETURN(const bool still_named, IsNamed(column, key));
  if (!still_named) return 0;
  RETURN_IF_ERROR(database_.WriteUnlogged({{column, key, pinned.ToString()}}));
  return pinned.size();
}

absl::StatusOr<bool> Collector::IsNamed(Column column, const std::string& key) const {
  const Sha256Digest digest = DigestAt(key, 0);
  ASSIGN_OR_RETURN(
      const std::optional<std::string> name,
      database_.Get(Column::kTimelines,
                    column == Column::kKv ? BlockNameKey(digest) : AnchorNameKey(digest)));
  return name.has_value();
}

absl::Status Collector::Drop(Column column, const std::string& key) {
  const Sha256Digest digest = DigestAt(key, 0);
  std::vector<WriteEntry> writes;
  const std::lock_guard removing(values_.removal_mutex());
  ASSIGN_OR_RETURN(const bool stored, column == Column::kKv
                                          ? AddBlockRemoval(database_, digest, writes)
                                          : AddAnchorRemoval(database_, digest, writes));
  if (!stored) return absl::OkStatus();
  ++dropped_values_;
  return database_.Write(writes, /*sync=*/false);
}

}  // namespace agentd::sessions::internal
