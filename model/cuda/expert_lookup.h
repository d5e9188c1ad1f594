// The kernels of a cache of experts: which of a layer's experts are on the device, which are
// fetched to where, and the copies. The host takes no part, so that captured steps do all of it.
//
// A batch that needs more experts than there are slots is done in rounds: each has its experts in
// the slots at once, those that were there already first, and every expert belongs to one round.
#ifndef AGENTD_MODEL_CUDA_EXPERT_LOOKUP_H_
#define AGENTD_MODEL_CUDA_EXPERT_LOOKUP_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace agentd::model::cuda {

inline constexpr int kMaxExpertSlots = 1 << 16;

// What was looked up since the cache was made; on the device.
struct ExpertCounts {
  unsigned long long clock = 0;  // of rounds; see kFirstUse
  unsigned long long hits = 0;
  unsigned long long misses = 0;
  unsigned long long bytes = 0;  // fetched
};

// Times of use: an empty slot is the oldest, then what a batch of many rows fetched, then real
// times.
inline constexpr unsigned long long kNeverUsed = 0;
inline constexpr unsigned long long kUsedByMany = 1;
inline constexpr unsigned long long kFirstUse = 2;

// Device memory of a cache. A key is layer * experts + expert.
struct ExpertTables {
  int experts = 0;  // of a layer
  int slots = 0;    // kMaxExpertSlots at most
  int64_t slot_bytes = 0;
  uint8_t* data = nullptr;             // [slots][slot_bytes]
  int* slot_of = nullptr;              // [layers][experts], -1: not here
  int* key_of = nullptr;               // [slots], -1: empty
  unsigned long long* used = nullptr;  // [slots] when last
  unsigned long long* busy = nullptr;  // [slots] the last round that needs it
  ExpertCounts* counts = nullptr;
  // Of the lookup under way:
  int* slot = nullptr;      // [experts] where one of the batch's is in its round
  int* round = nullptr;     // [experts]
  int2* fetches = nullptr;  // [experts] {expert, slot}, by round
  int2* found = nullptr;    // {hits, misses}
};

struct ExpertLookup {
  int layer = 0;                      // among those of the cache
  int64_t expert_bytes = 0;           // slot_bytes at most, a multiple of 16
  const int* expert_begin = nullptr;  // [experts + 1] into the routed rows (RouteArgs)
  // Few rows: what is fetched is the newest. Of many rows, which want nearly every expert of every
  // layer in turn, it is the oldest: the next to be replaced, so that the rest stays.
  bool few = false;
};
void LookUpExperts(const ExpertTables& tables, const ExpertLookup& lookup, cudaStream_t stream);

// Copies a round's experts from `host` (pinned and mapped) to their slots and lists its tiles, with
// slots in the place of experts. There are RoundsOf() rounds; in those that a batch does not need
// there is nothing to do.
struct ExpertRound {
  int round = 0;
  int64_t expert_bytes = 0;
  const uint8_t* host = nullptr;  // [experts][expert_bytes]
  const int4* tiles = nullptr;    // of all rounds (RouteArgs)
  const int* tile_count = nullptr;
  int4* round_tiles = nullptr;  // {slot, first routed row, count, 0}; as much room
  int* round_tile_count = nullptr;
};
void FetchExperts(const ExpertTables& tables, const ExpertRound& round, cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_EXPERT_LOOKUP_H_
