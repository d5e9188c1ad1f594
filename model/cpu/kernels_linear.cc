// Products with packed weights. A panel's slice is decoded once into L1 and used for up to 64 rows.
#include <algorithm>

#include "model/cpu/kernels.h"
#include "model/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/cpu/kernels_linear.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "model/cpu/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace agentd::model {
namespace HWY_NAMESPACE {

constexpr int kRowChunk =
    48;                     // rows that share one decoded slice; 3 levels x 48 x 16 F32 stay in L1
constexpr int kLevels = 3;  // log2(kSlices)

void DecodeFp8(const PackedMatrix& m, int panel, int begin, int end, float* HWY_RESTRICT out) {
  const F d;
  const uint8_t* data = m.data.data() + size_t(panel) * m.panel_bytes;
  const int block_row = (m.scale_row_offset + panel * kPanel) / 128;
  for (int k = begin; k < end;) {
    const int stop = std::min(end, (k / 128 + 1) * 128);
    // The codes decode to 2^-8 of their value.
    const V scale =
        hn::Set(d, m.block_scales[size_t(block_row * m.scale_columns + k / 128)] * 256.0f);
    for (; k < stop; ++k) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const V value = DecodeE4M3(data + size_t(k) * kPanel + v * kLanes);
        hn::StoreU(hn::Mul(value, scale), d, out + size_t(k - begin) * kPanel + v * kLanes);
      }
    }
  }
}

// FP8 with a panel that lies in two scale blocks (128-row blocks that do not begin at a multiple of
// 16 rows).
void DecodeFp8Split(const PackedMatrix& m, int panel, int begin, int end, float* HWY_RESTRICT out) {
  const uint8_t* data = m.data.data() + size_t(panel) * m.panel_bytes;
  for (int k = begin; k < end; ++k) {
    for (int j = 0; j < kPanel; ++j) {
      const int row = std::min(panel * kPanel + j, m.rows - 1);
      const int block_row = (m.scale_row_offset + row) / 128;
      const float scale = m.block_scales[size_t(block_row * m.scale_columns + k / 128)];
      out[size_t(k - begin) * kPanel + size_t(j)] =
          E4M3ToFloat(data[size_t(k) * kPanel + size_t(j)]) * scale;
    }
  }
}

void DecodeFp4(const PackedMatrix& m, int panel, int begin, int end, float* HWY_RESTRICT out) {
  const F d;
  const U32 du;
  const hn::Rebind<uint8_t, F> d8;
  const hn::Rebind<uint16_t, F> d16;
  const uint8_t* data = m.data.data() + size_t(panel) * m.panel_bytes;
  const int groups = (m.columns + 31) / 32;
  const uint8_t* scales = m.group_scales.data() + size_t(panel) * size_t(groups) * kPanel;
  for (int k = begin; k < end;) {
    const int stop = std::min(end, (k / 32 + 1) * 32);
    V scale[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const auto bytes =
          hn::PromoteTo(du, hn::LoadU(d8, scales + size_t(k / 32) * kPanel + v * kLanes));
      const auto bits = hn::Max(hn::ShiftLeft<23>(bytes), hn::Set(du, 0x00400000u));
      // The codes decode to 2^-14 of their value.
      scale[v] = hn::Mul(hn::BitCast(d, bits), hn::Set(d, 16384.0f));
    }
    for (; k < stop; k += 2) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto pair =
            hn::PromoteTo(d16, hn::LoadU(d8, data + size_t(k / 2) * kPanel + v * kLanes));
        float* to = out + size_t(k - begin) * kPanel + v * kLanes;
        hn::StoreU(hn::Mul(DecodeE2M1(hn::And(pair, hn::Set(d16, uint16_t{15}))), scale[v]), d, to);
        hn::StoreU(hn::Mul(DecodeE2M1(hn::ShiftRight<4>(pair)), scale[v]), d, to + kPanel);
      }
    }
  }
}

void DecodeBf16Panel(const PackedMatrix& m, int panel, int begin, int end,
                     float* HWY_RESTRICT out) {
  const F d;
  const uint8_t* data = m.data.data() + size_t(panel) * m.panel_bytes;
  for (int i = begin * kPanel; i < end * kPanel; i += kLanes) {
    hn::StoreU(DecodeBf16(data + size_t(i) * 2), d, out + i - begin * kPanel);
  }
}

// Inputs [begin, end) of a panel as F32 [end - begin][16]: `scratch`, or the weights themselves.
HWY_INLINE const float* DecodeSlice(const PackedMatrix& m, int panel, int begin, int end,
                                    float* scratch) {
  switch (m.type) {
    case WeightType::kF32:
      return reinterpret_cast<const float*>(m.data.data() + size_t(panel) * m.panel_bytes) +
             size_t(begin) * kPanel;
    case WeightType::kBf16:
      DecodeBf16Panel(m, panel, begin, end, scratch);
      break;
    case WeightType::kFp8:
      if (m.scale_row_offset % kPanel == 0) {
        DecodeFp8(m, panel, begin, end, scratch);
      } else {
        DecodeFp8Split(m, panel, begin, end, scratch);
      }
      break;
    case WeightType::kFp4:
      DecodeFp4(m, panel, begin, end, scratch);
      break;
  }
  return scratch;
}

// Adds slice `s` of kRows rows to the binary tree of slices: after an odd slice its pair is
// complete, and so on up. levels: [kRows][kLevels][16]; after the last slice level 0 of each row
// holds the sum.
template <int kRows, bool kExact>
HWY_INLINE void SliceRows(const float* x, size_t x_stride, const float* w, int length, int s,
                          float* levels) {
  const F d;
  V acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
  }
  Accumulate<kRows, kExact>(x, x_stride, w, kPanel, length, acc);
  int level = 0;
  for (; level < kLevels && (s >> level & 1) != 0; ++level) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] =
            hn::Add(hn::LoadU(d, levels + (r * kLevels + level) * kPanel + v * kLanes), acc[r][v]);
      }
    }
  }
  if (level == kLevels) level = 0;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(acc[r][v], d, levels + (r * kLevels + level) * kPanel + v * kLanes);
  }
}

template <bool kExact>
void SliceAllRows(const float* x, size_t x_stride, const float* w, int length, int s, int rows,
                  float* levels) {
  constexpr int kStep = kVectors <= 2 ? 6 : 2;  // accumulators fit the registers of AVX2 and SSE4
  int r = 0;
  for (; r + kStep <= rows; r += kStep) {
    SliceRows<kStep, kExact>(x + size_t(r) * x_stride, x_stride, w, length, s,
                             levels + r * kLevels * kPanel);
  }
  if constexpr (kStep > 2) {
    if (r + 4 <= rows) {
      SliceRows<4, kExact>(x + size_t(r) * x_stride, x_stride, w, length, s,
                           levels + r * kLevels * kPanel);
      r += 4;
    }
    if (r + 2 <= rows) {
      SliceRows<2, kExact>(x + size_t(r) * x_stride, x_stride, w, length, s,
                           levels + r * kLevels * kPanel);
      r += 2;
    }
  }
  for (; r < rows; ++r) {
    SliceRows<1, kExact>(x + size_t(r) * x_stride, x_stride, w, length, s,
                         levels + r * kLevels * kPanel);
  }
}

// One row, the decoding case: four slices at a time, as one alone would wait for each addition's
// latency.
template <bool kExact>
void OneRow(const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, int slice,
            float* HWY_RESTRICT out) {
  const F d;
  V halves[2][kVectors];
  for (int half = 0; half < 2; ++half) {
    V acc[4][kVectors];
#pragma GCC unroll 16
    for (int s = 0; s < 4; ++s) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[s][v] = hn::Zero(d);
    }
    const float* from = w + size_t(half * 4 * slice) * kPanel;
    const float* input = x + half * 4 * slice;
    for (int k = 0; k < slice; ++k) {
#pragma GCC unroll 16
      for (int s = 0; s < 4; ++s) {
        const V value = hn::Set(d, input[s * slice + k]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          acc[s][v] = MultiplyAdd<kExact>(
              value, hn::LoadU(d, from + size_t(s * slice + k) * kPanel + v * kLanes), acc[s][v]);
        }
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      halves[half][v] = hn::Add(hn::Add(acc[0][v], acc[1][v]), hn::Add(acc[2][v], acc[3][v]));
    }
  }
  for (int v = 0; v < kVectors; ++v)
    hn::StoreU(hn::Add(halves[0][v], halves[1][v]), d, out + v * kLanes);
}

void StoreOutputs(const LinearArgs& a, int panel, int row, const float* HWY_RESTRICT sums) {
  const F d;
  float rounded[kPanel];
  if (a.round) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(RoundBf16Lanes(d, hn::LoadU(d, sums + v * kLanes)), d, rounded + v * kLanes);
    sums = rounded;
  }
  float* y = a.y + size_t(row) * a.y_stride + panel * kPanel;
  const int count = std::min(kPanel, a.weight->rows - panel * kPanel);
  if (count == kPanel) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(hn::LoadU(d, sums + v * kLanes), d, y + v * kLanes);
  } else {
    std::copy(sums, sums + count, y);
  }
}

template <bool kExact>
void LinearPanel(const LinearArgs& a, int panel) {
  const PackedMatrix& m = *a.weight;
  const int slice = m.slice();
  if (a.rows == 1 && slice * kSlices == m.columns) {
    HWY_ALIGN float sums[kPanel];
    OneRow<kExact>(a.x, DecodeSlice(m, panel, 0, m.columns, a.scratch), slice, sums);
    StoreOutputs(a, panel, 0, sums);
    return;
  }
  HWY_ALIGN float levels[kRowChunk * kLevels * kPanel];
  for (int row = 0; row < a.rows; row += kRowChunk) {
    const int rows = std::min(kRowChunk, a.rows - row);
    const float* x = a.x + size_t(row) * a.x_stride;
    for (int s = 0; s < kSlices; ++s) {
      const int begin = std::min(m.columns, s * slice);
      const int end = std::min(m.columns, begin + slice);
      const float* w = begin < end ? DecodeSlice(m, panel, begin, end, a.scratch) : a.scratch;
      SliceAllRows<kExact>(x + begin, a.x_stride, w, end - begin, s, rows, levels);
    }
    for (int r = 0; r < rows; ++r) StoreOutputs(a, panel, row + r, levels + r * kLevels * kPanel);
  }
}

void LinearTarget(const LinearArgs& a) {
  for (int panel = a.panel_begin; panel < a.panel_end; ++panel) {
    if (a.exact) {
      LinearPanel<true>(a, panel);
    } else {
      LinearPanel<false>(a, panel);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace agentd::model
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentd::model {

HWY_EXPORT(LinearTarget);

void Linear(const LinearArgs& args) { HWY_DYNAMIC_DISPATCH(LinearTarget)(args); }

// A whole panel; one input more, as an FP4 pair is decoded together.
size_t LinearScratch(const PackedMatrix& weight) { return (size_t(weight.columns) + 1) * kPanel; }

}  // namespace agentd::model
#endif  // HWY_ONCE
