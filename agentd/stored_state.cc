#include "agentd/stored_state.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {
namespace {

// Imported in one call: enough for several threads, and a few milliseconds of a single one.
constexpr size_t kImportBytes = size_t{16} << 20;

// The next blocks of `stored`, one at least.
std::span<const model::BlockPayload> NextBlocks(const StoredState& stored, size_t first) {
  size_t count = 0;
  for (size_t bytes = 0; bytes < kImportBytes && first + count < stored.blocks.size(); ++count) {
    const model::BlockPayload& block = stored.blocks[first + count];
    bytes += block.index.size();
    for (const std::string& entries : block.csa) bytes += entries.size();
  }
  return std::span(stored.blocks).subspan(first, count);
}

}  // namespace

bool IsDamage(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsNotFound(status);
}

bool IsRefusal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsDataLoss(status);
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
    const std::span<const model::BlockPayload> next = NextBlocks(stored, blocks);
    size_t fitting = 0;
    const absl::Status status = sequence.ImportBlocks(next, &fitting);
    const auto given = stored.blocks.begin() + static_cast<int64_t>(blocks);
    std::fill_n(given, next.size(), model::BlockPayload());
    blocks += fitting;
    RETURN_IF_ERROR(status);
    if (std::chrono::steady_clock::now() >= deadline) return false;
  }
  RETURN_IF_ERROR(sequence.ImportAnchor(stored.anchor));
  if (sequence.position() != stored.position) {
    return DataLoss("the anchor is for position {}, not {}", sequence.position(), stored.position);
  }
  return true;
}

}  // namespace agentd::daemon
