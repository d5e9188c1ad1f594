// Bytes of sequences on their way between host memory and the device. Only page-locked memory can
// be copied while other work runs, so everything passes through some.
#ifndef AGENTD_MODEL_CUDA_TRANSFER_H_
#define AGENTD_MODEL_CUDA_TRANSFER_H_

#include <cstddef>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/cuda/device.h"

namespace agentd::model::cuda {

// Buffers that are used again: to allocate such memory takes longer than to fill it. Any thread.
template <typename Memory>
class BufferPool {
 public:
  // Keeps up to `kept_bytes` of what nobody uses.
  BufferPool(size_t kept_bytes, std::string what)
      : kept_bytes_(kept_bytes), what_(std::move(what)) {}

  // At least so many bytes.
  absl::StatusOr<Memory> Take(size_t bytes);
  // The device no longer uses it.
  void Give(Memory buffer);

 private:
  const size_t kept_bytes_;
  const std::string what_;
  std::mutex mutex_;
  std::vector<Memory> free_;  // guarded by mutex_
  size_t free_bytes_ = 0;     // guarded by mutex_
};
using PinnedPool = BufferPool<PinnedMemory>;
using DevicePool = BufferPool<DeviceMemory>;

// A run of bytes to bring to the device.
struct Piece {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};

// Copies host memory of any kind to the device in a stream's order. One thread.
class Uploads {
 public:
  explicit Uploads(cudaStream_t stream) : stream_(stream) {}
  ~Uploads();
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  // Returns when all was read; it reaches the device before what is enqueued on the stream later.
  // Waits only for staging memory that earlier copies still use.
  absl::Status Send(std::span<const Piece> pieces);

 private:
  struct Chunk {
    PinnedMemory memory;
    Event copied;  // the copies out of it, once it was full
  };

  absl::Status NextChunk();
  absl::Status SendChunk(std::span<const Piece> pieces, uint8_t* staged);

  const cudaStream_t stream_;
  std::vector<Chunk> chunks_;
  size_t current_ = 0;
  size_t used_ = 0;  // of the current one
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_TRANSFER_H_
