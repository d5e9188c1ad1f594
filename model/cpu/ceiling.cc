#include "model/cpu/ceiling.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.h"
#include "model/cpu/buffer.h"
#include "model/cpu/memory.h"
#include "model/cpu/simd_targets.h"
#include "model/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/cpu/ceiling.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace agentd::model {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int kChains =
    12;  // more than latency x issue width of any current core, fewer than AVX2's registers

int64_t RunMultiplyAddsTarget(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.999f);
  const auto addend = hn::Set(d, 0.5f);
  decltype(hn::Zero(d)) chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = hn::Set(d, static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) chain[i] = hn::MulAdd(chain[i], factor, addend);
  }
  auto sum = chain[0];
  for (int i = 1; i < kChains; ++i) sum = hn::Add(sum, chain[i]);
  *sink += hn::GetLane(sum);
  return rounds * kChains * static_cast<int64_t>(hn::Lanes(d));
}

float ReadOnceTarget(const float* data, size_t count) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto a = hn::Zero(d);
  auto b = hn::Zero(d);
  auto c = hn::Zero(d);
  auto e = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    a = hn::Add(a, hn::LoadU(d, data + i));
    b = hn::Add(b, hn::LoadU(d, data + i + lanes));
    c = hn::Add(c, hn::LoadU(d, data + i + 2 * lanes));
    e = hn::Add(e, hn::LoadU(d, data + i + 3 * lanes));
  }
  return hn::GetLane(hn::Add(hn::Add(a, b), hn::Add(c, e)));
}

}  // namespace HWY_NAMESPACE
}  // namespace agentd::model
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentd::model {

HWY_EXPORT(RunMultiplyAddsTarget);
HWY_EXPORT(ReadOnceTarget);

int64_t RunMultiplyAdds(int64_t rounds, float* sink) {
  return HWY_DYNAMIC_DISPATCH(RunMultiplyAddsTarget)(rounds, sink);
}
float ReadOnce(const float* data, size_t count) {
  return HWY_DYNAMIC_DISPATCH(ReadOnceTarget)(data, count);
}

namespace {

// `work` once as each of the pool's workers.
double Seconds(ThreadPool& pool, const std::function<void(int)>& work) {
  const auto begin = std::chrono::steady_clock::now();
  pool.Run(pool.threads(), [&](int task, int) { work(task); });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

absl::StatusOr<Ceilings> MeasureCeilings(int threads) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create(threads));
  const size_t count = size_t(pool->threads());
  constexpr size_t kTotalFloats = 64u << 20;  // in all: beyond most caches, whatever the threads
  RETURN_IF_ERROR(CheckMemory("the memory measurement", kTotalFloats * sizeof(float)));
  const size_t share = kTotalFloats / count;
  Buffer<float> memory(share * count);
  pool->Run(int(count),
            [&](int i, int) { std::fill_n(memory.data() + size_t(i) * share, share, 1.0f); });
  Ceilings best;
  std::vector<float> sinks(count * 16);
  std::vector<int64_t> counts(count, 0);
  for (int repeat = 0; repeat < 3; ++repeat) {
    const double compute = Seconds(*pool, [&](int i) {
      counts[size_t(i)] = RunMultiplyAdds(20'000'000, &sinks[size_t(i) * 16]);
    });
    int64_t total = 0;
    for (int64_t n : counts) total += n;
    best.multiply_adds_per_s =
        std::max(best.multiply_adds_per_s, static_cast<double>(total) / compute);
    const double read = Seconds(*pool, [&](int i) {
      sinks[size_t(i) * 16] += ReadOnce(memory.data() + size_t(i) * share, share);
    });
    best.bytes_per_s = std::max(best.bytes_per_s, double(share * count * sizeof(float)) / read);
  }
  return best;
}

}  // namespace agentd::model
#endif  // HWY_ONCE
