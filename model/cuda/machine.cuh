// What all kernels need of the machine beneath C++, an instruction a function: shared memory,
// barriers, waiting for other kernels, number formats. More for tensor cores: tensor.cuh,
// barrier.cuh, wgmma.cuh. No other file has inline PTX, so that a CPU can stand in for the machine
// (emulator/).
#ifndef AGENTD_MODEL_CUDA_MACHINE_CUH_
#define AGENTD_MODEL_CUDA_MACHINE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#if defined(AGENTD_CUDA_EMULATED)
#include "model/cuda/emulator/machine.h"
#else

namespace agentd::model::cuda {

// A block's dynamic shared memory, which begins with a T.
template <typename T>
__device__ inline T* SharedMemory() {
  extern __shared__ __align__(128) uint8_t shared_memory[];
  return reinterpret_cast<T*>(shared_memory);
}

// Every thread calls it before its first access to anything that an earlier kernel wrote or reads.
__device__ inline void GridDependencyWait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel start; first in a kernel. It still waits for this one's end before it uses
// what this one writes.
__device__ inline void GridDependencyLaunch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// `threads` threads of the block, in whole warps. Barrier 0 is __syncthreads' too; 1 to 15.
__device__ inline void Barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// kThreads threads of the block, in whole warps; `barrier`: 1 to 15.
template <int kThreads>
__device__ inline void SyncSome(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// Two BF16 in one word, the first in the lower half; nearest, ties to even: the bits of FloatToBf16
// for every number.
__device__ inline uint32_t PackBf16(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
// max(0, .) of them.
__device__ inline uint32_t PackReluBf16(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
// Products rounded to BF16; subnormal ones are kept.
__device__ inline uint32_t MultiplyBf16(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
// Two E4M3 codes, nearest even, saturating: FloatToE4M3 for |value| <= 464.
__device__ inline uint16_t PackE4M3(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}
__device__ inline void UnpackE4M3(uint16_t codes, float* low, float* high) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
  asm("{\n\t.reg .b16 a, b;\n\tmov.b32 {a, b}, %2;\n\tcvt.f32.f16 %0, a;\n\tcvt.f32.f16 %1, "
      "b;\n\t}"
      : "=f"(*low), "=f"(*high)
      : "r"(halves));
}
// 1 / x within a unit in the last place or so; x and 1 / x no subnormal.
__device__ inline float ReciprocalNear(float x) {
  float near;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(x));
  return near;
}

// 2^x within two units in the last place or so; below 2^-126 it is 0.
__device__ inline float PowerOfTwoNear(float x) {
  float near;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(x));
  return near;
}

// *p if `wanted`, else zero: without a branch, so that many loads are under way at once.
__device__ inline float LoadIf(bool wanted, const float* p) {
  float v;
  asm volatile(
      "{\n\t.reg .pred q;\n\tsetp.ne.s32 q, %2, 0;\n\tmov.b32 %0, 0;\n\t"
      "@q ld.global.f32 %0, [%1];\n\t}"
      : "=f"(v)
      : "l"(p), "r"(int(wanted)));
  return v;
}
__device__ inline float2 LoadIf(bool wanted, const float2* p) {
  float2 v;
  asm volatile(
      "{\n\t.reg .pred q;\n\tsetp.ne.s32 q, %3, 0;\n\tmov.b32 %0, 0;\n\tmov.b32 %1, 0;\n\t"
      "@q ld.global.v2.f32 {%0, %1}, [%2];\n\t}"
      : "=f"(v.x), "=f"(v.y)
      : "l"(p), "r"(int(wanted)));
  return v;
}
__device__ inline float4 LoadIf(bool wanted, const float4* p) {
  float4 v;
  asm volatile(
      "{\n\t.reg .pred q;\n\tsetp.ne.s32 q, %5, 0;\n\tmov.b32 %0, 0;\n\tmov.b32 %1, 0;\n\t"
      "mov.b32 %2, 0;\n\tmov.b32 %3, 0;\n\t@q ld.global.v4.f32 {%0, %1, %2, %3}, [%4];\n\t}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "l"(p), "r"(int(wanted)));
  return v;
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_CUDA_EMULATED

namespace agentd::model::cuda {

// Runs body(true) after GridDependencyWait and, where it `rehearses`, body(false) before: a kernel
// of a few blocks takes as long as its instructions take to come from memory, and so they are
// there. body(false) must touch no memory that another kernel uses. All threads of the block call;
// `body` ends with no thread in a barrier.
template <typename Body>
__device__ inline void Rehearsed(bool rehearses, const Body& body) {
#pragma unroll 1
  for (int run = rehearses ? 0 : 1; run < 2; ++run) {
    if (run == 1) GridDependencyWait();
    body(run == 1);
    if (run == 0) __syncthreads();
  }
}
// Rows of which every block runs, and waits, at once.
inline constexpr int kRehearsedRows = 32;

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_MACHINE_CUH_
