// What the kernels on tensor cores need of the machine beneath C++ more than others: matrix
// multiplication on tensor cores, asynchronous copies, clusters.
#ifndef AGENTD_MODEL_CUDA_TENSOR_CUH_
#define AGENTD_MODEL_CUDA_TENSOR_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "model/cuda/machine.cuh"
#if defined(AGENTD_CUDA_EMULATED)
#include "model/cuda/emulator/tensor.h"
#endif

namespace agentd::model::cuda {

__device__ inline float FirstBf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float SecondBf16(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }
// An E8M0 scale, twice.
__device__ inline uint32_t ScalePair(uint32_t byte) { return max(byte << 7, 0x40u) * 0x10001u; }

#if !defined(AGENTD_CUDA_EMULATED)

// d += a b, m = 16, n = 8, k = 16. Lane 4g + t holds, of a [m][k]: {(g, 2t), (g, 2t+1)}, the same
// of row g + 8, then both of columns 8 further on; of b [k][n]: {(2t, g), (2t+1, g)}, then 8 rows
// further on; of d [m][n]: (g, 2t), (g, 2t+1), then both of row g + 8.
__device__ inline void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16 bits; lane i names row i % 8 of matrix i / 8 (16 bytes). Lane 4g + t gets
// of each {(g, 2t), (g, 2t+1)}; transposed: {(2t, g), (2t+1, g)}.
__device__ inline void LoadMatrices(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// 16 bytes, both addresses aligned.
__device__ inline void CopyAsync(void* shared, const void* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
// 8 bytes, both addresses aligned; if not `exists`, zeros: `global` is not read then.
__device__ inline void CopyAsyncOrZero(void* shared, const void* global, bool exists) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = exists ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ inline void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kPending of this thread's latest groups are under way.
template <int kPending>
__device__ inline void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 16 bytes to shared memory, of which `bytes` are read and the rest becomes zeros.
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CopyAsync4(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

// All threads of all blocks of the cluster.
__device__ inline void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// *word of block `rank` of the cluster.
__device__ inline uint32_t ClusterLoad(const uint32_t* word, uint32_t rank) {
  const auto own = static_cast<uint32_t>(__cvta_generic_to_shared(word));
  uint32_t address;
  uint32_t value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

#endif  // !AGENTD_CUDA_EMULATED

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_TENSOR_CUH_
