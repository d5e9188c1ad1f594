// What sizes the kernels take: a configuration may ask for more than they hold.
#ifndef AGENTD_MODEL_CUDA_LIMITS_H_
#define AGENTD_MODEL_CUDA_LIMITS_H_

#include "absl/status/status.h"
#include "model/config.h"

namespace agentd::model::cuda {

// InvalidArgument naming the field, its value and the limit. Needs no device.
absl::Status CheckLimits(const Config& config);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_LIMITS_H_
