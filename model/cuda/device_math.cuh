// What the elementwise kernels share. Rows are worked on in octets: thread o of a row's CTA (or
// lane o of a warp) has channels [8 o, 8 o + 8), zeros beyond the row's end, wherever the memory is
// aligned or not; so sums have one order, and a block of 128, 64 or 32 channels is 16, 8 or 4
// neighbouring lanes.
#ifndef AGENTD_MODEL_CUDA_DEVICE_MATH_CUH_
#define AGENTD_MODEL_CUDA_DEVICE_MATH_CUH_

#include <cstdint>

#include "model/cuda/batch.h"
#include "model/cuda/machine.cuh"
#include "model/math.h"
#include "model/numeric.h"

namespace agentd::model::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Octet {
  float v[8];
};

__device__ inline bool Aligned(const void* p, int bytes) {
  return (reinterpret_cast<uintptr_t>(p) & static_cast<uintptr_t>(bytes - 1)) == 0;
}

__device__ inline float LowBf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float HighBf16(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

template <bool kLow>
__device__ inline float Round(float value) {
  if constexpr (kLow) return LowBf16(PackBf16(value, 0.0f));
  return value;
}
template <bool kLow>
__device__ inline void RoundOctet(Octet* o) {
  if constexpr (kLow) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const uint32_t pair = PackBf16(o->v[e], o->v[e + 1]);
      o->v[e] = LowBf16(pair);
      o->v[e + 1] = HighBf16(pair);
    }
  }
}

// Loads and stores of the first `count` of 8 numbers (none if count <= 0).
__device__ inline Octet LoadFloats(const float* p, int count) {
  Octet o;
  if (count >= 8 && Aligned(p, 16)) {
    const float4 a = *reinterpret_cast<const float4*>(p);
    const float4 b = *reinterpret_cast<const float4*>(p + 4);
    o = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    return o;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) o.v[e] = e < count ? p[e] : 0.0f;
  return o;
}
__device__ inline void StoreFloats(float* p, int count, const Octet& o) {
  if (count >= 8 && Aligned(p, 16)) {
    *reinterpret_cast<float4*>(p) = make_float4(o.v[0], o.v[1], o.v[2], o.v[3]);
    *reinterpret_cast<float4*>(p + 4) = make_float4(o.v[4], o.v[5], o.v[6], o.v[7]);
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < count) p[e] = o.v[e];
  }
}
// Eight BF16, still packed.
struct PackedOctet {
  uint32_t w[4];
};
__device__ inline PackedOctet LoadPacked(const uint16_t* p, int count) {
  if (count >= 8 && Aligned(p, 16)) {
    const uint4 a = *reinterpret_cast<const uint4*>(p);
    return {{a.x, a.y, a.z, a.w}};
  }
  PackedOctet o;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const uint32_t low = 2 * e < count ? p[2 * e] : 0u;
    const uint32_t high = 2 * e + 1 < count ? p[2 * e + 1] : 0u;
    o.w[e] = high << 16 | low;
  }
  return o;
}
__device__ inline Octet Unpack(const PackedOctet& o) {
  return {{LowBf16(o.w[0]), HighBf16(o.w[0]), LowBf16(o.w[1]), HighBf16(o.w[1]), LowBf16(o.w[2]),
           HighBf16(o.w[2]), LowBf16(o.w[3]), HighBf16(o.w[3])}};
}
__device__ inline void StoreBf16s(uint16_t* p, int count, const Octet& o) {
  const uint32_t bits[4] = {PackBf16(o.v[0], o.v[1]), PackBf16(o.v[2], o.v[3]),
                            PackBf16(o.v[4], o.v[5]), PackBf16(o.v[6], o.v[7])};
  if (count >= 8 && Aligned(p, 16)) {
    *reinterpret_cast<uint4*>(p) = make_uint4(bits[0], bits[1], bits[2], bits[3]);
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < count) p[e] = static_cast<uint16_t>(bits[e / 2] >> (e % 2 * 16));
  }
}

// Elements [at, at + count) of an array of Values.
template <bool kLow>
__device__ inline Octet LoadValues(const void* base, int64_t at, int count) {
  if constexpr (kLow) return Unpack(LoadPacked(static_cast<const uint16_t*>(base) + at, count));
  return LoadFloats(static_cast<const float*>(base) + at, count);
}
template <bool kLow>
__device__ inline void StoreValues(void* base, int64_t at, int count, const Octet& o) {
  if constexpr (kLow) {
    StoreBf16s(static_cast<uint16_t*>(base) + at, count, o);
  } else {
    StoreFloats(static_cast<float*>(base) + at, count, o);
  }
}

__device__ inline uint2 LoadIf(bool wanted, const uint2* p) {
  const float2 v = LoadIf(wanted, reinterpret_cast<const float2*>(p));
  return make_uint2(__float_as_uint(v.x), __float_as_uint(v.y));
}
__device__ inline float Plus(float a, float b) { return a + b; }
__device__ inline float4 Plus(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
template <bool kLow>
__device__ inline float RoundAll(float a) {
  return Round<kLow>(a);
}
template <bool kLow>
__device__ inline float4 RoundAll(float4 a) {
  return make_float4(Round<kLow>(a.x), Round<kLow>(a.y), Round<kLow>(a.z), Round<kLow>(a.w));
}
__device__ inline Octet Plus(const Octet& a, const Octet& b) {
  Octet sum;
#pragma unroll
  for (int e = 0; e < 8; ++e) sum.v[e] = a.v[e] + b.v[e];
  return sum;
}

// Whether any four numbers of a row can be loaded together.
inline bool Aligned16(const Planes& p) {
  return reinterpret_cast<uintptr_t>(p.data) % 16 == 0 && p.row_stride % 4 == 0 &&
         (p.planes == 1 || p.plane_stride % 4 == 0);
}

// None of them, where they are not `wanted`: then none is loaded, and sums are zero.
__device__ inline Planes PlanesIf(bool wanted, Planes p) {
  if (!wanted) p.planes = 0;
  return p;
}

// Of each plane of a product the number(s) at `at` in the first: all that are `wanted` are loaded
// when it is made, so make all that a thread needs before it asks for a sum.
template <typename T, int kTogether>
struct PlaneLoads {
  const float* at;
  int planes;
  int64_t stride;
  T v[kTogether];

  PlaneLoads() = default;
  __device__ inline PlaneLoads(const Planes& p, const float* first, bool wanted)
      : at(first), planes(p.planes), stride(p.plane_stride) {
    Load(0, wanted);
  }
  __device__ inline T Sum() {
    T sum = v[0];
    AddTo(&sum, 1);
    for (int first = kTogether; first < planes; first += kTogether) {
      Load(first, true);
      sum = Plus(sum, v[0]);
      AddTo(&sum, first + 1);
    }
    return sum;
  }

 private:
  __device__ inline void Load(int first, bool wanted) {
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      v[n] = LoadIf(wanted && first + n < planes,
                    reinterpret_cast<const T*>(at + (first + n) * stride));
    }
  }
  // Adds v[1], ...; v[1] is of plane `second`.
  __device__ inline void AddTo(T* sum, int second) const {
#pragma unroll
    for (int n = 1; n < kTogether; ++n) {
      if (second + n - 1 < planes) *sum = Plus(*sum, v[n]);
    }
  }
};

// A product's number(s) at [row][i], where it is not rounded.
__device__ inline const float* PlaneOf(const Planes& p, int64_t row, int i) {
  return static_cast<const float*>(p.data) + row * p.row_stride + i;
}
__device__ inline float PlaneAt(const Planes& p, int64_t row, int i) {
  return PlaneLoads<float, 4>(p, PlaneOf(p, row, i), true).Sum();
}
// The first `count` of eight, which are loaded when it is made.
template <int kTogether, bool kRounded = false>
struct OctetLoads {
  int count;
  bool wide;
  PlaneLoads<float4, kTogether> low;
  PlaneLoads<float4, kTogether> high;

  OctetLoads() = default;
  __device__ inline OctetLoads(const Planes& p, int64_t row, int i, int number)
      : OctetLoads(p, PlaneOf(p, row, i), number) {}
  __device__ inline Octet Sum(const Planes& p) {
    Octet o;
    if (wide) {
      const float4 a = low.Sum();
      const float4 b = high.Sum();
      o = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
      return o;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e)
      o.v[e] = e < count ? PlaneLoads<float, 4>(p, low.at + e, true).Sum() : 0.0f;
    return o;
  }

 private:
  __device__ inline OctetLoads(const Planes& p, const float* at, int number)
      : count(number),
        wide(number >= 8 && Aligned(at, 16) && (p.plane_stride & 3) == 0),
        low(p, at, wide),
        high(p, at + 4, wide) {}
};
template <int kTogether>
struct OctetLoads<kTogether, true> {
  const uint16_t* at;
  int count;
  bool wide;
  float4 bits;

  OctetLoads() = default;
  __device__ inline OctetLoads(const Planes& p, int64_t row, int i, int number)
      : at(static_cast<const uint16_t*>(p.data) + row * p.row_stride + i),
        count(number),
        wide(number >= 8 && Aligned(at, 16)),
        bits(LoadIf(wide, reinterpret_cast<const float4*>(at))) {}
  __device__ inline Octet Sum(const Planes&) const {
    if (!wide) return Unpack(LoadPacked(at, count));
    return Unpack({{__float_as_uint(bits.x), __float_as_uint(bits.y), __float_as_uint(bits.z),
                    __float_as_uint(bits.w)}});
  }
};
__device__ inline Octet PlanesAt(const Planes& p, int64_t row, int i, int count) {
  return OctetLoads<4>(p, row, i, count).Sum(p);
}

// Over groups of kLanes neighbouring lanes, the same in each of them; all lanes of the warp call.
template <int kLanes>
__device__ inline float GroupMax(float value) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
template <int kLanes>
__device__ inline float GroupSum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step >= 1; step /= 2)
    value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Over the first `threads` of a CTA (whole warps, 1024 at most), the same in each: a tree whose
// shape does not depend on `threads`, as absent ones add nothing. shared: [32], not used again by
// another sum without a barrier between.
__device__ inline float BlockSum(float value, float* shared, int threads, int barrier = 0) {
  value = GroupSum<32>(value);
  const int warp = int(threadIdx.x) / 32;
  const int lane = int(threadIdx.x) % 32;
  if (threads <= 32) return value;
  if (lane == 0) shared[warp] = value;
  Barrier(barrier, threads);
  return GroupSum<32>(lane < threads / 32 ? shared[lane] : 0.0f);
}

__device__ inline float SumSquares(const Octet& o) {
  float sum = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) sum += o.v[e] * o.v[e];
  return sum;
}
__device__ inline float LargestMagnitude(const Octet& o) {
  float amax = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) amax = fmaxf(amax, fabsf(o.v[e]));
  return amax;
}

// 1 / x, as a division rounds it, for x from 2^-126 to below 2^126: without a division's branch for
// the other numbers, which keeps several from running side by side.
__device__ inline float ReciprocalInRange(float x) {
  const float near = ReciprocalNear(x);
  return __fmaf_rn(__fmaf_rn(-x, near, 1.0f), near, near);
}

__device__ inline float RmsFactor(float sum_squares, int n, float eps) {
  return 1.0f / sqrtf(sum_squares / static_cast<float>(n) + eps);
}
template <bool kLow>
__device__ inline void ScaleByNorm(Octet* o, float factor, const Octet& weight) {
#pragma unroll
  for (int e = 0; e < 8; ++e) o->v[e] = o->v[e] * factor * weight.v[e];
  RoundOctet<kLow>(o);
}

// Rounds to FP8 with a scale per 128 channels. All lanes of the warp call.
__device__ inline void RoundFp8(Octet* o) {
  const int exponent = Fp8ScaleExponent(GroupMax<16>(LargestMagnitude(*o)));
  const float scale = PowerOfTwo(exponent);
  const float inverse = PowerOfTwo(-exponent);
#pragma unroll
  for (int e = 0; e < 8; e += 2) {
    const uint16_t codes = PackE4M3(o->v[e] * inverse, o->v[e + 1] * inverse);
    float low;
    float high;
    UnpackE4M3(codes, &low, &high);
    o->v[e] = low * scale;
    o->v[e + 1] = high * scale;
  }
}

// The same for one channel; `largest`: the magnitude of the largest of the 128.
__device__ inline float RoundFp8(float x, float largest) {
  const int exponent = Fp8ScaleExponent(largest);
  float code;
  float none;
  UnpackE4M3(PackE4M3(x * PowerOfTwo(-exponent), 0.0f), &code, &none);
  return code * PowerOfTwo(exponent);
}

// Turns the rotary channels [plain, n) among channels [i, i + 8); plain and n are even.
template <bool kLow>
__device__ inline void Rotate(Octet* o, int i, int plain, int n, const float* cosine,
                              const float* sine) {
  if (i + 8 <= plain) return;
#pragma unroll
  for (int e = 0; e < 8; e += 2) {
    if (i + e < plain || i + e >= n) continue;
    const int pair = (i + e - plain) / 2;
    const float a = o->v[e];
    const float b = o->v[e + 1];
    const float c = cosine[pair];
    const float s = sine[pair];
    o->v[e] = Round<kLow>(a * c - b * s);
    o->v[e + 1] = Round<kLow>(a * s + b * c);
  }
}

// Times the Sylvester matrix (without its scale), channels 8 (lane + 32 k) + e of the warp; n is a
// power of two. The order of the steps is HadamardBf16's.
template <int kOctets>
__device__ inline void Hadamard(Octet (&x)[kOctets], int n) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int step = 1; step < 8; step *= 2) {
    if (step >= n) break;
#pragma unroll
    for (int k = 0; k < kOctets; ++k) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if ((e & step) != 0) continue;
        const float a = x[k].v[e];
        const float b = x[k].v[e + step];
        x[k].v[e] = a + b;
        x[k].v[e + step] = a - b;
      }
    }
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    if (8 * step >= n) break;
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int k = 0; k < kOctets; ++k) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float other = __shfl_xor_sync(kAllLanes, x[k].v[e], step);
        x[k].v[e] = upper ? other - x[k].v[e] : x[k].v[e] + other;
      }
    }
  }
#pragma unroll
  for (int step = 1; step < kOctets; step *= 2) {
    if (256 * step >= n) break;
#pragma unroll
    for (int k = 0; k < kOctets; ++k) {
      if ((k & step) != 0) continue;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float a = x[k].v[e];
        const float b = x[k + step].v[e];
        x[k].v[e] = a + b;
        x[k + step].v[e] = a - b;
      }
    }
  }
}

// The angles of an octet, loaded before its numbers are there. `wide`: whole octets are turned, and
// all is aligned; otherwise Rotate loads them itself.
struct OctetAngles {
  bool wide;
  bool turns;
  float4 cosine;
  float4 sine;

  OctetAngles() = default;
  __device__ inline OctetAngles(int i, int plain, int n, const float* cosines, const float* sines)
      : wide(plain % 8 == 0 && n % 8 == 0 && Aligned(cosines, 16) && Aligned(sines, 16)),
        turns(wide && i >= plain && i < n),
        cosine(LoadIf(turns, reinterpret_cast<const float4*>(cosines + (i - plain) / 2))),
        sine(LoadIf(turns, reinterpret_cast<const float4*>(sines + (i - plain) / 2))) {}
};
template <bool kLow>
__device__ inline void Rotate(Octet* o, int i, int plain, int n, const float* cosine,
                              const float* sine, const OctetAngles& angles) {
  if (!angles.wide) {
    Rotate<kLow>(o, i, plain, n, cosine, sine);
    return;
  }
  if (!angles.turns) return;
  const float c[4] = {angles.cosine.x, angles.cosine.y, angles.cosine.z, angles.cosine.w};
  const float s[4] = {angles.sine.x, angles.sine.y, angles.sine.z, angles.sine.w};
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const float a = o->v[2 * pair];
    const float b = o->v[2 * pair + 1];
    o->v[2 * pair] = Round<kLow>(a * c[pair] - b * s[pair]);
    o->v[2 * pair + 1] = Round<kLow>(a * s[pair] + b * c[pair]);
  }
}

// What FloatToE2M1 keeps of |value| <= 6.
__device__ inline float RoundE2M1(float value) {
  const float a = fabsf(value);
  const float step = a < 2 ? 0.5f : a < 4 ? 1.0f : 2.0f;
  const float inverse = a < 2 ? 2.0f : a < 4 ? 1.0f : 0.5f;
  return copysignf(rintf(a * inverse) * step, value);
}

// Bytes of KV entries and indexer keys (model/kv_format.h), by octets: channels [i, i + 8) of one.
// All lanes of the warp call, with i a multiple of 8 that grows by 8 from lane to lane.
template <bool kLow>
__device__ inline void EncodeEntry(const StateShape& s, int i, const Octet& o, uint8_t* entry) {
  const int count = min(8, s.channels - i);
  if constexpr (!kLow) {
    StoreFloats(reinterpret_cast<float*>(entry) + i, count, o);
    return;
  }
  const int plain = s.channels - s.rotary;
  const int plain_count = min(8, plain - i);
  float amax = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < plain_count) amax = fmaxf(amax, fabsf(o.v[e]));
  }
  const int exponent = Fp8ScaleExponent(GroupMax<8>(amax));
  if (count <= 0) return;
  const int scales_end = plain + (plain + 63) / 64;
  const int rotary_begin = (scales_end + 7) / 8 * 8;
  if (i == 0) {
    for (int b = scales_end; b < rotary_begin; ++b) entry[b] = 0;
  }
  if (plain_count > 0) {
    const float inverse = PowerOfTwo(-exponent);
    uint32_t codes[2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const float* v = o.v + 4 * w;
      codes[w] = PackE4M3(v[0] * inverse, v[1] * inverse) |
                 uint32_t{PackE4M3(v[2] * inverse, v[3] * inverse)} << 16;
    }
    if (plain_count == 8 && Aligned(entry + i, 8)) {
      *reinterpret_cast<uint2*>(entry + i) = make_uint2(codes[0], codes[1]);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (e < plain_count) entry[i + e] = static_cast<uint8_t>(codes[e / 4] >> (e % 4 * 8));
      }
    }
    if (i % 64 == 0) entry[plain + i / 64] = static_cast<uint8_t>(exponent + 127);
  }
  if (plain_count >= count) return;
  uint8_t* rotary = entry + rotary_begin + 2 * (i - plain);
#pragma unroll
  for (int e = 0; e < 8; e += 2) {
    if (e < plain_count || e >= count) continue;
    const uint32_t pair = PackBf16(o.v[e], o.v[e + 1]);
    if (Aligned(rotary + 2 * e, 4)) {
      *reinterpret_cast<uint32_t*>(rotary + 2 * e) = pair;
    } else {
#pragma unroll
      for (int b = 0; b < 4; ++b) rotary[2 * e + b] = static_cast<uint8_t>(pair >> (8 * b));
    }
  }
}

template <bool kLow>
__device__ inline void EncodeIndexKey(int channels, int i, const Octet& o, uint8_t* key) {
  const int count = min(8, channels - i);
  if constexpr (!kLow) {
    StoreFloats(reinterpret_cast<float*>(key) + i, count, o);
    return;
  }
  const int exponent = Fp4ScaleExponent(GroupMax<4>(LargestMagnitude(o)));
  if (count <= 0) return;
  const float inverse = PowerOfTwo(-exponent);
  uint32_t codes = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) codes |= uint32_t{FloatToE2M1(o.v[e] * inverse)} << (4 * e);
  if (count == 8 && Aligned(key + i / 2, 4)) {
    *reinterpret_cast<uint32_t*>(key + i / 2) = codes;
  } else {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      if (2 * b < count) key[i / 2 + b] = static_cast<uint8_t>(codes >> (8 * b));
    }
  }
  if (i % 32 == 0) key[channels / 2 + i / 32] = static_cast<uint8_t>(exponent + 127);
}

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_DEVICE_MATH_CUH_
