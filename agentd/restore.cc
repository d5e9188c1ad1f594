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
constexpr int64_t kCheckedBlocks = 16;
// The index part, among a block's parts by CSA layer.
constexpr int kIndexPart = -1;

// Blocks of a restore point.
class StoredBlocks final : public CsaStore {
 public:
  StoredBlocks(sessions::Store& store, const sessions::RestorePoint& point, int csa_layers)
      : store_(store), hashes_(point.blocks), hold_(point.hold), csa_layers_(csa_layers) {}

  int64_t blocks() const override { return static_cast<int64_t>(hashes_.size()); }
  int csa_layers() const override { return csa_layers_; }

  std::vector<absl::StatusOr<std::string>> Read(std::span<const model::CsaPart> parts) override {
    std::vector<sessions::BlockPart> wanted;
    wanted.reserve(parts.size());
    for (const model::CsaPart& part : parts) {
      wanted.push_back({hashes_[static_cast<size_t>(part.block)], part.csa_layer - kIndexPart});
    }
    return store_.ReadBlockParts(wanted);
  }

  std::vector<absl::StatusOr<std::string>> ReadIndex(int64_t first, int64_t count) {
    std::vector<model::CsaPart> parts;
    for (int64_t block = first; block < first + count; ++block)
      parts.push_back({block, kIndexPart});
    return Read(parts);
  }

  void Drop(int64_t block) override { store_.DropBlock(hashes_[static_cast<size_t>(block)]); }

  void DropDamaged(const std::function<bool()>& stop) override {
    for (int64_t first = 0; first < blocks() && !(stop && stop()); first += kCheckedBlocks) {
      std::vector<model::CsaPart> parts;
      for (int64_t block = first; block < std::min(first + kCheckedBlocks, blocks()); ++block) {
        for (int layer = kIndexPart; layer < csa_layers_; ++layer) parts.push_back({block, layer});
      }
      (void)Read(parts);
    }
  }

 private:
  sessions::Store& store_;
  const std::vector<sessions::BlockHash> hashes_;
  const std::shared_ptr<const void> hold_;  // the store's, so that it evicts none of them
  const int csa_layers_;
};

}  // namespace

absl::StatusOr<Restored> ReadRestorePoint(sessions::Store& store, std::string_view owner,
                                          std::span<const model::TokenId> tokens,
                                          int64_t max_position, int csa_layers,
                                          const std::function<bool()>& stop) {
  Restored restored;
  for (int64_t limit = max_position; limit > 0;) {
    ASSIGN_OR_RETURN(sessions::RestorePoint point, store.FindRestorePoint(owner, tokens, limit));
    if (point.position == 0) break;
    restored.covered = std::max(restored.covered, point.position);
    absl::StatusOr<std::string> anchor = store.ReadAnchor(point.anchor, point.position);
    auto blocks = std::make_shared<StoredBlocks>(store, point, csa_layers);
    if (anchor.ok()) {
      StoredState& state = restored.state.emplace();
      state.position = point.position;
      state.anchor = std::move(anchor).value();
      state.index = std::make_unique<IndexStream>(
          blocks->blocks(),
          [blocks](int64_t first, int64_t count) { return blocks->ReadIndex(first, count); });
      state.csa = std::move(blocks);
      restored.point = std::move(point);
      break;
    }
    if (!IsDamage(anchor.status())) return anchor.status();
    spdlog::warn("stored KV is damaged and will be recomputed: {}", Text(anchor.status()));
    if (limit == max_position) blocks->DropDamaged(stop);
    limit = point.position - 1;
  }
  return restored;
}

}  // namespace agentd::daemon
