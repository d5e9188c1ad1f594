#include "model/cuda/expert_placement.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/status.h"
#include "model/cuda/expert_lookup.h"

namespace agentd::model::cuda {
namespace {

// A layer's experts are six allocations, each rounded up to the device's pages.
constexpr int64_t kLayerRounding = 6 * (int64_t{2} << 20);

class Placer {
 public:
  Placer(const EngineOptions& options, const ExpertSizes& sizes, int64_t free_bytes)
      : options_(options),
        sizes_(sizes),
        free_bytes_(free_bytes),
        state_bytes_(options.state_bytes > 0 ? options.state_bytes : kDefaultStateBytes),
        layers_(int(sizes.expert_bytes.size())),
        slot_bytes_(*std::max_element(sizes.expert_bytes.begin(), sizes.expert_bytes.end())) {}

  absl::StatusOr<ExpertPlacement> Run() const {
    RETURN_IF_ERROR(CheckOptions());
    int count = options_.host_expert_layers;
    if (count == kAutoHostExperts) count = LeastLayers();
    ExpertPlacement placement = {.on_host = HostLayers(sizes_, count)};
    const int64_t resident = Resident(count);
    if (count == 0) {
      if (resident > free_bytes_) return TooLarge(count, 0);
      return placement;
    }
    placement.slot_bytes = slot_bytes_;
    // A given cache may take what is meant for sequences, others leave that.
    const int64_t left = free_bytes_ - state_bytes_ - resident;
    const int64_t cache = options_.expert_cache_bytes;
    const int64_t slots = (cache > 0 ? cache : std::max<int64_t>(left, 0)) / slot_bytes_;
    if (slots < sizes_.chosen || (cache > 0 && resident + cache > free_bytes_))
      return TooLarge(count, std::max(cache, LeastCache()));
    placement.slots =
        int(std::min({slots, int64_t(count) * sizes_.experts, int64_t{kMaxExpertSlots}}));
    return placement;
  }

 private:
  // Of the experts of one token.
  int64_t LeastCache() const { return sizes_.chosen * slot_bytes_; }

  absl::Status CheckOptions() const {
    if (options_.host_expert_layers > layers_) {
      return InvalidArgument(
          "experts of {} layers in host memory (--host-experts): this model has {}{}",
          options_.host_expert_layers, layers_, sizes_.mtp ? ", the MTP block's counted" : "");
    }
    const int64_t cache = options_.expert_cache_bytes;
    if (cache > 0 && options_.host_expert_layers == 0) {
      return InvalidArgument(
          "a cache of {} bytes for experts (--expert-cache-gib), but none are in host memory "
          "(--host-experts 0)",
          cache);
    }
    if (cache > 0 && cache < LeastCache()) {
      return InvalidArgument(
          "a cache of {} bytes for experts (--expert-cache-gib): a token needs {} experts of {} "
          "bytes, {} bytes ({:.3f} GiB) at least",
          cache, sizes_.chosen, slot_bytes_, LeastCache(), double(LeastCache()) / (1 << 30));
    }
    return absl::OkStatus();
  }

  // Weights on the device if `count` layers' experts are not.
  int64_t Resident(int count) const {
    const std::vector<bool> on_host = HostLayers(sizes_, count);
    int64_t bytes = sizes_.other_bytes;
    for (int i = 0; i < layers_; ++i) {
      if (!on_host[size_t(i)])
        bytes += sizes_.experts * sizes_.expert_bytes[size_t(i)] + kLayerRounding;
    }
    return bytes;
  }

  // As few as leave room for the state and a cache: one that holds a layer, so that batches of many
  // rows are done in one round, if that can be.
  int LeastLayers() const {
    const int64_t room = free_bytes_ - state_bytes_;
    if (Resident(0) <= room) return 0;
    const int64_t cache = options_.expert_cache_bytes > 0 ? options_.expert_cache_bytes
                                                          : sizes_.experts * slot_bytes_;
    for (int count = 1; count < layers_; ++count) {
      if (Resident(count) + cache <= room) return count;
    }
    return layers_;
  }

  std::string Mend(int count, int64_t cache) const {
    if (count < layers_) return "put more there (--host-experts)";
    if (Resident(count) + cache <= free_bytes_) return "keep less for sequences (--sequence-gib)";
    return "this model needs a larger device";
  }

  absl::Status TooLarge(int count, int64_t cache) const {
    auto gb = [](int64_t bytes) { return double(bytes) / 1e9; };
    return Error(
        absl::StatusCode::kResourceExhausted,
        "weights take {:.3f} GB of device memory with the experts of {} of {} layers in host "
        "memory{}, and {:.3f} GB are free{}: {}",
        gb(Resident(count)), count, layers_,
        cache > 0 ? fmt::format(", their cache {:.3f} GB at least", gb(cache)) : "",
        gb(free_bytes_),
        cache > 0 ? fmt::format(", of which {:.3f} GB are kept for sequences (--sequence-gib)",
                                gb(state_bytes_))
                  : "",
        Mend(count, cache));
  }

  const EngineOptions& options_;
  const ExpertSizes& sizes_;
  const int64_t free_bytes_;
  const int64_t state_bytes_;
  const int layers_;
  const int64_t slot_bytes_;
};

}  // namespace

std::vector<bool> HostLayers(const ExpertSizes& sizes, int count) {
  const int all = int(sizes.expert_bytes.size());
  std::vector<bool> on_host(static_cast<size_t>(all));
  if (count > 0 && sizes.mtp) {
    on_host.back() = true;
    --count;
  }
  const int layers = all - (sizes.mtp ? 1 : 0);
  for (int i = 0; i < layers; ++i) {
    if ((i + 1) * count / layers > i * count / layers) on_host[size_t(i)] = true;
  }
  return on_host;
}

absl::StatusOr<ExpertPlacement> PlaceExperts(const EngineOptions& options, const ExpertSizes& sizes,
                                             int64_t free_bytes) {
  return Placer(options, sizes, free_bytes).Run();
}

}  // namespace agentd::model::cuda
