// What a timeline's state does on every backend: positions, which frontiers are kept, import and
// export. Where the bytes lie is the backend's, behind a few hooks.
#ifndef AGENTD_MODEL_SEQUENCE_BASE_H_
#define AGENTD_MODEL_SEQUENCE_BASE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/engine.h"
#include "model/state_layout.h"

namespace agentd::model {

// A sequence is written by a forward pass in three steps: BeginRows names the frontiers that the
// rows will write, the layers append entries (beyond position(), so they do not count yet), the
// backend writes what the rows leave (window keys, streams) and CommitRows makes it all the state.
// Without CommitRows nothing happened.
//
// Frontiers lie in slots, numbered from 0. A hook that fails (a device may be out of memory) leaves
// the state as it was; its error goes to the caller.
class SequenceBase : public Sequence {
 public:
  explicit SequenceBase(const StateLayout& layout) : layout_(layout) {}

  int64_t position() const final { return position_; }
  absl::Status Truncate(int64_t position) final;
  absl::StatusOr<std::unique_ptr<Export>> StartExport(int64_t first_block, int64_t blocks,
                                                      bool anchor) const final;
  absl::Status ImportBlocks(std::span<const BlockPayload> blocks, size_t* fitting) final;
  absl::Status ImportAnchor(std::string_view anchor) final;
  void SetCsaSource(CsaSource source) final { source_ = std::move(source); }
  absl::Status ImportCsa(std::span<const CsaPart> parts,
                         std::span<const std::string> entries) final;
  bool all_resident() const final { return missing_ == 0; }

  const StateLayout& layout() const { return layout_; }

  // FailedPrecondition between ImportBlocks and ImportAnchor: then there is no state to go on from.
  absl::Status CheckReady() const;

  // Makes room for `rows` rows from position() on: blocks, and a slot for every frontier that is
  // kept. After an error the state is as it was.
  absl::Status BeginRows(int rows);
  // The rows whose frontiers (and so streams) are kept: row >= rows - this.
  static constexpr int kKeptRows = kMaxTruncateTokens + 1;
  // [rows + 1] of the running rows: row j starts from the frontier in slot row_slots()[j] and
  // leaves that in row_slots()[j + 1]; -1: not kept (never the first).
  std::span<const int> row_slots() const { return row_slots_; }
  // Of the rows that BeginRows was called for.
  void CommitRows(int rows);

  // The slot of the frontier after the last token. Not of an empty sequence.
  int last_slot() const { return history_.back().slot; }
  // Gets entries through the source, on the calling thread.
  absl::Status FetchCsa(std::span<const CsaPart> parts);

  // A copy of everything that a commit replaces, for a call that commits in several parts and must
  // undo them.
  struct Saved;
  absl::StatusOr<std::shared_ptr<const Saved>> Save();
  absl::Status Restore(const Saved& saved);

 protected:
  // An export whose bytes are there.
  static std::unique_ptr<Export> Ready(Export::State state);

  // What Save keeps of a backend's bytes.
  struct Contents {
    virtual ~Contents() = default;
  };

  // Blocks 0, 1, ...: an index part each (index_bytes()), per CSA layer entries (csa_bytes()). Of
  // an `open` block all are zeros; of another the index part is anything until WriteIndexes, the
  // entries not there until WriteCsa.
  virtual absl::Status AddBlock(bool open) = 0;
  virtual void DropBlocks(int64_t keep) = 0;  // block `keep` and those after it
  // indexes[i] of block `first` + i.
  virtual absl::Status WriteIndexes(int64_t first, std::span<const std::string_view> indexes) = 0;
  virtual bool HasCsa(int64_t block, int csa_layer) const = 0;
  // entries[i] of parts[i]; checked. After an error some may be there.
  virtual absl::Status WriteCsa(std::span<const CsaPart> parts,
                                std::span<const std::string_view> entries) = 0;

  // Room for frontiers in slots [0, slots), those that were there kept. Never less than before.
  virtual absl::Status GrowSlots(int slots) = 0;
  virtual absl::Status ZeroSlot(int slot) = 0;

  // An anchor's parts (anchor.h): the rings, the frontier in a slot, and the block of the position,
  // which is there if one is open. Blocks that are read are whole and resident; slot -1: no anchor.
  virtual absl::StatusOr<std::unique_ptr<Export>> StartRead(int64_t first_block, int64_t blocks,
                                                            int64_t position, int slot) const = 0;
  // The anchor was checked.
  virtual absl::Status WriteAnchor(std::string_view anchor, int64_t position, int slot) = 0;

  // Rings, and the frontiers in these slots; Restore puts the latter into other slots, in the same
  // order.
  virtual absl::StatusOr<std::unique_ptr<const Contents>> SaveContents(
      std::span<const int> slots) const = 0;
  virtual absl::Status RestoreContents(const Contents& contents, std::span<const int> slots) = 0;

 private:
  struct HistoryEntry {
    int64_t position = 0;
    int slot = 0;  // -1: of an empty sequence, no frontier yet
  };

  void Clear();
  // An empty sequence gets its first frontier: zeros.
  absl::Status Start();
  absl::Status NewBlock(bool open);
  void KeepBlocks(int64_t count);
  absl::Status ReserveSlots(size_t count);
  int TakeSlot();
  void FreeHistory();
  std::vector<int> HistorySlots() const;
  // What is wrong with it as the block `number`.
  absl::Status CheckBlock(int64_t number, const BlockPayload& block) const;
  absl::Status TakeBlocks(std::span<const BlockPayload> blocks, size_t& fitting);
  absl::Status TakeCsa(std::span<const CsaPart> parts, std::span<const std::string_view> entries);
  absl::Status ImportAnchorChecked(std::string_view anchor);
  absl::Status CheckCsa(std::span<const CsaPart> parts, std::span<const std::string> entries) const;

  const StateLayout& layout_;
  int64_t position_ = 0;
  int64_t blocks_ = 0;
  // Frontiers after each of the last positions: what Truncate goes back to.
  std::deque<HistoryEntry> history_ = {{0, -1}};
  int slots_ = 0;
  std::vector<int> free_slots_;
  std::vector<int> row_slots_;
  int64_t imported_blocks_ = 0;
  bool importing_ = false;  // blocks were imported, the anchor not yet
  int64_t missing_ = 0;     // (block, CSA layer) pairs that are not resident
  CsaSource source_;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_SEQUENCE_BASE_H_
