#include "sessions/summary.h"

#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"
#include "sessions/store_files.h"

namespace agentd::sessions::internal {
namespace {

// Every commit writes the summary: a longer meta would be most of what it writes.
constexpr size_t kMaxSummaryMetaBytes = 2048;
constexpr size_t kMaxKnown = 1024;
constexpr size_t kUpgradeBatch = 10'000;

bool IsUnreadable(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsNotFound(status);
}

void SetMeta(SummaryRecord& record, std::string_view meta) {
  record.has_meta = meta.size() <= kMaxSummaryMetaBytes;
  record.info.meta = record.has_meta ? meta : std::string_view();
}

}  // namespace

// ---- the sources

absl::StatusOr<std::pair<SessionRecord, TimelineView>> ReadSession(std::string_view session_id,
                                                                   RecordSource& source) {
  const std::string key = SessionKey(session_id);
  ASSIGN_OR_RETURN(const std::optional<std::string> value, source.Get(key));
  if (!value.has_value()) return NotFound("session {} does not exist", session_id);
  ASSIGN_OR_RETURN(SessionRecord record, DecodeSession(key, *value));
  absl::StatusOr<TimelineView> timeline = ReadTimeline(source, record.timeline);
  if (absl::IsNotFound(timeline.status()))
    return DataLoss("session {}: {}", session_id, Text(timeline.status()));
  if (!timeline.ok()) return timeline.status();
  return std::pair(std::move(record), *std::move(timeline));
}

absl::StatusOr<std::string> ReadMeta(std::string_view session_id, RecordSource& source) {
  const std::string key = SessionMetaKey(session_id);
  ASSIGN_OR_RETURN(const std::optional<std::string> meta, source.Get(key));
  if (!meta.has_value()) return DataLoss("{} is missing", Describe(RecordKind::kSessionMeta, key));
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kSessionMeta, key, *meta));
  return std::string(payload);
}

absl::StatusOr<SessionInfo> ReadInfo(std::string_view session_id, RecordSource& source) {
  ASSIGN_OR_RETURN(const auto session, ReadSession(session_id, source));
  const auto& [record, timeline] = session;
  SessionInfo info;
  info.id = std::string(session_id);
  info.owner = record.owner;
  info.timeline = record.timeline;
  info.seed = timeline.record.seed;
  info.created_us = record.created_us;
  SetHead(timeline.head, info);
  info.forked_from = record.forked_from;
  info.forked_at_seq = record.forked_at_seq;
  ASSIGN_OR_RETURN(info.meta, ReadMeta(session_id, source));
  return info;
}

SummaryRecord SummaryOf(SessionInfo info) {
  SummaryRecord record;
  SetMeta(record, info.meta);
  info.meta = std::move(record.info.meta);
  record.info = std::move(info);
  return record;
}

// ---- writing

absl::StatusOr<std::optional<SummaryRecord>> SummaryWriter::Read(
    const SummaryChange& change) const {
  if (change.kind == SummaryChange::Kind::kNew) return SummaryRecord();
  const absl::StatusOr<std::optional<std::string>> value =
      database_.Get(Column::kTimelines, change.key);
  if (!value.ok() && !IsUnreadable(value.status())) return value.status();
  if (value.ok() && value->has_value()) {
    SummaryRecord stored;
    const absl::Status decoded = DecodeSummary(change.key, **value, stored);
    if (decoded.ok()) return stored;
    if (!IsUnreadable(decoded)) return decoded;
  }
  PointSource source(database_, nullptr);
  absl::StatusOr<SessionInfo> info = ReadInfo(change.session, source);
  if (info.ok()) return SummaryOf(*std::move(info));
  if (IsUnreadable(info.status())) return std::optional<SummaryRecord>();
  return info.status();
}

absl::Status SummaryWriter::Apply(const SummaryChange& change) {
  if (change.kind == SummaryChange::Kind::kDeleted) {
    known_.erase(change.key);
    changed_.erase(change.key);
    return absl::OkStatus();
  }
  auto found = known_.find(change.key);
  if (found == known_.end()) {
    ASSIGN_OR_RETURN(std::optional<SummaryRecord> record, Read(change));
    if (!record.has_value()) return absl::OkStatus();
    found = known_.emplace(change.key, *std::move(record)).first;
  }
  SummaryRecord& record = found->second;
  if (change.apply) change.apply(record.info);
  if (change.meta.has_value()) SetMeta(record, *change.meta);
  changed_.insert(change.key);
  return absl::OkStatus();
}

std::vector<WriteEntry> SummaryWriter::TakeWrites() {
  std::vector<WriteEntry> writes;
  for (const std::string& key : changed_)
    writes.push_back({Column::kTimelines, key, EncodeSummary(key, known_.at(key))});
  changed_.clear();
  if (known_.size() > kMaxKnown) known_.clear();
  return writes;
}

void SummaryWriter::Forget() {
  known_.clear();
  changed_.clear();
}

// ---- stores of earlier versions

absl::Status UpgradeSummaries(Database& database) {
  if (database.format_version() >= kSummaryVersion) return absl::OkStatus();
  // Sources and summaries are read side by side; of a crash in between the next open begins anew.
  const Database::SnapshotHolder snapshot = database.TakeSnapshot();
  AscendingSource source(database, snapshot.get());
  std::vector<WriteEntry> writes;
  const auto write = [&]() -> absl::Status {
    if (writes.empty()) return absl::OkStatus();
    const absl::Status status = database.Write(writes, /*sync=*/false);
    writes.clear();
    return status;
  };
  RETURN_IF_ERROR(database.Scan(
      Column::kTimelines, "s",
      [&](std::string_view key, std::string_view) {
        const std::string id(key.substr(1));
        absl::StatusOr<SessionInfo> info = ReadInfo(id, source);
        // A list finds the same damage in the sources.
        if (!info.ok()) return IsUnreadable(info.status()) ? absl::OkStatus() : info.status();
        const std::string summary_key = OwnerIndexPrefix(database.OwnerTag(info->owner)) + id;
        writes.push_back({Column::kTimelines, summary_key,
                          EncodeSummary(summary_key, SummaryOf(*std::move(info)))});
        return writes.size() < kUpgradeBatch ? absl::OkStatus() : write();
      },
      snapshot.get()));
  RETURN_IF_ERROR(write());
  CrashPoint("open_summaries");
  RETURN_IF_ERROR(database.Flush({Column::kTimelines}));
  return database.SetFormatVersion(kSummaryVersion);
}

}  // namespace agentd::sessions::internal
