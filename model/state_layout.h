// Where things lie in a sequence's state: the same on every backend, in memory as in blocks and
// anchors.
#ifndef AGENTD_MODEL_STATE_LAYOUT_H_
#define AGENTD_MODEL_STATE_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/engine.h"
#include "model/kv_format.h"

namespace agentd::model {

inline constexpr int kCsaPerBlock = kBlockTokens / 4;
inline constexpr int kHcaPerBlock = kBlockTokens / 128;

// Of the sequences of one model. Immutable.
struct StateLayout {
  struct Layer {
    LayerKind kind = LayerKind::kSwa;
    int number = 0;             // among the layers of its kind
    size_t frontier = 0;        // floats into a frontier
    size_t index_frontier = 0;  // CSA: the indexer's
  };
  StateLayout(const Config& config, bool low_precision);

  std::vector<Layer> layers;  // the MTP block's last
  int window = 0;             // sliding_window
  int ring = 0;               // window keys kept: what Truncate may go back included
  int csa_layers = 0;
  int hca_layers = 0;
  int channels = 0;  // c
  int index_channels = 0;
  bool low_precision = false;
  bool mtp = false;
  EntryShape entry;
  int key_bytes = 0;           // of an indexer key
  size_t stream_floats = 0;    // H * d
  size_t frontier_floats = 0;  // compressor states, then the streams after the last token

  // Floats into a frontier.
  size_t streams_offset() const { return frontier_floats - stream_floats; }

  // Of one block. Its index part: per CSA layer its indexer keys, then per HCA layer its entries.
  size_t keys_bytes() const {
    return size_t(kCsaPerBlock) * size_t(key_bytes);
  }  // of one CSA layer
  size_t csa_bytes() const {
    return size_t(kCsaPerBlock) * size_t(entry.bytes);
  }  // of one CSA layer
  size_t index_bytes() const {
    return size_t(csa_layers) * keys_bytes() +
           size_t(hca_layers) * kHcaPerBlock * size_t(entry.bytes);
  }
  // What a sequence of so many tokens takes at most: its blocks, window keys and frontiers.
  int64_t SequenceBytes(int64_t tokens) const;

  // Where an entry of the timeline lies in its block's index part or CSA entries.
  size_t key_offset(int csa_layer, int64_t entry_number) const {
    return size_t(csa_layer) * keys_bytes() +
           size_t(entry_number % kCsaPerBlock) * size_t(key_bytes);
  }
  size_t hca_offset(int hca_layer, int64_t entry_number) const {
    return size_t(csa_layers) * keys_bytes() +
           (size_t(hca_layer) * kHcaPerBlock + size_t(entry_number % kHcaPerBlock)) *
               size_t(entry.bytes);
  }
  size_t csa_offset(int64_t entry_number) const {
    return size_t(entry_number % kCsaPerBlock) * size_t(entry.bytes);
  }
  // Where the window key of a position lies in a layer's ring.
  size_t ring_offset(int64_t position) const {
    return size_t(position % ring) * size_t(entry.bytes);
  }

  // Frontier of one CSA compressor of n channels: previous block's first half, this block's first
  // half, its second half, each [3][n] (see FoldPooling). Of an HCA compressor: [3][n].
  static size_t CsaFrontier(int n) { return size_t(9) * size_t(n); }
  static size_t HcaFrontier(int n) { return size_t(3) * size_t(n); }
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_STATE_LAYOUT_H_
