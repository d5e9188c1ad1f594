// Blocks and anchors of a sequence: the persisted form.
//
// Anchor, little-endian: magic "V4ANCHR1", u32 entry bytes, u32 indexer key bytes, u32 layers (the
// MTP block's included), u32 window, u64 frontier floats, i64 position t; then
//   window keys: per layer those of positions [max(0, t - window), t), oldest first (the MTP
//   block's: one position earlier); frontiers: the compressors' states in layer order (sequence.h),
//   F32, and the streams after token t-1, F32 (BF16 for a
//     low-precision checkpoint);
//   the open block [t/256*256, t): per CSA layer its indexer keys, per HCA layer its entries, per
//   CSA layer its entries.
// Unused parts of frontiers are zero, so equal states have equal anchors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/cpu/sequence.h"
#include "model/kv_format.h"
#include "model/numeric.h"

namespace agentd::model {
namespace {

constexpr char kMagic[8] = {'V', '4', 'A', 'N', 'C', 'H', 'R', '1'};

struct Header {
  char magic[8];
  uint32_t entry_bytes;
  uint32_t key_bytes;
  uint32_t layers;
  uint32_t window;
  uint64_t frontier_floats;
  int64_t position;
};
static_assert(sizeof(Header) == 40);

Header MakeHeader(const StateLayout& layout, int64_t position) {
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.entry_bytes = uint32_t(layout.entry.bytes);
  header.key_bytes = uint32_t(layout.key_bytes);
  header.layers = uint32_t(layout.layers.size());
  header.window = uint32_t(layout.window);
  header.frontier_floats = layout.frontier_floats;
  header.position = position;
  return header;
}

// Positions of the window keys that an anchor at t holds.
std::pair<int64_t, int64_t> WindowRange(const StateLayout& layout, size_t layer, int64_t t) {
  const bool mtp = layout.mtp && layer + 1 == layout.layers.size();
  const int64_t end = mtp ? std::max<int64_t>(t - 1, 0) : t;
  return {std::max<int64_t>(0, end - layout.window), end};
}

size_t StreamBytes(const StateLayout& layout) {
  return layout.stream_floats * (layout.low_precision ? 2 : 4);
}

}  // namespace

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

bool CpuSequence::AreEntries(std::string_view bytes) const {
  const auto* from = reinterpret_cast<const uint8_t*>(bytes.data());
  bool ok = true;
  for (size_t at = 0; at < bytes.size(); at += size_t(layout_.entry.bytes))
    ok &= IsEntry(layout_.entry, from + at);
  return ok;
}

bool CpuSequence::AreIndexKeys(std::string_view bytes) const {
  const auto* from = reinterpret_cast<const uint8_t*>(bytes.data());
  bool ok = true;
  for (size_t at = 0; at < bytes.size(); at += size_t(layout_.key_bytes))
    ok &= IsIndexKey(layout_.index_channels, layout_.low_precision, from + at);
  return ok;
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
  if (!AreIndexKeys(index.substr(0, keys)) || !AreEntries(index.substr(keys)))
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

std::vector<float> CpuSequence::CanonicalFrontier() const {
  const float* state = frontiers_[size_t(history_.back().slot)].data();
  std::vector<float> out(state, state + streams_offset_);
  auto clear = [&](size_t begin, size_t count) {
    std::fill_n(out.begin() + ptrdiff_t(begin), count, 0.0f);
  };
  for (const StateLayout::Layer& layer : layout_.layers) {
    if (layer.kind == LayerKind::kHca && position_ % 128 == 0) {
      clear(layer.frontier, StateLayout::HcaFrontier(layout_.channels));
    }
    if (layer.kind != LayerKind::kCsa) continue;
    for (const auto& [begin, n] : {std::pair(layer.frontier, layout_.channels),
                                   std::pair(layer.index_frontier, layout_.index_channels)}) {
      const size_t half = 3 * size_t(n);
      if (position_ < 4) clear(begin, half);
      if (position_ % 4 == 0) clear(begin + half, 2 * half);
    }
  }
  return out;
}

absl::StatusOr<std::string> CpuSequence::ExportAnchor() const {
  RETURN_IF_ERROR(CheckReady());
  std::string out;
  auto append = [&](const void* data, size_t bytes) {
    out.append(static_cast<const char*>(data), bytes);
  };
  const Header header = MakeHeader(layout_, position_);
  append(&header, sizeof(header));
  for (size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    const auto [begin, end] = WindowRange(layout_, layer, position_);
    for (int64_t p = begin; p < end; ++p)
      append(WindowKey(int(layer), p), size_t(layout_.entry.bytes));
  }
  const std::vector<float> frontier = CanonicalFrontier();
  append(frontier.data(), frontier.size() * sizeof(float));
  for (size_t i = 0; i < layout_.stream_floats; ++i) {
    const float value = LastStreams()[i];
    const uint16_t bits = FloatToBf16(value);
    layout_.low_precision ? append(&bits, 2) : append(&value, 4);
  }
  auto* self = const_cast<CpuSequence*>(this);  // the entry accessors serve writers too
  const int64_t first = position_ / kBlockTokens * kBlockTokens;
  const size_t csa = size_t(position_ - first) / 4;
  const size_t hca = size_t(position_ - first) / 128;
  for (int layer = 0; csa > 0 && layer < layout_.csa_layers; ++layer) {
    append(self->IndexKey(layer, first / 4), csa * size_t(layout_.key_bytes));
  }
  for (int layer = 0; hca > 0 && layer < layout_.hca_layers; ++layer) {
    append(self->HcaEntry(layer, first / 128), hca * size_t(layout_.entry.bytes));
  }
  for (int layer = 0; csa > 0 && layer < layout_.csa_layers; ++layer) {
    append(self->CsaEntry(layer, first / 4), csa * size_t(layout_.entry.bytes));
  }
  return out;
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

// Header and size: the anchor is one of this model and of a position that follows the blocks.
absl::Status CpuSequence::CheckAnchorSize(std::string_view anchor) const {
  Header header = {};
  if (anchor.size() < sizeof(header)) {
    return InvalidArgument("an anchor of {} bytes is too short for its header", anchor.size());
  }
  std::memcpy(&header, anchor.data(), sizeof(header));
  const Header wanted = MakeHeader(layout_, header.position);
  if (std::memcmp(&header, &wanted, sizeof(header)) != 0) {
    return InvalidArgument(
        "the anchor is not one of this model: its header differs (entry {} bytes, {} layers, "
        "window {}; required {}, {}, {})",
        header.entry_bytes, header.layers, header.window, wanted.entry_bytes, wanted.layers,
        wanted.window);
  }
  const int64_t t = header.position;
  if (t < 0 || t / kBlockTokens != imported_blocks_) {
    return InvalidArgument("an anchor of position {} needs {} blocks imported before it, {} were",
                           t, t < 0 ? 0 : t / kBlockTokens, imported_blocks_);
  }
  const size_t entry = size_t(layout_.entry.bytes);
  const size_t csa = size_t(t % kBlockTokens) / 4;
  const size_t hca = size_t(t % kBlockTokens) / 128;
  size_t expected = sizeof(header) + streams_offset_ * sizeof(float) + StreamBytes(layout_) +
                    csa * size_t(layout_.csa_layers) * (entry + size_t(layout_.key_bytes)) +
                    hca * size_t(layout_.hca_layers) * entry;
  for (size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    const auto [begin, end] = WindowRange(layout_, layer, t);
    expected += size_t(end - begin) * entry;
  }
  if (anchor.size() != expected) {
    return InvalidArgument("an anchor of position {} has {} bytes, {} are required", t,
                           anchor.size(), expected);
  }
  return absl::OkStatus();
}

absl::Status CpuSequence::ImportAnchorChecked(std::string_view anchor) {
  RETURN_IF_ERROR(CheckAnchorSize(anchor));
  Header header = {};
  std::memcpy(&header, anchor.data(), sizeof(header));
  const int64_t t = header.position;
  const size_t entry = size_t(layout_.entry.bytes);
  const size_t csa = size_t(t % kBlockTokens) / 4;
  const size_t hca = size_t(t % kBlockTokens) / 128;
  std::string_view rest = anchor.substr(sizeof(header));
  bool sound = true;
  auto take = [&](void* to, size_t bytes) {
    std::memcpy(to, rest.data(), bytes);
    rest.remove_prefix(bytes);
  };
  auto take_entries = [&](void* to, size_t bytes) {
    sound &= AreEntries(rest.substr(0, bytes));
    take(to, bytes);
  };
  for (size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    const auto [begin, end] = WindowRange(layout_, layer, t);
    for (int64_t p = begin; p < end; ++p)
      take_entries(const_cast<uint8_t*>(WindowKey(int(layer), p)), entry);
  }
  float* frontier = frontiers_[size_t(history_.back().slot)].data();
  take(frontier, streams_offset_ * sizeof(float));
  float* streams = frontier + streams_offset_;
  for (size_t i = 0; i < layout_.stream_floats; ++i) {
    uint16_t bits = 0;
    layout_.low_precision ? take(&bits, 2) : take(streams + i, 4);
    if (layout_.low_precision) streams[i] = Bf16ToFloat(bits);
  }
  blocks_.resize(size_t(imported_blocks_));
  if (t % kBlockTokens != 0) AddBlock(/*with_csa=*/true);
  const int64_t first = t / kBlockTokens * kBlockTokens;
  for (int layer = 0; csa > 0 && layer < layout_.csa_layers; ++layer) {
    const size_t bytes = csa * size_t(layout_.key_bytes);
    sound &= AreIndexKeys(rest.substr(0, bytes));
    take(IndexKey(layer, first / 4), bytes);
  }
  for (int layer = 0; hca > 0 && layer < layout_.hca_layers; ++layer)
    take_entries(HcaEntry(layer, first / 128), hca * entry);
  for (int layer = 0; csa > 0 && layer < layout_.csa_layers; ++layer)
    take_entries(CsaEntry(layer, first / 4), csa * entry);
  history_.back().position = t;
  position_ = t;
  importing_ = false;
  const std::vector<float> canonical = CanonicalFrontier();
  sound &= std::memcmp(canonical.data(), frontier, streams_offset_ * sizeof(float)) == 0;
  for (size_t i = 0; i < layout_.frontier_floats; ++i) sound &= !std::isnan(frontier[i]);
  if (!sound) return DataLoss("the anchor of position {} is damaged", t);
  return absl::OkStatus();
}

}  // namespace agentd::model
