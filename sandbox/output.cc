#include "sandbox/output.h"

#include <algorithm>
#include <utility>

namespace agentd::sandbox {

void OutputBuffer::Append(std::string_view chunk) {
  total_ += static_cast<int64_t>(chunk.size());
  const size_t to_head = std::min(chunk.size(), head_max_ - head_.size());
  head_.append(chunk.substr(0, to_head));
  chunk.remove_prefix(to_head);
  if (chunk.size() > tail_max_) chunk.remove_prefix(chunk.size() - tail_max_);
  const size_t to_fill = std::min(chunk.size(), tail_max_ - tail_.size());
  tail_.append(chunk.substr(0, to_fill));
  chunk.remove_prefix(to_fill);
  while (!chunk.empty()) {
    const size_t n = std::min(chunk.size(), tail_max_ - tail_begin_);
    chunk.copy(tail_.data() + tail_begin_, n);
    tail_begin_ = (tail_begin_ + n) % tail_max_;
    chunk.remove_prefix(n);
  }
}

std::string OutputBuffer::Take(int64_t& dropped_at) {
  const size_t kept = head_.size() + tail_.size();
  dropped_at = static_cast<size_t>(total_) > kept ? static_cast<int64_t>(head_.size()) : -1;
  std::string out = std::move(head_);
  out.append(tail_, tail_begin_);
  out.append(tail_, 0, tail_begin_);
  return out;
}

}  // namespace agentd::sandbox
