// What takes how much space.
#include <algorithm>
#include <unordered_map>

#include "base/status.h"
#include "sessions/keys.h"
#include "sessions/store_impl.h"
#include "sessions/timeline_uses.h"

namespace agentd::sessions::internal {
namespace {

constexpr size_t kNobody = SIZE_MAX, kSeveral = SIZE_MAX - 1;

struct StoredValue {
  int64_t bytes = 0;
  size_t user = kNobody;  // index of the only session that uses it
};
using StoredValues = std::unordered_map<Sha256Digest, StoredValue, DigestHash>;

// Of all blocks or all anchors that have a name; what lies in a damaged table counts as nothing.
absl::StatusOr<StoredValues> ReadStored(const Database& database, Column column,
                                        const rocksdb::Snapshot* snapshot) {
  StoredValues values;
  RETURN_IF_ERROR(database.Scan(
      Column::kTimelines, column == Column::kKv ? "k" : "n",
      [&](std::string_view key, std::string_view) {
        values[DigestAt(key, 1)] = {};
        return absl::OkStatus();
      },
      snapshot));
  std::unordered_map<std::string, int64_t> sizes;  // the last that comes counts
  const absl::Status status =
      database.ScanLocations(column, [&](std::string_view key, const ValueLocation& location) {
        if (key.size() >= sizeof(Sha256Digest))
          sizes[std::string(key)] = static_cast<int64_t>(location.bytes);
      });
  if (!status.ok() && !absl::IsDataLoss(status)) return status;
  for (const auto& [key, bytes] : sizes) {
    if (const auto found = values.find(DigestAt(key, 0)); found != values.end())
      found->second.bytes += bytes;
  }
  return values;
}

// The accounts of one Usage call.
class Accounts {
 public:
  Accounts(const Database& database, const FileObjects& files, const rocksdb::Snapshot* snapshot)
      : database_(database), files_(files), snapshot_(snapshot) {}

  absl::Status ReadSessions() {
    return database_.Scan(
        Column::kTimelines, "o",
        [&](std::string_view key, std::string_view) {
          const size_t rest = OwnerIndexPrefix("").size();
          const size_t owner = key.size() < 3 ? 0
                                              : static_cast<uint8_t>(key[1]) * size_t{256} +
                                                    static_cast<uint8_t>(key[2]);
          if (key.size() <= rest + owner) return absl::OkStatus();
          SessionUsage& usage = usage_.emplace_back();
          usage.owner = std::string(key.substr(rest, owner));  // its tag, until Of
          usage.id = std::string(key.substr(rest + owner));
          index_[usage.id] = usage_.size() - 1;
          return absl::OkStatus();
        },
        snapshot_);
  }

  absl::Status AddLogs(const TimelineUses& uses, StoreUsage& total) {
    RETURN_IF_ERROR(database_.Scan(
        Column::kEvents, "",
        [&](std::string_view key, std::string_view value) {
          const int64_t bytes = static_cast<int64_t>(key.size() + value.size());
          total.log_bytes += bytes;
          if (SessionUsage* usage = OwnerOf(uses, BigEndianAt(key, 0)); usage != nullptr)
            usage->log_bytes += bytes;
          return absl::OkStatus();
        },
        snapshot_));
    return database_.Scan(
        Column::kTimelines, "m",
        [&](std::string_view key, std::string_view value) {
          const int64_t bytes = static_cast<int64_t>(key.size() + value.size());
          total.log_bytes += bytes;
          if (const auto found = index_.find(std::string(key.substr(1))); found != index_.end())
            usage_[found->second].log_bytes += bytes;
          return absl::OkStatus();
        },
        snapshot_);
  }

  absl::Status AddValues(const TimelineUses& uses, Column column, int64_t& total,
                         int64_t SessionUsage::*own, int64_t SessionUsage::*shared) {
    ASSIGN_OR_RETURN(StoredValues values, ReadStored(database_, column, snapshot_));
    for (const auto& [hash, value] : values) total += value.bytes;
    const auto for_each = [&](const TimelineUses::Visit& visit) {
      return column == Column::kKv ? uses.ForEachBlock(visit) : uses.ForEachAnchor(visit);
    };
    RETURN_IF_ERROR(
        for_each([&](const Sha256Digest& hash, int64_t, std::span<const TimelineUse> users) {
          const auto found = values.find(hash);
          if (found == values.end()) return;
          for (const TimelineUse& use : users) NoteUser(found->second, use.session);
        }));
    // A session that uses a value through several timelines counts it once.
    std::vector<std::set<Sha256Digest>> counted(usage_.size());
    return for_each([&](const Sha256Digest& hash, int64_t, std::span<const TimelineUse> users) {
      const auto found = values.find(hash);
      if (found == values.end()) return;
      const bool alone = found->second.user != kSeveral;
      for (const TimelineUse& use : users) {
        const auto session = index_.find(use.session);
        if (session == index_.end() || !counted[session->second].insert(hash).second) continue;
        usage_[session->second].*(alone ? own : shared) += found->second.bytes;
      }
    });
  }

  absl::Status AddWorkspaces(const TimelineUses& uses, StoreUsage& total) {
    std::unordered_map<std::string, int64_t> sizes;
    RETURN_IF_ERROR(database_.Scan(
        Column::kFiles, "",
        [&](std::string_view key, std::string_view value) {
          const int64_t bytes = static_cast<int64_t>(key.size() + value.size());
          sizes[std::string(key)] = bytes;
          total.workspace_bytes += bytes;
          return absl::OkStatus();
        },
        snapshot_));
    std::map<size_t, std::set<std::string>> reached;  // by session
    RETURN_IF_ERROR(database_.Scan(
        Column::kTimelines, "w",
        [&](std::string_view key, std::string_view value) -> absl::Status {
          const auto tree = DecodeDigest(RecordKind::kWorkspaceEntry, key, value);
          if (!tree.ok() || key.size() != 17) return absl::OkStatus();
          for (const TimelineUse& use : uses.UsersOf(BigEndianAt(key, 1))) {
            const auto session = index_.find(use.session);
            if (session == index_.end() || use.last_seq < BigEndianAt(key, 9)) continue;
            RETURN_IF_ERROR(files_.Mark(*tree, reached[session->second]));
          }
          return absl::OkStatus();
        },
        snapshot_));
    for (const auto& [session, keys] : reached) {
      for (const std::string& key : keys) {
        if (const auto found = sizes.find(key); found != sizes.end())
          usage_[session].workspace_bytes += found->second;
      }
    }
    return absl::OkStatus();
  }

  std::vector<SessionUsage> Of(std::string_view owner) {
    const std::string tag = database_.OwnerTag(owner);
    std::erase_if(usage_, [&](const SessionUsage& usage) { return usage.owner != tag; });
    for (SessionUsage& usage : usage_) usage.owner = owner;
    std::reverse(usage_.begin(), usage_.end());  // ids ascend by time
    return std::move(usage_);
  }

 private:
  void NoteUser(StoredValue& value, const std::string& session) const {
    const auto found = index_.find(session);
    const size_t user = found == index_.end() ? kSeveral : found->second;
    if (value.user == kNobody) value.user = user;
    if (value.user != user) value.user = kSeveral;
  }

  // The live session that a timeline belongs to.
  SessionUsage* OwnerOf(const TimelineUses& uses, TimelineId timeline) {
    for (const TimelineUse& use : uses.UsersOf(timeline)) {
      if (use.timeline != timeline) continue;
      const auto found = index_.find(use.session);
      return found == index_.end() ? nullptr : &usage_[found->second];
    }
    return nullptr;
  }

  const Database& database_;
  const FileObjects& files_;
  const rocksdb::Snapshot* const snapshot_;
  std::vector<SessionUsage> usage_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace

absl::StatusOr<StoreUsage> StoreImpl::Usage(std::string_view owner) {
  // Sizes of values are read from tables.
  RETURN_IF_ERROR(database_->Flush({Column::kKv, Column::kAnchors}));
  const std::shared_lock sweep(files_.sweep_mutex());
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  ASSIGN_OR_RETURN(const TimelineUses uses, TimelineUses::Read(*database_, snapshot.get()));
  StoreUsage total;
  Accounts accounts(*database_, files_, snapshot.get());
  RETURN_IF_ERROR(accounts.ReadSessions());
  RETURN_IF_ERROR(accounts.AddLogs(uses, total));
  RETURN_IF_ERROR(accounts.AddValues(uses, Column::kKv, total.kv_bytes, &SessionUsage::kv_bytes,
                                     &SessionUsage::shared_kv_bytes));
  RETURN_IF_ERROR(accounts.AddValues(uses, Column::kAnchors, total.anchor_bytes,
                                     &SessionUsage::anchor_bytes,
                                     &SessionUsage::shared_anchor_bytes));
  RETURN_IF_ERROR(accounts.AddWorkspaces(uses, total));
  total.sessions = accounts.Of(owner);
  StoreStats stats;
  AddSpaceStats(stats);
  total.dead_bytes = stats.dead_bytes;
  total.budget_bytes = stats.budget_bytes;
  total.directory_bytes = database_->MeasureBytes();
  return total;
}

absl::Status StoreImpl::Reclaim() { return space_.Reclaim(); }

void StoreImpl::AddSpaceStats(StoreStats& stats) const {
  stats.budget_bytes = space_.budget();
  for (const Column column : {Column::kKv, Column::kAnchors}) {
    for (const BlobFile& file : database_->BlobFiles(column))
      stats.dead_bytes += static_cast<int64_t>(file.dead_bytes);
  }
  stats.written_bytes = database_->written_bytes() - space_.collector().rewritten_bytes();
  stats.collected_bytes_written = space_.collector().rewritten_bytes();
  stats.damaged_values_dropped = space_.collector().dropped_values();
  const SpaceCounters counters = space_.counters();
  stats.evicted_blocks = counters.evicted_blocks;
  stats.evicted_anchors = counters.evicted_anchors;
  stats.evicted_bytes = counters.evicted_bytes;
  stats.collected_files = counters.collected_files;
  stats.erasing = counters.erasing;
  stats.space_error = counters.error;
}

}  // namespace agentd::sessions::internal
