// Blocks and anchors of a sequence: the persisted form.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/cpu/sequence.h"

namespace agentd::model {

absl::StatusOr<BlockPayload> CpuSequence::ExportBlock(int64_t block) const {
  RETURN_IF_ERROR(CheckReady());
  if (block < 0 || (block + 1) * kBlockTokens > position_) {
    return InvalidArgument("block {} is not complete at position {}", block, position_);
  }
  const Block& from = *blocks_[size_t(block)];
  BlockPayload payload;
  payload.index.assign(reinterpret_cast<const char*>(from.index.data()), layout_.index_bytes());
  for (int layer = 0; layer < layout_.csa_layers; ++layer) {
    const Buffer<uint8_t>& csa = from.csa[size_t(layer)];
    if (csa.size() == 0) {
      return FailedPrecondition(
          "entries of block {}, CSA layer {} are not resident: export them where they came from",
          block, layer);
    }
    payload.csa.emplace_back(reinterpret_cast<const char*>(csa.data()), layout_.csa_bytes());
  }
  return payload;
}

absl::Status CpuSequence::ImportBlock(const BlockPayload& payload) {
  if (position_ != 0) {
    return FailedPrecondition(
        "blocks can be imported into an empty sequence only; this one is at position {}",
        position_);
  }
  absl::Status status = ImportBlockChecked(payload);
  if (!status.ok()) Clear();
  return status;
}

absl::Status CpuSequence::ImportBlockChecked(const BlockPayload& payload) {
  if (payload.index.size() != layout_.index_bytes()) {
    return InvalidArgument("block {}: its index part has {} bytes, {} are required",
                           imported_blocks_, payload.index.size(), layout_.index_bytes());
  }
  if (!payload.csa.empty() && payload.csa.size() != size_t(layout_.csa_layers)) {
    return InvalidArgument("block {}: it has entries of {} CSA layers, {} are required",
                           imported_blocks_, payload.csa.size(), layout_.csa_layers);
  }
  const std::string_view index = payload.index;
  const size_t keys = size_t(layout_.csa_layers) * layout_.keys_bytes();
  if (!AreIndexKeys(layout_, index.substr(0, keys)) || !AreEntries(layout_, index.substr(keys)))
    return DataLoss("block {}: its index part is damaged", imported_blocks_);
  // Rows that failed may have left blocks beyond the position.
  blocks_.resize(size_t(imported_blocks_));
  AddBlock(/*with_csa=*/false);
  Block& block = *blocks_.back();
  std::memcpy(block.index.data(), index.data(), index.size());
  importing_ = true;
  ++imported_blocks_;
  missing_ += layout_.csa_layers;
  for (int layer = 0; layer < int(payload.csa.size()); ++layer) {
    if (payload.csa[size_t(layer)].empty()) continue;
    RETURN_IF_ERROR(ImportCsa(imported_blocks_ - 1, layer, payload.csa[size_t(layer)]));
  }
  return absl::OkStatus();
}

AnchorBuffers CpuSequence::Parts() {
  AnchorBuffers parts;
  for (auto& ring : rings_) parts.rings.push_back(ring.data());
  parts.frontier = frontiers_[size_t(history_.back().slot)].data();
  const size_t open = size_t(position_ / kBlockTokens);
  if (open < blocks_.size()) {
    parts.index = blocks_[open]->index.data();
    for (auto& csa : blocks_[open]->csa) parts.csa.push_back(csa.data());
  }
  return parts;
}

absl::StatusOr<std::string> CpuSequence::ExportAnchor() const {
  RETURN_IF_ERROR(CheckReady());
  const AnchorBuffers parts = const_cast<CpuSequence*>(this)->Parts();
  return EncodeAnchor(layout_, position_,
                      {.rings = {parts.rings.begin(), parts.rings.end()},
                       .frontier = parts.frontier,
                       .index = parts.index,
                       .csa = {parts.csa.begin(), parts.csa.end()}});
}

absl::Status CpuSequence::ImportAnchor(std::string_view anchor) {
  if (position_ != 0) {
    return FailedPrecondition(
        "an anchor can be imported into an empty sequence only; this one is at position {}",
        position_);
  }
  absl::Status status = ImportAnchorChecked(anchor);
  if (!status.ok()) Clear();
  return status;
}

absl::Status CpuSequence::ImportAnchorChecked(std::string_view anchor) {
  ASSIGN_OR_RETURN(const int64_t t, CheckAnchor(layout_, imported_blocks_, anchor));
  blocks_.resize(size_t(imported_blocks_));
  if (t % kBlockTokens != 0) AddBlock(/*with_csa=*/true);
  history_.back().position = t;
  position_ = t;
  importing_ = false;
  DecodeAnchor(layout_, anchor, Parts());
  return absl::OkStatus();
}

}  // namespace agentd::model
