#include "model/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "model/numeric.h"

namespace agentd::model {
namespace {

// One panel: inputs of up to 16 rows, interleaved.
template <int kBytes>
void PackPanel(const uint8_t* source, int rows, int inputs, uint8_t* out) {
  // By way of a tile: rows lie a power of two apart as a rule, and 16 of them read in step would
  // throw each other out of the cache.
  constexpr int kTile = 64 / kBytes;
  uint8_t tile[kPanel][64] = {};
  const size_t stride = size_t(inputs) * kBytes;
  for (int begin = 0; begin < inputs; begin += kTile) {
    const int count = std::min(kTile, inputs - begin);
    for (int row = 0; row < rows; ++row) {
      std::memcpy(tile[row], source + size_t(row) * stride + size_t(begin) * kBytes,
                  size_t(count) * kBytes);
    }
    for (int k = 0; k < count; ++k) {
      for (int row = 0; row < kPanel; ++row, out += kBytes)
        std::memcpy(out, tile[row] + size_t(k) * kBytes, kBytes);
    }
  }
}

// Transposes rows of `bytes` bytes per element into panels.
void PackElements(const uint8_t* source, int rows, int inputs, int bytes, PackedMatrix* m) {
  m->panel_bytes = size_t(inputs) * kPanel * size_t(bytes);
  uint8_t* out = m->data.Reserve(m->panel_bytes * size_t(m->panels()));
  const auto pack = bytes == 4 ? PackPanel<4> : bytes == 2 ? PackPanel<2> : PackPanel<1>;
  for (int row = 0; row < rows; row += kPanel, out += m->panel_bytes) {
    pack(source + size_t(row) * size_t(inputs) * size_t(bytes), std::min(kPanel, rows - row),
         inputs, out);
  }
}

void PackFp8Scales(const Tensor& scale, int row_begin, PackedMatrix* m) {
  const int first = row_begin / 128;
  const int count = int(DivideUp(row_begin + m->rows, 128)) - first;
  m->scale_columns = int(DivideUp(m->columns, 128));
  m->scale_row_offset = row_begin % 128;
  m->block_scales.Reserve(size_t(count) * size_t(m->scale_columns));
  for (int i = 0; i < count * m->scale_columns; ++i) {
    m->block_scales[size_t(i)] = E8M0ToFloat(scale.data[first * m->scale_columns + i]);
  }
}

void PackFp4Scales(const Tensor& scale, int row_begin, PackedMatrix* m) {
  const int groups = int(DivideUp(m->columns, 32));
  const size_t total = size_t(groups) * kPanel * size_t(m->panels());
  uint8_t* out = m->group_scales.Reserve(total);
  std::memset(out, 0, total);
  for (int row = 0; row < m->rows; ++row) {
    for (int g = 0; g < groups; ++g) {
      out[(size_t(row / kPanel) * size_t(groups) + size_t(g)) * kPanel + size_t(row % kPanel)] =
          scale.data[int64_t(row_begin + row) * groups + g];
    }
  }
}

}  // namespace

absl::StatusOr<PackedMatrix> Pack(const Tensor& weight, const Tensor* scale, int row_begin,
                                  int rows) {
  AGENTD_CHECK(weight.shape.size() == 2 && row_begin >= 0 && row_begin + rows <= weight.shape[0]);
  PackedMatrix m;
  m.rows = rows;
  const bool fp4 = weight.dtype == DType::kI8;
  const int inputs = int(weight.shape[1]);
  m.columns = fp4 ? inputs * 2 : inputs;
  const int bytes = DTypeBytes(weight.dtype);
  switch (weight.dtype) {
    case DType::kF32:
      m.type = WeightType::kF32;
      break;
    case DType::kBf16:
      m.type = WeightType::kBf16;
      break;
    case DType::kF8E4M3:
      m.type = WeightType::kFp8;
      break;
    case DType::kI8:
      m.type = WeightType::kFp4;
      break;
    default:
      return InvalidArgument("tensor {}: dtype {} is no weight type", weight.name,
                             DTypeName(weight.dtype));
  }
  PackElements(weight.data + int64_t(row_begin) * inputs * bytes, rows, inputs, bytes, &m);
  const bool scaled = m.type == WeightType::kFp8 || m.type == WeightType::kFp4;
  AGENTD_CHECK(scaled == (scale != nullptr));
  if (m.type == WeightType::kFp8) PackFp8Scales(*scale, row_begin, &m);
  if (m.type == WeightType::kFp4) PackFp4Scales(*scale, row_begin, &m);
  return m;
}

PackedMatrix PackF32(const float* values, int rows, int columns) {
  PackedMatrix m;
  m.rows = rows;
  m.columns = columns;
  PackElements(reinterpret_cast<const uint8_t*>(values), rows, columns, 4, &m);
  return m;
}

}  // namespace agentd::model
