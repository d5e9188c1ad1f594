// tensor.cuh on the emulated device.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_TENSOR_H_
#define AGENTD_MODEL_CUDA_EMULATOR_TENSOR_H_

#include <cstdint>

#include "model/cuda/emulator/grid.h"
#include "model/cuda/emulator/matrix.h"

namespace agentd::model::cuda {

inline void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::MultiplyWarp(d, a, b0, b1);
}
inline void LoadMatrices(uint32_t (&r)[4], const void* row) {
  emulator::LoadMatrixRows(r, row, false);
}
inline void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) {
  emulator::LoadMatrixRows(r, row, true);
}

inline void CopyAsync(void* shared, const void* global) {
  emulator::StartCopy(shared, global, 16, 16);
}
inline void CopyAsyncOrZero(void* shared, const void* global, bool exists) {
  emulator::StartCopy(shared, global, exists ? 8 : 0, 8);
}
inline void CopyAsync16(uint32_t to, const void* from, int bytes) {
  emulator::StartCopy(emulator::SharedAt(to, 16), from, bytes, 16);
}
inline void CopyAsync4(uint32_t to, const void* from, int bytes) {
  emulator::StartCopy(emulator::SharedAt(to, 4), from, bytes, 4);
}
inline void CopyAsyncCommit() { emulator::CommitCopies(); }
template <int kPending>
inline void CopyAsyncWait() {
  emulator::WaitForCopies(kPending);
}

inline void ClusterSync() { emulator::WaitAtCluster(); }
inline uint32_t ClusterLoad(const uint32_t* word, uint32_t rank) {
  return *reinterpret_cast<const uint32_t*>(emulator::SharedOfCluster(word, rank));
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_EMULATOR_TENSOR_H_
