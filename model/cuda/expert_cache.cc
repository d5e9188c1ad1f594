#include "model/cuda/expert_cache.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status.h"

namespace agentd::model::cuda {

absl::StatusOr<std::unique_ptr<ExpertCache>> ExpertCache::Create(int layers, int experts, int slots,
                                                                 int64_t slot_bytes,
                                                                 const Stream& stream) {
  std::unique_ptr<ExpertCache> cache(new ExpertCache(stream));
  cache->layers_ = layers;
  ASSIGN_OR_RETURN(cache->data_, DeviceMemory::Allocate(size_t(slots) * size_t(slot_bytes),
                                                        "the cache of experts"));
  ExpertTables& t = cache->tables_;
  t.experts = experts;
  t.slots = slots;
  t.slot_bytes = slot_bytes;
  t.data = cache->data_.as<uint8_t>();
  size_t total = 0;
  std::vector<std::pair<void**, size_t>> parts;
  auto want = [&](auto** pointer, size_t count) {
    parts.emplace_back(reinterpret_cast<void**>(pointer), total);
    total += (count * sizeof(**pointer) + 255) / 256 * 256;
  };
  want(&t.slot_of, size_t(layers) * size_t(experts));
  want(&t.key_of, size_t(slots));
  want(&t.used, size_t(slots));
  want(&t.busy, size_t(slots));
  want(&t.counts, 1);
  want(&t.slot, size_t(experts));
  want(&t.round, size_t(experts));
  want(&t.fetches, size_t(experts));
  want(&t.found, 1);
  ASSIGN_OR_RETURN(cache->memory_, DeviceMemory::Allocate(total, "the tables of cached experts"));
  for (const auto& [pointer, offset] : parts) *pointer = cache->memory_.as<uint8_t>() + offset;
  const ExpertCounts none = {.clock = kFirstUse - 1};
  RETURN_IF_ERROR(CudaStatus(cudaMemcpy(t.counts, &none, sizeof(none), cudaMemcpyHostToDevice),
                             "start the counts of cached experts"));
  RETURN_IF_ERROR(cache->Forget());
  RETURN_IF_ERROR(stream.Synchronize());
  return cache;
}

int ExpertCache::Rounds(int64_t routed) const {
  const int64_t most = std::min<int64_t>(tables_.experts, routed);
  return int((most + tables_.slots - 1) / tables_.slots);
}

absl::Status ExpertCache::Forget() {
  const auto fill = [&](void* at, int value, size_t bytes) {
    return CudaStatus(cudaMemsetAsync(at, value, bytes, stream_.get()), "empty a cache of experts");
  };
  const auto slots = size_t(tables_.slots);
  RETURN_IF_ERROR(fill(tables_.slot_of, 0xFF,
                       size_t(layers_) * size_t(tables_.experts) * sizeof(*tables_.slot_of)));
  RETURN_IF_ERROR(fill(tables_.key_of, 0xFF, slots * sizeof(*tables_.key_of)));
  RETURN_IF_ERROR(fill(tables_.used, 0, slots * sizeof(*tables_.used)));
  return fill(tables_.busy, 0, slots * sizeof(*tables_.busy));
}

absl::StatusOr<ExpertCounts> ExpertCache::Counts() const {
  RETURN_IF_ERROR(stream_.Synchronize());
  ExpertCounts counts;
  RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(&counts, tables_.counts, sizeof(counts), cudaMemcpyDeviceToHost),
                 "read the counts of cached experts"));
  return counts;
}

}  // namespace agentd::model::cuda
