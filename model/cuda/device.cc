#include "model/cuda/device.h"

#include "base/status.h"

namespace agentd::model::cuda {
namespace {

// What the kernels are compiled for: sm_90a code runs on compute capability 9.0 alone.
constexpr int kMajor = 9;
constexpr int kMinor = 0;

std::string Free() {
  size_t free = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return "";
  return fmt::format(" ({:.1f} of {:.1f} GB are free)", double(free) / 1e9, double(total) / 1e9);
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, const std::string& call) {
  if (error == cudaSuccess) return absl::OkStatus();
  absl::StatusCode code = absl::StatusCode::kInternal;
  if (error == cudaErrorMemoryAllocation) code = absl::StatusCode::kResourceExhausted;
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
      error == cudaErrorInitializationError || error == cudaErrorSystemDriverMismatch) {
    code = absl::StatusCode::kNotFound;
  }
  return Error(code, "CUDA: {}: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error));
}

absl::Status CheckDevice() {
  int count = 0;
  const absl::Status status = CudaStatus(cudaGetDeviceCount(&count), "look for a device");
  if (!status.ok() || count == 0) {
    (void)cudaGetLastError();
    return Error(absl::StatusCode::kNotFound, "no usable CUDA device{}",
                 status.ok() ? "" : ": " + Text(status));
  }
  cudaDeviceProp device = {};
  int current = 0;
  absl::Status got = CudaStatus(cudaGetDevice(&current), "cudaGetDevice");
  if (got.ok()) got = CudaStatus(cudaGetDeviceProperties(&device, current), "device properties");
  if (!got.ok()) return got;
  if (device.major != kMajor || device.minor != kMinor) {
    return Error(absl::StatusCode::kNotFound,
                 "the CUDA device {} has compute capability {}.{}; this build has kernels for "
                 "{}.{} (H100, H200) only",
                 device.name, device.major, device.minor, kMajor, kMinor);
  }
  return absl::OkStatus();
}

template <bool kOnDevice>
Memory<kOnDevice>::~Memory() {
  if (data_ == nullptr) return;
  if constexpr (kOnDevice) {
    cudaFree(data_);
  } else {
    cudaFreeHost(data_);
  }
}

template <bool kOnDevice>
absl::StatusOr<Memory<kOnDevice>> Memory<kOnDevice>::Allocate(size_t bytes,
                                                              const std::string& what) {
  Memory memory;
  if (bytes == 0) return memory;
  const cudaError_t error =
      kOnDevice ? cudaMalloc(&memory.data_, bytes) : cudaMallocHost(&memory.data_, bytes);
  if (error != cudaSuccess) {
    memory.data_ = nullptr;
    (void)cudaGetLastError();  // a failed allocation is no fault of what runs
    return CudaStatus(
        error, fmt::format("{} bytes of {} memory for {}{}", bytes, kOnDevice ? "device" : "pinned",
                           what, kOnDevice ? Free() : ""));
  }
  memory.bytes_ = bytes;
  return memory;
}

template class Memory<true>;
template class Memory<false>;

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<Stream> Stream::Create() {
  Stream stream;
  const absl::Status status = CudaStatus(
      cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking), "make a stream");
  if (!status.ok()) return status;
  return stream;
}

absl::Status Stream::Synchronize() const {
  const absl::Status launch = CudaStatus(cudaGetLastError(), "launch");
  const absl::Status run = CudaStatus(cudaStreamSynchronize(stream_), "run");
  return launch.ok() ? run : launch;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::Status Event::Record(const Stream& stream) const {
  return CudaStatus(cudaEventRecord(event_, stream.get()), "record an event");
}
absl::Status Event::Synchronize() const {
  const absl::Status launch = CudaStatus(cudaGetLastError(), "launch");
  const absl::Status run = CudaStatus(cudaEventSynchronize(event_), "run");
  return launch.ok() ? run : launch;
}

absl::StatusOr<Event> Event::Create() {
  Event event;
  const absl::Status status = CudaStatus(cudaEventCreate(&event.event_), "make an event");
  if (!status.ok()) return status;
  return event;
}

}  // namespace agentd::model::cuda
