#include "agentd/restore.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "base/status.h"

namespace agentd::daemon {
namespace {

// Read at once by who only wants to know whether they are whole.
constexpr size_t kCheckedBlocks = 16;

// Blocks of a restore point.
class StoredBlocks final : public CsaStore {
 public:
  StoredBlocks(sessions::Store& store, std::vector<sessions::BlockHash> hashes, int csa_layers)
      : store_(store), hashes_(std::move(hashes)), csa_layers_(csa_layers) {}

  int64_t blocks() const override { return static_cast<int64_t>(hashes_.size()); }
  int csa_layers() const override { return csa_layers_; }

  std::vector<absl::StatusOr<std::string>> Read(std::span<const model::CsaPart> parts) override {
    std::vector<sessions::BlockPart> wanted;
    wanted.reserve(parts.size());
    for (const model::CsaPart& part : parts) {
      wanted.push_back({hashes_[static_cast<size_t>(part.block)], part.csa_layer + 1});
    }
    return store_.ReadBlockParts(wanted);
  }

  void Drop(int64_t block) override { store_.DropBlock(hashes_[static_cast<size_t>(block)]); }

  void DropDamaged() override {
    std::vector<sessions::BlockPart> parts;
    for (size_t block = 0; block < hashes_.size(); ++block) {
      for (int part = 0; part <= csa_layers_; ++part) parts.push_back({hashes_[block], part});
      if ((block + 1) % kCheckedBlocks != 0 && block + 1 < hashes_.size()) continue;
      (void)store_.ReadBlockParts(parts);
      parts.clear();
    }
  }

 private:
  sessions::Store& store_;
  const std::vector<sessions::BlockHash> hashes_;
  const int csa_layers_;
};

absl::StatusOr<StoredState> ReadState(sessions::Store& store, const sessions::RestorePoint& point,
                                      int64_t& damaged_from) {
  StoredState state;
  state.position = point.position;
  damaged_from = point.position;
  ASSIGN_OR_RETURN(state.anchor, store.ReadAnchor(point.anchor, point.position));
  std::vector<sessions::BlockPart> parts;
  for (const sessions::BlockHash& block : point.blocks) parts.push_back({block, 0});
  std::vector<absl::StatusOr<std::string>> indexes = store.ReadBlockParts(parts);
  for (absl::StatusOr<std::string>& index : indexes) {
    damaged_from = (static_cast<int64_t>(state.blocks.size()) + 1) * model::kBlockTokens;
    if (!index.ok()) return index.status();
    state.blocks.emplace_back().index = std::move(index).value();
  }
  return state;
}

}  // namespace

absl::StatusOr<Restored> ReadRestorePoint(sessions::Store& store, std::string_view owner,
                                          std::span<const model::TokenId> tokens,
                                          int64_t max_position, int csa_layers) {
  Restored restored;
  for (int64_t limit = max_position; limit > 0;) {
    ASSIGN_OR_RETURN(sessions::RestorePoint point, store.FindRestorePoint(owner, tokens, limit));
    if (point.position == 0) break;
    restored.covered = std::max(restored.covered, point.position);
    int64_t damaged_from = 0;
    absl::StatusOr<StoredState> state = ReadState(store, point, damaged_from);
    auto blocks = std::make_shared<StoredBlocks>(store, point.blocks, csa_layers);
    if (state.ok()) {
      restored.state = std::move(state).value();
      restored.state->csa = std::move(blocks);
      restored.point = std::move(point);
      break;
    }
    if (!IsDamage(state.status())) return state.status();
    spdlog::warn("stored KV is damaged and will be recomputed: {}", Text(state.status()));
    if (limit == max_position) blocks->DropDamaged();
    // Anchors past a damaged block need it too; a damaged anchor is the only thing lost.
    limit = std::min(damaged_from, point.position) - 1;
  }
  return restored;
}

}  // namespace agentd::daemon
