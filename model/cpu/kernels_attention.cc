// Attention over stored entries, and the lightning indexer's scores.
#include <algorithm>
#include <cstring>
#include <limits>

#include "model/cpu/kernels.h"
#include "model/cpu/simd_targets.h"
#include "model/math.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/cpu/kernels_attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "model/cpu/kernels-inl.h"

#ifndef AGENTD_MODEL_CPU_KERNELS_ATTENTION_ONCE_
#define AGENTD_MODEL_CPU_KERNELS_ATTENTION_ONCE_
namespace agentd::model {

// Entries that stay decoded between scores and values; beyond, they are decoded a second time, tile
// by tile.
inline size_t KeptEntries(int n, int padded_channels) {
  const size_t fits = (size_t{512} << 10) / (size_t(padded_channels) * sizeof(float));
  const size_t whole = size_t(RoundUp(n, kPanel));
  return whole <= fits ? whole : size_t(4 * kPanel);
}

}  // namespace agentd::model
#endif

HWY_BEFORE_NAMESPACE();
namespace agentd::model {
namespace HWY_NAMESPACE {

// One entry to F32. Layout: kv_format.h.
void DecodeEntryLanes(const EntryShape& shape, const uint8_t* HWY_RESTRICT entry,
                      float* HWY_RESTRICT out) {
  if (!shape.low_precision) {
    std::memcpy(out, entry, size_t(shape.channels) * sizeof(float));
    return;
  }
  const F d;
  const int plain = shape.channels - shape.rotary;
  const uint8_t* scales = entry + plain;
  for (int begin = 0; begin < plain; begin += 64) {
    const int end = std::min(plain, begin + 64);
    const float scale = E8M0ToFloat(scales[begin / 64]);
    const V factor = hn::Set(d, scale * 256.0f);
    int i = begin;
    for (; i + kLanes <= end; i += kLanes)
      hn::StoreU(hn::Mul(DecodeE4M3(entry + i), factor), d, out + i);
    for (; i < end; ++i) out[i] = E4M3ToFloat(entry[i]) * scale;
  }
  const uint8_t* rotary = entry + (plain + (plain + 63) / 64 + 7) / 8 * 8;
  int i = 0;
  for (; i + kLanes <= shape.rotary; i += kLanes)
    hn::StoreU(DecodeBf16(rotary + 2 * i), d, out + plain + i);
  for (; i < shape.rotary; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, rotary + 2 * i, 2);
    out[plain + i] = Bf16ToFloat(bits);
  }
}

// Entries [begin, begin + count) of the list into rows of `stride` floats.
void DecodeTile(const AttendArgs& a, int begin, int count, size_t stride, float* out) {
  for (int i = 0; i < count; ++i)
    DecodeEntryLanes(a.shape, a.entries[begin + i], out + size_t(i) * stride);
}

// scores[h][16 keys] for kRows heads; columns [c][16].
template <int kRows, bool kExact>
HWY_INLINE void ScoreRows(const AttendArgs& a, int head, const float* columns, float* scores,
                          size_t stride) {
  const F d;
  V acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
  }
  const size_t c = size_t(a.shape.channels);
  Accumulate<kRows, kExact>(a.q + size_t(head) * c, c, columns, kPanel, a.shape.channels, acc);
  const V scale = hn::Set(d, a.scale);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::Mul(acc[r][v], scale), d, scores + size_t(head + r) * stride + v * kLanes);
    }
  }
}

template <bool kExact>
void ScoreTile(const AttendArgs& a, const float* columns, float* scores, size_t stride) {
  int head = 0;
  for (; head + 4 <= a.heads; head += 4) ScoreRows<4, kExact>(a, head, columns, scores, stride);
  for (; head + 2 <= a.heads; head += 2) ScoreRows<2, kExact>(a, head, columns, scores, stride);
  for (; head < a.heads; ++head) ScoreRows<1, kExact>(a, head, columns, scores, stride);
}

// sums[h][16 channels] += sum over keys of p[h][key] * values[key][.], in key order.
template <int kRows>
HWY_INLINE void ValueRows(const float* p, size_t p_stride, const float* values, size_t stride,
                          int keys, float* sums) {
  const F d;
  V acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = hn::LoadU(d, sums + size_t(r) * stride + v * kLanes);
  }
  Accumulate<kRows, false>(p, p_stride, values, stride, keys, acc);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(acc[r][v], d, sums + size_t(r) * stride + v * kLanes);
  }
}

// All heads and channels of `keys` decoded entries.
void ValueTile(int heads, const float* p, size_t p_stride, const float* values, size_t stride,
               int keys, float* sums) {
  int head = 0;
  while (head < heads) {
    const int left = heads - head;
    const int step = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (size_t g = 0; g < stride; g += kPanel) {
      const float* from = p + size_t(head) * p_stride;
      float* to = sums + size_t(head) * stride + g;
      if (step == 4) ValueRows<4>(from, p_stride, values + g, stride, keys, to);
      if (step == 2) ValueRows<2>(from, p_stride, values + g, stride, keys, to);
      if (step == 1) ValueRows<1>(from, p_stride, values + g, stride, keys, to);
    }
    head += step;
  }
}

// scores -> e^(score - max) in place; returns their sum, the sink's included. `padded` scores,
// those beyond n are -inf.
float Softmax(float* scores, int padded, float sink) {
  const F d;
  V largest = hn::Set(d, sink);
  for (int i = 0; i < padded; i += kLanes) largest = hn::Max(largest, hn::LoadU(d, scores + i));
  HWY_ALIGN float lanes[kPanel];
  hn::StoreU(largest, d, lanes);
  float max = lanes[0];
  for (int i = 1; i < kLanes; ++i) max = std::max(max, lanes[i]);
  const V shift = hn::Set(d, max);
  V sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
  for (int i = 0; i < padded; i += kPanel) {
    for (int v = 0; v < kVectors; ++v) {
      const V e = ExpLanes(d, hn::Sub(hn::LoadU(d, scores + i + v * kLanes), shift));
      hn::StoreU(e, d, scores + i + v * kLanes);
      sum[v] = hn::Add(sum[v], e);
    }
  }
  for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[v], d, lanes + v * kLanes);
  return SumTree(lanes) + ExpF32(sink - max);
}

void AttendTarget(const AttendArgs& a) {
  const int c = a.shape.channels;
  const size_t stride = size_t(RoundUp(c, kPanel));
  const size_t padded = size_t(RoundUp(a.n, kPanel));
  const size_t kept = KeptEntries(a.n, int(stride));
  const bool keep_all = kept >= padded;
  float* rows = a.scratch;                          // [kept][stride]
  float* columns = rows + kept * stride;            // [c][16]
  float* scores = columns + size_t(c) * kPanel;     // [heads][padded]
  float* sums = scores + size_t(a.heads) * padded;  // [heads][stride]
  // What lies beyond c or n is multiplied by something: it must be a number.
  std::memset(sums, 0, size_t(a.heads) * stride * sizeof(float));
  if (stride != size_t(c)) std::memset(rows, 0, kept * stride * sizeof(float));
  for (int begin = 0; begin < a.n; begin += kPanel) {
    const int count = std::min(kPanel, a.n - begin);
    float* tile = keep_all ? rows + size_t(begin) * stride : rows;
    DecodeTile(a, begin, count, stride, tile);
    if (count < kPanel)
      std::memset(tile + size_t(count) * stride, 0,
                  size_t(kPanel - count) * stride * sizeof(float));
    Transpose16(tile, stride, c, columns);
    if (a.shape.low_precision) {
      ScoreTile<true>(a, columns, scores + begin, padded);
    } else {
      ScoreTile<false>(a, columns, scores + begin, padded);
    }
  }
  for (int head = 0; head < a.heads; ++head) {
    float* row = scores + size_t(head) * padded;
    std::fill(row + a.n, row + padded, -std::numeric_limits<float>::infinity());
  }
  HWY_ALIGN float totals[16];
  for (int first = 0; first < a.heads; first += 16) {
    const int heads = std::min(16, a.heads - first);
    for (int h = 0; h < heads; ++h) {
      totals[h] = Softmax(scores + size_t(first + h) * padded, int(padded), a.sinks[first + h]);
    }
    const int tile = keep_all ? a.n : int(kept);
    for (int begin = 0; begin < a.n; begin += tile) {
      const int count = std::min(tile, a.n - begin);
      if (!keep_all) DecodeTile(a, begin, count, stride, rows);
      ValueTile(heads, scores + size_t(first) * padded + begin, padded, rows, stride, count,
                sums + size_t(first) * stride);
    }
    for (int h = 0; h < heads; ++h) {
      const float inverse = 1.0f / totals[h];
      const float* from = sums + size_t(first + h) * stride;
      float* to = a.out + size_t(first + h) * size_t(c);
      for (int i = 0; i < c; ++i) to[i] = from[i] * inverse;
    }
  }
}

// One indexer key to F32.
void DecodeKeyLanes(int channels, bool low_precision, const uint8_t* HWY_RESTRICT key,
                    float* HWY_RESTRICT out) {
  if (!low_precision) {
    std::memcpy(out, key, size_t(channels) * sizeof(float));
    return;
  }
  const uint8_t* scales = key + channels / 2;
  for (int begin = 0; begin < channels; begin += 32) {
    const int end = std::min(channels, begin + 32);
    const float scale = E8M0ToFloat(scales[begin / 32]);
    int i = begin;
#if HWY_TARGET != HWY_SCALAR
    const F d;
    const hn::Rebind<uint8_t, F> d8;
    const hn::Rebind<uint16_t, F> d16;
    const V factor = hn::Set(d, scale * 16384.0f);
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const auto pairs = hn::PromoteTo(d16, hn::LoadU(d8, key + i / 2));
      const V even = hn::Mul(DecodeE2M1(hn::And(pairs, hn::Set(d16, uint16_t{15}))), factor);
      const V odd = hn::Mul(DecodeE2M1(hn::ShiftRight<4>(pairs)), factor);
      hn::StoreInterleaved2(even, odd, d, out + i);
    }
#endif
    for (; i < end; ++i)
      out[i] = E2M1ToFloat(static_cast<uint8_t>(key[i / 2] >> (i % 2 * 4) & 15)) * scale;
  }
}

// Adds weight * relu(q . key) of kRows heads, in head order.
template <int kRows, bool kExact>
HWY_INLINE void IndexHeads(const float* q, int channels, const float* columns, const float* weights,
                           V (&total)[kVectors]) {
  const F d;
  V acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
  }
  Accumulate<kRows, kExact>(q, size_t(channels), columns, kPanel, channels, acc);
  for (int r = 0; r < kRows; ++r) {
    const V weight = hn::Set(d, weights[r]);
    for (int v = 0; v < kVectors; ++v) {
      V dot = acc[r][v];
      if constexpr (kExact) dot = RoundBf16Lanes(d, dot);
      V term = hn::Mul(hn::Max(dot, hn::Zero(d)), weight);
      if constexpr (kExact) term = RoundBf16Lanes(d, term);
      total[v] = hn::Add(total[v], term);
    }
  }
}

template <bool kExact>
void IndexRows(const IndexArgs& a, const float* columns) {
  const F d;
  for (int row = 0; row < a.rows; ++row) {
    const float* q = a.q + size_t(row) * size_t(a.heads) * size_t(a.channels);
    const float* weights = a.weights + size_t(row) * size_t(a.heads);
    V total[kVectors];
    for (int v = 0; v < kVectors; ++v) total[v] = hn::Zero(d);
    int head = 0;
    for (; head + 4 <= a.heads; head += 4) {
      IndexHeads<4, kExact>(q + size_t(head) * size_t(a.channels), a.channels, columns,
                            weights + head, total);
    }
    for (; head < a.heads; ++head) {
      IndexHeads<1, kExact>(q + size_t(head) * size_t(a.channels), a.channels, columns,
                            weights + head, total);
    }
    HWY_ALIGN float lanes[kPanel];
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kExact) total[v] = RoundBf16Lanes(d, total[v]);
      hn::StoreU(total[v], d, lanes + v * kLanes);
    }
    std::copy(lanes, lanes + a.count, a.out + size_t(row) * a.out_stride);
  }
}

void IndexScoresTarget(const IndexArgs& a) {
  const size_t stride = size_t(a.channels);
  float* rows = a.scratch;                  // [16][channels]
  float* columns = rows + kPanel * stride;  // [channels][16]
  for (int i = 0; i < a.count; ++i) {
    DecodeKeyLanes(a.channels, a.low_precision, a.keys + size_t(i) * size_t(a.key_bytes),
                   rows + size_t(i) * stride);
  }
  std::memset(rows + size_t(a.count) * stride, 0,
              size_t(kPanel - a.count) * stride * sizeof(float));
  Transpose16(rows, stride, a.channels, columns);
  if (a.low_precision) {
    IndexRows<true>(a, columns);
  } else {
    IndexRows<false>(a, columns);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace agentd::model
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentd::model {

HWY_EXPORT(AttendTarget);
HWY_EXPORT(IndexScoresTarget);

void Attend(const AttendArgs& args) { HWY_DYNAMIC_DISPATCH(AttendTarget)(args); }
size_t AttendScratch(const EntryShape& shape, int heads, int n) {
  const size_t stride = size_t(RoundUp(shape.channels, kPanel));
  return KeptEntries(n, int(stride)) * stride + size_t(shape.channels) * kPanel +
         size_t(heads) * (size_t(RoundUp(n, kPanel)) + stride);
}

void IndexScores(const IndexArgs& args) { HWY_DYNAMIC_DISPATCH(IndexScoresTarget)(args); }
size_t IndexScratch(int channels) { return size_t(2 * kPanel) * size_t(channels); }

}  // namespace agentd::model
#endif  // HWY_ONCE
