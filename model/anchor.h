// The bytes of an anchor: all that is needed, beside the complete blocks, to go on from a position.
//
// Little-endian: magic "V4ANCHR1", u32 entry bytes, u32 indexer key bytes, u32 layers (the MTP
// block's included), u32 window, u64 frontier floats, i64 position t; then
//   window keys: per layer those of positions [max(0, t - window), t), oldest first (the MTP
//   block's: one position earlier);
//   the frontier: the compressors' states in layer order (state_layout.h), F32, and the streams
//   after token t-1, F32 (BF16 for a low-precision checkpoint);
//   the open block [t/256*256, t): per CSA layer its indexer keys, per HCA layer its entries, per
//   CSA layer its entries.
// Unused parts of the frontier are zero, so equal states have equal anchors.
#ifndef AGENTD_MODEL_ANCHOR_H_
#define AGENTD_MODEL_ANCHOR_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/state_layout.h"

namespace agentd::model {

// Where the parts of a state lie in host memory.
template <typename Byte, typename Float>
struct AnchorPartsOf {
  std::vector<Byte*> rings;   // per layer [ring][entry bytes]: position p at p % ring
  Float* frontier = nullptr;  // [frontier_floats], the streams at its end
  // Of the open block, if there is one (t is no multiple of kBlockTokens): its index part, and per
  // CSA layer its entries.
  Byte* index = nullptr;
  std::vector<Byte*> csa;
};
using AnchorParts = AnchorPartsOf<const uint8_t, const float>;
using AnchorBuffers = AnchorPartsOf<uint8_t, float>;

std::string EncodeAnchor(const StateLayout& layout, int64_t position, const AnchorParts& parts);

// Everything about an anchor that is to follow `blocks` imported blocks. InvalidArgument if it is
// none of this model and of a position that follows the blocks, DataLoss if what should be a number
// is none. Its position.
absl::StatusOr<int64_t> CheckAnchor(const StateLayout& layout, int64_t blocks,
                                    std::string_view anchor);
// Of an anchor that CheckAnchor accepted. Writes the bytes that it holds, none else.
void DecodeAnchor(const StateLayout& layout, std::string_view anchor, const AnchorBuffers& buffers);

// The bytes are a whole number of entries or indexer keys.
bool AreEntries(const StateLayout& layout, std::string_view bytes);
bool AreIndexKeys(const StateLayout& layout, std::string_view bytes);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_ANCHOR_H_
