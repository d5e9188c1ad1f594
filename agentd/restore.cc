#include "agentd/restore.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {
namespace {

bool IsDamage(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsNotFound(status);
}

absl::StatusOr<StoredState> ReadState(sessions::Store& store, const sessions::RestorePoint& point,
                                      int csa_layers, int64_t& damaged_from) {
  StoredState state;
  state.position = point.position;
  damaged_from = point.position;
  ASSIGN_OR_RETURN(state.anchor, store.ReadAnchor(point.anchor, point.position));
  for (size_t block = 0; block < point.blocks.size(); ++block) {
    damaged_from = (static_cast<int64_t>(block) + 1) * model::kBlockTokens;
    model::BlockPayload payload;
    ASSIGN_OR_RETURN(payload.index, store.ReadBlockPart(point.blocks[block], 0));
    for (int layer = 0; layer < csa_layers; ++layer) {
      ASSIGN_OR_RETURN(std::string entries, store.ReadBlockPart(point.blocks[block], layer + 1));
      payload.csa.push_back(std::move(entries));
    }
    state.blocks.push_back(std::move(payload));
  }
  return state;
}

// Where one value is damaged others may be: reading drops those, so that they are stored again when
// they are computed again, and the next restart finds all whole.
void DropDamaged(sessions::Store& store, const sessions::RestorePoint& point, int csa_layers) {
  for (const sessions::BlockHash& block : point.blocks) {
    for (int part = 0; part <= csa_layers; ++part) {
      if (IsDamage(store.ReadBlockPart(block, part).status())) break;
    }
  }
}

}  // namespace

absl::StatusOr<Restored> ReadRestorePoint(sessions::Store& store, std::string_view owner,
                                          std::span<const TokenId> tokens, int64_t max_position,
                                          int csa_layers) {
  Restored restored;
  for (int64_t limit = max_position; limit > 0;) {
    ASSIGN_OR_RETURN(sessions::RestorePoint point, store.FindRestorePoint(owner, tokens, limit));
    if (point.position == 0) break;
    restored.covered = std::max(restored.covered, point.position);
    int64_t damaged_from = 0;
    absl::StatusOr<StoredState> state = ReadState(store, point, csa_layers, damaged_from);
    if (state.ok()) {
      restored.state = std::move(state).value();
      restored.point = std::move(point);
      break;
    }
    if (!IsDamage(state.status())) return state.status();
    spdlog::warn("stored KV is damaged and will be recomputed: {}", Text(state.status()));
    if (limit == max_position) DropDamaged(store, point, csa_layers);
    // Anchors past a damaged block need it too; a damaged anchor is the only thing lost.
    limit = std::min(damaged_from, point.position) - 1;
  }
  return restored;
}

}  // namespace agentd::daemon
