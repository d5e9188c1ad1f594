#include "sessions/doctor.h"

#include <rocksdb/db.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "base/sha256.h"
#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/database.h"
#include "sessions/doctor_files.h"
#include "sessions/doctor_findings.h"
#include "sessions/doctor_sealed.h"
#include "sessions/file_objects.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/summary.h"
#include "sessions/timeline.h"

namespace agentd::sessions {
namespace internal {
namespace {

constexpr uint64_t kEventsAtOnce = 4096;
constexpr size_t kProgressBytes = 8 << 20;

// A value that is stored under a name.
struct NamedBlock {
  BlockName name;
  std::set<uint32_t> seen;  // parts that were read and are whole, or are reported
};

// One examination of an open database.
class Examiner {
 public:
  using Counted = std::function<void(size_t bytes)>;
  Examiner(Database& database, DoctorReport& report, const Counted& counted)
      : database_(database), report_(report), counted_(counted), objects_(database) {}

  void Run() {
    ReadTimelines();
    ExamineTables(database_.db(), report_);
    ReadEvents();
    ReadSessions();
    ReadSummaries();
    ReadKv();
    ReadAnchors();
    ReadFiles();
    ReadMeta();
  }

 private:
  // ---- reading

  // Visits all that can be read. Where a file is damaged a reader stops: then `resume` gives a key
  // to go on after, or the rest is read from the other end. False: something could not be read.
  template <typename Visit, typename Resume>
  bool ReadColumn(Column column, Visit visit, Resume resume) {
    const std::unique_ptr<rocksdb::Iterator> iterator = database_.Iterate(column);
    std::string last;
    for (iterator->SeekToFirst();;) {
      for (; iterator->Valid(); iterator->Next()) {
        last = iterator->key().ToString();
        Count(iterator->key().size() + iterator->value().size());
        visit(ToView(iterator->key()), ToView(iterator->value()));
      }
      if (iterator->status().ok()) return true;
      const std::optional<std::string> next = resume(last);
      if (!next.has_value()) break;
      last = *next;
      iterator->Seek(last + '\0');
    }
    const std::unique_ptr<rocksdb::Iterator> back = database_.Iterate(column);
    for (back->SeekToLast(); back->Valid() && back->key().compare(last) > 0; back->Prev()) {
      Count(back->key().size() + back->value().size());
      visit(ToView(back->key()), ToView(back->value()));
    }
    return false;
  }
  static std::optional<std::string> FromTheEnd(const std::string&) { return std::nullopt; }

  void Count(size_t bytes) {
    ++report_.records;
    report_.bytes += static_cast<int64_t>(bytes);
    counted_(bytes);
  }

  void Add(RecordKind kind, std::string_view key, const absl::Status& why) {
    if (!reported_.emplace(kind, std::string(key)).second) return;
    pending_.push_back({kind, std::string(key), Text(why)});
  }
  template <typename T>
  bool Whole(RecordKind kind, std::string_view key, const absl::StatusOr<T>& decoded) {
    if (!decoded.ok()) Add(kind, key, decoded.status());
    return decoded.ok();
  }
  bool Framed(RecordKind kind, std::string_view key, std::string_view value) {
    return Whole(kind, key, Unframe(kind, key, value));
  }

  // ---- column families

  void ReadTimelines() {
    ReadColumn(
        Column::kTimelines,
        [this](std::string_view key, std::string_view value) { ReadTimelineRecord(key, value); },
        FromTheEnd);
  }

  void ReadTimelineRecord(std::string_view key, std::string_view value) {
    switch (key.empty() ? '\0' : key[0]) {
      case 's':
        return ReadSessionRecord(key, value);
      case 'm':
        meta_.emplace(key.substr(1));
        return (void)Framed(RecordKind::kSessionMeta, key, value);
      case 'o':
        if (database_.format_version() < kSummaryVersion)
          return (void)Framed(RecordKind::kOwnerIndex, key, value);
        return (void)summaries_.emplace(key, value);
      case 't':
        if (auto record = DecodeTimeline(key, value); Whole(RecordKind::kTimeline, key, record))
          directory_.AddTimeline(BigEndianAt(key, 1), *std::move(record));
        return;
      case 'h':
        return (void)Whole(RecordKind::kHead, key, DecodeHead(key, value));
      case 'y':
        return (void)Whole(RecordKind::kTail, key, DecodeTail(key, value));
      case 'b':
        if (const auto block = DecodeDigest(RecordKind::kBlockEntry, key, value);
            Whole(RecordKind::kBlockEntry, key, block)) {
          directory_.AddBlock(*block, BigEndianAt(key, 1),
                              static_cast<int64_t>(BigEndianAt(key, 9)));
        }
        return;
      case 'a':
        if (const auto anchor = DecodeDigest(RecordKind::kAnchorEntry, key, value);
            Whole(RecordKind::kAnchorEntry, key, anchor)) {
          directory_.AddAnchor(*anchor, BigEndianAt(key, 1),
                               static_cast<int64_t>(BigEndianAt(key, 9)));
        }
        return;
      case 'w':
        if (const auto tree = DecodeDigest(RecordKind::kWorkspaceEntry, key, value);
            Whole(RecordKind::kWorkspaceEntry, key, tree)) {
          trees_.try_emplace(*tree, BigEndianAt(key, 1), BigEndianAt(key, 9));
        }
        return;
      case 'k':
        if (const auto name = DecodeBlockName(key, value);
            Whole(RecordKind::kBlockName, key, name)) {
          blocks_.emplace(DigestAt(key, 1), NamedBlock{*name, {}});
        }
        return;
      case 'n':
        if (const auto name = DecodeAnchorName(key, value);
            Whole(RecordKind::kAnchorName, key, name)) {
          anchors_.emplace(DigestAt(key, 1), *name);
        }
        return;
      case 'i':
        return (void)Framed(RecordKind::kAnchorIndex, key, value);
      case 'r':
        return (void)Framed(RecordKind::kAnchorReference, key, value);
      default:
        AddFile("unknown", "a record of the family timelines", "its key is of no known kind",
                Harm::kNothing, "unknown", "a newer agentctl may know it");
    }
  }

  void ReadSessionRecord(std::string_view key, std::string_view value) {
    ++report_.sessions;
    const auto record = DecodeSession(key, value);
    if (!Whole(RecordKind::kSession, key, record)) return;
    const std::string id(key.substr(1));
    directory_.AddSession(id, *record);
    sessions_.emplace(id, *record);
  }

  void ReadEvents() {
    ReadColumn(
        Column::kEvents,
        [this](std::string_view key, std::string_view value) {
          const auto event = DecodeEvent(key, value);
          if (!Whole(RecordKind::kEvent, key, event)) return;
          if (event->kind != static_cast<uint8_t>(EventKind::kWorkspace)) return;
          if (event->payload.size() == sizeof(TreeId)) {
            trees_.try_emplace(DigestAt(event->payload, 0), BigEndianAt(key, 0), event->seq);
            workspaces_[std::string(key)] = DigestAt(event->payload, 0);
          }
        },
        FromTheEnd);
  }

  // Each says what the sources say; where they cannot be read, that is told already.
  void ReadSummaries() {
    if (database_.format_version() < kSummaryVersion) return;
    PointSource source(database_, nullptr);
    for (const auto& [id, record] : sessions_) {
      const std::string key = OwnerIndexPrefix(database_.OwnerTag(record.owner)) + id;
      const auto found = summaries_.find(key);
      std::optional<std::string> stored;
      if (found != summaries_.end()) stored = std::move(found->second);
      if (found != summaries_.end()) summaries_.erase(found);
      absl::StatusOr<SessionInfo> info = ReadInfo(id, source);
      if (!info.ok()) continue;
      std::string right = EncodeSummary(key, SummaryOf(*std::move(info)));
      if (stored == right) continue;
      if (!stored.has_value()) {
        Add(RecordKind::kSummary, key, NotFound("it is missing"));
      } else if (Framed(RecordKind::kSummary, key, *stored)) {
        Add(RecordKind::kSummary, key, DataLoss("it is not what the session's records say"));
      }
      right_summaries_.emplace(key, std::move(right));
    }
    for (const auto& [key, value] : summaries_) {
      const std::string session_key = SessionKey(SessionInSummaryKey(key));
      if (!reported_.contains({RecordKind::kSession, session_key}))
        Add(RecordKind::kSession, session_key, NotFound("it is missing"));
    }
  }

  // What the daemon reads of a session: a record that is missing has no bytes to be damaged.
  void ReadSessions() {
    for (const auto& [id, record] : sessions_) {
      if (!meta_.contains(id))
        Add(RecordKind::kSessionMeta, SessionMetaKey(id), NotFound("it is missing"));
      const std::string timeline_key = TimelineKey(record.timeline);
      const absl::StatusOr<TimelineView> view = ReadTimeline(database_, record.timeline, nullptr);
      if (absl::IsNotFound(view.status()))
        Add(RecordKind::kTimeline, timeline_key, NotFound("it is missing"));
      else if (!view.ok() && !reported_.contains({RecordKind::kTimeline, timeline_key}))
        Add(RecordKind::kHead, HeadKey(record.timeline), view.status());
      if (!view.ok()) continue;
      for (uint64_t next = 1; next <= view->head.last_seq; next += kEventsAtOnce) {
        const auto events = ReadEventRange(database_, *view, next, kEventsAtOnce, nullptr);
        if (events.ok()) continue;
        AddBrokenLog(id, *view, next, events.status());
        break;
      }
    }
  }

  // Finds the first event that stops a reader, unless its own damage is reported already.
  void AddBrokenLog(const std::string& id, const TimelineView& view, uint64_t from,
                    const absl::Status& why) {
    for (uint64_t seq = from; seq <= view.head.last_seq; ++seq) {
      const auto event = ReadEventRange(database_, view, seq, 1, nullptr);
      if (event.ok()) continue;
      const std::string key = EventKey(view.TimelineOf(seq), seq);
      return Add(RecordKind::kEvent, key, event.status());
    }
    Finding finding;
    finding.harm = Harm::kSession;
    finding.kind = "event";
    finding.what = "the events of session " + id;
    finding.reason = Text(why);
    finding.costs = "the session is refused";
    finding.mend = kFromBackup;
    finding.sessions = {id};
    report_.findings.push_back(std::move(finding));
  }

  void ReadKv() {
    const auto resume = [this](const std::string& last) { return NextPart(last); };
    ReadColumn(
        Column::kKv, [this](std::string_view key, std::string_view value) { ReadPart(key, value); },
        resume);
    for (auto& [block, named] : blocks_) {
      for (uint32_t part = 0; part < named.name.parts; ++part) {
        if (named.seen.contains(part)) continue;
        const std::string key = KvPartKey(block, part);
        rocksdb::PinnableSlice value;
        const absl::StatusOr<bool> found = database_.GetPinned(Column::kKv, key, nullptr, value);
        Add(RecordKind::kKvPart, key, found.ok() ? NotFound("it is missing") : found.status());
      }
    }
  }

  void ReadPart(std::string_view key, std::string_view value) {
    const auto part = DecodeKvPart(key, value);
    const auto found =
        key.size() < sizeof(BlockHash) ? blocks_.end() : blocks_.find(DigestAt(key, 0));
    if (found == blocks_.end()) return Leftover();
    NamedBlock& named = found->second;
    if (key.size() == sizeof(BlockHash) + 4)
      named.seen.insert(static_cast<uint32_t>(BigEndianAt(key, key.size() - 8)));
    if (!Whole(RecordKind::kKvPart, key, part)) return;
    if (part->identity != named.name.identity || part->parent != named.name.parent ||
        part->block != named.name.block || part->parts != named.name.parts) {
      Add(RecordKind::kKvPart, key, DataLoss("it does not fit its name"));
    }
  }

  // The first part behind `last` that should be there: a reader stopped at it.
  std::optional<std::string> NextPart(const std::string& last) const {
    auto block =
        last.size() < sizeof(BlockHash) ? blocks_.begin() : blocks_.lower_bound(DigestAt(last, 0));
    for (; block != blocks_.end(); ++block) {
      for (uint32_t part = 0; part < block->second.name.parts; ++part) {
        std::string key = KvPartKey(block->first, part);
        if (key > last) return key;
      }
    }
    return std::nullopt;
  }

  void ReadAnchors() {
    std::set<Sha256Digest> seen;
    const auto visit = [&](std::string_view key, std::string_view value) {
      const auto anchor = DecodeAnchor(key, value);
      const auto found =
          key.size() != sizeof(Sha256Digest) ? anchors_.end() : anchors_.find(DigestAt(key, 0));
      if (found != anchors_.end()) seen.insert(found->first);
      if (found == anchors_.end()) return Leftover();
      if (!Whole(RecordKind::kAnchor, key, anchor)) return;
      const AnchorName& name = found->second;
      if (anchor->identity != name.identity || anchor->parent != name.parent ||
          anchor->position != name.position) {
        Add(RecordKind::kAnchor, key, DataLoss("it does not fit its name"));
      }
    };
    const auto resume = [this](const std::string& last) -> std::optional<std::string> {
      const auto next = last.empty() ? anchors_.begin() : anchors_.upper_bound(DigestAt(last, 0));
      if (next == anchors_.end()) return std::nullopt;
      return AnchorKey(next->first);
    };
    ReadColumn(Column::kAnchors, visit, resume);
    for (const auto& [anchor, name] : anchors_) {
      if (seen.contains(anchor)) continue;
      const std::string key = AnchorKey(anchor);
      const auto value = database_.Get(Column::kAnchors, key);
      Add(RecordKind::kAnchor, key, value.ok() ? NotFound("it is missing") : value.status());
    }
  }

  // Trees from their roots, so that an object has a path; what no tree reaches is left over.
  void ReadFiles() {
    for (const auto& [tree, place] : trees_) ReadTree(tree, place);
    ReadColumn(
        Column::kFiles,
        [this](std::string_view key, std::string_view value) {
          if (objects_seen_.contains(std::string(key))) return;
          const bool chunk = key.starts_with('c');
          const RecordKind kind = chunk ? RecordKind::kChunk : RecordKind::kDirectory;
          if (chunk ? Framed(kind, key, value) : Whole(kind, key, DecodeDirectory(key, value)))
            Leftover();
        },
        FromTheEnd);
  }

  void ReadTree(const TreeId& tree, std::pair<TimelineId, uint64_t> place) {
    std::vector<std::pair<TreeId, std::string>> pending = {{tree, ""}};
    while (!pending.empty()) {
      const auto [id, path] = std::move(pending.back());
      pending.pop_back();
      const std::string key = objects_.DirectoryKeyOf(id);
      if (!objects_seen_.insert(key).second) continue;
      directory_.AddFile(key, place.first, place.second, path.empty() ? "." : path);
      const auto entries = objects_.ReadDirectory(id);
      if (!Whole(RecordKind::kDirectory, key, entries)) continue;
      if (Sha256Of(DirectoryPayload(*entries)) != id)
        Add(RecordKind::kDirectory, key, DataLoss("its contents are not those of its address"));
      for (const DirectoryEntry& entry : *entries) {
        const std::string inner = path.empty() ? entry.name : path + "/" + entry.name;
        for (const Sha256Digest& child : entry.chunks) {
          if (entry.type == EntryType::kDirectory) {
            pending.emplace_back(child, inner);
          } else {
            ReadChunk(child, place, inner);
          }
        }
      }
    }
  }

  void ReadChunk(const Sha256Digest& id, std::pair<TimelineId, uint64_t> place,
                 const std::string& path) {
    const std::string key = objects_.ChunkKeyOf(id);
    if (!objects_seen_.insert(key).second) return;
    directory_.AddFile(key, place.first, place.second, path);
    const auto chunk = objects_.ReadChunk(id);
    if (!Whole(RecordKind::kChunk, key, chunk)) return;
    if (Sha256Of(*chunk) != id)
      Add(RecordKind::kChunk, key, DataLoss("its contents are not those of its address"));
  }

  void ReadMeta() {
    ReadColumn(
        Column::kMeta,
        [this](std::string_view key, std::string_view value) {
          if (key.starts_with('u')) return (void)Framed(RecordKind::kOwnerKey, key, value);
          if (key.starts_with('p')) return (void)Framed(RecordKind::kIntent, key, value);
          if (key == kErasureKey) return (void)Framed(RecordKind::kErasure, key, value);
          if (key == kNextTimelineKey)
            (void)Whole(RecordKind::kNextTimeline, key,
                        DecodeNumber(RecordKind::kNextTimeline, key, value));
        },
        FromTheEnd);
  }

  // ---- what was found

  void Leftover() { ++report_.leftovers; }

  void AddFile(const char* kind, const std::string& what, const std::string& reason, Harm harm,
               const char* costs, const char* mend) {
    report_.findings.push_back({harm, kind, what, reason, costs, mend, {}});
  }

 public:
  // How many findings Mending makes good.
  size_t mendable() const {
    return static_cast<size_t>(
        std::count_if(pending_.begin(), pending_.end(), [](const Pending& pending) {
          const Harm harm = Directory().Explain(pending.kind, pending.key).harm;
          return harm == Harm::kNothing || harm == Harm::kTime;
        }));
  }
  // What Mend writes; call it after Run.
  std::vector<WriteEntry> Mending() const {
    std::vector<WriteEntry> writes;
    const auto drop = [&](Column column, std::string key) {
      writes.push_back({column, std::move(key), std::nullopt});
    };
    // The next start sweeps a value that has an intent and no name.
    const auto unname = [&](char column, const Sha256Digest& digest) {
      drop(Column::kTimelines, column == 'k' ? BlockNameKey(digest) : AnchorNameKey(digest));
      const std::string intent = IntentKey(column, View(digest));
      writes.push_back({Column::kMeta, intent, EncodeNumber(RecordKind::kIntent, intent, 0)});
    };
    for (const Pending& pending : pending_) {
      const std::string& key = pending.key;
      switch (pending.kind) {
        case RecordKind::kOwnerIndex:
        case RecordKind::kAnchorIndex:
        case RecordKind::kAnchorReference:
          writes.push_back({Column::kTimelines, key, Frame(pending.kind, key, "")});
          break;
        case RecordKind::kSummary:
          writes.push_back({Column::kTimelines, key, right_summaries_.at(key)});
          break;
        case RecordKind::kTail:
        case RecordKind::kBlockEntry:
        case RecordKind::kAnchorEntry:
          drop(Column::kTimelines, key);
          break;
        case RecordKind::kWorkspaceEntry:
          if (const auto tree = workspaces_.find(key.substr(1)); tree != workspaces_.end())
            writes.push_back(
                {Column::kTimelines, key, EncodeDigest(pending.kind, key, tree->second)});
          break;
        case RecordKind::kBlockName:
        case RecordKind::kKvPart:
          unname('k', DigestAt(key, pending.kind == RecordKind::kKvPart ? 0 : 1));
          break;
        case RecordKind::kAnchorName:
        case RecordKind::kAnchor:
          unname('a', DigestAt(key, pending.kind == RecordKind::kAnchor ? 0 : 1));
          break;
        case RecordKind::kErasure:
          writes.push_back({Column::kMeta, key, Frame(pending.kind, key, "")});
          break;
        case RecordKind::kOwnerKey:
        case RecordKind::kNextTimeline:
        case RecordKind::kIntent:
          drop(Column::kMeta, key);
          break;
        default:
          break;
      }
    }
    return writes;
  }

  // Names need all that was read.
  void Finish() {
    for (const Pending& pending : pending_) {
      Finding finding = directory_.Explain(pending.kind, pending.key);
      finding.reason = pending.reason;
      report_.findings.push_back(std::move(finding));
    }
  }

 private:
  struct Pending {
    RecordKind kind;
    std::string key, reason;
  };

  Database& database_;
  DoctorReport& report_;
  const Counted& counted_;
  FileObjects objects_;
  Directory directory_;
  std::vector<Pending> pending_;
  std::set<std::pair<RecordKind, std::string>> reported_;
  std::map<std::string, SessionRecord> sessions_;
  std::set<std::string> meta_;                          // sessions that have one
  std::map<std::string, std::string> summaries_;        // by key, as they are stored
  std::map<std::string, std::string> right_summaries_;  // what wrong ones should be
  std::map<BlockHash, NamedBlock> blocks_;
  std::map<Sha256Digest, AnchorName> anchors_;
  std::map<TreeId, std::pair<TimelineId, uint64_t>> trees_;
  std::map<std::string, TreeId> workspaces_;  // as the log tells, by the events' keys
  std::set<std::string> objects_seen_;
};

}  // namespace
}  // namespace internal

absl::StatusOr<DoctorReport> Examine(
    const std::filesystem::path& directory, const StoreKeys& keys,
    const std::function<void(const DoctorReport& so_far)>& progress) {
  using namespace internal;  // NOLINT(google-build-using-namespace): this file is its front
  DoctorReport report;
  std::error_code error;
  if (!std::filesystem::exists(directory / "FORMAT", error)) {
    if (!std::filesystem::exists(directory / "db", error))
      return NotFound("{} holds no session store", directory.string());
    AddStoreFinding(report, "format", "file " + (directory / "FORMAT").string(), "it is missing");
    return report;
  }
  if (IsRewriteCutOff(directory)) {
    report.findings.push_back({Harm::kStore,
                               "rewrite",
                               "folder " + (directory / kRewriteName).string(),
                               "a rewriting of the store was cut off",
                               "the store is refused; its sessions are as they were before",
                               "begin it anew, with the same keys: agentd --rewrite-store; or give "
                               "it up: remove the folder",
                               {}});
  }
  ExamineEpoch(directory, report);
  ExamineRecoveryFiles(directory, report);
  absl::StatusOr<std::unique_ptr<Database>> database = Database::OpenForReading(directory, keys);
  if (absl::IsFailedPrecondition(database.status()) ||
      absl::IsPermissionDenied(database.status()) || absl::IsInvalidArgument(database.status()))
    return database.status();
  if (!database.ok()) {
    ExplainRefusal(directory, database.status(), report);
  } else {
    size_t unsaid = 0;
    const std::function<void(size_t)> counted = [&](size_t bytes) {
      unsaid += bytes;
      if (unsaid < kProgressBytes || !progress) return;
      unsaid = 0;
      progress(report);
    };
    if ((*database)->format_encrypted()) ExamineKeys(directory, report);
    if ((*database)->sealed()) {
      ExamineTables((*database)->db(), report);
      ExamineSealed(**database, report, counted);
    } else {
      Examiner examiner(**database, report, counted);
      examiner.Run();
      examiner.Finish();
    }
  }
  std::stable_sort(report.findings.begin(), report.findings.end(),
                   [](const Finding& a, const Finding& b) { return a.harm > b.harm; });
  return report;
}

absl::StatusOr<int64_t> Mend(const std::filesystem::path& directory, const StoreKeys& keys) {
  using namespace internal;  // NOLINT(google-build-using-namespace)
  InternalOptions options;
  options.keys_if_encrypted = true;
  ASSIGN_OR_RETURN(const std::unique_ptr<Database> database,
                   Database::Open(directory, /*create_if_missing=*/false, options, keys));
  DoctorReport report;
  const std::function<void(size_t)> counted = [](size_t) {};
  Examiner examiner(*database, report, counted);
  examiner.Run();
  const std::vector<WriteEntry> writes = examiner.Mending();
  RETURN_IF_ERROR(database->Write(writes, /*sync=*/true));
  return static_cast<int64_t>(examiner.mendable());
}

}  // namespace agentd::sessions
