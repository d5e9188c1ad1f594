// wgmma.cuh on the emulated device.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_WGMMA_H_
#define AGENTD_MODEL_CUDA_EMULATOR_WGMMA_H_

#include <cstdint>

#include "model/cuda/emulator/matrix.h"

namespace agentd::model::cuda {

template <int kRegisters>
inline void GiveRegisters() {}
template <int kRegisters>
inline void TakeRegisters() {}

inline void WgmmaFence() {}
inline void WgmmaCommit() { emulator::CommitProducts(); }
template <int kPending>
inline void WgmmaWait() {
  emulator::WaitForProducts(kPending);
}

template <int kTokens>
struct Wgmma {
  static void Run(float (&d)[kTokens / 2], const uint32_t (&a)[4], uint64_t b) {
    emulator::StartProduct(d, kTokens / 2, a, b, emulator::Major::kK);
  }
};
inline void WgmmaOfShared(float (&d)[32], uint64_t a, uint64_t b) {
  emulator::StartProduct(d, 32, a, b);
}
inline void WgmmaNMajor(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  emulator::StartProduct(d, 32, a, b, emulator::Major::kN);
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_EMULATOR_WGMMA_H_
