// The lightning indexer's scores, and which of them are above a bound.
//
// Low precision: queries and keys are codes of 4 bits with a power of two for each 32 channels, so
// a product of two codes is a small whole number, and so is the sum of 32 of them. As long as the
// powers of two of one dot product lie near each other (kMostBits), no sum of its products needs
// more than F32's 24 bits: every order of additions gives the same, the one exact, number, and
// bytes may be multiplied instead of floats, four to eight times as many an instruction. Where they
// lie further apart, floats are added in order of the channels.
#include <algorithm>
#include <cstring>

#include "model/cpu/kernels.h"
#include "model/cpu/simd_targets.h"
#include "model/numeric.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/cpu/kernels_index.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "model/cpu/kernels-inl.h"

#ifndef AGENTD_MODEL_CPU_KERNELS_INDEX_ONCE_
#define AGENTD_MODEL_CPU_KERNELS_INDEX_ONCE_
namespace agentd::model {

inline constexpr int kGroup = 32;           // channels that share a scale
inline constexpr int kSteps = kGroup / 4;   // a lane of 32 bits takes 4 codes at a time
inline constexpr int kLargestCode = 12;     // codes are doubled: 0.5 is 1 and 6 is 12
inline constexpr int kMostBits = 24;        // of a whole number that F32 holds
inline constexpr int kMostExponent = 40;    // of a scale: products and sums stay normal numbers
inline constexpr int32_t kNotWhole = 1000;  // as a spread: too far apart

// One token's queries, packed: its spread, then each head's codes, scales and offsets.
struct PackedHead {
  const int8_t* codes;     // [channels], of each 8 the even ones first; doubled
  const float* scales;     // [groups], half of what a code counts
  const int32_t* offsets;  // [groups], minus kLargestCode times the sum of the group's codes
};
inline size_t PackedHeadBytes(int channels) {
  return size_t(channels) + size_t(channels / kGroup) * 8;
}
inline PackedHead HeadOf(const uint8_t* row, int head, int channels) {
  const uint8_t* at = row + 64 + size_t(head) * PackedHeadBytes(channels);
  const uint8_t* scales = at + channels;
  return {reinterpret_cast<const int8_t*>(at), reinterpret_cast<const float*>(scales),
          reinterpret_cast<const int32_t*>(scales + size_t(channels / kGroup) * 4)};
}
inline bool Packs(int channels) { return channels % kGroup == 0; }
inline int32_t PackedSpread(const IndexArgs& a, int row) {
  int32_t spread = 0;
  std::memcpy(&spread, a.packed + size_t(row) * IndexQueryBytes(a.heads, a.channels), 4);
  return spread;
}

// How far apart the exponents of E8M0 bytes are; kNotWhole if one is extreme.
inline int32_t Spread(const uint8_t* bytes, int n) {
  int low = 255;
  int high = 0;
  for (int i = 0; i < n; ++i) {
    low = std::min<int>(low, bytes[i]);
    high = std::max<int>(high, bytes[i]);
  }
  if (low < 127 - kMostExponent || high > 127 + kMostExponent) return kNotWhole;
  return high - low;
}

// The largest sum of a query's and a key's spread for which every sum of products is exact: there
// are `channels` of up to 12 * 12 units of the smallest scale, times two to the spread.
inline int32_t MostSpread(int channels) {
  int64_t sum = int64_t{channels} * kLargestCode * kLargestCode;
  int32_t spread = -1;
  for (; sum <= int64_t{1} << kMostBits; sum *= 2) ++spread;
  return spread;
}

}  // namespace agentd::model
#endif

HWY_BEFORE_NAMESPACE();
namespace agentd::model {
namespace HWY_NAMESPACE {

// One indexer key to F32.
void DecodeKeyLanes(int channels, bool low_precision, const uint8_t* HWY_RESTRICT key,
                    float* HWY_RESTRICT out) {
  if (!low_precision) {
    std::memcpy(out, key, size_t(channels) * sizeof(float));
    return;
  }
  const uint8_t* scales = key + channels / 2;
  for (int begin = 0; begin < channels; begin += kGroup) {
    const int end = std::min(channels, begin + kGroup);
    const float scale = E8M0ToFloat(scales[begin / kGroup]);
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

// 16 keys at most as F32 [channels][16]; `rows` [16][channels] is scratch.
void DecodeColumns(const IndexArgs& a, const uint8_t* keys, int count, float* rows,
                   float* columns) {
  const size_t stride = size_t(a.channels);
  for (int i = 0; i < count; ++i) {
    DecodeKeyLanes(a.channels, a.low_precision, keys + size_t(i) * size_t(a.key_bytes),
                   rows + size_t(i) * stride);
  }
  std::memset(rows + size_t(count) * stride, 0, size_t(kPanel - count) * stride * sizeof(float));
  Transpose16(rows, stride, a.channels, columns);
}

// total += weight * relu(dot), with low precision's roundings.
template <bool kExact, int kCount>
HWY_INLINE void AddHead(const V (&dot_in)[kCount], float weight_in, V (&total)[kCount]) {
  const F d;
  const V weight = hn::Set(d, weight_in);
#pragma GCC unroll 16
  for (int v = 0; v < kCount; ++v) {
    V dot = dot_in[v];
    if constexpr (kExact) dot = RoundBf16Lanes(d, dot);
    V term = hn::Mul(hn::Max(dot, hn::Zero(d)), weight);
    if constexpr (kExact) term = RoundBf16Lanes(d, term);
    total[v] = hn::Add(total[v], term);
  }
}

// The first `count` lanes, rounded with low precision.
template <bool kExact, int kCount>
HWY_INLINE void StoreScores(V (&total)[kCount], int count, float* out) {
  const F d;
#pragma GCC unroll 16
  for (int v = 0; v < kCount; ++v) {
    if constexpr (kExact) total[v] = RoundBf16Lanes(d, total[v]);
  }
  HWY_ALIGN float lanes[kCount * kLanes];
  float* to = count == kCount * kLanes ? out : lanes;
#pragma GCC unroll 16
  for (int v = 0; v < kCount; ++v) hn::StoreU(total[v], d, to + v * kLanes);
  if (to == lanes) std::copy(lanes, lanes + count, out);
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
  for (int r = 0; r < kRows; ++r) AddHead<kExact>(acc[r], weights[r], total);
}

template <bool kExact>
void IndexRow(const IndexArgs& a, int row, const float* columns, int count, float* out) {
  const F d;
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
  StoreScores<kExact>(total, count, out);
}

// Bytes are multiplied on x86 only: elsewhere floats do.
#undef AGENTD_INDEX_BYTES
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
#define AGENTD_INDEX_BYTES 1
#else
#define AGENTD_INDEX_BYTES 0
#endif

#if AGENTD_INDEX_BYTES

using U8 = hn::Repartition<uint8_t, F>;
using VI = hn::VFromD<I32>;

// Keys that are multiplied side by side: enough sums to hide a product's latency.
constexpr int kPanels = kVectors == 1 ? 2 : 1;
constexpr int kWide = kPanels * kVectors;
constexpr int kKeys = kPanels * kPanel;

// sum += four products of unsigned by signed bytes, in each lane of 32 bits. Without VNNI the sums
// are pairs of 16 bits until FinishBytes: 8 steps of 2 * 24 * 12 fit.
template <bool kVnni>
HWY_INLINE VI MultiplyBytes(VI key, VI query, VI sum) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (kVnni) {
    // Not the intrinsic: Highway's target does not name the instruction set.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(key.raw), "v"(query.raw));
    return sum;
  }
  return VI{_mm512_add_epi16(sum.raw, _mm512_maddubs_epi16(key.raw, query.raw))};
#elif HWY_TARGET <= HWY_AVX2
  return VI{_mm256_add_epi16(sum.raw, _mm256_maddubs_epi16(key.raw, query.raw))};
#else
  return VI{_mm_add_epi16(sum.raw, _mm_maddubs_epi16(key.raw, query.raw))};
#endif
}

template <bool kVnni>
HWY_INLINE VI FinishBytes(VI sum) {
  if constexpr (kVnni) return sum;
#if HWY_TARGET <= HWY_AVX3
  return VI{_mm512_madd_epi16(sum.raw, _mm512_set1_epi16(1))};
#elif HWY_TARGET <= HWY_AVX2
  return VI{_mm256_madd_epi16(sum.raw, _mm256_set1_epi16(1))};
#else
  return VI{_mm_madd_epi16(sum.raw, _mm_set1_epi16(1))};
#endif
}

// kKeys keys at most: codes [channels / 4][kKeys][4] in the order of PackedHead's, each
// kLargestCode more than it counts, and scales [groups][kKeys]. Returns the largest spread. raw:
// [16][channels / 8] and [channels / 8][16] floats of scratch.
int32_t DecodeCodes(const IndexArgs& a, const uint8_t* keys, int count, float* raw, uint8_t* codes,
                    float* scales) {
  const int words = a.channels / 8;
  const int groups = a.channels / kGroup;
  float* columns = raw + size_t(words) * kPanel;
  const U8 d8;
  const U32 d32;
  alignas(16) static constexpr uint8_t kTable[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                     12, 11, 10, 9,  8,  6,  4,  0};
  const auto table = hn::LoadDup128(d8, kTable);
  const auto nibble = hn::Set(d8, uint8_t{15});
  int32_t spread = 0;
  for (int i = 0; i < kKeys; ++i) {
    float* to = raw + size_t(i % kPanel) * size_t(words);
    const uint8_t* key = keys + size_t(i) * size_t(a.key_bytes);
    if (i < count) {
      std::memcpy(to, key, size_t(words) * 4);
      const uint8_t* exponents = key + a.channels / 2;
      spread = std::max(spread, Spread(exponents, groups));
      for (int g = 0; g < groups; ++g) scales[g * kKeys + i] = 0.5f * E8M0ToFloat(exponents[g]);
    } else {
      std::memset(to, 0, size_t(words) * 4);
      for (int g = 0; g < groups; ++g) scales[g * kKeys + i] = 0;
    }
    if (i % kPanel != kPanel - 1) continue;
    // A panel is there.
    Transpose16(raw, size_t(words), words, columns);
    uint8_t* panel = codes + size_t(i / kPanel) * 4 * kPanel;
    for (int word = 0; word < words; ++word) {
      for (int v = 0; v < kVectors; ++v) {
        const auto pair = hn::BitCast(
            d32, hn::LoadU(F(), columns + size_t(word) * kPanel + size_t(v) * size_t(kLanes)));
        const auto low = hn::And(hn::BitCast(d8, pair), nibble);
        const auto high = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(pair)), nibble);
        uint8_t* at = panel + size_t(word) * 8 * kKeys + size_t(v) * size_t(kLanes) * 4;
        hn::StoreU(hn::TableLookupBytes(table, low), d8, at);
        hn::StoreU(hn::TableLookupBytes(table, high), d8, at + 4 * kKeys);
      }
    }
  }
  return spread;
}

// kHeads heads, in head order.
template <int kHeads, bool kVnni>
HWY_INLINE void ByteHeads(const IndexArgs& a, const uint8_t* row, int first, const uint8_t* codes,
                          const float* key_scales, const float* weights, V (&total)[kWide]) {
  const F d;
  const I32 di;
  PackedHead heads[kHeads];
  V dot[kHeads][kWide];
#pragma GCC unroll 16
  for (int h = 0; h < kHeads; ++h) {
    heads[h] = HeadOf(row, first + h, a.channels);
#pragma GCC unroll 16
    for (int v = 0; v < kWide; ++v) dot[h][v] = hn::Zero(d);
  }
  for (int g = 0; g < a.channels / kGroup; ++g) {
    VI sum[kHeads][kWide];
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
      for (int v = 0; v < kWide; ++v)
        sum[h][v] = kVnni ? hn::Set(di, heads[h].offsets[g]) : hn::Zero(di);
    }
#pragma GCC unroll 16
    for (int s = g * kSteps; s < (g + 1) * kSteps; ++s) {
      VI key[kWide];
#pragma GCC unroll 16
      for (int v = 0; v < kWide; ++v) {
        key[v] = hn::LoadU(
            di, reinterpret_cast<const int32_t*>(codes) + s * kWide * kLanes + v * kLanes);
      }
#pragma GCC unroll 16
      for (int h = 0; h < kHeads; ++h) {
        const VI query = hn::Set(di, reinterpret_cast<const int32_t*>(heads[h].codes)[s]);
#pragma GCC unroll 16
        for (int v = 0; v < kWide; ++v) sum[h][v] = MultiplyBytes<kVnni>(key[v], query, sum[h][v]);
      }
    }
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      const V scale = hn::Set(d, heads[h].scales[g]);
#pragma GCC unroll 16
      for (int v = 0; v < kWide; ++v) {
        VI whole = FinishBytes<kVnni>(sum[h][v]);
        if constexpr (!kVnni) whole = hn::Add(whole, hn::Set(di, heads[h].offsets[g]));
        const V factor = hn::Mul(scale, hn::LoadU(d, key_scales + g * kWide * kLanes + v * kLanes));
        dot[h][v] = hn::MulAdd(hn::ConvertTo(d, whole), factor, dot[h][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int h = 0; h < kHeads; ++h) AddHead<true>(dot[h], weights[h], total);
}

template <bool kVnni>
HWY_INLINE void ByteRow(const IndexArgs& a, int row, const uint8_t* codes, const float* scales,
                        int count, float* out) {
  const F d;
  const uint8_t* packed = a.packed + size_t(row) * IndexQueryBytes(a.heads, a.channels);
  const float* weights = a.weights + size_t(row) * size_t(a.heads);
  V total[kWide];
#pragma GCC unroll 16
  for (int v = 0; v < kWide; ++v) total[v] = hn::Zero(d);
  int head = 0;
  for (; head + 4 <= a.heads; head += 4)
    ByteHeads<4, kVnni>(a, packed, head, codes, scales, weights + head, total);
  for (; head < a.heads; ++head)
    ByteHeads<1, kVnni>(a, packed, head, codes, scales, weights + head, total);
  StoreScores<true>(total, count, out);
}

template <bool kVnni>
void ByteRows(const IndexArgs& a, int first, int count, int32_t most, const uint8_t* codes,
              const float* scales) {
  for (int row = 0; row < a.rows; ++row) {
    if (PackedSpread(a, row) <= most)
      ByteRow<kVnni>(a, row, codes, scales, count, a.out + size_t(row) * a.out_stride + first);
  }
}

#endif  // AGENTD_INDEX_BYTES

#if !AGENTD_INDEX_BYTES
constexpr int kKeys = kPanel;
#endif

// Keys [first, first + count) of the list, kKeys at most, for all rows.
void IndexTile(const IndexArgs& a, [[maybe_unused]] bool vnni, int first, int count) {
  const uint8_t* keys = a.keys + size_t(first) * size_t(a.key_bytes);
  int32_t most = -1;  // a row's spread for which bytes do
#if AGENTD_INDEX_BYTES
  if (a.packed != nullptr) {
    uint8_t* codes = reinterpret_cast<uint8_t*>(a.scratch);      // [channels / 4][kKeys][4]
    float* scales = a.scratch + size_t(a.channels) * kKeys / 4;  // [groups][kKeys]
    float* raw = scales + size_t(a.channels / kGroup) * kKeys;   // 2 * [16][channels / 8]
    most = MostSpread(a.channels) - DecodeCodes(a, keys, count, raw, codes, scales);
    if (HWY_TARGET <= HWY_AVX3 && vnni) {
      ByteRows<true>(a, first, count, most, codes, scales);
    } else {
      ByteRows<false>(a, first, count, most, codes, scales);
    }
  }
#endif
  float* rows = a.scratch;
  float* columns = rows + size_t(kPanel) * size_t(a.channels);
  for (int panel = 0; panel < count; panel += kPanel) {
    const int of_panel = std::min(kPanel, count - panel);
    bool decoded = false;
    for (int row = 0; row < a.rows; ++row) {
      if (a.packed != nullptr && PackedSpread(a, row) <= most) continue;
      if (!decoded)
        DecodeColumns(a, keys + size_t(panel) * size_t(a.key_bytes), of_panel, rows, columns);
      decoded = true;
      float* out = a.out + size_t(row) * a.out_stride + first + panel;
      if (a.low_precision) {
        IndexRow<true>(a, row, columns, of_panel, out);
      } else {
        IndexRow<false>(a, row, columns, of_panel, out);
      }
    }
  }
}

void IndexScoresTarget(const IndexArgs& a, bool vnni) {
  for (int first = 0; first < a.count; first += kKeys)
    IndexTile(a, vnni, first, std::min(kKeys, a.count - first));
}

int CollectRankedTarget(const float* HWY_RESTRICT scores, int n, int32_t first, int32_t least,
                        int32_t* HWY_RESTRICT ranks, int32_t* HWY_RESTRICT entries) {
  const F d;
  const I32 di;
  const auto bound = hn::Set(di, least);
  const auto lanes = hn::Iota(di, 0);
  int count = 0;
  for (int i = 0; i < n; i += kLanes) {
    const auto in_range = hn::FirstN(di, size_t(std::min(kLanes, n - i)));
    V score;
    if (i + kLanes <= n) {
      score = hn::LoadU(d, scores + i);
    } else {
      HWY_ALIGN float rest[kLanes] = {};
      std::copy(scores + i, scores + n, rest);
      score = hn::Load(d, rest);
    }
    const auto bits = hn::BitCast(di, hn::Add(score, hn::Zero(d)));
    const auto rank =
        hn::Xor(bits, hn::And(hn::ShiftRight<31>(bits), hn::Set(di, int32_t{0x7FFFFFFF})));
    const auto taken = hn::AndNot(hn::Lt(rank, bound), in_range);
    if (hn::AllFalse(di, taken)) continue;
    (void)hn::CompressStore(rank, taken, di, ranks + count);
    const auto entry = hn::Add(hn::Set(di, first + i), lanes);
    count += static_cast<int>(hn::CompressStore(entry, taken, di, entries + count));
  }
  return count;
}

}  // namespace HWY_NAMESPACE
}  // namespace agentd::model
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentd::model {

HWY_EXPORT(IndexScoresTarget);
HWY_EXPORT(CollectRankedTarget);

namespace {

bool vnni_allowed = true;

bool HasVnni() {
#if HWY_ARCH_X86
  static const bool has = __builtin_cpu_supports("avx512vnni") != 0;
  return has;
#else
  return false;
#endif
}

}  // namespace

void AllowVnni(bool allow) { vnni_allowed = allow; }

size_t IndexQueryBytes(int heads, int channels) {
  return Packs(channels)
             ? 64 + size_t(RoundUp(int64_t(heads) * int64_t(PackedHeadBytes(channels)), 64))
             : 0;
}

void PackIndexQueries(const float* q, int heads, int channels, uint8_t* packed) {
  constexpr int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const int groups = channels / kGroup;
  int32_t spread = 0;
  std::vector<uint8_t> key(size_t(IndexKeyBytes(channels, /*low_precision=*/true)));
  for (int head = 0; head < heads; ++head) {
    const float* from = q + size_t(head) * size_t(channels);
    EncodeIndexKey(channels, /*low_precision=*/true, from, key.data());
    const uint8_t* exponents = key.data() + channels / 2;
    spread = std::max(spread, Spread(exponents, groups));
    uint8_t* to = packed + 64 + size_t(head) * PackedHeadBytes(channels);
    for (int g = 0; g < groups; ++g) {
      int32_t sum = 0;
      for (int i = g * kGroup; i < (g + 1) * kGroup; i += 2) {
        const uint8_t pair = key[size_t(i / 2)];
        const int8_t even = kDoubled[pair & 15];
        const int8_t odd = kDoubled[pair >> 4];
        uint8_t* at = to + i / 8 * 8 + i % 8 / 2;
        at[0] = static_cast<uint8_t>(even);
        at[4] = static_cast<uint8_t>(odd);
        sum += even + odd;
      }
      const float scale = 0.5f * E8M0ToFloat(exponents[g]);
      const int32_t offset = -kLargestCode * sum;
      std::memcpy(to + channels + 4 * g, &scale, 4);
      std::memcpy(to + channels + 4 * (groups + g), &offset, 4);
    }
  }
  std::memcpy(packed, &spread, 4);
}

void IndexScores(const IndexArgs& args) {
  HWY_DYNAMIC_DISPATCH(IndexScoresTarget)(args, vnni_allowed && HasVnni());
}
// Floats [16][channels] twice; bytes take less: [channels / 4][32][4] and what they are made of.
size_t IndexScratch(int channels) { return size_t(2 * kPanel) * size_t(channels); }

int CollectRanked(const float* scores, int n, int32_t first, int32_t least, int32_t* ranks,
                  int32_t* entries) {
  return HWY_DYNAMIC_DISPATCH(CollectRankedTarget)(scores, n, first, least, ranks, entries);
}

}  // namespace agentd::model
#endif  // HWY_ONCE
