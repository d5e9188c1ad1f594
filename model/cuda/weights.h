// The weights of one model on a device. Immutable after loading.
#ifndef AGENTD_MODEL_CUDA_WEIGHTS_H_
#define AGENTD_MODEL_CUDA_WEIGHTS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cuda/device.h"
#include "model/cuda/gemm.h"
#include "model/weight_tree.h"

namespace agentd::model::cuda {

struct DeviceVector {
  const float* data = nullptr;
};
struct DeviceIds {
  const int* data = nullptr;
};

struct DeviceWeightTypes {
  using Matrix = cuda::Matrix;
  using Vector = DeviceVector;
  using Ids = DeviceIds;
};
using HyperConnection = HyperConnectionOf<DeviceWeightTypes>;
using Compressor = CompressorOf<DeviceWeightTypes>;
using Indexer = IndexerOf<DeviceWeightTypes>;
using LayerWeights = LayerWeightsOf<DeviceWeightTypes>;
using MtpWeights = MtpWeightsOf<DeviceWeightTypes>;

inline bool IsQuantized(const Matrix& m) {
  return m.type == MatrixType::kFp8 || m.type == MatrixType::kFp4;
}

// A layer's experts as one product's operand: expert 0's matrix, the others at these strides.
struct GroupedMatrix {
  Matrix first;
  int64_t expert_data = 0;  // bytes
  int64_t expert_scales = 0;
};
struct GroupedExperts {
  GroupedMatrix w1;
  GroupedMatrix w2;
  GroupedMatrix w3;
};

struct DeviceWeights : WeightsOf<DeviceWeightTypes> {
  Matrix embedding;                     // plain
  std::vector<GroupedExperts> experts;  // per layer; the MTP block's last
  std::vector<DeviceMemory> memory;
  int64_t bytes = 0;
};

// Checks and loads as the CPU backend does (cpu/weights.h). Tensors without data get random values.
// InvalidArgument also for what this backend's products cannot hold exactly: inputs that are no
// multiple of 8 of a packed matrix, scales that span more than 2^120.
absl::StatusOr<DeviceWeights> LoadDeviceWeights(const Config& config, const Checkpoint& checkpoint,
                                                const Stream& stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_WEIGHTS_H_
