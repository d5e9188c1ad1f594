#include "model/cpu/packed_matrix.h"

#include <cstring>

#include "base/status.h"
#include "model/cpu/numeric.h"

namespace agentd::model {
namespace {

// 2^63: no weight is this large, and the kernels' products stay far from overflow.
constexpr uint8_t kLargestScale = 190;

absl::Status CheckScales(const Tensor& scale) {
  for (int64_t i = 0; i < scale.size_bytes; ++i) {
    if (scale.data[i] > kLargestScale) {
      return InvalidArgument(
          "tensor {}: element {} is 2^{}, which is no scale of a weight (largest 2^{})", scale.name,
          i, int(scale.data[i]) - 127, int(kLargestScale) - 127);
    }
  }
  return absl::OkStatus();
}

// Transposes rows of `bytes` bytes per element into panels.
void PackElements(const uint8_t* source, int rows, int inputs, int bytes, PackedMatrix* m) {
  m->panel_bytes = size_t(inputs) * kPanel * size_t(bytes);
  const size_t total = m->panel_bytes * size_t(m->panels());
  uint8_t* out = m->data.Reserve(total);
  std::memset(out, 0, total);
  for (int row = 0; row < rows; ++row) {
    const uint8_t* from = source + size_t(row) * size_t(inputs) * size_t(bytes);
    uint8_t* to =
        out + size_t(row / kPanel) * m->panel_bytes + size_t(row % kPanel) * size_t(bytes);
    for (int k = 0; k < inputs; ++k) {
      std::memcpy(to + size_t(k) * kPanel * size_t(bytes), from + size_t(k) * size_t(bytes),
                  size_t(bytes));
    }
  }
}

absl::Status PackFp8Scales(const Tensor& scale, int row_begin, PackedMatrix* m) {
  RETURN_IF_ERROR(CheckScales(scale));
  const int first = row_begin / 128;
  const int count = int(DivideUp(row_begin + m->rows, 128)) - first;
  m->scale_columns = int(DivideUp(m->columns, 128));
  m->scale_row_offset = row_begin % 128;
  m->block_scales.Reserve(size_t(count) * size_t(m->scale_columns));
  for (int i = 0; i < count * m->scale_columns; ++i) {
    m->block_scales[size_t(i)] = E8M0ToFloat(scale.data[first * m->scale_columns + i]);
  }
  return absl::OkStatus();
}

absl::Status PackFp4Scales(const Tensor& scale, int row_begin, PackedMatrix* m) {
  RETURN_IF_ERROR(CheckScales(scale));
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
  return absl::OkStatus();
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
  if (m.type == WeightType::kFp8) RETURN_IF_ERROR(PackFp8Scales(*scale, row_begin, &m));
  if (m.type == WeightType::kFp4) RETURN_IF_ERROR(PackFp4Scales(*scale, row_begin, &m));
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
