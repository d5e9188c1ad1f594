// Equal pieces of device memory, cut from larger allocations and handed out again and again:
// sequences of very different lengths share it. What was allocated stays until the pool goes.
#ifndef AGENTD_MODEL_CUDA_PAGE_POOL_H_
#define AGENTD_MODEL_CUDA_PAGE_POOL_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "model/cuda/device.h"

namespace agentd::model::cuda {

class PagePool {
 public:
  // Grows by pages_at_once pages; `what` names them in errors.
  PagePool(size_t page_bytes, int pages_at_once, std::string what)
      : page_bytes_((page_bytes + 255) / 256 * 256),
        pages_at_once_(pages_at_once),
        what_(std::move(what)) {}

  absl::StatusOr<uint8_t*> Take() {
    if (free_.empty()) {
      auto slab = DeviceMemory::Allocate(page_bytes_ * size_t(pages_at_once_), what_);
      if (absl::IsResourceExhausted(slab.status())) {
        return Error(absl::StatusCode::kResourceExhausted,
                     "{}; keep more of it for sequences (--sequence-gib)", Text(slab.status()));
      }
      if (!slab.ok()) return slab.status();
      for (int i = pages_at_once_ - 1; i >= 0; --i)
        free_.push_back(slab->as<uint8_t>() + size_t(i) * page_bytes_);
      slabs_.push_back(std::move(*slab));
    }
    uint8_t* page = free_.back();
    free_.pop_back();
    return page;
  }
  void Give(uint8_t* page) { free_.push_back(page); }

 private:
  const size_t page_bytes_;
  const int pages_at_once_;
  const std::string what_;
  std::vector<DeviceMemory> slabs_;
  std::vector<uint8_t*> free_;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_PAGE_POOL_H_
