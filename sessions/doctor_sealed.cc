#include "sessions/doctor_sealed.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/small_file.h"
#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/doctor_files.h"
#include "sessions/doctor_findings.h"
#include "sessions/envelope.h"
#include "sessions/keyring.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/store_files.h"

namespace agentd::sessions::internal {
namespace {

std::optional<RecordKind> TimelinesKind(std::string_view key, int format_version) {
  switch (key.empty() ? '\0' : key[0]) {
    case 's':
      return RecordKind::kSession;
    case 'm':
      return RecordKind::kSessionMeta;
    case 'o':
      return format_version < kSummaryVersion ? RecordKind::kOwnerIndex : RecordKind::kSummary;
    case 't':
      return RecordKind::kTimeline;
    case 'h':
      return RecordKind::kHead;
    case 'y':
      return RecordKind::kTail;
    case 'b':
      return RecordKind::kBlockEntry;
    case 'a':
      return RecordKind::kAnchorEntry;
    case 'w':
      return RecordKind::kWorkspaceEntry;
    case 'k':
      return RecordKind::kBlockName;
    case 'n':
      return RecordKind::kAnchorName;
    case 'i':
      return RecordKind::kAnchorIndex;
    case 'r':
      return RecordKind::kAnchorReference;
    default:
      return std::nullopt;
  }
}

std::optional<RecordKind> MetaKind(std::string_view key) {
  if (key.starts_with('u')) return RecordKind::kOwnerKey;
  if (key.starts_with('p')) return RecordKind::kIntent;
  if (key == kErasureKey) return RecordKind::kErasure;
  if (key == kNextTimelineKey) return RecordKind::kNextTimeline;
  return std::nullopt;
}

std::optional<RecordKind> KindOf(Column column, std::string_view key, int format_version) {
  switch (column) {
    case Column::kTimelines:
      return TimelinesKind(key, format_version);
    case Column::kEvents:
      return key.size() == 16 ? std::optional(RecordKind::kEvent) : std::nullopt;
    case Column::kKv:
      return RecordKind::kKvPart;
    case Column::kAnchors:
      return RecordKind::kAnchor;
    case Column::kFiles:
      if (key.starts_with('c')) return RecordKind::kChunk;
      return key.starts_with('d') ? std::optional(RecordKind::kDirectory) : std::nullopt;
    case Column::kMeta:
      return MetaKind(key);
  }
  return std::nullopt;
}

class SealedExaminer {
 public:
  SealedExaminer(const Database& database, DoctorReport& report,
                 const std::function<void(size_t)>& counted)
      : database_(database), report_(report), counted_(counted) {
    if (const auto keys = SealingKeys(database.directory()); keys.ok()) listed_ = *keys;
  }

  void Run() {
    for (const Column column : {Column::kTimelines, Column::kEvents, Column::kFiles, Column::kMeta})
      ReadColumn(column);
    ReadValues();
    FindMissing();
    report_.sessions = static_cast<int64_t>(sessions_.size());
    report_.not_checked = fmt::format(
        "the store is encrypted and no key was given: whether its {} records open, and what they "
        "say, was not checked. Give the key: --store-key-file",
        envelopes_);
  }

 private:
  // Where a file is damaged, the rest is read from the other end.
  void ReadColumn(Column column) {
    const std::unique_ptr<rocksdb::Iterator> forward = database_.Iterate(column);
    std::string last;
    for (forward->SeekToFirst(); forward->Valid(); forward->Next()) {
      last = forward->key().ToString();
      Visit(column, last, ToView(forward->value()));
    }
    if (forward->status().ok()) return;
    const std::unique_ptr<rocksdb::Iterator> back = database_.Iterate(column);
    for (back->SeekToLast(); back->Valid() && back->key().compare(last) > 0; back->Prev())
      Visit(column, back->key().ToString(), ToView(back->value()));
  }

  void Visit(Column column, const std::string& key, std::string_view value) {
    const std::optional<RecordKind> kind = KindOf(column, key, database_.format_version());
    if (!kind.has_value()) {
      report_.findings.push_back({Harm::kNothing,
                                  "unknown",
                                  "a record",
                                  "its key is of no known kind",
                                  "unknown",
                                  "a newer agentctl may know it",
                                  {}});
      return;
    }
    CheckEnvelope(*kind, column, key, value);
    Note(*kind, key);
  }

  void CheckEnvelope(RecordKind kind, Column column, const std::string& key,
                     std::string_view value) {
    ++envelopes_;
    ++report_.records;
    report_.bytes += static_cast<int64_t>(key.size() + value.size());
    counted_(key.size() + value.size());
    const absl::StatusOr<uint64_t> id = EnvelopeKeyId({static_cast<uint8_t>(column), key}, value);
    if (!id.ok()) return Add(kind, key, Describe(kind, key) + " " + Text(id.status()));
    if (value.size() < kEnvelopeHeaderBytes + kTagBytes + kFrameBytes) {
      Add(kind, key, fmt::format("{} bytes are too few for an encrypted record", value.size()));
    } else if (!listed_.empty() &&
               std::find(listed_.begin(), listed_.end(), *id) == listed_.end()) {
      Add(kind, key,
          fmt::format("it is sealed with key {}, which KEYS does not list", KeyIdText(*id)));
    }
  }

  void Note(RecordKind kind, const std::string& key) {
    if (kind == RecordKind::kSession) sessions_.insert(key.substr(1));
    if (kind == RecordKind::kSessionMeta) metas_.insert(key.substr(1));
    if (kind == RecordKind::kSummary) summaries_.emplace(SessionInSummaryKey(key));
    if (kind == RecordKind::kTimeline && key.size() == 9) timelines_.insert(BigEndianAt(key, 1));
    if (kind == RecordKind::kHead && key.size() == 9) heads_.insert(BigEndianAt(key, 1));
    if (kind == RecordKind::kBlockName && key.size() == 1 + sizeof(BlockHash))
      blocks_.push_back(DigestAt(key, 1));
    if (kind == RecordKind::kAnchorName && key.size() == 1 + sizeof(Sha256Digest))
      anchors_.push_back(DigestAt(key, 1));
    if (kind == RecordKind::kEvent) events_[BigEndianAt(key, 0)].insert(BigEndianAt(key, 8));
  }

  // By their names: one that cannot be read hides no other.
  void ReadValues() {
    for (const BlockHash& block : blocks_) {
      // How many there are is in the name, which is sealed.
      for (uint32_t part = 0; ReadValue(RecordKind::kKvPart, Column::kKv, KvPartKey(block, part),
                                        /*must_be_there=*/part == 0);
           ++part) {
      }
    }
    for (const Sha256Digest& anchor : anchors_)
      ReadValue(RecordKind::kAnchor, Column::kAnchors, AnchorKey(anchor), /*must_be_there=*/true);
  }

  // False: it is not there.
  bool ReadValue(RecordKind kind, Column column, const std::string& key, bool must_be_there) {
    rocksdb::PinnableSlice value;
    const absl::StatusOr<bool> found = database_.GetPinned(column, key, nullptr, value);
    if (!found.ok()) {
      Add(kind, key, Text(found.status()));
    } else if (*found) {
      CheckEnvelope(kind, column, key, ToView(value));
    } else if (must_be_there) {
      AddMissing(kind, key);
    }
    return !found.ok() || *found;
  }

  void FindMissing() {
    for (const std::string& id : sessions_) {
      if (!metas_.contains(id)) AddMissing(RecordKind::kSessionMeta, SessionMetaKey(id));
    }
    for (const std::string& id : summaries_) {
      if (!sessions_.contains(id)) AddMissing(RecordKind::kSession, SessionKey(id));
    }
    for (const TimelineId timeline : timelines_) {
      if (!heads_.contains(timeline)) AddMissing(RecordKind::kHead, HeadKey(timeline));
    }
    for (const auto& [timeline, seqs] : events_) {
      if (!timelines_.contains(timeline)) AddMissing(RecordKind::kTimeline, TimelineKey(timeline));
      // A fork begins after what it shares.
      uint64_t next = *seqs.begin();
      for (const uint64_t seq : seqs) {
        if (seq != next) AddMissing(RecordKind::kEvent, EventKey(timeline, next));
        next = seq + 1;
      }
    }
  }

  void AddMissing(RecordKind kind, const std::string& key) { Add(kind, key, "it is missing"); }
  void Add(RecordKind kind, const std::string& key, const std::string& why) {
    if (!reported_.emplace(kind, key).second) return;
    Finding finding = Directory().Explain(kind, key);
    finding.reason = why;
    report_.findings.push_back(std::move(finding));
  }

  const Database& database_;
  DoctorReport& report_;
  const std::function<void(size_t)>& counted_;
  std::vector<uint64_t> listed_;  // empty: it is not known, and reported
  int64_t envelopes_ = 0;
  std::set<std::string> sessions_, metas_, summaries_;
  std::set<TimelineId> timelines_, heads_;
  std::map<TimelineId, std::set<uint64_t>> events_;
  std::vector<BlockHash> blocks_;
  std::vector<Sha256Digest> anchors_;
  std::set<std::pair<RecordKind, std::string>> reported_;
};

}  // namespace

void ExamineKeys(const std::filesystem::path& directory, DoctorReport& report) {
  const bool one_is_whole = SealingKeys(directory).ok();
  for (const std::filesystem::path& path : KeysFiles(directory)) {
    const absl::StatusOr<std::optional<std::string>> bytes = ReadSmallFile(path);
    absl::Status status = bytes.status();
    if (status.ok())
      status = bytes->has_value() ? ListedKeys(**bytes).status() : NotFound("it is missing");
    if (status.ok()) continue;
    Finding finding = Directory().Explain(RecordKind::kKeys, "KEYS");
    finding.what = "file " + path.string();
    finding.reason = Text(status);
    if (one_is_whole) {
      finding.harm = Harm::kNothing;
      finding.costs = "nothing: the other of KEYS and KEYS.copy is whole";
      finding.mend = "the next start writes it anew";
    }
    report.findings.push_back(std::move(finding));
  }
}

void ExamineSealed(const Database& database, DoctorReport& report,
                   const std::function<void(size_t)>& counted) {
  SealedExaminer(database, report, counted).Run();
}

}  // namespace agentd::sessions::internal
