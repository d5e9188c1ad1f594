// Owners of device memory, pinned host memory, streams and events, and the translation of CUDA's
// errors. Move-only; each is freed on the device that was current when it was made.
#ifndef AGENTD_MODEL_CUDA_DEVICE_H_
#define AGENTD_MODEL_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::model::cuda {

// OK, or what failed in which call: ResourceExhausted where memory lacks, Unavailable where there
// is no usable device, Internal otherwise.
absl::Status CudaStatus(cudaError_t error, const std::string& call);

// OK if this machine has a device that this build runs on; else NotFound with the reason.
absl::Status CheckDevice();

// Bytes of memory of one kind.
template <bool kOnDevice>
class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  // A failure names `what` and, on the device, how much is free.
  static absl::StatusOr<Memory> Allocate(size_t bytes, const std::string& what);

  template <typename T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};
using DeviceMemory = Memory<true>;
// Page-locked host memory: what asynchronous copies need.
using PinnedMemory = Memory<false>;

class Stream {
 public:
  Stream() = default;
  ~Stream();
  Stream(Stream&& other) noexcept { *this = std::move(other); }
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }

  static absl::StatusOr<Stream> Create();

  cudaStream_t get() const { return stream_; }
  // Waits for all that was enqueued; the first error of it or of a launch before.
  absl::Status Synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() = default;
  ~Event();
  Event(Event&& other) noexcept { *this = std::move(other); }
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }

  static absl::StatusOr<Event> Create();

  // Marks what is on the stream by now.
  absl::Status Record(const Stream& stream) const;
  // Waits for what was marked last; the first error of it or of a launch before.
  absl::Status Synchronize() const;

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_DEVICE_H_
