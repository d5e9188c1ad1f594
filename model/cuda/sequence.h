// One timeline's state on a device, in the storage types of model/kv_format.h.
#ifndef AGENTD_MODEL_CUDA_SEQUENCE_H_
#define AGENTD_MODEL_CUDA_SEQUENCE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/anchor.h"
#include "model/cuda/batch.h"
#include "model/cuda/device.h"
#include "model/cuda/page_pool.h"
#include "model/cuda/transfer.h"
#include "model/sequence_base.h"

namespace agentd::model::cuda {

// Buffers of exports, which may be given back by other threads.
struct ExportBuffers {
  PinnedPool pinned{size_t{256} << 20, "exports"};
  DevicePool snapshots{size_t{64} << 20, "exports of anchors"};
};

// What an engine's sequences share.
struct SequenceMemory {
  SequenceMemory(const StateLayout& layout, cudaStream_t stream_in, Stream export_stream_in)
      : index_pages(layout.index_bytes(), 64, "index pages of sequences"),
        csa_pages(size_t(layout.csa_layers) * layout.csa_bytes(), 64, "CSA pages of sequences"),
        stream(stream_in),
        export_stream(std::move(export_stream_in)),
        uploads(stream_in) {}

  PagePool index_pages;  // of a block: BlockPayload::index
  PagePool csa_pages;    // of a block: its entries of all CSA layers
  const cudaStream_t stream;
  const Stream export_stream;
  Uploads uploads;
  const std::shared_ptr<ExportBuffers> export_buffers = std::make_shared<ExportBuffers>();
};

class CudaSequence final : public SequenceBase {
 public:
  CudaSequence(const StateLayout& layout, SequenceMemory* memory)
      : SequenceBase(layout), memory_(memory) {}
  ~CudaSequence() override { DropBlocks(0); }
  CudaSequence(const CudaSequence&) = delete;
  CudaSequence& operator=(const CudaSequence&) = delete;

  int64_t memory_bytes() const override;

  // Before anything is enqueued that reads or appends to the state: brings the page tables up to
  // date, and makes the stream wait for exports of what would be written over.
  absl::Status Prepare();
  // After BeginRows: what kernels are told, but for rows and slots.
  SegmentView View() const;
  float* SlotAt(int slot) const {
    return frontiers_.as<float>() + size_t(slot) * layout().frontier_floats;
  }

 private:
  struct SavedBytes;
  struct Block {
    uint8_t* index = nullptr;
    uint8_t* csa = nullptr;      // nullptr: none of its layers is resident
    std::vector<bool> resident;  // [csa_layers]
  };

  absl::Status AddBlock(bool open) override;
  void DropBlocks(int64_t keep) override;
  absl::Status WriteIndexes(int64_t first, std::span<const std::string_view> indexes) override;
  bool HasCsa(int64_t block, int csa_layer) const override {
    return blocks_[size_t(block)].resident[size_t(csa_layer)];
  }
  absl::Status WriteCsa(std::span<const CsaPart> parts,
                        std::span<const std::string_view> entries) override;
  absl::Status GrowSlots(int slots) override;
  absl::Status ZeroSlot(int slot) override;
  absl::StatusOr<std::unique_ptr<Export>> StartRead(int64_t first_block, int64_t blocks,
                                                    int64_t position, int slot) const override;
  absl::Status WriteAnchor(std::string_view anchor, int64_t position, int slot) override;
  absl::StatusOr<std::unique_ptr<const Contents>> SaveContents(
      std::span<const int> slots) const override;
  absl::Status RestoreContents(const Contents& contents, std::span<const int> slots) override;

  size_t RingBytes() const {
    return layout().layers.size() * size_t(layout().ring) * size_t(layout().entry.bytes);
  }
  size_t FrontierBytes() const { return layout().frontier_floats * sizeof(float); }
  size_t CsaPageBytes() const { return size_t(layout().csa_layers) * layout().csa_bytes(); }
  absl::Status GrowTables(int64_t blocks);
  // The block's entries of every table; Prepare brings them to the device.
  void SetTableEntries(int64_t block);
  absl::Status SnapshotAnchor(int64_t position, int slot, DeviceMemory* snapshot) const;
  absl::Status Copy(void* to, const void* from, size_t bytes) const;

  SequenceMemory* const memory_;
  std::vector<Block> blocks_;
  // Tables of pages: index [capacity], then CSA [csa_layers][capacity]. Entries of blocks
  // [changed_begin_, changed_end_) are newer on the host.
  DeviceMemory tables_;
  std::vector<uint8_t*> host_tables_;
  int64_t table_capacity_ = 0;
  int64_t changed_begin_ = 0;
  int64_t changed_end_ = 0;
  DeviceMemory rings_;
  DeviceMemory frontiers_;
  int slots_ = 0;
  // Of the newest export: done when it and those before it have left the device; where its blocks
  // end.
  mutable std::shared_ptr<Event> exported_;
  mutable int64_t exported_end_ = 0;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_SEQUENCE_H_
