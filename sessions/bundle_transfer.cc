// A session's way into a bundle and out of one, by what Store offers everybody.
#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/status.h"
#include "sessions/bundle.h"
#include "sessions/bytes.h"

namespace agentd::sessions {
namespace {

using internal::DigestAt;
using Kind = BundlePiece::Kind;

constexpr int kExportEvents = 256;     // read at once
constexpr int64_t kExportBlocks = 16;  // read at once, 14 MB of V4-Flash
// What one commit of an import takes at most, or one event's or block's that has more.
constexpr size_t kImportBytes = 16 << 20;
constexpr size_t kImportEvents = 4096;

bool IsLost(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsNotFound(status);
}

int64_t WallClockUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// ---- export

class Exporter {
 public:
  Exporter(Store& store, const ByteSink& sink) : store_(store), writer_(sink) {}

  absl::StatusOr<BundleSummary> Run(const std::string& session_id, bool with_kv) {
    ASSIGN_OR_RETURN(info_, store_.Get(session_id));
    BundleSession& session = summary_.session;
    session.id = info_.id;
    session.created_us = info_.created_us;
    session.exported_us = WallClockUs();
    session.seed = info_.seed;
    session.last_seq = info_.last_seq;
    session.tokens = info_.tokens;
    session.kv_identity = store_.kv_identity();
    session.meta = info_.meta;
    RETURN_IF_ERROR(writer_.Begin(session));
    // Twice through the log, so that no more than a page of it is in memory: files come first.
    RETURN_IF_ERROR(ForEachEvent([this](const Event& event) { return WriteTreeOf(event); }));
    RETURN_IF_ERROR(ForEachEvent([this](const Event& event) { return WriteEvent(event); }));
    if (with_kv) RETURN_IF_ERROR(WriteKv());
    RETURN_IF_ERROR(writer_.End());
    summary_.bytes = writer_.bytes_written();
    return std::move(summary_);
  }

 private:
  template <typename Visit>
  absl::Status ForEachEvent(Visit visit) {
    for (uint64_t next = 1; next <= info_.last_seq;) {
      ASSIGN_OR_RETURN(const std::vector<Event> events,
                       store_.ReadEvents(info_.timeline, next, kExportEvents));
      if (events.empty()) {
        return DataLoss("session {}: event {} of {} is missing", info_.id, next, info_.last_seq);
      }
      for (const Event& event : events) {
        if (event.seq > info_.last_seq) return absl::OkStatus();  // came meanwhile
        RETURN_IF_ERROR(visit(event));
      }
      next = events.back().seq + 1;
    }
    return absl::OkStatus();
  }

  absl::Status WriteTreeOf(const Event& event) {
    if (event.kind != static_cast<uint8_t>(EventKind::kWorkspace)) return absl::OkStatus();
    if (event.payload.size() != sizeof(TreeId))
      return DataLoss("session {}: event {} names no workspace tree", info_.id, event.seq);
    const TreeId tree = DigestAt(event.payload, 0);
    if (!trees_.insert(tree).second) return absl::OkStatus();
    BundlePiece piece;
    const absl::Status visited =
        store_.VisitTree(tree, objects_, [&](bool directory, std::string_view bytes) {
          piece.kind = directory ? Kind::kDirectory : Kind::kChunk;
          piece.bytes = std::string(bytes);
          ++summary_.objects;
          return writer_.Write(piece);
        });
    if (!visited.ok()) {
      return Annotate(visited,
                      fmt::format("session {}: the files as of event {}", info_.id, event.seq));
    }
    piece.kind = Kind::kTree;
    piece.tree = tree;
    return writer_.Write(piece);
  }

  absl::Status WriteEvent(const Event& event) {
    tokens_.insert(tokens_.end(), event.tokens.begin(), event.tokens.end());
    for (const TokenId token : event.tokens)
      summary_.max_token = std::max(summary_.max_token, token);
    BundlePiece piece;
    piece.kind = Kind::kEvent;
    piece.event = event;
    return writer_.Write(piece);
  }

  absl::Status WriteKv() {
    const int64_t end = static_cast<int64_t>(tokens_.size());
    ASSIGN_OR_RETURN(RestorePoint point, store_.FindRestorePoint(info_.owner, tokens_, end));
    ASSIGN_OR_RETURN(const int64_t blocks, WriteBlocks(point.blocks));
    summary_.blocks = blocks;
    // The newest first here, the oldest first in the bundle.
    std::vector<BundlePiece> anchors;
    int64_t limit = std::min(point.position, (blocks + 1) * kBlockTokens - 1);
    while (limit > 0 && anchors.size() < kBundleAnchors) {
      ASSIGN_OR_RETURN(point, store_.FindRestorePoint(info_.owner, tokens_, limit));
      if (point.position == 0) break;
      absl::StatusOr<std::string> anchor = store_.ReadAnchor(point.anchor, point.position);
      limit = point.position - 1;
      if (!anchor.ok() && !IsLost(anchor.status())) return anchor.status();
      if (!anchor.ok()) continue;
      BundlePiece& piece = anchors.emplace_back();
      piece.kind = Kind::kAnchor;
      piece.position = point.position;
      piece.bytes = *std::move(anchor);
    }
    std::reverse(anchors.begin(), anchors.end());
    for (const BundlePiece& piece : anchors) RETURN_IF_ERROR(writer_.Write(piece));
    if (!anchors.empty()) summary_.kv_position = anchors.back().position;
    return absl::OkStatus();
  }

  // As many as are whole.
  absl::StatusOr<int64_t> WriteBlocks(const std::vector<BlockHash>& hashes) {
    const int64_t count = static_cast<int64_t>(hashes.size());
    for (int64_t first = 0; first < count; first += kExportBlocks) {
      const int64_t last = std::min(count, first + kExportBlocks);
      std::vector<BlockPart> wanted;
      std::vector<int> parts;
      for (int64_t block = first; block < last; ++block) {
        const BlockHash& hash = hashes[static_cast<size_t>(block)];
        const absl::StatusOr<int> of_block = store_.CountBlockParts(hash);
        if (!of_block.ok() && !IsLost(of_block.status())) return of_block.status();
        if (!of_block.ok()) break;
        parts.push_back(*of_block);
        for (int part = 0; part < *of_block; ++part) wanted.push_back({hash, part});
      }
      std::vector<absl::StatusOr<std::string>> read = store_.ReadBlockParts(wanted);
      size_t next = 0;
      for (size_t i = 0; i < parts.size(); ++i) {
        const int64_t block = first + static_cast<int64_t>(i);
        for (int part = 0; part < parts[i]; ++part) {
          const absl::Status status = read[next + static_cast<size_t>(part)].status();
          if (IsLost(status)) return block;
          RETURN_IF_ERROR(status);
        }
        for (int part = 0; part < parts[i]; ++part, ++next) {
          BundlePiece piece;
          piece.kind = Kind::kBlockPart;
          piece.block = block;
          piece.part = static_cast<uint32_t>(part);
          piece.parts = static_cast<uint32_t>(parts[i]);
          piece.bytes = *std::move(read[next]);
          RETURN_IF_ERROR(writer_.Write(piece));
        }
      }
      if (static_cast<int64_t>(parts.size()) < last - first)
        return first + static_cast<int64_t>(parts.size());
    }
    return count;
  }

  Store& store_;
  BundleWriter writer_;
  SessionInfo info_;
  BundleSummary summary_;
  std::set<TreeId> trees_;
  std::set<std::string> objects_;
  std::vector<TokenId> tokens_;
};

// ---- import

class Importer {
 public:
  Importer(Store& store, bool with_kv, const std::function<void(NewEvent&)>& adjust)
      : store_(store), with_kv_(with_kv), adjust_(adjust) {}

  absl::StatusOr<ImportedBundle> Run(BundleReader& reader, const NewSession& fresh) {
    ASSIGN_OR_RETURN(imported_.session, store_.Create(fresh));
    const absl::Status status = TakeAll(reader);
    if (status.ok()) return std::move(imported_);
    tree_.reset();  // a Delete waits for it
    snapshots_.clear();
    const absl::Status deleted = store_.Delete(imported_.session.id);
    if (deleted.ok()) return status;
    return Annotate(status, fmt::format("session {} is half imported and not deleted ({})",
                                        imported_.session.id, Text(deleted)));
  }

 private:
  absl::Status TakeAll(BundleReader& reader) {
    commit_.timeline = imported_.session.timeline;
    own_kv_ = reader.session().kv_identity == store_.kv_identity();
    BundlePiece piece;
    for (;;) {
      ASSIGN_OR_RETURN(const bool more, reader.Next(piece));
      if (!more) break;
      RETURN_IF_ERROR(Take(piece));
    }
    return Commit();
  }

  absl::Status Take(BundlePiece& piece) {
    switch (piece.kind) {
      case Kind::kChunk:
        return Tree().PutChunk(piece.bytes);
      case Kind::kDirectory:
        return Tree().PutDirectory(piece.bytes);
      case Kind::kTree: {
        ASSIGN_OR_RETURN(WorkspaceSnapshot snapshot, Tree().Finish(piece.tree));
        tree_.reset();
        snapshots_.emplace(piece.tree, std::move(snapshot));
        return absl::OkStatus();
      }
      case Kind::kEvent:
        return TakeEvent(piece.event);
      case Kind::kBlockPart:
        if (!TakesKv()) return absl::OkStatus();
        return TakePart(piece);
      case Kind::kAnchor:
        if (!TakesKv()) return absl::OkStatus();
        commit_.anchor = KvAnchor{piece.position, std::move(piece.bytes), /*tail=*/false};
        imported_.kv_position = piece.position;
        return Commit();
    }
    return absl::OkStatus();
  }

  TreeWriter& Tree() {
    if (tree_ == nullptr) tree_ = store_.WriteTree();
    return *tree_;
  }

  bool TakesKv() {
    imported_.kv_refused = imported_.kv_refused || (with_kv_ && !own_kv_);
    return with_kv_ && own_kv_;
  }

  absl::Status TakeEvent(Event& event) {
    NewEvent added;
    added.kind = event.kind;
    added.sampled = event.sampled;
    added.time_us = event.time_us;
    added.tokens = std::move(event.tokens);
    added.payload = std::move(event.payload);
    if (event.kind == static_cast<uint8_t>(EventKind::kWorkspace)) {
      imported_.workspace = DigestAt(added.payload, 0);
      added.hold = snapshots_.at(*imported_.workspace).hold;
    } else if (adjust_ && event.kind >= kFirstCallerKind) {
      adjust_(added);
    }
    bytes_ += added.payload.size() + added.tokens.size() * sizeof(TokenId);
    commit_.events.push_back(std::move(added));
    const bool full = bytes_ >= kImportBytes || commit_.events.size() >= kImportEvents;
    return full ? Commit() : absl::OkStatus();
  }

  absl::Status TakePart(BundlePiece& piece) {
    if (piece.part == 0) {
      // Their events are theirs to wait for: a block is one of tokens that are there.
      if (!commit_.events.empty()) RETURN_IF_ERROR(Commit());
      commit_.blocks.push_back({piece.block, {}});
    }
    bytes_ += piece.bytes.size();
    commit_.blocks.back().parts.push_back(std::move(piece.bytes));
    const bool whole = piece.part + 1 == piece.parts;
    return whole && bytes_ >= kImportBytes ? Commit() : absl::OkStatus();
  }

  absl::Status Commit() {
    if (commit_.events.empty() && commit_.blocks.empty() && !commit_.anchor.has_value())
      return absl::OkStatus();
    sessions::Commit next;
    next.timeline = commit_.timeline;
    bytes_ = 0;
    return store_.CommitSync(std::exchange(commit_, std::move(next))).status();
  }

  Store& store_;
  const bool with_kv_;
  const std::function<void(NewEvent&)>& adjust_;
  bool own_kv_ = false;
  ImportedBundle imported_;
  std::unique_ptr<TreeWriter> tree_;
  std::map<TreeId, WorkspaceSnapshot> snapshots_;  // held until their events are committed
  sessions::Commit commit_;                        // what is gathered
  size_t bytes_ = 0;                               // of it
};

}  // namespace

absl::StatusOr<BundleSummary> ExportBundle(Store& store, const std::string& session_id,
                                           bool with_kv, const ByteSink& sink) {
  return Exporter(store, sink).Run(session_id, with_kv);
}

absl::StatusOr<BundleSummary> VerifyBundle(
    const ByteSource& source, const std::function<absl::Status(const BundleSession&)>& begin,
    const std::function<absl::Status(const Event&)>& visit) {
  ASSIGN_OR_RETURN(const std::unique_ptr<BundleReader> reader, BundleReader::Open(source));
  BundleSummary summary;
  summary.session = reader->session();
  if (begin) RETURN_IF_ERROR(begin(summary.session));
  BundlePiece piece;
  for (;;) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(piece));
    if (!more) return summary;
    if (piece.kind == Kind::kChunk || piece.kind == Kind::kDirectory) ++summary.objects;
    if (piece.kind == Kind::kBlockPart && piece.part == 0) ++summary.blocks;
    if (piece.kind == Kind::kAnchor) summary.kv_position = piece.position;
    if (piece.kind != Kind::kEvent) continue;
    for (const TokenId token : piece.event.tokens)
      summary.max_token = std::max(summary.max_token, token);
    if (visit) RETURN_IF_ERROR(visit(piece.event));
  }
}

absl::StatusOr<ImportedBundle> ImportBundle(Store& store, const ByteSource& source,
                                            const NewSession& fresh, bool with_kv,
                                            const std::function<void(NewEvent&)>& adjust) {
  ASSIGN_OR_RETURN(const std::unique_ptr<BundleReader> reader, BundleReader::Open(source));
  return Importer(store, with_kv, adjust).Run(*reader, fresh);
}

}  // namespace agentd::sessions
