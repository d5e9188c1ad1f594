// What kernels are told about a batch and about where its sequences' state lies. Plain structs,
// passed by value or lying in device memory; every pointer is a device pointer.
#ifndef AGENTD_MODEL_CUDA_BATCH_H_
#define AGENTD_MODEL_CUDA_BATCH_H_

#include <cstdint>

namespace agentd::model::cuda {

// Numbers of rows. `low`: the checkpoint has FP8 or FP4 weights and the rules of spec section 4
// hold. Then values that those rules round are stored as BF16 (__nv_bfloat16), otherwise as float:
// such buffers are void* here ("Value").

// A product's output: `planes` partial sums [rows][row_stride] of slices of K, plane_stride floats
// apart. The product is ((p0 + p1) + p2) + ..., in F32. `rounded`: one plane, of the product
// rounded to BF16, where all that read it would round it first.
struct Planes {
  const void* data = nullptr;  // float; BF16 if rounded
  int planes = 1;
  int64_t plane_stride = 0;
  int row_stride = 0;
  bool rounded = false;
};

// Where things lie in a sequence's state: model/state_layout.h for kernels.
struct StateShape {
  bool low = false;
  int window = 0;       // sliding_window
  int ring = 0;         // window keys kept per layer
  int channels = 0;     // c
  int rotary = 0;       // r, the last channels
  int entry_bytes = 0;  // of a KV entry
  int index_channels = 0;
  int key_bytes = 0;  // of an indexer key
  int csa_layers = 0;
  int hca_layers = 0;
  int64_t frontier_floats = 0;
};

// Consecutive rows of one sequence.
struct SegmentView {
  int64_t start = 0;  // position of its first row
  int row_begin = 0;
  int rows = 0;
  // Pages by block of 256 tokens. Index page: [csa_layers][64][key_bytes], then
  // [hca_layers][2][entry_bytes]. CSA pages are [64][entry_bytes] of one layer: of block b and
  // layer `number` csa_pages[number * csa_stride + b]; nullptr if not resident.
  // Pages are aligned to 16 bytes, all other arrays to as much at least.
  uint8_t* const* index_pages = nullptr;
  uint8_t* const* csa_pages = nullptr;
  int64_t csa_stride = 0;
  uint8_t* rings = nullptr;    // [layers][ring][entry_bytes]: position p at p % ring
  float* frontiers = nullptr;  // [slots][frontier_floats]
  // [rows + 1]: row j starts from frontier slots[j] and leaves slots[j + 1]. -1: not kept (never of
  // slots[0]).
  const int* slots = nullptr;
  // Its source failed: what its rows compute has no meaning, and nothing of it may become state.
  bool failed = false;
};

struct BatchView {
  int rows = 0;
  int segment_count = 0;
  const SegmentView* segments = nullptr;  // [segment_count]
  const int* segment_of = nullptr;        // [rows]
  const int* positions = nullptr;         // [rows]
  const int* tokens = nullptr;            // [rows]
};

#if defined(__CUDACC__) || defined(AGENTD_CUDA_EMULATED)
// Addresses of entries in their page; `number`: among the layers of its kind.
__device__ inline uint8_t* KeyInPage(const StateShape& s, uint8_t* page, int number,
                                     int64_t entry) {
  return page + (int64_t(number) * 64 + entry % 64) * s.key_bytes;
}
__device__ inline uint8_t* HcaEntryInPage(const StateShape& s, uint8_t* page, int number,
                                          int64_t entry) {
  return page + int64_t(s.csa_layers) * 64 * s.key_bytes +
         (int64_t(number) * 2 + entry % 2) * s.entry_bytes;
}
__device__ inline uint8_t* CsaEntryInPage(const StateShape& s, uint8_t* page, int64_t entry) {
  return page + (entry % 64) * s.entry_bytes;
}
// The same of one segment.
__device__ inline uint8_t* IndexKeyAt(const StateShape& s, const SegmentView& g, int number,
                                      int64_t entry) {
  return KeyInPage(s, g.index_pages[entry / 64], number, entry);
}
__device__ inline uint8_t* HcaEntryAt(const StateShape& s, const SegmentView& g, int number,
                                      int64_t entry) {
  return HcaEntryInPage(s, g.index_pages[entry / 2], number, entry);
}
// The page of a CSA entry; nullptr if it is not resident.
__device__ inline uint8_t* CsaPageOf(const SegmentView& g, int number, int64_t entry) {
  return g.csa_pages[number * g.csa_stride + entry / 64];
}
// Call only where the page is resident.
__device__ inline uint8_t* CsaEntryAt(const StateShape& s, const SegmentView& g, int number,
                                      int64_t entry) {
  return CsaEntryInPage(s, CsaPageOf(g, number, entry), entry);
}
// The key of position p as row `row` of this segment sees it: own keys of this batch are in
// `window_keys` [rows of the batch][entry_bytes] of the layer, older ones in the ring.
__device__ inline const uint8_t* WindowKeyAt(const StateShape& s, const SegmentView& g, int layer,
                                             const uint8_t* window_keys, int64_t p) {
  if (p >= g.start) return window_keys + (g.row_begin + (p - g.start)) * s.entry_bytes;
  return g.rings + (int64_t(layer) * s.ring + p % s.ring) * s.entry_bytes;
}
#endif

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_BATCH_H_
