// CUDA C++ for an ordinary compiler: included before all else in kernels (-include), it makes of
// them functions that a fiber runs (grid.h). What the kernels use of the language is here, no more.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_LANGUAGE_H_
#define AGENTD_MODEL_CUDA_EMULATOR_LANGUAGE_H_

#define cudaLaunchKernelEx ToolkitLaunchKernelEx  // what it calls does not know the types
#include <cuda_runtime.h>
#undef cudaLaunchKernelEx

#include <cuda_bf16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "model/cuda/emulator/grid.h"
#include "model/cuda/emulator/runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __maxnreg__
#undef __cluster_dims__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // its blocks take turns with it (symbols.h)
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __grid_constant__

#define threadIdx (::agentd::model::cuda::emulator::current->index)
#define blockIdx (::agentd::model::cuda::emulator::current->block->index)
// No macros: launches have members of these names.
inline const dim3& blockDim = agentd::model::cuda::emulator::block_size;
inline const dim3& gridDim = agentd::model::cuda::emulator::grid_size;

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  const std::tuple<std::remove_cv_t<Params>...> values{Params(args)...};
  return agentd::model::cuda::emulator::EnqueueKernel(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, values] { std::apply(kernel, values); });
}
template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace agentd::model::cuda::emulator {

template <typename T>
struct Shuffled {
  T value;
  int source;
  T got;
};
template <typename T>
T Shuffle(unsigned mask, T value, int source) {
  Shuffled<T> own = {value, source, value};
  Meet(Meeting::kShuffle, mask, &own, [](void* const* brought, unsigned) {
    for (int lane = 0; lane < 32; ++lane) {
      auto* to = static_cast<Shuffled<T>*>(brought[lane]);
      if (to == nullptr) continue;
      const auto* from = static_cast<const Shuffled<T>*>(brought[to->source & 31]);
      if (from == nullptr) {
        std::memset(&to->got, kPoison, sizeof(T));
      } else {
        to->got = from->value;
      }
    }
  });
  return own.got;
}

// What all lanes bring, by lane; of absent ones T().
template <typename T>
struct Everyone {
  T values[32];
  unsigned mask;
};
template <typename T>
Everyone<T> Gather(Meeting kind, unsigned mask, T value) {
  struct Own {
    T value;
    Everyone<T> all;
  } own = {value, {}};
  Meet(kind, mask, &own, [](void* const* brought, unsigned) {
    Everyone<T> all = {};
    for (int lane = 0; lane < 32; ++lane) {
      if (brought[lane] == nullptr) continue;
      all.values[lane] = static_cast<const Own*>(brought[lane])->value;
      all.mask |= 1u << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (brought[lane] != nullptr) static_cast<Own*>(brought[lane])->all = all;
    }
  });
  return own.all;
}

}  // namespace agentd::model::cuda::emulator

inline void __syncthreads() { agentd::model::cuda::emulator::WaitAtBarrier(0, 0); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  namespace e = agentd::model::cuda::emulator;
  e::Meet(e::Meeting::kSync, mask, nullptr, [](void* const*, unsigned) {});
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return agentd::model::cuda::emulator::Shuffle(mask, value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  const int lane = agentd::model::cuda::emulator::current->lane;
  return agentd::model::cuda::emulator::Shuffle(mask, value, lane ^ step);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
  const int lane = agentd::model::cuda::emulator::current->lane;
  return agentd::model::cuda::emulator::Shuffle(mask, value,
                                                lane < int(step) ? lane : lane - int(step));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step) {
  const int lane = agentd::model::cuda::emulator::current->lane;
  return agentd::model::cuda::emulator::Shuffle(mask, value,
                                                lane + int(step) > 31 ? lane : lane + int(step));
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  namespace e = agentd::model::cuda::emulator;
  const auto all = e::Gather(e::Meeting::kVote, mask, vote);
  unsigned lanes = 0;
  for (int lane = 0; lane < 32; ++lane) lanes |= unsigned(all.values[lane]) << lane;
  return lanes;
}
inline int __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  namespace e = agentd::model::cuda::emulator;
  const auto all = e::Gather(e::Meeting::kMatch, mask, value);
  unsigned lanes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((all.mask >> lane & 1) != 0 && all.values[lane] == value) lanes |= 1u << lane;
  }
  return lanes;
}
namespace agentd::model::cuda::emulator {
// `choose` of two, over all lanes of the mask.
template <typename T, typename Choose>
T Reduce(unsigned mask, T value, Choose choose) {
  const auto all = Gather(Meeting::kReduce, mask, value);
  for (int lane = 0; lane < 32; ++lane) {
    if ((all.mask >> lane & 1) != 0) value = choose(value, all.values[lane]);
  }
  return value;
}
}  // namespace agentd::model::cuda::emulator
template <std::integral T>
T __reduce_max_sync(unsigned mask, T value) {
  return agentd::model::cuda::emulator::Reduce(mask, value,
                                               [](T a, T b) { return std::max(a, b); });
}
template <std::integral T>
T __reduce_min_sync(unsigned mask, T value) {
  return agentd::model::cuda::emulator::Reduce(mask, value,
                                               [](T a, T b) { return std::min(a, b); });
}

// Fibers run one at a time.
template <std::integral T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  *to += value;
  return before;
}
template <typename T>
T __ldg(const T* p) {
  return *p;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = selectors >> (4 * i) & 15;
    unsigned byte = unsigned(bytes >> (8 * (selector & 7))) & 255;
    if ((selector & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}

template <std::integral T>
T min(T a, T b) {
  return std::min(a, b);
}
template <std::integral T>
T max(T a, T b) {
  return std::max(a, b);
}
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

#endif  // AGENTD_MODEL_CUDA_EMULATOR_LANGUAGE_H_
