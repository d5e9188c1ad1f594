#include "model/cuda/ceiling.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "model/cuda/device.h"

namespace agentd::model {

namespace {

using namespace cuda;

// Median bytes a second of one copy after the other.
absl::StatusOr<double> CopyRate(void* to, const void* from, size_t bytes, const Stream& stream) {
  ASSIGN_OR_RETURN(Event begin, Event::Create());
  ASSIGN_OR_RETURN(Event end, Event::Create());
  std::vector<double> rates;
  for (int i = 0; i < 12; ++i) {
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(begin.get(), stream.get()), "record"));
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.get()), "copy"));
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(end.get(), stream.get()), "record"));
    RETURN_IF_ERROR(stream.Synchronize());
    float ms = 0;
    RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&ms, begin.get(), end.get()), "measure"));
    if (i >= 2) rates.push_back(double(bytes) / (double(ms) / 1e3));
  }
  std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

}  // namespace

absl::StatusOr<DeviceCeiling> MeasureDeviceCeiling() {
  RETURN_IF_ERROR(CheckDevice());
  DeviceCeiling ceiling;
  cudaDeviceProp device = {};
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&device, 0), "device properties"));
  ceiling.name = device.name;
  size_t free = 0;
  size_t total = 0;
  RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free, &total), "ask for free memory"));
  // Several times what the cache holds.
  const size_t bytes = std::min(size_t{1} << 30, free / 4) / 256 * 256;
  ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  ASSIGN_OR_RETURN(DeviceMemory from, DeviceMemory::Allocate(bytes, "measuring"));
  ASSIGN_OR_RETURN(DeviceMemory to, DeviceMemory::Allocate(bytes, "measuring"));
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(from.as<>(), 0x5A, bytes, stream.get()), "fill"));
  ASSIGN_OR_RETURN(const double copies, CopyRate(to.as<>(), from.as<>(), bytes, stream));
  ceiling.copy_bytes_per_s = 2 * copies;
  const size_t host_bytes = std::min(size_t{256} << 20, bytes);
  ASSIGN_OR_RETURN(PinnedMemory host, PinnedMemory::Allocate(host_bytes, "measuring"));
  std::memset(host.as<>(), 0x5A, host_bytes);
  ASSIGN_OR_RETURN(ceiling.host_bytes_per_s, CopyRate(to.as<>(), host.as<>(), host_bytes, stream));
  return ceiling;
}

}  // namespace agentd::model
