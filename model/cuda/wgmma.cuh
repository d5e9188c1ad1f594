// wgmma.m64nNk16: BF16 with F32 sums, d [64][N] += a [64][16] * b [16][N]. What lies in shared
// memory does so as core matrices of 8 x 16 bytes without swizzle, 128 bytes together: K-major of 8
// rows of a or columns of b, each 8 k; N-major of 8 k, each 8 columns of b.
#ifndef AGENTD_MODEL_CUDA_WGMMA_CUH_
#define AGENTD_MODEL_CUDA_WGMMA_CUH_

#include <cstdint>

#if defined(AGENTD_CUDA_EMULATED)
#include "model/cuda/emulator/wgmma.h"
#endif

namespace agentd::model::cuda {

// Core matrices lie `k_bytes` apart along K and `n_bytes` along N (of a: M). Without swizzle the
// two have the same fields whichever is the major one: k_bytes is the leading, n_bytes the stride
// offset (PTX ISA, canonical layouts: K-major ((8,m),(T,2k)):((1T,SBO),(1,LBO)), MN-major
// ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))).
__device__ __forceinline__ uint64_t WgmmaDescriptor(uint32_t shared_address, int k_bytes,
                                                    int n_bytes) {
  return uint64_t((shared_address & 0x3FFFF) >> 4) | uint64_t(k_bytes >> 4) << 16 |
         uint64_t(n_bytes >> 4) << 32;
}

// The same `bytes` further on: no carry leaves the address, which has 18 bits.
__device__ __forceinline__ uint64_t WgmmaAdvance(uint64_t descriptor, int bytes) {
  const uint32_t low = uint32_t(descriptor) + uint32_t(bytes >> 4);
  return (descriptor & 0xFFFFFFFF00000000) | low;
}

#if !defined(AGENTD_CUDA_EMULATED)

// Moves registers between warpgroups: all warps of one call, for as many registers a thread.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Run(d, a, b): d += a * b, of kTokens columns; a in registers, as MultiplyAdd has it of the warp's
// 16 rows, b K-major. Lane l of warp w of the warpgroup has rows 16w + l/4 (d[4j], d[4j+1]) and 8
// more (d[4j+2], d[4j+3]), columns 8j + l%4*2 and the next.
template <int kTokens>
struct Wgmma;

#define AGENTD_D16(i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7]), AGENTD_D8(i + 8)
#define AGENTD_D8(i)                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define AGENTD_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define AGENTD_R16 \
  AGENTD_R0 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AGENTD_R32 \
  AGENTD_R16 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define AGENTD_R40 AGENTD_R32 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define AGENTD_R48 AGENTD_R40 ", %56, %57, %58, %59, %60, %61, %62, %63"
// The operands after the sums are numbered from kTokens / 2 on.
#define AGENTD_WGMMA(tokens, sums, a0, a1, a2, a3, b, ...)                                       \
  template <>                                                                                    \
  struct Wgmma<tokens> {                                                                         \
    static __device__ __forceinline__ void Run(float (&d)[(tokens) / 2], const uint32_t (&a)[4], \
                                               uint64_t descriptor) {                            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #tokens "k16.f32.bf16.bf16 {" sums        \
                   "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b ", 1, 1, 1, 0;"                     \
                   : __VA_ARGS__                                                                 \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));               \
    }                                                                                            \
  };
AGENTD_WGMMA(32, AGENTD_R0, "%16", "%17", "%18", "%19", "%20", AGENTD_D16(0))
AGENTD_WGMMA(64, AGENTD_R16, "%32", "%33", "%34", "%35", "%36", AGENTD_D16(0), AGENTD_D16(16))
AGENTD_WGMMA(96, AGENTD_R32, "%48", "%49", "%50", "%51", "%52", AGENTD_D16(0), AGENTD_D16(16),
             AGENTD_D16(32))
AGENTD_WGMMA(112, AGENTD_R40, "%56", "%57", "%58", "%59", "%60", AGENTD_D16(0), AGENTD_D16(16),
             AGENTD_D16(32), AGENTD_D8(48))
AGENTD_WGMMA(128, AGENTD_R48, "%64", "%65", "%66", "%67", "%68", AGENTD_D16(0), AGENTD_D16(16),
             AGENTD_D16(32), AGENTD_D16(48))
#undef AGENTD_WGMMA

// The same of 64 columns with a in shared memory too, both K-major; with a in registers and b
// N-major.
__device__ __forceinline__ void WgmmaOfShared(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" AGENTD_R16
               "}, %32, %33, 1, 1, 1, 0, 0;"
               : AGENTD_D16(0), AGENTD_D16(16)
               : "l"(a), "l"(b));
}
__device__ __forceinline__ void WgmmaNMajor(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" AGENTD_R16
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : AGENTD_D16(0), AGENTD_D16(16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef AGENTD_R0
#undef AGENTD_R16
#undef AGENTD_R32
#undef AGENTD_R40
#undef AGENTD_R48
#undef AGENTD_D8
#undef AGENTD_D16

#endif  // !AGENTD_CUDA_EMULATED

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_WGMMA_CUH_
