// machine.cuh on the emulated device.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_MACHINE_H_
#define AGENTD_MODEL_CUDA_EMULATOR_MACHINE_H_

#include <cmath>
#include <cstdint>

#include "model/cuda/emulator/grid.h"
#include "model/numeric.h"

namespace agentd::model::cuda {

template <typename T>
inline T* SharedMemory() {
  return reinterpret_cast<T*>(emulator::current->block->shared);
}

// Kernels run one after the other.
inline void GridDependencyWait() {}
inline void GridDependencyLaunch() {}

inline void Barrier(int number, int threads) { emulator::WaitAtBarrier(number, threads); }
template <int kThreads>
inline void SyncSome(int barrier) {
  emulator::WaitAtBarrier(barrier, kThreads);
}

namespace emulator {

inline uint16_t ToBf16(float value) { return value != value ? 0x7FFF : FloatToBf16(value); }
inline float HalfOf(uint32_t pair, int half) { return Bf16ToFloat(uint16_t(pair >> (16 * half))); }

}  // namespace emulator

inline uint32_t PackBf16(float first, float second) {
  return uint32_t{emulator::ToBf16(second)} << 16 | emulator::ToBf16(first);
}
inline uint32_t PackReluBf16(float first, float second) {
  return PackBf16(first < 0 ? 0.0f : first, second < 0 ? 0.0f : second);
}
inline uint32_t MultiplyBf16(uint32_t a, uint32_t b) {
  return PackBf16(emulator::HalfOf(a, 0) * emulator::HalfOf(b, 0),
                  emulator::HalfOf(a, 1) * emulator::HalfOf(b, 1));
}
inline uint16_t PackE4M3(float low, float high) {
  return uint16_t(FloatToE4M3(high) << 8 | FloatToE4M3(low));
}
inline void UnpackE4M3(uint16_t codes, float* low, float* high) {
  *low = E4M3ToFloat(uint8_t(codes));
  *high = E4M3ToFloat(uint8_t(codes >> 8));
}
inline float ReciprocalNear(float x) { return 1.0f / x; }
inline float PowerOfTwoNear(float x) { return x < -126 ? 0 : std::exp2(x); }

template <typename T>
inline T LoadIf(bool wanted, const T* p) {
  return wanted ? *p : T{};
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_EMULATOR_MACHINE_H_
