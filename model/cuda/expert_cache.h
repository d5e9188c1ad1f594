// A cache on the device for experts that lie in host memory: its memory, and what was found in it.
// How it works is expert_lookup.h's.
#ifndef AGENTD_MODEL_CUDA_EXPERT_CACHE_H_
#define AGENTD_MODEL_CUDA_EXPERT_CACHE_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/cuda/device.h"
#include "model/cuda/expert_lookup.h"

namespace agentd::model::cuda {

class ExpertCache {
 public:
  // For `layers` layers of `experts` experts each. Empty.
  static absl::StatusOr<std::unique_ptr<ExpertCache>> Create(int layers, int experts, int slots,
                                                             int64_t slot_bytes,
                                                             const Stream& stream);

  const ExpertTables& tables() const { return tables_; }
  // Of a batch with so many routed rows: enough whichever experts they are.
  int Rounds(int64_t routed) const;

  // Empties it. After a batch that failed: a lookup may have been made without the copies that
  // belong to it.
  absl::Status Forget();
  // Waits for the stream.
  absl::StatusOr<ExpertCounts> Counts() const;

 private:
  explicit ExpertCache(const Stream& stream) : stream_(stream) {}

  const Stream& stream_;
  DeviceMemory data_;
  DeviceMemory memory_;  // the tables
  ExpertTables tables_;
  int layers_ = 0;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_EXPERT_CACHE_H_
