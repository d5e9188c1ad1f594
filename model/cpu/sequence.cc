#include "model/cpu/sequence.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/parallel_ranges.h"

namespace agentd::model {
namespace {

// Zeros in every one of `size` elements.
template <typename T>
void Fill(Buffer<T>* buffer, size_t size) {
  std::fill_n(buffer->Reserve(size), size, T{0});
}

std::string_view View(const Buffer<uint8_t>& buffer, size_t size) {
  return {reinterpret_cast<const char*>(buffer.data()), size};
}

}  // namespace

CpuSequence::CpuSequence(const StateLayout& layout)
    : SequenceBase(layout), rings_(layout.layers.size()) {
  for (auto& ring : rings_) Fill(&ring, size_t(layout.ring) * size_t(layout.entry.bytes));
  Fill(&scratch_, layout.frontier_floats);
}

int64_t CpuSequence::memory_bytes() const {
  size_t bytes = sizeof(*this);
  for (const auto& block : blocks_) {
    bytes += sizeof(Block) + block->index.size();
    for (const auto& csa : block->csa) bytes += csa.size() + sizeof(csa);
  }
  for (const auto& ring : rings_) bytes += ring.size();
  bytes += (1 + frontiers_.size()) * layout().frontier_floats * sizeof(float);
  return static_cast<int64_t>(bytes);
}

void CpuSequence::StoreWindowKeys(int rows, const uint8_t* window_keys, size_t layer_stride,
                                  bool mtp_in_place) {
  const size_t bytes = size_t(layout().entry.bytes);
  for (size_t layer = 0; layer < rings_.size(); ++layer) {
    const bool early = layout().mtp && layer + 1 == rings_.size() && !mtp_in_place;
    const int64_t first = early ? position() - 1 : position();
    for (int row = std::max(0, rows - layout().ring); row < rows; ++row) {
      if (first + row < 0) continue;
      std::memcpy(rings_[layer].data() + layout().ring_offset(first + row),
                  window_keys + layer * layer_stride + size_t(row) * bytes, bytes);
    }
  }
}

absl::Status CpuSequence::AddBlock(bool open) {
  auto block = std::make_unique<Block>();
  block->index.Reserve(std::max<size_t>(layout().index_bytes(), 1));
  block->csa.resize(size_t(layout().csa_layers));
  if (open) {
    Fill(&block->index, block->index.size());
    for (auto& csa : block->csa) Fill(&csa, layout().csa_bytes());
  }
  blocks_.push_back(std::move(block));
  return absl::OkStatus();
}

absl::Status CpuSequence::WriteIndexes(int64_t first, std::span<const std::string_view> indexes) {
  ForRanges(indexes.size(), layout().index_bytes(), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      std::memcpy(blocks_[size_t(first) + i]->index.data(), indexes[i].data(), indexes[i].size());
    }
  });
  return absl::OkStatus();
}

absl::Status CpuSequence::WriteCsa(std::span<const CsaPart> parts,
                                   std::span<const std::string_view> entries) {
  for (size_t i = 0; i < parts.size(); ++i) {
    Buffer<uint8_t>& csa = blocks_[size_t(parts[i].block)]->csa[size_t(parts[i].csa_layer)];
    std::memcpy(csa.Reserve(entries[i].size()), entries[i].data(), entries[i].size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Export>> CpuSequence::StartRead(int64_t first_block, int64_t blocks,
                                                               int64_t position, int slot) const {
  Export::State state;
  for (int64_t block = first_block; block < first_block + blocks; ++block)
    state.blocks.push_back(ReadBlock(block));
  if (slot >= 0) state.anchor = ReadAnchor(position, slot);
  return Ready(std::move(state));
}

BlockPayload CpuSequence::ReadBlock(int64_t block) const {
  const Block& from = *blocks_[size_t(block)];
  BlockPayload payload{.index = std::string(View(from.index, layout().index_bytes())), .csa = {}};
  for (const auto& csa : from.csa) payload.csa.emplace_back(View(csa, layout().csa_bytes()));
  return payload;
}

absl::Status CpuSequence::GrowSlots(int slots) {
  while (frontiers_.size() < size_t(slots))
    Fill(&frontiers_.emplace_back(), layout().frontier_floats);
  return absl::OkStatus();
}

absl::Status CpuSequence::ZeroSlot(int slot) {
  Fill(&frontiers_[size_t(slot)], layout().frontier_floats);
  return absl::OkStatus();
}

std::string CpuSequence::ReadAnchor(int64_t position, int slot) const {
  AnchorParts parts;
  for (const auto& ring : rings_) parts.rings.push_back(ring.data());
  parts.frontier = frontiers_[size_t(slot)].data();
  if (position % kBlockTokens != 0) {
    const Block& open = *blocks_[size_t(position / kBlockTokens)];
    parts.index = open.index.data();
    for (const auto& csa : open.csa) parts.csa.push_back(csa.data());
  }
  return EncodeAnchor(layout(), position, parts);
}

absl::Status CpuSequence::WriteAnchor(std::string_view anchor, int64_t position, int slot) {
  AnchorBuffers buffers;
  for (auto& ring : rings_) buffers.rings.push_back(ring.data());
  buffers.frontier = frontiers_[size_t(slot)].data();
  if (position % kBlockTokens != 0) {
    Block& open = *blocks_[size_t(position / kBlockTokens)];
    buffers.index = open.index.data();
    for (auto& csa : open.csa) buffers.csa.push_back(csa.data());
  }
  DecodeAnchor(layout(), anchor, buffers);
  return absl::OkStatus();
}

struct CpuSequence::SavedBytes : Contents {
  std::vector<std::string> rings;
  std::vector<std::vector<float>> frontiers;
};

absl::StatusOr<std::unique_ptr<const SequenceBase::Contents>> CpuSequence::SaveContents(
    std::span<const int> slots) const {
  auto saved = std::make_unique<SavedBytes>();
  for (const auto& ring : rings_) saved->rings.emplace_back(View(ring, ring.size()));
  for (const int slot : slots) {
    const float* floats = frontiers_[size_t(slot)].data();
    saved->frontiers.emplace_back(floats, floats + layout().frontier_floats);
  }
  return saved;
}

absl::Status CpuSequence::RestoreContents(const Contents& contents, std::span<const int> slots) {
  const auto& saved = static_cast<const SavedBytes&>(contents);
  for (size_t i = 0; i < rings_.size(); ++i)
    std::memcpy(rings_[i].data(), saved.rings[i].data(), rings_[i].size());
  for (size_t i = 0; i < slots.size(); ++i)
    std::copy(saved.frontiers[i].begin(), saved.frontiers[i].end(),
              frontiers_[size_t(slots[i])].data());
  return absl::OkStatus();
}

}  // namespace agentd::model
