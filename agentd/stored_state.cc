#include "agentd/stored_state.h"

#include <utility>

#include "base/status.h"

namespace agentd::daemon {

bool IsDamage(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsNotFound(status);
}

absl::StatusOr<bool> ImportSome(StoredState& stored, model::Sequence& sequence, size_t& blocks,
                                std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    if (blocks == stored.blocks.size()) {
      if (!stored.index || stored.position / model::kBlockTokens == int64_t(blocks)) break;
      ASSIGN_OR_RETURN(std::vector<std::string> parts, stored.index->Take());
      if (parts.empty()) return false;
      for (std::string& part : parts) stored.blocks.emplace_back().index = std::move(part);
    }
    RETURN_IF_ERROR(sequence.ImportBlock(stored.blocks[blocks]));
    stored.blocks[blocks] = {};
    ++blocks;
    if (std::chrono::steady_clock::now() >= deadline) return false;
  }
  RETURN_IF_ERROR(sequence.ImportAnchor(stored.anchor));
  if (sequence.position() != stored.position) {
    return Internal("the anchor is for position {}, not {}", sequence.position(), stored.position);
  }
  return true;
}

}  // namespace agentd::daemon
