// For the kernels' tests: arrays on the device, and values as both sides hold them.
#ifndef AGENTD_MODEL_CUDA_TEST_UTIL_H_
#define AGENTD_MODEL_CUDA_TEST_UTIL_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "base/status.h"
#include "model/cuda/device.h"
#include "model/numeric.h"

namespace agentd::model::cuda {

// In SetUp of a test that needs a device.
#define AGENTD_REQUIRE_DEVICE()                                              \
  do {                                                                       \
    const absl::Status device_status = ::agentd::model::cuda::CheckDevice(); \
    if (!device_status.ok()) GTEST_SKIP() << Text(device_status);            \
  } while (false)

inline void CheckCuda(cudaError_t error) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  AGENTD_CHECK(error == cudaSuccess);
}

// An array of T on the device; made of nothing it is poisoned (every byte 0xFF: a NaN as float and
// as BF16), so that an element that no kernel wrote shows.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(size_t count) : count_(count) {
    memory_ = std::move(*DeviceMemory::Allocate(std::max<size_t>(count * sizeof(T), 1), "a test"));
    CheckCuda(cudaMemset(memory_.template as<>(), 0xFF, count * sizeof(T)));
  }
  explicit OnDevice(const std::vector<T>& values) : OnDevice(values.size()) {
    CheckCuda(cudaMemcpy(get(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  T* get() const { return memory_.template as<T>(); }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    CheckCuda(cudaDeviceSynchronize());
    CheckCuda(cudaMemcpy(values.data(), get(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t count_ = 0;
  DeviceMemory memory_;
};

// A buffer of Values (batch.h): BF16 if low, else float.
class ValuesOnDevice {
 public:
  ValuesOnDevice(size_t count, bool low) : low_(low), bytes_(count * (low ? 2 : 4)) {}
  ValuesOnDevice(const std::vector<float>& values, bool low) : ValuesOnDevice(values.size(), low) {
    for (size_t i = 0; i < values.size(); ++i) Put(i, values[i]);
    bytes_ = OnDevice<uint8_t>(host_);
  }
  void* get() const { return bytes_.get(); }
  std::vector<float> Read() const {
    const std::vector<uint8_t> bytes = bytes_.Read();
    std::vector<float> values(bytes.size() / (low_ ? 2 : 4));
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t bits = 0;
      if (low_) {
        std::memcpy(&bits, bytes.data() + 2 * i, 2);
        values[i] = Bf16ToFloat(bits);
      } else {
        std::memcpy(&values[i], bytes.data() + 4 * i, 4);
      }
    }
    return values;
  }

 private:
  void Put(size_t i, float value) {
    host_.resize(host_.size() + (low_ ? 2 : 4));
    const uint16_t bits = FloatToBf16(value);
    std::memcpy(host_.data() + i * (low_ ? 2 : 4), low_ ? static_cast<const void*>(&bits) : &value,
                low_ ? 2 : 4);
  }

  bool low_;
  std::vector<uint8_t> host_;
  OnDevice<uint8_t> bytes_;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_TEST_UTIL_H_
