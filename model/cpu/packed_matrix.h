// A weight matrix in its storage type, rearranged for the kernels at the same size.
#ifndef AGENTD_MODEL_CPU_PACKED_MATRIX_H_
#define AGENTD_MODEL_CPU_PACKED_MATRIX_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/cpu/buffer.h"

namespace agentd::model {

// Outputs of one panel: the width of every kernel's tile, whatever the vector width.
inline constexpr int kPanel = 16;
// A product sums its K inputs in this many slices, each in order, and the slices by one binary
// tree: so that 2, 4 or 8 ranks that hold K/2, K/4 or K/8 can give the same bits later.
inline constexpr int kSlices = 8;

enum class WeightType { kF32, kBf16, kFp8, kFp4 };

// rows outputs x columns inputs. Panel p holds outputs [16p, 16p+16) (zeros beyond the last), input
// by input:
//   F32, BF16, FP8: [columns][16]; FP4: [ceil(columns/2)][16] bytes, low nibble the even input.
// Scales: FP8 one F32 per (128 outputs, 128 inputs) (from its E8M0 byte); FP4 the E8M0 bytes, per
// panel [ceil(columns/32)][16].
struct PackedMatrix {
  WeightType type = WeightType::kF32;
  int rows = 0;
  int columns = 0;
  Buffer<uint8_t> data;
  size_t panel_bytes = 0;
  Buffer<float> block_scales;  // FP8: [ceil(rows/128) (from scale_row_offset), ceil(columns/128)]
  int scale_columns = 0;
  int scale_row_offset = 0;  // FP8: this matrix begins that many rows into its first scale block
  Buffer<uint8_t> group_scales;  // FP4

  int panels() const { return (rows + kPanel - 1) / kPanel; }
  // Inputs of one slice; even, so that no FP4 byte is cut.
  int slice() const { return ((columns + kSlices - 1) / kSlices + 1) / 2 * 2; }
  int64_t memory_bytes() const {
    return int64_t(data.size() + block_scales.size() * 4 + group_scales.size());
  }
};

// Rows [row_begin, row_begin + rows) of `weight` (an FP4 tensor has columns/2 bytes a row). `scale`
// is nullptr for F32 and BF16. InvalidArgument names the tensor when its type is none of a
// weight. Values are Checkpoint::CheckValues' to check.
absl::StatusOr<PackedMatrix> Pack(const Tensor& weight, const Tensor* scale, int row_begin,
                                  int rows);
// From memory, for tests and for vectors that are no tensor: F32 [rows, columns].
PackedMatrix PackF32(const float* values, int rows, int columns);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_PACKED_MATRIX_H_
