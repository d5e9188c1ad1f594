// Which instruction sets the kernels are compiled for. Include before any Highway header.
#ifndef AGENTD_MODEL_CPU_SIMD_TARGETS_H_
#define AGENTD_MODEL_CPU_SIMD_TARGETS_H_

// Vectors of unknown length cannot be array elements, which the kernels' accumulators are; SSSE3
// machines run SSE4's fallback.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#endif  // AGENTD_MODEL_CPU_SIMD_TARGETS_H_
