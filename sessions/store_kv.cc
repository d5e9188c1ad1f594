// Restore points and verified reads of KV values.
#include <algorithm>
#include <memory>

#include "base/status.h"
#include "sessions/keys.h"
#include "sessions/store_impl.h"
#include "sessions/value_removal.h"

namespace agentd::sessions::internal {
namespace {

// A name that cannot be read offers nothing: what it names is computed again.
bool IsNamed(const Database& database, const std::string& name_key) {
  const absl::StatusOr<std::optional<std::string>> name =
      database.Get(Column::kTimelines, name_key);
  return name.ok() && name->has_value();
}

}  // namespace

// The newest anchor for `tokens` at or before `max_position` among those whose last whole block is
// `blocks` - 1.
absl::StatusOr<std::optional<Sha256Digest>> StoreImpl::FindAnchor(
    const BlockHasher& hasher, const std::vector<BlockHash>& hashes,
    std::span<const TokenId> tokens, int64_t blocks, int64_t max_position,
    int64_t* position) const {
  const BlockHash& parent = ParentAt(hasher, hashes, blocks * kBlockTokens);
  const std::string prefix = AnchorIndexPrefix(parent);
  Sha256Digest last;
  last.fill(0xff);
  const std::unique_ptr<rocksdb::Iterator> iterator = database_->Iterate(Column::kTimelines);
  iterator->SeekForPrev(AnchorIndexKey(parent, max_position, last));
  for (; iterator->Valid() && iterator->key().starts_with(prefix); iterator->Prev()) {
    const std::string_view key = ToView(iterator->key());
    if (key.size() != prefix.size() + 8 + sizeof(Sha256Digest)) continue;
    *position = static_cast<int64_t>(BigEndianAt(key, prefix.size()));
    if (*position > max_position || *position < blocks * kBlockTokens) continue;
    const Sha256Digest anchor = DigestAt(key, prefix.size() + 8);
    if (anchor != PrefixAt(hasher, hashes, tokens, *position)) continue;
    if (IsNamed(*database_, AnchorNameKey(anchor))) return std::optional(anchor);
  }
  const absl::Status status = Translate(iterator->status(), "looking for an anchor");
  if (!status.ok() && !absl::IsDataLoss(status)) return status;
  return std::optional<Sha256Digest>();
}

absl::StatusOr<RestorePoint> StoreImpl::FindRestorePoint(std::string_view owner,
                                                         std::span<const TokenId> tokens,
                                                         int64_t max_position) {
  RestorePoint point;
  const int64_t furthest = std::min(max_position, static_cast<int64_t>(tokens.size()));
  if (furthest <= 0) return point;
  tokens = tokens.first(static_cast<size_t>(furthest));
  ASSIGN_OR_RETURN(const std::shared_ptr<const BlockHasher> hasher,
                   HasherOf(owner, /*create=*/false));
  if (hasher == nullptr) return point;
  // Hash only as far as blocks are there.
  std::vector<BlockHash> hashes;
  while ((hashes.size() + 1) * kBlockTokens <= tokens.size()) {
    const BlockHash parent = hashes.empty() ? hasher->root() : hashes.back();
    const BlockHash hash =
        hasher->Block(parent, tokens.subspan(hashes.size() * kBlockTokens, kBlockTokens));
    if (!IsNamed(*database_, BlockNameKey(hash))) break;
    hashes.push_back(hash);
  }
  for (int64_t blocks = static_cast<int64_t>(hashes.size()); blocks >= 0; --blocks) {
    const int64_t limit = std::min(furthest, (blocks + 1) * kBlockTokens - 1);
    ASSIGN_OR_RETURN(const std::optional<Sha256Digest> anchor,
                     FindAnchor(*hasher, hashes, tokens, blocks, limit, &point.position));
    if (!anchor.has_value()) continue;
    point.anchor = *anchor;
    hashes.resize(static_cast<size_t>(blocks));
    // The last one goes first when values are evicted: if it is still there, so are all.
    std::vector<Sha256Digest> values = hashes;
    values.push_back(*anchor);
    std::shared_ptr<const void> hold = space_.Pin(std::move(values));
    if (!IsNamed(*database_, AnchorNameKey(*anchor))) continue;
    space_.restores().Note(*anchor, NowUs());
    point.blocks = std::move(hashes);
    point.hold = std::move(hold);
    return point;
  }
  return RestorePoint{};
}

// ---- verified reads

// What is stored under a name, as of one moment: a block that is deleted and stored again between
// two reads would look damaged. `damaged`: the error is one of the value or its name.

absl::StatusOr<BlockName> StoreImpl::ReadNameAt(const rocksdb::Snapshot* snapshot,
                                                const BlockHash& block, bool& damaged) const {
  const std::string name_key = BlockNameKey(block);
  ASSIGN_OR_RETURN(const std::optional<std::string> name_value,
                   database_->Get(Column::kTimelines, name_key, snapshot));
  if (!name_value.has_value()) return NotFound("block {} is not stored", Hex(block));
  absl::StatusOr<BlockName> name = DecodeBlockName(name_key, *name_value);
  damaged = !name.ok();
  if (name.ok() && name->identity != identity_)
    return NotFound("block {} was made by another model or numerics", Hex(block));
  return name;
}

// Of parts that stand side by side in a request and are of one block: so they lie on the disk.
void StoreImpl::ReadPartsAt(const rocksdb::Snapshot* snapshot, const BlockName& name,
                            std::span<const BlockPart> parts, absl::StatusOr<std::string>* data,
                            bool* damaged) const {
  std::vector<std::string> keys;
  keys.reserve(parts.size());
  for (const BlockPart& part : parts)
    keys.push_back(KvPartKey(part.block, static_cast<uint32_t>(part.part)));
  std::vector<rocksdb::PinnableSlice> values;
  const std::vector<absl::StatusOr<bool>> found =
      database_->GetMany(Column::kKv, keys, snapshot, values);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].part < 0 || static_cast<uint32_t>(parts[i].part) >= name.parts) {
      data[i] = NotFound("block {} has {} parts, not part {}", Hex(parts[i].block), name.parts,
                         parts[i].part);
      continue;
    }
    data[i] = CheckPart(name, parts[i].part, keys[i], found[i], ToView(values[i]));
    damaged[i] = !data[i].ok() && (found[i].ok() || absl::IsDataLoss(found[i].status()));
    values[i].Reset();
  }
}

absl::StatusOr<std::string> StoreImpl::CheckPart(const BlockName& name, int part,
                                                 const std::string& key,
                                                 const absl::StatusOr<bool>& found,
                                                 std::string_view value) {
  const auto what = [&] { return Describe(RecordKind::kKvPart, key); };
  if (!found.ok()) return Annotate(found.status(), what());
  if (!*found) return NotFound("{} is missing", what());
  ASSIGN_OR_RETURN(const KvPart decoded, DecodeKvPart(key, value));
  if (decoded.identity != name.identity || decoded.parent != name.parent ||
      decoded.block != name.block || decoded.part != static_cast<uint32_t>(part) ||
      decoded.parts != name.parts) {
    return DataLoss("{} is damaged: it does not fit its name", what());
  }
  return std::string(decoded.data);
}

absl::StatusOr<std::string> StoreImpl::ReadAnchorAt(const rocksdb::Snapshot* snapshot,
                                                    const Sha256Digest& anchor, int64_t position,
                                                    bool& damaged) const {
  const std::string name_key = AnchorNameKey(anchor);
  ASSIGN_OR_RETURN(const std::optional<std::string> name_value,
                   database_->Get(Column::kTimelines, name_key, snapshot));
  if (!name_value.has_value()) return NotFound("anchor {} is not stored", Hex(anchor));
  const absl::StatusOr<AnchorName> name = DecodeAnchorName(name_key, *name_value);
  damaged = !name.ok();
  if (!name.ok()) return name.status();
  if (name->identity != identity_)
    return NotFound("anchor {} was made by another model or numerics", Hex(anchor));
  if (name->position != position) {
    return NotFound("anchor {} is for position {}, not {}", Hex(anchor), name->position, position);
  }
  const std::string key = AnchorKey(anchor);
  const std::string what = Describe(RecordKind::kAnchor, key);
  const absl::StatusOr<std::optional<std::string>> value =
      database_->Get(Column::kAnchors, key, snapshot);
  damaged = value.ok() || absl::IsDataLoss(value.status());
  if (!value.ok()) return Annotate(value.status(), what);
  if (!value->has_value()) return NotFound("{} is missing", what);
  ASSIGN_OR_RETURN(const AnchorValue decoded, DecodeAnchor(key, **value));
  if (decoded.identity != name->identity || decoded.parent != name->parent ||
      decoded.position != position) {
    return DataLoss("{} is damaged: it does not fit its name", what);
  }
  damaged = false;
  return std::string(decoded.data);
}

std::vector<absl::StatusOr<std::string>> StoreImpl::ReadBlockParts(
    std::span<const BlockPart> parts) {
  // Parts of one block that stand side by side share one look at its name and one read.
  std::vector<size_t> first_of;
  for (size_t i = 0; i < parts.size(); ++i)
    if (i == 0 || parts[i].block != parts[i - 1].block) first_of.push_back(i);
  const size_t runs = first_of.size();
  first_of.push_back(parts.size());
  std::vector<absl::StatusOr<std::string>> data(parts.size());
  std::unique_ptr<bool[]> damaged(new bool[parts.size()]());
  {
    const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
    read_threads_.ForEach(runs, [&](size_t run) {
      const size_t first = first_of[run], count = first_of[run + 1] - first;
      const absl::StatusOr<BlockName> name =
          ReadNameAt(snapshot.get(), parts[first].block, damaged[first]);
      if (name.ok()) {
        ReadPartsAt(snapshot.get(), *name, parts.subspan(first, count), &data[first],
                    &damaged[first]);
      } else {
        std::fill_n(&data[first], count, name.status());
      }
    });
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (damaged[i]) RemoveIfDamaged(parts[i]);
  }
  return data;
}

// Whoever stores it from here on waits; who has stored it anew meanwhile is seen now.
void StoreImpl::RemoveIfDamaged(const BlockPart& part) {
  const ValuesInUse::Claim claim = pipeline_.values_in_use().ClaimAnyway({part.block});
  const Database::SnapshotHolder snapshot = database_->TakeSnapshot();
  bool damaged = false;
  const absl::StatusOr<BlockName> name = ReadNameAt(snapshot.get(), part.block, damaged);
  absl::StatusOr<std::string> data;
  if (name.ok()) ReadPartsAt(snapshot.get(), *name, {&part, 1}, &data, &damaged);
  if (damaged) RemoveBlock(part.block);
}

absl::StatusOr<int> StoreImpl::CountBlockParts(const BlockHash& block) {
  bool damaged = false;
  ASSIGN_OR_RETURN(const BlockName name,
                   ReadNameAt(database_->TakeSnapshot().get(), block, damaged));
  return static_cast<int>(name.parts);
}

absl::StatusOr<std::string> StoreImpl::ReadAnchor(const Sha256Digest& anchor, int64_t position) {
  bool damaged = false;
  const absl::StatusOr<std::string> data =
      ReadAnchorAt(database_->TakeSnapshot().get(), anchor, position, damaged);
  if (!damaged) return data;
  const ValuesInUse::Claim claim = pipeline_.values_in_use().ClaimAnyway({anchor});
  bool still_damaged = false;
  (void)ReadAnchorAt(database_->TakeSnapshot().get(), anchor, position, still_damaged);
  if (still_damaged) RemoveAnchor(anchor);
  return data;
}

void StoreImpl::DropBlock(const BlockHash& block) {
  const ValuesInUse::Claim claim = pipeline_.values_in_use().ClaimAnyway({block});
  RemoveBlock(block);
}

void StoreImpl::DropAnchor(const Sha256Digest& anchor) {
  const ValuesInUse::Claim claim = pipeline_.values_in_use().ClaimAnyway({anchor});
  RemoveAnchor(anchor);
}

// The removals below are hints for the next reader, so they are not synced and their errors change
// nothing. The caller claims the value.

void StoreImpl::RemoveBlock(const BlockHash& block) {
  std::vector<WriteEntry> writes;
  const std::lock_guard removing(pipeline_.values_in_use().removal_mutex());
  if (AddBlockRemoval(*database_, block, writes).value_or(false))
    (void)database_->Write(writes, /*sync=*/false);
}

void StoreImpl::RemoveAnchor(const Sha256Digest& anchor) {
  std::vector<WriteEntry> writes;
  const std::lock_guard removing(pipeline_.values_in_use().removal_mutex());
  if (AddAnchorRemoval(*database_, anchor, writes).value_or(false))
    (void)database_->Write(writes, /*sync=*/false);
}

}  // namespace agentd::sessions::internal
