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
      V value[kVectors];
      DecodePanelE4M3(data + size_t(k) * kPanel, value);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        hn::StoreU(hn::Mul(value[v], scale), d, out + size_t(k - begin) * kPanel + v * kLanes);
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

// Scales of a panel for the 32 inputs of group k/32; the codes decode to 2^-14 of their value.
HWY_INLINE void GroupScales(const PackedMatrix& m, int panel, int k, V (&scale)[kVectors]) {
  const F d;
  const U32 du;
  const hn::Rebind<uint8_t, F> d8;
  const int groups = (m.columns + 31) / 32;
  const uint8_t* from =
      m.group_scales.data() + (size_t(panel) * size_t(groups) + size_t(k / 32)) * kPanel;
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const auto bytes = hn::PromoteTo(du, hn::LoadU(d8, from + v * kLanes));
    const auto bits = hn::Max(hn::ShiftLeft<23>(bytes), hn::Set(du, 0x00400000u));
    scale[v] = hn::Mul(hn::BitCast(d, bits), hn::Set(d, 16384.0f));
  }
}

void DecodeFp4(const PackedMatrix& m, int panel, int begin, int end, float* HWY_RESTRICT out) {
  const F d;
  const uint8_t* data = m.data.data() + size_t(panel) * m.panel_bytes;
  for (int k = begin; k < end;) {
    const int stop = std::min(end, (k / 32 + 1) * 32);
    V scale[kVectors];
    GroupScales(m, panel, k, scale);
    for (; k < stop; k += 2) {
      V low[kVectors];
      V high[kVectors];
      DecodePanelE2M1(data + size_t(k / 2) * kPanel, low, high);
      float* to = out + size_t(k - begin) * kPanel;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        hn::StoreU(hn::Mul(low[v], scale[v]), d, to + v * kLanes);
        hn::StoreU(hn::Mul(high[v], scale[v]), d, to + kPanel + v * kLanes);
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
  // As many sums as fit the registers: fewer than 8 of AVX-512's would wait for each other.
  constexpr int kStep = kVectors == 1 ? 12 : kVectors == 2 ? 6 : 2;
  int r = 0;
  for (; r + kStep <= rows; r += kStep) {
    SliceRows<kStep, kExact>(x + size_t(r) * x_stride, x_stride, w, length, s,
                             levels + r * kLevels * kPanel);
  }
  if constexpr (kStep > 6) {
    if (r + 6 <= rows) {
      SliceRows<6, kExact>(x + size_t(r) * x_stride, x_stride, w, length, s,
                           levels + r * kLevels * kPanel);
      r += 6;
    }
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

// One row, the decoding case: weights go from storage to registers to the sums. kAtOnce slices run
// side by side, as one alone would wait for each addition's latency. x: of FP8 weights times their
// block's scale (a power of two, so the product is the same).
template <WeightType kType, bool kExact>
HWY_INLINE void OneRow(const PackedMatrix& m, int panel, const float* HWY_RESTRICT x,
                       float* HWY_RESTRICT out) {
  const F d;
  constexpr int kAtOnce = kType == WeightType::kFp4 ? 2 : 4;
  constexpr int kStep = kType == WeightType::kFp4 ? 2 : 1;
  const uint8_t* data = m.data.data() + size_t(panel) * m.panel_bytes;
  const int slice = m.slice();
  HWY_ALIGN float sums[kSlices * kPanel];
  for (int first = 0; first < kSlices; first += kAtOnce) {
    V acc[kAtOnce][kVectors];
    V scale[kAtOnce][kVectors];
#pragma GCC unroll 16
    for (int s = 0; s < kAtOnce; ++s) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[s][v] = scale[s][v] = hn::Zero(d);
    }
    for (int i = 0; i < slice; i += kStep) {
#pragma GCC unroll 16
      for (int s = 0; s < kAtOnce; ++s) {
        const int k = (first + s) * slice + i;
        V weight[kVectors];
        V second[kVectors];
        if constexpr (kType == WeightType::kFp8) {
          DecodePanelE4M3(data + size_t(k) * kPanel, weight);
        } else if constexpr (kType == WeightType::kFp4) {
          if (i == 0 || k % 32 == 0) GroupScales(m, panel, k, scale[s]);
          DecodePanelE2M1(data + size_t(k / 2) * kPanel, weight, second);
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) {
            weight[v] = hn::Mul(weight[v], scale[s][v]);
            second[v] = hn::Mul(second[v], scale[s][v]);
          }
        } else {
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) {
            const size_t at = size_t(k) * kPanel + size_t(v * kLanes);
            weight[v] = kType == WeightType::kBf16
                            ? DecodeBf16(data + 2 * at)
                            : hn::LoadU(d, reinterpret_cast<const float*>(data) + at);
          }
        }
        const V value = hn::Set(d, x[k]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v)
          acc[s][v] = MultiplyAdd<kExact>(value, weight[v], acc[s][v]);
        if constexpr (kType == WeightType::kFp4) {
          const V next = hn::Set(d, x[k + 1]);
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v)
            acc[s][v] = MultiplyAdd<kExact>(next, second[v], acc[s][v]);
        }
      }
    }
#pragma GCC unroll 16
    for (int s = 0; s < kAtOnce; ++s) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        hn::StoreU(acc[s][v], d, sums + (first + s) * kPanel + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    V s[kSlices];
    for (int i = 0; i < kSlices; ++i) s[i] = hn::LoadU(d, sums + i * kPanel + v * kLanes);
    const V low = hn::Add(hn::Add(s[0], s[1]), hn::Add(s[2], s[3]));
    const V high = hn::Add(hn::Add(s[4], s[5]), hn::Add(s[6], s[7]));
    hn::StoreU(hn::Add(low, high), d, out + v * kLanes);
  }
}

// x times the scales of one row of FP8 blocks, and the 2^8 that the codes lack.
void ScaleInput(const PackedMatrix& m, int block_row, const float* HWY_RESTRICT x,
                float* HWY_RESTRICT out) {
  const F d;
  for (int begin = 0; begin < m.columns; begin += 128) {
    const int end = std::min(m.columns, begin + 128);
    const float scale = m.block_scales[size_t(block_row * m.scale_columns + begin / 128)] * 256.0f;
    int k = begin;
    for (; k + kLanes <= end; k += kLanes)
      hn::StoreU(hn::Mul(hn::LoadU(d, x + k), hn::Set(d, scale)), d, out + k);
    for (; k < end; ++k) out[k] = x[k] * scale;
  }
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

template <bool kExact>
void LinearOneRow(const LinearArgs& a) {
  const PackedMatrix& m = *a.weight;
  int scaled_for = -1;
  for (int panel = a.panel_begin; panel < a.panel_end; ++panel) {
    HWY_ALIGN float sums[kPanel];
    const int block_row = (m.scale_row_offset + panel * kPanel) / 128;
    switch (m.type) {
      case WeightType::kF32:
        OneRow<WeightType::kF32, kExact>(m, panel, a.x, sums);
        break;
      case WeightType::kBf16:
        OneRow<WeightType::kBf16, kExact>(m, panel, a.x, sums);
        break;
      case WeightType::kFp4:
        OneRow<WeightType::kFp4, kExact>(m, panel, a.x, sums);
        break;
      case WeightType::kFp8:
        if (block_row != scaled_for) ScaleInput(m, block_row, a.x, a.scratch);
        scaled_for = block_row;
        OneRow<WeightType::kFp8, kExact>(m, panel, a.scratch, sums);
        break;
    }
    StoreOutputs(a, panel, 0, sums);
  }
}

template <bool kExact>
void LinearPanels(const LinearArgs& a) {
  const PackedMatrix& m = *a.weight;
  const bool whole_slices = m.slice() * kSlices == m.columns;
  const bool one_scale_row = m.type != WeightType::kFp8 || m.scale_row_offset % kPanel == 0;
  if (a.rows == 1 && whole_slices && one_scale_row) return LinearOneRow<kExact>(a);
  for (int panel = a.panel_begin; panel < a.panel_end; ++panel) LinearPanel<kExact>(a, panel);
}

void LinearTarget(const LinearArgs& a) {
  if (a.exact) {
    LinearPanels<true>(a);
  } else {
    LinearPanels<false>(a);
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
