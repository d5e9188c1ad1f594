// Attention over stored entries.
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

// Decoded compressed entries: all that a block of rows sees when they fit, so that they are decoded
// once, else tile by tile, once for the scores and once for the values.
inline size_t KeptEntries(int n, size_t stride) {
  const size_t fits = (size_t{512} << 10) / (stride * sizeof(float));
  const size_t whole = size_t(RoundUp(n, kPanel));
  return whole <= fits ? whole : size_t(4 * kPanel);
}

// Where things lie in an AttendArgs' scratch.
struct AttendPlan {
  size_t stride = 0;        // floats of a decoded entry or of a sum
  size_t score_stride = 0;  // of the scores of one head: 16 floats of slack at both ends
  int most = 0;             // compressed entries of one row
  size_t window = 0, kept = 0, columns = 0, scores = 0, sums = 0, totals = 0, end = 0;  // floats

  AttendPlan(const EntryShape& shape, int heads, int rows, int window_entries, int window_of_row,
             int compressed)
      : stride(size_t(RoundUp(shape.channels, kPanel))),
        score_stride(size_t(RoundUp(window_of_row + compressed, kPanel) + 2 * kPanel)),
        most(compressed) {
    const size_t all = size_t(rows) * size_t(heads);
    kept = window + size_t(RoundUp(window_entries, kPanel)) * stride;
    columns = kept + KeptEntries(compressed, stride) * stride;
    scores = columns + size_t(shape.channels) * kPanel;
    sums = scores + all * score_stride;
    totals = sums + all * stride;
    end = totals + all;
  }
};

inline AttendPlan PlanOf(const AttendArgs& a) {
  int window_of_row = 0;
  int compressed = 0;
  for (int r = 0; r < a.row_count; ++r) {
    window_of_row = std::max(window_of_row, a.rows[r].window_count);
    compressed = std::max(compressed, a.rows[r].compressed_count);
  }
  return {a.shape, a.heads, a.row_count, a.window_entries, window_of_row, compressed};
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

// Rows of 16 entries, `count` of them and zeros, and their transpose [c][16].
void DecodeTile(const EntryShape& shape, const uint8_t* const* entries, int count, size_t stride,
                float* rows) {
  for (int i = 0; i < count; ++i) {
    float* row = rows + size_t(i) * stride;
    DecodeEntryLanes(shape, entries[i], row);
    // What lies beyond c is multiplied by something: it must be a number.
    std::fill(row + shape.channels, row + stride, 0.0f);
  }
}

void DecodeColumns(const EntryShape& shape, const uint8_t* const* entries, int count, size_t stride,
                   float* rows, float* columns) {
  DecodeTile(shape, entries, count, stride, rows);
  if (count < kPanel)
    std::memset(rows + size_t(count) * stride, 0, size_t(kPanel - count) * stride * sizeof(float));
  Transpose16(rows, stride, shape.channels, columns);
}

// Heads that are multiplied side by side: enough sums to hide an addition's latency.
constexpr int kHeadStep = kVectors == 1 ? 8 : 4;

// scores[h][16 keys] for kRows heads; columns [c][16].
template <int kRows, bool kExact>
HWY_INLINE void ScoreRows(const AttendArgs& a, const float* q, int head, const float* columns,
                          float* scores, size_t stride) {
  const F d;
  V acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
  }
  const size_t c = size_t(a.shape.channels);
  Accumulate<kRows, kExact>(q + size_t(head) * c, c, columns, kPanel, a.shape.channels, acc);
  const V scale = hn::Set(d, a.scale);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::Mul(acc[r][v], scale), d, scores + size_t(head + r) * stride + v * kLanes);
    }
  }
}

template <bool kExact>
void ScoreHeads(const AttendArgs& a, const float* q, const float* columns, float* scores,
                size_t stride) {
  int head = 0;
  for (; head + kHeadStep <= a.heads; head += kHeadStep)
    ScoreRows<kHeadStep, kExact>(a, q, head, columns, scores, stride);
  for (; head + 4 <= a.heads; head += 4) ScoreRows<4, kExact>(a, q, head, columns, scores, stride);
  for (; head + 2 <= a.heads; head += 2) ScoreRows<2, kExact>(a, q, head, columns, scores, stride);
  for (; head < a.heads; ++head) ScoreRows<1, kExact>(a, q, head, columns, scores, stride);
}

// One token's scores of 16 entries, [heads] times `stride` apart.
void ScoreTile(const AttendArgs& a, const float* q, const float* columns, float* scores,
               size_t stride) {
  if (a.shape.low_precision) {
    ScoreHeads<true>(a, q, columns, scores, stride);
  } else {
    ScoreHeads<false>(a, q, columns, scores, stride);
  }
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
    const int step = left >= kHeadStep ? kHeadStep : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (size_t g = 0; g < stride; g += kPanel) {
      const float* from = p + size_t(head) * p_stride;
      float* to = sums + size_t(head) * stride + g;
      if (step == kHeadStep) {
        ValueRows<kHeadStep>(from, p_stride, values + g, stride, keys, to);
        continue;
      }
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

// Where a token's scores of one head begin.
float* ScoresOf(const AttendArgs& a, const AttendPlan& plan, int row) {
  return a.scratch + plan.scores + size_t(row) * size_t(a.heads) * plan.score_stride + kPanel;
}

// Scores of all rows' window entries. A tile lies anywhere against a row's own window: what it
// writes before the first falls into slack, what it writes after the last is written over later.
void ScoreWindows(const AttendArgs& a, const AttendPlan& plan) {
  float* columns = a.scratch + plan.columns;
  for (int begin = 0; begin < a.window_entries; begin += kPanel) {
    const int count = std::min(kPanel, a.window_entries - begin);
    DecodeColumns(a.shape, a.window + begin, count, plan.stride,
                  a.scratch + plan.window + size_t(begin) * plan.stride, columns);
    for (int r = 0; r < a.row_count; ++r) {
      const AttendRow& row = a.rows[r];
      if (begin + kPanel <= row.window_begin || begin >= row.window_begin + row.window_count)
        continue;
      ScoreTile(a, row.q, columns, ScoresOf(a, plan, r) + (begin - row.window_begin),
                plan.score_stride);
    }
  }
}

// Rows [first, end) over the list of compressed entries whose beginnings they all see, after
// ScoreWindows.
void AttendTogether(const AttendArgs& a, const AttendPlan& plan, int first, int end) {
  const size_t stride = plan.stride;
  int most = 0;
  const uint8_t* const* entries = nullptr;
  for (int r = first; r < end; ++r) {
    if (a.rows[r].compressed_count < most) continue;
    most = a.rows[r].compressed_count;
    entries = a.rows[r].compressed;
  }
  float* decoded = a.scratch + plan.kept;
  float* columns = a.scratch + plan.columns;
  const int kept = int(KeptEntries(plan.most, stride));
  const bool keep_all = kept >= most;
  for (int begin = 0; begin < most; begin += kPanel) {
    DecodeColumns(a.shape, entries + begin, std::min(kPanel, most - begin), stride,
                  decoded + (keep_all ? size_t(begin) * stride : 0), columns);
    for (int r = first; r < end; ++r) {
      const AttendRow& row = a.rows[r];
      if (begin >= row.compressed_count) continue;
      ScoreTile(a, row.q, columns, ScoresOf(a, plan, r) + row.window_count + begin,
                plan.score_stride);
    }
  }
  const size_t heads = size_t(a.heads);
  for (int r = first; r < end; ++r) {
    const AttendRow& row = a.rows[r];
    const int n = row.window_count + row.compressed_count;
    const int padded = int(RoundUp(n, kPanel));
    float* scores = ScoresOf(a, plan, r);
    float* sums = a.scratch + plan.sums + size_t(r) * heads * stride;
    for (size_t h = 0; h < heads; ++h) {
      float* of_head = scores + h * plan.score_stride;
      std::fill(of_head + n, of_head + padded, -std::numeric_limits<float>::infinity());
      a.scratch[plan.totals + size_t(r) * heads + h] = Softmax(of_head, padded, a.sinks[h]);
    }
    std::memset(sums, 0, heads * stride * sizeof(float));
    ValueTile(a.heads, scores, plan.score_stride,
              a.scratch + plan.window + size_t(row.window_begin) * stride, stride, row.window_count,
              sums);
  }
  const int tile = keep_all ? std::max(most, 1) : kept;
  for (int begin = 0; begin < most; begin += tile) {
    if (!keep_all)
      DecodeTile(a.shape, entries + begin, std::min(tile, most - begin), stride, decoded);
    for (int r = first; r < end; ++r) {
      const AttendRow& row = a.rows[r];
      const int count = std::min(tile, row.compressed_count - begin);
      if (count <= 0) continue;
      ValueTile(a.heads, ScoresOf(a, plan, r) + row.window_count + begin, plan.score_stride,
                decoded, stride, count, a.scratch + plan.sums + size_t(r) * heads * stride);
    }
  }
  const size_t c = size_t(a.shape.channels);
  for (int r = first; r < end; ++r) {
    for (size_t h = 0; h < heads; ++h) {
      const size_t at = size_t(r) * heads + h;
      const float inverse = 1.0f / a.scratch[plan.totals + at];
      const float* from = a.scratch + plan.sums + at * stride;
      float* to = a.rows[r].out + h * c;
      for (size_t i = 0; i < c; ++i) to[i] = from[i] * inverse;
    }
  }
}

void AttendTarget(const AttendArgs& a) {
  const AttendPlan plan = PlanOf(a);
  ScoreWindows(a, plan);
  if (a.shared) return AttendTogether(a, plan, 0, a.row_count);
  for (int r = 0; r < a.row_count; ++r) AttendTogether(a, plan, r, r + 1);
}

}  // namespace HWY_NAMESPACE
}  // namespace agentd::model
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentd::model {

HWY_EXPORT(AttendTarget);

void Attend(const AttendArgs& args) { HWY_DYNAMIC_DISPATCH(AttendTarget)(args); }
size_t AttendScratch(const AttendArgs& args) { return PlanOf(args).end; }

}  // namespace agentd::model
#endif  // HWY_ONCE
