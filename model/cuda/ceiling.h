// What the device's memory and the way to it do, measured: beside a benchmark's own figures.
#ifndef AGENTD_MODEL_CUDA_CEILING_H_
#define AGENTD_MODEL_CUDA_CEILING_H_

#include <string>

#include "absl/status/statusor.h"

namespace agentd::model {

struct DeviceCeiling {
  std::string name;
  double copy_bytes_per_s = 0;  // read plus written, of a large copy on the device
  double host_bytes_per_s = 0;  // of a large copy from page-locked host memory to the device
};
// On the current device; takes 2 GiB of its memory meanwhile, or less where less is free.
absl::StatusOr<DeviceCeiling> MeasureDeviceCeiling();

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CUDA_CEILING_H_
