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
  const auto entries = size_t(capacity) * size_t(1 + layout().csa_layers);
  ASSIGN_OR_RETURN(DeviceMemory tables,
                   DeviceMemory::Allocate(entries * 8, "a sequence's page tables"));
  tables_ = std::move(tables);
  host_tables_.assign(entries, nullptr);
  table_capacity_ = capacity;
  for (size_t b = 0; b < blocks_.size(); ++b) SetTableEntries(int64_t(b));
  return absl::OkStatus();
}

void CudaSequence::SetTableEntries(int64_t block) {
  const Block& from = blocks_[size_t(block)];
  host_tables_[size_t(block)] = from.index;
  for (int layer = 0; layer < layout().csa_layers; ++layer) {
    host_tables_[size_t((layer + 1) * table_capacity_ + block)] =
        HasCsa(block, layer) ? from.csa + size_t(layer) * layout().csa_bytes() : nullptr;
  }
  const bool none = changed_begin_ == changed_end_;
  changed_begin_ = none ? block : std::min(changed_begin_, block);
  changed_end_ = none ? block + 1 : std::max(changed_end_, block + 1);
}

absl::Status CudaSequence::Prepare() {
  if (exported_ != nullptr && position() < exported_end_) {
    RETURN_IF_ERROR(
        CudaStatus(cudaStreamWaitEvent(memory_->stream, exported_->get()), "wait for an export"));
  }
  // Blocks may have been dropped again.
  const int64_t end = std::min(changed_end_, int64_t(blocks_.size()));
  if (changed_begin_ < end) {
    // From memory that is not page-locked: it was read when the call returns.
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy2DAsync(tables_.as<uint8_t*>() + changed_begin_, size_t(table_capacity_) * 8,
                          host_tables_.data() + changed_begin_, size_t(table_capacity_) * 8,
                          size_t(end - changed_begin_) * 8, size_t(1 + layout().csa_layers),
                          cudaMemcpyHostToDevice, memory_->stream),
        "write a sequence's page tables"));
  }
  changed_begin_ = changed_end_ = 0;
  return absl::OkStatus();
}

absl::Status CudaSequence::AddBlock(bool open) {
  const auto at = int64_t(blocks_.size());
  if (rings_.bytes() == 0) {
    ASSIGN_OR_RETURN(rings_, DeviceMemory::Allocate(RingBytes(), "a sequence's window keys"));
    RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(rings_.as<>(), 0, RingBytes(), memory_->stream), "clear"));
  }
  RETURN_IF_ERROR(GrowTables(at + 1));
  Block block;
  block.resident.assign(size_t(layout().csa_layers), open);
  ASSIGN_OR_RETURN(block.index, memory_->index_pages.Take());
  if (open && layout().csa_layers > 0) {
    absl::StatusOr<uint8_t*> csa = memory_->csa_pages.Take();
    if (!csa.ok()) {
      memory_->index_pages.Give(block.index);
      return csa.status();
    }
    block.csa = *csa;
  }
  blocks_.push_back(std::move(block));
  SetTableEntries(at);
  return absl::OkStatus();
}

void CudaSequence::DropBlocks(int64_t keep) {
  // Whoever gets the pages next writes to them on this stream.
  if (exported_ != nullptr && keep * kBlockTokens < exported_end_)
    static_cast<void>(cudaStreamWaitEvent(memory_->stream, exported_->get()));
  for (size_t i = size_t(keep); i < blocks_.size(); ++i) {
    memory_->index_pages.Give(blocks_[i].index);
    if (blocks_[i].csa != nullptr) memory_->csa_pages.Give(blocks_[i].csa);
  }
  blocks_.resize(size_t(keep));
}

absl::Status CudaSequence::WriteIndexes(int64_t first, std::span<const std::string_view> indexes) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < indexes.size(); ++i)
    pieces.push_back({blocks_[size_t(first) + i].index, indexes[i].data(), indexes[i].size()});
  return memory_->uploads.Send(pieces);
}

absl::Status CudaSequence::WriteCsa(std::span<const CsaPart> parts,
                                    std::span<const std::string_view> entries) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < parts.size(); ++i) {
    Block& to = blocks_[size_t(parts[i].block)];
    if (to.csa == nullptr) {
      ASSIGN_OR_RETURN(to.csa, memory_->csa_pages.Take());
    }
    pieces.push_back({to.csa + size_t(parts[i].csa_layer) * layout().csa_bytes(), entries[i].data(),
                      entries[i].size()});
  }
  RETURN_IF_ERROR(memory_->uploads.Send(pieces));
  for (const auto& [block, layer] : parts) {
    blocks_[size_t(block)].resident[size_t(layer)] = true;
    SetTableEntries(block);
  }
  return absl::OkStatus();
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

// A state's parts in host memory, on the way to an anchor.
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
};

// Parts of an anchor that lie one behind the other.
template <typename Parts, typename Byte, typename Float>
Parts AnchorPartsIn(const StateLayout& layout, Byte* rings, Float* frontier, Byte* index,
                    Byte* csa) {
  Parts parts;
  const size_t ring = size_t(layout.ring) * size_t(layout.entry.bytes);
  for (size_t i = 0; i < layout.layers.size(); ++i) parts.rings.push_back(rings + i * ring);
  parts.frontier = frontier;
  parts.index = index;
  for (size_t i = 0; i < size_t(layout.csa_layers); ++i)
    parts.csa.push_back(csa + i * layout.csa_bytes());
  return parts;
}

// Blocks one behind the other as pages are (the index part, then CSA entries), then the anchor's
// rings, frontier and open block.
class DeviceExport final : public Export {
 public:
  DeviceExport(const StateLayout& layout, std::shared_ptr<ExportBuffers> buffers, int64_t blocks)
      : layout_(layout), buffers_(std::move(buffers)), blocks_(blocks) {}
  ~DeviceExport() override {
    if (done != nullptr) cudaEventSynchronize(done->get());
    buffers_->pinned.Give(std::move(pinned));
    buffers_->snapshots.Give(std::move(snapshot));
  }
  DeviceExport(const DeviceExport&) = delete;
  DeviceExport& operator=(const DeviceExport&) = delete;

  absl::StatusOr<State> Take() override {
    RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(done->get()), "export a sequence's state"));
    State state;
    const char* from = pinned.as<char>();
    for (int64_t block = 0; block < blocks_; ++block) {
      BlockPayload& payload = state.blocks.emplace_back();
      payload.index.assign(from, layout_.index_bytes());
      from += layout_.index_bytes();
      for (int layer = 0; layer < layout_.csa_layers; ++layer, from += layout_.csa_bytes())
        payload.csa.emplace_back(from, layout_.csa_bytes());
    }
    if (anchor_position < 0) return state;
    const auto* rings = pinned.as<const uint8_t>() + anchor_offset;
    const auto* frontier =
        rings + layout_.layers.size() * size_t(layout_.ring) * size_t(layout_.entry.bytes);
    const auto* index = frontier + layout_.frontier_floats * sizeof(float);
    state.anchor = EncodeAnchor(
        layout_, anchor_position,
        AnchorPartsIn<AnchorParts>(layout_, rings, reinterpret_cast<const float*>(frontier), index,
                                   index + layout_.index_bytes()));
    return state;
  }

  PinnedMemory pinned;
  DeviceMemory snapshot;
  std::shared_ptr<Event> done;
  int64_t anchor_position = -1;  // none
  size_t anchor_offset = 0;

 private:
  const StateLayout& layout_;
  const std::shared_ptr<ExportBuffers> buffers_;
  const int64_t blocks_;
};

}  // namespace

// Rings, the frontier and the open block are written over by the next step: a copy of them.
absl::Status CudaSequence::SnapshotAnchor(int64_t position, int slot,
                                          DeviceMemory* snapshot) const {
  const bool open = position % kBlockTokens != 0;
  const Block* block = open ? &blocks_[size_t(position / kBlockTokens)] : nullptr;
  ASSIGN_OR_RETURN(*snapshot, memory_->export_buffers->snapshots.Take(
                                  RingBytes() + FrontierBytes() +
                                  (open ? layout().index_bytes() + CsaPageBytes() : 0)));
  auto* to = snapshot->as<uint8_t>();
  const std::pair<const void*, size_t> parts[] = {
      {rings_.as<>(), RingBytes()},
      {SlotAt(slot), FrontierBytes()},
      {open ? block->index : nullptr, open ? layout().index_bytes() : 0},
      {open ? block->csa : nullptr, open ? CsaPageBytes() : 0}};
  for (const auto& [from, bytes] : parts) {
    if (bytes == 0) continue;
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, memory_->stream), "export"));
    to += bytes;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Export>> CudaSequence::StartRead(int64_t first_block, int64_t blocks,
                                                                int64_t position, int slot) const {
  auto started = std::make_unique<DeviceExport>(layout(), memory_->export_buffers, blocks);
  const cudaStream_t out = memory_->export_stream.get();
  const size_t block_bytes = layout().index_bytes() + CsaPageBytes();
  // Floats follow the rings, whose size is any.
  started->anchor_offset = (size_t(blocks) * block_bytes + 7) / 8 * 8;
  size_t anchor_bytes = 0;
  if (slot >= 0) {
    RETURN_IF_ERROR(SnapshotAnchor(position, slot, &started->snapshot));
    started->anchor_position = position;
    anchor_bytes = RingBytes() + FrontierBytes() + (position % kBlockTokens != 0 ? block_bytes : 0);
  }
  ASSIGN_OR_RETURN(started->pinned,
                   memory_->export_buffers->pinned.Take(started->anchor_offset + anchor_bytes));
  auto* to = started->pinned.as<uint8_t>();
  ASSIGN_OR_RETURN(Event ready, Event::Create());
  ASSIGN_OR_RETURN(Event done, Event::Create());
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(ready.get(), memory_->stream), "export"));
  RETURN_IF_ERROR(CudaStatus(cudaStreamWaitEvent(out, ready.get()), "export"));
  // From here on copies may be under way: the export's end waits for them, whatever fails.
  started->done = std::make_shared<Event>(std::move(done));
  absl::Status status;
  auto read = [&](uint8_t* at, const void* from, size_t bytes) {
    if (status.ok() && bytes > 0)
      status = CudaStatus(cudaMemcpyAsync(at, from, bytes, cudaMemcpyDeviceToHost, out), "export");
  };
  for (int64_t block = first_block; block < first_block + blocks; ++block, to += block_bytes) {
    read(to, blocks_[size_t(block)].index, layout().index_bytes());
    read(to + layout().index_bytes(), blocks_[size_t(block)].csa, CsaPageBytes());
  }
  read(started->pinned.as<uint8_t>() + started->anchor_offset, started->snapshot.as<>(),
       anchor_bytes);
  status.Update(CudaStatus(cudaEventRecord(started->done->get(), out), "export"));
  RETURN_IF_ERROR(status);
  exported_ = started->done;
  exported_end_ = std::max(exported_end_, (first_block + blocks) * kBlockTokens);
  return std::unique_ptr<Export>(std::move(started));
}

absl::Status CudaSequence::WriteAnchor(std::string_view anchor, int64_t position, int slot) {
  HostState host(layout());
  DecodeAnchor(layout(), anchor,
               AnchorPartsIn<AnchorBuffers>(layout(), host.rings.data(), host.frontier.data(),
                                            host.index.data(), host.csa.data()));
  if (rings_.bytes() == 0) {
    ASSIGN_OR_RETURN(rings_, DeviceMemory::Allocate(RingBytes(), "a sequence's window keys"));
  }
  std::vector<Piece> pieces = {{rings_.as<>(), host.rings.data(), host.rings.size()},
                               {SlotAt(slot), host.frontier.data(), FrontierBytes()}};
  if (position % kBlockTokens != 0) {
    const Block& open = blocks_[size_t(position / kBlockTokens)];
    pieces.push_back({open.index, host.index.data(), host.index.size()});
    pieces.push_back({open.csa, host.csa.data(), host.csa.size()});
  }
  return memory_->uploads.Send(pieces);
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
