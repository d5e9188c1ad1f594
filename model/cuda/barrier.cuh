// Barriers in shared memory (mbarrier) and copies that complete on them.
#ifndef AGENTD_MODEL_CUDA_BARRIER_CUH_
#define AGENTD_MODEL_CUDA_BARRIER_CUH_

#include <cstdint>

#if defined(AGENTD_CUDA_EMULATED)
#include "model/cuda/emulator/barrier.h"
#endif

namespace agentd::model::cuda {

// Position in a ring of stages with such barriers, the same for who fills and who empties it.
template <int kStages>
struct RingPlace {
  int stage = 0;
  int parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

#if !defined(AGENTD_CUDA_EMULATED)

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void BarrierInit(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count));
}
// After BarrierInit, before another thread or the copy engine uses the barriers; then a block
// barrier.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// Arrives, one of the count, when the copies of cp.async that this thread has asked for are there.
// They may be seen by other threads then; its ordinary writes need an arrival of their own.
__device__ __forceinline__ void CopyAsyncArrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
}
// Arrives, and the phase also waits for that many bytes of CopyBulkOnce.
__device__ __forceinline__ void BarrierExpect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// `bytes` (a multiple of 16) from global to shared memory by the copy engine. They are not needed
// again for long: what else is in the L2 cache stays there.
__device__ __forceinline__ void CopyBulkOnce(void* to, const void* from, int bytes,
                                             uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], policy;\n"
      "}\n" ::"r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

// `bytes` (a multiple of 16) from shared to global memory by the copy engine, in a group of this
// thread's. What was written there became visible to the engine first.
__device__ __forceinline__ void StoreBulk(void* to, const void* from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(SharedAddress(from)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void StoreBulkCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's groups have read their shared memory; until they have written.
__device__ __forceinline__ void StoreBulkWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void StoreBulkWait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// `bytes` (a multiple of 16) from global memory into the L2 cache; nobody waits for it.
__device__ __forceinline__ void PrefetchBulk(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// Ordinary writes to shared memory become visible to the copy engine and the matrix units.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif  // !AGENTD_CUDA_EMULATED

// How often each warp that calls WarpArrive counts at the barrier.
#if defined(AGENTD_RACECHECK)
inline constexpr int kWarpArrivals = 32;
#else
inline constexpr int kWarpArrivals = 1;
#endif
// Arrives for a warp whose reads are over: a __syncwarp or a product of the whole warp came after
// them. One lane does it for all. compute-sanitizer's racecheck does not follow that, so in a build
// for it every lane arrives for itself.
__device__ __forceinline__ void WarpArrive(uint64_t* barrier, int lane) {
  if (kWarpArrivals == 32 || lane == 0) BarrierArrive(barrier);
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_BARRIER_CUH_
