// One timeline's state on the CPU, in the storage types of kv_format.h.
#ifndef AGENTD_MODEL_CPU_SEQUENCE_H_
#define AGENTD_MODEL_CPU_SEQUENCE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/anchor.h"
#include "model/config.h"
#include "model/cpu/buffer.h"
#include "model/cpu/kernels.h"
#include "model/cpu/weights.h"
#include "model/engine.h"
#include "model/state_layout.h"

namespace agentd::model {

// A sequence is written by Forward in three steps: BeginRows names the frontiers that the rows will
// write, the layers append entries (beyond position(), so they do not count yet), CommitRows makes
// it all the state. Without CommitRows nothing happened.
class CpuSequence final : public Sequence {
 public:
  explicit CpuSequence(const StateLayout& layout);

  int64_t position() const override { return position_; }
  int64_t memory_bytes() const override;
  absl::Status Truncate(int64_t position) override;
  absl::StatusOr<BlockPayload> ExportBlock(int64_t block) const override;
  absl::StatusOr<std::string> ExportAnchor() const override;
  absl::Status ImportBlock(const BlockPayload& payload) override;
  absl::Status ImportAnchor(std::string_view anchor) override;
  void SetCsaSource(CsaSource source) override { source_ = std::move(source); }
  absl::Status ImportCsa(int64_t block, int csa_layer, std::string_view entries) override;

  const StateLayout& layout() const { return layout_; }

  // FailedPrecondition between ImportBlock and ImportAnchor: then there is no state to go on from.
  absl::Status CheckReady() const;

  // The frontier to read before row j of the running rows and to write after it is Frontier(j) and
  // Frontier(j + 1).
  void BeginRows(int rows);
  float* Frontier(int row) { return frontiers_[size_t(row_slots_[size_t(row)])].data(); }
  // The rows whose frontiers (and so streams) are kept: row >= rows - this.
  static constexpr int kKeptRows = kMaxTruncateTokens + 1;
  // window_keys: [layers][rows][entry bytes] of the rows' own window keys. The MTP block's row j is
  // the key of position() + j - 1, whose input needs token j; `mtp_in_place`: of position() + j.
  void CommitRows(int rows, const uint8_t* window_keys, size_t layer_stride,
                  bool mtp_in_place = false);

  const float* LastStreams() const {
    return frontiers_[size_t(history_.back().slot)].data() + streams_offset_;
  }
  size_t streams_offset() const { return streams_offset_; }

  // Position must lie in [position() - layout().ring, position()); of the MTP block's layer one
  // less.
  const uint8_t* WindowKey(int layer, int64_t position) const {
    return rings_[size_t(layer)].data() +
           size_t(position % layout_.ring) * size_t(layout_.entry.bytes);
  }
  uint8_t* IndexKey(int csa_layer, int64_t entry);
  uint8_t* HcaEntry(int hca_layer, int64_t entry);
  // nullptr if it is not resident.
  uint8_t* CsaEntry(int csa_layer, int64_t entry);
  // Gets a block's entries through the source, on the calling thread.
  absl::Status FetchCsa(int64_t block, int csa_layer);
  bool all_resident() const { return missing_ == 0; }

  // A copy of everything that CommitRows replaces, for a call that commits in several parts and
  // must undo them.
  struct Saved;
  std::shared_ptr<const Saved> Save() const;
  void Restore(const Saved& saved);

 private:
  struct Block {
    Buffer<uint8_t> index;             // as in BlockPayload
    std::vector<Buffer<uint8_t>> csa;  // [csa_layers]; size 0: not resident
  };
  struct HistoryEntry {
    int64_t position = 0;
    int slot = 0;
  };

  void Clear();
  void AddBlock(bool with_csa);
  int TakeSlot();
  absl::Status ImportBlockChecked(const BlockPayload& payload);
  absl::Status ImportAnchorChecked(std::string_view anchor);
  AnchorBuffers Parts();

  const StateLayout& layout_;
  const size_t streams_offset_;
  int64_t position_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Buffer<uint8_t>> rings_;  // per layer [ring][entry bytes]; the MTP block's last
  // Frontiers after each of the last positions: what Truncate goes back to.
  std::deque<HistoryEntry> history_;
  std::vector<Buffer<float>> frontiers_;
  std::vector<int> free_slots_;
  std::vector<int> row_slots_;  // of the running rows
  int scratch_slot_ = 0;
  int64_t imported_blocks_ = 0;
  bool importing_ = false;  // blocks were imported, the anchor not yet
  int64_t missing_ = 0;     // (block, CSA layer) pairs that are not resident
  CsaSource source_;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_SEQUENCE_H_
