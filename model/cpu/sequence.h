// One timeline's state on the CPU, in the storage types of kv_format.h.
#ifndef AGENTD_MODEL_CPU_SEQUENCE_H_
#define AGENTD_MODEL_CPU_SEQUENCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/anchor.h"
#include "model/cpu/buffer.h"
#include "model/sequence_base.h"
#include "model/state_layout.h"

namespace agentd::model {

class CpuSequence final : public SequenceBase {
 public:
  explicit CpuSequence(const StateLayout& layout);

  int64_t memory_bytes() const override;

  // The frontier to read before row j of the running rows and to write after it is Frontier(j) and
  // Frontier(j + 1).
  float* Frontier(int row) {
    const int slot = row_slots()[size_t(row)];
    return slot < 0 ? scratch_.data() : frontiers_[size_t(slot)].data();
  }
  const float* LastStreams() const {
    return frontiers_[size_t(last_slot())].data() + layout().streams_offset();
  }

  // Before CommitRows: window_keys [layers][rows][entry bytes], the rows' own. The MTP block's row
  // j is the key of position() + j - 1, whose input needs token j; `mtp_in_place`: of position() +
  // j.
  void StoreWindowKeys(int rows, const uint8_t* window_keys, size_t layer_stride,
                       bool mtp_in_place);

  // Position must lie in [position() - layout().ring, position()); of the MTP block's layer one
  // less.
  const uint8_t* WindowKey(int layer, int64_t position) const {
    return rings_[size_t(layer)].data() + layout().ring_offset(position);
  }
  uint8_t* IndexKey(int csa_layer, int64_t entry) {
    return blocks_[size_t(entry / kCsaPerBlock)]->index.data() +
           layout().key_offset(csa_layer, entry);
  }
  uint8_t* HcaEntry(int hca_layer, int64_t entry) {
    return blocks_[size_t(entry / kHcaPerBlock)]->index.data() +
           layout().hca_offset(hca_layer, entry);
  }
  // nullptr if it is not resident.
  uint8_t* CsaEntry(int csa_layer, int64_t entry) {
    Buffer<uint8_t>& csa = blocks_[size_t(entry / kCsaPerBlock)]->csa[size_t(csa_layer)];
    return csa.size() == 0 ? nullptr : csa.data() + layout().csa_offset(entry);
  }

 private:
  struct Block {
    Buffer<uint8_t> index;             // as in BlockPayload
    std::vector<Buffer<uint8_t>> csa;  // [csa_layers]; size 0: not resident
  };
  struct SavedBytes;

  absl::Status AddBlock(bool open) override;
  void DropBlocks(int64_t keep) override { blocks_.resize(size_t(keep)); }
  absl::Status WriteIndexes(int64_t first, std::span<const std::string_view> indexes) override;
  bool HasCsa(int64_t block, int csa_layer) const override {
    return blocks_[size_t(block)]->csa[size_t(csa_layer)].size() != 0;
  }
  absl::Status WriteCsa(std::span<const CsaPart> parts,
                        std::span<const std::string_view> entries) override;
  absl::Status GrowSlots(int slots) override;
  absl::Status ZeroSlot(int slot) override;
  absl::StatusOr<std::unique_ptr<Export>> StartRead(int64_t first_block, int64_t blocks,
                                                    int64_t position, int slot) const override;
  BlockPayload ReadBlock(int64_t block) const;
  std::string ReadAnchor(int64_t position, int slot) const;
  absl::Status WriteAnchor(std::string_view anchor, int64_t position, int slot) override;
  absl::StatusOr<std::unique_ptr<const Contents>> SaveContents(
      std::span<const int> slots) const override;
  absl::Status RestoreContents(const Contents& contents, std::span<const int> slots) override;

  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Buffer<uint8_t>> rings_;    // per layer [ring][entry bytes]; the MTP block's last
  std::vector<Buffer<float>> frontiers_;  // by slot
  Buffer<float> scratch_;                 // the frontier of rows whose own is not kept
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_SEQUENCE_H_
