// Matrix instructions and asynchronous copies of a thread.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_MATRIX_H_
#define AGENTD_MODEL_CUDA_EMULATOR_MATRIX_H_

#include <cstdint>

namespace agentd::model::cuda::emulator {

// mma.sync.m16n8k16. A sum of 16 products and of what was there is rounded once; so is wgmma's, and
// both have the same bits. (A device cuts off bits where it lines products up.)
void MultiplyWarp(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// ldmatrix.x4.
void LoadMatrixRows(uint32_t (&r)[4], const void* row, bool transposed);

// cp.async: `bytes` of `size`, and zeros. The destination is poisoned until the copy is waited for,
// and the source read only then.
void StartCopy(void* to, const void* from, int bytes, int size);
void CommitCopies();
void WaitForCopies(int pending);

// cp.async.bulk to global memory: the source is read only when the copies are waited for.
void StartStore(void* to, const void* from, int bytes);
void WaitForStores();

// The same place in the shared memory of another block of the cluster.
const uint8_t* SharedOfCluster(const void* own, uint32_t rank);

// wgmma of 64 rows, a in registers or, K-major, where a descriptor says, as b. The sums are
// poisoned until they are waited for, and shared memory read only then.
enum class Major { kK, kN };  // of b
void StartProduct(float* sums, int count, const uint32_t (&a)[4], uint64_t b, Major major);
void StartProduct(float* sums, int count, uint64_t a, uint64_t b);
void CommitProducts();
void WaitForProducts(int pending);

}  // namespace agentd::model::cuda::emulator

#endif  // AGENTD_MODEL_CUDA_EMULATOR_MATRIX_H_
