#include "model/cuda/sequence.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace agentd::model::cuda {

int64_t CudaSequence::memory_bytes() const {
  size_t bytes = sizeof(*this) + tables_.bytes() + rings_.bytes() + frontiers_.bytes();
  for (const Block& block : blocks_) {
    bytes += layout().index_bytes();
    if (block.csa != nullptr) bytes += size_t(layout().csa_layers) * layout().csa_bytes();
  }
  return int64_t(bytes);
}

SegmentView CudaSequence::View() const {
  auto** tables = tables_.as<uint8_t*>();
  return {.start = position(),
          .index_pages = tables,
          .csa_pages = tables + table_capacity_,
          .csa_stride = table_capacity_,
          .rings = rings_.as<uint8_t>(),
          .frontiers = frontiers_.as<float>()};
}

absl::Status CudaSequence::Copy(void* to, const void* from, size_t bytes) const {
  RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, memory_->stream), "copy"));
  // Host memory that is not page-locked was read when the call returned, and written when the
  // stream is done.
  return CudaStatus(cudaStreamSynchronize(memory_->stream), "copy a sequence's state");
}

absl::Status CudaSequence::GrowTables(int64_t blocks) {
  if (blocks <= table_capacity_) return absl::OkStatus();
  const int64_t capacity = std::max<int64_t>({64, blocks, 2 * table_capacity_});
  ASSIGN_OR_RETURN(DeviceMemory tables,
                   DeviceMemory::Allocate(size_t(capacity) * size_t(1 + layout().csa_layers) * 8,
                                          "a sequence's page tables"));
  std::vector<uint8_t*> host(tables.bytes() / 8, nullptr);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    host[b] = blocks_[b].index;
    for (int layer = 0; layer < layout().csa_layers; ++layer) {
      if (HasCsa(int64_t(b), layer))
        host[size_t((layer + 1) * capacity) + b] =
            blocks_[b].csa + size_t(layer) * layout().csa_bytes();
    }
  }
  RETURN_IF_ERROR(Copy(tables.as<>(), host.data(), tables.bytes()));
  tables_ = std::move(tables);
  table_capacity_ = capacity;
  return absl::OkStatus();
}

// The block's entries of every table.
absl::Status CudaSequence::PutTableEntries(int64_t block) {
  const Block& from = blocks_[size_t(block)];
  std::vector<uint8_t*> entries = {from.index};
  for (int layer = 0; layer < layout().csa_layers; ++layer) {
    entries.push_back(HasCsa(block, layer) ? from.csa + size_t(layer) * layout().csa_bytes()
                                           : nullptr);
  }
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy2DAsync(tables_.as<uint8_t*>() + block, size_t(table_capacity_) * 8, entries.data(),
                        8, 8, entries.size(), cudaMemcpyHostToDevice, memory_->stream),
      "write a sequence's page tables"));
  return CudaStatus(cudaStreamSynchronize(memory_->stream), "write a sequence's page tables");
}

absl::Status CudaSequence::AddBlock(bool with_csa) {
  const auto at = int64_t(blocks_.size());
  if (rings_.bytes() == 0) {
    ASSIGN_OR_RETURN(rings_, DeviceMemory::Allocate(RingBytes(), "a sequence's window keys"));
    RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(rings_.as<>(), 0, RingBytes(), memory_->stream), "clear"));
  }
  RETURN_IF_ERROR(GrowTables(at + 1));
  Block block;
  block.resident.assign(size_t(layout().csa_layers), with_csa);
  ASSIGN_OR_RETURN(block.index, memory_->index_pages.Take());
  if (with_csa && layout().csa_layers > 0) {
    absl::StatusOr<uint8_t*> csa = memory_->csa_pages.Take();
    if (!csa.ok()) {
      memory_->index_pages.Give(block.index);
      return csa.status();
    }
    block.csa = *csa;
  }
  blocks_.push_back(std::move(block));
  absl::Status status = PutTableEntries(at);
  if (!status.ok()) DropBlocks(at);
  return status;
}

void CudaSequence::DropBlocks(int64_t keep) {
  for (size_t i = size_t(keep); i < blocks_.size(); ++i) {
    memory_->index_pages.Give(blocks_[i].index);
    if (blocks_[i].csa != nullptr) memory_->csa_pages.Give(blocks_[i].csa);
  }
  blocks_.resize(size_t(keep));
}

absl::Status CudaSequence::WriteIndex(int64_t block, std::string_view bytes) {
  return Copy(blocks_[size_t(block)].index, bytes.data(), bytes.size());
}

absl::Status CudaSequence::WriteCsa(int64_t block, int csa_layer, std::string_view entries) {
  Block& to = blocks_[size_t(block)];
  if (to.csa == nullptr) {
    ASSIGN_OR_RETURN(to.csa, memory_->csa_pages.Take());
  }
  RETURN_IF_ERROR(
      Copy(to.csa + size_t(csa_layer) * layout().csa_bytes(), entries.data(), entries.size()));
  if (to.resident[size_t(csa_layer)]) return absl::OkStatus();
  to.resident[size_t(csa_layer)] = true;
  absl::Status status = PutTableEntries(block);
  if (!status.ok()) to.resident[size_t(csa_layer)] = false;
  return status;
}

absl::StatusOr<BlockPayload> CudaSequence::ReadBlock(int64_t block) const {
  const Block& from = blocks_[size_t(block)];
  BlockPayload payload;
  payload.index.resize(layout().index_bytes());
  RETURN_IF_ERROR(Copy(payload.index.data(), from.index, payload.index.size()));
  std::string csa(size_t(layout().csa_layers) * layout().csa_bytes(), '\0');
  if (!csa.empty()) RETURN_IF_ERROR(Copy(csa.data(), from.csa, csa.size()));
  for (int layer = 0; layer < layout().csa_layers; ++layer)
    payload.csa.push_back(csa.substr(size_t(layer) * layout().csa_bytes(), layout().csa_bytes()));
  return payload;
}

absl::Status CudaSequence::GrowSlots(int slots) {
  if (slots <= slots_) return absl::OkStatus();
  // One step more than the history of a decoding sequence ever has.
  const int more = std::max(slots, kMaxTruncateTokens + 2);
  const size_t bytes = layout().frontier_floats * sizeof(float);
  ASSIGN_OR_RETURN(DeviceMemory frontiers,
                   DeviceMemory::Allocate(size_t(more) * bytes, "a sequence's frontiers"));
  if (slots_ > 0)
    RETURN_IF_ERROR(Copy(frontiers.as<>(), frontiers_.as<>(), size_t(slots_) * bytes));
  frontiers_ = std::move(frontiers);
  slots_ = more;
  return absl::OkStatus();
}

absl::Status CudaSequence::ZeroSlot(int slot) {
  return CudaStatus(
      cudaMemsetAsync(SlotAt(slot), 0, layout().frontier_floats * sizeof(float), memory_->stream),
      "clear a frontier");
}

namespace {

// A state's parts in host memory, on the way to or from an anchor.
struct HostState {
  std::vector<uint8_t> rings;
  std::vector<float> frontier;
  std::vector<uint8_t> index;
  std::vector<uint8_t> csa;

  explicit HostState(const StateLayout& layout)
      : rings(layout.layers.size() * size_t(layout.ring) * size_t(layout.entry.bytes)),
        frontier(layout.frontier_floats),
        index(layout.index_bytes()),
        csa(size_t(layout.csa_layers) * layout.csa_bytes()) {}

  template <typename Parts>
  Parts View(const StateLayout& layout) {
    Parts parts;
    const size_t ring = size_t(layout.ring) * size_t(layout.entry.bytes);
    for (size_t i = 0; i < layout.layers.size(); ++i)
      parts.rings.push_back(rings.data() + i * ring);
    parts.frontier = frontier.data();
    parts.index = index.data();
    for (size_t i = 0; i < size_t(layout.csa_layers); ++i)
      parts.csa.push_back(csa.data() + i * layout.csa_bytes());
    return parts;
  }
};

}  // namespace

absl::StatusOr<std::string> CudaSequence::ReadAnchor(int64_t position, int slot) const {
  HostState host(layout());
  if (rings_.bytes() > 0)
    RETURN_IF_ERROR(Copy(host.rings.data(), rings_.as<>(), host.rings.size()));
  RETURN_IF_ERROR(Copy(host.frontier.data(), SlotAt(slot), host.frontier.size() * sizeof(float)));
  if (position % kBlockTokens != 0) {
    const Block& open = blocks_[size_t(position / kBlockTokens)];
    RETURN_IF_ERROR(Copy(host.index.data(), open.index, host.index.size()));
    if (!host.csa.empty()) RETURN_IF_ERROR(Copy(host.csa.data(), open.csa, host.csa.size()));
  }
  return EncodeAnchor(layout(), position, host.View<AnchorParts>(layout()));
}

absl::Status CudaSequence::WriteAnchor(std::string_view anchor, int64_t position, int slot) {
  HostState host(layout());
  DecodeAnchor(layout(), anchor, host.View<AnchorBuffers>(layout()));
  if (rings_.bytes() == 0) {
    ASSIGN_OR_RETURN(rings_, DeviceMemory::Allocate(RingBytes(), "a sequence's window keys"));
  }
  RETURN_IF_ERROR(Copy(rings_.as<>(), host.rings.data(), host.rings.size()));
  RETURN_IF_ERROR(Copy(SlotAt(slot), host.frontier.data(), host.frontier.size() * sizeof(float)));
  if (position % kBlockTokens == 0) return absl::OkStatus();
  const Block& open = blocks_[size_t(position / kBlockTokens)];
  RETURN_IF_ERROR(Copy(open.index, host.index.data(), host.index.size()));
  if (host.csa.empty()) return absl::OkStatus();
  return Copy(open.csa, host.csa.data(), host.csa.size());
}

struct CudaSequence::SavedBytes : Contents {
  DeviceMemory rings;
  DeviceMemory frontiers;
};

absl::StatusOr<std::unique_ptr<const SequenceBase::Contents>> CudaSequence::SaveContents(
    std::span<const int> slots) const {
  auto saved = std::make_unique<SavedBytes>();
  const size_t bytes = layout().frontier_floats * sizeof(float);
  ASSIGN_OR_RETURN(saved->rings, DeviceMemory::Allocate(RingBytes(), "a copy of window keys"));
  ASSIGN_OR_RETURN(saved->frontiers,
                   DeviceMemory::Allocate(slots.size() * bytes, "a copy of frontiers"));
  if (rings_.bytes() > 0) RETURN_IF_ERROR(Copy(saved->rings.as<>(), rings_.as<>(), RingBytes()));
  for (size_t i = 0; i < slots.size(); ++i)
    RETURN_IF_ERROR(Copy(saved->frontiers.as<uint8_t>() + i * bytes, SlotAt(slots[i]), bytes));
  return std::unique_ptr<const Contents>(std::move(saved));
}

absl::Status CudaSequence::RestoreContents(const Contents& contents, std::span<const int> slots) {
  const auto& saved = static_cast<const SavedBytes&>(contents);
  const size_t bytes = layout().frontier_floats * sizeof(float);
  if (rings_.bytes() > 0) RETURN_IF_ERROR(Copy(rings_.as<>(), saved.rings.as<>(), RingBytes()));
  for (size_t i = 0; i < slots.size(); ++i)
    RETURN_IF_ERROR(Copy(SlotAt(slots[i]), saved.frontiers.as<uint8_t>() + i * bytes, bytes));
  return absl::OkStatus();
}

}  // namespace agentd::model::cuda
