// barrier.cuh on the emulated device.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_BARRIER_H_
#define AGENTD_MODEL_CUDA_EMULATOR_BARRIER_H_

#include <cstdint>

#include "model/cuda/emulator/grid.h"
#include "model/cuda/emulator/matrix.h"
#include "model/cuda/emulator/memory.h"

namespace agentd::model::cuda {

inline uint32_t SharedAddress(const void* pointer) { return emulator::AddressOfShared(pointer); }
inline void BarrierInit(uint64_t* barrier, int count) { emulator::InitTransaction(barrier, count); }
inline void FenceBarrierInit() {}
inline void BarrierArrive(uint64_t* barrier) { emulator::ArriveTransaction(barrier, 1, 0); }
inline void CopyAsyncArrive(uint64_t* barrier) { emulator::ArriveAfterCopies(barrier); }
inline void BarrierExpect(uint64_t* barrier, int bytes) {
  emulator::ArriveTransaction(barrier, 1, bytes);
}
inline void BarrierWait(uint64_t* barrier, int parity) {
  emulator::WaitTransaction(barrier, parity);
}
inline void CopyBulkOnce(void* to, const void* from, int bytes, uint64_t* barrier) {
  emulator::StartBulk({.to = to, .from = from, .bytes = bytes, .barrier = barrier});
}
inline void StoreBulk(void* to, const void* from, int bytes) {
  emulator::StartStore(to, from, bytes);
}
inline void StoreBulkCommit() {}
inline void StoreBulkWaitRead() { emulator::WaitForStores(); }
inline void StoreBulkWait() { emulator::WaitForStores(); }
// Nothing comes of it, but it must be memory of the device.
inline void PrefetchBulk(const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0 ||
      emulator::PlaceOf(from, size_t(bytes)) != emulator::Place::kDevice)
    emulator::Fail("a prefetch of what are not whole 16 bytes of the device");
}
inline void FenceAsyncProxy() {}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_EMULATOR_BARRIER_H_
