// The weights of one model in the kernels' layout. Immutable after LoadWeights.
#ifndef AGENTD_MODEL_CPU_WEIGHTS_H_
#define AGENTD_MODEL_CPU_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cpu/packed_matrix.h"
#include "model/cpu/thread_pool.h"
#include "model/weight_tree.h"

namespace agentd::model {

using Vector = std::vector<float>;

struct CpuWeightTypes {
  using Matrix = PackedMatrix;
  using Vector = model::Vector;
  using Ids = std::vector<int32_t>;
};
using HyperConnection = HyperConnectionOf<CpuWeightTypes>;
using Compressor = CompressorOf<CpuWeightTypes>;
using Indexer = IndexerOf<CpuWeightTypes>;
using Expert = ExpertOf<CpuWeightTypes>;
using LayerWeights = LayerWeightsOf<CpuWeightTypes>;
using MtpWeights = MtpWeightsOf<CpuWeightTypes>;
using Weights = WeightsOf<CpuWeightTypes>;

// Reads every tensor that `config` asks for, on the pool's threads, and leaves no page of the
// checkpoint's mapping resident. Errors name a tensor that is missing, of another shape or type, or
// unknown, the first element that is no number, or the memory that is lacking: always the first in
// the order of the layers.
absl::StatusOr<Weights> LoadWeights(const Config& config, const Checkpoint& checkpoint,
                                    ThreadPool* pool);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_WEIGHTS_H_
