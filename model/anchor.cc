#include "model/anchor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/status.h"
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

Header ReadHeader(std::string_view anchor) {
  Header header = {};
  std::memcpy(&header, anchor.data(), sizeof(header));
  return header;
}

// Positions of the window keys that an anchor at t holds.
std::pair<int64_t, int64_t> WindowRange(const StateLayout& layout, size_t layer, int64_t t) {
  const bool mtp = layout.mtp && layer + 1 == layout.layers.size();
  const int64_t end = mtp ? std::max<int64_t>(t - 1, 0) : t;
  return {std::max<int64_t>(0, end - layout.window), end};
}

size_t FrontierBytes(const StateLayout& layout) {
  return layout.streams_offset() * sizeof(float) +
         layout.stream_floats * (layout.low_precision ? 2 : 4);
}

// A run of bytes of an anchor, after the header, and where it lies in the state.
struct Part {
  enum class Place { kRing, kFrontier, kKeys, kEntries, kCsa };
  Place place;
  size_t layer;  // of kRing; the CSA layer of kCsa
  size_t offset;
  size_t bytes;
};

// In the order of the anchor.
std::vector<Part> PartsAt(const StateLayout& layout, int64_t t) {
  using Place = Part::Place;
  const size_t entry = size_t(layout.entry.bytes);
  std::vector<Part> parts;
  for (size_t layer = 0; layer < layout.layers.size(); ++layer) {
    const auto [begin, end] = WindowRange(layout, layer, t);
    for (int64_t p = begin; p < end; ++p)
      parts.push_back({Place::kRing, layer, layout.ring_offset(p), entry});
  }
  parts.push_back({Place::kFrontier, 0, 0, FrontierBytes(layout)});
  const size_t csa = size_t(t % kBlockTokens) / 4;
  const size_t hca = size_t(t % kBlockTokens) / 128;
  for (int layer = 0; csa > 0 && layer < layout.csa_layers; ++layer)
    parts.push_back({Place::kKeys, 0, layout.key_offset(layer, 0), csa * size_t(layout.key_bytes)});
  for (int layer = 0; hca > 0 && layer < layout.hca_layers; ++layer)
    parts.push_back({Place::kEntries, 0, layout.hca_offset(layer, 0), hca * entry});
  for (int layer = 0; csa > 0 && layer < layout.csa_layers; ++layer)
    parts.push_back({Place::kCsa, size_t(layer), 0, csa * entry});
  return parts;
}

// Not of kFrontier.
template <typename Byte, typename Float>
Byte* Address(const AnchorPartsOf<Byte, Float>& state, const Part& part) {
  switch (part.place) {
    case Part::Place::kRing:
      return state.rings[part.layer] + part.offset;
    case Part::Place::kCsa:
      return state.csa[part.layer] + part.offset;
    default:
      return state.index + part.offset;
  }
}

// Compressors' states as an anchor stores them: what the open blocks have, zeros elsewhere.
void Canonicalize(const StateLayout& layout, int64_t t, float* states) {
  for (const StateLayout::Layer& layer : layout.layers) {
    if (layer.kind == LayerKind::kHca && t % 128 == 0) {
      std::fill_n(states + layer.frontier, StateLayout::HcaFrontier(layout.channels), 0.0f);
    }
    if (layer.kind != LayerKind::kCsa) continue;
    for (const auto& [begin, n] : {std::pair(layer.frontier, layout.channels),
                                   std::pair(layer.index_frontier, layout.index_channels)}) {
      const size_t half = 3 * size_t(n);
      if (t < 4) std::fill_n(states + begin, half, 0.0f);
      if (t % 4 == 0) std::fill_n(states + begin + half, 2 * half, 0.0f);
    }
  }
}

void AppendFrontier(const StateLayout& layout, int64_t t, const float* frontier, std::string* out) {
  auto append = [&](const void* data, size_t bytes) {
    out->append(static_cast<const char*>(data), bytes);
  };
  std::vector<float> states(frontier, frontier + layout.streams_offset());
  Canonicalize(layout, t, states.data());
  append(states.data(), states.size() * sizeof(float));
  const float* streams = frontier + layout.streams_offset();
  if (!layout.low_precision) return append(streams, layout.stream_floats * sizeof(float));
  for (size_t i = 0; i < layout.stream_floats; ++i) {
    const uint16_t bits = FloatToBf16(streams[i]);
    append(&bits, 2);
  }
}

void TakeFrontier(const StateLayout& layout, const char* bytes, float* frontier) {
  const size_t states = layout.streams_offset();
  if (!layout.low_precision) {
    std::memcpy(frontier, bytes, layout.frontier_floats * sizeof(float));
    return;
  }
  std::memcpy(frontier, bytes, states * sizeof(float));
  for (size_t i = 0; i < layout.stream_floats; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes + states * sizeof(float) + 2 * i, 2);
    frontier[states + i] = Bf16ToFloat(bits);
  }
}

bool IsFrontier(const StateLayout& layout, int64_t t, std::string_view bytes) {
  std::vector<float> frontier(layout.frontier_floats);
  TakeFrontier(layout, bytes.data(), frontier.data());
  Canonicalize(layout, t, frontier.data());
  return std::memcmp(frontier.data(), bytes.data(), layout.streams_offset() * sizeof(float)) == 0 &&
         std::none_of(frontier.begin(), frontier.end(), [](float x) { return std::isnan(x); });
}

// The anchor is one of this model and of a position that follows the blocks.
absl::Status CheckHeader(const StateLayout& layout, int64_t blocks, std::string_view anchor) {
  if (anchor.size() < sizeof(Header)) {
    return InvalidArgument("an anchor of {} bytes is too short for its header", anchor.size());
  }
  const Header header = ReadHeader(anchor);
  const Header wanted = MakeHeader(layout, header.position);
  if (std::memcmp(&header, &wanted, sizeof(header)) != 0) {
    return InvalidArgument(
        "the anchor is not one of this model: its header differs (entry {} bytes, {} layers, "
        "window {}; required {}, {}, {})",
        header.entry_bytes, header.layers, header.window, wanted.entry_bytes, wanted.layers,
        wanted.window);
  }
  const int64_t t = header.position;
  if (t < 0 || t / kBlockTokens != blocks) {
    return InvalidArgument("an anchor of position {} needs {} blocks imported before it, {} were",
                           t, t < 0 ? 0 : t / kBlockTokens, blocks);
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeAnchor(const StateLayout& layout, int64_t position, const AnchorParts& parts) {
  const Header header = MakeHeader(layout, position);
  std::string out(reinterpret_cast<const char*>(&header), sizeof(header));
  for (const Part& part : PartsAt(layout, position)) {
    if (part.place == Part::Place::kFrontier) {
      AppendFrontier(layout, position, parts.frontier, &out);
    } else {
      out.append(reinterpret_cast<const char*>(Address(parts, part)), part.bytes);
    }
  }
  return out;
}

absl::StatusOr<int64_t> CheckAnchor(const StateLayout& layout, int64_t blocks,
                                    std::string_view anchor) {
  RETURN_IF_ERROR(CheckHeader(layout, blocks, anchor));
  const int64_t t = ReadHeader(anchor).position;
  const std::vector<Part> parts = PartsAt(layout, t);
  size_t expected = sizeof(Header);
  for (const Part& part : parts) expected += part.bytes;
  if (anchor.size() != expected) {
    return InvalidArgument("an anchor of position {} has {} bytes, {} are required", t,
                           anchor.size(), expected);
  }
  bool sound = true;
  std::string_view rest = anchor.substr(sizeof(Header));
  for (const Part& part : parts) {
    const std::string_view bytes = rest.substr(0, part.bytes);
    sound &= part.place == Part::Place::kFrontier ? IsFrontier(layout, t, bytes)
             : part.place == Part::Place::kKeys   ? AreIndexKeys(layout, bytes)
                                                  : AreEntries(layout, bytes);
    rest.remove_prefix(part.bytes);
  }
  if (!sound) return DataLoss("the anchor of position {} is damaged", t);
  return t;
}

void DecodeAnchor(const StateLayout& layout, std::string_view anchor,
                  const AnchorBuffers& buffers) {
  const char* from = anchor.data() + sizeof(Header);
  for (const Part& part : PartsAt(layout, ReadHeader(anchor).position)) {
    if (part.place == Part::Place::kFrontier) {
      TakeFrontier(layout, from, buffers.frontier);
    } else {
      std::memcpy(Address(buffers, part), from, part.bytes);
    }
    from += part.bytes;
  }
}

bool AreEntries(const StateLayout& layout, std::string_view bytes) {
  const auto* from = reinterpret_cast<const uint8_t*>(bytes.data());
  bool ok = true;
  for (size_t at = 0; at < bytes.size(); at += size_t(layout.entry.bytes))
    ok &= IsEntry(layout.entry, from + at);
  return ok;
}

bool AreIndexKeys(const StateLayout& layout, std::string_view bytes) {
  const auto* from = reinterpret_cast<const uint8_t*>(bytes.data());
  bool ok = true;
  for (size_t at = 0; at < bytes.size(); at += size_t(layout.key_bytes))
    ok &= IsIndexKey(layout.index_channels, layout.low_precision, from + at);
  return ok;
}

}  // namespace agentd::model
