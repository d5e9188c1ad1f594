// Attention over stored entries: what its kernels share. A row's arithmetic is a function of its
// list of entries alone.
#ifndef AGENTD_MODEL_CUDA_ATTEND_CUH_
#define AGENTD_MODEL_CUDA_ATTEND_CUH_

#include "model/cuda/attention.h"
#include "model/cuda/launch.cuh"
#include "model/cuda/tensor.cuh"
#include "model/math.h"
#include "model/numeric.h"

namespace agentd::model::cuda {

constexpr int kScaleBlock = 64;   // channels of an E4M3 scale
constexpr int kHcaRatio = 128;    // tokens of an HCA entry
constexpr int kPageEntries = 64;  // CSA entries of a page, of one layer
// Scratch of as many rows at a time, but of one at least.
constexpr int64_t kScratchBytes = 128 << 20;

// A row's entries: window keys, oldest first, then compressed ones.
struct EntryList {
  int row = 0;
  const SegmentView* segment = nullptr;
  int64_t oldest = 0;  // position
  int window = 0;      // window keys
  int count = 0;       // of all
};

// Without selected entries. Nothing of it is written by a kernel of this pass.
__device__ inline EntryList ListKnownEntries(const AttendArgs& a, int row) {
  const int t = a.batch.positions[row];
  EntryList list;
  list.row = row;
  list.segment = a.batch.segments + a.batch.segment_of[row];
  list.window = min(t + 1, a.state.window);
  list.oldest = t + 1 - list.window;
  list.count = list.window;
  if (a.kind == EntryKind::kHca) list.count += (t + 1) / kHcaRatio;
  return list;
}
__device__ inline EntryList ListEntries(const AttendArgs& a, int row) {
  EntryList list = ListKnownEntries(a, row);
  if (a.kind == EntryKind::kCsa) list.count += a.selected_count[row];
  return list;
}

// Whether entry i was there before this pass, which began when everything before it had ended: then
// it may be read before the wait for the kernels ahead.
__device__ inline bool IsPast(const AttendArgs& a, const EntryList& list, int i) {
  const int64_t start = list.segment->start;
  if (i < list.window) return list.oldest + i < start;
  return a.kind == EntryKind::kHca && i - list.window < start / kHcaRatio;
}

// nullptr: not resident, read as zeros. `chosen`: of i, where the row's entries are selected.
__device__ inline const uint8_t* EntryAt(const AttendArgs& a, const EntryList& list, int i,
                                         int chosen) {
  const SegmentView& segment = *list.segment;
  if (i < list.window)
    return WindowKeyAt(a.state, segment, a.layer, a.window_keys, list.oldest + i);
  if (a.kind == EntryKind::kHca) return HcaEntryAt(a.state, segment, a.number, i - list.window);
  const uint8_t* page = CsaPageOf(segment, a.number, chosen);
  return page == nullptr ? nullptr : page + chosen % kPageEntries * a.state.entry_bytes;
}
__device__ inline const uint8_t* EntryAt(const AttendArgs& a, const EntryList& list, int i) {
  int chosen = 0;
  if (a.kind == EntryKind::kCsa && i >= list.window)
    chosen = a.selected[int64_t(list.row) * a.topk + (i - list.window)];
  return EntryAt(a, list, i, chosen);
}

// Where the rotary channels of a low-precision entry begin.
__device__ inline int RotaryOffset(const StateShape& s) {
  const int plain = s.channels - s.rotary;
  return (plain + (plain + kScaleBlock - 1) / kScaleBlock + 7) / 8 * 8;
}

__device__ inline float ValueAt(const void* values, bool low, int64_t i) {
  return low ? Bf16ToFloat(static_cast<const uint16_t*>(values)[i])
             : static_cast<const float*>(values)[i];
}

// One channel of an entry.
__device__ inline float EntryChannel(const StateShape& s, const uint8_t* entry, int channel) {
  if (entry == nullptr) return 0;
  if (!s.low) return reinterpret_cast<const float*>(entry)[channel];
  const int plain = s.channels - s.rotary;
  if (channel < plain) {
    return E4M3ToFloat(entry[channel]) * E8M0ToFloat(entry[plain + channel / kScaleBlock]);
  }
  return ValueAt(entry + RotaryOffset(s), true, channel - plain);
}

// Eight consecutive channels of a low-precision entry: `unit` of them, as they are stored. Both
// loads have an address in either part, so that many can be under way at once.
struct StoredUnit {
  uint2 first;   // codes; or 4 BF16
  uint2 second;  // scales of 512 channels; or 4 BF16
};
__device__ inline StoredUnit LoadUnit(const StateShape& s, const uint8_t* entry, int unit) {
  if (entry == nullptr) return {make_uint2(0, 0), make_uint2(0, 0)};
  const int plain = s.channels - s.rotary;
  const bool rotary = 8 * unit >= plain;
  const int first = rotary ? RotaryOffset(s) + 2 * (8 * unit - plain) : 8 * unit;
  const int second = rotary ? first + 8 : plain + unit / 64 * 8;
  return {*reinterpret_cast<const uint2*>(entry + first),
          *reinterpret_cast<const uint2*>(entry + second)};
}
// Codes `kFirst` and `kFirst` + 1 of four, times the scale: exact. As the low bits of exponent and
// mantissa they are 2^-120 too small.
template <int kFirst>
__device__ inline uint32_t DecodeCodes(uint32_t codes, uint32_t scale) {
  const uint32_t upper = __byte_perm(codes, 0, kFirst == 0 ? 0x1404 : 0x3424);
  const uint32_t pair = (upper & 0x80008000u) | ((upper >> 4) & 0x07F007F0u);
  return MultiplyBf16(MultiplyBf16(pair, 0x7B807B80u), scale);  // 2^120, twice
}
__device__ inline uint4 DecodeUnit(const StateShape& s, const StoredUnit& x, int unit) {
  if (8 * unit >= s.channels - s.rotary)
    return make_uint4(x.first.x, x.first.y, x.second.x, x.second.y);
  const int block = unit / 8;
  const uint32_t scales = (block & 4) != 0 ? x.second.y : x.second.x;
  const uint32_t scale = ScalePair(scales >> (8 * (block & 3)) & 255);
  return make_uint4(DecodeCodes<0>(x.first.x, scale), DecodeCodes<2>(x.first.x, scale),
                    DecodeCodes<0>(x.first.y, scale), DecodeCodes<2>(x.first.y, scale));
}

// On tensor cores (attend_tensor.cu): low precision, 512 channels at most and in 64s, rotary
// channels and heads in 16s.
bool OnTensorCores(const AttendArgs& a);
int64_t TensorRowBytes(int heads, int channels, int max_entries);  // of scratch
void TensorAttend(const AttendArgs& a, cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_ATTEND_CUH_
