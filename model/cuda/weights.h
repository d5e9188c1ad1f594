// The weights of one model on a device. Immutable after loading.
#ifndef AGENTD_MODEL_CUDA_WEIGHTS_H_
#define AGENTD_MODEL_CUDA_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cuda/device.h"
#include "model/cuda/expert_placement.h"
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
// Experts in host memory are [experts][expert_bytes], each w1, w3, w2, and of each matrix data and
// scales. Their matrices say where they would be if the cache's slots were the experts: a product
// whose tiles name slots reads them as it reads any.
struct GroupedExperts {
  GroupedMatrix w1;
  GroupedMatrix w2;
  GroupedMatrix w3;
  const uint8_t* host = nullptr;  // page-locked; nullptr: on the device
  int64_t expert_bytes = 0;
  int number = 0;  // among the layers on the host
};

struct DeviceWeights : WeightsOf<DeviceWeightTypes> {
  Matrix embedding;                     // plain
  std::vector<GroupedExperts> experts;  // per layer; the MTP block's last
  std::vector<DeviceMemory> memory;
  std::vector<PinnedMemory> host_memory;
};

// The experts of layers on the host are read from this cache's slots from now on.
void BindExperts(uint8_t* slots, int64_t slot_bytes, DeviceWeights* weights);

// Checks and loads as the CPU backend does (cpu/weights.h), in two steps, so that what the device's
// memory is needed for can be known in between. Tensors without data get random values.
class WeightLoader {
 public:
  virtual ~WeightLoader() = default;

  // What the checkpoint has, by its headers.
  static absl::StatusOr<std::unique_ptr<WeightLoader>> Create(const Config& config,
                                                              const Checkpoint& checkpoint,
                                                              const Stream& stream);
  // Types and sizes of all matrices, without data.
  virtual DeviceWeights Shapes() const = 0;
  virtual ExpertSizes Sizes() const = 0;
  // Once. InvalidArgument also for what this backend's products cannot hold exactly: inputs that
  // are no multiple of 8 of a packed matrix, scales that span more than 2^120.
  virtual absl::StatusOr<DeviceWeights> Load(const ExpertPlacement& placement) = 0;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_WEIGHTS_H_
