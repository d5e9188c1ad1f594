// What kernels are told about a batch, brought to the device in one copy.
#ifndef AGENTD_MODEL_CUDA_UPLOAD_H_
#define AGENTD_MODEL_CUDA_UPLOAD_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "model/batch.h"
#include "model/cuda/batch.h"
#include "model/cuda/device.h"
#include "model/cuda/elementwise.h"
#include "model/cuda/forward.h"

namespace agentd::model::cuda {

// Pinned memory and its copy on the device. Places depend only on how many rows and segments there
// are, so that a captured graph finds the next batch where this one was. Used again only when the
// stream is done.
class Upload {
 public:
  absl::Status Allocate(int max_rows);

  // A batch whose sequences are CudaSequences. rows_begun: BeginRows was called for its segments.
  void SetBatch(const Batch& batch, bool rows_begun);
  // The rows for which MtpKeys runs, as it wants them; false if there are none.
  bool SetMtpRows(const Batch& batch, const StateLayout& layout);
  // The one row of a draft.
  void SetDraftRow(const Batch& batch);
  void SetLogitRows(std::span<const int> rows);
  // A segment of the batch failed on the way; to be sent again.
  void SetFailed(int segment) { host_.segments[segment].failed = true; }
  // Grids are made for positions below `end`.
  void SetEnd(int64_t end) { shape_.end = end; }
  absl::Status Send(cudaStream_t stream) const;

  const BatchShape& shape() const { return shape_; }
  const MtpNormArgs& mtp_rows() const { return mtp_; }
  const MtpKeyRows& mtp_keys() const { return mtp_keys_; }
  const int* logit_rows() const { return OnDevice(host_.logit_rows); }

 private:
  // Arrays in pinned memory; the device has them at the same offsets.
  struct Arrays {
    SegmentView* segments = nullptr;
    int* segment_of = nullptr;
    int* positions = nullptr;
    int* tokens = nullptr;
    int* slots = nullptr;
    int* mtp_next = nullptr;
    int* mtp_source = nullptr;
    int* mtp_rows = nullptr;
    int* mtp_positions = nullptr;
    const float** mtp_from = nullptr;
    int* logit_rows = nullptr;
  };

  template <typename T>
  T* OnDevice(T* host) const {
    return reinterpret_cast<T*>(device_.as<uint8_t>() +
                                (reinterpret_cast<const uint8_t*>(host) - pinned_.as<uint8_t>()));
  }

  PinnedMemory pinned_;
  DeviceMemory device_;
  Arrays host_;
  BatchShape shape_;
  MtpNormArgs mtp_;
  MtpKeyRows mtp_keys_;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_UPLOAD_H_
