// Keeps the first and the last half of a stream that may be longer than memory should hold.
#ifndef AGENTD_SANDBOX_OUTPUT_H_
#define AGENTD_SANDBOX_OUTPUT_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace agentd::sandbox {

// One thread.
class OutputBuffer {
 public:
  explicit OutputBuffer(int64_t max_bytes)
      : head_max_(static_cast<size_t>(max_bytes) / 2),
        tail_max_(static_cast<size_t>(max_bytes) - head_max_) {}

  void Append(std::string_view chunk);
  int64_t total_bytes() const { return total_; }
  // What is kept. `dropped_at`: where bytes are missing in it, or -1.
  std::string Take(int64_t& dropped_at);

 private:
  const size_t head_max_;
  const size_t tail_max_;
  std::string head_;
  std::string tail_;  // a ring once it is full
  size_t tail_begin_ = 0;
  int64_t total_ = 0;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_OUTPUT_H_
