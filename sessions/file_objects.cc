#include "sessions/file_objects.h"

#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"

namespace agentd::sessions::internal {

absl::Status FileObjects::Writer::PutChunk(const Sha256Digest& id, std::string_view data) {
  return Put(RecordKind::kChunk, objects_.ChunkKeyOf(id), data);
}

absl::StatusOr<Sha256Digest> FileObjects::Writer::PutDirectory(std::string_view payload) {
  const Sha256Digest id = Sha256Of(payload);
  RETURN_IF_ERROR(Put(RecordKind::kDirectory, objects_.DirectoryKeyOf(id), payload));
  return id;
}

absl::Status FileObjects::Writer::Put(RecordKind kind, std::string key, std::string_view payload) {
  if (!seen_.insert(key).second) return absl::OkStatus();
  // Read it back rather than trust its presence: a damaged object is replaced by this good one.
  const absl::StatusOr<std::optional<std::string>> stored =
      objects_.database_.Get(Column::kFiles, key);
  if (stored.ok() && stored->has_value() && Unframe(kind, key, **stored).ok())
    return absl::OkStatus();
  const std::string intent = IntentKey('f', key);
  intents_.push_back({Column::kMeta, intent, Frame(RecordKind::kIntent, intent, "")});
  intent_keys_.push_back(intent);
  std::string value = Frame(kind, key, payload);
  pending_bytes_ += value.size();
  values_.push_back({Column::kFiles, std::move(key), std::move(value)});
  return pending_bytes_ < (8 << 20) ? absl::OkStatus() : Flush();
}

absl::Status FileObjects::Writer::Flush() {
  if (values_.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(objects_.database_.Write(intents_, /*sync=*/false));
  RETURN_IF_ERROR(objects_.database_.WriteUnlogged(values_));
  CrashPoint("snapshot_objects");
  intents_.clear();
  values_.clear();
  pending_bytes_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<FileObjects::Hold> FileObjects::Writer::Finish(const TreeId& tree) {
  RETURN_IF_ERROR(Flush());
  Hold hold = objects_.HoldTree(tree);
  std::lock_guard lock(objects_.held_->mutex);
  std::vector<std::string>& intents = objects_.held_->trees[tree].intents;
  intents.insert(intents.end(), intent_keys_.begin(), intent_keys_.end());
  return hold;
}

std::string FileObjects::ChunkKeyOf(const Sha256Digest& id) const {
  return ChunkKey(database_.ObjectTag(id));
}

std::string FileObjects::DirectoryKeyOf(const Sha256Digest& id) const {
  return DirectoryKey(database_.ObjectTag(id));
}

absl::StatusOr<std::string> FileObjects::ReadChunk(const Sha256Digest& id) const {
  const std::string key = ChunkKeyOf(id);
  absl::StatusOr<std::optional<std::string>> value = database_.Get(Column::kFiles, key);
  if (!value.ok()) return Annotate(value.status(), Describe(RecordKind::kChunk, key));
  if (!value->has_value()) return DataLoss("{} is missing", Describe(RecordKind::kChunk, key));
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kChunk, key, **value));
  return std::string(payload);
}

absl::StatusOr<std::vector<DirectoryEntry>> FileObjects::ReadDirectory(
    const Sha256Digest& id) const {
  const std::string key = DirectoryKeyOf(id);
  absl::StatusOr<std::optional<std::string>> value = database_.Get(Column::kFiles, key);
  if (!value.ok()) return Annotate(value.status(), Describe(RecordKind::kDirectory, key));
  if (!value->has_value()) return DataLoss("{} is missing", Describe(RecordKind::kDirectory, key));
  return DecodeDirectory(key, **value);
}

absl::Status FileObjects::CheckTree(const TreeId& tree) const {
  const std::string key = DirectoryKeyOf(tree);
  ASSIGN_OR_RETURN(const std::optional<std::string> value, database_.Get(Column::kFiles, key));
  if (!value.has_value()) return NotFound("workspace tree {} is not stored", Hex(tree));
  return DecodeDirectory(key, *value).status();
}

FileObjects::Hold FileObjects::HoldTree(const TreeId& tree) {
  {
    std::lock_guard lock(held_->mutex);
    ++held_->trees[tree].holds;
  }
  // Owns nothing but the duty to give it back.
  return Hold(this, [held = held_, tree](const void*) {
    std::lock_guard lock(held->mutex);
    const auto found = held->trees.find(tree);
    if (--found->second.holds == 0) held->trees.erase(found);
  });
}

std::vector<TreeId> FileObjects::Held() const {
  std::lock_guard lock(held_->mutex);
  std::vector<TreeId> trees;
  for (const auto& [tree, held] : held_->trees) trees.push_back(tree);
  return trees;
}

std::vector<std::string> FileObjects::IntentsOf(const TreeId& tree) const {
  std::lock_guard lock(held_->mutex);
  const auto found = held_->trees.find(tree);
  return found == held_->trees.end() ? std::vector<std::string>() : found->second.intents;
}

absl::Status FileObjects::Mark(const TreeId& tree, std::set<std::string>& keys) const {
  std::vector<Sha256Digest> pending = {tree};
  while (!pending.empty()) {
    const Sha256Digest id = pending.back();
    pending.pop_back();
    if (!keys.insert(DirectoryKeyOf(id)).second) continue;  // shared with a tree seen before
    const absl::StatusOr<std::vector<DirectoryEntry>> entries = ReadDirectory(id);
    if (!entries.ok()) {
      if (absl::IsDataLoss(entries.status())) continue;
      return entries.status();
    }
    for (const DirectoryEntry& entry : *entries) {
      for (const Sha256Digest& child : entry.chunks) {
        if (entry.type == EntryType::kDirectory) {
          pending.push_back(child);
        } else {
          keys.insert(ChunkKeyOf(child));
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status FileObjects::Visit(
    const TreeId& tree, std::set<std::string>& seen,
    const std::function<absl::Status(bool directory, std::string_view bytes)>& visit) const {
  struct Open {
    std::string key;
    std::vector<DirectoryEntry> entries;
    size_t next = 0;
  };
  std::vector<Open> path;
  const auto enter = [&](const Sha256Digest& id) -> absl::Status {
    std::string key = DirectoryKeyOf(id);
    if (seen.contains(key)) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::vector<DirectoryEntry> entries, ReadDirectory(id));
    path.push_back({std::move(key), std::move(entries)});
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(enter(tree));
  while (!path.empty()) {
    Open& open = path.back();
    if (open.next == open.entries.size()) {
      const std::string bytes = DirectoryPayload(open.entries);
      if (DirectoryKeyOf(Sha256Of(bytes)) != open.key)
        return DataLoss("{} holds another one", Describe(RecordKind::kDirectory, open.key));
      RETURN_IF_ERROR(visit(true, bytes));
      seen.insert(open.key);
      path.pop_back();
      continue;
    }
    const DirectoryEntry& entry = open.entries[open.next++];
    if (entry.type == EntryType::kDirectory) {
      const Sha256Digest child = entry.chunks[0];  // `entry` moves with `path`
      RETURN_IF_ERROR(enter(child));
      continue;
    }
    for (const Sha256Digest& id : entry.chunks) {
      const std::string key = ChunkKeyOf(id);
      if (seen.contains(key)) continue;
      ASSIGN_OR_RETURN(const std::string bytes, ReadChunk(id));
      if (Sha256Of(bytes) != id)
        return DataLoss("{} holds another one", Describe(RecordKind::kChunk, key));
      RETURN_IF_ERROR(visit(false, bytes));
      seen.insert(key);
    }
  }
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
