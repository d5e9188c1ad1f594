#include "model/cpu/top_k.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "model/cpu/kernels.h"

namespace agentd::model {
namespace {

constexpr int kAtOnce = 64;    // scores between two looks at the room left
constexpr size_t kSlack = 16;  // what CollectRanked may write beyond

}  // namespace

void TopK::Begin(int k) {
  k_ = static_cast<size_t>(k);
  least_ = std::numeric_limits<int32_t>::min();
  count_ = 0;
  // The more room, the fewer compactions, and the later the bound rises.
  room_ = 3 * k_ + 2 * kAtOnce;
  ranks_.resize(room_ + kSlack);
  entries_.resize(room_ + kSlack);
}

void TopK::Add(const float* scores, int n, int64_t first) {
  for (int i = 0; i < n; i += kAtOnce) {
    if (count_ + kAtOnce > room_) Compact();
    count_ += static_cast<size_t>(CollectRanked(scores + i, std::min(kAtOnce, n - i),
                                                static_cast<int32_t>(first + i), least_,
                                                ranks_.data() + count_, entries_.data() + count_));
  }
}

void TopK::Add(const TopK& later) {
  for (size_t i = 0; i < later.count_; ++i) {
    if (later.ranks_[i] < least_) continue;
    if (count_ == room_) Compact();
    ranks_[count_] = later.ranks_[i];
    entries_[count_++] = later.entries_[i];
  }
}

// Only the k best stay, in their order.
void TopK::Compact() {
  if (count_ <= k_) return;
  order_.assign(ranks_.begin(), ranks_.begin() + static_cast<std::ptrdiff_t>(count_));
  const auto last = order_.begin() + static_cast<std::ptrdiff_t>(k_) - 1;
  std::nth_element(order_.begin(), last, order_.end(), std::greater<>());
  const int32_t bound = *last;
  const auto above = std::count_if(order_.begin(), last, [&](int32_t r) { return r > bound; });
  size_t equal = k_ - static_cast<size_t>(above);
  size_t kept = 0;
  for (size_t i = 0; kept < k_; ++i) {
    const int32_t rank = ranks_[i];
    const int32_t entry = entries_[i];
    ranks_[kept] = rank;
    entries_[kept] = entry;
    const bool ties = rank == bound && equal > 0;
    equal -= ties ? 1 : 0;
    kept += rank > bound || ties ? 1 : 0;
  }
  count_ = k_;
  // A later entry must be better than the last of them: of equals the lower wins.
  least_ = bound + (bound < std::numeric_limits<int32_t>::max() ? 1 : 0);
}

int TopK::Finish(int32_t* selected) {
  Compact();
  std::copy(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(count_), selected);
  return static_cast<int>(count_);
}

}  // namespace agentd::model
