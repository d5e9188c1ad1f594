#include "model/cpu/sequence.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/kv_format.h"
#include "model/numeric.h"

namespace agentd::model {

CpuSequence::CpuSequence(const StateLayout& layout)
    : layout_(layout), streams_offset_(layout.frontier_floats - layout.stream_floats) {
  rings_.resize(layout.layers.size());
  for (auto& ring : rings_) {
    const size_t bytes = size_t(layout.ring) * size_t(layout.entry.bytes);
    std::memset(ring.Reserve(bytes), 0, bytes);
  }
  scratch_slot_ = TakeSlot();
  Clear();
}

void CpuSequence::Clear() {
  position_ = 0;
  blocks_.clear();
  for (const HistoryEntry& entry : history_) free_slots_.push_back(entry.slot);
  history_.clear();
  history_.push_back({0, TakeSlot()});
  Buffer<float>& first = frontiers_[size_t(history_.back().slot)];
  std::fill_n(first.data(), layout_.frontier_floats, 0.0f);
  imported_blocks_ = 0;
  importing_ = false;
  missing_ = 0;
}

int CpuSequence::TakeSlot() {
  if (free_slots_.empty()) {
    frontiers_.emplace_back(layout_.frontier_floats);
    std::fill_n(frontiers_.back().data(), layout_.frontier_floats, 0.0f);
    return static_cast<int>(frontiers_.size()) - 1;
  }
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

int64_t CpuSequence::memory_bytes() const {
  size_t bytes = sizeof(*this);
  for (const auto& block : blocks_) {
    bytes += sizeof(Block) + block->index.size();
    for (const auto& csa : block->csa) bytes += csa.size() + sizeof(csa);
  }
  for (const auto& ring : rings_) bytes += ring.size();
  bytes += frontiers_.size() * layout_.frontier_floats * sizeof(float);
  return static_cast<int64_t>(bytes);
}

absl::Status CpuSequence::CheckReady() const {
  if (!importing_) return absl::OkStatus();
  return FailedPrecondition("{} blocks were imported, but no anchor: import the anchor first",
                            imported_blocks_);
}

absl::Status CpuSequence::Truncate(int64_t position) {
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

void CpuSequence::AddBlock(bool with_csa) {
  auto block = std::make_unique<Block>();
  block->index.Reserve(std::max<size_t>(layout_.index_bytes(), 1));
  std::memset(block->index.data(), 0, block->index.size());
  block->csa.resize(size_t(layout_.csa_layers));
  if (with_csa) {
    for (auto& csa : block->csa)
      std::memset(csa.Reserve(layout_.csa_bytes()), 0, layout_.csa_bytes());
  }
  blocks_.push_back(std::move(block));
}

void CpuSequence::BeginRows(int rows) {
  while (int64_t(blocks_.size()) * kBlockTokens < position_ + rows) AddBlock(/*with_csa=*/true);
  row_slots_.assign(1, history_.back().slot);
  for (int row = 0; row < rows; ++row) {
    row_slots_.push_back(row >= rows - kKeptRows ? TakeSlot() : scratch_slot_);
  }
  // Until they are committed they are free again: a call that fails leaves nothing to clean up.
  for (int row = rows; row >= 1; --row) {
    if (row_slots_[size_t(row)] != scratch_slot_) free_slots_.push_back(row_slots_[size_t(row)]);
  }
}

void CpuSequence::CommitRows(int rows, const uint8_t* window_keys, size_t layer_stride,
                             bool mtp_in_place) {
  const size_t bytes = size_t(layout_.entry.bytes);
  for (size_t layer = 0; layer < rings_.size(); ++layer) {
    const bool early = layout_.mtp && layer + 1 == rings_.size() && !mtp_in_place;
    const int64_t first = early ? position_ - 1 : position_;
    for (int row = std::max(0, rows - layout_.ring); row < rows; ++row) {
      if (first + row < 0) continue;
      std::memcpy(rings_[layer].data() + size_t((first + row) % layout_.ring) * bytes,
                  window_keys + layer * layer_stride + size_t(row) * bytes, bytes);
    }
  }
  for (int row = 1; row <= rows; ++row) {
    const int slot = row_slots_[size_t(row)];
    if (slot == scratch_slot_) continue;
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

uint8_t* CpuSequence::IndexKey(int csa_layer, int64_t entry) {
  return blocks_[size_t(entry / kCsaPerBlock)]->index.data() +
         size_t(csa_layer) * layout_.keys_bytes() +
         size_t(entry % kCsaPerBlock) * size_t(layout_.key_bytes);
}

uint8_t* CpuSequence::HcaEntry(int hca_layer, int64_t entry) {
  return blocks_[size_t(entry / kHcaPerBlock)]->index.data() +
         size_t(layout_.csa_layers) * layout_.keys_bytes() +
         (size_t(hca_layer) * kHcaPerBlock + size_t(entry % kHcaPerBlock)) *
             size_t(layout_.entry.bytes);
}

uint8_t* CpuSequence::CsaEntry(int csa_layer, int64_t entry) {
  Buffer<uint8_t>& csa = blocks_[size_t(entry / kCsaPerBlock)]->csa[size_t(csa_layer)];
  if (csa.size() == 0) return nullptr;
  return csa.data() + size_t(entry % kCsaPerBlock) * size_t(layout_.entry.bytes);
}

absl::Status CpuSequence::FetchCsa(int64_t block, int csa_layer) {
  if (!source_) {
    return FailedPrecondition(
        "entries of block {}, CSA layer {} were not imported and there is no source for them",
        block, csa_layer);
  }
  absl::StatusOr<std::string> entries = source_(block, csa_layer);
  if (!entries.ok())
    return Annotate(entries.status(),
                    fmt::format("entries of block {}, CSA layer {}", block, csa_layer));
  return ImportCsa(block, csa_layer, *entries);
}

absl::Status CpuSequence::ImportCsa(int64_t block, int csa_layer, std::string_view entries) {
  if (block < 0 || block >= imported_blocks_ || csa_layer < 0 || csa_layer >= layout_.csa_layers) {
    return InvalidArgument("block {}, CSA layer {} was not imported ({} blocks, {} CSA layers)",
                           block, csa_layer, imported_blocks_, layout_.csa_layers);
  }
  if (entries.size() != layout_.csa_bytes()) {
    return InvalidArgument("entries of block {}, CSA layer {} have {} bytes, {} are required",
                           block, csa_layer, entries.size(), layout_.csa_bytes());
  }
  if (!AreEntries(layout_, entries))
    return DataLoss("entries of block {}, CSA layer {} are damaged", block, csa_layer);
  Buffer<uint8_t>& csa = blocks_[size_t(block)]->csa[size_t(csa_layer)];
  if (csa.size() == 0) --missing_;
  std::memcpy(csa.Reserve(entries.size()), entries.data(), entries.size());
  return absl::OkStatus();
}

struct CpuSequence::Saved {
  int64_t position = 0;
  std::vector<std::string> rings;
  std::vector<std::pair<int64_t, std::vector<float>>> history;
};

std::shared_ptr<const CpuSequence::Saved> CpuSequence::Save() const {
  auto saved = std::make_shared<Saved>();
  saved->position = position_;
  for (const auto& ring : rings_)
    saved->rings.emplace_back(reinterpret_cast<const char*>(ring.data()), ring.size());
  for (const HistoryEntry& entry : history_) {
    const float* floats = frontiers_[size_t(entry.slot)].data();
    saved->history.emplace_back(entry.position,
                                std::vector<float>(floats, floats + layout_.frontier_floats));
  }
  return saved;
}

void CpuSequence::Restore(const Saved& saved) {
  position_ = saved.position;
  for (size_t i = 0; i < rings_.size(); ++i)
    std::memcpy(rings_[i].data(), saved.rings[i].data(), rings_[i].size());
  for (const HistoryEntry& entry : history_) free_slots_.push_back(entry.slot);
  history_.clear();
  for (const auto& [position, floats] : saved.history) {
    history_.push_back({position, TakeSlot()});
    std::copy(floats.begin(), floats.end(), frontiers_[size_t(history_.back().slot)].data());
  }
}

}  // namespace agentd::model
