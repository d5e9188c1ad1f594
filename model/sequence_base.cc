#include "model/sequence_base.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <set>

#include "base/status.h"
#include "model/anchor.h"
#include "model/parallel_ranges.h"

namespace agentd::model {

struct SequenceBase::Saved {
  std::vector<int64_t> positions;  // of the history; the last is the sequence's
  std::unique_ptr<const Contents> contents;
};

void SequenceBase::Clear() {
  KeepBlocks(0);
  FreeHistory();
  history_.push_back({0, -1});
  position_ = 0;
  imported_blocks_ = 0;
  importing_ = false;
  missing_ = 0;
}

absl::Status SequenceBase::Start() {
  if (history_.back().slot >= 0) return absl::OkStatus();
  RETURN_IF_ERROR(ReserveSlots(1));
  RETURN_IF_ERROR(ZeroSlot(free_slots_.back()));
  history_.back().slot = TakeSlot();
  return absl::OkStatus();
}

absl::Status SequenceBase::NewBlock(bool open) {
  RETURN_IF_ERROR(AddBlock(open));
  ++blocks_;
  return absl::OkStatus();
}

void SequenceBase::KeepBlocks(int64_t count) {
  if (blocks_ > count) DropBlocks(count);
  blocks_ = std::min(blocks_, count);
}

absl::Status SequenceBase::ReserveSlots(size_t count) {
  if (free_slots_.size() >= count) return absl::OkStatus();
  const int more = int(count - free_slots_.size());
  RETURN_IF_ERROR(GrowSlots(slots_ + more));
  for (int i = 0; i < more; ++i) free_slots_.push_back(slots_++);
  return absl::OkStatus();
}

int SequenceBase::TakeSlot() {
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

void SequenceBase::FreeHistory() {
  for (const HistoryEntry& entry : history_) {
    if (entry.slot >= 0) free_slots_.push_back(entry.slot);
  }
  history_.clear();
}

absl::Status SequenceBase::CheckReady() const {
  if (!importing_) return absl::OkStatus();
  return FailedPrecondition("{} blocks were imported, but no anchor: import the anchor first",
                            imported_blocks_);
}

absl::Status SequenceBase::Truncate(int64_t position) {
  RETURN_IF_ERROR(CheckReady());
  if (position > position_ || position < history_.front().position) {
    return Error(absl::StatusCode::kOutOfRange,
                 "cannot truncate to position {}: it must lie in [{}, {}]", position,
                 history_.front().position, position_);
  }
  while (history_.back().position > position) {
    free_slots_.push_back(history_.back().slot);
    history_.pop_back();
  }
  position_ = position;
  return absl::OkStatus();
}

absl::Status SequenceBase::BeginRows(int rows) {
  RETURN_IF_ERROR(Start());
  while (blocks_ * kBlockTokens < position_ + rows) RETURN_IF_ERROR(NewBlock(/*open=*/true));
  const int kept = std::min(rows, kKeptRows);
  RETURN_IF_ERROR(ReserveSlots(size_t(kept)));
  // Until they are committed they stay free: a call that fails leaves nothing to clean up.
  row_slots_.assign(1, history_.back().slot);
  row_slots_.insert(row_slots_.end(), size_t(rows - kept), -1);
  row_slots_.insert(row_slots_.end(), free_slots_.rbegin(), free_slots_.rbegin() + kept);
  return absl::OkStatus();
}

void SequenceBase::CommitRows(int rows) {
  AGENTD_CHECK(row_slots_.size() == size_t(rows) + 1);
  for (int row = 1; row <= rows; ++row) {
    const int slot = row_slots_[size_t(row)];
    if (slot < 0) continue;
    AGENTD_CHECK(!free_slots_.empty() && free_slots_.back() == slot);
    free_slots_.pop_back();
    history_.push_back({position_ + row, slot});
  }
  position_ += rows;
  while (history_.front().position < position_ - kMaxTruncateTokens) {
    free_slots_.push_back(history_.front().slot);
    history_.pop_front();
  }
}

absl::Status SequenceBase::FetchCsa(std::span<const CsaPart> parts) {
  if (!source_) {
    return FailedPrecondition(
        "entries of block {}, CSA layer {} were not imported and there is no source for them",
        parts[0].block, parts[0].csa_layer);
  }
  absl::StatusOr<std::vector<std::string>> entries = source_(parts);
  if (!entries.ok())
    return Annotate(entries.status(), fmt::format("entries of {} blocks, CSA layer {}",
                                                  parts.size(), parts[0].csa_layer));
  return ImportCsa(parts, *entries);
}

namespace {

// The first of `count` items that is not sound, `count` if all are. Several threads look.
size_t FirstUnsound(size_t count, size_t item_bytes, const std::function<bool(size_t)>& sound) {
  std::atomic<size_t> first = count;
  ForRanges(count, item_bytes, [&](size_t begin, size_t end) {
    size_t i = begin;
    while (i < end && sound(i)) ++i;
    if (i == end) return;
    for (size_t seen = first; i < seen && !first.compare_exchange_weak(seen, i);) {
    }
  });
  return first;
}

absl::Status CheckEntries(const StateLayout& layout, const CsaPart& part,
                          std::string_view entries) {
  if (entries.size() != layout.csa_bytes()) {
    return InvalidArgument("entries of block {}, CSA layer {} have {} bytes, {} are required",
                           part.block, part.csa_layer, entries.size(), layout.csa_bytes());
  }
  if (AreEntries(layout, entries)) return absl::OkStatus();
  return DataLoss("entries of block {}, CSA layer {} are damaged", part.block, part.csa_layer);
}

}  // namespace

absl::Status SequenceBase::CheckCsa(std::span<const CsaPart> parts,
                                    std::span<const std::string> entries) const {
  if (parts.size() != entries.size()) {
    return InvalidArgument("entries of {} parts were given, {} are required", entries.size(),
                           parts.size());
  }
  for (const auto& [block, layer] : parts) {
    if (block < 0 || block >= imported_blocks_ || layer < 0 || layer >= layout_.csa_layers) {
      return InvalidArgument("block {}, CSA layer {} was not imported ({} blocks, {} CSA layers)",
                             block, layer, imported_blocks_, layout_.csa_layers);
    }
  }
  const auto check = [&](size_t i) { return CheckEntries(layout_, parts[i], entries[i]); };
  const size_t bad =
      FirstUnsound(parts.size(), layout_.csa_bytes(), [&](size_t i) { return check(i).ok(); });
  return bad == parts.size() ? absl::OkStatus() : check(bad);
}

absl::Status SequenceBase::ImportCsa(std::span<const CsaPart> parts,
                                     std::span<const std::string> entries) {
  RETURN_IF_ERROR(CheckCsa(parts, entries));
  return TakeCsa(parts, std::vector<std::string_view>(entries.begin(), entries.end()));
}

absl::Status SequenceBase::TakeCsa(std::span<const CsaPart> parts,
                                   std::span<const std::string_view> entries) {
  std::set<std::pair<int64_t, int>> absent;
  for (const auto& [block, layer] : parts) {
    if (!HasCsa(block, layer)) absent.emplace(block, layer);
  }
  const absl::Status status = WriteCsa(parts, entries);
  for (const auto& [block, layer] : absent) missing_ -= HasCsa(block, layer) ? 1 : 0;
  return status;
}

namespace {

class ReadyExport final : public Export {
 public:
  explicit ReadyExport(State state) : state_(std::move(state)) {}
  absl::StatusOr<State> Take() override { return std::move(state_); }

 private:
  State state_;
};

}  // namespace

std::unique_ptr<Export> SequenceBase::Ready(Export::State state) {
  return std::make_unique<ReadyExport>(std::move(state));
}

absl::StatusOr<std::unique_ptr<Export>> SequenceBase::StartExport(int64_t first_block,
                                                                  int64_t blocks,
                                                                  bool anchor) const {
  RETURN_IF_ERROR(CheckReady());
  for (int64_t block = first_block; block < first_block + blocks; ++block) {
    if (block < 0 || (block + 1) * kBlockTokens > position_) {
      return InvalidArgument("block {} is not complete at position {}", block, position_);
    }
    for (int layer = 0; missing_ > 0 && layer < layout_.csa_layers; ++layer) {
      if (HasCsa(block, layer)) continue;
      return FailedPrecondition(
          "entries of block {}, CSA layer {} are not resident: export them where they came from",
          block, layer);
    }
  }
  if (!anchor || last_slot() >= 0)
    return StartRead(first_block, blocks, position_, anchor ? last_slot() : -1);
  const std::vector<float> zeros(layout_.frontier_floats);
  return Ready({.blocks = {}, .anchor = EncodeAnchor(layout_, 0, {.frontier = zeros.data()})});
}

absl::Status SequenceBase::ImportBlocks(std::span<const BlockPayload> blocks, size_t* fitting) {
  size_t taken = 0;
  if (fitting != nullptr) *fitting = 0;
  if (position_ != 0) {
    return FailedPrecondition(
        "blocks can be imported into an empty sequence only; this one is at position {}",
        position_);
  }
  absl::Status status = TakeBlocks(blocks, taken);
  if (!status.ok()) Clear();
  if (fitting != nullptr) *fitting = taken;
  return status;
}

absl::Status SequenceBase::CheckBlock(int64_t number, const BlockPayload& block) const {
  if (block.index.size() != layout_.index_bytes()) {
    return InvalidArgument("block {}: its index part has {} bytes, {} are required", number,
                           block.index.size(), layout_.index_bytes());
  }
  if (!block.csa.empty() && block.csa.size() != size_t(layout_.csa_layers)) {
    return InvalidArgument("block {}: it has entries of {} CSA layers, {} are required", number,
                           block.csa.size(), layout_.csa_layers);
  }
  const std::string_view index = block.index;
  const size_t keys = size_t(layout_.csa_layers) * layout_.keys_bytes();
  if (!AreIndexKeys(layout_, index.substr(0, keys)) || !AreEntries(layout_, index.substr(keys)))
    return DataLoss("block {}: its index part is damaged", number);
  for (int layer = 0; layer < int(block.csa.size()); ++layer) {
    const std::string& entries = block.csa[size_t(layer)];
    if (!entries.empty()) RETURN_IF_ERROR(CheckEntries(layout_, {number, layer}, entries));
  }
  return absl::OkStatus();
}

absl::Status SequenceBase::TakeBlocks(std::span<const BlockPayload> blocks, size_t& fitting) {
  if (blocks.empty()) return absl::OkStatus();
  const int64_t first = imported_blocks_;
  size_t block_bytes = layout_.index_bytes();
  for (const std::string& csa : blocks[0].csa) block_bytes += csa.size();
  const auto check = [&](size_t i) { return CheckBlock(first + int64_t(i), blocks[i]); };
  fitting = FirstUnsound(blocks.size(), block_bytes, [&](size_t i) { return check(i).ok(); });
  // Those before it need not be taken: the sequence will be empty.
  if (fitting < blocks.size()) return check(fitting);
  // Rows that failed may have left blocks beyond the position.
  KeepBlocks(first);
  for (fitting = 0; fitting < blocks.size(); ++fitting) RETURN_IF_ERROR(NewBlock(/*open=*/false));
  fitting = 0;
  std::vector<std::string_view> indexes;
  std::vector<CsaPart> parts;
  std::vector<std::string_view> entries;
  for (size_t i = 0; i < blocks.size(); ++i) {
    indexes.push_back(blocks[i].index);
    for (int layer = 0; layer < int(blocks[i].csa.size()); ++layer) {
      if (blocks[i].csa[size_t(layer)].empty()) continue;
      parts.push_back({first + int64_t(i), layer});
      entries.push_back(blocks[i].csa[size_t(layer)]);
    }
  }
  RETURN_IF_ERROR(WriteIndexes(first, indexes));
  importing_ = true;
  imported_blocks_ += int64_t(blocks.size());
  missing_ += int64_t(blocks.size()) * layout_.csa_layers;
  if (!parts.empty()) RETURN_IF_ERROR(TakeCsa(parts, entries));
  fitting = blocks.size();
  return absl::OkStatus();
}

absl::Status SequenceBase::ImportAnchor(std::string_view anchor) {
  if (position_ != 0) {
    return FailedPrecondition(
        "an anchor can be imported into an empty sequence only; this one is at position {}",
        position_);
  }
  absl::Status status = ImportAnchorChecked(anchor);
  if (!status.ok()) Clear();
  return status;
}

absl::Status SequenceBase::ImportAnchorChecked(std::string_view anchor) {
  ASSIGN_OR_RETURN(const int64_t t, CheckAnchor(layout_, imported_blocks_, anchor));
  RETURN_IF_ERROR(Start());
  KeepBlocks(imported_blocks_);
  if (t % kBlockTokens != 0) RETURN_IF_ERROR(NewBlock(/*open=*/true));
  RETURN_IF_ERROR(WriteAnchor(anchor, t, last_slot()));
  history_.back().position = t;
  position_ = t;
  importing_ = false;
  return absl::OkStatus();
}

std::vector<int> SequenceBase::HistorySlots() const {
  std::vector<int> slots;
  for (const HistoryEntry& entry : history_) slots.push_back(entry.slot);
  return slots;
}

absl::StatusOr<std::shared_ptr<const SequenceBase::Saved>> SequenceBase::Save() {
  RETURN_IF_ERROR(Start());
  auto saved = std::make_shared<Saved>();
  for (const HistoryEntry& entry : history_) saved->positions.push_back(entry.position);
  ASSIGN_OR_RETURN(saved->contents, SaveContents(HistorySlots()));
  return saved;
}

absl::Status SequenceBase::Restore(const Saved& saved) {
  FreeHistory();
  for (const int64_t position : saved.positions) history_.push_back({position, TakeSlot()});
  position_ = saved.positions.back();
  return RestoreContents(*saved.contents, HistorySlots());
}

}  // namespace agentd::model
